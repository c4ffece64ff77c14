"""The hooks of a controller: `on_connect`, `on_message` and its relatives by type, `on_disconnect`."""

import contextlib
import functools
import inspect
import operator
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import anyio
import msgspec

from .connection import Connection
from .converters import Converter
from .dependencies import Solved, solved
from .endpoints import conclude
from .errors import SignatureError, told_with
from .injection import Planner, connection_class, with_connection
from .log import logger
from .messages import MessageDecoder, decoder_for
from .params import MESSAGE
from .plans import Dependency, Plan, itself, style_of
from .signature import EMPTY, Parameter, name_of, parameters_of, resolved_alias
from .streams import closed_at_the_end, send_item
from .types import Handler
from .values import check_decodable
from .websocket import WebSocket

_NAMES_OF_WEBSOCKET = ("ws", "websocket", "conn", "connection", "socket")


def method_parameters(function: Handler) -> tuple[Parameter, list[Parameter]]:
    """The first parameter of a method, which is the object, and the others.

    Raises:
        SignatureError: There is none.
    """
    parameters = parameters_of(function)
    if not parameters or connection_class(parameters[0].bare):
        raise SignatureError(
            "a method of a controller takes the controller first", "Write `async def name(self, ...)`."
        )
    return parameters[0], parameters[1:]


# The beginning


def connecting(planner: Planner, controller: Dependency, function: Handler) -> Dependency:
    """`on_connect`, as what is run before the conversation."""
    if style_of(function) in ("generator", "asyncgen"):
        raise SignatureError("on_connect yields, and has nobody to yield to", "Send what there is to say.")
    own, others = method_parameters(function)
    below = planner.below()
    parameters = with_connection(others, planner.kind, planner.path)
    plan = below.plan(parameters, ((own.name, controller),), function)
    planner.take_over(below)
    return Dependency(function, plan, use_cache=False)


# The end


def attendance(controller: Dependency, function: Handler, where: str) -> tuple[Dependency, Dependency]:
    """What has `on_disconnect` called once, before anything is cleaned up.

    Args:
        controller: What makes the controller.
        function: `on_disconnect`.
        where: The route, the handler and its place, for logs.

    Returns:
        Two dependencies: one to be run as soon as there is a controller, for a connection that fails before it reaches
        its handler; and one to be run when all others have been.
    """
    own, others = method_parameters(function)
    if style_of(function) in ("generator", "asyncgen"):
        raise SignatureError("on_disconnect yields, and nobody is there any more", "Make it a plain function.")
    sources = _sources(others)

    async def attend(ws: WebSocket[Any, Any], controller: Any) -> AsyncIterator[_Attendance]:
        def say() -> Any:
            return function(**{own.name: controller}, **{name: source(ws) for name, source in sources.items()})

        found = _Attendance(ws, say, where)
        async with found.until_the_end():
            yield found

    async def attend_all(found: _Attendance) -> AsyncIterator[None]:
        async with found.until_the_end():
            yield

    first = Dependency(attend, Plan((("ws", itself),), (("controller", controller),)))
    return first, Dependency(attend_all, Plan((), (("found", first),)))


class _Attendance:
    """Sees to it that a connection ends with a farewell.

    Args:
        ws: The WebSocket.
        say: Calls `on_disconnect`.
        where: The route, the handler and its place, for logs.
    """

    def __init__(self, ws: WebSocket[Any, Any], say: Callable[[], Any], where: str) -> None:
        self._ws = ws
        self._say: Callable[[], Any] | None = say
        self._where = where

    @contextlib.asynccontextmanager
    async def until_the_end(self) -> AsyncIterator[None]:
        """End the connection and say farewell behind what is done inside, if that has not happened yet."""
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            say, self._say = self._say, None
            if say is not None:
                # A client that does not read takes half of the time, and leaves the rest for the farewell.
                left = anyio.current_effective_deadline() - anyio.current_time()
                try:
                    with anyio.move_on_after(left / 2):
                        await conclude(self._ws, self._ws.app, self._where, failure)
                finally:
                    failure = None  # it knows this frame: none of the two would be freed
                    await self._farewell(say)

    async def _farewell(self, say: Callable[[], Any]) -> None:
        try:
            waiting = say()
            if inspect.isawaitable(waiting):
                await waiting
        except Exception:  # noqa: BLE001 - whatever the hook raises
            logger().exception("%s: on_disconnect of connection %s failed", self._where, self._ws.id)


Source = Callable[[WebSocket[Any, Any]], Any]


def _sources(parameters: list[Parameter]) -> dict[str, Source]:
    """Where the parameters of `on_disconnect` come from."""
    free = [one for one in parameters if one.marker is None and one.name not in ("code", "reason")]
    sockets = [one for one in free if connection_class(one.bare) in (WebSocket, Connection)]
    bare = [one for one in free if one.is_bare and "code" not in one.name and "reason" not in one.name]
    found = {one.name for one in sockets or bare[:1]}
    return {one.name: (lambda ws: ws) if one.name in found else _told(one) for one in parameters}


def _told(parameter: Parameter) -> Source:
    if parameter.marker is None and parameter.name == "code":
        return lambda ws: 1006 if ws.close_code is None else ws.close_code
    if parameter.marker is None and parameter.name == "reason":
        return lambda ws: ws.close_reason or ""
    raise SignatureError(
        f"on_disconnect has a parameter {parameter.name!r}",
        "It takes the WebSocket, code and reason, or fewer: keep what else it needs on self.",
    )


# The messages


class Receiver(msgspec.Struct, frozen=True):
    """A method that takes messages.

    Attributes:
        function: The method.
        types: The types of the messages; empty where they are taken as they come.
        name: Its parameter for the message; None if it takes none.
        stays: What gives the arguments that are the same for each message.
        varies: What is asked for each message.
        outliving: What that needs for as long as the connection lives.
        style: As `style_of` has it.
    """

    function: Handler
    types: tuple[Any, ...]
    name: str | None
    stays: Dependency
    varies: Plan
    outliving: tuple[Dependency, ...]
    style: str

    async def receive(
        self, ws: WebSocket[Any, Any], message: Any, arguments: Mapping[str, Any], found: Solved | None
    ) -> None:
        """Hand a message over, and send the reply.

        Args:
            ws: The WebSocket.
            message: The message, decoded.
            arguments: Those that stay.
            found: What was solved for the connection.
        """
        if self.name is not None:
            arguments = {**arguments, self.name: message}
        if not self.varies.dependencies:
            await self._reply(ws, arguments)
            return
        async with solved(self.varies, ws, ws.app, found) as more:
            await self._reply(ws, {**arguments, **more.arguments})

    async def _reply(self, ws: WebSocket[Any, Any], arguments: Mapping[str, Any]) -> None:
        result = self.function(**arguments)
        if self.style == "asyncgen":
            async with closed_at_the_end(result):
                async for item in result:
                    await send_item(ws, item)
            return
        reply = await result if inspect.isawaitable(result) else result
        if reply is not None:
            await send_item(ws, reply)


def receiver(
    controller: Dependency,
    function: Handler,
    path: Mapping[str, Converter[Any]],
    types: tuple[Any, ...] = (),
) -> Receiver:
    """A method that takes messages, planned.

    Args:
        controller: Whose method it is.
        function: The method.
        path: The converters of the parameters in the path template.
        types: The types of the messages; left out, the annotation tells.

    Raises:
        SignatureError: A parameter could never be filled.
    """
    with told_with(function):
        if style_of(function) == "generator":
            raise SignatureError("a plain generator cannot reply", "Write `async def`: each item is a reply.")
        own, others = method_parameters(function)
        planner = Planner("websocket", path, body=False, lifetime=MESSAGE)
        message, rest = _find_message(others, planner, types)
        plan = planner.plan(with_connection(rest, "websocket", path), (), function)
        if types and message is not None and message.type is not EMPTY:
            _check_annotation(message, types)
            types = members_of(message.bare)  # it may tell more, as dict[str, int]
        declared = types or _declared(message, planner.decoder)
    steady = tuple((name, one) for name, one in plan.dependencies if one.lifetime != MESSAGE)
    varying = tuple((name, one) for name, one in plan.dependencies if one.lifetime == MESSAGE)
    stays = Dependency(dict, Plan(plan.steps, ((own.name, controller), *steady)), use_cache=False)
    name = message.name if message is not None else None
    return Receiver(
        function, declared, name, stays, Plan((), varying), tuple(planner.outliving), style_of(function),
    )  # fmt: skip


def _find_message(
    parameters: list[Parameter],
    planner: Planner,
    types: tuple[Any, ...],
) -> tuple[Parameter | None, list[Parameter]]:
    """The parameter that takes the message, and the others.

    It is the one called `message`, else one of the method's types; else, beside the WebSocket, one that nothing but a
    message could fill, one without annotation, the first one.
    """
    free = [one for one in parameters if planner.is_free(one)]
    found = _first(one for one in free if one.name == "message") or _first(one for one in free if _takes(one, types))
    if found is None:
        left = [one for one in free if one is not _websocket_among(free, parameters, types)]
        found = (
            _first(one for one in left if not one.is_bare and not planner.is_fillable(one))
            or _first(one for one in left if one.is_bare)
            or _first(one for one in left if not types)
        )
    if found is None and not types:
        raise SignatureError("on_message has no parameter for the message", "Add one: `message: Say`.")
    return found, [one for one in parameters if one is not found]


def _first(parameters: Iterable[Parameter]) -> Parameter | None:
    return next(iter(parameters), None)


def _websocket_among(free: list[Parameter], parameters: list[Parameter], types: tuple[Any, ...]) -> Parameter | None:
    """The parameter without annotation that gets the WebSocket, if none is annotated with it."""
    if any(connection_class(one.bare) is WebSocket for one in parameters):
        return None
    bare = [one for one in free if one.is_bare]
    named = _first(one for one in bare if one.name in _NAMES_OF_WEBSOCKET)
    return named or (bare[0] if bare and len(free) > 1 and not types else None)


def _declared(message: Parameter | None, decoder: MessageDecoder | None) -> tuple[Any, ...]:
    """The types of the messages by the annotation, or by that of the WebSocket."""
    annotation = message.type if message is not None else EMPTY
    if annotation is EMPTY:
        annotation = decoder.type if decoder is not None else Any
    return () if annotation is Any else members_of(annotation)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else the thing itself."""
    annotation = resolved_alias(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for one in typing.get_args(annotation) for member in members_of(one))
    return (type(None) if annotation is None else annotation,)


def _class_of(annotation: Any) -> Any:
    return typing.get_origin(annotation) or annotation


def _takes(parameter: Parameter, types: tuple[Any, ...]) -> bool:
    """Whether the annotation of a parameter names just these types."""
    return bool(types) and set(map(_class_of, members_of(parameter.bare))) == set(map(_class_of, types))


def _check_annotation(message: Parameter, types: tuple[Any, ...]) -> None:
    if not _takes(message, types):
        names = ", ".join(map(name_of, types))
        raise SignatureError(
            f"parameter {message.name!r} is annotated with {name_of(message.type)}, but the method is @on({names})",
            f"Annotate it with {' | '.join(map(name_of, types))}, or leave the annotation out.",
        )


class Messages:
    """How the messages of a controller are read, and who takes which.

    Args:
        receivers: The methods; the one without types of its own, if there is one, takes all.

    Attributes:
        decoder: For the messages; None where they are taken as text or bytes.

    Raises:
        SignatureError: Two methods take one type, or the types cannot be told apart.
    """

    def __init__(self, receivers: tuple[Receiver, ...]) -> None:
        self._by_type: dict[Any, int] = {}
        for at, one in enumerate(receivers):
            for kind in one.types:
                cls = _class_of(kind)
                if cls in self._by_type:
                    first = receivers[self._by_type[cls]]
                    raise SignatureError(
                        f"two methods take {name_of(kind)}: {name_of(first.function)} and {name_of(one.function)}",
                        "One message goes to one method.",
                    )
                self._by_type[cls] = at
        if len(receivers) > 1:
            _check_classes(receivers)
        self._count = len(receivers)
        declared = tuple(kind for one in receivers for kind in one.types)
        self._raw = set(declared) <= {str, bytes}
        self.decoder = None if self._raw else _union_decoder(declared)

    def of(self, ws: WebSocket[Any, Any]) -> AsyncIterator[Any]:
        """The messages until the end of the connection."""
        if self._raw and len(self._by_type) == 1:
            return ws.iter_text() if str in self._by_type else ws.iter_bytes()
        return aiter(ws)

    def receiver_of(self, message: Any) -> int:
        """The place of the method that takes a message."""
        return 0 if self._count == 1 else self._by_type[type(message)]


def _check_classes(receivers: tuple[Receiver, ...]) -> None:
    """Refuse what cannot be told apart by the class of a message."""
    for one in receivers:
        if not one.types or object in one.types:
            raise SignatureError(
                f"{name_of(one.function)} takes messages of any type beside methods with @on",
                "Annotate its message with the classes that it takes.",
            )
        for kind in one.types:
            cls = _class_of(kind)
            if not isinstance(cls, type) or inspect.isabstract(cls) or typing.is_typeddict(cls):
                raise SignatureError(
                    f"{name_of(one.function)} takes {name_of(kind)}, and no message is of that very class",
                    "Take the class that it is decoded to, such as a Struct, dict, list or str.",
                )


def _union_decoder(declared: tuple[Any, ...]) -> MessageDecoder:
    union: Any = functools.reduce(operator.or_, declared)
    check_decodable(union, "a controller takes messages")
    return decoder_for(union)
