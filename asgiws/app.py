"""The App: routes, lifespan, middleware, origin check and exception handlers, put together. Glue only."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from .components import provider_of
from .connection import Connection
from .controllers import found_in
from .converters import Converter
from .endpoints import ENDED, Endpoint, fail, refusal
from .errors import ConfigurationError, HTTPException, ProtocolError, RouteError, SignatureError
from .lifespan import Life
from .limits import DEFAULT_LIMITS, Limits
from .log import logger
from .origins import OriginPolicy
from .params import DependsMarker
from .paths import WEBSOCKET
from .plans import Dependency, Plan, every_dependency
from .registry import Connections
from .routes import Composed, Mount, Route, route_path
from .routing import Router
from .signature import name_of
from .singletons import Singletons
from .types import ASGIApp, ExceptionHandler, Handler, Lifespan, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from .channels.channels import Channels

EH = TypeVar("EH", bound=ExceptionHandler)


class Middleware:
    """A class of ASGI middleware and its arguments: `Middleware(CORSMiddleware, allow_origins=["*"])`."""

    __slots__ = ("args", "cls", "kwargs")

    def __init__(self, cls: Callable[..., ASGIApp], *args: Any, **kwargs: Any) -> None:
        self.cls = cls
        self.args = args
        self.kwargs = kwargs

    def __iter__(self) -> Iterator[Any]:
        """Class, args and kwargs, so that Starlette's `Middleware` serves as well."""
        return iter((self.cls, self.args, self.kwargs))

    def __repr__(self) -> str:
        return f"Middleware({getattr(self.cls, '__name__', self.cls)})"


class App(Router):
    """An ASGI application.

    Args:
        dependencies: Run before every handler, before those of the router, the route and the include.
        lifespan: An async context manager around the service's life, called with the app. A mapping that it yields is
            what every connection finds in `state`. Where a server sends no lifespan events (daphne, or a framework that
            mounts the app), the first connection starts it.
        middleware: ASGI middleware, the first the outermost; Starlette's `Middleware` objects are taken too.
        exception_handlers: Functions `async (connection, exception)` by exception class or HTTP status. What one
            returns answers a request; a response, a handshake that is not answered yet too.
        allowed_origins: Which origins may open a WebSocket: see `asgiws.security.OriginPolicy`. Left out, only pages of
            the same host and port.
        limits: What a connection may cost.
        converters: Converters of path templates, by name.
        channels: Topics to publish in and to join; opened and closed with the app, and given to every parameter that is
            annotated with `Channels`. An app that is mounted in another one has those of the outer one.
        debug: Tell in the log which dependency holds up the event loop for more than 50 ms.

    Attributes:
        dependency_overrides: What is run in place of which dependency or component: a test's substitutes.
        channels: As given.
        connections: The open WebSockets: how many, where, what they have come to, and hooks for their begin and end.
        singletons: The components that live as long as the app; an app mounted in another one shares them.

    Raises:
        ConfigurationError: A setting cannot work.
    """

    def __init__(
        self,
        *,
        dependencies: Iterable[DependsMarker] | None = None,
        lifespan: Lifespan | None = None,
        middleware: Iterable[Any] = (),
        exception_handlers: Mapping[Any, ExceptionHandler] | None = None,
        allowed_origins: Iterable[str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        converters: Mapping[str, Converter[Any]] | None = None,
        channels: "Channels | None" = None,
        debug: bool = False,
    ) -> None:
        super().__init__(dependencies=dependencies, converters=converters)
        self.limits = limits
        self.debug = debug
        self.dependency_overrides: dict[Any, Handler] = {}
        self.singletons = Singletons()
        self.connections = Connections()
        self.channels = channels
        self._origins = OriginPolicy(allowed_origins)
        self._middleware: list[Any] = list(middleware)
        self._handlers: dict[Any, ExceptionHandler] = {}
        self._stack: ASGIApp | None = None
        self._serving = False
        self._life = Life(self, lifespan, self._components_opened, self._mounted_lives)
        self._life.given |= channels is not None
        self._plans: list[tuple[Route, Plan]] = []
        self._to_open: list[Dependency] = []
        for key, handler in (exception_handlers or {}).items():
            self.exception_handler(key)(handler)

    @classmethod
    def __from_connection__(cls, connection: Connection) -> Any:
        """The app, for a parameter annotated with `App`."""
        return connection.app

    # Registration

    def add_middleware(self, cls: Callable[..., ASGIApp], *args: Any, **kwargs: Any) -> None:
        """Put an ASGI middleware around what is there: the last one added is the outermost.

        Raises:
            ConfigurationError: The app serves already.
        """
        if self._serving:
            raise ConfigurationError("middleware is added before the app serves its first connection, not after")
        self._middleware.insert(0, Middleware(cls, *args, **kwargs))

    def exception_handler(self, key: type[Exception] | int) -> Callable[[EH], EH]:
        """Register a handler for an exception class or an HTTP status, in place of what asgiws does.

        Raises:
            ConfigurationError: The key is neither.
        """
        is_class = isinstance(key, type) and issubclass(key, Exception)
        if not is_class and (not isinstance(key, int) or isinstance(key, bool)):
            raise ConfigurationError(f"an exception handler is for an exception class or an HTTP status, got {key!r}")

        def register(handler: EH) -> EH:
            self._handlers[key] = handler
            return handler

        return register

    def handler_for(self, error: Exception) -> ExceptionHandler | None:
        """The exception handler for an exception: by its HTTP status, else by its nearest class."""
        if not self._handlers:
            return None
        if isinstance(error, HTTPException) and error.status_code in self._handlers:
            return self._handlers[error.status_code]
        for cls in type(error).__mro__:
            if cls in self._handlers:
                return self._handlers[cls]
        return None

    def _add(self, route: Route | Mount) -> None:
        if isinstance(route, Route) and not route.template.segments:
            if not isinstance(route.handler, Composed):
                raise RouteError("a path starts with '/', got ''", "Write '/'.")
            # A controller of hooks alone, and no prefix anywhere.
            route = msgspec.structs.replace(route, template=self._parse("/"))
        super()._add(route)

    def _endpoint(self, route: Route | Mount) -> Endpoint:
        if isinstance(route, Route):
            serving = route.serving()
            self._plans += [(route, plan) for plan in serving.plans]
            return serving.endpoint
        if isinstance(route.app, App):
            route.app._share(self)  # noqa: SLF001 - of the same class

        async def serve(scope: Scope, receive: Receive, send: Send, params: dict[str, Any], host: App) -> None:
            await host.guard(functools.partial(route.serve, params=params, host=host), scope, receive, send)

        return serve

    def _share(self, outer: "App") -> None:
        """Take the singletons of the app around this one, and its channels if it has none, and so do the apps below."""
        self.singletons = outer.singletons
        self.channels = self.channels or outer.channels
        for route in self.routes:
            if isinstance(route, Mount) and isinstance(route.app, App):
                route.app._share(self)  # noqa: SLF001 - of the same class

    def scan(self, package: str | ModuleType) -> None:
        """Import a package and all modules below it, and include every controller and router that stands in them.

        A router that this app or another router has included already is left out. What is included is told in the
        log, at DEBUG.

        Args:
            package: Its name, such as "myapp.controllers".

        Raises:
            ImportError: A module cannot be imported.
            RouteError: There is nothing to include, or a route cannot work.
            SignatureError: A controller cannot work.
        """
        found = [one for one in found_in(package) if not isinstance(one, Router) or not one.is_part_of(self)]
        if not found:
            raise RouteError(
                f"no controller and no router stands in {package!r} or below",
                "Put @controller('/path') above a class, or name the package that has them.",
            )
        for one in found:
            self.include(one)
            logger().debug("scan: included %r", one)

    # Serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan.

        Raises:
            ProtocolError: The scope is of a type that ASGI does not know.
        """
        kind = scope["type"]
        if kind == "lifespan":
            await self._life.serve(scope, receive, send)
            return
        if kind not in ("websocket", "http"):
            raise ProtocolError(f"asgiws serves scopes of type 'websocket', 'http' and 'lifespan', got {kind!r}")
        try:
            if not self._serving:
                self._build()
            if self._life.given:
                scope = await self._life.enter(scope)
        except Exception as error:  # noqa: BLE001 - whatever a lifespan raises
            await fail(scope, receive, send, error, self)
            return
        refused = self._origins.refused(scope) if kind == "websocket" else None
        if refused is not None:
            await self._forbid(refused)(scope, receive, send, {}, self)
        elif self._stack is not None:
            await self._stack(scope, receive, send)
        else:
            endpoint, params = self._find(scope)
            await endpoint(scope, receive, send, params, self)

    def _find(self, scope: Scope) -> tuple[Endpoint, dict[str, Any]]:
        """What serves the scope, and the path parameters."""
        path = route_path(scope)
        kind = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        found = self._tree.match(kind, path)
        if kind == "HEAD" and (found is None or isinstance(found[0][0], Mount)):
            found = self._tree.match("GET", path)
        if found is not None:
            (_, endpoint), params = found
            if endpoint is not None:
                inherited = scope.get("path_params")
                return endpoint, {**inherited, **params} if inherited else params
        methods = self._tree.kinds(path) - {WEBSOCKET} if scope["type"] == "http" else None
        if methods:
            allow = methods | {"HEAD"} if "GET" in methods else methods
            return refusal("http", HTTPException(405, headers={"allow": ", ".join(sorted(allow))})), {}
        return refusal(scope["type"], HTTPException(404)), {}

    @staticmethod
    def _forbid(refused: tuple[str, str]) -> Endpoint:
        origin, host = refused
        logger().warning(
            "refused a WebSocket from origin %r to host %r: name the origin in App(allowed_origins=[...]) to let it in",
            origin, host,
        )  # fmt: skip
        return refusal("websocket", HTTPException(403, f"origin {origin!r} is not allowed"))

    def _build(self) -> None:
        """Make ready to serve; raises SignatureError if a component cannot be made."""
        self._check_components()
        self._serving = True
        if not self._middleware:
            return

        async def innermost(scope: Scope, receive: Receive, send: Send) -> None:
            endpoint, params = self._find(scope)
            await endpoint(scope, receive, send, params, self)

        stack: ASGIApp = innermost
        for cls, args, kwargs in reversed(self._middleware):
            stack = cls(stack, *args, **kwargs)
        self._stack = functools.partial(self.guard, stack)

    def _check_components(self) -> None:
        """See to it that every component can be made, and note those that are made when the app starts."""
        found: dict[Any, Dependency] = {}
        for route, plan in self._plans:
            try:
                _check_body(plan)
                needed = list(every_dependency(plan, self.dependency_overrides))
                self._check_channels([plan, *(one.plan for one in needed)])
            except SignatureError as error:
                error.where = " -> ".join(filter(None, (route.where, error.where)))
                raise
            overrides = self.dependency_overrides
            found |= {one.key: one for one in needed if one.is_shared and one.opens_with(overrides)}
            if route.kind == "websocket" and self._origins.allows_all:
                self._warn_of_ambient(route, needed)
        self._to_open = list(found.values())
        self._life.given |= bool(found)

    def _check_channels(self, plans: Iterable[Plan]) -> None:
        """Refuse a parameter annotated with `Channels` where there are none."""
        if self.channels is not None:
            return
        for name, read in (step for plan in plans for step in plan.steps):
            if getattr(getattr(read, "__self__", None), "are_of_app", False):
                raise SignatureError(
                    f"parameter {name!r} asks for Channels, and this app has none", "Write App(channels=Channels())."
                )

    @staticmethod
    def _warn_of_ambient(route: Route, needed: Iterable[Dependency]) -> None:
        for one in needed:
            if getattr(one.call, "ambient", False):
                logger().warning(
                    "%s (%s): every page on the web can use the credentials that a browser sends by itself (%s), since "
                    "allowed_origins has '*': name the origins that may",
                    route.path, route.where, type(one.call).__name__,
                )  # fmt: skip

    @contextlib.asynccontextmanager
    async def _components_opened(self) -> AsyncIterator[None]:
        if self._serving:
            self._check_components()
        else:
            self._build()
        async with contextlib.AsyncExitStack() as stack:
            if self.channels is not None:
                await stack.enter_async_context(self.channels)
            await stack.enter_async_context(self.singletons.opened(self._to_open, self))
            yield
            await self.connections.shut()

    def singleton(self, dependency: Dependency, /) -> Awaitable[Any]:
        """The value of a component that lives as long as the app."""
        return self.singletons.value(dependency, self)

    async def close_all(self, code: int = 1012, reason: str = "", window: float = 0.0) -> None:
        """Close all WebSockets and refuse new ones with 503; see `Connections.close_all`."""
        await self.connections.close_all(code, reason, window)

    async def guard(self, served: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection by code of others: its exceptions end the connection as those of a handler do."""
        last: str | None = None
        if ENDED not in scope:
            scope = {**scope, ENDED: []}

        async def watched(message: Message) -> None:
            nonlocal last
            last = message["type"]
            await send(message)

        watched.inner = send  # type: ignore[attr-defined]
        try:
            await served(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - whatever a middleware or a mounted application raises
            await fail(scope, receive, send, error, self, last)

    def _mounted_lives(self) -> list[Life]:
        """The lives of the apps below this one; an app that is mounted twice lives once."""
        apps = {id(route.app): route.app for route in self.routes if isinstance(route, Mount)}
        return [app._life for app in apps.values() if isinstance(app, App)]  # noqa: SLF001 - of the same class

    def lifespan_context(self) -> contextlib.AbstractAsyncContextManager[None]:
        """The app's lifespan, for who mounts it in another framework and runs it in the lifespan of that."""
        return self._life.run()


def _check_body(plan: Plan) -> None:
    """Refuse what is decoded from the body, but has become a component since."""
    provider = None if plan.body is None else provider_of(plan.body)
    if provider is not None:
        raise SignatureError(
            f"{name_of(plan.body)} was taken for the body of the request, and is the component of {provider.where} now",
            "Write the component above who asks for it, or mark the parameter with Body().",
        )
