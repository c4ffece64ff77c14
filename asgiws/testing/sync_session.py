"""The client's end of a WebSocket, as a test holds it that is not async."""

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from ..errors import WebSocketDisconnect, WebSocketStateError
from ..messages import bytes_of, either_of, text_of
from ..wire import sendable_bytes, sendable_text
from .errors import tell
from .line import Close
from .portal import LoopThread
from .servers import Event
from .service import Handshake, Service
from .session import NOT_OPEN, STALL_BUFFER, Mode, Session, as_json, decoded, picked

T = TypeVar("T")


class WebSocketSession(Session):
    """The client's end of a WebSocket; its methods may be called from any thread.

    Enter it with `with`: the handshake is sent, and answered. Every method that waits does so at most `timeout` seconds
    (None: those of the client), and fails with a `StuckError` that says where the application stands. What the
    application raised is raised by the method that waits, or at the latest when the session is left.

    Args:
        service: What it talks to.
        handshake: How it begins.
        loop: Gives the event loop of the application.
    """

    def __init__(
        self,
        service: Service,
        handshake: Handshake,
        loop: Callable[[], contextlib.AbstractContextManager[LoopThread]],
    ) -> None:
        self._service = service
        self._handshake = handshake
        self._enter_loop = loop
        self._loop: LoopThread | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._loop = stack.enter_context(self._enter_loop())
            self._talk = self._loop.call(self._service.open, self._handshake)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self._stack:
                self._call(self._service.close, self.conversation, failure)
        except BaseException as problem:  # noqa: BLE001 - told, or raised again
            tell(problem, failure)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._loop is None:
            raise WebSocketStateError(NOT_OPEN)
        return self._loop.call(function, *args)

    def _read(self, timeout: float | None) -> Event:
        event: Event = self._call(self.conversation.read, timeout)
        return event

    def send_text(self, data: str) -> None:
        """Send a text message.

        Raises:
            WebSocketDisconnect: The application has closed, and the test was told.
            WebSocketStateError: The test has closed.
        """
        self._call(self.conversation.say, sendable_text(data))

    def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send a binary message; raises as `send_text`."""
        self._call(self.conversation.say, sendable_bytes(data))

    def send_json(self, data: Any, mode: Mode = "text") -> None:
        """Send anything that msgspec encodes, as JSON; raises as `send_text`."""
        self._call(self.conversation.say, as_json(data, mode))

    def receive_text(self, timeout: float | None = None) -> str:
        """The next message, which must be text.

        Raises:
            UnexpectedMessageError: It is binary.
            WebSocketDisconnect: The application has closed.
            StuckError: None came in time.
        """
        text: str = picked(self._read(timeout), text_of)
        return text

    def receive_bytes(self, timeout: float | None = None) -> bytes:
        """The next message, which must be binary; raises as `receive_text`."""
        data: bytes = picked(self._read(timeout), bytes_of)
        return data

    @overload
    def receive_json(self, type: type[T], timeout: float | None = None, mode: Mode | None = None) -> T: ...

    @overload
    def receive_json(self, type: Any = None, timeout: float | None = None, mode: Mode | None = None) -> Any: ...

    def receive_json(self, type: Any = None, timeout: float | None = None, mode: Mode | None = None) -> Any:
        """The next message, decoded from JSON; raises as `receive_text`.

        Args:
            type: Any type that msgspec takes; left out, anything.
            timeout: In seconds.
            mode: "text" or "binary" to take only that.
        """
        return decoded(self._read(timeout), type, mode)

    @overload
    def receive(self, *, timeout: float | None = None) -> str | bytes: ...

    @overload
    def receive(self, type: type[T], timeout: float | None = None) -> T: ...

    @overload
    def receive(self, type: Any, timeout: float | None = None) -> Any: ...

    def receive(self, type: Any = None, timeout: float | None = None) -> Any:
        """The next message: as it came, or decoded from JSON into a type; raises as `receive_text`."""
        event = self._read(timeout)
        return either_of(event) if type is None else decoded(event, type, None)

    def __iter__(self) -> Iterator[str | bytes]:
        """The messages until the close, each within the client's timeout."""
        while True:
            try:
                event = self._read(None)
            except (WebSocketDisconnect, WebSocketStateError):
                if not self.conversation.over:
                    raise
                return
            yield either_of(event)

    def expect_close(
        self, code: int | None = None, *, reason: str | None = None, timeout: float | None = None
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
        found: Close = self._call(self.conversation.expect_close, code, reason, timeout)
        return found

    def expect_no_message(self, within: float = 0.05) -> None:
        """Wait so many seconds.

        Raises:
            UnexpectedMessageError: A message or a close came.
        """
        self._call(self.conversation.expect_no_message, within)

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Close; None for a close without a code. After the end it does nothing."""
        self._call(self.conversation.close, code, reason)

    def abort(self) -> None:
        """Break the connection without a close, as a peer does that loses its network."""
        self._call(self.conversation.abort)

    def stall(self, buffer: int = STALL_BUFFER) -> None:
        """Read nothing from now on: the application's `send()` blocks as soon as so many more bytes went out."""
        self._call(self.conversation.line.stall, buffer)

    def resume(self) -> None:
        """Read again."""
        self._call(self.conversation.line.resume)
