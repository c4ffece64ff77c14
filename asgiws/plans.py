"""What is planned once and run for each connection: where the arguments of a function come from."""

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from .connection import Connection
from .errors import ParameterError, ParameterProblem, SignatureError, told_with
from .messages import MessageDecoder
from .params import CONNECTION, SINGLETON
from .signature import function_of, name_of
from .types import Handler
from .values import Read


def itself(connection: Connection) -> Connection:
    """The whole WebSocket or request, as an argument."""
    return connection


class Plan:
    """How the arguments of one handler come from a connection.

    Attributes:
        dependencies: What must be run before, by the name of the parameter that it fills; None if it fills none.
        decoder: For the `In` of a `WebSocket[In, Out]`; None if the handler declares none.
        needs_body: Whether the request's body must have been read before.
        body: The class that an unmarked parameter has and the body is decoded to; None if there is none.
        takes_websocket: Whether the handler gets the WebSocket, and so may read from it.
        handshake: Whether something below lives until the handshake is answered.
    """

    __slots__ = ("body", "decoder", "dependencies", "handshake", "needs_body", "steps", "takes_websocket")

    def __init__(
        self,
        steps: tuple[tuple[str, Read], ...] = (),
        dependencies: "tuple[tuple[str | None, Dependency], ...]" = (),
        decoder: MessageDecoder | None = None,
        *,
        needs_body: bool = False,
        body: Any = None,
        handshake: bool = False,
    ) -> None:
        self.steps = steps
        self.dependencies = dependencies
        self.decoder = decoder
        self.needs_body = needs_body
        self.body = body
        self.takes_websocket = any(read is itself for _, read in steps)
        self.handshake = handshake

    def __call__(self, connection: Connection) -> dict[str, Any]:
        """The arguments that come from the connection itself.

        Raises:
            ParameterError: With every value that does not validate.
        """
        arguments = {}
        try:
            for name, read in self.steps:  # no comprehension, which is a call
                arguments[name] = read(connection)
        except ParameterError:
            raise ParameterError(self.problems(connection)) from None
        return arguments

    def problems(self, connection: Connection) -> list[ParameterProblem]:
        """Every value from the connection itself that does not validate."""
        problems = []
        for _, read in self.steps:
            try:
                read(connection)
            except ParameterError as error:
                problems += error.errors
        return problems


class Dependency:
    """One function that gives a value, with its own plan.

    Attributes:
        call: The function.
        key: The function, or what stands for one that cannot be hashed.
        asked_as: A component: the annotation that asked for it.
        lifetime: How long the value lives: `MESSAGE`, `HANDSHAKE`, `CONNECTION` or `SINGLETON`.
        replace: Gives the dependency on another function in its place.
        style: "class", "function", "coroutine", "generator" or "asyncgen".
        manager: Makes the context manager of a generator, of its arguments.
        thread: Whether it is run in a worker thread.
        use_cache: Whether one connection asks it once.
        kept_as: Under which its value is kept for the next who asks; None if each asks anew.
    """

    __slots__ = (
        "_plan",
        "_stand_in",
        "asked_as",
        "call",
        "kept_as",
        "key",
        "lifetime",
        "manager",
        "replace",
        "style",
        "thread",
        "use_cache",
    )

    def __init__(
        self,
        call: Handler,
        plan: "Plan | Callable[[], Plan]",
        *,
        replace: "Callable[[Handler], Dependency] | None" = None,
        use_cache: bool = True,
        lifetime: int = CONNECTION,
        thread: bool = False,
        asked_as: Any = None,
        kept_as: Any = None,
    ) -> None:
        self.call = call
        self.key: Any = call if isinstance(call, Hashable) else id(call)
        self.kept_as = kept_as or ((lifetime, self.key) if use_cache else None)
        self.asked_as = asked_as
        self._plan = plan
        self._stand_in: Dependency | None = None
        self.replace = replace
        self.use_cache = use_cache
        self.lifetime = lifetime
        self.thread = thread
        self.style = style_of(call)
        self.manager: Callable[..., Any] | None = None
        if self.style == "asyncgen":
            self.manager = contextlib.asynccontextmanager(call)
        elif self.style == "generator":
            self.manager = contextlib.contextmanager(call)

    @property
    def plan(self) -> Plan:
        """How its arguments come about; that of a singleton is made when it is asked for.

        Raises:
            SignatureError: A parameter of a singleton could never be filled.
        """
        if not isinstance(self._plan, Plan):
            self._plan = self._plan()
        return self._plan

    @property
    def cleans_up(self) -> bool:
        """Whether there is something to be done when its value is needed no more."""
        return self.manager is not None

    @property
    def is_shared(self) -> bool:
        """Whether it is made once for the app. A prototype that a singleton needs lives as long, but is its own."""
        return self.lifetime == SINGLETON and self.use_cache

    def opens_with(self, overrides: Mapping[Any, Handler]) -> bool:
        """Whether a singleton is made when the app starts: it cleans up, or a prototype of its own does."""
        own = (one.overridden(overrides) for _, one in self.plan.dependencies)
        return self.cleans_up or any(not one.is_shared and one.opens_with(overrides) for one in own)

    def overridden(self, overrides: Mapping[Any, Handler]) -> "Dependency":
        """The dependency, or what stands in its place."""
        if overrides and self.replace is not None:
            for key in (self.asked_as, self.key):
                if key is not None and key in overrides:
                    return self._replaced_by(key, overrides[key], self.replace)
        return self

    def _replaced_by(self, key: Any, function: Any, replace: "Callable[[Handler], Dependency]") -> "Dependency":
        if not callable(function):
            raise SignatureError(
                f"dependency_overrides[{name_of(key)}] is no function, but {function!r}",
                f"Write a function that gives it: app.dependency_overrides[{name_of(key)}] = lambda: value.",
            )
        known = self._stand_in
        if known is None or known.call is not function:
            known = self._stand_in = replace(function)
        return known


def style_of(call: Handler) -> str:
    """How a function gives its value: "class", "function", "coroutine", "generator" or "asyncgen"."""
    function = function_of(call)
    if inspect.isclass(call):
        return "class"
    if inspect.isasyncgenfunction(function):
        return "asyncgen"
    if inspect.isgeneratorfunction(function):
        return "generator"
    return "coroutine" if inspect.iscoroutinefunction(function) else "function"


def every_dependency(
    plan: Plan,
    overrides: Mapping[Any, Handler],
    chain: tuple[Dependency, ...] = (),
) -> Iterator[Dependency]:
    """All that a plan depends on, at any depth and once, what is needed before what needs it.

    Args:
        plan: The plan.
        overrides: What stands in the place of which.
        chain: Who needs the plan, from the outside in.

    Raises:
        SignatureError: A singleton cannot be made, or something needs itself.
    """
    done: set[Any] = set()

    def below(plan: Plan, chain: tuple[Dependency, ...]) -> Iterator[Dependency]:
        for _, given in plan.dependencies:
            dependency = given.overridden(overrides)
            needs = dependency.plan  # refuses a circle by itself, but for one that comes of the overrides
            if any(one.key == dependency.key for one in chain):
                raise _circle((*chain, dependency), overrides)
            kind = dependency.key, dependency.lifetime, dependency.use_cache
            if kind not in done:
                with told_with(dependency.call):
                    yield from below(needs, (*chain, dependency))
                done.add(kind)
                yield dependency

    return below(plan, chain)


def _circle(chain: tuple[Dependency, ...], overrides: Mapping[Any, Handler]) -> SignatureError:
    names = " -> ".join(name_of(one.call) for one in chain)
    replaced = any(one.call is other for one in chain for other in overrides.values())
    out = "overrides" if replaced else "circle"
    return SignatureError(f"a dependency needs itself: {names}", f"Take one of them out of the {out}.")
