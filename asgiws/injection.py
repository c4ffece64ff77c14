"""From a handler's signature to a plan, once; from a connection to the handler's arguments, by that plan.

Where a parameter's value comes from, in this order: an annotation `WebSocket`, `Request` or `Connection`; `Depends`; a
marker `Path`, `Query`, `Header`, `Cookie` or `Body`; its name in the path template; an annotation that is a component,
or knows how to get itself from a connection (`App`); for HTTP, a Struct is the body; else the query string.
"""

import functools
import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .components import Provider, component_of, near_components, provider_of
from .connection import Connection
from .converters import Converter
from .errors import SignatureError, told_with
from .http import Request
from .messages import MessageDecoder, decoder_for
from .params import CONNECTION, HANDSHAKE, MESSAGE, REQUIRED, SINGLETON, DependsMarker, Marker
from .plans import Dependency, Plan, itself, style_of
from .signature import EMPTY, Parameter, name_of, parameters_of
from .types import Handler
from .values import Read, body_reader, check_decodable, path_reader, struct_reader, value_reader
from .websocket import WebSocket

_KINDS = {"websocket": "a WebSocket", "http": "HTTP requests"}
_LIVES = {
    MESSAGE: "lives for one message",
    HANDSHAKE: "lives until the handshake is answered",
    CONNECTION: "lives as long as its connection",
    SINGLETON: "lives as long as the app",
}


def _bare(connection: Connection) -> Connection:
    """The connection for who asked for no more than a `Connection`."""
    return connection


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
    planner = Planner(kind, path, body=body)
    with told_with(handler):
        first = planner.before(before)
        return planner.plan(with_connection(parameters_of(handler), kind, path), first, handler)


def with_connection(parameters: list[Parameter], kind: str, path: Mapping[str, Any]) -> list[Parameter]:
    """The parameters; if none asks for the WebSocket or request, the first bare one gets it."""
    own: Any = WebSocket if kind == "websocket" else Request
    if any(connection_class(parameter.bare) is own for parameter in parameters):
        return parameters
    for at, parameter in enumerate(parameters):
        if parameter.is_bare and parameter.name not in path:
            return [*parameters[:at], parameter._replace(type=own), *parameters[at + 1 :]]
    return parameters


class Planner:
    """Decides for one function where each parameter comes from.

    Args:
        kind: "websocket" or "http".
        path: The converters of the parameters in the path template.
        body: Whether the request may have a body.
        lifetime: How long that lives which the function makes; a handler's is the connection.
        chain: Who needs it, from the handler down.
        bodies: Who takes the body, as function and parameter: one takes it however many depend on that one.
        planned: The planners of what is planned already, by function and lifetime, with what they planned.
        explicit: The parameters are those of a component: without a marker, only an annotation says where one is from.

    Attributes:
        decoder: For the `In` of a `WebSocket[In, Out]` somewhere below.
        outliving: What lives for the connection though the function is asked for each message.
    """

    def __init__(
        self,
        kind: str,
        path: Mapping[str, Converter[Any]],
        *,
        body: bool,
        lifetime: int = CONNECTION,
        chain: tuple[Handler, ...] = (),
        bodies: set[tuple[int, str]] | None = None,
        planned: "dict[Any, tuple[Planner, Plan]] | None" = None,
        explicit: bool = False,
    ) -> None:
        self.kind = kind
        self.path = path
        self.body = body
        self.lifetime = lifetime
        self.chain = chain
        self.bodies: set[tuple[int, str]] = set() if bodies is None else bodies
        self.planned: dict[Any, tuple[Planner, Plan]] = {} if planned is None else planned
        self.explicit = explicit
        self.owner = 0
        self.takes_body = False
        self.unmarked_body: Any = None
        self.handshake = False
        self.decoder: MessageDecoder | None = None
        self.outliving: list[Dependency] = []

    def before(self, markers: Iterable[DependsMarker]) -> "list[tuple[str | None, Dependency]]":
        """What must be run before a handler, planned."""
        return [(None, self.dependency(marker, None)) for marker in markers]

    def plan(
        self,
        parameters: list[Parameter],
        dependencies: "Iterable[tuple[str | None, Dependency]]",
        function: Handler,
        last: "Iterable[tuple[str | None, Dependency]]" = (),
    ) -> Plan:
        """The plan for these parameters of a function, after what must be run before, and with what is run last."""
        self.owner = id(function)
        needed = list(dependencies)
        steps = []
        for parameter in parameters:
            if isinstance(parameter.marker, DependsMarker):
                needed.append((parameter.name, self.dependency(parameter.marker, parameter)))
                continue
            provider = self._provider(parameter)
            if provider is not None:
                needed.append((parameter.name, self.component(provider, parameter.bare)))
            elif not self._keeps_default(parameter):
                steps.append((parameter.name, self.read(parameter)))
        return Plan(
            tuple(steps), (*needed, *last), self.decoder, needs_body=self.takes_body, body=self.unmarked_body,
            handshake=self.handshake,
        )  # fmt: skip

    # Dependencies

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
        if marker.thread and style_of(call) in ("coroutine", "asyncgen"):
            raise SignatureError(
                f"Depends({name_of(call)}, thread=True) is async",
                "A thread is for a plain function or generator that blocks: leave thread=True out.",
            )
        made = component_of(call)
        if made is not None:
            return self._as_component(marker, *made)
        lifetime = marker.scope
        if lifetime is None:
            lifetime = MESSAGE if self.lifetime == MESSAGE else CONNECTION
        return self.need(call, lifetime, use_cache=marker.use_cache, thread=marker.thread)

    def _as_component(self, marker: DependsMarker, provider: Provider, asked_as: Any) -> Dependency:
        if marker.scope is not None or marker.thread or not marker.use_cache:
            raise SignatureError(
                f"Depends({name_of(marker.dependency or asked_as)}) is a component, which has a scope of its own",
                "Leave scope=, thread= and use_cache= out here.",
            )
        return self.component(provider, asked_as)

    def component(self, provider: Provider, asked_as: Any) -> Dependency:
        """A component, planned; one that is a singleton when the app starts."""
        lifetime = self.lifetime if provider.lifetime is None else provider.lifetime
        return self.need(provider.call, lifetime, use_cache=provider.lifetime is not None, asked_as=asked_as)

    def need(
        self,
        call: Handler,
        lifetime: int,
        *,
        use_cache: bool,
        thread: bool = False,
        asked_as: Any = None,
    ) -> Dependency:
        """A function that gives a value, planned.

        Args:
            call: The function.
            lifetime: How long the value lives.
            use_cache: Whether it is asked once in that time.
            thread: Whether it is run in a worker thread.
            asked_as: A component: the annotation that asks for it.

        Raises:
            SignatureError: A parameter could never be filled.
        """
        self._check_lifetime(call, lifetime)
        explicit = asked_as is not None
        # What messages need for as long as their connection lives is made with that, and kept for each of its users.
        own = object() if self.lifetime == MESSAGE and lifetime == CONNECTION and not use_cache else None

        def replace(function: Handler) -> Dependency:
            fresh = Planner(self.kind, self.path, body=self.body, lifetime=self.lifetime)
            plan = fresh.plan_below(function, lifetime, explicit=explicit)
            return Dependency(
                function, plan, replace=replace, use_cache=use_cache, lifetime=lifetime, kept_as=own,
            )  # fmt: skip

        plan: Any = functools.partial(self.plan_below, call, lifetime, explicit=explicit)
        if lifetime != SINGLETON:
            plan = plan()
        needed = Dependency(
            call, plan, replace=replace, use_cache=use_cache, lifetime=lifetime, thread=thread, asked_as=asked_as,
            kept_as=own,
        )  # fmt: skip
        if self.lifetime == MESSAGE and lifetime == CONNECTION:
            self.outliving.append(needed)
        self.handshake |= lifetime == HANDSHAKE
        return needed

    def plan_below(self, call: Handler, lifetime: int, *, explicit: bool) -> Plan:
        """The plan of a dependency."""
        chain = (*self.chain, call)
        if call in self.chain:
            raise SignatureError(
                f"a dependency needs itself: {' -> '.join(name_of(one) for one in chain)}",
                "Take one of them out of the circle.",
            )
        key = id(call), lifetime, explicit
        if key not in self.planned:
            below = Planner(
                self.kind, self.path, body=self.body, lifetime=lifetime, chain=chain, bodies=self.bodies,
                planned=self.planned, explicit=explicit,
            )  # fmt: skip
            with told_with(call):
                self.planned[key] = below, below.plan(parameters_of(call), (), call)
        below, plan = self.planned[key]
        self.take_over(below)
        return plan

    def below(self) -> "Planner":
        """A planner for a function that is run in the name of this one, such as a hook."""
        return Planner(self.kind, self.path, body=self.body, bodies=self.bodies, planned=self.planned)

    def take_over(self, below: "Planner") -> None:
        """Take over what planning something below has found."""
        self.takes_body |= below.takes_body
        self.unmarked_body = self.unmarked_body or below.unmarked_body
        self.handshake |= below.handshake
        self.decoder = self.decoder or below.decoder
        if self.lifetime == MESSAGE:
            self.outliving += below.outliving

    def is_free(self, parameter: Parameter) -> bool:
        """Whether nothing says where a parameter comes from, so that it would be looked for in the query string."""
        return (
            parameter.marker is None
            and parameter.default is REQUIRED
            and parameter.name not in self.path
            and connection_class(parameter.bare) is None
            and provider_of(parameter.bare) is None
            and not hasattr(parameter.bare, "__from_connection__")
        )

    def is_fillable(self, parameter: Parameter) -> bool:
        """Whether the parameter can be filled from a connection."""
        try:
            self.read(parameter)
        except SignatureError:
            return False
        return True

    def _check_lifetime(self, call: Handler, lifetime: int) -> None:
        """Refuse what would be gone while it is still needed."""
        if self.lifetime == MESSAGE and lifetime == HANDSHAKE:
            user, gone = "what is asked for each message", "is over with the handshake"
        elif lifetime >= self.lifetime or (lifetime == HANDSHAKE and not self.chain):
            return
        else:
            user, gone = _LIVES[self.lifetime], _LIVES[lifetime]
        chain = " -> ".join(name_of(one) for one in (*self.chain, call))
        name = name_of(self.chain[-1]) if self.chain else "a handler"
        raise SignatureError(
            f"{name} {user}, but needs {name_of(call)}, which {gone}: {chain}",
            "Give what is needed the wider scope, or what needs it the narrower one.",
        )

    # Values

    def _provider(self, parameter: Parameter) -> Provider | None:
        """What makes the component that the parameter asks for; None if it asks for none."""
        if parameter.marker is not None or (parameter.name in self.path and not self.explicit):
            return None
        return provider_of(parameter.bare)

    def _keeps_default(self, parameter: Parameter) -> bool:
        """Whether a component's parameter is left alone: only what is marked comes from a client."""
        return (
            self.explicit
            and parameter.marker is None
            and parameter.default is not REQUIRED
            and connection_class(parameter.bare) is None
        )

    def read(self, parameter: Parameter) -> Read:
        """How the parameter is read."""
        provider = getattr(parameter.bare, "__from_connection__", None)
        if self.explicit and (self.lifetime == SINGLETON or parameter.marker is None):
            self._check_component(parameter)
        if connection_class(parameter.bare):
            return self._connection(parameter)
        if isinstance(parameter.marker, Marker):
            return self._marked(parameter, parameter.marker.place)
        if parameter.name in self.path:
            return self._marked(parameter, "path")
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

    def _check_component(self, parameter: Parameter) -> None:
        """Refuse a parameter of a component that nothing can fill."""
        if hasattr(parameter.bare, "__from_connection__"):
            return
        if self.lifetime != SINGLETON and connection_class(parameter.bare):
            return
        name, wanted = parameter.name, name_of(parameter.bare) if parameter.bare is not EMPTY else "nothing"
        chain = " -> ".join(name_of(one) for one in self.chain)
        if parameter.marker is not None or connection_class(parameter.bare):
            raise SignatureError(
                f"parameter {name!r} is of one connection, but a singleton is made for all of them: {chain}",
                'Give the component scope="websocket", or take the parameter out.',
            )
        raise SignatureError(
            f"no component provides parameter {name!r}, annotated with {wanted}: {chain} -> {wanted}",
            f"Put @component above the class or a function that makes it, and import its module before the app starts."
            f"{near_components(parameter.bare)}",
        )

    def _connection(self, parameter: Parameter) -> Read:
        cls = connection_class(parameter.bare)
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
        return itself if self.kind == "http" or cls is WebSocket else _bare

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
        if parameter.marker is None:
            self.unmarked_body = parameter.bare
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


def connection_class(annotation: Any) -> type[Connection] | None:
    """The class of connection that an annotation names; None if it names none."""
    cls = typing.get_origin(annotation) or annotation
    return cls if isinstance(cls, type) and issubclass(cls, Connection) else None


def _message_decoder(name: str, declared: Any) -> MessageDecoder:
    check_decodable(declared, f"parameter {name!r} declares messages")
    return decoder_for(declared)
