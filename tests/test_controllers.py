"""Controllers: methods with a path, an object per connection or one for all, inheritance, include, what is refused.

The hooks have a file of their own, and so has `scan`.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import logging
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from asgiws import (
    App,
    Connection,
    Depends,
    Header,
    HTTPException,
    Path,
    Query,
    Request,
    RouteError,
    Router,
    SignatureError,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    component,
    controller,
    get,
    on,
    post,
    websocket,
)
from asgiws.controllers import route
from asgiws.converters import Converter
from tests.fakes import DEADLINE, SHAPES, UVICORN, FakeServer, Shape, request, soon

pytestmark = pytest.mark.anyio

Log = list[Any]
Ctl = type[Any]


class Client(FakeServer):
    """A client that says what it has to say, and leaves when the application asks for more."""

    ending: tuple[int | None, str] = (1000, "")

    async def receive(self) -> dict[str, Any]:
        """The server's `receive()`."""
        if not self._inbox and not self._gone:
            self.leave(*self.ending)
        return await super().receive()

    @property
    def frames(self) -> list[Any]:
        """The text messages, decoded from JSON."""
        return [json.loads(text) for text in self.texts]


async def talk(
    app: App,
    path: str,
    *messages: str | bytes,
    ending: tuple[int | None, str] = (1000, ""),
    raises: type[Exception] | None = None,
    shape: Shape = UVICORN,
    **handshake: Any,
) -> Client:
    """A whole connection: the client says these messages, is answered, and leaves."""
    client = Client(shape, path, **handshake)
    client.ending = ending
    for message in messages:
        client.say(message)
    with anyio.fail_after(DEADLINE), pytest.raises(raises) if raises else contextlib.nullcontext():
        await app(client.scope, client.receive, client.send)
    assert not client.choked
    return client


def app_of(*controllers: Any, **options: Any) -> App:
    """An app with these controllers."""
    app = App(**options)
    app.include(*controllers)
    return app


def noting(log: Log, name: str) -> Any:
    """A dependency that notes that it ran, and that it was cleaned up."""

    async def dependency() -> AsyncIterator[str]:
        log.append(name)
        yield name
        log.append(f"-{name}")

    return Depends(dependency)


class Say(msgspec.Struct, tag="say"):
    """A message of a client."""

    text: str


class Said(msgspec.Struct, tag="said"):
    """What others hear of it."""

    user: str
    text: str


# A method with a path


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_method_echoes(shape: Shape) -> None:
    @controller("/echo", scope="websocket")
    class Echo:
        @websocket("/<room>")
        async def echo(self, ws: WebSocket, room: str, lang: str = "en") -> None:
            await ws.accept()
            async for text in ws.iter_text():
                await ws.send_text(f"{room}/{lang}: {text}")

    client = await talk(app_of(Echo), "/echo/42", "hello", "hé", shape=shape, query="lang=fr")
    assert client.texts == ["42/fr: hello", "42/fr: hé"]


@controller("/echo", scope="websocket")
class Names:
    """The WebSocket, whatever its parameter is called."""

    @websocket("/ws")
    async def by_ws(self, ws) -> None:  # type: ignore[no-untyped-def]
        """Unannotated."""
        await self.echo(ws)

    @websocket("/websocket")
    async def by_websocket(self, websocket) -> None:  # type: ignore[no-untyped-def]
        """Unannotated."""
        await self.echo(websocket)

    @websocket("/conn")
    async def by_conn(self, conn) -> None:  # type: ignore[no-untyped-def]
        """Unannotated."""
        await self.echo(conn)

    @websocket("/after/<room>")
    async def after_the_path(self, room, whatever) -> None:  # type: ignore[no-untyped-def]
        """The first that is nothing else."""
        await self.echo(whatever)

    @websocket("/annotated")
    async def annotated(self, lang: str, socket: WebSocket) -> None:
        """Found by its annotation."""
        await self.echo(socket)

    @websocket("/typed")
    async def typed(self, this: WebSocket[Any, str]) -> None:
        """Found by its annotation with types."""
        await self.echo(this)

    @websocket("/this")
    async def another_self(this, ws: WebSocket) -> None:
        """The object is the first parameter, whatever that is called."""
        await this.echo(ws)

    async def echo(self, socket: WebSocket) -> None:
        """Say what was said."""
        assert isinstance(self, Names)
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)


@pytest.mark.parametrize("name", ["ws", "websocket", "conn", "after/7", "annotated", "typed", "this"])
async def test_the_websocket_is_found_whatever_its_parameter_is_called(name: str) -> None:
    assert (await talk(app_of(Names), f"/echo/{name}", "hello", query="lang=en")).texts == ["hello"]


async def test_a_method_that_returns_before_it_accepts_refuses() -> None:
    @controller("/")
    class Returns:
        @websocket("/early")
        async def early(self, ws: WebSocket) -> None:
            pass

        @websocket("/late")
        async def late(self, ws: WebSocket) -> None:
            await ws.accept()

    app = app_of(Returns)
    assert (await talk(app, "/early")).status == 403
    assert (await talk(app, "/late")).closed == (1000, "")


async def test_a_disconnect_that_escapes_is_a_normal_end_and_anything_else_is_logged_once_with_the_route(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @controller("/rooms")
    class Rooms:
        @websocket("/<room>")
        async def room(self, ws: WebSocket, room: str) -> None:
            await ws.accept()
            while True:
                if await ws.receive_text() == "fail":
                    raise LookupError("the text of the exception")

    app = app_of(Rooms)
    with caplog.at_level(logging.INFO):
        assert (await talk(app, "/rooms/1", "go on")).types == ["websocket.accept"]
        assert caplog.records == []
        client = await talk(app, "/rooms/1", "fail", raises=LookupError)
    assert client.closed == (1011, "internal error")
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert re.search(
        r"websocket /rooms/<room> \(test_controllers\..*Rooms\.room, tests/test_controllers\.py:\d+\)",
        record.getMessage(),
    )


async def test_a_disconnect_in_a_task_group_of_a_method_is_a_normal_end(caplog: pytest.LogCaptureFixture) -> None:
    # T40
    @controller("/")
    class Grouped:
        @websocket("/")
        async def both(self, ws: WebSocket) -> None:
            await ws.accept()
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                await ws.receive_text()

    client = await talk(app_of(Grouped), "/", ending=(4001, "bye"))
    assert client.closed is None
    assert caplog.records == []


async def test_a_method_that_is_decorated_keeps_its_route() -> None:
    def logged(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        @functools.wraps(method)
        async def wrapper(*args: Any, **kwargs: Any) -> None:
            log.append(sorted(kwargs))
            await method(*args, **kwargs)

        return wrapper

    log: Log = []

    @controller("/")
    class Decorated:
        @websocket("/below/<n:int>")
        @logged
        async def below(self, ws: WebSocket, n: int) -> None:
            await ws.accept()
            await ws.send_text(str(n + 1))

        @logged
        @websocket("/above/<n:int>")
        async def above(self, ws: WebSocket, n: int) -> None:
            await ws.accept()
            await ws.send_text(str(n + 2))

    app = app_of(Decorated)
    assert (await talk(app, "/below/1")).texts == ["2"]
    assert (await talk(app, "/above/1")).texts == ["3"]
    assert log == [["n", "self", "ws"]] * 2


# Streams


async def test_what_a_generator_method_yields_is_sent() -> None:
    @controller("/ticks")
    class Ticks:
        def __init__(self, start: int = 1) -> None:
            self.start = start

        @websocket("/<symbol>")
        async def ticks(self, symbol: str, count: int = 2) -> AsyncIterator[Any]:
            for at in range(self.start, self.start + count):
                yield f"{symbol} {at}"
            yield Said(symbol, "end")
            yield b"bytes"

    client = await talk(app_of(Ticks), "/ticks/abc", query="start=5")
    # The client of this test leaves as soon as it is read from, and a stream reads at once.
    assert client.types[0] == "websocket.accept"
    server = FakeServer(path="/ticks/abc", query="start=5&count=1")
    with anyio.fail_after(DEADLINE):
        await app_of(Ticks)(server.scope, server.receive, server.send)
    assert server.texts == ["abc 5", '{"type":"said","user":"abc","text":"end"}']
    assert server.sent[-2].get("bytes") == b"bytes"
    assert server.closed == (1000, "")


async def test_a_generator_method_is_closed_when_the_client_leaves() -> None:
    # T39
    log: Log = []

    @controller("/")
    class Endless:
        @websocket("/")
        async def stream(self) -> AsyncIterator[str]:
            try:
                while True:
                    yield "tick"
                    await anyio.lowlevel.checkpoint()
            finally:
                await anyio.lowlevel.checkpoint()
                log.append("closed")

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app_of(Endless), server.scope, server.receive, server.send)
            await server.until(lambda server: len(server.texts) > 2)
            server.leave()
    assert log == ["closed"]


async def test_a_generator_method_that_takes_the_websocket_reads_from_it() -> None:
    @controller("/")
    class Both:
        @websocket("/")
        async def both(self, ws: WebSocket) -> AsyncIterator[str]:
            async for text in ws.iter_text():
                yield text.upper()

    assert (await talk(app_of(Both), "/", "a", "b")).texts == ["A", "B"]


# HTTP


class Note(msgspec.Struct):
    """A body."""

    text: str


@controller("/notes")
class Notes:
    """Requests and WebSockets at one prefix."""

    made: int = 0

    def __init__(self, connection: Connection, trace: Annotated[str, Header()] = "none") -> None:
        type(self).made += 1
        self.path = connection.scope["path"]
        self.trace = trace

    @get("/<n:int>")
    async def read(self, n: int) -> dict[str, Any]:
        """GET and HEAD."""
        return {"n": n, "path": self.path, "trace": self.trace}

    @post("/<n:int>")
    async def write(self, asked: Request, n: int, note: Note) -> dict[str, Any]:
        """POST with a body."""
        return {"n": n, "text": note.text, "method": asked.method}

    @route("/<n:int>", methods=["PUT", "delete"])
    async def other(self, request, n: int) -> str:  # type: ignore[no-untyped-def]
        """The request in the first parameter of which nothing is known."""
        return f"{request.method} {n}"

    @websocket("/<n:int>")
    async def watch(self, ws: WebSocket, n: int) -> None:
        """The same path, as a WebSocket."""
        await ws.accept()
        await ws.send_text(f"{n} {self.path}")

    def on_disconnect(self) -> None:
        """For WebSockets alone."""
        type(self).made += 1000


async def test_a_controller_answers_requests_with_an_object_for_each() -> None:
    app = app_of(Notes)
    Notes.made = 0
    answer = await request(app, "GET", "/notes/1", headers={"trace": "abc"})
    assert json.loads(answer.body) == {"n": 1, "path": "/notes/1", "trace": "abc"}
    answer = await request(app, "POST", "/notes/2", body=b'{"text": "hi"}')
    assert json.loads(answer.body) == {"n": 2, "text": "hi", "method": "POST"}
    assert (await request(app, "PUT", "/notes/3")).body == b"PUT 3"
    assert (await request(app, "DELETE", "/notes/3")).body == b"DELETE 3"
    assert (await request(app, "HEAD", "/notes/1")).status == 200
    assert Notes.made == 5
    assert (await talk(app, "/notes/4")).texts == ["4 /notes/4"]
    assert Notes.made == 1006


async def test_requests_of_a_controller_are_refused_as_others() -> None:
    app = app_of(Notes)
    wrong = await request(app, "PATCH", "/notes/1")
    assert (wrong.status, wrong.header("allow")) == (405, "DELETE, GET, HEAD, POST, PUT")
    invalid = await request(app, "POST", "/notes/1", body=b'{"text": 1}')
    assert invalid.status == 422
    assert json.loads(invalid.body)["detail"][0]["loc"][0] == "body"
    assert (await request(app, "GET", "/notes/x")).status == 404


async def test_the_errors_of_a_request_keep_their_meaning(caplog: pytest.LogCaptureFixture) -> None:
    @controller("/")
    class Fails:
        @get("/<how>")
        async def fail(self, how: str) -> None:
            raise HTTPException(409, "taken") if how == "taken" else LookupError(how)

        async def on_disconnect(self) -> None:
            raise AssertionError("a request has no end of its own")

    app = app_of(Fails)
    answer = await request(app, "GET", "/taken")
    assert (answer.status, json.loads(answer.body)) == (409, {"detail": "taken"})
    assert (await request(app, "GET", "/lost", raises=LookupError)).status == 500
    [record] = caplog.records
    assert "GET /<how> (test_controllers." in record.getMessage()


# Paths and names


@controller("/rooms/<room>")
class Rooms:
    """Parameters in the prefix."""

    def __init__(self, room: str, user: str = "nobody") -> None:
        self.told = f"{user} in {room}"

    @websocket("/seats/<seat:int>")
    async def seat(self, ws: WebSocket, seat: int, room: str) -> None:
        """Both of the path's parameters."""
        await ws.accept()
        await ws.send_text(f"{self.told}: {room} {seat + 1}")

    @websocket("", name="lobby")
    async def whole(self, ws: WebSocket) -> None:
        """The prefix itself."""
        await ws.accept()
        await ws.send_text(self.told)


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/rooms/42/seats/7", ["ann in 42: 42 8"]),
        ("/rooms/42", ["ann in 42"]),
    ],
)
async def test_a_prefix_has_parameters(path: str, texts: list[str]) -> None:
    assert (await talk(app_of(Rooms), path, query="user=ann")).texts == texts


def test_the_routes_of_a_controller_have_names() -> None:
    app = App()
    app.include(Rooms, prefix="/api")
    assert app.url_path_for("seat", room="a b", seat=3) == "/api/rooms/a%20b/seats/3"
    assert app.url_path_for("lobby", room="1") == "/api/rooms/1"
    with pytest.raises(RouteError, match="no route is named 'whole'"):
        app.url_path_for("whole", room="1")


def test_a_controller_of_hooks_alone_is_named_as_its_class() -> None:
    @controller("/lobby/<room>")
    class Lobby:
        async def on_message(self, message: str) -> str:
            return message

    assert app_of(Lobby).url_path_for("Lobby", room="1") == "/lobby/1"


async def test_a_method_has_several_routes() -> None:
    @controller("/many")
    class Many:
        @websocket("/one", name="one")
        @websocket("/two", name="two")
        async def socket(self, ws: WebSocket, n: int = 5) -> None:
            await ws.accept()
            await ws.send_text(f"{ws.url.path} {n}")

        @get("/three")
        @post("/three")
        @get("/four")
        async def answer(self, request: Request) -> str:
            return f"{request.method} {request.url.path}"

    app = app_of(Many)
    assert (await talk(app, "/many/one", query="n=1")).texts == ["/many/one 1"]
    assert (await talk(app, "/many/two")).texts == ["/many/two 5"]
    assert (await request(app, "GET", "/many/three")).body == b"GET /many/three"
    assert (await request(app, "POST", "/many/three")).body == b"POST /many/three"
    assert (await request(app, "GET", "/many/four")).body == b"GET /many/four"
    assert [app.url_path_for(name) for name in ("one", "two")] == ["/many/one", "/many/two"]


@pytest.mark.parametrize("prefix", ["/", ""])
async def test_a_controller_at_the_root(prefix: str) -> None:
    @controller(prefix)
    class Root:
        @websocket("/")
        async def root(self, ws: WebSocket) -> None:
            await ws.accept()
            await ws.send_text("root")

        @websocket("/below")
        async def below(self, ws: WebSocket) -> None:
            await ws.accept()
            await ws.send_text("below")

    app = app_of(Root)
    assert (await talk(app, "/")).texts == ["root"]
    assert (await talk(app, "/below")).texts == ["below"]


@pytest.mark.parametrize(("given", "paths"), [("/", ["/"]), ("", ["/"]), ("/chat", ["/chat"])])
def test_the_path_of_a_controller_of_hooks_alone_is_its_prefix(given: str, paths: list[str]) -> None:
    @controller(given)
    class Chat:
        async def on_message(self, message: str) -> str:
            return message

    assert [one.path for one in app_of(Chat).routes] == paths


async def test_a_controller_of_hooks_alone_without_a_prefix_stands_at_that_of_the_include() -> None:
    @controller()
    class Chat:
        async def on_message(self, message: str) -> str:
            return message

    app = App()
    app.include(Chat, prefix="/chat")
    assert (await talk(app, "/chat", "hello")).texts == ["hello"]


async def test_converters_of_the_app_serve_its_controllers() -> None:
    class Even(Converter[int]):
        produces = int

        def convert(self, value: str) -> int:
            if int(value) % 2:
                raise ValueError("odd")
            return int(value)

    @controller("/n/<n:even>")
    class Numbers:
        @websocket("/half")
        async def half(self, ws: WebSocket, n: int) -> None:
            await ws.accept()
            await ws.send_text(str(n // 2))

    app = app_of(Numbers, converters={"even": Even()})
    assert (await talk(app, "/n/8/half")).texts == ["4"]
    assert (await talk(app, "/n/7/half")).status == 404


# Inheritance


class Base:
    """Handlers to be inherited; it is no controller itself."""

    greeting = "base"

    def __init__(self, name: str = "nobody") -> None:
        self.name = name

    @websocket("/greet")
    async def greet(self, ws: WebSocket) -> None:
        """Tells who it is."""
        await ws.accept()
        await ws.send_text(f"{self.greeting} {self.name}")

    @websocket("/over", name="over")
    async def over(self, ws: WebSocket) -> None:
        """To be overridden."""
        await ws.accept()
        await ws.send_text("of the base")


class Timed:
    """A mixin."""

    @get("/time")
    async def time(self) -> str:
        """The time."""
        return "12:00"


async def test_handlers_are_inherited() -> None:
    @controller("/derived")
    class Derived(Timed, Base):
        greeting = "derived"

        async def over(self, ws: WebSocket, lang: str = "en") -> None:
            await super().over(ws)
            await ws.send_text(f"of the subclass, in {lang}")

    app = app_of(Derived)
    assert (await talk(app, "/derived/greet", query="name=ann")).texts == ["derived ann"]
    assert (await talk(app, "/derived/over", query="lang=fr")).texts == ["of the base", "of the subclass, in fr"]
    assert (await request(app, "GET", "/derived/time")).body == b"12:00"
    assert app.url_path_for("over") == "/derived/over"


async def test_a_method_that_overrides_with_a_route_of_its_own_has_that_alone() -> None:
    @controller("/derived")
    class Derived(Base):
        @websocket("/other")
        async def over(self, ws: WebSocket) -> None:
            await ws.accept()
            await ws.send_text("here")

    app = app_of(Derived)
    assert (await talk(app, "/derived/other")).texts == ["here"]
    assert (await talk(app, "/derived/over")).status == 404


async def test_two_subclasses_of_one_base_are_apart() -> None:
    @controller("/one")
    class One(Base):
        greeting = "one"

        @websocket("/own")
        async def own(self, ws: WebSocket) -> None:
            await ws.accept()

    @controller("/two")
    class Two(Base):
        greeting = "two"

    app = app_of(One, Two)
    assert (await talk(app, "/one/greet")).texts == ["one nobody"]
    assert (await talk(app, "/two/greet")).texts == ["two nobody"]
    assert (await talk(app, "/one/own")).status == 101
    assert (await talk(app, "/two/own")).status == 404


async def test_a_controller_below_a_controller_has_its_own_prefix_and_scope() -> None:
    made: Log = []

    @controller("/parent", scope="singleton")
    class Parent:
        def __init__(self) -> None:
            made.append(type(self).__name__)

        @websocket("/")
        async def who(self, ws: WebSocket) -> None:
            await ws.accept()
            await ws.send_text(type(self).__name__)

    @controller("/child")
    class Child(Parent):
        pass

    app = app_of(Parent, Child)
    for _ in range(2):
        assert (await talk(app, "/parent/")).texts == ["Parent"]
        assert (await talk(app, "/child/")).texts == ["Child"]
    assert sorted(made) == ["Child", "Child", "Parent"]


def test_the_subclass_of_a_controller_says_itself_that_it_is_one() -> None:
    class Child(Rooms):
        pass

    with pytest.raises(RouteError, match=r"Child.*Put @controller"):
        App().include(Child)


# Include


async def test_controllers_are_included_into_a_router_and_with_that_into_an_app() -> None:
    router = Router(prefix="/api")
    router.include(Rooms, Names, prefix="/v1")
    app = App()
    app.include(router, prefix="/all")
    assert (await talk(app, "/all/api/v1/rooms/7", query="user=ann")).texts == ["ann in 7"]
    assert (await talk(app, "/all/api/v1/echo/ws", "hello")).texts == ["hello"]
    assert app.url_path_for("lobby", room="7") == "/all/api/v1/rooms/7"


async def test_a_controller_is_included_twice() -> None:
    log: Log = []
    app = App()
    app.include(Names, prefix="/one", dependencies=[noting(log, "one")])
    app.include(Names, prefix="/two", dependencies=[noting(log, "two")])
    assert (await talk(app, "/one/echo/ws", "hello")).texts == ["hello"]
    assert log == ["one", "-one"]
    assert (await talk(app, "/two/echo/ws", "hello")).texts == ["hello"]
    assert log == ["one", "-one", "two", "-two"]
    assert app.url_path_for("by_ws") == "/one/echo/ws"


def test_a_controller_that_is_included_twice_at_one_path_is_refused() -> None:
    app = app_of(Rooms)
    with pytest.raises(RouteError, match=r"'/rooms/<room>.*' can never be told apart from .*test_controllers\.py:\d+"):
        app.include(Rooms)


async def test_two_apps_have_the_same_controller() -> None:
    one, two = app_of(Names), app_of(Names)
    assert (await talk(one, "/echo/ws", "1")).texts == ["1"]
    assert (await talk(two, "/echo/ws", "2")).texts == ["2"]


async def test_controllers_and_routers_are_included_in_one_call() -> None:
    router = Router(prefix="/plain")

    @router.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("router")

    app = App()
    app.include(Names, router, Rooms, prefix="/x")
    assert (await talk(app, "/x/plain/")).texts == ["router"]
    assert (await talk(app, "/x/echo/conn", "c")).texts == ["c"]
    assert (await talk(app, "/x/rooms/1")).texts == ["nobody in 1"]


async def test_a_controller_below_a_mount() -> None:
    outer = App()
    outer.mount("/inner/<tenant>", app_of(Rooms))
    assert (await talk(outer, "/inner/a/rooms/1")).texts == ["nobody in 1"]


# What runs before


async def test_dependencies_run_from_the_app_to_the_method() -> None:
    log: Log = []

    @controller("/c", dependencies=[noting(log, "controller")])
    class Chained:
        def __init__(self, own: Annotated[str, noting(log, "constructor")]) -> None:
            log.append("object")

        @websocket("/<n:int>", dependencies=[noting(log, "route")])
        async def method(self, ws: WebSocket, n: int, own: Annotated[str, noting(log, "method")]) -> None:
            await ws.accept()
            log.append("handler")

    router = Router(prefix="/r", dependencies=[noting(log, "router")])
    router.include(Chained, dependencies=[noting(log, "include")])
    app = App(dependencies=[noting(log, "app")])
    app.include(router, dependencies=[noting(log, "include of the router")])
    await talk(app, "/r/c/1")
    before = [
        "app", "router", "controller", "route", "include", "include of the router", "constructor",
    ]  # fmt: skip
    assert log[: log.index("handler") + 1] == [*before, "object", "method", "handler"]
    assert log[log.index("handler") + 1 :] == ["-method", *(f"-{name}" for name in reversed(before))]


@pytest.mark.parametrize("where", ["app", "controller", "route", "include"])
async def test_a_dependency_that_refuses_lets_no_object_be_made(where: str) -> None:
    # T29
    def refuse() -> None:
        raise HTTPException(401, headers={"www-authenticate": "Bearer"})

    def dependencies(here: str) -> list[Any]:
        return [Depends(refuse)] if here == where else []

    made: Log = []

    @controller("/", dependencies=dependencies("controller"))
    class Guarded:
        def __init__(self) -> None:
            made.append(self)

        @websocket("/", dependencies=dependencies("route"))
        async def method(self, ws: WebSocket) -> None:
            made.append("handler")

        @get("/http", dependencies=dependencies("route"))
        async def http(self) -> None:
            made.append("handler")

        def on_disconnect(self) -> None:
            made.append("farewell")

    app = App(dependencies=dependencies("app"))
    app.include(Guarded, dependencies=dependencies("include"))
    client = await talk(app, "/")
    assert (client.status, client.body) == (401, b'{"detail":"Unauthorized"}')
    assert (await request(app, "GET", "/http")).status == 401
    assert made == []


async def test_one_value_of_a_dependency_serves_the_whole_connection() -> None:
    asked: Log = []

    def user(name: str) -> str:
        asked.append(name)
        return name.upper()

    @controller("/", dependencies=[Depends(user)])
    class Cached:
        def __init__(self, user: Annotated[str, Depends(user)]) -> None:
            self.user = user

        @websocket("/")
        async def method(self, ws: WebSocket, user: Annotated[str, Depends(user)]) -> None:
            await ws.accept()
            await ws.send_text(self.user + user)

    assert (await talk(app_of(Cached), "/", query="name=ann")).texts == ["ANNANN"]
    assert asked == ["ann"]


# The object


class Service:
    """What a controller works with."""

    def greet(self, name: str) -> str:
        """A greeting."""
        return f"hello {name}"


@component
class Greeter(Service):
    """The component."""


def test_a_component_is_one_for_the_app() -> None:
    assert issubclass(Greeter, Service)


async def test_a_constructor_gets_components_dependencies_and_parameters() -> None:
    def shout(loud: bool = False) -> Callable[[str], str]:
        return str.upper if loud else str.lower

    @controller("/<room>")
    class Injected:
        def __init__(
            self,
            greeter: Greeter,
            voice: Annotated[Callable[[str], str], Depends(shout)],
            room: Annotated[str, Path(min_length=2)],
            app: App,
            socket: WebSocket,
            count: Annotated[int, Query(ge=1)] = 1,
            trace: Annotated[str, Header(alias="x-trace")] = "none",
        ) -> None:
            self.text = voice(f"{greeter.greet(room)} {count} {trace} {app is socket.app}")

        @websocket("/")
        async def method(self, ws: WebSocket) -> None:
            await ws.accept()
            await ws.send_text(self.text)

    app = app_of(Injected)
    client = await talk(app, "/blue/", query="loud=1&count=3", headers={"x-trace": "t1"})
    assert client.texts == ["HELLO BLUE 3 T1 TRUE"]


async def test_all_that_does_not_validate_is_told_at_once() -> None:
    made: Log = []

    def limit(limit: int) -> int:
        return limit

    @controller("/")
    class Strict:
        def __init__(self, count: Annotated[int, Query(ge=1)], limit: Annotated[int, Depends(limit)]) -> None:
            made.append(self)

        @websocket("/")
        async def method(self, ws: WebSocket, page: int) -> None:
            made.append("handler")

        @get("/http")
        async def http(self, page: int) -> None:
            made.append("handler")

        def on_disconnect(self) -> None:
            made.append("farewell")

    app = app_of(Strict)
    client = await talk(app, "/", query="count=0&limit=x")
    assert (client.status, client.closed and client.closed[0]) == (403, 1008)
    reason = client.closed[1] if client.closed else ""
    assert all(f"query {name!r}: " in reason for name in ("count", "limit"))
    answer = await request(app, "GET", "/http", query="count=0&limit=x")
    assert answer.status == 422
    assert sorted(one["loc"][1] for one in json.loads(answer.body)["detail"]) == ["count", "limit", "page"]
    assert made == []


async def test_a_constructor_that_fails_ends_the_connection_and_there_is_no_farewell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    farewells: Log = []

    @controller("/")
    class Fails:
        def __init__(self, how: str) -> None:
            raise HTTPException(409, "taken") if how == "http" else LookupError(how)

        @websocket("/")
        async def method(self, ws: WebSocket) -> None:
            farewells.append("handler")

        def on_disconnect(self) -> None:
            farewells.append("farewell")

    app = app_of(Fails)
    client = await talk(app, "/", query="how=http")
    assert (client.status, client.body) == (409, b'{"detail":"taken"}')
    assert caplog.records == []
    assert (await talk(app, "/", query="how=any", raises=LookupError)).status == 500
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert farewells == []


@dataclasses.dataclass
class AsDataclass:
    """A class whose constructor is written by a decorator."""

    greeter: Greeter
    name: str = "nobody"

    async def on_message(self, message: str) -> str:
        """The reply."""
        return f"{self.greeter.greet(self.name)}: {message}"


class AsStruct(msgspec.Struct):
    """A class whose constructor is written by its metaclass."""

    greeter: Greeter
    name: str = "nobody"

    async def on_message(self, message: str) -> str:
        """The reply."""
        return f"{self.greeter.greet(self.name)}: {message}"


@pytest.mark.parametrize("cls", [AsDataclass, AsStruct])
async def test_a_dataclass_or_a_struct_is_a_controller(cls: Ctl) -> None:
    app = app_of(controller("/data")(cls))
    assert (await talk(app, "/data", "hi", query="name=ann")).texts == ["hello ann: hi"]


class Live(FakeServer):
    """A connection that is served while its client is played."""

    async def served_by(self, app: App) -> None:
        """Serve it to its end."""
        await app(self.scope, self.receive, self.send)

    async def heard(self, count: int) -> None:
        """Wait until so many texts have come."""
        await self.until(lambda server: len(server.texts) >= count)

    async def ask(self, message: str) -> str:
        """Say something and wait for the answer."""
        count = len(self.texts) + 1
        self.say(message)
        await self.heard(count)
        return self.texts[-1]


@contextlib.asynccontextmanager
async def serving(app: App, *connections: Live) -> AsyncIterator[None]:
    """Serve these connections at the same time; those that are open at the end are left."""
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for one in connections:
                group.start_soon(one.served_by, app)
            yield
            for one in connections:
                if not one._gone:
                    one.leave()


@pytest.mark.parametrize("ending", ["returns", "raises", "leaves"])
async def test_each_connection_has_an_object_which_is_released_when_it_ends(ending: str) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @controller("/")
    class Own:
        def __init__(self) -> None:
            alive.add(self)
            self.count = 0

        @websocket("/")
        async def method(self, ws: WebSocket) -> None:
            await ws.accept()
            async for text in ws.iter_text():
                self.count += 1
                await ws.send_text(str(self.count))
                if text == "returns":
                    return
                if text == "raises":
                    raise WebSocketException(4000)

        def on_disconnect(self) -> None:
            pass

    def living() -> int:
        gc.collect()
        return len(alive)

    one, two = Live(), Live()
    async with serving(app_of(Own), one, two):
        assert [await one.ask("x"), await one.ask("x"), await two.ask("x")] == ["1", "2", "1"]
        assert living() == 2
        one.leave() if ending == "leaves" else await one.ask(ending)
        await soon(lambda: living() == 1)
        assert await two.ask("x") == "2"
    assert living() == 0


@pytest.mark.parametrize("hook", [True, False], ids=["on_disconnect", "no hook"])
@pytest.mark.parametrize("ending", ["the loop ends", "a disconnect escapes", "refused"])
async def test_an_object_is_released_without_the_garbage_collector(ending: str, hook: bool) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Own:
        def __init__(self) -> None:
            alive.add(self)

        @websocket("/")
        async def method(self, ws: WebSocket) -> None:
            if ending == "refused":
                raise HTTPException(401)
            await ws.accept()
            if ending == "the loop ends":
                async for _ in ws.iter_text():
                    assert len(alive) == 1
                return
            while True:
                await ws.receive_text()

    class Hooked(Own):
        def on_disconnect(self) -> None:
            pass

    app = app_of(controller("/")(Hooked if hook else Own))
    gc.collect()
    gc.disable()
    try:
        await talk(app, "/", "hello")
        assert len(alive) == 0
    finally:
        gc.enable()


async def test_a_singleton_is_one_object_for_all_connections() -> None:
    made: Log = []

    @controller("/count", scope="singleton")
    class Count:
        def __init__(self, greeter: Greeter, step: int = 1) -> None:
            made.append(self)
            self.greeter = greeter
            self.count = 0
            self.step = step

        @websocket("/<name>")
        async def method(self, ws: WebSocket, name: str) -> None:
            self.count += self.step
            await ws.accept()
            await ws.send_text(f"{self.greeter.greet(name)} {self.count}")

        @get("/http")
        async def http(self) -> int:
            return self.count

        def on_disconnect(self, ws: WebSocket) -> None:
            self.count += 10

    app = app_of(Count)
    assert made == []
    assert (await talk(app, "/count/ann", query="step=100")).texts == ["hello ann 1"]
    assert (await talk(app, "/count/bob")).texts == ["hello bob 12"]
    assert (await request(app, "GET", "/count/http")).body == b"22"
    assert len(made) == 1
    app.include(Count, prefix="/again")
    assert (await request(app, "GET", "/again/count/http")).body == b"22"
    assert len(made) == 1
    assert (await talk(app_of(Count), "/count/eve")).texts == ["hello eve 1"]
    assert len(made) == 2


async def test_overrides_reach_controllers() -> None:
    def user(name: str = "real") -> str:
        return name

    @controller("/", dependencies=[Depends(user)])
    class Overridden:
        def __init__(self, greeter: Greeter, user: Annotated[str, Depends(user)]) -> None:
            self.text = greeter.greet(user)

        @websocket("/")
        async def method(self, ws: WebSocket) -> None:
            await ws.accept()
            await ws.send_text(self.text)

    class Fake:
        def greet(self, name: str) -> str:
            return f"fake {name}"

    app = app_of(Overridden)
    app.dependency_overrides |= {user: lambda: "tester", Greeter: Fake}
    assert (await talk(app, "/")).texts == ["fake tester"]
    app.dependency_overrides.clear()
    assert (await talk(app, "/")).texts == ["hello real"]


# Scenarios


async def test_a_chat_controller_with_an_injected_service() -> None:
    @component
    class Members:
        def __init__(self) -> None:
            self.of: dict[str, set[WebSocket]] = {}

        async def tell(self, room: str, said: Said) -> None:
            for ws in self.of.get(room, set()):
                await ws.send_json(said)

    @controller("/rooms", scope="websocket")
    class Chat:
        def __init__(self, members: Members) -> None:
            self.members = members
            self.room = ""

        @websocket("/<room>")
        async def room_of(self, ws: WebSocket[Say, Said], room: str, user: str) -> None:
            await ws.accept()
            self.room = room
            self.members.of.setdefault(room, set()).add(ws)
            await ws.send_json(Said("room", f"welcome {user}"))
            async for message in ws:
                await self.members.tell(room, Said(user, message.text))

        async def on_disconnect(self, ws: WebSocket) -> None:
            members = self.members.of[self.room]
            members.discard(ws)
            for other in members:
                await other.send_json(Said("room", "one left"))

    app = app_of(Chat)
    ann, bob = (Live(path="/rooms/1", query=f"user={name}") for name in ("ann", "bob"))
    eve = Live(path="/rooms/2", query="user=eve")
    async with serving(app, ann, bob, eve):
        for one in (ann, bob, eve):
            await one.until(lambda server: server.texts)
        ann.say('{"type": "say", "text": "hi"}')
        for one in (ann, bob):
            await one.until(lambda server: len(server.texts) == 2)
            assert json.loads(one.texts[1]) == {"type": "said", "user": "ann", "text": "hi"}
        ann.leave()
        await bob.until(lambda server: len(server.texts) == 3)
        assert json.loads(bob.texts[2])["text"] == "one left"
        assert len(eve.texts) == 1


async def test_a_connection_manager_as_a_component() -> None:
    @component
    class Manager:
        def __init__(self) -> None:
            self.active: list[WebSocket] = []

        async def connect(self, ws: WebSocket) -> None:
            await ws.accept()
            self.active.append(ws)

        def disconnect(self, ws: WebSocket) -> None:
            self.active.remove(ws)

        async def broadcast(self, text: str) -> None:
            for ws in self.active:
                await ws.send_text(text)

    managers: set[Manager] = set()

    @controller("/ws")
    class Sockets:
        def __init__(self, manager: Manager) -> None:
            self.manager = manager
            managers.add(manager)

        @websocket("/<client:int>")
        async def serve(self, ws: WebSocket, client: int) -> None:
            await self.manager.connect(ws)
            try:
                while True:
                    await self.manager.broadcast(f"{client}: {await ws.receive_text()}")
            except WebSocketDisconnect:
                self.manager.disconnect(ws)
                await self.manager.broadcast(f"{client} left")

    one, two = Live(path="/ws/1"), Live(path="/ws/2")
    async with serving(app_of(Sockets), one, two):
        await soon(lambda: managers and len(next(iter(managers)).active) == 2)
        one.say("hello")
        await two.until(lambda server: server.texts == ["1: hello"])
        one.leave()
        await two.until(lambda server: server.texts == ["1: hello", "1 left"])
    [manager] = managers
    assert manager.active == []


async def test_room_and_user_id_from_the_query_string() -> None:
    @controller("/ws", scope="websocket")
    class Session:
        @websocket("/")
        async def serve(
            self, websocket: WebSocket, room: str, user_id: int, tag: Annotated[list[str], Query()]
        ) -> None:
            await websocket.accept()
            await websocket.send_json([room, user_id, tag])

    app = app_of(Session)
    client = await talk(app, "/ws/", query="room=blue%20room&user_id=7&tag=a&tag=b")
    assert client.frames == [["blue room", 7, ["a", "b"]]]
    wrong = await talk(app, "/ws/", query="room=1&user_id=seven&tag=a")
    assert wrong.closed is not None
    assert wrong.closed[0] == 1008
    assert "query 'user_id'" in wrong.closed[1]
    assert "seven" not in wrong.closed[1]


# S23
async def test_two_hundred_interleaved_connections_have_an_object_each() -> None:
    count, rounds = 200, 3
    seen: set[int] = set()

    @controller("/")
    class Mine:
        def __init__(self, name: str) -> None:
            self.name = name
            self.heard: list[str] = []
            seen.add(id(self))

        async def on_connect(self, ws: WebSocket) -> None:
            await anyio.lowlevel.checkpoint()
            await ws.accept()

        async def on_message(self, ws: WebSocket, message: str) -> str:
            self.heard.append(message)
            await anyio.lowlevel.checkpoint()
            assert ws.query_params["name"] == self.name
            return f"{self.name}: {' '.join(self.heard)}"

        async def on_disconnect(self, ws: WebSocket, reason: str) -> None:
            await anyio.lowlevel.checkpoint()
            farewells.append((self.name, reason, len(self.heard)))

    farewells: list[tuple[str, str, int]] = []
    clients = [Live(query=f"name={n}") for n in range(count)]
    async with serving(app_of(Mine), *clients):
        for at in range(rounds):
            for n, client in enumerate(clients):
                client.say(f"{n}.{at}")
            for client in clients:
                await client.heard(at + 1)
        assert len(seen) == count
        for n, client in enumerate(clients):
            client.leave(4000, f"reason {n}")
    for n, client in enumerate(clients):
        said = [f"{n}.{at}" for at in range(rounds)]
        assert client.texts == [f"{n}: {' '.join(said[: at + 1])}" for at in range(rounds)]
    assert sorted(farewells) == sorted((str(n), f"reason {n}", rounds) for n in range(count))


# What is refused


def refused(cls: Any) -> str:
    """What is said of a controller that cannot work, which names its place."""
    with pytest.raises((SignatureError, RouteError)) as caught:
        app_of(cls)
    text = str(caught.value)
    assert re.search(r"tests/test_controllers\.py:\d+", text), f"no place is named: {text}"
    return text


def test_a_controller_without_parentheses_is_refused() -> None:
    with pytest.raises(SignatureError) as caught:

        @controller  # type: ignore[arg-type]
        class Forgot:
            pass

    assert "Forgot" in str(caught.value)
    assert "@controller('/path')" in str(caught.value)


def test_a_route_without_parentheses_is_refused() -> None:
    for decorator in (websocket, get, post, route):
        with pytest.raises(RouteError, match=r"(?s)serve.*\('/path'\)"):

            @decorator  # type: ignore[arg-type]
            async def serve(self: Any, ws: WebSocket) -> None:
                pass


def test_the_error_of_a_route_without_parentheses_names_its_decorator() -> None:
    with pytest.raises(RouteError, match=r"@get\('/path'\)"):

        @get  # type: ignore[arg-type]
        async def serve(self: Any) -> None:
            pass


def test_a_controller_above_a_function_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"@controller stands above a class, got .*handler.*@app\.websocket"):

        @controller("/path")  # type: ignore[type-var]
        async def handler(ws: WebSocket) -> None:
            pass


@pytest.mark.parametrize(
    ("scope", "hint"),
    [
        ("websockets", "Did you mean 'websocket'?"),
        ("connection", ""),
        ("singelton", "Did you mean 'singleton'?"),
        (None, ""),
    ],
)
def test_an_unknown_scope_is_refused(scope: Any, hint: str) -> None:
    with pytest.raises(SignatureError) as caught:
        controller("/path", scope=scope)
    assert repr(scope) in str(caught.value)
    assert "Known: 'websocket', 'singleton'." in str(caught.value)
    assert hint in str(caught.value)


NO_LIST = {"no list": Depends(noting), "function": [noting], "neither": noting}


@pytest.mark.parametrize("where", ["class", "method", "both"])
@pytest.mark.parametrize("name", NO_LIST)
def test_dependencies_that_are_no_list_of_depends_are_refused(name: str, where: str) -> None:
    above: Any = NO_LIST[name] if where != "method" else ()
    below: Any = NO_LIST[name] if where != "class" else ()

    def register() -> None:
        @controller("/path", dependencies=above)
        class Wrong:
            @websocket("/", dependencies=below)
            async def method(self, ws: WebSocket) -> None:
                pass

        app_of(Wrong)

    with pytest.raises(SignatureError, match=r"takes a list of Depends\(\.\.\.\), got .*Write \[Depends\(function\)\]"):
        register()


class Undecorated:
    """A class with handlers that is no controller."""

    @websocket("/")
    async def method(self, ws: WebSocket) -> None:
        """A handler."""


async def function(ws: WebSocket) -> None:
    """A handler."""


@pytest.mark.parametrize("what", [Undecorated, function], ids=["class", "function"])
def test_an_include_of_what_is_no_controller_names_its_place(what: Any) -> None:
    text = refused(what)
    assert "include() takes controllers and routers" in text
    assert what.__name__ in text
    assert "Put @controller('/path') above the class, or register a function with @app.websocket('/path')" in text


@pytest.mark.parametrize("what", [None, "tests.scanned", App, Rooms], ids=repr)
def test_an_include_of_anything_else_is_refused(what: Any) -> None:
    what = what() if what is App else what("1") if what is Rooms else what
    with pytest.raises(RouteError, match=r"takes (controllers and routers|a Router), got"):
        App().include(what)


def test_an_include_of_an_object_of_a_controller_says_to_pass_the_class() -> None:
    with pytest.raises(RouteError, match="class"):
        App().include(Names())
    with pytest.raises(RouteError) as caught:
        App().include(Names())
    assert "Put @controller" not in str(caught.value), "it stands there already"


def test_a_class_with_nothing_to_serve_is_refused() -> None:
    @controller("/path")
    class Nothing:
        async def helper(self) -> None:
            pass

    text = refused(Nothing)
    assert "Nothing" in text
    assert "serves nothing" in text
    assert all(word in text for word in ("@websocket('/path')", "@get('/path')", "on_message"))


def test_an_empty_class_is_refused_and_its_file_is_named() -> None:
    @controller("/path")
    class Empty:
        pass

    assert "serves nothing" in refused(Empty)


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
@pytest.mark.parametrize("order", ["above", "below"])
def test_a_route_above_what_is_no_method_is_refused(kind: Any, order: str) -> None:
    async def join(ws: WebSocket) -> None:
        pass

    function = websocket("/")(kind(join)) if order == "above" else kind(websocket("/")(join))
    cls = controller("/path")(type("Static", (), {"join": function, "__module__": __name__, "other": _other}))
    text = refused(cls)
    assert "'join' of Static is no method" in text
    assert kind.__name__ in text
    assert "def name(self, ...)" in text


@websocket("/other")
async def _other(self: Any, ws: WebSocket) -> None:
    pass


@pytest.mark.parametrize("first", ["nothing", "the WebSocket"])
def test_a_method_without_self_is_refused(first: str) -> None:
    if first == "nothing":

        @controller("/path")
        class Without:
            @websocket("/")
            async def join() -> None:  # type: ignore[misc]
                pass
    else:

        @controller("/path")
        class Without:  # type: ignore[no-redef]
            @websocket("/")
            async def join(ws: WebSocket) -> None:  # type: ignore[misc]
                pass

    text = refused(Without)
    assert "Without.join" in text
    assert "takes the controller first" in text
    assert "async def name(self, ...)" in text


@pytest.mark.parametrize("decorator", [websocket, get])
def test_a_plain_method_with_a_route_is_refused(decorator: Callable[[str], Callable[[Any], Any]]) -> None:
    @controller("/path")
    class Plain:
        @decorator("/")
        def join(self) -> None:
            pass

    text = refused(Plain)
    assert "Plain.join" in text
    assert "must be async" in text
    assert "Write `async def`" in text


def test_a_generator_method_of_http_is_refused() -> None:
    @controller("/path")
    class Generator:
        @get("/")
        async def join(self) -> AsyncIterator[str]:
            yield "x"

    assert "a handler of HTTP cannot be a generator" in refused(Generator)


def test_a_class_that_reads_for_itself_and_has_hooks_for_messages_is_refused() -> None:
    @controller("/path")
    class Both:
        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

        async def on_message(self, message: str) -> None:
            pass

        @on(Say)
        async def say(self) -> None:
            pass

    text = refused(Both)
    assert "both a @websocket method and" in text
    assert all(name in text for name in ("Both", "on_message", "say"))
    assert "drop it" in text


@pytest.mark.parametrize(
    ("prefix", "found", "fix"),
    [
        ("path", "a path starts with '/', got 'path'", "'/path'"),
        ("/path/", "a prefix does not end with '/', got '/path/'", "'/path'"),
        ("/<x:itn>", "unknown converter 'itn'", "Did you mean 'int'?"),
    ],
)
def test_a_prefix_that_cannot_work_is_refused(prefix: str, found: str, fix: str) -> None:
    @controller(prefix)
    class Wrong:
        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

    text = refused(Wrong)
    assert found in text
    assert fix in text
    assert "Wrong" in text


@pytest.mark.parametrize(
    ("path", "found"), [("x", "a path starts with '/', got 'x'"), ("/<id", "<id"), ("/<room>/<room>", "room")]
)
def test_a_path_of_a_method_that_cannot_work_is_refused(path: str, found: str) -> None:
    @controller("/path")
    class Wrong:
        @websocket(path)
        async def join(self, ws: WebSocket) -> None:
            pass

    text = refused(Wrong)
    assert found in text
    assert "Wrong.join" in text


def test_two_methods_of_one_path_are_refused() -> None:
    @controller("/path")
    class Twice:
        @websocket("/<a>")
        async def one(self, ws: WebSocket) -> None:
            pass

        @websocket("/<b>")
        async def two(self, ws: WebSocket) -> None:
            pass

    text = refused(Twice)
    assert "can never be told apart" in text
    assert "Twice.one" in text
    assert "Twice.two" in text


def test_an_app_that_refused_a_controller_goes_on_without_it() -> None:
    app = App()

    @controller("/path")
    class Wrong:
        @websocket("/")
        async def join(self) -> None:
            pass

        @websocket("/<x>")
        async def wrong(self, note: Note) -> None:
            pass

    with pytest.raises(SignatureError):
        app.include(Wrong)
    app.include(Rooms)
    assert app.url_path_for("lobby", room="1") == "/rooms/1"


@pytest.mark.parametrize("where", ["constructor", "method"])
def test_a_parameter_that_can_never_be_filled_is_refused_with_the_chain(where: str) -> None:
    def broken(body: Note) -> None:
        pass

    @controller("/path")
    class Wrong:
        if where == "constructor":

            def __init__(self, value: Annotated[None, Depends(broken)]) -> None:
                pass

        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

        if where == "method":

            @websocket("/two")
            async def two(self, ws: WebSocket, value: Annotated[None, Depends(broken)]) -> None:
                pass

    text = refused(Wrong)
    assert "'body' is a Struct" in text
    assert re.search(r"Wrong.*->.*broken", text)


@pytest.mark.parametrize("kind", ["request", "websocket"])
def test_a_constructor_that_asks_for_the_other_kind_of_connection_is_refused(kind: str) -> None:
    # T35
    cls: Any = Request if kind == "request" else WebSocket

    @controller("/path")
    class Wrong:
        def __init__(self, connection: cls) -> None:
            pass

        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

        @get("/")
        async def read(self) -> None:
            pass

    text = refused(Wrong)
    assert f"asks for a {cls.__name__}" in text
    assert "Wrong" in text


async def test_a_singleton_that_needs_one_connection_is_refused() -> None:
    @controller("/path", scope="singleton")
    class Wide:
        def __init__(self, ws: WebSocket) -> None:
            pass

        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

    with pytest.raises(SignatureError, match=r"(?s)'ws' is of one connection, but a singleton.*Wide"):
        await talk(app_of(Wide), "/path/")


async def test_a_singleton_that_needs_a_narrower_component_is_refused_with_the_chain() -> None:
    @component(scope="websocket")
    class Narrow:
        pass

    @controller("/path", scope="singleton")
    class Wide:
        def __init__(self, narrow: Narrow) -> None:
            pass

        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

    with pytest.raises(SignatureError, match=r"Wide -> Narrow"):
        await talk(app_of(Wide), "/path/")


async def test_a_constructor_of_a_singleton_with_an_unknown_parameter_is_refused() -> None:
    @controller("/path", scope="singleton")
    class Wide:
        def __init__(self, store: dict[str, str]) -> None:
            pass

        @websocket("/")
        async def join(self, ws: WebSocket) -> None:
            pass

    with pytest.raises(SignatureError, match=r"no component provides parameter 'store'.*Wide.*@component"):
        await talk(app_of(Wide), "/path/")


def test_nothing_happens_to_a_class_but_a_mark() -> None:
    @controller("/path")
    class Plain:
        def __init__(self, name: str) -> None:
            self.name = name

        @websocket("/")
        async def join(self, ws: Any) -> str:
            return f"{self.name} {ws}"

    with pytest.raises(StopIteration) as done:
        Plain("ann").join("a fake").send(None)
    assert done.value.value == "ann a fake"
