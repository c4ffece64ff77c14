"""The App: middleware, exception handlers, origins, what it does to a scope, and how connections are kept apart."""

import contextvars
import copy
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import anyio
import pytest
from starlette.middleware import Middleware as StarletteMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from asgiws import (
    App,
    Body,
    ConfigurationError,
    HTTPException,
    JSONResponse,
    Limits,
    Middleware,
    ProtocolError,
    Response,
    Router,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
)
from asgiws.types import ASGIApp, Message, Receive, Scope, Send
from tests.fakes import DAPHNE, DEADLINE, GRANIAN, HYPERCORN, SHAPES, UVICORN, FakeServer, Shape, converse, request

pytestmark = pytest.mark.anyio

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


async def echo(ws: WebSocket) -> None:
    """Send back what comes."""
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


async def once(ws: WebSocket) -> None:
    """Send back one message."""
    await ws.accept()
    await ws.send_text(await ws.receive_text())


async def hello() -> dict[str, str]:
    """A route of HTTP."""
    return {"hello": "world" * 200}


class Tracing:
    """A middleware that notes what passes through it."""

    def __init__(self, app: ASGIApp, name: str, notes: list[str]) -> None:
        self.app = app
        self.name = name
        self.notes = notes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.notes.append(f"{self.name} in")
        await self.app(scope, receive, send)
        self.notes.append(f"{self.name} out")


class Failing:
    """A middleware that raises, at first, after a number of the application's events, or at the end."""

    def __init__(self, app: ASGIApp, error: Exception, after: int | None = 0) -> None:
        self.app = app
        self.error = error
        self.after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        count = 0
        if self.after == 0:
            raise self.error

        async def counting(message: Message) -> None:
            nonlocal count
            await send(message)
            count += 1
            if count == self.after:
                raise self.error

        await self.app(scope, receive, counting)
        if self.after is None:
            raise self.error


# Middleware


async def test_the_first_middleware_is_the_outermost() -> None:
    notes: list[str] = []
    app = App(middleware=[Middleware(Tracing, "a", notes), Middleware(Tracing, name="b", notes=notes)])
    app.add_middleware(Tracing, "last added", notes)
    app.websocket("/")(once)
    app.get("/")(hello)
    server = await converse(app, FakeServer(), "x", leave=-1)
    expected = ["last added in", "a in", "b in", "b out", "a out", "last added out"]
    assert notes == expected
    assert server.texts == ["x"]
    notes.clear()
    assert (await request(app, "GET", "/")).status == 200
    assert notes == expected
    notes.clear()
    assert (await request(app, "GET", "/nowhere")).status == 404
    assert notes == expected


async def test_middleware_is_built_once() -> None:
    built: list[str] = []

    class Counting(Tracing):
        def __init__(self, app: ASGIApp) -> None:
            super().__init__(app, "counting", [])
            built.append("counting")

    app = App(middleware=[Middleware(Counting)])
    app.websocket("/")(once)
    for _ in range(3):
        await converse(app, FakeServer(), "x", leave=-1)
    assert built == ["counting"]


async def test_middleware_cannot_be_added_once_the_app_serves() -> None:
    app = App()
    app.websocket("/")(once)
    await converse(app, FakeServer(), "x", leave=-1)
    with pytest.raises(ConfigurationError, match="before the app serves its first connection"):
        app.add_middleware(Tracing, "late", [])


async def test_middleware_of_starlette_works_with_both_kinds_of_middleware_object() -> None:
    app = App(
        middleware=[
            StarletteMiddleware(CORSMiddleware, allow_origins=["https://page.example"]),
            Middleware(GZipMiddleware, minimum_size=100),
        ],
    )
    app.get("/")(hello)
    app.websocket("/")(once)
    headers = {"origin": "https://page.example", "accept-encoding": "gzip"}
    answer = await request(app, "GET", "/", headers=headers)
    assert answer.status == 200
    assert answer.header("access-control-allow-origin") == "https://page.example"
    assert answer.header("content-encoding") == "gzip"
    asked = {"origin": "https://page.example", "access-control-request-method": "GET"}
    assert (await request(app, "OPTIONS", "/", headers=asked)).status == 200
    server = await converse(app, FakeServer(), "x", leave=-1)
    assert server.texts == ["x"]


async def test_a_middleware_may_answer_by_itself() -> None:
    class Gate:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if b"x-key" in dict(scope["headers"]):
                await self.app(scope, receive, send)
            elif scope["type"] == "http":
                await JSONResponse({"detail": "no key"}, 401)(scope, receive, send)
            else:
                ws: WebSocket = WebSocket(scope, receive, send)
                await ws.send_denial_response(JSONResponse({"detail": "no key"}, 401))

    app = App(middleware=[Middleware(Gate)])
    app.websocket("/")(once)
    app.get("/")(hello)
    assert (await converse(app, FakeServer(), leave=-1)).status == 401
    assert (await request(app, "GET", "/")).status == 401
    assert (await converse(app, FakeServer(headers={"x-key": "1"}), "x", leave=-1)).texts == ["x"]


async def test_what_a_middleware_puts_into_the_scope_reaches_the_handler() -> None:
    class User:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            state = {**scope.get("state", {}), "user": "ann"}
            await self.app({**scope, "state": state, "path": scope["path"] + "/me"}, receive, send)

    app = App(middleware=[Middleware(User)])

    @app.websocket("/who/me")
    async def who(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.state.user)

    assert (await converse(app, FakeServer(DAPHNE, "/who"), leave=-1)).texts == ["ann"]


# Middleware that raises


@every_shape
@pytest.mark.parametrize(
    ("error", "status", "early", "late", "logs"),
    [
        (ValueError("a secret"), 500, None, (1011, "internal error"), True),
        (HTTPException(401, "who are you"), 401, None, (4401, "who are you"), False),
        (WebSocketException(4000, "no"), 403, (4000, "no"), (4000, "no"), False),
        (WebSocketDisconnect(1001), 403, None, (1000, ""), False),
    ],
    ids=["other", "HTTPException", "WebSocketException", "WebSocketDisconnect"],
)
@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_middleware_that_raises_ends_the_connection_as_a_handler_would(
    shape: Shape,
    error: Exception,
    status: int,
    early: tuple[int, str] | None,
    late: tuple[int, str],
    logs: bool,
    after: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App(middleware=[Middleware(Failing, error, after)])

    @app.websocket("/")
    async def careless(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("x")
        await ws.receive_text()

    server = FakeServer(shape)
    if logs:
        with pytest.raises(ValueError, match="a secret"):
            await converse(app, server, leave=-1)
    else:
        await converse(app, server, leave=-1)
    assert not server.choked
    if after == 0:
        assert server.status == (status if shape.denial else 403)
        assert server.closed == early or not shape.denial
    else:
        assert server.closed is not None
        assert server.closed[0] in (late[0], late[0] + 3000 if shape is DAPHNE else late[0])
        assert server.closed[1] == late[1]
    assert len([record for record in caplog.records if record.levelno > logging.INFO]) == logs
    assert "secret" not in repr(server.sent)


async def test_a_middleware_that_raises_after_the_end_adds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = App(middleware=[Middleware(Failing, ValueError("late"), None)])
    app.websocket("/")(once)
    app.get("/")(hello)
    server = FakeServer()
    with pytest.raises(ValueError, match="late"):
        await converse(app, server, "x", leave=-1)
    assert server.types == ["websocket.accept", "websocket.send", "websocket.close"]
    refused = FakeServer(path="/nowhere")
    with pytest.raises(ValueError, match="late"):
        await converse(app, refused, leave=-1)
    assert refused.status == 404
    assert (await request(app, "GET", "/", raises=ValueError)).status == 200


@pytest.mark.parametrize(
    ("error", "status", "raises"),
    [(ValueError("a secret"), 500, ValueError), (HTTPException(401), 401, None)],
    ids=["other", "HTTPException"],
)
async def test_a_middleware_that_raises_on_http_is_answered(
    error: Exception, status: int, raises: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(middleware=[Middleware(Failing, error)])
    app.get("/")(hello)
    answer = await request(app, "GET", "/", raises=raises)
    assert answer.status == status
    assert b"secret" not in answer.body
    assert len(caplog.records) == (raises is not None)


async def test_a_middleware_that_raises_is_a_matter_of_the_exception_handlers() -> None:
    app = App(middleware=[Middleware(Failing, KeyError("x"))])
    app.get("/")(hello)
    app.websocket("/")(once)

    @app.exception_handler(LookupError)
    async def own(connection: Any, error: Exception) -> Response:
        return Response(status_code=418)

    assert (await converse(app, FakeServer(), leave=-1)).status == 418
    assert (await request(app, "GET", "/")).status == 418


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("shape", [UVICORN, HYPERCORN, GRANIAN], ids=lambda shape: shape.name)
async def test_with_middleware_too_the_exception_of_a_handler_whose_client_left_is_logged_once(
    shape: Shape, accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(middleware=[Middleware(Tracing, "a", [])])
    handled: list[Exception] = []

    @app.websocket("/")
    async def late(ws: WebSocket) -> None:
        try:
            if accepted:
                await ws.accept()
                await ws.receive_text()
            await ws.receive()
            await ws.accept()
        except WebSocketDisconnect:
            raise ValueError("late") from None

    @app.exception_handler(KeyError)
    async def other(ws: WebSocket, error: Exception) -> None:
        handled.append(error)

    server = FakeServer(shape)
    if not accepted:
        server.vanish()
    with pytest.raises(ValueError, match="late"):
        await converse(app, server, leave=1000 if accepted else -1)
    assert server.types == (["websocket.accept"] if accepted else [])
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


@pytest.mark.parametrize("path", ["/returns", "/raises"])
async def test_an_exception_that_a_middleware_swallows_leaves_no_open_end(path: str) -> None:
    class Swallowing:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            with suppress(ValueError):
                await self.app(scope, receive, send)

    app = App(middleware=[Middleware(Swallowing)])

    @app.websocket("/returns")
    async def returns(ws: WebSocket) -> None:
        await ws.accept()

    @app.websocket("/raises")
    async def raises(ws: WebSocket) -> None:
        await ws.accept()
        raise ValueError

    server = await converse(app, FakeServer(path=path), leave=-1)
    assert server.closed == ((1000, "") if path == "/returns" else (1011, "internal error"))


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_mounted_application_that_raises_ends_the_connection_too(middleware: bool, accepted: bool) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if accepted:
            await receive()
            await send({"type": "websocket.accept"})
        raise ValueError("a secret")

    app = App(middleware=[Middleware(Tracing, "a", [])] if middleware else [])
    app.mount("/broken", broken)
    server = FakeServer(path="/broken")
    with pytest.raises(ValueError, match="a secret"):
        await converse(app, server, leave=-1)
    assert server.status == (101 if accepted else 500)
    assert server.closed == ((1011, "internal error") if accepted else None)


# Exception handlers


class BaseError(Exception):
    """The base."""


class MiddleError(BaseError):
    """Between."""


class LeafError(MiddleError, LookupError):
    """Two bases."""


@pytest.mark.parametrize(
    ("keys", "error", "expected"),
    [
        ([BaseError], LeafError(), BaseError),
        ([BaseError, MiddleError], LeafError(), MiddleError),
        ([LookupError, BaseError], LeafError(), BaseError),  # in the order of the bases
        ([Exception], LeafError(), Exception),
        ([LeafError, Exception], LeafError(), LeafError),
        ([MiddleError], BaseError(), None),
        ([404], HTTPException(404), 404),
        ([404, HTTPException], HTTPException(404), 404),
        ([404, HTTPException], HTTPException(403), HTTPException),
        ([404], HTTPException(403), None),
        ([500], ValueError(), None),
    ],
    ids=repr,
)
def test_the_nearest_exception_handler_is_found(keys: list[Any], error: Exception, expected: Any) -> None:
    app = App()

    def register(key: Any) -> Any:
        async def own(connection: Any, error: Exception) -> None:
            pass

        return app.exception_handler(key)(own)

    handlers = {key: register(key) for key in keys}
    assert app.handler_for(error) is handlers.get(expected)


def test_exception_handlers_are_given_at_once_too() -> None:
    async def own(connection: Any, error: Exception) -> None:
        pass

    app = App(exception_handlers={404: own, KeyError: own})
    assert app.handler_for(HTTPException(404)) is own
    assert app.handler_for(KeyError()) is own
    assert App().handler_for(KeyError()) is None


@pytest.mark.parametrize("key", ["404", None, True, KeyError("x"), BaseException, KeyboardInterrupt, int, 4.0])
def test_what_is_no_key_of_an_exception_handler_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="an exception class or an HTTP status"):
        App().exception_handler(key)


# Scopes


@pytest.mark.parametrize("kind", ["webtransport", "", None, "http.request"])
async def test_an_unknown_type_of_scope_raises(kind: Any) -> None:
    # P1
    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    with anyio.fail_after(DEADLINE):
        for app in (App(), App(middleware=[Middleware(Tracing, "a", [])]), App(lifespan=yielding)):
            with pytest.raises(ProtocolError, match="'websocket', 'http' and 'lifespan'"):
                await app({"type": kind}, receive, send)


@asynccontextmanager
async def yielding(app: App) -> AsyncIterator[dict[str, Any]]:
    """A lifespan."""
    yield {"number": 42, "list": []}


@every_shape
@pytest.mark.parametrize("path", ["/", "/deep/1", "/mounted/x", "/nowhere", "/fails"])
async def test_a_scope_is_not_changed(shape: Shape, path: str) -> None:
    # P11
    inner = App(lifespan=yielding)
    inner.websocket("/x")(once)
    app = App(lifespan=yielding, middleware=[Middleware(Tracing, "a", [])])
    app.websocket("/")(once)
    app.mount("/mounted", inner)

    @app.websocket("/deep/<n:int>")
    async def deep(ws: WebSocket, n: int) -> None:
        await ws.accept()
        assert ws.query_params["a"] == "1"
        assert ws.cookies == {}

    @app.websocket("/fails")
    async def fails(ws: WebSocket) -> None:
        raise HTTPException(400)

    server = FakeServer(shape, path, query="a=1")
    before = copy.deepcopy(server.scope)
    await converse(app, server, "x", leave=-1)
    assert server.scope == before


@every_shape
async def test_the_keys_of_a_scope_that_may_be_missing_are_not_missed(shape: Shape) -> None:
    # P9, T32
    server = FakeServer(shape, "/", headers={"origin": "http://testserver"})
    for key in ("raw_path", "query_string", "root_path", "client", "server", "subprotocols"):
        server.scope.pop(key, None)
    app = App(lifespan=yielding)
    app.websocket("/")(once)
    await converse(app, server, "x", leave=-1)
    assert server.texts == ["x"]
    server = FakeServer(shape, "/", scheme="https", client=None, server=["/run/app.sock", None], http_version="2")
    await converse(app, server, "x", leave=-1)
    assert server.texts == ["x"]


# Connections are kept apart


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE], ids=lambda shape: shape.name)
@pytest.mark.parametrize("middleware", [False, True])
async def test_interleaved_connections_see_nothing_of_each_other(shape: Shape, middleware: bool) -> None:
    # S23, P11
    count = 200
    arrived = 0
    everybody = anyio.Event()
    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nobody")
    app = App(lifespan=yielding, middleware=[Middleware(Tracing, "a", [])] if middleware else [])

    @app.websocket("/<name>")
    async def one(ws: WebSocket, name: str, token: str) -> None:
        nonlocal arrived
        assert current.get() == "nobody"
        assert "user" not in ws.state
        current.set(name)
        ws.state.user = name
        await ws.accept()
        arrived += 1
        if arrived == count:
            everybody.set()
        await everybody.wait()
        text = await ws.receive_text()
        await ws.send_json([name, token, text, current.get(), ws.state.user, ws.state.number, ws.path_params["name"]])

    servers = [FakeServer(shape, f"/n{number}", query=f"token=t{number}") for number in range(count)]
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for server in servers:
                group.start_soon(app, server.scope, server.receive, server.send)
            await everybody.wait()
            for number, server in enumerate(servers):
                server.say(f"m{number}")
    for number, server in enumerate(servers):
        n = f"n{number}"
        assert server.texts == [f'["{n}","t{number}","m{number}","{n}","{n}",42,"{n}"]']


# Origins


@pytest.mark.parametrize("path", ["/", "/nowhere"])
async def test_the_origin_is_checked_before_anything_else(path: str, caplog: pytest.LogCaptureFixture) -> None:
    # S1
    notes: list[str] = []
    app = App(middleware=[Middleware(Tracing, "a", notes)])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        notes.append("handler")

    server = await converse(app, FakeServer(path=path, headers={"origin": "https://evil.example"}), leave=-1)
    assert server.status == 403
    assert b"https://evil.example" in server.body
    assert notes == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_an_origin_that_is_refused_cannot_write_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    # S20
    server = FakeServer(headers=[(b"origin", b"https://x\x1b[2K\nERROR all is lost")])
    await converse(App(), server, leave=-1)
    assert server.status == 403
    assert "\n" not in caplog.records[0].getMessage()
    assert "\x1b" not in caplog.records[0].getMessage()


async def test_an_origin_is_no_matter_of_http() -> None:
    app = App()
    app.get("/")(hello)
    assert (await request(app, "GET", "/", headers={"origin": "https://evil.example"})).status == 200


async def test_an_empty_list_of_origins_lets_none_in() -> None:
    # S4
    app = App(allowed_origins=[])
    app.websocket("/")(once)
    own = await converse(app, FakeServer(headers={"origin": "http://testserver"}), leave=-1)
    assert own.status == 403
    assert (await converse(app, FakeServer(), "x", leave=-1)).texts == ["x"]


# HTTP beside WebSockets


async def test_both_kinds_of_route_live_on_one_path() -> None:
    # T31
    app = App()
    app.websocket("/both")(once)
    app.get("/both")(hello)
    app.websocket("/<rest:path>")(once)
    assert (await converse(app, FakeServer(path="/both"), "x", leave=-1)).texts == ["x"]
    assert (await request(app, "GET", "/both")).status == 200
    assert (await request(app, "GET", "/elsewhere")).status == 404
    answer = await request(app, "POST", "/both")
    assert (answer.status, answer.header("allow")) == (405, "GET, HEAD")
    head = await request(app, "HEAD", "/both")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("method", ["websocket", "WEBSOCKET", "WebSocket"])
@pytest.mark.parametrize("middleware", [False, True])
async def test_a_method_that_is_named_like_a_kind_of_route_reaches_no_websocket(method: str, middleware: bool) -> None:
    # servers hand on whatever token stands where the method should
    app = App(middleware=[Middleware(Tracing, "a", [])] if middleware else [])
    app.websocket("/")(once)
    assert (await request(app, method, "/")).status == 404


# The rest


def test_a_setting_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="allowed_origins takes a list"):
        App(allowed_origins="https://example.com")
    with pytest.raises(ConfigurationError, match=r"got 'example\.com'"):
        App(allowed_origins=["example.com"])
    with pytest.raises(ConfigurationError, match="bad_messages"):
        App(limits=Limits(bad_messages=0))


def test_an_app_and_a_middleware_say_what_they_are() -> None:
    app = App()
    app.websocket("/")(once)
    app.mount("/x", App())
    assert repr(app) == "<App of 2 routes>"
    assert repr(Middleware(Tracing, "a")) == "Middleware(Tracing)"


async def test_a_handler_gets_the_app_that_serves_it() -> None:
    app, inner = App(), App()

    async def which(ws: WebSocket, served: App) -> None:
        await ws.accept()
        await ws.send_json([served is app, served is inner, ws.app is served])

    app.websocket("/")(which)
    inner.websocket("/x")(which)
    app.mount("/inner", inner)
    assert (await converse(app, FakeServer(), leave=-1)).texts == ["[true,false,true]"]
    assert (await converse(app, FakeServer(path="/inner/x"), leave=-1)).texts == ["[false,true,true]"]


async def test_the_limits_of_the_app_are_those_of_its_connections() -> None:
    app = App(limits=Limits(bad_messages=1, body_bytes=3))

    @app.websocket("/")
    async def numbers(ws: WebSocket[int, int]) -> None:
        await ws.accept()
        async for _ in ws:
            pass

    @app.post("/")
    async def post(body: Annotated[dict[str, int], Body()]) -> None:
        pass

    server = await converse(app, FakeServer(), "x", leave=-1)
    assert server.closed is not None
    assert server.closed[0] == 1007
    assert (await request(app, "POST", "/", body=b'{"a": 1}')).status == 413


async def test_a_router_that_is_included_serves_under_its_prefix() -> None:
    app, router = App(), Router(prefix="/v1")
    router.websocket("/echo")(once)
    app.include_router(router, prefix="/api")
    assert (await converse(app, FakeServer(path="/api/v1/echo"), "x", leave=-1)).texts == ["x"]
    assert app.url_path_for("once") == "/api/v1/echo"
