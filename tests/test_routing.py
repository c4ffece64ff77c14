"""Routers: what is registered where, what is refused, and which of it serves a connection."""

import copy
import pathlib
import urllib.parse
import uuid
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse as StarletteText
from starlette.routing import Route as StarletteRoute
from starlette.routing import WebSocketRoute as StarletteWebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket

from asgiws import App, Depends, Request, Response, RouteError, Router, SignatureError, WebSocket
from asgiws.converters import Converter
from asgiws.paths import WEBSOCKET
from asgiws.routes import Mount, Route, route_path
from tests.fakes import SHAPES, UVICORN, FakeServer, Shape, converse, request

HERE = pathlib.Path(__file__)
FILE = (HERE.relative_to(pathlib.Path.cwd()) if HERE.is_relative_to(pathlib.Path.cwd()) else HERE).as_posix()
"""This file, as an error names it."""

NO_SLASH = "expected text that is not empty and has no slash (use the converter 'path' for slashes)"
HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def place(handler: Callable[..., Any]) -> str:
    """A handler of this file, as an error names it."""
    name = handler.__qualname__.replace(".<locals>", "")
    return f"test_routing.{name}, {FILE}:{handler.__code__.co_firstlineno}"


async def socket(ws: WebSocket[Any, Any]) -> None:
    await ws.accept()
    await ws.send_json(ws.path_params)


async def get_it(request: Request) -> Any:
    return {"method": request.method, **request.path_params}


async def other(request: Request) -> str:
    return "other"


class Recorder:
    """An ASGI application that notes the scopes it was called with and answers."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    @property
    def scope(self) -> dict[str, Any]:
        assert len(self.scopes) == 1
        return self.scopes[0]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(dict(scope))
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "recorded"})
            await send({"type": "websocket.close", "code": 1000})
        else:
            await Response("recorded")(scope, receive, send)


async def asked(app: Any, path: str, shape: Shape = UVICORN, **extra: Any) -> FakeServer:
    return await converse(app, FakeServer(shape, path, **extra), leave=-1)


def http_scope(path: str, method: str = "GET", **extra: Any) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", **extra}


def websocket_scope(path: str, **extra: Any) -> dict[str, Any]:
    return {"type": "websocket", "path": path, "headers": [], "query_string": b"", **extra}


# The root path


# T34
@pytest.mark.parametrize(
    ("root", "path", "routed"),
    [
        ("", "/x", "/x"),
        ("/api", "/api/x", "/x"),  # as uvicorn has it
        ("/api", "/x", "/x"),  # as the others have it
        ("/api", "/api", "/"),
        ("/api", "/api/", "/"),
        ("/api", "/apix", "/apix"),  # no border of a segment
        ("/api", "/api2/x", "/api2/x"),
        ("/api", "/x/api/y", "/x/api/y"),
        ("/api", "/", "/"),
        ("/api/", "/api/x", "/x"),
        ("/api/", "/api", "/"),
        ("/", "/x", "/x"),
        ("/", "/", "/"),
        ("/a/b", "/a/b/c", "/c"),
        ("/a/b", "/a/c", "/a/c"),
        ("/api", "/api/api/x", "/api/x"),
        ("/api", "/api//x", "//x"),
        ("/caf\u00e9", "/caf\u00e9/x", "/x"),
    ],
)
def test_the_root_path_is_stripped_at_a_segments_border_and_only_if_it_is_there(
    root: str, path: str, routed: str
) -> None:
    assert route_path({"path": path, "root_path": root}) == routed


# P9
@pytest.mark.parametrize("scope", [{}, {"path": ""}, {"path": "/"}, {"path": "/", "root_path": None}])
def test_a_scope_without_path_or_root_path_is_routed_as_the_root(scope: dict[str, Any]) -> None:
    assert route_path(scope) == "/"


@given(
    st.lists(st.sampled_from(["", "a", "api", "x"]), max_size=4).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from(["", "/", "/api", "/api/", "/a/x"]),
)
def test_a_path_below_the_root_path_is_routed_without_it(path: str, root: str) -> None:
    assert route_path({"path": root.rstrip("/") + path, "root_path": root}) == path
    assert route_path({"path": path, "root_path": root}).startswith("/")


# T34
@pytest.mark.anyio
@each_shape
@pytest.mark.parametrize("prefixed", [True, False])
async def test_a_websocket_is_found_with_the_root_path_before_its_path_and_without(
    shape: Shape, prefixed: bool
) -> None:
    app = App()
    app.websocket("/rooms/<room>")(socket)
    server = await asked(app, "/api/rooms/r1" if prefixed else "/rooms/r1", shape, root_path="/api")
    assert server.texts == ['{"room":"r1"}']


# T34: the raw path plays no part, so its absence changes nothing
@pytest.mark.anyio
@pytest.mark.parametrize("raw_path", [b"/rooms/a%2Fb", None, b"", ...])
async def test_an_encoded_slash_is_a_slash_whatever_the_raw_path_says(raw_path: Any) -> None:
    app = App()
    app.websocket("/rooms/<room>")(socket)
    app.websocket("/rooms/<room>/<part>")(socket)
    server = FakeServer(path="/rooms/a/b")
    if raw_path is ...:
        del server.scope["raw_path"]
    else:
        server.scope["raw_path"] = raw_path
    await converse(app, server, leave=-1)
    assert server.texts == ['{"room":"a","part":"b"}']


# T32
@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["ws", "wss", "http", "https", "", None, ...])
async def test_the_scheme_plays_no_part_in_routing(scheme: Any) -> None:
    app = App()
    app.websocket("/ws")(socket)
    server = FakeServer(path="/ws")
    if scheme is ...:
        del server.scope["scheme"]
    else:
        server.scope["scheme"] = scheme
    assert (await converse(app, server, leave=-1)).status == 101


# Registration


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("register", "method"),
    [
        ("get", "GET"), ("post", "POST"), ("put", "PUT"), ("patch", "PATCH"), ("delete", "DELETE"),
    ],
)  # fmt: skip
async def test_each_decorator_registers_its_method_and_gives_the_handler_back(register: str, method: str) -> None:
    app = App()
    assert getattr(app, register)("/x/<a:int>", name="it")(get_it) is get_it
    (route,) = app.routes
    assert isinstance(route, Route)
    assert (route.kind, route.methods, route.path, route.name) == ("http", (method,), "/x/<a:int>", "it")
    assert (route.handler, route.where, route.kinds) == (get_it, place(get_it), (method,))
    answer = await request(app, method, "/x/5")
    assert (answer.status, answer.body) == (200, b'{"method":"%s","a":5}' % method.encode())


@pytest.mark.anyio
async def test_a_route_may_have_several_methods() -> None:
    app = App()
    app.route("/x", methods=["get", "POST"])(get_it)
    (route,) = app.routes
    assert isinstance(route, Route)
    assert route.methods == route.kinds == ("GET", "POST")
    assert [(await request(app, method, "/x")).status for method in ("GET", "HEAD", "POST", "PUT")] == [
        200, 200, 200, 405,
    ]  # fmt: skip


def test_a_method_named_twice_counts_once() -> None:
    app = App()
    app.route("/x", methods=["GET", "get", "POST"])(get_it)
    assert [route.kinds for route in app.routes if isinstance(route, Route)] == [("GET", "POST")]


def test_a_websocket_route_knows_what_it_is() -> None:
    router = Router()
    assert router.websocket("/x")(socket) is socket
    (route,) = router.routes
    assert isinstance(route, Route)
    assert (route.kind, route.methods, route.kinds) == ("websocket", (), (WEBSOCKET,))
    assert (route.path, route.name, route.where) == ("/x", "socket", place(socket))


class Callables:
    async def __call__(self, ws: WebSocket[Any, Any]) -> None:
        await socket(ws)


@pytest.mark.anyio
async def test_a_callable_object_is_a_handler_and_named_after_its_class() -> None:
    app = App()
    app.websocket("/x")(Callables())
    assert app.url_path_for("Callables") == "/x"
    assert (await asked(app, "/x")).status == 101


@pytest.mark.parametrize("register", ["websocket", "get", "post", "put", "patch", "delete", "route"])
def test_a_decorator_without_parentheses_is_refused_with_the_right_form(register: str) -> None:
    with pytest.raises(RouteError) as caught:
        getattr(App(), register)(socket)
    assert str(caught.value) == (
        f"a route needs a path, got {socket!r}. Write @app.websocket('/path'), with the parentheses."
    )


@pytest.mark.parametrize("register", ["websocket", "get"])
@pytest.mark.parametrize(
    ("path", "problem", "hint"),
    [
        (
            "/rooms/<id:itn>",
            "unknown converter 'itn' in '/rooms/<id:itn>'",
            "Known: float, int, path, str, uuid. Did you mean 'int'?",
        ),
        ("rooms", "a path starts with '/', got 'rooms'", "Write '/rooms'."),
        ("/<a>/<a>", "the parameter 'a' stands twice in '/<a>/<a>'", "Give each its own name."),
        ("", "a path starts with '/', got ''", "Write '/'."),
    ],
)
def test_a_path_that_cannot_work_is_refused_with_the_handlers_place(
    register: str, path: str, problem: str, hint: str
) -> None:
    app, handler = App(), socket if register == "websocket" else get_it
    with pytest.raises(RouteError) as caught:
        getattr(app, register)(path)(handler)
    assert str(caught.value) == f"{problem} ({place(handler)}). {hint}"
    assert app.routes == []


def plain(ws: WebSocket[Any, Any]) -> None: ...


async def unfillable(ws: WebSocket[Any, Any], thing: Recorder) -> None: ...


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        (plain, "a handler must be async, got a plain function"),
        (unfillable, "parameter 'thing' of type Recorder cannot be made from text"),
    ],
)
def test_a_handler_that_cannot_work_is_refused_with_its_place(handler: Any, problem: str) -> None:
    app = App()
    with pytest.raises(SignatureError) as caught:
        app.websocket("/x")(handler)
    assert (caught.value.problem, caught.value.where) == (problem, place(handler))
    assert app.routes == []


def test_a_route_without_methods_is_refused() -> None:
    with pytest.raises(RouteError) as caught:
        App().route("/x", methods=[])
    assert str(caught.value) == "the route '/x' has no methods. Name at least one, such as methods=['GET']."


@pytest.mark.parametrize("methods", ["POST", ["GET POST"], ["GET", ""]])
def test_methods_that_no_request_has_are_refused(methods: Any) -> None:
    with pytest.raises(RouteError, match="method"):
        App().route("/x", methods=methods)(get_it)


# Dependencies, as far as routes carry them


def noting(notes: list[str], name: str) -> Any:
    async def note() -> None:
        notes.append(name)

    return [Depends(note)]


@pytest.mark.anyio
async def test_dependencies_run_in_the_order_of_app_router_route_and_include() -> None:
    notes: list[str] = []
    inner = Router(dependencies=noting(notes, "inner"))
    inner.get("/x", dependencies=noting(notes, "route"))(get_it)
    inner.websocket("/x", dependencies=noting(notes, "socket"))(socket)
    middle = Router(dependencies=noting(notes, "middle"))
    middle.include_router(inner, dependencies=noting(notes, "include inner"))
    app = App(dependencies=noting(notes, "app"))
    app.include_router(middle, "/a", dependencies=noting(notes, "include middle"))
    app.get("/y")(get_it)
    await request(app, "GET", "/a/x")
    assert notes == ["app", "middle", "inner", "route", "include inner", "include middle"]
    notes.clear()
    assert (await asked(app, "/a/x")).status == 101
    assert notes == ["app", "middle", "inner", "socket", "include inner", "include middle"]
    notes.clear()
    await request(app, "GET", "/y")
    assert notes == ["app"]


@pytest.mark.anyio
async def test_a_mounted_application_has_no_dependencies_of_ours() -> None:
    notes: list[str] = []
    router = Router(dependencies=noting(notes, "router"))
    router.mount("/sub", Recorder())
    app = App(dependencies=noting(notes, "app"))
    app.include_router(router, dependencies=noting(notes, "include"))
    assert (await request(app, "GET", "/sub/x")).body == b"recorded"
    assert notes == []


async def a_dependency() -> None: ...


@pytest.mark.parametrize(
    "register",
    [
        lambda given: App(dependencies=given),
        lambda given: Router(dependencies=given),
        lambda given: Router().websocket("/x", dependencies=given),
        lambda given: Router().get("/x", dependencies=given),
        lambda given: App().include_router(Router(), dependencies=given),
    ],
)
def test_dependencies_that_are_no_depends_are_refused(register: Any) -> None:
    with pytest.raises(SignatureError) as caught:
        register([Depends(a_dependency), a_dependency])
    assert str(caught.value) == (
        f"dependencies takes a list of Depends(...), got {a_dependency!r}. Write [Depends(function)]."
    )


# Conflicts


@pytest.mark.parametrize(
    ("one", "two", "first", "second"),
    [
        ("get", "get", "/x", "/x"),
        ("get", "get", "/<a>", "/{b}"),
        ("post", "post", "/x/<a:int>", "/x/<b:int>"),
        ("get", "route", "/x", "/x"),
        ("get", "get", "/<a:path>", "/<b:path>"),
    ],
)
def test_two_routes_that_can_never_be_told_apart_are_refused_with_both_places(
    one: str, two: str, first: str, second: str
) -> None:
    app = App()
    getattr(app, one)(first)(get_it)
    with pytest.raises(RouteError) as caught:
        getattr(app, two)(second)(other)
    assert str(caught.value) == (
        f"the route {second!r} can never be told apart from {first!r} of {place(get_it)} ({place(other)}). "
        "Give them different paths, methods or converters."
    )
    assert len(app.routes) == 1


@pytest.mark.anyio
async def test_a_refused_route_changes_nothing() -> None:
    app = App()
    app.post("/x")(get_it)
    with pytest.raises(RouteError):
        app.route("/x", methods=["GET", "POST", "PUT"])(other)
    answers = [await request(app, method, "/x") for method in ("GET", "POST", "PUT")]
    assert [answer.status for answer in answers] == [405, 200, 405]
    assert answers[0].header("allow") == "POST"


def test_the_same_route_in_two_routers_is_refused_where_the_second_is_included() -> None:
    one, two = Router("/a"), Router()
    one.websocket("/x")(socket)

    @two.websocket("/a/x")
    async def late(ws: WebSocket[Any, Any]) -> None: ...

    app = App()
    app.include_router(one)
    with pytest.raises(RouteError) as caught:
        app.include_router(two)
    assert str(caught.value) == (
        f"the route '/a/x' can never be told apart from '/a/x' of {place(socket)} ({place(late)}). "
        "Give them different paths, methods or converters."
    )


def test_two_websockets_on_one_path_are_refused_already_in_their_router() -> None:
    router = Router()
    router.websocket("/x")(socket)
    with pytest.raises(RouteError, match="can never be told apart"):
        router.websocket("/x")(socket)


# WebSocket and HTTP beside each other


def both_kinds(app: App) -> App:
    app.websocket("/x/<a>")(socket)
    app.get("/x/<a>")(get_it)
    app.post("/x/<a:int>")(get_it)
    return app


@pytest.mark.anyio
async def test_websocket_and_http_live_beside_each_other_on_one_path() -> None:
    app = both_kinds(App())
    assert (await asked(app, "/x/5")).texts == ['{"a":"5"}']
    assert (await request(app, "GET", "/x/5")).body == b'{"method":"GET","a":"5"}'
    assert (await request(app, "POST", "/x/5")).body == b'{"method":"POST","a":5}'
    head = await request(app, "HEAD", "/x/5")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("PUT", "/x/5", 405, "GET, HEAD, POST"),
        ("PUT", "/x/y", 405, "GET, HEAD"),
        ("POST", "/x/y", 405, "GET, HEAD"),
        ("get", "/x/y", 405, "GET, HEAD"),
        ("PUT", "/y", 404, None),
        ("GET", "/x/", 404, None),
        ("GET", "/x/y/", 404, None),
    ],
)
async def test_another_method_is_not_allowed_and_another_path_not_found(
    method: str, path: str, status: int, allow: str | None
) -> None:
    answer = await request(both_kinds(App()), method, path)
    assert (answer.status, answer.header("allow")) == (status, allow)


# T31
@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
async def test_a_websocket_catch_all_leaves_http_at_404(method: str) -> None:
    app = App()
    app.websocket("/<rest:path>")(socket)
    answer = await request(app, method, "/x/y")
    assert (answer.status, answer.header("allow")) == (404, None)


# T31
@pytest.mark.anyio
async def test_an_http_catch_all_leaves_websockets_at_404() -> None:
    app = App()
    app.route("/<rest:path>", methods=["GET", "POST"])(get_it)
    assert (await asked(app, "/x/y")).status == 404


# T30: a method is any token, in any case, that a stranger likes to send
@pytest.mark.anyio
@pytest.mark.parametrize("method", ["websocket", "WEBSOCKET", "mount", "", "X-Y"])
async def test_a_websocket_is_never_served_to_an_http_request(method: str) -> None:
    app = App()
    app.websocket("/x")(socket)
    assert (await request(app, method, "/x")).status == 404
    app.get("/x")(get_it)
    answer = await request(app, method, "/x")
    assert (answer.status, answer.header("allow")) == (405, "GET, HEAD")
    assert all(route.matches(http_scope("/x", method)) is None for route in app.routes)


# A server hands on what a client wrote as its request target
@pytest.mark.anyio
@pytest.mark.parametrize("path", ["x/admin", "*", "http://host/admin", "admin", "x"])
async def test_a_path_that_does_not_start_with_a_slash_is_nowhere(path: str) -> None:
    app = App()
    app.get("/admin")(get_it)
    app.websocket("/admin")(socket)
    app.get("/")(get_it)
    app.mount("/", Recorder())
    assert (await request(app, "GET", path)).status == 404
    assert (await asked(app, path)).status == 404
    assert all(route.matches(http_scope(path)) is None for route in app.routes)


@pytest.mark.anyio
@settings(max_examples=40)
@given(
    path=st.text(st.characters(codec="utf-8"), max_size=12) | st.text("/ax5.%\0\n", max_size=12),
    root=st.sampled_from(["", "/", "/a", "/a/x"]),
    method=st.sampled_from(["GET", "HEAD", "POST", "websocket", "\u00e9"]),
)
@example(path="/x/5", root="", method="GET")
async def test_any_path_gets_an_answer(path: str, root: str, method: str) -> None:
    app = both_kinds(App())
    app.mount("/a/<b:int>", Recorder())
    app.mount("/a/x", both_kinds(App()))
    assert (await request(app, method, path, root_path=root)).status in {200, 404, 405}
    assert (await asked(app, path, root_path=root)).status in {101, 404}


# Routers and prefixes


@pytest.mark.anyio
async def test_a_router_puts_its_prefix_before_its_routes() -> None:
    router = Router("/rooms")
    router.websocket("/<room>")(socket)
    router.get("")(get_it)
    router.post("/")(get_it)
    app = App()
    app.include_router(router)
    assert [route.path for route in app.routes] == ["/rooms/<room>", "/rooms", "/rooms/"]
    assert (await asked(app, "/rooms/r1")).texts == ['{"room":"r1"}']
    assert (await request(app, "GET", "/rooms")).status == 200
    assert (await request(app, "GET", "/rooms/")).status == 405
    assert (await asked(app, "/r1")).status == 404


@pytest.mark.anyio
async def test_prefixes_add_up_and_may_have_parameters() -> None:
    inner = Router("/rooms/<room>")

    @inner.websocket("/<message:int>")
    async def join(ws: WebSocket[Any, Any], tenant: uuid.UUID, room: str, message: int) -> None:
        await ws.accept()
        await ws.send_json([tenant, room, message])

    middle = Router("/<tenant:uuid>")
    middle.include_router(inner, "/deep")
    app = App()
    app.include_router(middle, "/v1")
    assert [route.path for route in app.routes] == ["/v1/<tenant:uuid>/deep/rooms/<room>/<message:int>"]
    server = await asked(app, f"/v1/{HEX}/deep/rooms/r1/5")
    assert server.texts == [f'["{uuid.UUID(HEX)}","r1",5]']
    assert app.url_path_for("join", tenant=uuid.UUID(HEX), room="a b", message=-1) == (
        f"/v1/{uuid.UUID(HEX)}/deep/rooms/a%20b/-1"
    )


@pytest.mark.anyio
async def test_an_empty_path_is_the_prefix_that_the_router_is_included_with() -> None:
    router = Router()
    router.get("")(get_it)
    app = App()
    app.include_router(router, "/rooms")
    assert (await request(app, "GET", "/rooms")).status == 200
    assert (await request(app, "GET", "/rooms/")).status == 404


def test_an_empty_path_without_any_prefix_is_refused() -> None:
    router = Router()
    router.get("")(get_it)
    with pytest.raises(RouteError) as caught:
        App().include_router(router)
    assert caught.value.where == place(get_it)


@pytest.mark.anyio
async def test_a_router_may_be_included_in_two_places_and_in_two_apps() -> None:
    router = Router()
    router.websocket("/x")(socket)
    one, two = App(), App()
    one.include_router(router, "/a")
    one.include_router(router, "/<b>")
    two.include_router(router)
    assert (await asked(one, "/a/x")).texts == ["{}"]
    assert (await asked(one, "/c/x")).texts == ['{"b":"c"}']
    assert (await asked(two, "/x")).texts == ["{}"]
    assert (await asked(two, "/a/x")).status == 404
    assert [route.path for route in router.routes] == ["/x"]


def test_a_router_included_twice_in_one_place_is_refused() -> None:
    router = Router()
    router.websocket("/x")(socket)
    app = App()
    app.include_router(router)
    with pytest.raises(RouteError, match="can never be told apart"):
        app.include_router(router)


class Slug(Converter[str]):
    regex = "[a-z]+"

    def convert(self, value: str) -> str:
        return value


@pytest.mark.anyio
async def test_a_router_brings_its_own_converters_along() -> None:
    router = Router("/<tag:slug>", converters={"slug": Slug()})
    router.websocket("/<x>")(socket)
    app = App()
    app.include_router(router)
    assert (await asked(app, "/abc/5")).texts == ['{"tag":"abc","x":"5"}']
    assert (await asked(app, "/ABC/5")).status == 404
    with pytest.raises(RouteError, match="unknown converter 'slug'"):
        app.websocket("/<y:slug>")(socket)


@pytest.mark.parametrize(
    ("converter", "hint"),
    [
        (Slug, "Pass Slug()."),
        (None, "Subclass asgiws.converters.Converter."),
        ("[a-z]", "Subclass asgiws.converters.Converter."),
    ],
)
def test_a_converter_that_cannot_convert_is_refused(converter: Any, hint: str) -> None:
    for make in (Router, App):
        with pytest.raises(RouteError) as caught:
            make(converters={"slug": converter})
        assert str(caught.value) == (
            f"converter 'slug' must be an object with a method convert(), got {converter!r}. {hint}"
        )


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("/", "a prefix does not end with '/', got '/'. Write ''."),
        ("/a/", "a prefix does not end with '/', got '/a/'. Write '/a'."),
        ("a", "a path starts with '/', got 'a'. Write '/a'."),
        (
            "/<a:itn>",
            "unknown converter 'itn' in '/<a:itn>'. Known: float, int, path, str, uuid. Did you mean 'int'?",
        ),
    ],
)
def test_a_prefix_that_cannot_work_is_refused(prefix: str, text: str) -> None:
    with pytest.raises(RouteError) as caught:
        Router(prefix)
    assert str(caught.value) == text
    with pytest.raises(RouteError) as caught:
        App().include_router(Router(), prefix)
    assert str(caught.value) == text


def test_a_prefix_cannot_take_the_rest_of_the_path() -> None:
    problem = "takes the rest of the path and so must be the last"
    with pytest.raises(RouteError, match=problem):
        Router("/<rest:path>").websocket("/x")(socket)
    router = Router()
    router.websocket("/x")(socket)
    with pytest.raises(RouteError, match=problem):
        App().include_router(router, "/<rest:path>")


def test_a_parameter_in_prefix_and_path_is_refused_with_the_handlers_place() -> None:
    text = f"the parameter 'room' stands twice in '/<room>/<room>' ({place(socket)}). Give each its own name."
    with pytest.raises(RouteError) as caught:
        Router("/<room>").websocket("/<room>")(socket)
    assert str(caught.value) == text
    router = Router()
    router.websocket("/<room>")(socket)
    with pytest.raises(RouteError) as caught:
        App().include_router(router, "/<room>")
    assert str(caught.value) == text


async def needs_room(ws: WebSocket[Any, Any], room: Recorder) -> None: ...


def test_a_signature_that_cannot_work_is_refused_where_its_router_is_included() -> None:
    router = Router()
    router.websocket("/x")(needs_room)
    with pytest.raises(SignatureError) as caught:
        App().include_router(router)
    assert caught.value.where == place(needs_room)


@pytest.mark.parametrize("into", [App, Router])
def test_a_route_registered_after_its_router_was_included_is_refused(into: type[Router]) -> None:
    router = Router("/a")
    router.websocket("/x")(socket)
    into().include_router(router)
    with pytest.raises(RouteError) as caught:
        router.get("/late")(get_it)
    assert str(caught.value) == (
        f"the route '/a/late' comes too late: its router is already included ({place(get_it)}). "
        "Register every route of a router before you include it."
    )
    with pytest.raises(RouteError, match="the route '/a/late' comes too late"):
        router.mount("/late", Recorder())
    late = Router()
    late.get("/late")(get_it)
    with pytest.raises(RouteError, match="the route '/a/late' comes too late"):
        router.include_router(late)
    assert [route.path for route in router.routes] == ["/a/x"]


def test_a_router_cannot_include_itself() -> None:
    router = Router()
    with pytest.raises(RouteError) as caught:
        router.include_router(router)
    assert str(caught.value) == "a router cannot include itself"


@pytest.mark.parametrize("what", [App(), Recorder(), None, "rooms"], ids=["App", "application", "None", "str"])
def test_what_is_no_router_cannot_be_included(what: Any) -> None:
    with pytest.raises(RouteError) as caught:
        App().include_router(what)
    assert str(caught.value) == (
        f"include_router() takes a Router, got {what!r}. "
        "An App, or any other ASGI application, is mounted: mount('/path', app)."
    )


# Mounts


def test_a_router_cannot_be_mounted() -> None:
    with pytest.raises(RouteError) as caught:
        App().mount("/a", Router())  # type: ignore[arg-type]
    assert str(caught.value) == "a Router is no ASGI application, got one to mount at '/a'. Use include_router()."


@pytest.mark.parametrize(
    ("path", "app", "text"),
    [
        ("/a", None, "mount() takes an ASGI application, got None at '/a'"),
        ("a", Recorder(), "a path starts with '/', got 'a'. Write '/a'."),
        (
            "/a/<rest:path>",
            Recorder(),
            "the mount '/a/<rest:path>' takes all below it anyway. Leave the parameter of 'path' out.",
        ),
    ],
)
def test_a_mount_that_cannot_work_is_refused(path: str, app: Any, text: str) -> None:
    with pytest.raises(RouteError) as caught:
        App().mount(path, app)
    assert str(caught.value) == text


@pytest.mark.parametrize(("one", "two"), [("/a", "/a"), ("/a", "/a/"), ("/", ""), ("/<x>", "/{y}")])
def test_two_mounts_at_one_path_are_refused(one: str, two: str) -> None:
    app = App()
    app.mount(one, Recorder())
    with pytest.raises(RouteError) as caught:
        app.mount(two, Recorder())
    assert str(caught.value) == f"something is already mounted at {one!r}. Give each mount its own path."
    assert len(app.routes) == 1


# P11
@pytest.mark.anyio
@each_shape
@pytest.mark.parametrize(
    ("mount", "root", "path", "child_root", "child_path", "params"),
    [
        ("/sub", "", "/sub/x/y", "/sub", "/sub/x/y", {}),
        ("/sub", "", "/sub", "/sub", "/sub", {}),
        ("/sub/", "", "/sub/", "/sub", "/sub/", {}),
        ("/", "", "/x", "", "/x", {}),
        ("", "", "/", "", "/", {}),
        ("/a/b", "", "/a/b//c/", "/a/b", "/a/b//c/", {}),
        ("/t/<tenant>", "", "/t/acme/x", "/t/acme", "/t/acme/x", {"tenant": "acme"}),
        ("/<n:int>/<s>", "", "/5/a b/x", "/5/a b", "/5/a b/x", {"n": 5, "s": "a b"}),
        # uvicorn has the root path before the path, the others do not: the child's path always has it
        ("/sub", "/api", "/api/sub/x", "/api/sub", "/api/sub/x", {}),
        ("/sub", "/api", "/sub/x", "/api/sub", "/api/sub/x", {}),
        ("/sub", "/api/", "/api/sub", "/api/sub", "/api/sub", {}),
        ("/", "/api", "/api/x", "/api", "/api/x", {}),
    ],
)
async def test_a_mounted_application_sees_its_path_in_the_root_path(
    shape: Shape, mount: str, root: str, path: str, child_root: str, child_path: str, params: dict[str, Any]
) -> None:
    child = Recorder()
    app = App()
    app.mount(mount, child)
    server = FakeServer(shape, path, root_path=root)
    before = copy.deepcopy(server.scope)
    await converse(app, server, leave=-1)
    assert server.texts == ["recorded"]
    assert server.scope == before, "the server's own scope is untouched"
    own = {key: value for key, value in child.scope.items() if not key.startswith("asgiws.")}
    assert own | {"root_path": root, "path": path} == before | {"path_params": params, "app": app}
    assert (child.scope["root_path"], child.scope["path"]) == (child_root, child_path)
    (route,) = app.routes
    assert route.matches(server.scope) == params


# P11
@pytest.mark.anyio
@pytest.mark.parametrize("prefix", ["/api", "/<version>"])
@pytest.mark.parametrize("mount", ["/", ""])
@pytest.mark.parametrize(
    ("path", "child_path"), [("/api", "/api"), ("/api/", "/api/"), ("/api/x", "/api/x"), ("/api/x/y", "/api/x/y")]
)
async def test_a_mount_at_the_root_of_a_prefix_takes_the_prefix_and_no_more(
    prefix: str, mount: str, path: str, child_path: str
) -> None:
    child = Recorder()
    router = Router(prefix)
    router.mount(mount, child)
    app = App()
    app.include_router(router)
    await request(app, "GET", path)
    assert (child.scope["root_path"], child.scope["path"]) == ("/api", child_path)
    (route,) = app.routes
    assert route.matches(http_scope(path)) == ({} if prefix == "/api" else {"version": "api"})


@pytest.mark.anyio
async def test_a_mount_of_a_router_moves_with_it() -> None:
    child = Recorder()
    router = Router("/<a>")
    router.mount("/sub/<b:int>", child)
    app = App()
    app.include_router(router, "/v1")
    await request(app, "GET", "/v1/x/sub/5/rest", path_params={"c": "before"})
    assert child.scope["root_path"] == "/v1/x/sub/5"
    assert child.scope["path_params"] == {"c": "before", "a": "x", "b": 5}
    assert (await request(app, "GET", "/v1/x/sub/y")).status == 404


@pytest.mark.anyio
async def test_the_app_of_the_scope_is_the_outermost() -> None:
    child = Recorder()
    inner, outer = App(), App()
    inner.mount("/b", child)
    outer.mount("/a", inner)
    await request(outer, "GET", "/a/b/c")
    assert child.scope["app"] is outer
    assert (child.scope["root_path"], child.scope["path"]) == ("/a/b", "/a/b/c")


@pytest.mark.anyio
@each_shape
@pytest.mark.parametrize("root", ["", "/api"])
async def test_an_app_mounted_in_an_app_serves_both_kinds(shape: Shape, root: str) -> None:
    inner, middle, outer = both_kinds(App()), App(), App()
    middle.mount("/b/<b>", inner)
    outer.mount("/a", middle)
    server = await asked(outer, "/a/b/1/x/5", shape, root_path=root)
    assert server.status == 101
    assert '"a":"5"' in server.texts[0]
    answer = await request(outer, "GET", "/a/b/1/x/5", root_path=root)
    assert answer.status == 200
    assert (await request(outer, "GET", "/a/b/1/y", root_path=root)).status == 404
    assert (await request(outer, "PUT", "/a/b/1/x/5", root_path=root)).header("allow") == "GET, HEAD, POST"


@pytest.mark.anyio
async def test_a_mounted_app_has_the_parameters_of_its_mount() -> None:
    inner, outer = App(), App()
    inner.websocket("/rooms/<room>")(socket)
    outer.mount("/t/<tenant:int>", inner)
    assert (await asked(outer, "/t/5/rooms/r1")).texts == ['{"tenant":5,"room":"r1"}']


async def starlette_get(request: StarletteRequest) -> StarletteText:
    return StarletteText(f"{request.path_params} {request.url.path}")


async def starlette_socket(websocket: StarletteWebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"{websocket.path_params} {websocket.url.path}")
    await websocket.close()


def starlette_app() -> Starlette:
    return Starlette(
        routes=[
            StarletteRoute("/x/{a:int}", starlette_get, name="get"),
            StarletteWebSocketRoute("/x/{a:int}", starlette_socket),
        ]
    )


@pytest.mark.anyio
@pytest.mark.parametrize(("root", "prefix"), [("", ""), ("/api", "/api"), ("/api", "")])
async def test_starlette_mounted_in_an_app_serves_with_the_parameters_of_both(root: str, prefix: str) -> None:
    app = App()
    app.mount("/t/<tenant>", starlette_app(), name="legacy")
    wanted = f"{{'tenant': 'acme', 'a': 5}} {root}/t/acme/x/5"
    answer = await request(app, "GET", f"{prefix}/t/acme/x/5", root_path=root)
    assert (answer.status, answer.body) == (200, wanted.encode())
    assert (await asked(app, f"{prefix}/t/acme/x/5", root_path=root)).texts == [wanted]
    assert app.url_path_for("legacy:get", tenant="a b", a=5) == "/t/a%20b/x/5"


# T31
@pytest.mark.anyio
async def test_routes_at_and_below_a_mount_come_first() -> None:
    http_only = Recorder()
    app = App()
    app.mount("/", http_only)
    app.mount("/sub", http_only)
    app.websocket("/ws")(socket)
    app.websocket("/sub/ws")(socket)
    app.get("/x")(get_it)
    assert (await asked(app, "/ws")).texts == ["{}"]
    assert (await asked(app, "/sub/ws")).texts == ["{}"]
    assert (await request(app, "GET", "/x")).body == b'{"method":"GET"}'
    assert http_only.scopes == []
    assert (await request(app, "GET", "/ws")).body == b"recorded"
    assert (await request(app, "GET", "/sub/ws")).body == b"recorded"
    assert [scope["root_path"] for scope in http_only.scopes] == ["", "/sub"]


@pytest.mark.anyio
async def test_head_of_a_get_route_comes_before_a_mount() -> None:
    child = Recorder()
    app = App()
    app.mount("/", child)
    app.get("/x")(get_it)
    answer = await request(app, "HEAD", "/x")
    assert answer.header("content-length") == str(len(b'{"method":"HEAD"}'))
    assert child.scopes == []
    await request(app, "HEAD", "/y")
    assert child.scope["path"] == "/y"


@pytest.mark.anyio
async def test_a_route_for_head_comes_before_that_for_get() -> None:
    app = App()
    app.get("/x")(get_it)

    @app.route("/x", methods=["HEAD"])
    async def head(request: Request) -> Response:
        return Response(headers={"x-head": "own"})

    assert (await request(app, "HEAD", "/x")).header("x-head") == "own"
    assert (await request(app, "GET", "/x")).header("x-head") is None


# What a route says for itself


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        (http_scope("/x/5"), [None, {"a": "5"}, None]),
        (http_scope("/x/5", "HEAD"), [None, {"a": "5"}, None]),
        (http_scope("/x/5", "POST"), [None, None, {"a": 5}]),
        (http_scope("/x/y", "POST"), [None, None, None]),
        (http_scope("/x/5", "PUT"), [None, None, None]),
        (websocket_scope("/x/5"), [{"a": "5"}, None, None]),
        (websocket_scope("/x/"), [None, None, None]),
        (websocket_scope("/api/x/5", root_path="/api"), [{"a": "5"}, None, None]),
        (websocket_scope("/x/5", root_path="/api"), [{"a": "5"}, None, None]),
    ],
)
def test_a_route_tells_whether_it_takes_a_scope(scope: dict[str, Any], found: list[Any]) -> None:
    before = copy.deepcopy(scope)
    assert [route.matches(scope) for route in both_kinds(App()).routes] == found
    assert scope == before


@pytest.mark.parametrize("scope", [{"type": "lifespan"}, {"type": "lifespan", "path": "/"}])
def test_no_route_takes_a_scope_that_is_no_connection(scope: dict[str, Any]) -> None:
    router = Router()
    router.get("/")(get_it)
    router.websocket("/")(socket)
    assert [route.matches(scope) for route in router.routes] == [None, None]


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        (http_scope("/t/5"), {"n": 5}),
        (http_scope("/t/5/", "PUT"), {"n": 5}),
        (websocket_scope("/t/5/x/y"), {"n": 5}),
        (websocket_scope("/api/t/5/x", root_path="/api"), {"n": 5}),
        (websocket_scope("/t/x"), None),
        (websocket_scope("/t"), None),
        (websocket_scope("/x/t/5"), None),
    ],
)
def test_a_mount_tells_whether_it_takes_a_scope(scope: dict[str, Any], found: Any) -> None:
    router = Router()
    router.mount("/t/<n:int>", Recorder(), name="it")
    (mount,) = router.routes
    assert isinstance(mount, Mount)
    assert (mount.path, mount.name) == ("/t/<n:int>", "it")
    assert mount.matches(scope) == found


# Names


def named(app: App) -> App:
    app.websocket("/rooms/<room>", name="room")(socket)
    app.get("/")(get_it)
    app.get("/files/<rest:path>", name="file")(get_it)
    return app


@pytest.mark.parametrize(
    ("name", "params", "path"),
    [
        ("room", {"room": "a-b"}, "/rooms/a-b"),
        ("room", {"room": "caf\u00e9 #1?"}, "/rooms/caf%C3%A9%20%231%3F"),
        ("get_it", {}, "/"),
        ("file", {"rest": "a b/c"}, "/files/a%20b/c"),
    ],
)
def test_a_route_is_found_by_its_name(name: str, params: dict[str, Any], path: str) -> None:
    assert named(App()).url_path_for(name, **params) == path


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("rooms", {}, "no route is named 'rooms'. Known: file, get_it, room. Did you mean 'room'?"),
        ("xyz", {}, "no route is named 'xyz'. Known: file, get_it, room."),
        ("", {}, "no route is named ''. Known: file, get_it, room."),
        ("api:get_it", {}, "no route is named 'api:get_it'. Known: file, get_it, room. Did you mean 'get_it'?"),
        ("room", {}, "the parameters of '/rooms/<room>' are room; got none"),
        ("room", {"id": 1}, "the parameters of '/rooms/<room>' are room; got id"),
        ("get_it", {"x": 1}, "the parameters of '/' are none; got x"),
        (
            "room",
            {"room": "a/b"},
            f"room='a/b' does not fit into '/rooms/<room>': {NO_SLASH}",
        ),
    ],
)
def test_a_name_or_parameters_that_do_not_fit_are_refused(name: str, params: dict[str, Any], text: str) -> None:
    with pytest.raises(RouteError) as caught:
        named(App()).url_path_for(name, **params)
    assert str(caught.value) == text


def test_a_router_without_routes_knows_no_names() -> None:
    with pytest.raises(RouteError) as caught:
        App().url_path_for("room")
    assert str(caught.value) == "no route is named 'room'. Known: none."


def test_routes_of_one_name_are_told_apart_by_their_parameters() -> None:
    router = Router()
    router.get("/x", name="it")(get_it)
    router.get("/x/<a>", name="it")(get_it)
    router.get("/x/<a>/<b>", name="it")(get_it)
    paths = [router.url_path_for("it"), router.url_path_for("it", a="y"), router.url_path_for("it", a="y", b="z")]
    assert paths == ["/x", "/x/y", "/x/y/z"]
    with pytest.raises(RouteError, match="the parameters of '/x' are none; got c"):
        router.url_path_for("it", c="z")


def test_a_path_parameter_may_be_called_like_an_argument() -> None:
    app = App()
    app.websocket("/<name>/<self>")(socket)
    assert app.url_path_for("socket", name="a", self="b") == "/a/b"


def test_a_route_below_mounts_is_found_through_their_names() -> None:
    inner, middle, outer = named(App()), App(), App()
    middle.mount("/b/<b:int>", inner, name="inner")
    outer.mount("/a/", middle, name="middle")
    outer.mount("/", named(App()), name="root")
    outer.mount("/raw", Recorder(), name="raw")
    assert middle.url_path_for("inner:get_it", b=5) == "/b/5/"
    assert outer.url_path_for("middle:inner:room", b=5, room="x y") == "/a/b/5/rooms/x%20y"
    assert outer.url_path_for("root:room", room="r") == "/rooms/r"
    assert outer.url_path_for("root:get_it") == "/"


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("sub:rom", {"t": "x"}, "no route is named 'rom'. Known: file, get_it, room. Did you mean 'room'?"),
        ("sub:room", {"room": "r"}, "the parameters of '/<t>' are t; got none"),
        ("sub:room", {"t": "x"}, "the parameters of '/rooms/<room>' are room; got none"),
        ("sub:get_it", {"t": "x", "u": "y"}, "the parameters of '/' are none; got u"),
    ],
)
def test_a_name_below_a_mount_that_does_not_fit_is_refused(name: str, params: dict[str, Any], text: str) -> None:
    outer = App()
    outer.mount("/<t>", named(App()), name="sub")
    with pytest.raises(RouteError) as caught:
        outer.url_path_for(name, **params)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["sub", "raw", "raw:x", "subs:room"])
def test_a_mount_alone_is_no_name_and_is_not_guessed(name: str) -> None:
    outer = App()
    outer.mount("/sub", named(App()), name="sub")
    outer.mount("/raw", Recorder(), name="raw")
    with pytest.raises(RouteError) as caught:
        outer.url_path_for(name)
    assert str(caught.value).startswith(f"no route is named {name!r}")
    assert "Did you mean 'sub'?" not in str(caught.value)
    assert "Did you mean 'raw'?" not in str(caught.value)


def test_names_move_with_an_included_router() -> None:
    router = Router("/b")
    router.websocket("/<room>", name="room")(socket)
    router.mount("/m", named(App()), name="sub")
    app = App()
    app.include_router(router, "/a")
    assert router.url_path_for("room", room="r") == "/b/r"
    assert app.url_path_for("room", room="r") == "/a/b/r"
    assert app.url_path_for("sub:room", room="r") == "/a/b/m/rooms/r"


@pytest.mark.anyio
@settings(max_examples=30)
@given(
    room=st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=10), tenant=st.integers()
)
async def test_the_path_of_a_name_leads_to_its_route(room: str, tenant: int) -> None:
    inner, outer = App(), App()
    found: list[Any] = []

    @inner.get("/rooms/<room>", name="room")
    async def get_room(request: Request, room: str) -> None:
        found.append((room, request.scope["path_params"]["tenant"]))

    outer.mount("/t/<tenant:int>", inner, name="t")
    url = outer.url_path_for("t:room", tenant=tenant, room=room)
    assert (await request(outer, "GET", urllib.parse.unquote(url))).status == 204
    assert found == [(room, tenant)]


# Routes may come while others are served


@pytest.mark.anyio
async def test_a_route_may_be_added_to_an_app_that_serves() -> None:
    app = App()
    assert (await asked(app, "/x")).status == 404
    app.websocket("/x")(socket)
    assert (await asked(app, "/x")).status == 101


@pytest.mark.anyio
async def test_many_connections_at_once_do_not_mix_their_parameters() -> None:
    app = App()
    app.websocket("/rooms/<room:int>")(socket)
    texts: dict[int, list[str]] = {}

    async def one(number: int) -> None:
        texts[number] = (await asked(app, f"/rooms/{number}")).texts

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one, number)
    assert texts == {number: [f'{{"room":{number}}}'] for number in range(50)}
