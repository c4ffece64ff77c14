"""From a handler's signature to a plan, once; from a connection to the handler's arguments, by that plan.

Where a parameter's value comes from, in this order: an annotation `WebSocket`, `Request` or `Connection`; `Depends`; a
marker `Path`, `Query`, `Header`, `Cookie` or `Body`; its name in the path template; an annotation that knows how to get
itself from a connection (`App`); for HTTP, a Struct is the body; else the query string.
"""

import inspect
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import msgspec

from .connection import Connection
from .converters import Converter
from .errors import ParameterError, ParameterProblem, SignatureError, whereabouts
from .http import Request
from .messages import MessageDecoder, decoder_for
from .params import REQUIRED, DependsMarker, Marker
from .signature import EMPTY, Parameter, name_of, parameters_of
from .types import Handler
from .values import Read, body_reader, check_decodable, path_reader, struct_reader, value_reader
from .websocket import WebSocket

_KINDS = {"websocket": "a WebSocket", "http": "HTTP requests"}


def _itself(connection: Connection) -> Connection:
    return connection


def _bare(connection: Connection) -> Connection:
    """The connection for who asked for no more than a `Connection`."""
    return connection


class Plan:
    """How the arguments of one handler come from a connection.

    Attributes:
        dependencies: What must be run before, by the name of the parameter that it fills; None if it fills none.
        decoder: For the `In` of a `WebSocket[In, Out]`; None if the handler declares none.
        needs_body: Whether the request's body must have been read before.
        takes_websocket: Whether the handler gets the WebSocket, and so may read from it.
    """

    __slots__ = ("_steps", "decoder", "dependencies", "needs_body", "takes_websocket")

    def __init__(
        self,
        steps: tuple[tuple[str, Read], ...] = (),
        dependencies: "tuple[tuple[str | None, Dependency], ...]" = (),
        decoder: MessageDecoder | None = None,
        *,
        needs_body: bool = False,
    ) -> None:
        self._steps = steps
        self.dependencies = dependencies
        self.decoder = decoder
        self.needs_body = needs_body
        self.takes_websocket = any(read is _itself for _, read in steps)

    def __call__(self, connection: Connection) -> dict[str, Any]:
        """The arguments that come from the connection itself.

        Raises:
            ParameterError: With every value that does not validate.
        """
        try:
            return {name: read(connection) for name, read in self._steps}
        except ParameterError:
            raise ParameterError(self.problems(connection)) from None

    def problems(self, connection: Connection) -> list[ParameterProblem]:
        """Every value from the connection itself that does not validate."""
        problems = []
        for _, read in self._steps:
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
        plan: How its arguments come about.
        use_cache: Whether one connection asks it once.
        replace: Gives the dependency on another function in its place.
    """

    __slots__ = ("call", "key", "plan", "replace", "use_cache")

    def __init__(
        self,
        call: Handler,
        plan: Plan,
        replace: "Callable[[Handler], Dependency]",
        *,
        use_cache: bool,
    ) -> None:
        self.call = call
        self.key: Any = call if isinstance(call, Hashable) else id(call)
        self.plan = plan
        self.replace = replace
        self.use_cache = use_cache


def plan_for(
    handler: Handler,
    kind: str,
    path: Mapping[str, Converter[Any]],
    *,
    body: bool = True,
    before: Iterable[DependsMarker] = (),
) -> Plan:
    """The plan of a handler.

    Args:
        handler: An async function, async generator function or callable object.
        kind: "websocket" or "http".
        path: The converters of the parameters in the path template.
        body: Whether the request may have a body.
        before: What must be run before all that the handler itself depends on.

    Raises:
        SignatureError: A parameter could never be filled.
    """
    planner = _Planner(kind, path, body=body)
    try:
        first: list[tuple[str | None, Dependency]] = [(None, planner.dependency(one, None)) for one in before]
        return planner.plan(_with_connection(parameters_of(handler), kind, path), first, handler)
    except SignatureError as error:
        error.where = " -> ".join(filter(None, (whereabouts(handler), error.where)))
        raise


def _with_connection(parameters: list[Parameter], kind: str, path: Mapping[str, Any]) -> list[Parameter]:
    """The parameters; if none asks for the WebSocket or request, the first bare one gets it."""
    own: Any = WebSocket if kind == "websocket" else Request
    if any(_connection_class(parameter.bare) is own for parameter in parameters):
        return parameters
    for at, (name, annotation, default, marker) in enumerate(parameters):
        if annotation is EMPTY and default is REQUIRED and marker is None and name not in path:
            return [*parameters[:at], Parameter(name, own, default, marker), *parameters[at + 1 :]]
    return parameters


class _Planner:
    """Decides for one handler where each parameter comes from."""

    def __init__(
        self,
        kind: str,
        path: Mapping[str, Converter[Any]],
        *,
        body: bool,
        chain: tuple[Handler, ...] = (),
        bodies: set[tuple[int, str]] | None = None,
    ) -> None:
        self.kind = kind
        self.path = path
        self.body = body
        self.chain = chain
        # Who takes the body, as function and parameter: one takes it however many depend on that one.
        self.bodies: set[tuple[int, str]] = set() if bodies is None else bodies
        self.owner = 0
        self.takes_body = False
        self.decoder: MessageDecoder | None = None

    def plan(
        self,
        parameters: list[Parameter],
        dependencies: Iterable[tuple[str | None, Dependency]],
        function: Handler,
    ) -> Plan:
        """The plan for these parameters of a function, after what must be run before."""
        self.owner = id(function)
        needed = list(dependencies)
        steps = []
        for parameter in parameters:
            if isinstance(parameter.marker, DependsMarker):
                needed.append((parameter.name, self.dependency(parameter.marker, parameter)))
            else:
                steps.append((parameter.name, self.read(parameter)))
        return Plan(tuple(steps), tuple(needed), self.decoder, needs_body=self.takes_body)

    def dependency(self, marker: DependsMarker, parameter: Parameter | None) -> Dependency:
        """What a `Depends` stands for, planned; errors tell the chain that led there."""
        call = marker.dependency
        if (
            call is None
            and parameter is not None
            and inspect.isclass(parameter.bare)
            and parameter.bare not in (EMPTY, Any)
        ):
            call = parameter.bare
        if not callable(call):
            raise SignatureError(
                f"Depends({call!r}) is no function",
                "Write Depends(function), or annotate the parameter with a class: Annotated[Service, Depends()].",
            )

        def replace(function: Handler) -> Dependency:
            fresh = _Planner(self.kind, self.path, body=self.body)
            return Dependency(function, fresh.plan_below(function), replace, use_cache=marker.use_cache)

        return Dependency(call, self.plan_below(call), replace, use_cache=marker.use_cache)

    def plan_below(self, call: Handler) -> Plan:
        """The plan of a dependency."""
        chain = (*self.chain, call)
        if call in self.chain:
            raise SignatureError(
                f"a dependency needs itself: {' -> '.join(name_of(one) for one in chain)}",
                "Take one of them out of the circle.",
            )
        below = _Planner(self.kind, self.path, body=self.body, chain=chain, bodies=self.bodies)
        try:
            plan = below.plan(parameters_of(call), (), call)
        except SignatureError as error:
            error.where = " -> ".join(filter(None, (whereabouts(call), error.where)))
            raise
        self.takes_body |= below.takes_body
        self.decoder = self.decoder or below.decoder
        return plan

    def read(self, parameter: Parameter) -> Read:
        """How the parameter is read."""
        if _connection_class(parameter.bare):
            return self._connection(parameter)
        if isinstance(parameter.marker, Marker):
            return self._marked(parameter, parameter.marker.place)
        if parameter.name in self.path:
            return self._marked(parameter, "path")
        provider = getattr(parameter.bare, "__from_connection__", None)
        if provider is not None:
            return typing.cast("Read", provider)
        if self._is_struct(parameter):
            if self.kind == "http" and self.body:
                return self._marked(parameter, "body")
            raise SignatureError(
                f"parameter {parameter.name!r} is a Struct, but nothing here has a body",
                f"Mark it as Annotated[{name_of(parameter.bare)}, Query()] to fill it from the query string.",
            )
        return self._marked(parameter, "query")

    def _connection(self, parameter: Parameter) -> Read:
        cls = _connection_class(parameter.bare)
        allowed = (Connection, WebSocket if self.kind == "websocket" else Request)
        if cls not in allowed:
            names = " or ".join(one.__name__ for one in reversed(allowed))
            raise SignatureError(
                f"parameter {parameter.name!r} asks for a {name_of(cls)}, but this serves {_KINDS[self.kind]}",
                f"Annotate it with {names}.",
            )
        declared = typing.get_args(parameter.bare)
        if declared and declared[0] is not Any:
            self.decoder = _message_decoder(parameter.name, declared[0])
        return _itself if self.kind == "http" or cls is WebSocket else _bare

    @staticmethod
    def _is_struct(parameter: Parameter) -> bool:
        cls = typing.get_origin(parameter.bare) or parameter.bare
        return isinstance(cls, type) and issubclass(cls, msgspec.Struct)

    def _marked(self, parameter: Parameter, place: str) -> Read:
        if place == "path":
            return self._from_path(parameter)
        if place == "body":
            return self._from_body(parameter)
        if place == "query" and parameter.marker is not None and self._is_struct(parameter):
            return struct_reader(parameter)
        return value_reader(parameter, place)

    def _from_path(self, parameter: Parameter) -> Read:
        name = parameter.wire_name()
        if name not in self.path:
            known = ", ".join(self.path) or "none"
            raise SignatureError(
                f"parameter {parameter.name!r} is marked as Path(), but the template has no {name!r}",
                f"Its parameters: {known}.",
            )
        if parameter.default is not REQUIRED:
            raise SignatureError(
                f"parameter {parameter.name!r} comes from the path and cannot have a default",
                "A path value is always there: remove the default, or register a second route without it.",
            )
        return path_reader(parameter, name, self.path[name])

    def _from_body(self, parameter: Parameter) -> Read:
        self.bodies.add((self.owner, parameter.name))
        self.takes_body = True
        if self.kind != "http" or not self.body:
            raise SignatureError(
                f"parameter {parameter.name!r} is marked as Body(), but nothing here has a body",
                "Use Query(), Header() or Cookie(); on a WebSocket declare messages as WebSocket[In, Out].",
            )
        if len(self.bodies) > 1:
            raise SignatureError(
                f"parameter {parameter.name!r} is a second body",
                "A request has one body: make one Struct of what it holds.",
            )
        return body_reader(parameter)


def _connection_class(annotation: Any) -> type[Connection] | None:
    cls = typing.get_origin(annotation) or annotation
    return cls if isinstance(cls, type) and issubclass(cls, Connection) else None


def _message_decoder(name: str, declared: Any) -> MessageDecoder:
    check_decodable(declared, f"parameter {name!r} declares messages")
    return decoder_for(declared)
