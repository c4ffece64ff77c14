"""asgiws inside Starlette, FastAPI, Litestar and Quart, and each of them inside asgiws."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
import fastapi
import httpx
import httpx_ws
import litestar
import pytest
import quart
import starlette.applications
import starlette.requests
import starlette.responses
import starlette.routing
import starlette.websockets
from httpx_ws.transport import ASGIWebSocketTransport
from hypercorn.middleware import DispatcherMiddleware

from asgiws import App, Middleware, Request, Response, WebSocket
from asgiws.types import ASGIApp, Receive, Scope, Send
from tests.fakes import DAPHNE, DEADLINE, HYPERCORN, UVICORN, FakeServer, ServerChokedError, converse

pytestmark = pytest.mark.anyio


def service() -> App:
    """An app to be mounted: it tells where it thinks it is."""
    app = App()

    @app.websocket("/rooms/<room>/<n:int>")
    async def room(ws: WebSocket, room: str, n: int, lang: str = "en") -> None:
        await ws.accept(ws.subprotocols[0] if ws.subprotocols else None)
        await ws.send_json([room, n, lang, ws.scope["root_path"], ws.app is app])
        async for message in ws:
            await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))

    @app.get("/items/<n:int>")
    async def item(request: Request, n: int, lang: str = "en") -> list[Any]:
        return [n, lang, request.scope["root_path"], request.app is app]

    @app.websocket("/fails")
    async def fails(ws: WebSocket) -> None:
        await ws.accept()
        raise ValueError("a secret")

    return app


def in_starlette(app: App) -> Any:
    """Mounted in Starlette."""
    return starlette.applications.Starlette(routes=[starlette.routing.Mount("/rt", app=app)])


def in_fastapi(app: App) -> Any:
    """Mounted in FastAPI."""
    outer = fastapi.FastAPI()
    outer.mount("/rt", app)
    return outer


def in_litestar(app: App) -> Any:
    """Mounted in Litestar, which cuts its own prefix off and puts a slash at the end of every path."""
    mounted: Any = app
    return litestar.Litestar([litestar.asgi("/rt", is_mount=True, copy_scope=True)(mounted)], logging_config=None)


def beside_quart(app: App) -> Any:
    """Beside Quart, behind the dispatcher of hypercorn."""
    dispatcher: Any = DispatcherMiddleware
    return dispatcher({"/rt": app, "/": quart.Quart(__name__)})


class AroundQuart:
    """The way of Quart's documentation: a middleware around its `asgi_app`."""

    def __init__(self, app: Any, service: App) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"].startswith("/rt/"):
            await self.service({**scope, "root_path": "/rt"}, receive, send)
        else:
            await self.app(scope, receive, send)


def around_quart(app: App) -> Any:
    """Inside Quart, as middleware."""
    outer: Any = quart.Quart(__name__)
    outer.asgi_app = AroundQuart(outer.asgi_app, app)
    return outer


def in_asgiws(app: App) -> Any:
    """Mounted in asgiws."""
    outer = App()
    outer.mount("/rt", app)
    return outer


OUTER: dict[str, Callable[[App], Any]] = {
    "starlette": in_starlette,
    "fastapi": in_fastapi,
    "litestar": in_litestar,
    "quart dispatcher": beside_quart,
    "quart middleware": around_quart,
    "asgiws": in_asgiws,
}

every_outer = pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER.keys())


def root_of(outer: Callable[[App], Any]) -> str:
    """The root path that the framework gives; Litestar gives none, as it cuts the path."""
    return "" if outer is in_litestar else "/rt"


def client(app: Any) -> httpx.AsyncClient:
    """A client of HTTP, in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")


# asgiws inside


@every_outer
@pytest.mark.parametrize("shape", [UVICORN, HYPERCORN], ids=lambda shape: shape.name)
async def test_a_websocket_of_a_mounted_app_works(outer: Any, shape: Any) -> None:
    server = FakeServer(shape, "/rt/rooms/blue/5", query="lang=fr", subprotocols=["chat"])
    app = outer(service())
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            server.say("hello")
            server.say(b"hello")
            await server.until(lambda server: len(server.sent) == 4 or server.status not in (None, 101))
            server.leave()
    assert server.status == 101
    assert server.sent[0].get("subprotocol") == "chat"
    assert server.texts == [f'["blue",5,"fr","{root_of(outer)}",true]', "hello"]
    assert server.sent[3]["bytes"] == b"hello"
    assert not server.choked


@every_outer
async def test_a_route_of_http_of_a_mounted_app_works(outer: Any) -> None:
    async with client(outer(service())) as http:
        answer = await http.get("/rt/items/7", params={"lang": "fr"})
        assert (answer.status_code, answer.json()) == (200, [7, "fr", root_of(outer), True])
        assert (await http.get("/rt/nowhere")).json() == {"detail": "Not Found"}
        assert (await http.get("/rt/items/x")).status_code == 404
        assert (await http.post("/rt/items/7")).status_code == 405


@every_outer
@pytest.mark.parametrize("path", ["/rt/nowhere", "/rt/rooms/blue/x", "/rt/items/7"])
async def test_a_mounted_app_refuses_what_it_does_not_know(outer: Any, path: str) -> None:
    server = await converse(outer(service()), FakeServer(path=path), leave=-1)
    assert (server.status, server.body) == (404, b'{"detail":"Not Found"}')


@every_outer
async def test_an_exception_in_a_mounted_app_closes_with_1011(outer: Any) -> None:
    server = FakeServer(path="/rt/fails")
    # Some frameworks keep the exception to themselves; Litestar answers it with a close of its own, after ours.
    with contextlib.suppress(ValueError, ServerChokedError):
        await converse(outer(service()), server, leave=-1)
    assert server.types == ["websocket.accept", "websocket.close"]
    assert server.closed == (1011, "internal error")
    assert server.choked == (["websocket.close after the end"] if outer is in_litestar else [])


@pytest.mark.parametrize(
    ("outer", "path"),
    [
        # as uvicorn has it
        (in_starlette, "/api/rt/rooms/blue/5"),
        (in_fastapi, "/api/rt/rooms/blue/5"),
        (in_asgiws, "/api/rt/rooms/blue/5"),
        # as the other servers have it; Starlette's mounts, in which a path always starts with its root path, cannot
        (in_asgiws, "/rt/rooms/blue/5"),
    ],
)
async def test_the_root_path_of_the_server_comes_before_that_of_the_mount(outer: Any, path: str) -> None:
    # P11, T34
    server = FakeServer(path=path, root_path="/api")
    app = outer(service())
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await server.until(lambda server: server.texts or server.status not in (None, 101))
            server.leave()
    assert server.texts == ['["blue",5,"en","/api/rt",true]']


@pytest.mark.parametrize("outer", [in_starlette, in_fastapi, in_asgiws])
async def test_a_websocket_of_a_mounted_app_works_with_a_client_in_this_process(outer: Any) -> None:
    transport = ASGIWebSocketTransport(outer(service()))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as http:
        session: Any = httpx_ws.aconnect_ws("http://testserver/rt/rooms/blue/5", http)
        async with session as ws:
            assert await ws.receive_json(DEADLINE) == ["blue", 5, "en", "/rt", True]
            await ws.send_text("hello")
            assert await ws.receive_text(DEADLINE) == "hello"


@pytest.mark.parametrize("outer", [starlette.applications.Starlette, fastapi.FastAPI, App])
async def test_the_parameters_of_a_mount_are_among_the_path_parameters(outer: Any) -> None:
    app, outermost = App(), outer()

    @app.websocket("/rooms/<n:int>")
    async def room(ws: WebSocket, n: int) -> None:
        await ws.accept()
        await ws.send_json(ws.path_params)

    outermost.mount("/tenants/{tenant}", app)
    server = await converse(outermost, FakeServer(path="/tenants/acme/rooms/5"), leave=-1)
    assert server.texts == ['{"tenant":"acme","n":5}']


@pytest.mark.parametrize("name", [None, "rt"])
def test_starlette_finds_its_own_routes_beside_a_mounted_app(name: str | None) -> None:
    async def page(request: starlette.requests.Request) -> starlette.responses.Response:
        raise AssertionError

    outer = starlette.applications.Starlette(
        routes=[
            starlette.routing.Mount("/rt", app=service(), name=name),
            starlette.routing.Route("/page/{n}", page, name="page"),
        ]
    )
    assert outer.url_path_for("page", n=1) == "/page/1"
    for unknown in ("nobody", "rt:nobody"):
        with pytest.raises(starlette.routing.NoMatchFound):
            outer.url_path_for(unknown)


async def test_fastapi_writes_its_schema_beside_a_mounted_app() -> None:
    async with client(in_fastapi(service())) as http:
        assert (await http.get("/openapi.json")).status_code == 200


async def test_whoever_mounts_an_app_runs_its_lifespan_in_its_own() -> None:
    notes: list[str] = []

    @contextlib.asynccontextmanager
    async def inner_span(app: App) -> AsyncIterator[dict[str, int]]:
        notes.append("starts")
        yield {"number": 42}
        notes.append("ends")

    app = App(lifespan=inner_span)

    @app.websocket("/")
    async def number(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json(ws.state.number)

    @contextlib.asynccontextmanager
    async def outer_span(outer: starlette.applications.Starlette) -> AsyncIterator[None]:
        async with app.lifespan_context():
            yield

    outer = starlette.applications.Starlette(routes=[starlette.routing.Mount("/rt", app=app)], lifespan=outer_span)
    async with outer.router.lifespan_context(outer):
        server = await converse(outer, FakeServer(path="/rt/"), leave=-1)
        assert server.texts == ["42"]
    assert notes == ["starts", "ends"]


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE], ids=lambda shape: shape.name)
async def test_the_class_works_alone_inside_starlette(shape: Any) -> None:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        ws: WebSocket = WebSocket(scope, receive, send)
        await ws.accept()
        await ws.send_json([ws.path_params, ws.query_params["a"], ws.scope["root_path"]])
        await ws.close(4000, "done")

    class Endpoint:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await endpoint(scope, receive, send)

    outer = starlette.applications.Starlette(
        routes=[starlette.routing.Mount("/rt", routes=[starlette.routing.WebSocketRoute("/rooms/{room}", Endpoint())])]
    )
    server = await converse(outer, FakeServer(shape, "/rt/rooms/blue", query="a=1"), leave=-1)
    assert server.texts == ['[{"room":"blue"},"1","/rt"]']
    assert server.closed == (4000, "done")


async def test_an_asgiws_response_serves_in_starlette() -> None:
    outer = starlette.applications.Starlette(
        routes=[starlette.routing.Mount("/rt", app=Response("hello", 201, {"x-answer": "42"}))]
    )
    async with client(outer) as http:
        answer = await http.get("/rt/")
    assert (answer.status_code, answer.text, answer.headers["x-answer"]) == (201, "hello", "42")


# The others inside asgiws


def a_starlette() -> Any:
    """A Starlette app."""

    async def room(ws: starlette.websockets.WebSocket) -> None:
        await ws.accept()
        await ws.send_text(f"{ws.path_params['room']} {ws.path_params['n']}")
        await ws.send_text(await ws.receive_text())
        await ws.close(4000)

    async def item(request: starlette.requests.Request) -> starlette.responses.Response:
        return starlette.responses.PlainTextResponse(f"{request.path_params['n']} {request.url_for('item', n=8).path}")

    return starlette.applications.Starlette(
        routes=[
            starlette.routing.WebSocketRoute("/rooms/{room}/{n:int}", room, name="room"),
            starlette.routing.Route("/items/{n:int}", item, name="item"),
        ]
    )


def a_fastapi() -> Any:
    """A FastAPI app."""
    app = fastapi.FastAPI()

    @app.websocket("/rooms/{room}/{n}", name="room")
    async def room(ws: fastapi.WebSocket, room: str, n: int) -> None:
        await ws.accept()
        await ws.send_text(f"{room} {n}")
        await ws.send_text(await ws.receive_text())
        await ws.close(4000)

    @app.get("/items/{n}", name="item", response_class=starlette.responses.PlainTextResponse)
    async def item(request: fastapi.Request, n: int) -> str:
        return f"{n} {request.url_for('item', n=8).path}"

    return app


def a_litestar() -> Any:
    """A Litestar app."""

    @litestar.websocket("/rooms/{room:str}/{n:int}")
    async def room(socket: litestar.WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        await socket.send_text(f"{socket.path_params['room']} {socket.path_params['n']}")
        await socket.send_text(await socket.receive_text())
        await socket.close(4000)

    @litestar.get("/items/{n:int}", media_type="text/plain")
    async def item(request: litestar.Request[Any, Any, Any]) -> str:
        return f"{request.path_params['n']} /sub/items/8"

    return litestar.Litestar([room, item], logging_config=None)


def a_quart() -> Any:
    """A Quart app."""
    app = quart.Quart(__name__)

    @app.websocket("/rooms/<room>/<int:n>")
    async def room(room: str, n: int) -> None:
        await quart.websocket.accept()
        await quart.websocket.send(f"{room} {n}")
        await quart.websocket.send(await quart.websocket.receive())
        await quart.websocket.close(4000)

    @app.get("/items/<int:n>")
    async def item(n: int) -> str:
        return f"{n} {quart.url_for('item', n=8)}"

    return app


class AnsweringServer(FakeServer):
    """Tells the application of the end after its own close, as real servers do: Quart waits for that."""

    async def send(self, event: Mapping[str, Any]) -> None:
        await super().send(event)
        if event["type"] == "websocket.close":
            self.leave(event["code"])


class Passing:
    """A middleware that changes nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


# Quart is for asyncio only.
every_inner = pytest.mark.parametrize(
    ("inner", "anyio_backend"),
    [(inner, backend) for inner in (a_starlette, a_fastapi, a_litestar) for backend in ("asyncio", "trio")]
    + [(a_quart, "asyncio")],
)


def host(inner: Any, *, middleware: bool) -> App:
    """An asgiws app with another one mounted."""
    app = App(middleware=[Middleware(Passing)] if middleware else [])
    app.mount("/sub", inner, name="sub")

    @app.websocket("/sub/own")
    async def own(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("own")

    return app


@every_inner
@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_another_framework_works_below_asgiws(inner: Callable[[], Any], middleware: bool, root_path: str) -> None:
    app = host(inner(), middleware=middleware)
    server = AnsweringServer(path=f"{root_path}/sub/rooms/blue/5", root_path=root_path)
    await converse(app, server, "hello", leave=-1)
    assert server.texts == ["blue 5", "hello"]
    assert server.closed == (4000, "")
    # a route beside the mount comes first
    assert (await converse(app, FakeServer(path="/sub/own"), leave=-1)).texts == ["own"]


@every_inner
@pytest.mark.parametrize("middleware", [False, True])
async def test_another_framework_answers_requests_below_asgiws(inner: Callable[[], Any], middleware: bool) -> None:
    async with client(host(inner(), middleware=middleware)) as http:
        answer = await http.get("/sub/items/7")
        assert (answer.status_code, answer.text) == (200, "7 /sub/items/8")
        assert (await http.get("/sub/nowhere")).status_code == 404
        assert (await http.get("/nowhere")).json() == {"detail": "Not Found"}


@pytest.mark.parametrize("inner", [a_starlette, a_fastapi])
def test_the_path_of_a_route_below_a_mount_is_found(inner: Callable[[], Any]) -> None:
    app = host(inner(), middleware=False)
    assert app.url_path_for("sub:room", room="blue", n=5) == "/sub/rooms/blue/5"
    assert app.url_path_for("sub:item", n=7) == "/sub/items/7"
    assert app.url_path_for("own") == "/sub/own"
