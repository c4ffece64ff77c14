"""From a handler's signature to a plan, once; from a connection to the handler's arguments, by that plan.

Where a parameter's value comes from, in this order: an annotation `WebSocket`, `Request` or `Connection`; a marker
`Path`, `Query`, `Header`, `Cookie` or `Body`; its name in the path template; an annotation that knows how to get itself
from a connection (`App`); for HTTP, a Struct is the body; else the query string.
"""

import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from .connection import Connection
from .errors import ParameterError, ParameterProblem, SignatureError
from .http import Request
from .messages import MessageDecoder, decoder_for
from .params import REQUIRED
from .paths import Converter
from .signature import EMPTY, Parameter, name_of, parameters_of
from .types import Handler
from .values import Read, body_reader, path_reader, struct_reader, value_reader
from .websocket import WebSocket


def _itself(connection: Connection) -> Connection:
    return connection


def _bare(connection: Connection) -> Connection:
    """The connection for who asked for no more than a `Connection`."""
    return connection


class Plan:
    """How the arguments of one handler come from a connection.

    Attributes:
        decoder: For the `In` of a `WebSocket[In, Out]`; None if the handler declares none.
        needs_body: Whether the request's body must have been read before.
        takes_websocket: Whether the handler gets the WebSocket, and so may read from it.
    """

    __slots__ = ("_steps", "decoder", "needs_body", "takes_websocket")

    def __init__(self, steps: tuple[tuple[str, Read], ...], decoder: MessageDecoder | None, needs_body: bool) -> None:
        self._steps = steps
        self.decoder = decoder
        self.needs_body = needs_body
        self.takes_websocket = any(read is _itself for _, read in steps)

    def __call__(self, connection: Connection) -> dict[str, Any]:
        """The arguments.

        Raises:
            ParameterError: With every value that does not validate.
        """
        try:
            return {name: read(connection) for name, read in self._steps}
        except ParameterError:
            raise ParameterError(self._problems(connection)) from None

    def _problems(self, connection: Connection) -> list[ParameterProblem]:
        problems = []
        for _, read in self._steps:
            try:
                read(connection)
            except ParameterError as error:
                problems += error.errors
        return problems


def plan_for(handler: Handler, kind: str, path: Mapping[str, Converter[Any]], *, body: bool = True) -> Plan:
    """The plan of a handler.

    Args:
        handler: An async function, async generator function or callable object.
        kind: "websocket" or "http".
        path: The converters of the parameters in the path template.
        body: Whether the request may have a body.

    Raises:
        SignatureError: A parameter could never be filled.
    """
    parameters = parameters_of(handler)
    planner = _Planner(kind, path, body=body)
    steps = tuple((parameter.name, planner.read(parameter)) for parameter in _with_connection(parameters, kind, path))
    return Plan(steps, planner.decoder, planner.bodies > 0)


def _with_connection(parameters: list[Parameter], kind: str, path: Mapping[str, Any]) -> list[Parameter]:
    """The parameters; if none asks for the connection, the first bare one gets it."""
    own: Any = WebSocket if kind == "websocket" else Request
    if any(_connection_class(parameter.type) for parameter in parameters):
        return parameters
    for at, (name, annotation, default, marker) in enumerate(parameters):
        if annotation is EMPTY and default is REQUIRED and marker is None and name not in path:
            return [*parameters[:at], Parameter(name, own, default, marker), *parameters[at + 1 :]]
    return parameters


class _Planner:
    """Decides for one handler where each parameter comes from."""

    def __init__(self, kind: str, path: Mapping[str, Converter[Any]], *, body: bool) -> None:
        self.kind = kind
        self.path = path
        self.body = body
        self.bodies = 0
        self.decoder: MessageDecoder | None = None

    def read(self, parameter: Parameter) -> Read:
        """How the parameter is read."""
        if _connection_class(parameter.type):
            return self._connection(parameter)
        if parameter.marker is not None:
            return self._marked(parameter, parameter.marker.place)
        if parameter.name in self.path:
            return self._marked(parameter, "path")
        provider = getattr(parameter.type, "__from_connection__", None)
        if provider is not None:
            return typing.cast("Read", provider)
        if self._is_struct(parameter):
            if self.kind == "http" and self.body:
                return self._marked(parameter, "body")
            raise SignatureError(
                f"parameter {parameter.name!r} is a Struct, but nothing here has a body",
                f"Mark it as Annotated[{name_of(parameter.type)}, Query()] to fill it from the query string.",
            )
        return self._marked(parameter, "query")

    def _connection(self, parameter: Parameter) -> Read:
        cls = _connection_class(parameter.type)
        allowed = (Connection, WebSocket if self.kind == "websocket" else Request)
        if cls not in allowed:
            names = " or ".join(one.__name__ for one in reversed(allowed))
            raise SignatureError(
                f"parameter {parameter.name!r} asks for a {name_of(cls)}, but this is a handler of {self.kind}",
                f"Annotate it with {names}.",
            )
        declared = typing.get_args(parameter.type)
        if declared and declared[0] is not Any:
            self.decoder = _message_decoder(parameter.name, declared[0])
        return _itself if self.kind == "http" or cls is WebSocket else _bare

    @staticmethod
    def _is_struct(parameter: Parameter) -> bool:
        cls = typing.get_origin(parameter.type) or parameter.type
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
        self.bodies += 1
        if self.kind != "http" or not self.body:
            raise SignatureError(
                f"parameter {parameter.name!r} is marked as Body(), but nothing here has a body",
                "Use Query(), Header() or Cookie(); on a WebSocket declare messages as WebSocket[In, Out].",
            )
        if self.bodies > 1:
            raise SignatureError(
                f"parameter {parameter.name!r} is a second body",
                "A request has one body: make one Struct of what it holds.",
            )
        return body_reader(parameter)


def _connection_class(annotation: Any) -> type[Connection] | None:
    cls = typing.get_origin(annotation) or annotation
    return cls if isinstance(cls, type) and issubclass(cls, Connection) else None


def _message_decoder(name: str, declared: Any) -> MessageDecoder:
    try:
        decoder = decoder_for(declared)
        custom = isinstance(msgspec.inspect.type_info(declared), msgspec.inspect.CustomType)
    except TypeError as error:
        raise SignatureError(f"parameter {name!r} declares messages that cannot be decoded", f"{error}.") from None
    if custom:
        raise SignatureError(
            f"parameter {name!r} declares messages of type {name_of(declared)!r}, which msgspec does not know",
            "Use msgspec.Struct, dataclasses, TypedDict, NamedTuple or builtin types.",
        )
    return decoder
