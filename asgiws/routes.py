"""One route and one mount: what it is, which scopes it takes, and what serves it."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Never

import msgspec

from .connection import split_root
from .converters import Converter
from .endpoints import Endpoint, endpoint_for
from .errors import RouteError
from .injection import plan_for
from .limits import Limits
from .params import DependsMarker
from .paths import WEBSOCKET, Template
from .plans import Plan
from .types import ASGIApp, Handler, Receive, Scope, Send

_WITHOUT_BODY = frozenset({"GET", "HEAD"})


def route_path(scope: Scope) -> str:
    """The path to route on: below the root path."""
    return split_root(scope)[1] or "/"


class Serving(msgspec.Struct, frozen=True):
    """What serves a route: its endpoint, and all plans that are run for it."""

    endpoint: Endpoint
    plans: tuple[Plan, ...]


class Composed(ABC):
    """A handler of several functions, which knows itself how they make an endpoint."""

    @abstractmethod
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
        """What serves a route.

        Args:
            kind: "websocket" or "http".
            path: The converters of the parameters in the path template.
            body: Whether the request may have a body.
            before: What is run before all else.
            where: The route, the handler and its place, for logs.
            limits: What a connection may cost; None for the app's limits.

        Raises:
            SignatureError: It cannot work.
        """


class Route(msgspec.Struct, frozen=True, eq=False):
    """One registered handler.

    Attributes:
        kind: "websocket" or "http".
        methods: The HTTP methods; empty for a WebSocket.
        template: The parsed path.
        handler: What was registered.
        name: For `url_path_for`.
        where: The handler and its place in the source.
        dependencies: What is run before the handler, besides what it depends on itself.
        limits: What a connection may cost; None for the app's limits.
    """

    kind: str
    methods: tuple[str, ...]
    template: Template
    handler: Handler | Composed
    name: str
    where: str
    dependencies: tuple[DependsMarker, ...] = ()
    limits: Limits | None = None

    @property
    def path(self) -> str:
        """The path template, as it was written."""
        return self.template.text

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the tree of paths knows the route under."""
        return self.methods or (WEBSOCKET,)

    def matches(self, scope: Scope) -> dict[str, Any] | None:
        """The path parameters if the route, asked alone, takes this scope; else None."""
        kind = WEBSOCKET if self.kind == "websocket" else scope.get("method")
        taken = kind in self.kinds or (kind == "HEAD" and "GET" in self.kinds)
        return self.template.match(route_path(scope)) if taken and scope["type"] == self.kind else None

    def url_path_for(self, name: str, /, **params: Any) -> Never:
        """Not here but in the app. Starlette asks every route of what it mounts, and goes on if there is no match."""
        raise _no_match(name, params)

    def serving(self) -> Serving:
        """What serves the route; raises SignatureError if it cannot work."""
        label = " ".join((*self.methods, self.path)) if self.methods else f"websocket {self.path}"
        where = f"{label} ({self.where})"
        body = not self.methods or not _WITHOUT_BODY.issuperset(self.methods)
        path = self.template.converters()
        if isinstance(self.handler, Composed):
            return self.handler.serving(self.kind, path, self.dependencies, where, body=body, limits=self.limits)
        plan = plan_for(self.handler, self.kind, path, body=body, before=self.dependencies)
        return Serving(endpoint_for(self.handler, plan, self.kind, where, self.limits), (plan,))


class Mount(msgspec.Struct, frozen=True, eq=False):
    """An ASGI application below a path.

    Attributes:
        template: The parsed path; it may have parameters.
        app: The application.
        name: For `url_path_for`, as `name:route`.
    """

    template: Template
    app: ASGIApp
    name: str

    @property
    def path(self) -> str:
        """The path template."""
        return self.template.text or "/"

    def matches(self, scope: Scope) -> dict[str, Any] | None:
        """The path parameters if the scope's path is the mount's or lies below it; else None."""
        prefix, _ = self._split(route_path(scope))
        return self.template.match(prefix)

    def url_path_for(self, name: str, /, **params: Any) -> Never:
        """See `Route.url_path_for`."""
        raise _no_match(name, params)

    async def serve(self, scope: Scope, receive: Receive, send: Send, params: dict[str, Any], host: Any) -> None:
        """Hand the connection over, with the mount's path in `root_path` (ASGI, HTTP connection scope)."""
        prefix, rest = self._split(route_path(scope))
        root = (scope.get("root_path") or "").rstrip("/") + prefix
        child = dict(scope)
        child["root_path"] = root
        child["path"] = root + rest
        child["path_params"] = {**(scope.get("path_params") or {}), **params}
        child.setdefault("app", host)
        await self.app(child, receive, send)

    def _split(self, path: str) -> tuple[str, str]:
        """The part of the path that is the mount's, and what lies below it."""
        parts = path.split("/")
        depth = 1 + len(self.template.segments)
        rest = parts[depth:]
        return "/".join(parts[:depth]), "/" + "/".join(rest) if rest else ""


def _no_match(name: str, params: dict[str, Any]) -> Exception:
    starlette = sys.modules.get("starlette.routing")
    if starlette is not None:
        mismatch: Exception = starlette.NoMatchFound(name, params)
        return mismatch
    return RouteError(f"a route alone builds no path of {name!r}", "Ask the app: app.url_path_for(...).")
