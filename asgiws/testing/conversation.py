"""One conversation of a client with the application, in the event loop of both: what all sessions stand on."""

from collections.abc import Callable
from typing import Any

import anyio

from ..errors import WebSocketDisconnect, WebSocketStateError
from ..types import Scope
from .errors import StuckError, UnexpectedMessageError, WebSocketDenied, attach, cut, tell
from .line import Close, Line
from .running import Running
from .servers import Event

GRACE = 1.0
"""Seconds in which a cancelled application must have ended, clean-up included."""
_HASTE = 0.5  # for an application to end by itself when the test has failed already
_NO_TIME = 0.05  # the same, when the test has waited for the application already
_AFTERMATH = 0.1  # for an application to raise what made it close


class Conversation:
    """A WebSocket connection to an application that runs in a task of its own.

    Args:
        app: The application.
        line: The line to it.
        timeout: Seconds that anything may take.
        raises: Exceptions of the application are raised in the test.

    Attributes:
        line: The line to the application.
        end: How the connection ended, as far as the test was told: code and reason.
    """

    def __init__(self, app: Callable[..., Any], line: Line, *, timeout: float, raises: bool) -> None:
        self.line = line
        self.end: Close | None = None
        self.timeout = timeout
        self._raises = raises
        self._running = Running(lambda: app(line.scope, line.receive, line.send), self._ended)
        self._closed_by: str | None = None

    @property
    def scope(self) -> Scope:
        """The scope that the application got."""
        return self.line.scope

    @property
    def over(self) -> bool:
        """The test knows that it is over: it closed, or was told of the application's close."""
        return self.end is not None or self._closed_by is not None

    def _ended(self) -> None:
        self.line.application_ended(self._running.error)

    # The beginning

    async def open(self) -> None:
        """Send the handshake and wait for the answer.

        Raises:
            WebSocketDenied: The handshake was refused.
            WebSocketDisconnect: The server broke the connection without an answer.
            StuckError: No answer came in time.
        """
        self._running.start()
        try:
            await self._until(lambda: self.line.answered, self.timeout, "no answer to the handshake")
            if self.line.accepted is None:
                await self._refused()
        except BaseException as error:
            self.line.leave_early()
            await self.finish(error)
            raise

    async def _refused(self) -> None:
        await self._until(lambda: self._running.ended, self.timeout, "the handshake is refused, but there is no end")
        self._raise_problem()
        if self.line.refused is None:
            raise WebSocketDisconnect(1006, "the server broke the connection instead of an answer")
        raise WebSocketDenied(*self.line.refused)

    async def vanish(self) -> None:
        """Send the handshake and leave before the answer; wait for the application's end."""
        self._running.start()
        self.line.leave_early()
        await self.finish(None)

    # The client's part

    def say(self, message: str | bytes) -> None:
        """Send a message.

        Raises:
            WebSocketDisconnect: The application has closed, and the test was told.
            WebSocketStateError: The test has closed.
        """
        self._check_open("send")
        self.line.say(message)

    def close(self, code: int | None, reason: str) -> None:
        """Close; after the end it does nothing."""
        self._leave(self.line.hang_up, "closed", code, reason)

    def abort(self) -> None:
        """Break the connection without a close."""
        self._leave(self.line.cut, "aborted")

    def _leave(self, how: Callable[..., None], word: str, *args: Any) -> None:
        how(*args)
        if not self.over:
            self._closed_by = f"you {word} it"

    def _check_open(self, doing: str) -> None:
        if self.end is not None:
            raise WebSocketDisconnect(*self.end)
        if self._closed_by is not None:
            raise WebSocketStateError(f"cannot {doing}: this session is over ({self._closed_by})")

    async def read(self, seconds: float | None) -> Event:
        """The next `websocket.send` event.

        Raises:
            WebSocketDisconnect: The connection has ended.
            WebSocketStateError: The test has closed, or is stalled.
            StuckError: Nothing came in time.
        """
        event = await self._arrival(seconds, "no message")
        if event["type"] == "websocket.close":
            raise WebSocketDisconnect(*await self._told(event))
        return event

    async def expect_close(self, code: int | None, reason: str | None, seconds: float | None) -> Close:
        """Wait for the application's close.

        Raises:
            UnexpectedMessageError: Something else came.
            StuckError: Nothing came in time.
        """
        if self.end is None:
            event = await self._arrival(seconds, "no close")
            if event["type"] != "websocket.close":
                others = [event, *(one for one in self.line.arrivals if one["type"] == "websocket.send")]
                raise UnexpectedMessageError(f"expected the close, got {', then '.join(map(shown, others))}")
            await self._told(event)
        found, why = self.end or (0, "")
        if (code is not None and found != code) or (reason is not None and why != reason):
            wanted = "" if reason is None else f" {reason!r}"
            raise UnexpectedMessageError(
                f"expected the close {'with any code' if code is None else code}{wanted}, got {found} {why!r}"
            )
        return found, why

    async def expect_no_message(self, within: float) -> None:
        """Wait, and fail if anything comes.

        Raises:
            UnexpectedMessageError: Something came.
        """
        self._check_reading()
        with anyio.move_on_after(within):
            await self._watch(lambda: self.line.arrivals)
        if not self.line.arrivals:
            self._raise_problem()
            return
        event = self.line.read()
        if event["type"] == "websocket.close":
            await self._told(event)
        raise UnexpectedMessageError(f"expected no message within {within:g} s, got {shown(event)}")

    async def _arrival(self, seconds: float | None, missing: str) -> Event:
        self._check_reading()
        if not self.line.arrivals:
            self._check_open("receive")
            await self._until(lambda: self.line.arrivals, self.timeout if seconds is None else seconds, missing)
        return self.line.read()

    def _check_reading(self) -> None:
        if self.line.stalled:
            raise WebSocketStateError("cannot receive: this session is stalled; call resume() first")

    async def _told(self, event: Event) -> Close:
        """The test is told of the close; what made the application close comes first."""
        self.end = event["code"], event["reason"]
        await self._running.ends_within(_AFTERMATH)
        self._raise_problem()
        return self.end

    # The end

    def stop(self) -> None:
        """Let the server stop (SIGTERM)."""
        self.line.stop(self._running.cancel)

    async def finish(self, failure: BaseException | None) -> None:
        """Hang up and wait for the application's end.

        Args:
            failure: What the test raises already; it is told of any problem.

        Raises:
            StuckError: The application did not end in time; it was cancelled.
            BaseException: What the application raised.
        """
        with anyio.CancelScope(shield=True):
            stuck = await self._finish(failure)
        problem = stuck or self._problem()
        if problem is not None and problem is not failure:
            tell(problem, failure)

    async def _finish(self, failure: BaseException | None) -> StuckError | None:
        """Hang up and wait for the application's end; the error if it did not come by itself."""
        self.line.hang_up()
        if self.line.stalled:
            self.line.resume()
        patience = self.timeout
        if failure is not None:
            patience = min(patience, _NO_TIME if isinstance(failure, StuckError) else _HASTE)
        if await self._running.ends_within(patience):
            return None
        where = self._whereabouts()
        stopped = await self._running.stop(GRACE)
        besides = "" if stopped else f"; it did not end within {GRACE:g} s of its cancellation either, and was given up"
        if stopped and isinstance(failure, StuckError):
            return None  # it tells already
        stuck = StuckError(
            f"the client has gone, and the application has not ended within {patience:g} s; {where}{besides}"
        )
        if self._running.error is not None:
            attach(stuck, self._running.error)
        return stuck

    # Waiting

    async def _until(self, condition: Callable[[], object], seconds: float, missing: str) -> None:
        """Wait for something of the application; its own exception comes at once.

        Raises:
            StuckError: The condition does not hold in time.
        """
        with anyio.move_on_after(seconds):
            await self._watch(condition)
        if not condition():
            self._raise_problem()
            raise StuckError(f"{missing} within {seconds:g} s; {self._whereabouts()}")

    async def _watch(self, condition: Callable[[], object]) -> None:
        while not condition() and (self._running.error is None or not self._raises):
            await self.line.news()

    def _problem(self) -> BaseException | None:
        """What the application raised, and what the server could not take, once the application has ended."""
        if not self._running.ended:
            return None
        error = self._running.error if self._raises else None
        choked = self.line.choke_error
        if error is not None and choked is not None:
            attach(error, choked)
        return error or choked

    def _raise_problem(self) -> None:
        problem = self._problem()
        if problem is not None:
            raise problem

    def _whereabouts(self) -> str:
        """Where the application stands, as the second half of a sentence."""
        server = self.line.shape.name
        if self._running.ended:
            return f"the application has returned without a close, and {server} keeps the connection open then"
        does = "waits"
        if self.line.calls_after_disconnect:
            does = f"waits for ever: it called receive() again after the disconnect, which {server} never answers,"
        elif self.line.receiving:
            does = "itself waits for the client to send,"
        place = self._running.waits_at
        return f"the application {does.rstrip(',')}" if place is None else f"the application {does} at {place}"


def shown(event: Event) -> str:
    """An event of the application's, for an error text."""
    if event["type"] == "websocket.close":
        return f"the close {event['code']} {event['reason']!r}"
    text = event.get("text")
    return f"the text {cut(repr(text))}" if text is not None else f"the bytes {cut(repr(event.get('bytes')))}"
