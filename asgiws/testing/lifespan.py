"""The lifespan of the application under test, as a server runs it."""

from collections.abc import Callable
from typing import Any

import anyio

from ..log import logger
from .conversation import GRACE
from .errors import LifespanError, ServerChokedError, StuckError
from .running import Running
from .servers import Event
from .shapes import Shape


class Lifespan:
    """One run of an application's lifespan (ASGI lifespan protocol 2.0).

    Args:
        app: The application.
        shape: The server.
        timeout: Seconds that its start and its end may take.

    Attributes:
        state: What the application put into the state; every connection gets a copy.
    """

    def __init__(self, app: Callable[..., Any], shape: Shape, timeout: float) -> None:
        self.state: dict[str, Any] = {}
        self._shape = shape
        self._timeout = timeout
        self._said: list[Event] = []
        self._phase = "startup"
        self._shutdown = anyio.Event()
        self._news = anyio.Event()
        self._asked = False
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._running = Running(lambda: app(scope, self._receive, self._send), self._notify)

    async def _receive(self) -> Event:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._shutdown.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, event: Event) -> None:
        if event.get("type") not in (f"lifespan.{self._phase}.complete", f"lifespan.{self._phase}.failed"):
            raise ServerChokedError(f"{self._shape.name} chokes on: {event.get('type')!r} in the {self._phase}")
        self._said.append(event)
        self._notify()

    def _notify(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def startup(self) -> None:
        """Start the application.

        Raises:
            BaseException: What it raised.
            LifespanError: It failed, and raised nothing.
            StuckError: It did not answer in time.
        """
        self._running.start()
        await self._answer()
        if not self._said:
            # ASGI: a server goes on without the lifespan when the application raises before it answers.
            logger().info("the application does not take part in the lifespan: %r", self._running.error)

    async def shutdown(self) -> None:
        """Let the application end; raises as `startup`."""
        supported, self._said = bool(self._said), []
        if not supported:
            return
        self._phase = "shutdown"
        if self._shape.clears_state:
            self.state.clear()
        self._shutdown.set()
        await self._answer()
        await self._end(self._timeout)
        if self._running.error is not None:
            raise self._running.error

    async def _answer(self) -> None:
        with anyio.move_on_after(self._timeout):
            while not self._said and not self._running.ended:
                await self._news.wait()
        if not self._said and not self._running.ended:
            await self._stuck(f"no answer to lifespan.{self._phase} within {self._timeout:g} s")
        if self._said and self._said[0]["type"].endswith("failed"):
            await self._end(GRACE)
            if self._running.error is not None:
                raise self._running.error
            raise LifespanError(f"the {self._phase} of the application failed: {self._said[0].get('message') or ''}")

    async def _end(self, seconds: float) -> None:
        if not await self._running.ends_within(seconds):
            await self._stuck(f"the {self._phase} is answered, but the application has not ended within {seconds:g} s")

    async def _stuck(self, problem: str) -> None:
        place = self._running.waits_at
        stuck = StuckError(f"{problem}; the application waits{f' at {place}' if place else ''}")
        with anyio.CancelScope(shield=True):
            await self._running.stop(GRACE)
        raise stuck
