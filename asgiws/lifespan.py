"""The life of a service around its connections, whether or not the server tells of it."""

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import anyio

from .background import spawn
from .errors import ConfigurationError
from .log import logger
from .types import Lifespan, Receive, Scope, Send


class Life:
    """Runs an app's lifespan once, from the server's events or, where none come, from the first connection.

    Args:
        app: What the lifespan is called with.
        context: The lifespan; None for none.
        opened: Gives a context manager that opens the app's components.
        children: Gives the lives of the apps that are mounted, which start and end with this one.

    Raises:
        ConfigurationError: The lifespan is no context manager.
    """

    def __init__(
        self,
        app: Any,
        context: Lifespan | None,
        opened: Callable[[], contextlib.AbstractAsyncContextManager[None]],
        children: Callable[[], Iterable["Life"]],
    ) -> None:
        if inspect.isasyncgenfunction(context):
            raise ConfigurationError(
                f"the lifespan {context.__name__!r} is a bare generator: put @contextlib.asynccontextmanager above it",
            )
        if context is not None and not callable(context):
            raise ConfigurationError(f"lifespan takes a function of the app, got {context!r}")
        self.given = context is not None
        self._app = app
        self._context = context
        self._opened = opened
        self._children = children
        self._state: dict[str, Any] = {}
        self._active = False
        self._carried = False  # by the server, into the scope of every connection
        self._start: _Start | None = None

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The lifespan, and those of the children inside it."""
        async with contextlib.AsyncExitStack() as stack:
            if self._context is not None:
                self._state = dict(await stack.enter_async_context(self._context(self._app)) or {})
            await stack.enter_async_context(self._opened())
            for child in self._children():
                await stack.enter_async_context(child.run())
            self._active = True
            try:
                yield
            finally:
                self._active = self._carried = False

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Follow the server's lifespan events (ASGI lifespan protocol 2.0)."""
        await receive()
        step = "startup"
        try:
            async with self.run():
                # granian clears the scope's state before the shutdown: it is only written to.
                self._carried = "state" in scope
                if self._carried:
                    scope["state"].update(self._state)
                await send({"type": "lifespan.startup.complete"})
                step = "shutdown"
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{step}.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    async def enter(self, scope: Scope) -> Scope:
        """The scope of a connection with the lifespan's state in it; starts the lifespan if nobody did."""
        if not self._active:
            await self._start_late()
        state = scope.get("state") or {}
        if self._carried and self._state.keys() <= state.keys():
            return scope
        return {**scope, "state": {**state, **self._state}}

    async def _start_late(self) -> None:
        start = self._start
        if start is None:
            logger().info("no lifespan events came from the server: the first connection starts the lifespan")
            start = self._start = _Start()
            spawn(functools.partial(self._host, start))
        await start.done.wait()
        if start.failure is not None:
            raise start.failure

    async def _host(self, start: "_Start") -> None:
        """Keep the lifespan in a task of its own, until the event loop ends."""
        try:
            async with self.run():
                start.done.set()
                await anyio.sleep_forever()
        except Exception as error:  # noqa: BLE001 - whatever a lifespan raises
            start.failure = error
            logger().exception("the lifespan failed")
        finally:
            self._start = None
            start.done.set()


class _Start:
    """One attempt to start a lifespan late, and all connections that wait for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.failure: Exception | None = None
