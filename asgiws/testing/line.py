"""The line between a server and a client that a test plays."""

import collections
from collections.abc import Callable
from typing import Any

from ..types import RawHeaders
from .errors import ServerChokedError
from .servers import Event, FakeServer
from .shapes import Shape

BUFFER = 4 * 1024 * 1024
"""Bytes that go out to a client that does not read: about what server and kernel took of every real server."""

_FRAME = 14  # the longest header of a frame (RFC 6455, 5.2): a message without content counts too

Close = tuple[int, str]


class Line(FakeServer):
    """A WebSocket connection as both of its ends see it.

    Args:
        shape: The server.
        handshake: As `FakeServer` takes it.

    Attributes:
        arrivals: What the application sent after it accepted, and the client has not read yet.
        accepted: The `websocket.accept` event; None if there was none.
        refused: Status, headers, body, code and reason of the refusal; None if there was none.
        broken: The handshake came to nothing: the server broke the connection.
        stalled: The client reads nothing.
        left: How the client ended it: "closed", "aborted", or None.
        choke_error: The first thing that the server could not take.
    """

    def __init__(self, shape: Shape, **handshake: Any) -> None:
        super().__init__(shape, portable=shape.name == "strict", **handshake)
        self.arrivals: collections.deque[Event] = collections.deque()
        self.accepted: Event | None = None
        self.refused: tuple[int, Any, bytes, int, str] | None = None
        self.broken = False
        self.stalled = False
        self.left: str | None = None
        self.choke_error: ServerChokedError | None = None
        self._stopped = False
        self._shut = False
        self._unread = 0
        self._limit = BUFFER
        self._early = False
        self._unanswered: Close | None = None

    @property
    def answered(self) -> bool:
        """The handshake came to an end, this way or that."""
        return self.accepted is not None or self.refused is not None or self.broken

    @property
    def accept_headers(self) -> RawHeaders:
        """The headers of the accept, as the client sees them."""
        return list((self.accepted or {}).get("headers") or ()) if self.shape.accept_headers else []

    @property
    def over(self) -> bool:
        """The server sends nothing more."""
        return self._state == "closed" or self.broken

    @property
    def receiving(self) -> bool:
        """The application waits in `receive()`."""
        return self._receiving

    # The client

    def read(self) -> Event:
        """The next of the arrivals."""
        event = self.arrivals.popleft()
        self._unread -= _size(event)
        self.notify()
        return event

    def stall(self, buffer: int) -> None:
        """Read nothing from now on: only so many bytes more go out."""
        self.stalled = True
        self._limit = self._unread + buffer

    def resume(self) -> None:
        """Read again."""
        self.stalled = False
        self._limit = BUFFER
        if self._unanswered is not None:
            self._answer_close(*self._unanswered)
        self.notify()

    def hang_up(self, code: int | None = 1000, reason: str = "") -> None:
        """Close, if nobody has done so."""
        if self._ends("closed"):
            self.leave(code, reason)

    def cut(self) -> None:
        """Break the connection, if nobody has ended it."""
        if self._ends("aborted"):
            self.abort()

    def leave_early(self) -> None:
        """Break the connection before the handshake is answered."""
        if self._ends("aborted"):
            self._early = self._gone = True
            if self.shape.early != "untold":
                self.put({"type": "websocket.disconnect", "code": 1006})

    def _ends(self, how: str) -> bool:
        if self.left is not None:
            return False
        self.left = how
        self.notify()
        return not self.over

    # The server

    async def _held_up(self) -> None:
        await super()._held_up()
        while self.shape.blocks and self._unread >= self._limit and not self._gone:
            await self.news()

    def _take(self, event: Event) -> None:
        if self._shut:  # by the server, which the application may not know yet
            self._gone_already()
        else:
            super()._take(event)

    def _dropped(self, event: Event) -> bool:
        if self._early and event["type"] == "websocket.accept" and self.shape.early == "raise":
            return self._gone_already()
        return super()._dropped(event)

    def _choke(self, problem: str) -> ServerChokedError:
        error = super()._choke(problem)
        self.choke_error = self.choke_error or error
        return error

    def _taken(self, event: Event) -> None:
        kind = event["type"]
        if kind == "websocket.accept":
            self.accepted = event
            if self._early and self.shape.early == "untold":
                self.put({"type": "websocket.disconnect", "code": self.shape.abort_code})
        elif kind == "websocket.send":
            if self.shape.sends_empty or event.get("text") or event.get("bytes"):
                self._arrives(event)
        elif kind == "websocket.close":
            self._closed(event.get("code", 1000), event.get("reason") or "")
        elif self._state == "closed" and self._denial is not None:
            headers = self._denial.get("headers") or []
            self.refused = (self._denial["status"], headers, self.body, 1006, "")
            self._answer_close(1006, "")

    def _arrives(self, event: Event) -> None:
        self.arrivals.append(event)
        self._unread += _size(event)

    def _closed(self, code: int, reason: str) -> None:
        if self.accepted is None:
            self.refused = (403, [], b"", code, reason)
            self._answer_close(code, reason)
            return
        self._arrives({"type": "websocket.close", "code": code, "reason": reason})
        if self.stalled:
            self._unanswered = code, reason
        else:
            self._answer_close(code, reason)

    def _answer_close(self, code: int, reason: str) -> None:
        """The application's own end comes back to it, if it still receives."""
        self._unanswered = None
        told = self.shape.after_refusal
        if self.accepted is not None:
            told = code if self.shape.after_close == "own" else self.shape.after_close
        if told is not None and not self._gone:
            reasons = {"reason": reason} if self.shape.codes == "all" and told == code else {}
            self.put({"type": "websocket.disconnect", "code": told, **reasons})

    def stop(self, cancel: Callable[[], None]) -> None:
        """The server is told to stop (SIGTERM)."""
        if self.over or self.left is not None:
            return
        if self.shape.stop == "cancel":
            self._stopped = True
            cancel()
            return
        self.put({"type": "websocket.disconnect", "code": self.shape.stop})
        self._gone = self._shut = True
        self._end(500, self.shape.stop_code)

    def application_ended(self, error: BaseException | None) -> None:
        """What the server does when the application has ended without an end of the connection."""
        if not self.over and self.left is None:
            status, code = self.shape.returned if error is None else self.shape.raised
            self._end(status, self.shape.stop_code if self._stopped else code)
        self.notify()

    def _end(self, status: int | None, code: int | None) -> None:
        if self._state == "new" and status is not None:
            self.refused = (status, [], b"Internal Server Error" if status == 500 else b"", 1006, "")  # noqa: PLR2004
        elif self._state != "accepted":
            self.broken = True
        elif code is not None:
            self._arrives({"type": "websocket.close", "code": code, "reason": ""})
        else:
            return
        self._state = "closed"
        self.notify()


def _size(event: Event) -> int:
    content = event.get("text") or event.get("bytes") or b""
    return len(content) + _FRAME
