"""The client's end of a WebSocket, as an async test holds it."""
# ruff: noqa: ASYNC109 - a timeout of a test says what it waited for, which a cancel scope around it cannot

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import anyio.lowlevel

from ..connection import Headers
from ..errors import MessageError, WebSocketDisconnect, WebSocketStateError
from ..messages import bytes_of, decoder_for, either_of, encode_message, text_of
from ..types import Scope
from ..wire import sendable_bytes, sendable_text
from .conversation import Conversation, shown
from .errors import UnexpectedMessageError
from .line import Close
from .servers import Event
from .service import Handshake, Service

T = TypeVar("T")
Mode = Literal["text", "binary"]

NOT_OPEN = "this session is not open: enter it with `with client.websocket_connect(...)`"
STALL_BUFFER = 64 * 1024
"""Bytes that still go out to a client that reads nothing."""


class Session:
    """What the sessions of async and of other tests know of their conversation."""

    _talk: Conversation | None = None

    @property
    def conversation(self) -> Conversation:
        """The conversation in the event loop of the application."""
        if self._talk is None:
            raise WebSocketStateError(NOT_OPEN)
        return self._talk

    @property
    def scope(self) -> Scope:
        """The scope that the application got."""
        return self.conversation.scope

    @property
    def accepted_subprotocol(self) -> str | None:
        """The subprotocol that the application chose, or None."""
        found: str | None = (self.conversation.line.accepted or {}).get("subprotocol")
        return found

    @property
    def response_headers(self) -> Headers:
        """The headers that the application sent with its accept; none where the server drops them (daphne, granian)."""
        return Headers(self.conversation.line.accept_headers)


def picked(event: Event, pick: Callable[[Event], Any]) -> Any:
    """What a test asked for of a message.

    Raises:
        UnexpectedMessageError: The message is of another kind, or not of the type.
    """
    try:
        return pick(event)
    except MessageError as error:
        raise UnexpectedMessageError(f"{error}; the application sent {shown(event)}") from None


def decoded(event: Event, type: Any, mode: Mode | None) -> Any:
    """A message, decoded from JSON into a type."""
    return picked(event, lambda event: decoder_for(Any if type is None else type)(event, mode))


def as_json(data: Any, mode: Mode) -> str | bytes:
    """A message as JSON, to be sent."""
    if mode not in ("text", "binary"):
        raise ValueError(f"mode is 'text' or 'binary', got {mode!r}")
    return encode_message(data).decode() if mode == "text" else encode_message(data)


class AsyncWebSocketSession(Session):
    """The client's end of a WebSocket, in the event loop of the test.

    Enter it with `async with`: the handshake is sent, and answered. Every method that waits does so at most `timeout`
    seconds (None: those of the client), and fails with a `StuckError` that says where the application stands. What the
    application raised is raised by the method that waits, or at the latest when the session is left.

    Args:
        service: What it talks to.
        handshake: How it begins.
    """

    def __init__(self, service: Service, handshake: Handshake) -> None:
        self._service = service
        self._handshake = handshake

    async def __aenter__(self) -> Self:
        self._talk = await self._service.open(self._handshake)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._service.close(self.conversation, failure)

    async def send_text(self, data: str) -> None:
        """Send a text message.

        Raises:
            WebSocketDisconnect: The application has closed, and the test was told.
            WebSocketStateError: The test has closed.
        """
        await self._say(sendable_text(data))

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send a binary message; raises as `send_text`."""
        await self._say(sendable_bytes(data))

    async def send_json(self, data: Any, mode: Mode = "text") -> None:
        """Send anything that msgspec encodes, as JSON; raises as `send_text`."""
        await self._say(as_json(data, mode))

    async def _say(self, message: str | bytes) -> None:
        self.conversation.say(message)
        await anyio.lowlevel.checkpoint()

    async def receive_text(self, timeout: float | None = None) -> str:
        """The next message, which must be text.

        Raises:
            UnexpectedMessageError: It is binary.
            WebSocketDisconnect: The application has closed.
            StuckError: None came in time.
        """
        text: str = picked(await self.conversation.read(timeout), text_of)
        return text

    async def receive_bytes(self, timeout: float | None = None) -> bytes:
        """The next message, which must be binary; raises as `receive_text`."""
        data: bytes = picked(await self.conversation.read(timeout), bytes_of)
        return data

    @overload
    async def receive_json(self, type: type[T], timeout: float | None = None, mode: Mode | None = None) -> T: ...

    @overload
    async def receive_json(self, type: Any = None, timeout: float | None = None, mode: Mode | None = None) -> Any: ...

    async def receive_json(
        self,
        type: Any = None,
        timeout: float | None = None,
        mode: Mode | None = None,
    ) -> Any:
        """The next message, decoded from JSON; raises as `receive_text`.

        Args:
            type: Any type that msgspec takes; left out, anything.
            timeout: In seconds.
            mode: "text" or "binary" to take only that.
        """
        return decoded(await self.conversation.read(timeout), type, mode)

    @overload
    async def receive(self, *, timeout: float | None = None) -> str | bytes: ...

    @overload
    async def receive(self, type: type[T], timeout: float | None = None) -> T: ...

    @overload
    async def receive(self, type: Any, timeout: float | None = None) -> Any: ...

    async def receive(self, type: Any = None, timeout: float | None = None) -> Any:
        """The next message: as it came, or decoded from JSON into a type; raises as `receive_text`."""
        event = await self.conversation.read(timeout)
        return either_of(event) if type is None else decoded(event, type, None)

    def __aiter__(self) -> Self:
        """The messages until the close, each within the client's timeout."""
        return self

    async def __anext__(self) -> str | bytes:
        # No generator: one that is left by `break` would need to be closed.
        try:
            event = await self.conversation.read(None)
        except (WebSocketDisconnect, WebSocketStateError):
            if not self.conversation.over:
                raise
            raise StopAsyncIteration from None
        return either_of(event)

    async def expect_close(
        self,
        code: int | None = None,
        *,
        reason: str | None = None,
        timeout: float | None = None,
    ) -> Close:
        """Wait for the application's close, and give its code and reason.

        Args:
            code: What it must be; None for any.
            reason: What it must be; None for any.
            timeout: In seconds.

        Raises:
            UnexpectedMessageError: A message or another close came.
            StuckError: None came in time.
        """
        return await self.conversation.expect_close(code, reason, timeout)

    async def expect_no_message(self, within: float = 0.05) -> None:
        """Wait so many seconds.

        Raises:
            UnexpectedMessageError: A message or a close came.
        """
        await self.conversation.expect_no_message(within)

    async def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Close; None for a close without a code. After the end it does nothing."""
        self.conversation.close(code, reason)
        await anyio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Break the connection without a close, as a peer does that loses its network."""
        self.conversation.abort()
        await anyio.lowlevel.checkpoint()

    async def stall(self, buffer: int = STALL_BUFFER) -> None:
        """Read nothing from now on: the application's `send()` blocks as soon as so many more bytes went out."""
        self.conversation.line.stall(buffer)
        await anyio.lowlevel.checkpoint()

    async def resume(self) -> None:
        """Read again."""
        self.conversation.line.resume()
        await anyio.lowlevel.checkpoint()
