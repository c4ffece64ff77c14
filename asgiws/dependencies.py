"""Running what a handler depends on, for one connection or one message, and cleaning up behind it."""

import contextlib
import functools
import inspect
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, Protocol

import anyio

from .cleanup import CleanUp, Handshake, Inline, Threaded, in_thread, is_cancellation, until_answered
from .connection import Connection
from .errors import HTTPException, ParameterError, ParameterProblem, SignatureError, whereabouts
from .http import Request
from .log import logger
from .params import HANDSHAKE, SINGLETON
from .plans import Dependency, Plan
from .session import Session, Verdict
from .signature import name_of
from .states import DISCONNECTED
from .types import Handler

BLOCKING = 0.05
"""Seconds for which a function may hold up the event loop before a debugging app tells."""


class Owner(Protocol):
    """What dependencies need of the app that serves the connection."""

    debug: bool
    dependency_overrides: dict[Any, Handler]

    def singleton(self, dependency: Dependency, /) -> Awaitable[Any]:
        """The value of a singleton."""


class AnsweredError(Exception):
    """A dependency has ended the connection itself: no later dependency runs, nor the handler."""


@contextlib.asynccontextmanager
async def solved(
    plan: Plan,
    connection: Connection,
    owner: Owner,
    outer: "Solved | None" = None,
) -> AsyncIterator["Solved"]:
    """The arguments of a handler; what the dependencies opened is closed at the end, in reverse order, in this task.

    Args:
        plan: The handler's.
        connection: The WebSocket or request.
        owner: The app.
        outer: For one message: what was solved for its connection.

    Raises:
        ParameterError: With every value that does not validate. A dependency after the first of them is not run.
        HTTPException: 401, what a dependency gave has expired.
        AnsweredError: A dependency ended the connection.
    """
    refusal: BaseException | None = None
    held: Any = None
    try:
        async with contextlib.AsyncExitStack() as stack:
            try:
                found = Solved(connection, owner, stack, outer)
                if plan.handshake and isinstance(connection, Session):
                    found.handshake = await stack.enter_async_context(until_answered(connection))
                try:
                    found.arguments = await found.solve(plan)
                finally:
                    if found.handshake is not None:
                        stack.push_async_exit(found.handshake.finish)
                if found.handshake is not None:
                    found.handshake.solved()
                if found.expires is not None:
                    stack.enter_context(_until(found.expires))
            except BaseException as error:
                refusal = error
                held = _hold(connection)
                raise
            try:
                yield found
            finally:
                held = _hold(connection)
        if anyio.current_effective_deadline() <= anyio.current_time():
            # A cancellation that the clean-up was shielded from comes here, not into the close.
            await anyio.sleep(0)  # noqa: ASYNC115 - anyio.lowlevel is slow to import
        if refusal is not None:  # swallowed by an earlier dependency; who was refused must not be let in
            raise RuntimeError("a dependency cancelled the next one") if is_cancellation(refusal) else refusal
    finally:
        refusal = None  # it knows this frame: none of the two would be freed
        if held is not None:
            _give_back(connection, held)


def _hold(connection: Connection) -> Any:
    """Keep the watchdog from cancelling a clean-up, which has a deadline of its own; what it would cancel."""
    held = getattr(connection, "canceller", None)
    if not isinstance(held, Verdict):  # which says by what the connection is to end, and cancels nothing more
        _give_back(connection, None)
    return held


def _give_back(connection: Connection, held: Any) -> None:
    if isinstance(connection, Session):
        connection.canceller = held


class Solved:
    """The dependencies of one connection, or of one message on it.

    Attributes:
        arguments: The handler's.
        values: What the dependencies gave, by lifetime and key.
        expires: The Unix time at which the first of these values expires; None if none does.
        handshake: Keeps what lives until the handshake is answered.
    """

    __slots__ = (
        "_clean_up", "_outer", "_running", "_stack", "arguments", "connection", "expires", "handshake", "owner",
        "values",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        owner: Owner,
        stack: contextlib.AsyncExitStack,
        outer: "Solved | None" = None,
    ) -> None:
        self.connection = connection
        self.owner = owner
        self.arguments: dict[str, Any] = {}
        self.values: dict[Any, Any] = {}
        self.expires: float | None = None
        self.handshake: Handshake | None = None
        self._outer = outer
        self._stack = stack
        self._clean_up = CleanUp(connection)
        self._running: list[Handler] = []

    async def solve(self, plan: Plan) -> dict[str, Any]:
        """The arguments of a function, its dependencies first."""
        if not plan.dependencies:
            return plan(self.connection)
        arguments: dict[str, Any] = {}
        refused = False
        problems: list[ParameterProblem] = []
        for name, given in plan.dependencies:
            dependency = given.overridden(self.owner.dependency_overrides)
            if refused:
                problems += self._problems(dependency)
                continue
            try:
                value = await self._value(dependency)
            except ParameterError as error:
                refused = True
                problems += error.errors
            else:
                if name is not None:
                    arguments[name] = value
        if refused:
            raise ParameterError({str(one): one for one in problems + plan.problems(self.connection)}.values())
        return arguments | plan(self.connection)

    @contextlib.contextmanager
    def _looking_into(self, dependency: Dependency) -> Iterator[None]:
        """Note that the dependency is being looked into: an override may lead back to it."""
        if dependency.call in self._running:
            chain = " -> ".join(map(name_of, (*self._running, dependency.call)))
            raise SignatureError(f"a dependency needs itself: {chain}", "Take one of them out of the overrides.")
        self._running.append(dependency.call)
        try:
            yield
        finally:
            self._running.pop()

    def _problems(self, dependency: Dependency) -> list[ParameterProblem]:
        """Every value that does not validate for a dependency that is not run any more."""
        if dependency.lifetime == SINGLETON:
            return []
        overrides = self.owner.dependency_overrides
        with self._looking_into(dependency):
            below = [
                problem
                for _, one in dependency.plan.dependencies
                for problem in self._problems(one.overridden(overrides))
            ]
        return below + dependency.plan.problems(self.connection)

    async def _value(self, dependency: Dependency) -> Any:
        """The value of a dependency, from before or new."""
        if dependency.is_shared:
            return await self.owner.singleton(dependency)
        kept = dependency.kept_as
        if kept in self.values:
            return self.values[kept]
        if self._outer is not None and kept in self._outer.values:
            return self._outer.values[kept]
        value = await self.make(dependency)
        if isinstance(self.connection, Session) and self.connection.application_state is DISCONNECTED:
            raise AnsweredError
        self._note_expiry(dependency, value)
        if kept is not None:
            self.values[kept] = value
        return value

    async def make(self, dependency: Dependency) -> Any:
        """A new value of a dependency, after all that it depends on itself."""
        plan = dependency.plan
        if plan.needs_body and isinstance(self.connection, Request):
            await self.connection.body()
        if not plan.dependencies:
            arguments = plan(self.connection)
        elif not self.owner.dependency_overrides:
            arguments = await self.solve(plan)
        else:
            with self._looking_into(dependency):
                arguments = await self.solve(plan)
        call = dependency.call
        if dependency.style == "coroutine":
            return await call(**arguments)
        if dependency.manager is not None:
            return await self._enter(dependency, dependency.manager(**arguments))
        if dependency.thread:
            value = await in_thread(functools.partial(call, **arguments))
        else:
            with self._watched(call):
                value = call(**arguments)
        return await value if dependency.style == "function" and inspect.iscoroutine(value) else value

    async def _enter(self, dependency: Dependency, manager: Any) -> Any:
        """What a generator yields; its clean-up waits for the end of what it lives for."""
        if dependency.style == "generator":
            watched = functools.partial(self._watched, dependency.call)
            manager = Threaded(manager) if dependency.thread else Inline(manager, watched)
        if dependency.lifetime == HANDSHAKE and self.handshake is not None:
            return await self.handshake.enter(manager)
        if isinstance(manager, Inline):
            return await self._stack.enter_async_context(manager)
        return await self._stack.enter_async_context(self._clean_up.after(manager))

    def _watched(self, call: Handler) -> contextlib.AbstractContextManager[None]:
        """Tell of a function that holds up the event loop, if the app is debugging."""
        return _stop_watch(call) if self.owner.debug else contextlib.nullcontext()

    def _note_expiry(self, dependency: Dependency, value: Any) -> None:
        """Note when a value expires that has `expires_at`."""
        at = getattr(value, "expires_at", None)
        if at is None or callable(at):
            return
        if getattr(at, "tzinfo", None) is not None:
            at = at.timestamp()
        if isinstance(at, bool) or not isinstance(at, int | float) or math.isnan(at):
            raise TypeError(
                f"expires_at of what {whereabouts(dependency.call)} gives is a {type(at).__name__} that names no "
                "moment: make it a datetime with a time zone, or a Unix time in seconds",
            )
        self.expires = at if self.expires is None else min(at, self.expires)


@contextlib.contextmanager
def _until(moment: float) -> Iterator[None]:
    """Stop what runs inside at a Unix time."""
    left = moment - time.time()
    if left <= 0:
        raise _expired()
    with anyio.CancelScope(deadline=anyio.current_time() + left) as scope:
        yield
    if scope.cancelled_caught:
        raise _expired()


def _expired() -> HTTPException:
    return HTTPException(401, "the credentials have expired", {"www-authenticate": 'Bearer error="invalid_token"'})


@contextlib.contextmanager
def _stop_watch(call: Handler) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        taken = time.perf_counter() - start
        if taken > BLOCKING:
            logger().warning(
                "%s held up the event loop for %d ms: make it async, or write Depends(..., thread=True)",
                whereabouts(call), taken * 1000,
            )  # fmt: skip
