"""Running what a handler depends on, for one connection, and cleaning up behind it."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio

from .connection import Connection
from .errors import ParameterError, ParameterProblem
from .injection import Dependency, Plan
from .log import logger
from .signature import function_of
from .types import Handler

CLEAN_UP = 5.0
"""Seconds that the clean-up of one connection may take."""


@contextlib.asynccontextmanager
async def solved(
    plan: Plan,
    connection: Connection,
    overrides: Mapping[Handler, Handler],
) -> AsyncIterator[dict[str, Any]]:
    """The arguments of a handler; what the dependencies opened is closed at the end.

    Clean-up runs in this task, in reverse order, whatever happened; a cancellation from outside does not reach it, and
    it is cut after `CLEAN_UP`.

    Args:
        plan: The handler's.
        connection: The WebSocket or request.
        overrides: What is run in place of which function.

    Raises:
        ParameterError: With every value that does not validate. A dependency after the first of them is not run.
    """
    failure: BaseException | None = None
    # The scope is outside of all that the dependencies enter, as scopes must nest: it becomes the shield at the end.
    with anyio.CancelScope() as scope:
        stack = contextlib.AsyncExitStack()
        try:
            yield await _Solving(connection, overrides, stack).arguments(plan)
        except BaseException as error:
            failure = error
            _shield(scope)
            if not await stack.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            _shield(scope)
            await stack.__aexit__(None, None, None)
    if scope.cancelled_caught:
        logger().warning("connection %s: the clean-up took over %s s and was cut", connection.id, CLEAN_UP)
        if failure is not None:
            raise failure


def _shield(scope: "anyio.CancelScope") -> None:  # quoted: `import asgiws` stays quick without this part of anyio
    scope.shield = True
    scope.deadline = anyio.current_time() + CLEAN_UP


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
        self.values: dict[Handler, Any] = {}

    async def arguments(self, plan: Plan) -> dict[str, Any]:
        """The arguments of a function, its dependencies first."""
        arguments: dict[str, Any] = {}
        problems: list[ParameterProblem] = []
        for name, dependency in plan.dependencies:
            if problems:
                problems += dependency.plan.problems(self.connection)
                continue
            try:
                value = await self.value(dependency)
            except ParameterError as error:
                problems += error.errors
            else:
                if name is not None:
                    arguments[name] = value
        if problems:
            raise ParameterError(problems + plan.own_problems(self.connection))
        return arguments | plan(self.connection)

    async def value(self, dependency: Dependency) -> Any:
        """The value of a dependency, from before or new."""
        if dependency.call in self.overrides:
            dependency = dependency.replace(self.overrides[dependency.call])
        call = dependency.call
        if dependency.use_cache and call in self.values:
            return self.values[call]
        value = await self._run(call, await self.arguments(dependency.plan))
        if dependency.use_cache:
            self.values[call] = value
        return value

    async def _run(self, call: Handler, arguments: dict[str, Any]) -> Any:
        function = function_of(call)
        if inspect.isasyncgenfunction(function):
            return await self.stack.enter_async_context(contextlib.asynccontextmanager(call)(**arguments))
        if inspect.isgeneratorfunction(function):
            return self.stack.enter_context(contextlib.contextmanager(call)(**arguments))
        value = call(**arguments)
        return await value if inspect.isawaitable(value) else value
