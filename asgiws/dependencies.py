"""Running what a handler depends on, for one connection, and cleaning up behind it."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import anyio

from .connection import Connection
from .errors import ParameterError, ParameterProblem, SignatureError
from .http import Request
from .injection import Dependency, Plan
from .log import logger
from .session import Session
from .signature import function_of, name_of
from .states import DISCONNECTED
from .types import Handler

CLEAN_UP = 5.0
"""Seconds that the clean-up of one connection may take."""


class AnsweredError(Exception):
    """A dependency has refused the handshake itself: no later dependency runs, nor the handler."""


@contextlib.asynccontextmanager
async def solved(
    plan: Plan,
    connection: Connection,
    overrides: Mapping[Handler, Handler],
) -> AsyncIterator[dict[str, Any]]:
    """The arguments of a handler; what the dependencies opened is closed at the end, in reverse order, in this task.

    Args:
        plan: The handler's.
        connection: The WebSocket or request.
        overrides: What is run in place of which function.

    Raises:
        ParameterError: With every value that does not validate. A dependency after the first of them is not run.
        AnsweredError: A dependency refused the handshake.
    """
    refusal: BaseException | None = None
    async with contextlib.AsyncExitStack() as stack:
        try:
            arguments = await _Solving(connection, overrides, stack).arguments(plan)
        except BaseException as error:
            refusal = error
            raise
        yield arguments
    # A cancellation that the clean-up was shielded from comes here, not into the close.
    await anyio.sleep(0)  # noqa: ASYNC115 - anyio.lowlevel is slow to import
    if refusal is not None:  # swallowed by an earlier dependency; who was refused must not be let in
        raise RuntimeError("a dependency cancelled the next one") if _is_cancellation(refusal) else refusal


class _CleanUp:
    """The clean-up of one connection: every generator's is shielded from cancellation, all have one deadline."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.deadline: float | None = None
        self.told = False

    @contextlib.asynccontextmanager
    async def after(self, generator: contextlib.AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        """What a generator yields, and then its clean-up."""
        failure: BaseException | None = None
        # Scopes must nest: the shield is outside of all that the generator enters, inside of all that came before.
        scope = anyio.CancelScope()
        try:
            with scope:
                value = await generator.__aenter__()
                try:
                    yield value
                except BaseException as error:
                    failure = error
                    self._shield(scope)
                    if not await generator.__aexit__(type(error), error, error.__traceback__):
                        raise
                else:
                    self._shield(scope)
                    await generator.__aexit__(None, None, None)
        finally:
            if scope.cancel_called and not self.told:
                self.told = True
                text = "connection %s: the clean-up took over %s s and was cut"
                logger().warning(text, self.connection.id, CLEAN_UP)
        # A cancellation is not raised again: it belongs to its scope, and comes by itself if that is further out.
        if failure is not None and scope.cancelled_caught and not _is_cancellation(failure):
            raise failure

    def _shield(self, scope: Any) -> None:
        if self.deadline is None:
            self.deadline = anyio.current_time() + CLEAN_UP
        scope.shield = True
        scope.deadline = self.deadline


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, anyio.get_cancelled_exc_class())


class _Solving:
    """The dependencies of one connection."""

    def __init__(
        self,
        connection: Connection,
        overrides: Mapping[Handler, Handler],
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self.connection = connection
        self.overrides = overrides
        self.stack = stack
        self.clean_up = _CleanUp(connection)
        self.values: dict[Any, Any] = {}
        self.running: list[Handler] = []

    async def arguments(self, plan: Plan) -> dict[str, Any]:
        """The arguments of a function, its dependencies first."""
        arguments: dict[str, Any] = {}
        refused = False
        problems: list[ParameterProblem] = []
        for name, dependency in plan.dependencies:
            if refused:
                problems += self._problems(dependency)
                continue
            try:
                value = await self._value(self._overridden(dependency))
            except ParameterError as error:
                refused = True
                problems += error.errors
            else:
                if name is not None:
                    arguments[name] = value
        if refused:
            raise ParameterError({str(one): one for one in problems + plan.problems(self.connection)}.values())
        return arguments | plan(self.connection)

    def _overridden(self, dependency: Dependency) -> Dependency:
        return dependency.replace(self.overrides[dependency.key]) if dependency.key in self.overrides else dependency

    @contextlib.contextmanager
    def _inside(self, dependency: Dependency) -> Iterator[None]:
        """Note that the dependency is being looked into: an override may lead back to it."""
        if dependency.call in self.running:
            chain = " -> ".join(map(name_of, (*self.running, dependency.call)))
            raise SignatureError(f"a dependency needs itself: {chain}", "Take one of them out of the overrides.")
        self.running.append(dependency.call)
        try:
            yield
        finally:
            self.running.pop()

    def _problems(self, dependency: Dependency) -> list[ParameterProblem]:
        """Every value that does not validate for a dependency that is not run any more."""
        dependency = self._overridden(dependency)
        with self._inside(dependency):
            below = [problem for _, other in dependency.plan.dependencies for problem in self._problems(other)]
        return below + dependency.plan.problems(self.connection)

    async def _value(self, dependency: Dependency) -> Any:
        """The value of a dependency, from before or new."""
        if dependency.use_cache and dependency.key in self.values:
            return self.values[dependency.key]
        if dependency.plan.needs_body and isinstance(self.connection, Request):
            await self.connection.body()
        with self._inside(dependency):
            arguments = await self.arguments(dependency.plan)
        value = await self._run(dependency.call, arguments)
        if isinstance(self.connection, Session) and self.connection.application_state is DISCONNECTED:
            raise AnsweredError
        if dependency.use_cache:
            self.values[dependency.key] = value
        return value

    async def _run(self, call: Handler, arguments: dict[str, Any]) -> Any:
        function = function_of(call)
        if inspect.isclass(call):
            return call(**arguments)
        if inspect.isasyncgenfunction(function):
            generator = contextlib.asynccontextmanager(call)(**arguments)
            return await self.stack.enter_async_context(self.clean_up.after(generator))
        if inspect.isgeneratorfunction(function):
            return self.stack.enter_context(contextlib.contextmanager(call)(**arguments))
        value = call(**arguments)
        return await value if inspect.iscoroutine(value) else value
