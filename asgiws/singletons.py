"""Components that live as long as the app."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio

from .connection import Connection
from .dependencies import Owner, Solved
from .errors import ConfigurationError, whereabouts
from .plans import Dependency, every_dependency


class Singletons:
    """The singletons of an app, each made once: when the app starts if it cleans up, else when first asked for."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}
        self._making: dict[Any, anyio.Event] = {}
        self._stack: contextlib.AsyncExitStack | None = None
        self._opening: anyio.Event | None = None
        self._open = 0

    @contextlib.asynccontextmanager
    async def opened(self, dependencies: Iterable[Dependency], owner: Owner) -> AsyncIterator[None]:
        """Make those that clean up, and clean up at the end, the last one first.

        Args:
            dependencies: The singletons that clean up, what is needed before what needs it.
            owner: The app.
        """
        failure: BaseException | None = None
        self._open += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    await self._make_all(dependencies, owner, stack)
                except BaseException as error:
                    failure = error
                    raise
                yield
        finally:
            self._open -= 1
            if not self._open:  # an app that is mounted in another one shares them
                self._values.clear()
        if failure is not None:  # swallowed by a component that was open already
            raise failure

    async def _make_all(
        self, dependencies: Iterable[Dependency], owner: Owner, stack: contextlib.AsyncExitStack
    ) -> None:
        while self._opening is not None:  # two apps that share them start one after the other
            await self._opening.wait()
        opening = self._opening = anyio.Event()
        self._stack = stack
        try:
            for dependency in dependencies:
                await self.value(dependency, owner)
        finally:
            self._stack = self._opening = None
            opening.set()

    async def value(self, dependency: Dependency, owner: Owner) -> Any:
        """The value of a singleton; who asks while it is being made waits for that, and tries again if it failed."""
        key = dependency.key
        while key not in self._values:
            making = self._making.get(key)
            if making is None:
                await self._make(dependency, owner)
            else:
                await making.wait()
        return self._values[key]

    async def _make(self, dependency: Dependency, owner: Owner) -> None:
        overrides = owner.dependency_overrides
        if self._stack is None and dependency.opens_with(overrides):
            late = "set overrides" if dependency.call in overrides.values() else "add routes"
            raise ConfigurationError(
                f"the component {whereabouts(dependency.call)} cleans up behind itself, so it is made when the app "
                f"starts, but then nobody asked for it: {late} before the app starts",
            )
        for _ in every_dependency(dependency.plan, overrides, (dependency,)):
            pass  # one that needs itself, by an override of now, would wait for itself
        made = self._making[dependency.key] = anyio.Event()
        stack = self._stack or contextlib.AsyncExitStack()
        try:
            # There is no connection: what a singleton asks for comes from the app alone.
            self._values[dependency.key] = await Solved(Connection({}, owner), owner, stack).make(dependency)
            stack.callback(self._values.pop, dependency.key, None)
        finally:
            del self._making[dependency.key]
            made.set()
