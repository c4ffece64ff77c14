"""One HTTP request to the application, in the event loop of both."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import anyio.lowlevel

from ..types import RawHeaders, Scope
from .conversation import GRACE
from .errors import ServerChokedError, StuckError
from .running import Running
from .servers import Event
from .shapes import Shape

_BUFFER = 64 * 1024  # bytes that go out before the client reads them


class Exchange:
    """A request and its response.

    Args:
        app: The application.
        shape: The server.
        scope: That of the request.
        body: The body of the request, in chunks.
        timeout: Seconds that the application may keep the client waiting.
        raises: Exceptions of the application are raised in the test.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        shape: Shape,
        scope: Scope,
        body: Iterable[bytes],
        *,
        timeout: float,
        raises: bool,
    ) -> None:
        self._shape = shape
        self._scope = scope
        self._body = collections.deque(body)
        self._asked = False
        self._timeout = timeout
        self._raises = raises
        self._running = Running(lambda: app(scope, self._receive, self._send), self._notify)
        self._start: Event | None = None
        self._chunks: collections.deque[bytes] = collections.deque()
        self._unread = 0
        self._complete = False
        self._gone = False
        self._news = anyio.Event()

    # The application's side

    async def _receive(self) -> Event:
        await anyio.lowlevel.checkpoint()
        if self._body or not self._asked:
            self._asked = True
            chunk = self._body.popleft() if self._body else b""
            return {"type": "http.request", "body": chunk, "more_body": bool(self._body)}
        while not self._complete and not self._gone:
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        kind = event.get("type")
        if kind != ("http.response.start" if self._start is None else "http.response.body") or self._complete:
            when = "after the end" if self._complete else "out of order"
            raise ServerChokedError(f"{self._shape.name} chokes on: {kind} {when}")
        if self._gone:
            self._refuse()
        elif self._start is None:
            self._start = {**event, "headers": self._checked(event)}
        else:
            await self._take(bytes(event.get("body", b"")))
            self._complete = not event.get("more_body", False)
        self._notify()

    async def _take(self, chunk: bytes) -> None:
        while self._unread >= _BUFFER and not self._gone:
            await self._news.wait()
        if self._scope["method"] != "HEAD" and chunk:
            self._chunks.append(chunk)
            self._unread += len(chunk)

    def _refuse(self) -> None:
        """What a server does with an event when the client has gone: unlike with a WebSocket, all real ones drop it."""
        if self._shape.gone == "runtimeerror":
            raise RuntimeError("Cannot call send once the client has gone")

    def _checked(self, event: Event) -> RawHeaders:
        headers = [(name, value) for name, value in event.get("headers") or ()]
        if not all(isinstance(name, bytes) and isinstance(value, bytes) for name, value in headers):
            raise ServerChokedError(f"{self._shape.name} chokes on: headers that are not bytes: {headers!r}")
        if not isinstance(event.get("status"), int):
            raise ServerChokedError(f"{self._shape.name} chokes on: status {event.get('status')!r}")
        return headers

    def _notify(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    # The client's side

    async def start(self) -> tuple[int, RawHeaders]:
        """Send the request; status and headers of the response.

        Raises:
            BaseException: What the application raised.
            StuckError: It did not answer in time.
        """
        self._running.start()
        await self._until(lambda: self._start is not None, "no answer")
        if self._start is None:
            self._start = {"status": 500, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}
            self._chunks.append(b"Internal Server Error")
            self._complete = True
        return self._start["status"], self._start["headers"]

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end, when the application has ended too. Raises as `start`.

        Raises:
            ConnectionResetError: The application ended before the response did.
        """
        await self._until(lambda: self._chunks or self._complete, "no more of the response")
        if self._chunks:
            found = self._chunks.popleft()
            self._unread -= len(found)
            self._notify()
            return found
        if not self._complete:
            raise ConnectionResetError("the application ended in the middle of its response")
        await self.close()
        return b""

    async def close(self) -> None:
        """Leave, if the response is not read to its end, and wait for the application's end. Raises as `start`."""
        if self._gone:
            return
        self._gone = True
        self._notify()
        with anyio.CancelScope(shield=True):
            if not await self._running.ends_within(self._timeout):
                stuck = StuckError(
                    f"the client has gone, and the application has not ended within {self._timeout:g} s;{self._place()}"
                )
                await self._running.stop(GRACE)
                raise stuck
        self._raise_problem()

    async def _until(self, condition: Callable[[], object], missing: str) -> None:
        """Wait for something of the application; it is stopped if that does not come, or the test is cancelled."""
        try:
            with anyio.move_on_after(self._timeout):
                while not condition() and not self._running.ended:
                    await self._news.wait()
            if not condition():
                self._raise_problem()
                if not self._running.ended:
                    raise StuckError(f"{missing} within {self._timeout:g} s;{self._place()}")  # noqa: TRY301 - so it is told in one place
        except BaseException:
            self._gone = True  # this is told, and nothing that comes of it
            with anyio.CancelScope(shield=True):
                await self._running.stop(GRACE)
            raise

    def _raise_problem(self) -> None:
        if self._raises and self._running.error is not None:
            raise self._running.error

    def _place(self) -> str:
        place = self._running.waits_at
        return f" the application waits at {place}" if place else " the application waits"
