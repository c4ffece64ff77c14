"""Controllers: a class whose methods serve connections, with one object per connection or one for all.

A class either has methods with a path (`@websocket`, `@get`), or hooks alone (`on_connect`, `on_message`, `@on(Say)`,
`on_disconnect`): then the framework accepts and reads.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from .converters import Converter
from .dependencies import Solved
from .endpoints import check_handler, endpoint_for, websocket_endpoint
from .errors import RegistrationError, RouteError, SignatureError, did_you_mean, told_with, whereabouts
from .hooks import Messages, attendance, connecting, members_of, method_parameters, receiver
from .injection import Planner, with_connection
from .limits import Limits
from .log import logger
from .params import CONNECTION, SINGLETON, DependsMarker
from .plans import Dependency
from .routes import Composed, Serving
from .routing import CONTROLLER, Router, checked, method_names
from .signature import name_of, resolved_alias
from .states import CONNECTED, CONNECTING
from .types import Handler
from .websocket import WebSocket

H = TypeVar("H", bound=Handler)
C = TypeVar("C", bound=type)

_SCOPES = {"websocket": CONNECTION, "singleton": SINGLETON}
_HOOKS = ("on_connect", "on_message", "on_disconnect")
_ROUTES = "__asgiws_routes__"
_TYPES = "__asgiws_types__"


# What stands above methods


class _MethodRoute(msgspec.Struct, frozen=True):
    kind: str
    methods: tuple[str, ...]
    path: str
    name: str | None
    dependencies: tuple[DependsMarker, ...]
    limits: Limits | None


def websocket(
    path: str,
    *,
    name: str | None = None,
    dependencies: Iterable[DependsMarker] | None = None,
    limits: Limits | None = None,
) -> Callable[[H], H]:
    """Serve WebSockets at a path below the controller's prefix by a method; the arguments are `Router.websocket`'s."""
    return _above("websocket", (), path, name, dependencies, "websocket", limits)


def route(
    path: str,
    *,
    methods: Iterable[str] = ("GET",),
    name: str | None = None,
    dependencies: Iterable[DependsMarker] | None = None,
) -> Callable[[H], H]:
    """Serve HTTP requests at a path below the controller's prefix by a method; the arguments are `Router.route`'s."""
    return _above("http", method_names(methods, path), path, name, dependencies, "route")


def get(path: str, *, name: str | None = None, dependencies: Iterable[DependsMarker] | None = None) -> Callable[[H], H]:
    """Serve GET, and HEAD, by a method of a controller; see `route`."""
    return _above("http", ("GET",), path, name, dependencies, "get")


def post(
    path: str, *, name: str | None = None, dependencies: Iterable[DependsMarker] | None = None
) -> Callable[[H], H]:
    """Serve POST by a method of a controller; see `route`."""
    return _above("http", ("POST",), path, name, dependencies, "post")


def _above(
    kind: str,
    methods: tuple[str, ...],
    path: str,
    name: str | None,
    dependencies: Iterable[DependsMarker] | None,
    decorator: str,
    limits: Limits | None = None,
) -> Callable[[H], H]:
    if not isinstance(path, str):
        raise RouteError(
            f"a method needs a path, got {path!r}", f"Write @{decorator}('/path') above it, with the parentheses."
        )
    mark = _MethodRoute(kind, methods, path, name, checked(dependencies), limits)

    def register(function: H) -> H:
        setattr(function, _ROUTES, (*getattr(function, _ROUTES, ()), mark))
        return function

    return register


def on(*types: Any) -> Callable[[H], H]:
    """Give the messages of these types to a method; what it returns is the reply, what it yields are replies.

    Args:
        types: Classes, such as Structs with a tag.

    Raises:
        SignatureError: There is none.
    """
    if not types or any(inspect.isroutine(one) for one in types):
        raise SignatureError("@on names no type of messages", "Write @on(Say) above the method.")
    for one in types:
        if one is not None and not isinstance(one, type) and typing.get_origin(resolved_alias(one)) is None:
            raise SignatureError(f"@on names {one!r}, which is no type", "Write the class itself: @on(Say).")

    def register(function: H) -> H:
        setattr(function, _TYPES, tuple(member for one in types for member in members_of(one)))
        return function

    return register


# What stands above the class


def controller(
    prefix: str = "",
    *,
    scope: str = "websocket",
    dependencies: Iterable[DependsMarker] = (),
    limits: Limits | None = None,
) -> Callable[[C], C]:
    """Make a class a controller, for `app.include(...)` or `app.scan(...)`.

    Its constructor gets components, dependencies and parameters as a handler does. `on_disconnect(ws, code, reason)`,
    or with fewer of these, is called once for each WebSocket that reached an object, however it ended, and before
    anything is cleaned up.

    Args:
        prefix: Goes before the path of every method; without such methods, the path of the controller.
        scope: "websocket": an object for each connection (and HTTP request). "singleton": one for the app, whose
            constructor gets components alone.
        dependencies: Run before every method.
        limits: What a connection to its hooks may cost; left out, the app's limits. A method with a path has its own.

    Raises:
        SignatureError: The scope is unknown, or this stands above no class.
    """
    if not isinstance(prefix, str):
        raise SignatureError(f"@controller needs a path, got {prefix!r}", "Write @controller('/path') above the class.")
    if scope not in _SCOPES:
        known = ", ".join(map(repr, _SCOPES))
        raise SignatureError(
            f"there is no scope {scope!r} of controllers", f"Known: {known}.{did_you_mean(str(scope), _SCOPES)}"
        )

    before = checked(dependencies)

    def register(cls: C) -> C:
        if not inspect.isclass(cls):
            raise SignatureError(f"@controller stands above a class, got {name_of(cls)!r}", "Use @app.websocket(path).")
        setattr(cls, CONTROLLER, ControllerMark(prefix, _SCOPES[scope], before, limits))
        return cls

    return register


class ControllerMark(msgspec.Struct, frozen=True):
    """What makes a class a controller.

    Attributes:
        prefix: Before the path of every method.
        lifetime: `CONNECTION` or `SINGLETON`: that of its objects.
        dependencies: Run before every method.
        limits: For the hooks.
    """

    prefix: str
    lifetime: int
    dependencies: tuple[DependsMarker, ...]
    limits: Limits | None

    def router(self, cls: type, converters: Mapping[str, Converter[Any]]) -> Router:
        """The routes of a controller.

        Raises:
            RouteError: A path cannot work.
            SignatureError: The class has nothing to serve, or a method cannot work.
        """
        with told_with(cls):
            members = _Members(cls)
            members.check()
            router = Router(
                "" if self.prefix == "/" else self.prefix, dependencies=self.dependencies, converters=converters
            )
        for name, function, mark in members.routes:
            where = whereabouts(function)
            with told_with(function):
                check_handler(function, mark.kind)
            try:
                router.add(
                    mark.kind, mark.methods, mark.path, _Method(cls, self.lifetime, members, function),
                    name=mark.name or name, where=where, dependencies=mark.dependencies, limits=mark.limits,
                )  # fmt: skip
            except RegistrationError as error:
                error.where = error.where or where
                raise
        if not members.serves_websockets and (members.receives or "on_connect" in members.hooks):
            router.add(
                "websocket", (), "/" if self.prefix == "/" else "", _Conversation(cls, self.lifetime, members),
                name=cls.__name__, where=whereabouts(cls), limits=self.limits,
            )  # fmt: skip
        return router


class _Members:
    """The methods of a controller that mean something, inherited ones too."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.routes: list[tuple[str, Handler, _MethodRoute]] = []
        self.typed: list[tuple[Handler, tuple[Any, ...]]] = []
        for name in dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)):
            for mark in _inherited(cls, name, _ROUTES):
                self.routes.append((name, self._function(name), mark))
            types = _inherited(cls, name, _TYPES)
            if types:
                self.typed.append((self._function(name), types))
        self.hooks = {name: self._function(name) for name in _HOOKS if hasattr(cls, name)}

    @property
    def serves_websockets(self) -> bool:
        """Whether a method reads for itself."""
        return any(mark.kind == "websocket" for _, _, mark in self.routes)

    @property
    def receives(self) -> list[tuple[Handler, tuple[Any, ...]]]:
        """The methods that are handed messages, each with the types that stand above it."""
        plain = self.hooks.get("on_message")
        return [*self.typed, (plain, ())] if plain is not None else self.typed

    def _function(self, name: str) -> Handler:
        found: Handler = inspect.getattr_static(self.cls, name)
        if not inspect.isfunction(found):
            raise SignatureError(
                f"{name!r} of {self.cls.__name__} is no method, but a {type(found).__name__}",
                "A controller's handlers and hooks are methods: `def name(self, ...)`.",
            )
        return found

    def check(self) -> None:
        """Refuse what cannot be meant. Raises SignatureError."""
        for name in dir(self.cls):
            meant = did_you_mean(name, _HOOKS) if name.startswith("on_") and name not in self.hooks else ""
            if meant and not _inherited(self.cls, name, _TYPES) and not _inherited(self.cls, name, _ROUTES):
                raise SignatureError(f"the method {name!r} is no hook", f"Known: {', '.join(_HOOKS)}.{meant}")
        if self.serves_websockets and self.receives:
            names = ", ".join(name_of(function) for function, _ in self.receives)
            raise SignatureError(
                f"both a @websocket method and {names} would read the messages",
                "Receive them in the @websocket method, or drop it: then the framework accepts and reads.",
            )
        if not self.routes and not self.receives and "on_connect" not in self.hooks:
            raise SignatureError(
                "the controller serves nothing",
                "Give it a method with @websocket('/path') or @get('/path'), or on_message.",
            )


def _inherited(cls: type, name: str, mark: str) -> tuple[Any, ...]:
    """What stands above a method, here or above one that it overrides."""
    for base in cls.__mro__:
        written = vars(base).get(name)
        found: tuple[Any, ...] = getattr(written, mark, ()) or getattr(getattr(written, "__func__", None), mark, ())
        if found:
            return found
    return ()


class _Served(Composed):
    """What the two kinds of controllers have in common."""

    def __init__(self, cls: type, lifetime: int, members: _Members) -> None:
        self._cls = cls
        self._lifetime = lifetime
        self._hooks = members.hooks
        self._receives = members.receives

    def _object(self, planner: Planner) -> Dependency:
        """What makes the controller's object."""
        asked_as = self._cls if self._lifetime == SINGLETON else None
        return planner.need(self._cls, self._lifetime, use_cache=True, asked_as=asked_as)

    def _connect(self, planner: Planner, made: Dependency) -> list[tuple[str | None, Dependency]]:
        """What is run when a WebSocket comes."""
        hook = self._hooks.get("on_connect")
        if hook is None or planner.kind == "http":
            return []
        with told_with(hook):
            return [(None, connecting(planner, made, hook))]

    def _farewell(
        self, planner: Planner, made: Dependency, where: str
    ) -> tuple[list[tuple[str | None, Dependency]], list[tuple[str | None, Dependency]]]:
        """What is needed as soon as there is an object, and at last, so that `on_disconnect` is called."""
        hook = self._hooks.get("on_disconnect")
        if hook is None or planner.kind == "http":
            return [], []
        with told_with(hook):
            first, last = attendance(made, hook, where)
        return [(None, first)], [(None, last)]


class _Method(_Served):
    """A method with a path."""

    def __init__(self, cls: type, lifetime: int, members: _Members, function: Handler) -> None:
        super().__init__(cls, lifetime, members)
        self._function = function

    def serving(
        self,
        kind: str,
        path: Mapping[str, Converter[Any]],
        before: tuple[DependsMarker, ...],
        where: str,
        *,
        body: bool,
        limits: Limits | None,
    ) -> Serving:
        """What serves the method's route; see `Composed`."""
        planner = Planner(kind, path, body=body)
        first = planner.before(before)
        made = self._object(planner)
        soon, last = self._farewell(planner, made, where)
        connect = self._connect(planner, made)
        with told_with(self._function):
            own, others = method_parameters(self._function)
            needed = [*first, (own.name, made), *soon, *connect]
            plan = planner.plan(with_connection(others, kind, path), needed, self._function, last)
        return Serving(endpoint_for(self._function, plan, kind, where, limits), (plan,))


class _Conversation(_Served):
    """The hooks of a controller that leaves reading to the framework."""

    def serving(
        self,
        kind: str,  # noqa: ARG002 - there is one
        path: Mapping[str, Converter[Any]],
        before: tuple[DependsMarker, ...],
        where: str,
        *,
        body: bool,  # noqa: ARG002 - there is none
        limits: Limits | None,
    ) -> Serving:
        """What serves the controller's route; see `Composed`."""
        planner = Planner("websocket", path, body=False)
        needed = planner.before(before)
        made = self._object(planner)
        soon, last = self._farewell(planner, made, where)
        receivers = tuple(receiver(made, function, path, types) for function, types in self._receives)
        messages = Messages(receivers)
        needed += [(None, outliving) for one in receivers for outliving in one.outliving]
        needed += [(None, made), *soon]
        needed += [(str(at), one.stays) for at, one in enumerate(receivers)]
        needed += self._connect(planner, made)
        plan = planner.plan([], needed, self._cls, last)

        async def converse(ws: WebSocket[Any, Any], arguments: dict[str, Any], found: Solved | None) -> None:
            if ws.application_state is CONNECTING and "on_connect" not in self._hooks:
                await ws.accept()
            if ws.application_state is not CONNECTED:
                logger().info("%s: on_connect did not accept connection %s: it is refused with 403", where, ws.id)
                return
            async for message in messages.of(ws):
                if receivers:
                    at = messages.receiver_of(message)
                    await receivers[at].receive(ws, message, arguments[str(at)], found)
                else:
                    logger().debug("connection %s: dropped a message, %s takes none", ws.id, where)

        endpoint = websocket_endpoint(converse, plan, where, decoder=messages.decoder, limits=limits)
        return Serving(endpoint, (plan, *(one.varies for one in receivers)))


# Finding them


def found_in(package: str | ModuleType) -> Iterator[Any]:
    """The controllers and routers of a module and of all modules below it, which are imported.

    Args:
        package: Its name, or the module itself.

    Raises:
        RouteError: There can be no module of that name.
    """
    name = package.__name__ if isinstance(package, ModuleType) else package
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise RouteError(
            f"{name!r} is no name of a package", "Write it as an import does: app.scan('myapp.controllers')."
        )
    modules = list(_modules(name))
    seen: set[int] = set()
    for module in modules:
        for value in list(vars(module).values()):
            if id(value) not in seen and _is_found(value, name):
                seen.add(id(value))
                yield value


def _is_found(value: Any, name: str) -> bool:
    if isinstance(value, type):
        return CONTROLLER in vars(value) and f"{value.__module__}.".startswith((f"{name}.", "__main__."))
    return isinstance(value, Router) and not callable(value)


def _modules(name: str) -> Iterator[ModuleType]:
    import importlib  # noqa: PLC0415 - only needed to look for controllers
    import pkgutil  # noqa: PLC0415 - same

    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if main is not None and spec is not None and spec.name == name:
        yield main  # it runs already: imported under its own name, it would run again
        return
    module = importlib.import_module(name)
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if info.name != "__main__":
            yield from _modules(f"{name}.{info.name}")
