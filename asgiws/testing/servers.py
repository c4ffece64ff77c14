"""Fake servers that behave like the real ones, and choke on what the real ones choke on.

A `Shape` says how one server behaves; a `FakeServer` is one connection of it: the scope, the server's `receive` and
`send`, and the client at the other end. What an application sends is checked as it comes: an event that the server
could not take is noted in `choked` and raised as `ServerChokedError`, which a test must never see.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, TypeAlias

import anyio
import anyio.lowlevel

from ..types import RawHeaders
from .checks import Checks
from .errors import ClientDisconnectedError, ServerChokedError
from .shapes import UVICORN, Shape, make_scope

Event: TypeAlias = dict[str, Any]
HeadersInput: TypeAlias = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


class FakeServer:
    """One WebSocket connection on a server of a given shape.

    Give it to an application as `await app(server.scope, server.receive, server.send)`. `say` and `leave` are the
    client's; `sent` is what the application sent; `status` and `body` what a refused client sees.

    Args:
        shape: The server.
        path: Decoded.
        query: Of the URL; not decoded.
        headers: Of the handshake; `host` is added.
        subprotocols: What the client offers.
        root_path: Where the application is mounted.
        portable: Choke on what any server chokes on, not only on what this one does.
        extra: More keys of the scope.

    Attributes:
        scope: For the application.
        sent: The events that it sent.
        choked: What it sent that the server could not take.
        calls_after_disconnect: How often it called `receive()` after the disconnect.
        sending: How many of its `send()` are under way.
        most_sending: How many of them were at once.
        hold: While set, `send` blocks on it: a client that does not read.
        fail: While set, `send` raises it.
    """

    def __init__(
        self,
        shape: Shape = UVICORN,
        path: str = "/",
        *,
        query: str | bytes = "",
        headers: HeadersInput = (),
        subprotocols: Iterable[Any] = (),
        root_path: str = "",
        portable: bool = True,
        **extra: Any,
    ) -> None:
        self.shape = shape
        self.sent: list[Event] = []
        self.choked: list[str] = []
        self.calls_after_disconnect = 0
        self.sending = 0
        self.most_sending = 0
        self.hold: anyio.Event | None = None
        self.fail: Exception | None = None
        self._inbox: collections.deque[Event | Exception] = collections.deque([{"type": "websocket.connect"}])
        self._news = anyio.Event()
        self._sent_news = anyio.Event()
        self._receiving = False
        self._gone = False
        self._told = False
        self._denial: Event | None = None
        self._state: Literal["new", "accepted", "refused", "closed"] = "new"
        pairs = raw_headers(headers)
        if not any(name.lower() == b"host" for name, _ in pairs):
            pairs.insert(0, (b"host", b"testserver"))
        self.scope: dict[str, Any] = make_scope(
            shape, "websocket", path=path, raw_path=path.encode(), root_path=root_path, headers=pairs,
            query_string=query.encode() if isinstance(query, str) else query,
        )  # fmt: skip
        self.scope |= {"subprotocols": list(subprotocols)} | extra
        self._checks = Checks(shape, self.scope["subprotocols"], portable=portable)

    # The client

    def say(self, message: str | bytes) -> None:
        """Send a message, as the client."""
        event: Event = {"type": "websocket.receive"}
        if self.shape.both_keys:
            event |= {"text": None, "bytes": None}
        event["text" if isinstance(message, str) else "bytes"] = message
        self.put(event)

    def leave(self, code: int | None = 1000, reason: str = "") -> None:
        """Close, as the client; without a code as a browser's `close()` does."""
        event: Event = {"type": "websocket.disconnect"}
        match self.shape.codes:
            case "1006":
                event["code"] = 1006
            case "no reason":
                event["code"] = 1005 if code is None else code
            case "none is None":
                event["code"] = code
            case _:
                event |= {"code": 1005 if code is None else code, "reason": reason}
        self.put(event)
        self._gone = True

    def abort(self) -> None:
        """Break the connection, as the client: no close is sent."""
        self.put({"type": "websocket.disconnect", "code": self.shape.abort_code})
        self._gone = True

    def vanish(self) -> None:
        """Leave before the handshake was handed over: the first event is then the disconnect."""
        self._inbox.clear()
        self.leave(1006)

    def put(self, event: Event | Exception) -> None:
        """Hand an event to the application; an exception is what `receive` raises when its turn comes."""
        self._inbox.append(event)
        self._news.set()
        self._news = anyio.Event()

    @property
    def texts(self) -> list[str]:
        """The text messages that the application sent."""
        return [event["text"] for event in self.sent if event.get("text") is not None]

    @property
    def types(self) -> list[str]:
        """The types of the events that the application sent."""
        return [event["type"] for event in self.sent]

    @property
    def status(self) -> int | None:
        """The HTTP status that the client saw; 101 for an accepted handshake, None while it has no answer."""
        if self._state == "new":
            return None
        if "websocket.accept" in self.types:
            return 101
        return int(self._denial["status"]) if self._denial is not None else 403

    @property
    def body(self) -> bytes:
        """The body of the denial."""
        return b"".join(event.get("body", b"") for event in self.sent if event["type"].endswith("response.body"))

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the application's close."""
        found = [event for event in self.sent if event["type"] == "websocket.close"]
        return (found[0].get("code", 1000), found[0].get("reason") or "") if found else None

    async def until(self, condition: Callable[[Self], object], timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until the condition of this server holds.

        Raises:
            TimeoutError: It does not hold within so many seconds.
        """
        with anyio.fail_after(timeout):
            while not condition(self):
                await self.news()

    # The server

    async def receive(self) -> Event:
        """The server's `receive()`."""
        if self._receiving and (self._checks.portable or self.shape.one_receiver):
            raise self._choke("two receive() at once")
        self._receiving = True
        try:
            await anyio.lowlevel.checkpoint()
            if self._told:
                self.calls_after_disconnect += 1
                if self.shape.again == "block":
                    await anyio.sleep_forever()
                return {"type": "websocket.disconnect", "code": 1005}
            while not self._inbox:
                await self._news.wait()
            event = self._inbox.popleft()
            if isinstance(event, Exception):
                raise event
            self._told = event["type"] == "websocket.disconnect"
        except anyio.get_cancelled_exc_class():
            if self.shape.cancel_eats and self._inbox:
                self._inbox.popleft()
            raise
        else:
            return event
        finally:
            self._receiving = False

    async def send(self, event: Mapping[str, Any]) -> None:
        """The server's `send()`."""
        self.sending += 1
        self.most_sending = max(self.most_sending, self.sending)
        try:
            await self._held_up()
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            if self.shape.late:
                with contextlib.suppress(OSError, RuntimeError):  # nobody is there any more to be told
                    self._take(dict(event))
            raise
        else:
            self._take(dict(event))
        finally:
            self.sending -= 1

    async def _held_up(self) -> None:
        """Wait while the client does not read."""
        if self.hold is not None:
            await self.hold.wait()

    def _take(self, event: Event) -> None:
        kind = event.get("type")
        if self._state == "closed" or (self._state == "refused" and kind != "websocket.http.response.body"):
            raise self._choke(f"{kind} after the end")
        problem = self._checks.problem(self._state, event)
        if problem is not None:
            raise self._choke(problem)
        if self.fail is not None:
            raise self.fail
        if self._dropped(event):
            return
        if kind == "websocket.accept":
            self._state = "accepted"
        elif kind == "websocket.close":
            self._state = "closed"
        elif kind == "websocket.http.response.start":
            self._state = "refused"
            self._denial = event
        elif kind == "websocket.http.response.body" and not event.get("more_body"):
            self._state = "closed"
        self.sent.append(event)
        self._taken(event)
        self.notify()

    def _dropped(self, event: Event) -> bool:
        """Whether an event goes nowhere because the client has gone; raises where the server tells."""
        return self._gone and event["type"] == "websocket.send" and self._gone_already()

    def _gone_already(self) -> bool:
        """What the server does with an event when the client has gone: raise, or drop it."""
        if self.shape.gone == "oserror":
            raise ClientDisconnectedError
        if self.shape.gone == "runtimeerror":
            raise RuntimeError("Cannot call send once the client has gone")
        return True

    def _taken(self, event: Event) -> None:
        """What a client does with an event."""

    async def news(self) -> None:
        """Wait until something has happened in this connection."""
        await self._sent_news.wait()

    def notify(self) -> None:
        """Wake up who waits for something in this connection."""
        self._sent_news.set()
        self._sent_news = anyio.Event()

    def _choke(self, problem: str) -> ServerChokedError:
        self.choked.append(problem)
        return ServerChokedError(f"{self.shape.name} chokes on: {problem}")


def raw_headers(headers: HeadersInput) -> RawHeaders:
    """Headers as bytes, as they were given: they may be such as no good client sends."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [
        (name.encode() if isinstance(name, str) else name, value.encode() if isinstance(value, str) else value)
        for name, value in pairs
    ]
