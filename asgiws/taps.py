"""What counts at a server's `receive()` and `send()`, for the connections that want it: there only it has a price."""

# ruff: noqa: SLF001 - a tap is put into the session
import time
from typing import Any, Self

import msgspec

from .inbox import size_of
from .session import Session
from .types import Message, Receive, Send
from .watch import end


class Traffic(msgspec.Struct):
    """Messages and bytes of one connection, or of many. Texts count as UTF-8.

    Attributes:
        messages_in: How many messages the server has handed over.
        bytes_in: How many bytes of messages.
        messages_out: How many messages the server has taken, which says nothing of their arrival.
        bytes_out: How many bytes of messages.
    """

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0

    def plus(self, *others: Self) -> "Traffic":
        """The sum of it and others."""
        return Traffic(*(sum(getattr(one, name) for one in (self, *others)) for name in self.__struct_fields__))


def count_traffic(ws: Session) -> Traffic:
    """Count the messages of a connection from now on."""
    traffic = Traffic()
    ws._server_receive = _counting_receive(ws._server_receive, traffic)
    ws._server_send = _counting_send(ws._server_send, traffic)
    return traffic


def _counting_receive(receive: Receive, traffic: Traffic) -> Receive:
    async def count() -> Message:
        event = await receive()
        if event["type"] == "websocket.receive":
            traffic.messages_in += 1
            traffic.bytes_in += size_of(event)
        return event

    return count


def _counting_send(send: Send, traffic: Traffic) -> Send:
    async def count(event: Message) -> None:
        await send(event)
        if event["type"] == "websocket.send":
            traffic.messages_out += 1
            traffic.bytes_out += size_of(event)

    count.inner = send  # type: ignore[attr-defined]
    return count


class Paced:
    """A server's `receive()` with a token bucket.

    Args:
        ws: Whose it is.
        receive: The server's.
        rate: Messages a second.
        burst: The size of the bucket.
    """

    __slots__ = ("_at", "_burst", "_left", "_rate", "_receive", "_ws")

    def __init__(self, ws: Session, receive: Any, rate: float, burst: int) -> None:
        self._ws = ws
        self._receive = receive
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = time.monotonic()

    async def __call__(self) -> Message:
        """The next event; the end of the connection if it came too early."""
        event: Message = await self._receive()
        if event["type"] != "websocket.receive":
            return event
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - 1
        self._at = now
        if self._left >= 0:
            return event
        if self._ws._inbox is not None:
            self._ws._inbox.closes = True  # it is the reader that runs here
        await end(self._ws, 1008, "you send too many messages")
        return {"type": "websocket.disconnect", "code": 1008, "reason": ""}
