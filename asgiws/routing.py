"""Routers: what is registered where, and which of it serves a connection."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from .converters import CONVERTERS, PATH, Converter
from .endpoints import Endpoint, check_handler
from .errors import RegistrationError, RouteError, SignatureError, did_you_mean, whereabouts
from .limits import Limits
from .params import DependsMarker
from .paths import PathTree, Template, parse_template
from .routes import Composed, Mount, Route
from .types import ASGIApp, Handler
from .wire import is_token

H = TypeVar("H", bound=Handler)

CONTROLLER = "__asgiws_controller__"
"""In a class: what makes it a controller."""


class Router:
    """A set of routes, to be included into an `App` or another router.

    Args:
        prefix: Goes before the path of every route.
        dependencies: Run before the handler of every route.
        converters: Converters of your own, by the name that templates use.

    Raises:
        RouteError: The prefix or a converter cannot work.
    """

    def __init__(
        self,
        prefix: str = "",
        *,
        dependencies: Iterable[DependsMarker] | None = None,
        converters: Mapping[str, Converter[Any]] | None = None,
    ) -> None:
        self.converters: Mapping[str, Converter[Any]] = {**CONVERTERS, **(converters or {})}
        for name, converter in self.converters.items():
            if isinstance(converter, type) or not callable(getattr(converter, "convert", None)):
                raise RouteError(
                    f"converter {name!r} must be an object with a method convert(), got {converter!r}",
                    f"Pass {converter.__name__}()."
                    if isinstance(converter, type)
                    else "Subclass asgiws.converters.Converter.",
                )
        self.routes: list[Route | Mount] = []
        self._dependencies = checked(dependencies)
        self._prefix = self._parse_prefix(prefix)
        self._tree: PathTree[tuple[Any, Endpoint | None]] = PathTree()
        self._included = False
        self._in_router = False
        self._routers: list[Router] = []

    def __repr__(self) -> str:
        below = f" below {self._prefix.text!r}" if self._prefix.text else ""
        return f"<{type(self).__name__} of {len(self.routes)} routes{below}>"

    def is_part_of(self, app: "Router") -> bool:
        """Whether the router is included already, into an app or into a router that will be."""
        return self._in_router or any(one is self for one in app._routers)  # noqa: SLF001 - of the same class

    # Registration

    def websocket(
        self,
        path: str,
        *,
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
        limits: Limits | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of WebSockets: an async function, or an async generator whose items are sent.

        Args:
            path: The path template.
            name: For `url_path_for`; the handler's own name if left out.
            dependencies: Run before the handler, besides what it depends on itself.
            limits: What a connection may cost here; left out, the app's limits.

        Raises:
            RouteError: The path cannot work.
            SignatureError: The handler's parameters cannot be filled.
        """
        return self._registrar("websocket", (), path, name, dependencies, limits)

    def route(
        self,
        path: str,
        *,
        methods: Iterable[str] = ("GET",),
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of HTTP requests; raises as `websocket`."""
        return self._registrar("http", method_names(methods, path), path, name, dependencies)

    def get(
        self,
        path: str,
        *,
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of GET, and of HEAD; raises as `websocket`."""
        return self._registrar("http", ("GET",), path, name, dependencies)

    def post(
        self,
        path: str,
        *,
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of POST; raises as `websocket`."""
        return self._registrar("http", ("POST",), path, name, dependencies)

    def put(
        self,
        path: str,
        *,
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of PUT; raises as `websocket`."""
        return self._registrar("http", ("PUT",), path, name, dependencies)

    def patch(
        self,
        path: str,
        *,
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of PATCH; raises as `websocket`."""
        return self._registrar("http", ("PATCH",), path, name, dependencies)

    def delete(
        self,
        path: str,
        *,
        name: str | None = None,
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> Callable[[H], H]:
        """Register a handler of DELETE; raises as `websocket`."""
        return self._registrar("http", ("DELETE",), path, name, dependencies)

    def _registrar(
        self,
        kind: str,
        methods: tuple[str, ...],
        path: str,
        name: str | None,
        dependencies: Iterable[DependsMarker] | None,
        limits: Limits | None = None,
    ) -> Callable[[H], H]:
        if not isinstance(path, str):
            raise RouteError(
                f"a route needs a path, got {path!r}", "Write @app.websocket('/path'), with the parentheses."
            )

        before = checked(dependencies)

        def register(handler: H) -> H:
            where = whereabouts(handler)
            label = name or str(getattr(handler, "__name__", type(handler).__name__))
            try:
                check_handler(handler, kind)
                self.add(kind, methods, path, handler, name=label, where=where, dependencies=before, limits=limits)
            except RegistrationError as error:
                error.where = error.where or where
                raise
            return handler

        return register

    def add(
        self,
        kind: str,
        methods: tuple[str, ...],
        path: str,
        handler: "Handler | Composed",
        *,
        name: str,
        where: str,
        dependencies: tuple[DependsMarker, ...] = (),
        limits: Limits | None = None,
    ) -> None:
        """Register what was checked already; see `Route` for the arguments, and `websocket` for what it raises."""
        template = self._parse(path).under(self._prefix)
        self._add(Route(kind, methods, template, handler, name, where, self._dependencies + dependencies, limits))

    def include(
        self,
        *controllers_or_routers: Any,
        prefix: str = "",
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> None:
        """Take over all routes of controllers and routers.

        Args:
            controllers_or_routers: Classes with `@controller` above them, and `Router` objects.
            prefix: As `include_router` has it.
            dependencies: As `include_router` has it.

        Raises:
            RouteError: One of them is neither, or a route cannot work here.
            SignatureError: A controller cannot work.
        """
        for one in controllers_or_routers:
            mark = vars(one).get(CONTROLLER) if isinstance(one, type) else None
            if mark is None and not isinstance(one, Router):
                raise _not_included(one)
            router = one if mark is None else mark.router(one, self.converters)
            self.include_router(router, prefix, dependencies)

    def include_router(
        self,
        router: "Router",
        prefix: str = "",
        dependencies: Iterable[DependsMarker] | None = None,
    ) -> None:
        """Take over all routes and mounts of a router, below a prefix.

        Args:
            router: Its routes keep their own dependencies. A mounted application has none of ours.
            prefix: Goes before the path of every route.
            dependencies: Run after those of the app, the router and the route, before the handler.

        Raises:
            RouteError: The prefix or a route cannot work here.
        """
        if not isinstance(router, Router) or callable(router):
            raise RouteError(
                f"include_router() takes a Router, got {router!r}",
                "An App, or any other ASGI application, is mounted: mount('/path', app).",
            )
        if router is self:
            raise RouteError("a router cannot include itself")
        before = self._parse_prefix(prefix).under(self._prefix)
        added = checked(dependencies)
        for route in router.routes:
            try:
                moved = msgspec.structs.replace(route, template=route.template.under(before))
                if isinstance(moved, Route):
                    moved = msgspec.structs.replace(moved, dependencies=self._dependencies + moved.dependencies + added)
                self._add(moved)
            except RegistrationError as error:
                error.where = error.where or getattr(route, "where", "")
                raise
        router._included = True  # noqa: SLF001 - of the same class
        router._in_router |= not callable(self)  # noqa: SLF001 - same
        self._routers.append(router)

    def mount(self, path: str, app: ASGIApp, name: str = "") -> None:
        """Hand all connections at a path and below it to an ASGI application.

        Routes at or below the path come first. The application gets the path in `root_path`.

        Raises:
            RouteError: The path cannot work, or something is mounted there already.
        """
        if isinstance(app, Router) and not callable(app):
            raise RouteError(f"a Router is no ASGI application, got one to mount at {path!r}", "Use include_router().")
        if not callable(app):
            raise RouteError(f"mount() takes an ASGI application, got {app!r} at {path!r}")
        if path and not path.startswith("/"):
            raise RouteError(f"a path starts with '/', got {path!r}", f"Write {'/' + path!r}.")
        template = self._parse(path.rstrip("/")).under(self._prefix)
        if PATH in template.segments:
            raise RouteError(f"the mount {path!r} takes all below it anyway", "Leave the parameter of 'path' out.")
        self._add(Mount(template, app, name))

    def _parse(self, path: str) -> Template:
        return parse_template(path, self.converters) if path else Template("", (), ())

    def _parse_prefix(self, prefix: str) -> Template:
        if prefix.endswith("/"):
            raise RouteError(f"a prefix does not end with '/', got {prefix!r}", f"Write {prefix.rstrip('/')!r}.")
        return Template("", (), ()).under(self._parse(prefix))

    def _add(self, route: Route | Mount) -> None:
        """Take a route in; raises and changes nothing if it cannot work."""
        if self._included:
            raise RouteError(
                f"the route {route.path!r} comes too late: its router is already included",
                "Register every route of a router before you include it.",
            )
        endpoint = self._endpoint(route)
        if isinstance(route, Mount):
            taken = self._tree.add_mount(route.template, (route, endpoint))
            if taken is not None:
                raise RouteError(f"something is already mounted at {taken[0].path!r}", "Give each mount its own path.")
        else:
            self._check_free(route)
            for kind in route.kinds:
                self._tree.add(kind, route.template, (route, endpoint))
        self.routes.append(route)

    def _check_free(self, route: Route) -> None:
        for kind in route.kinds:
            taken = self._tree.standing(kind, route.template)
            if taken is not None:
                raise RouteError(
                    f"the route {route.path!r} can never be told apart from {taken[0].path!r} of {taken[0].where}",
                    "Give them different paths, methods or converters.",
                    route.where,
                )

    def _endpoint(self, route: Route | Mount) -> Endpoint | None:  # noqa: ARG002
        """What serves the route; a router alone serves nothing."""
        return None

    # Look-up

    def url_path_for(self, name: str, /, **params: Any) -> str:
        """The path of a route, percent-encoded, without the root path.

        Args:
            name: The route's name; `mount:route` for one below a mount.
            params: Its path parameters.

        Raises:
            RouteError: No route has the name, or the parameters do not fit.
        """
        routes = [route for route in self.routes if isinstance(route, Route) and route.name == name]
        for route in routes:
            if set(route.template.names) == set(params):
                return route.template.build(params)
        if routes:
            return routes[0].template.build(params)
        head, colon, tail = name.partition(":")
        for mount in self.routes:
            if colon and isinstance(mount, Mount) and mount.name == head and hasattr(mount.app, "url_path_for"):
                own = {key: params.pop(key) for key in mount.template.names if key in params}
                return mount.template.build(own).rstrip("/") + str(mount.app.url_path_for(tail, **params))
        known = sorted({route.name for route in self.routes if isinstance(route, Route)})
        raise RouteError(
            f"no route is named {name!r}", f"Known: {', '.join(known) or 'none'}.{did_you_mean(name, known)}"
        )


def _not_included(one: Any) -> RouteError:
    cls = type(one)
    if CONTROLLER in vars(cls):
        return RouteError(
            f"include() takes controllers and routers, got an object of the controller {cls.__name__}",
            f"Pass the class, include({cls.__name__}): each connection has an object of its own.",
        )
    return RouteError(
        f"include() takes controllers and routers, got {one!r}",
        "Put @controller('/path') above the class, or register a function with @app.websocket('/path').",
        whereabouts(one) if callable(one) else "",
    )


def checked(dependencies: Iterable[DependsMarker] | None) -> tuple[DependsMarker, ...]:
    """What stands in `dependencies=`; raises SignatureError if it is no list of Depends."""
    if dependencies is None:
        return ()
    found = tuple(dependencies) if isinstance(dependencies, Iterable) else (dependencies,)
    for one in found:
        if isinstance(dependencies, DependsMarker) or not isinstance(one, DependsMarker):
            raise SignatureError(
                f"dependencies takes a list of Depends(...), got {one!r}", "Write [Depends(function)]."
            )
    return found


def method_names(methods: Iterable[str], path: str) -> tuple[str, ...]:
    """The methods in capital letters, each once."""
    names = () if isinstance(methods, str) else tuple(dict.fromkeys(str(method).upper() for method in methods))
    if not names or not all(map(is_token, names)):
        raise RouteError(
            f"the route {path!r} has no methods"
            if not names
            else f"the route {path!r} has the methods {list(names)!r}",
            "Name at least one, such as methods=['GET'].",
        )
    return names
