"""The hooks of a controller: `on_connect`, `on_message` and its relatives by type, `on_disconnect`."""

import functools
import inspect
import operator
import types
import typing
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from .converters import Converter
from .dependencies import Solved, solved
from .endpoints import conclude
from .errors import SignatureError, told_with
from .injection import Planner, connection_class, with_connection
from .log import logger
from .messages import MessageDecoder, decoder_for
from .params import MESSAGE
from .plans import Dependency, Plan, itself, style_of
from .signature import EMPTY, Parameter, name_of, parameters_of
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


def attended(controller: Dependency, function: Handler, where: str) -> Dependency:
    """A controller whose `on_disconnect` is called at the end of the connection, before anything is cleaned up.

    Args:
        controller: What makes it.
        function: `on_disconnect`.
        where: The route, the handler and its place, for logs.
    """
    own, others = method_parameters(function)
    if style_of(function) in ("generator", "asyncgen"):
        raise SignatureError("on_disconnect yields, and nobody is there any more", "Make it a plain function.")
    sources = {parameter.name: _farewell(parameter) for parameter in others}

    async def attend(ws: WebSocket[Any, Any], controller: Any) -> AsyncIterator[Any]:
        failure: BaseException | None = None
        try:
            yield controller
        except BaseException as error:
            failure = error
            raise
        finally:
            try:
                await conclude(ws, ws.app, where, failure)
            finally:
                failure = None  # it knows this frame: none of the two would be freed
                await _say_farewell(ws, controller)

    async def _say_farewell(ws: WebSocket[Any, Any], controller: Any) -> None:
        arguments = {name: source(ws) for name, source in sources.items()}
        try:
            waiting = function(**{own.name: controller}, **arguments)
            if inspect.isawaitable(waiting):
                await waiting
        except Exception:  # noqa: BLE001 - whatever the hook raises
            logger().exception("%s: on_disconnect of connection %s failed", where, ws.id)

    return Dependency(attend, Plan((("ws", itself),), (("controller", controller),)))


def _farewell(parameter: Parameter) -> Callable[[WebSocket[Any, Any]], Any]:
    """Where a parameter of `on_disconnect` comes from."""
    if parameter.marker is None and parameter.name == "code":
        return lambda ws: 1006 if ws.close_code is None else ws.close_code
    if parameter.marker is None and parameter.name == "reason":
        return lambda ws: ws.close_reason or ""
    cls = connection_class(parameter.bare)
    if parameter.is_bare or (cls is not None and issubclass(WebSocket, cls)):
        return lambda ws: ws
    raise SignatureError(
        f"on_disconnect has a parameter {parameter.name!r}",
        "It takes the WebSocket, code and reason, or fewer: keep what else it needs on self.",
    )


# The messages


class Receiver(NamedTuple):
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
        message, rest = _find_message(others, planner, named=bool(types))
        plan = planner.plan(with_connection(rest, "websocket", path), (), function)
        declared = types or _declared(message, planner.decoder)
        if types and message is not None and message.type is not EMPTY:
            _check_annotation(message, types)
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
    *,
    named: bool,
) -> tuple[Parameter | None, list[Parameter]]:
    """The parameter that takes the message, and the others."""
    free = [one for one in parameters if planner.is_free(one)]
    bare = [one for one in free if one.is_bare]
    has_websocket = any(connection_class(one.bare) is WebSocket for one in parameters)
    if bare and not has_websocket and (len(bare) > 1 or bare[0].name in _NAMES_OF_WEBSOCKET):
        free.remove(bare[0])
    found = next((one for one in free if one.name == "message"), free[0] if free else None)
    if found is None and not named:
        raise SignatureError("on_message has no parameter for the message", "Add one: `message: Say`.")
    return found, [one for one in parameters if one is not found]


def _declared(message: Parameter | None, decoder: MessageDecoder | None) -> tuple[Any, ...]:
    """The types of the messages by the annotation, or by that of the WebSocket."""
    annotation = message.type if message is not None else EMPTY
    if annotation is EMPTY:
        annotation = decoder.type if decoder is not None else Any
    return () if annotation is Any else _members(annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else the thing itself."""
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for one in typing.get_args(annotation) for member in _members(one))
    return (annotation,)


def _check_annotation(message: Parameter, types: tuple[Any, ...]) -> None:
    if set(_members(message.type)) != set(types):
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
                if kind in self._by_type:
                    first = receivers[self._by_type[kind]]
                    raise SignatureError(
                        f"two methods take {name_of(kind)}: {name_of(first.function)} and {name_of(one.function)}",
                        "One message goes to one method.",
                    )
                self._by_type[kind] = at
        if len(receivers) > 1:
            _check_classes(receivers)
        self._count = len(receivers)
        declared = tuple(self._by_type)
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
        if not one.types or not all(isinstance(kind, type) for kind in one.types):
            raise SignatureError(
                f"{name_of(one.function)} takes messages of any type beside methods with @on",
                "Annotate its message with the classes that it takes.",
            )


def _union_decoder(declared: tuple[Any, ...]) -> MessageDecoder:
    union: Any = functools.reduce(operator.or_, declared)
    check_decodable(union, "a controller takes messages")
    return decoder_for(union)
