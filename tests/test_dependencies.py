"""What a handler depends on: how it is found, run, shared within one connection, replaced, and cleaned up."""

import asyncio
import contextvars
import dataclasses
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, NamedTuple, Self

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import pytest
import starlette.requests

from asgiws import (
    App,
    Body,
    Connection,
    Cookie,
    Depends,
    Header,
    HTTPException,
    ParameterError,
    Path,
    Query,
    Request,
    Response,
    Router,
    SignatureError,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    cleanup,
)
from tests.fakes import DAPHNE, DEADLINE, UVICORN, FakeServer, HTTPAnswer, Shape, converse, request, soon

pytestmark = pytest.mark.anyio

Log = list[str]
Dependency = Callable[..., Any]

every_kind = pytest.mark.parametrize("kind", ["websocket", "http"])


async def connect(app: App, path: str = "/", query: str = "", headers: Any = ()) -> FakeServer:
    """A whole connection on which the client says nothing and does not leave."""
    return await converse(app, FakeServer(path=path, query=query, headers=headers), leave=-1)


async def outcome(
    app: App,
    server: FakeServer,
    stop_when: Callable[[FakeServer], object] | None = None,
) -> BaseException | None:
    """What a connection raises; with a condition, the server stops it as soon as that holds."""
    raised: list[BaseException] = []

    async def serve() -> None:
        try:
            await app(server.scope, server.receive, server.send)
        except Exception as error:
            raised.append(error)
        except BaseException as error:
            raised.append(error)
            raise

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            if stop_when is not None:
                await server.until(stop_when)
                group.cancel_scope.cancel()
    assert not server.choked
    return raised[0] if raised else None


def accepted(server: FakeServer) -> bool:
    """The handshake is answered."""
    return server.status == 101


def label(error: BaseException) -> str:
    """What a test calls an exception, on either event loop."""
    return "cancelled" if isinstance(error, anyio.get_cancelled_exc_class()) else type(error).__name__


def leaf(error: BaseException | None) -> BaseException | None:
    """The one exception in a group."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


def noting(log: Log, name: str) -> Dependency:
    """A dependency that notes that it ran."""

    def dependency() -> str:
        log.append(name)
        return name

    return dependency


def opening(log: Log, name: str) -> Dependency:
    """A dependency that notes how it was opened and closed; closing takes a turn of the event loop."""

    async def dependency() -> AsyncIterator[str]:
        log.append(f"+{name}")
        try:
            yield name
        except BaseException as error:
            log.append(f"{name}: {label(error)}")
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            log.append(f"-{name}")

    return dependency


def opening_at_once(log: Log, name: str) -> Dependency:
    """The same, as a plain generator."""

    def dependency() -> Iterator[str]:
        log.append(f"+{name}")
        try:
            yield name
        except BaseException as error:
            log.append(f"{name}: {label(error)}")
            raise
        finally:
            log.append(f"-{name}")

    return dependency


def register(app: App | Router, kind: str, path: str, handler: Callable[..., Any], **options: Any) -> None:
    """Register a handler of either kind; one of HTTP takes POST."""
    (app.websocket if kind == "websocket" else app.post)(path, **options)(handler)


async def ask(app: App, kind: str, path: str = "/", query: str = "", headers: Any = (), body: bytes = b"") -> str:
    """The one text that a handler of either kind answers."""
    if kind == "websocket":
        (text,) = (await connect(app, path, query, headers)).texts
        return text
    answer = await request(app, "POST", path, query=query, headers=headers, body=body)
    assert answer.status == 200, answer
    return answer.body.decode()


def telling(kind: str, dependency: Dependency, *, use_cache: bool = True) -> Callable[..., Awaitable[Any]]:
    """A handler of either kind that answers with the text of its dependency's value."""
    marker = Depends(dependency, use_cache=use_cache)

    async def on_websocket(ws: WebSocket, value: Annotated[Any, marker]) -> None:
        await ws.accept()
        await ws.send_text(str(value))

    async def on_http(value: Annotated[Any, marker]) -> str:
        return str(value)

    return on_websocket if kind == "websocket" else on_http


PLACES = ("app", "router", "route", "include", "parameter", "dependency")


def app_with(
    dependency: Dependency,
    place: str,
    kind: str = "websocket",
    path: str = "/",
    prefixes: tuple[str, str] = ("", ""),
) -> App:
    """An app with one route whose handler depends on something by one of the places."""
    here: dict[str, list[Any]] = {name: [] for name in PLACES} | {place: [Depends(dependency)]}
    app = App(dependencies=here["app"])
    router = Router(prefixes[1], dependencies=here["router"])
    # A dependency that is none of the place's stands there, so that each place has one.
    needed = dependency if place in ("parameter", "dependency") else noting([], "")

    def outer(_: Annotated[Any, Depends(needed)]) -> None: ...

    handler = telling(kind, outer if place == "dependency" else needed)
    register(router, kind, path, handler, dependencies=here["route"])
    app.include_router(router, prefixes[0], dependencies=here["include"])
    return app


# What may be a dependency


closed: Log = []


@pytest.fixture(autouse=True)
def _nothing_closed() -> None:
    closed.clear()


def function(n: int) -> int:
    return n


async def async_function(n: int) -> int:
    await anyio.lowlevel.checkpoint()
    return n


def generator(n: int) -> Iterator[int]:
    yield n
    closed.append("generator")


async def async_generator(n: int) -> AsyncIterator[int]:
    await anyio.lowlevel.checkpoint()
    yield n
    await anyio.lowlevel.checkpoint()
    closed.append("generator")


class Number:
    def __init__(self, n: int) -> None:
        self.n = n

    def __str__(self) -> str:
        return str(self.n)

    @classmethod
    def make(cls, n: int) -> "Number":
        return cls(n)


class Heir(Number):
    """Has the `__init__` of its parent."""


class Nothing:
    """Has no `__init__` at all."""

    def __str__(self) -> str:
        return "7"


@dataclasses.dataclass
class Data:
    n: int

    def __str__(self) -> str:
        return str(self.n)


class Filters(msgspec.Struct):
    n: int = 1

    def __str__(self) -> str:
        return str(self.n)


class Pair(NamedTuple):
    n: int

    def __str__(self) -> str:
        return str(self.n)


class Made:
    """Is made by `__new__`."""

    n: int

    def __new__(cls, n: int) -> Self:
        made = super().__new__(cls)
        made.n = n
        return made

    def __str__(self) -> str:
        return str(self.n)


class Callable1:
    def __call__(self, n: int) -> int:
        return n

    def method(self, n: int) -> int:
        return n

    async def async_method(self, n: int) -> int:
        return n

    def generator(self, n: int) -> Iterator[int]:
        yield n
        closed.append("generator")

    async def async_generator(self, n: int) -> AsyncIterator[int]:
        yield n
        closed.append("generator")

    @staticmethod
    def static(n: int) -> int:
        return n


class AsyncCallable:
    async def __call__(self, n: int) -> int:
        return n


class GeneratorCallable:
    def __call__(self, n: int) -> Iterator[int]:
        yield n
        closed.append("generator")


class AsyncGeneratorCallable:
    async def __call__(self, n: int) -> AsyncIterator[int]:
        yield n
        closed.append("generator")


@dataclasses.dataclass
class Times:
    """A callable with a setting. As it can be compared and changed, it cannot be hashed."""

    factor: int

    def __call__(self, n: int) -> int:
        return n * self.factor


def plus(base: int, n: int) -> int:
    return base + n


def plus_generator(base: int, n: int) -> Iterator[int]:
    yield base + n
    closed.append("generator")


async def plus_async(base: int, n: int) -> int:
    return base + n


async def plus_async_generator(base: int, n: int) -> AsyncIterator[int]:
    yield base + n
    closed.append("generator")


def wrapped(inner: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that is not async, whatever it is put on."""

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    return wrapper


KINDS: dict[str, Dependency] = {
    "function": function,
    "async function": async_function,
    "class": Number,
    "class with an inherited __init__": Heir,
    "class without __init__": Nothing,
    "dataclass": Data,
    "Struct": Filters,
    "NamedTuple": Pair,
    "class with __new__": Made,
    "object": Callable1(),
    "async object": AsyncCallable(),
    "object that cannot be hashed": Times(1),
    "method": Callable1().method,
    "async method": Callable1().async_method,
    "static method": Callable1.static,
    "class method": Number.make,
    "partial": functools.partial(plus, 0),
    "partial by name": functools.partial(plus, base=0),
    "partial of a partial": functools.partial(functools.partial(plus), 0),
    "partial of an async function": functools.partial(plus_async, 0),
    "partial of a class": functools.partial(Number),
    "partial of an object": functools.partial(Callable1()),
    "partial of a method": functools.partial(Callable1().method),
    "decorated": wrapped(function),
    "decorated async": wrapped(async_function),
}
GENERATORS: dict[str, Dependency] = {
    "generator": generator,
    "async generator": async_generator,
    "generator object": GeneratorCallable(),
    "async generator object": AsyncGeneratorCallable(),
    "generator method": Callable1().generator,
    "async generator method": Callable1().async_generator,
    "partial of a generator": functools.partial(plus_generator, 0),
    "partial of an async generator": functools.partial(plus_async_generator, base=0),
    "partial of a generator method": functools.partial(Callable1().generator),
    "partial of a generator object": functools.partial(GeneratorCallable()),
    "partial of an async generator object": functools.partial(AsyncGeneratorCallable()),
}


@pytest.mark.parametrize("dependency", [*KINDS.values(), *GENERATORS.values()], ids=[*KINDS, *GENERATORS])
async def test_every_callable_is_a_dependency_and_takes_parameters(dependency: Dependency) -> None:
    app = App()
    for kind in ("websocket", "http"):
        register(app, kind, "/", telling(kind, dependency))
        assert await ask(app, kind, query="n=7") == "7"
    assert closed == ["generator"] * (2 if dependency in GENERATORS.values() else 0)


async def test_what_a_partial_has_fixed_is_not_the_clients_to_change() -> None:
    app = App()
    app.websocket("/")(telling("websocket", functools.partial(plus, base=1)))
    assert await ask(app, "websocket", query="n=1&base=1000") == "2"


async def test_a_value_that_can_be_awaited_is_handed_over_as_it_is() -> None:
    class Client:
        def __await__(self) -> Iterator[Any]:
            raise AssertionError("this is the handler's business")

        def __str__(self) -> str:
            return "a client"

    app = App()
    app.websocket("/")(telling("websocket", Client))
    assert await ask(app, "websocket") == "a client"


@pytest.mark.parametrize("value", [None, False, 0, "", [], HTTPException], ids=repr)
async def test_every_value_is_a_value(value: Any) -> None:
    app = App()

    def dependency() -> Any:
        return value

    @app.get("/")
    async def handler(given: Annotated[Any, Depends(dependency)]) -> bool:
        return given is value

    assert (await request(app, "GET", "/")).body == b"true"


# How it is asked for


Token = Annotated[str, Header(alias="x-token")]


def current_user(token: Token) -> str:
    return f"user of {token}"


User = Annotated[str, Depends(current_user)]
Described = Annotated[User, "an annotation that says nothing to us"]


def current_group(user: Described) -> str:
    return f"group of {user}"


Group = Annotated[str, Depends(current_group)]


async def test_a_dependency_stands_in_an_annotation_also_by_aliases_of_aliases() -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, group: Group, user: Described) -> None:
        await ws.accept()
        await ws.send_json([group, user])

    server = await connect(app, headers={"x-token": "t"})
    assert server.texts == ['["group of user of t","user of t"]']


async def test_a_dependency_stands_as_a_default() -> None:
    app = App()

    def greeting(user: str = Depends(current_user), word: str = "hello") -> str:
        return f"{word}, {user}"

    @app.websocket("/")
    async def handler(ws: WebSocket, text: str = Depends(greeting)) -> None:
        await ws.accept()
        await ws.send_text(text)

    assert (await connect(app, headers={"x-token": "t"})).texts == ["hello, user of t"]


async def test_a_dependency_stands_in_an_annotation_that_is_a_string() -> None:
    app = App()

    def local(n: "Annotated[int, Query(ge=1)]") -> int:
        return n + 1

    @app.websocket("/")
    async def handler(ws: "WebSocket", n: "Annotated[int, Depends(local)]", user: "User") -> None:
        await ws.accept()
        await ws.send_json([n, user])

    assert (await connect(app, query="n=1", headers={"x-token": "t"})).texts == ['[2,"user of t"]']


@pytest.mark.parametrize("cls", [Number, Heir, Data, Filters, Pair, Made], ids=lambda cls: cls.__name__)
async def test_depends_without_a_function_takes_the_annotated_class(cls: Any) -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[cls, Depends()], again: Annotated[Any, Depends(cls)]) -> None:
        assert type(value) is cls
        assert value is again
        await ws.accept()
        await ws.send_text(str(value))

    assert (await connect(app, query="n=7")).texts == ["7"]


async def test_a_service_gets_its_own_dependencies() -> None:
    class Service:
        def __init__(self, user: User, numbers: Annotated[Number, Depends()], page: int = 1) -> None:
            self.seen = [user, numbers.n, page]

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, service: Annotated[Service, Depends()]) -> None:
        await ws.accept()
        await ws.send_json(service.seen)

    assert (await connect(app, query="n=3&page=2", headers={"x-token": "t"})).texts == ['["user of t",3,2]']


# Once a connection


@dataclasses.dataclass
class Counter:
    """How often it was asked, and closed; its value is None, which must be kept like any other."""

    asked: int = 0
    closed: int = 0

    def value(self) -> None:
        self.asked += 1

    def resource(self) -> Iterator[None]:
        self.asked += 1
        yield
        self.closed += 1


def diamond(bottom: Dependency, *, use_cache: bool) -> App:
    """Four ways to one dependency: the app's own, two parameters of the handler, and one straight."""
    marker = Depends(bottom, use_cache=use_cache)

    def left(_: Annotated[None, marker]) -> None: ...

    async def right(_: Annotated[None, marker]) -> None: ...

    app = App(dependencies=[Depends(bottom, use_cache=use_cache)])

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        one: Annotated[None, Depends(left)],
        two: Annotated[None, Depends(right)],
        straight: Annotated[None, marker],
    ) -> None:
        await ws.accept()

    return app


@pytest.mark.parametrize(("use_cache", "times"), [(True, 1), (False, 4)])
async def test_one_connection_asks_once_or_each_asks_anew(use_cache: bool, times: int) -> None:
    plain, resource = Counter(), Counter()
    # A method is a new object each time it is looked up, and the same function all the same.
    await connect(diamond(plain.value, use_cache=use_cache))
    await connect(diamond(resource.resource, use_cache=use_cache))
    assert (plain.asked, resource.asked, resource.closed) == (times, times, times)


async def test_the_next_connection_asks_again() -> None:
    counter = Counter()
    app = diamond(counter.resource, use_cache=True)
    for connections in (1, 2, 3):
        await connect(app)
        assert (counter.asked, counter.closed) == (connections, connections)


async def test_what_asks_anew_leaves_the_kept_value_alone() -> None:
    values = iter(range(10))

    def following() -> int:
        return next(values)

    kept, fresh = Depends(following), Depends(following, use_cache=False)
    app = App()

    @app.get("/")
    async def handler(
        a: Annotated[int, fresh], b: Annotated[int, kept], c: Annotated[int, fresh], d: Annotated[int, kept]
    ) -> list[int]:
        return [a, b, c, d]

    assert (await request(app, "GET", "/")).body == b"[0,1,2,1]"


# The order


@every_kind
async def test_app_router_route_include_and_parameters_run_in_this_order(kind: str) -> None:
    log: Log = []

    def needs(*names: str) -> list[Any]:
        return [Depends(noting(log, name)) for name in names]

    def parameter(_: Annotated[Any, Depends(noting(log, "below the parameter"))]) -> None:
        log.append("parameter")

    app = App(dependencies=needs("app", "app too"))
    outer = Router("/outer", dependencies=needs("outer"))
    inner = Router("/inner", dependencies=needs("inner"))

    async def handler(
        connection: Connection,
        one: Annotated[None, Depends(parameter)],
        two: Annotated[Any, Depends(noting(log, "second parameter"))],
    ) -> None:
        log.append("handler")

    register(inner, kind, "/x", handler, dependencies=needs("route", "route too"))
    outer.include_router(inner, "/of", dependencies=needs("include of inner"))
    app.include_router(outer, dependencies=needs("include of outer"))
    register(app, kind, "/alone", handler, dependencies=needs("route"))

    parameters = ["below the parameter", "parameter", "second parameter", "handler"]
    for path, order in {
        "/outer/of/inner/x": ["outer", "inner", "route", "route too", "include of inner", "include of outer"],
        "/alone": ["route"],
    }.items():
        log.clear()
        if kind == "websocket":
            await connect(app, path)
        else:
            await request(app, "POST", path)
        assert log == ["app", "app too", *order, *parameters]


async def test_the_routes_of_one_router_share_no_dependencies_with_another() -> None:
    log: Log = []
    app = App()
    for name in ("one", "two"):
        router = Router(f"/{name}", dependencies=iter([Depends(noting(log, name))]))
        for path in ("/a", "/b"):
            router.websocket(path)(telling("websocket", noting([], "")))
        app.include_router(router, dependencies=(Depends(noting(log, f"include of {name}")),))
    for path in ("/one/a", "/one/b", "/two/a"):
        await connect(app, path)
    assert log == ["one", "include of one", "one", "include of one", "two", "include of two"]


async def test_a_mounted_app_has_the_dependencies_and_overrides_of_its_own() -> None:
    log: Log = []
    dependency = noting(log, "inner")
    app, inner = App(dependencies=[Depends(noting(log, "app"))]), App(dependencies=[Depends(dependency)])
    inner.websocket("/")(telling("websocket", dependency))
    app.mount("/inner", inner)
    app.dependency_overrides[dependency] = lambda: "the outer app's"
    assert await ask(app, "websocket", "/inner/") == "inner"
    inner.dependency_overrides[dependency] = lambda: "the inner app's"
    assert await ask(app, "websocket", "/inner/") == "the inner app's"
    assert log == ["inner"]


@pytest.mark.parametrize(
    ("path", "headers", "status"), [("/nowhere", {}, 404), ("/", {"origin": "https://evil.example"}, 403)]
)
async def test_a_connection_that_reaches_no_handler_runs_no_dependency(
    path: str, headers: dict[str, str], status: int
) -> None:
    log: Log = []
    app = App(dependencies=[Depends(noting(log, "app"))])
    app.websocket("/")(telling("websocket", noting(log, "parameter")))
    assert (await connect(app, path, headers=headers)).status == status
    assert log == []


# The parameters of a dependency


class Item(msgspec.Struct):
    n: int


@every_kind
async def test_a_dependency_takes_the_parameters_of_a_handler(kind: str) -> None:
    app = App()

    async def everything(
        connection: Connection,
        own: App,
        room: str,
        number: Annotated[int, Path(alias="n")],
        page: Annotated[int, Query(ge=1)],
        filters: Annotated[Filters, Query()],
        x_token: Annotated[str, Header()],
        tag: Annotated[list[str], Query()],
        session: str = Cookie(),
        lang: str = "en",
    ) -> str:
        assert own is app
        assert connection.app is app
        assert (connection.path_params["room"], filters.n) == (room, 5)
        return json.dumps([room, number, page, x_token, session, tag, lang])

    register(app, kind, "/<room>/<n:int>", telling(kind, everything))
    answer = await ask(
        app, kind, "/lobby/3", "page=2&tag=a&tag=b&n=5&room=other", {"x-token": "t", "cookie": "session=s"}
    )
    assert json.loads(answer) == ["lobby", 3, 2, "t", "s", ["a", "b"], "en"]


@every_kind
@pytest.mark.parametrize("place", PLACES)
async def test_a_dependency_takes_parameters_of_the_whole_path_with_all_prefixes(kind: str, place: str) -> None:
    seen: list[Any] = []

    def guard(tenant: str, floor: int, room: int, desk: int = 9) -> None:
        seen.append((tenant, floor, room, desk))

    app = app_with(guard, place, kind, "/<room:int>", prefixes=("/of/<tenant>", "/<floor:int>"))
    await ask(app, kind, "/of/acme/3/7", "tenant=other&floor=1&desk=2")
    assert seen == [("acme", 3, 7, 2)]


async def test_a_dependency_and_its_handler_have_the_same_websocket() -> None:
    app = App()

    async def first_message(socket: WebSocket) -> str:
        assert await socket.accept() is None  # type: ignore[func-returns-value]
        return await socket.receive_text()

    @app.websocket("/")
    async def handler(ws: WebSocket, token: Annotated[str, Depends(first_message)], bare: Connection) -> None:
        assert bare is ws
        await ws.send_text(f"{token}, then {await ws.receive_text()}")

    server = await converse(app, FakeServer(), "token", "message", leave=-1)
    assert server.texts == ["token, then message"]


class Login(msgspec.Struct, tag="login"):
    token: str


async def login(ws: WebSocket[Login, Any]) -> str:
    await ws.accept()
    message = await ws.receive_json()
    assert isinstance(message, Login)
    return message.token


async def test_the_messages_that_a_dependency_declares_are_decoded() -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, token: Annotated[str, Depends(login)]) -> None:
        await ws.send_text(token)

    server = await converse(app, FakeServer(), '{"type": "login", "token": "t"}', leave=-1)
    assert server.texts == ["t"]


async def test_a_dependency_and_its_handler_have_the_same_request() -> None:
    app = App()

    async def length(incoming: Request) -> int:
        incoming.state.seen = True
        return len(await incoming.body())

    @app.post("/")
    async def handler(incoming: Request, n: Annotated[int, Depends(length)]) -> list[Any]:
        return [n, incoming.state.seen, (await incoming.body()).decode()]

    assert (await request(app, "POST", "/", body=[b"ab", b"cd"])).body == b'[4,true,"abcd"]'


async def test_a_dependency_takes_the_body_of_a_request() -> None:
    app = App(dependencies=[Depends(noting([], ""))])

    def by_type(item: Item) -> int:
        return item.n

    def by_marker(numbers: Annotated[list[int], Body()]) -> int:
        return sum(numbers)

    app.post("/type")(telling("http", by_type))
    app.post("/marker")(telling("http", by_marker))
    assert await ask(app, "http", "/type", body=b'{"n": 4}') == "4"
    assert await ask(app, "http", "/marker", body=b"[4, 5]") == "9"
    answer = await request(app, "POST", "/type", body=b'{"n": "x"}')
    assert (answer.status, json.loads(answer.body)["detail"][0]["loc"]) == (422, ["body", "$.n"])


async def test_two_who_need_one_dependency_that_takes_the_body_need_one_body() -> None:
    def payload(item: Item) -> int:
        return item.n

    app = App()
    app.post("/", dependencies=[Depends(payload)])(telling("http", payload))
    assert await ask(app, "http", body=b'{"n": 4}') == "4"


# One dependency for both kinds, or for one


@pytest.mark.parametrize("place", PLACES)
async def test_one_dependency_serves_both_kinds_of_routes(place: str) -> None:
    seen: Log = []

    def guard(connection: Connection, x_token: Annotated[str, Header()]) -> None:
        seen.append(f"{type(connection).__name__} {x_token}")

    await ask(app_with(guard, place, "websocket"), "websocket", headers={"x-token": "t"})
    await ask(app_with(guard, place, "http"), "http", headers={"x-token": "t"})
    assert seen == ["WebSocket t", "Request t"]
    assert (await connect(app_with(guard, place, "websocket"))).closed == (1008, "header 'x-token': is missing")
    answer = await request(app_with(guard, place, "http"), "POST", "/")
    assert answer.status == 422
    assert len(seen) == 2


def wants_request(r: Request) -> None: ...


def wants_websocket(w: WebSocket) -> None: ...


def wants_typed_websocket(w: WebSocket[Item, Item]) -> None: ...


def wants_starlettes_request(r: starlette.requests.Request) -> None: ...


def wants_body(item: Item) -> None: ...


def wants_marked_body(numbers: Annotated[list[int], Body()]) -> None: ...


def wants_path(room: Annotated[str, Path()]) -> None: ...


def wants_anything(*args: Any) -> None: ...


def wants_what_no_text_is(value: Number) -> None: ...


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("dependency", "kind", "problem", "hint"),
    [
        (wants_request, "websocket", "'r' asks for a Request, but this serves a WebSocket", "WebSocket or Connection"),
        (wants_websocket, "http", "'w' asks for a WebSocket, but this serves HTTP requests", "Request or Connection"),
        (wants_typed_websocket, "http", "'w' asks for a WebSocket, but this serves HTTP", "Request or Connection"),
        (wants_starlettes_request, "http", "the Request of starlette", "from asgiws import Request"),
        (wants_body, "websocket", "'item' is a Struct, but nothing here has a body", "Query()"),
        (wants_marked_body, "websocket", "'numbers' is marked as Body(), but nothing here has a body", "WebSocket["),
        (wants_path, "http", "'room' is marked as Path(), but the template has no 'room'", "Its parameters: none"),
        (wants_anything, "http", "'*args' cannot be filled by name", "no *args"),
        (wants_what_no_text_is, "websocket", "'value' of type Number cannot be made from text", "str, int"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_dependency_whose_parameters_cannot_be_filled_is_refused_at_registration(
    dependency: Dependency, kind: str, problem: str, hint: str, place: str
) -> None:
    # T35
    with pytest.raises(SignatureError) as error:
        app_with(dependency, place, kind)
    text = str(error.value)
    assert problem in text
    assert hint in text
    # Where: the dependency with its line, and whose route it is.
    assert f"test_dependencies.{dependency.__name__}" in text
    assert f"test_dependencies.py:{dependency.__code__.co_firstlineno}" in text


@pytest.mark.parametrize("place", PLACES)
def test_a_refused_dependency_is_told_with_the_handler_whose_it_is(place: str) -> None:
    # An include registers many handlers in one line: the traceback does not tell which of them it is.
    with pytest.raises(SignatureError, match=r"telling\.on_websocket"):
        app_with(wants_request, place, "websocket")


def test_a_refused_dependency_is_told_with_the_way_that_leads_to_it() -> None:
    def middle(_: Annotated[None, Depends(wants_request)]) -> None: ...

    def outermost(_: Annotated[None, Depends(middle)]) -> None: ...

    with pytest.raises(SignatureError, match=r"outermost.*middle.*wants_request"):
        App().websocket("/")(telling("websocket", outermost))


def test_a_handler_and_its_dependency_cannot_have_a_body_each() -> None:
    app = App()

    async def handler(other: Item, value: Annotated[None, Depends(wants_body)]) -> None: ...

    with pytest.raises(SignatureError, match=r"is a second body .*make one Struct"):
        app.post("/")(handler)
    assert app.routes == []


def test_a_request_without_a_body_cannot_give_one_to_a_dependency() -> None:
    with pytest.raises(SignatureError, match=r"'item' is a Struct, but nothing here has a body .*wants_body"):
        App().get("/")(telling("http", wants_body))


# What is no dependency


def hen(_: "Annotated[None, Depends(egg)]") -> None: ...


def egg(_: "Annotated[None, Depends(hen)]") -> None: ...


def mirror(_: "Annotated[None, Depends(mirror)]") -> None: ...


class Snake:
    def __init__(self, tail: "Annotated[Snake, Depends()]") -> None: ...


def farm(_: Annotated[None, Depends(hen)]) -> None: ...


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("dependency", "chain"),
    [
        (hen, "hen -> egg -> hen"),
        (farm, "farm -> hen -> egg -> hen"),
        (mirror, "mirror -> mirror"),
        (Snake, "Snake -> Snake"),
    ],
    ids=["two", "behind another", "itself", "class"],
)
def test_a_circle_is_refused_with_the_chain(dependency: Dependency, chain: str, place: str) -> None:
    with pytest.raises(SignatureError) as error:
        app_with(dependency, place)
    assert "a dependency needs itself: " in str(error.value)
    assert chain in str(error.value)
    assert "Take one of them out" in str(error.value)


def test_a_dependency_that_is_needed_in_two_places_is_no_circle() -> None:
    app = diamond(function, use_cache=False)
    assert len(app.routes) == 1


async def by_default(ws: WebSocket, value: str = Depends("x")) -> None:  # type: ignore[arg-type]
    ...


async def by_annotation(ws: WebSocket, value: Annotated[Any, Depends(42)]) -> None: ...


async def without_annotation(ws: WebSocket, value=Depends()) -> None:  # type: ignore[no-untyped-def]  # noqa: B008
    ...


async def with_any(ws: WebSocket, value: Annotated[Any, Depends()]) -> None: ...


async def with_no_class(ws: WebSocket, value: Annotated[int | None, Depends()]) -> None: ...


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        (by_default, "Depends('x')"),
        (by_annotation, "Depends(42)"),
        (without_annotation, "Depends(None)"),
        (with_any, "Depends(None)"),
        (with_no_class, "Depends(None)"),
    ],
    ids=["text", "number", "no annotation", "Any", "no class"],
)
def test_what_is_no_function_is_refused_where_it_stands(handler: Callable[..., Any], found: str) -> None:
    app = App()
    with pytest.raises(SignatureError) as error:
        app.websocket("/")(handler)
    text = str(error.value)
    assert text.startswith(f"{found} is no function (")
    assert f"test_dependencies.{handler.__name__}" in text
    assert "Write Depends(function), or annotate the parameter with a class: Annotated[Service, Depends()]." in text
    assert app.routes == []


@pytest.mark.parametrize("place", PLACES[:4])
@pytest.mark.parametrize("wrong", ["x", None], ids=["text", "nothing"])
def test_what_is_no_function_is_refused_among_the_dependencies_too(place: str, wrong: Any) -> None:
    with pytest.raises(SignatureError, match=rf"Depends\({wrong!r}\) is no function .*on_websocket.*Depends\(function"):
        app_with(wrong, place)


@pytest.mark.parametrize("builtin", [max, dict], ids=["function", "class"])
def test_a_builtin_that_does_not_tell_its_parameters_is_refused(builtin: Dependency) -> None:
    with pytest.raises(SignatureError, match=builtin.__name__):
        App().websocket("/")(telling("websocket", builtin))


async def bare(ws: WebSocket) -> None:
    await ws.accept()


@pytest.mark.parametrize(
    "register_with",
    [
        lambda wrong: App(dependencies=wrong),
        lambda wrong: Router(dependencies=wrong),
        lambda wrong: Router().websocket("/", dependencies=wrong)(bare),
        lambda wrong: App().get("/", dependencies=wrong)(bare),
        lambda wrong: App().include_router(Router(), dependencies=wrong),
    ],
    ids=["app", "router", "websocket", "get", "include"],
)
@pytest.mark.parametrize(
    "wrong",
    [[function], [Depends(function), function], ["x"], (None,), function, Depends(function)],
    ids=["function", "one of two", "text", "None", "no list", "one alone"],
)
def test_dependencies_take_a_list_of_depends(register_with: Callable[[Any], Any], wrong: Any) -> None:
    with pytest.raises(SignatureError) as error:
        register_with(wrong)
    assert "dependencies takes a list of Depends(...), got " in str(error.value)
    assert "Write [Depends(function)]" in str(error.value)


# Overrides


@every_kind
@pytest.mark.parametrize("place", PLACES)
async def test_an_override_replaces_a_dependency_anywhere_in_the_chain(kind: str, place: str) -> None:
    log: Log = []
    real = noting(log, "real")

    def fake(connection: Connection, n: int, below: Annotated[str, Depends(noting(log, "below the fake"))]) -> None:
        log.append(f"fake {n} {type(connection).__name__}")

    app = app_with(real, place, kind)
    await ask(app, kind)
    assert log == ["real"]
    log.clear()

    app.dependency_overrides[real] = fake
    await ask(app, kind, query="n=7")
    assert log == ["below the fake", f"fake 7 {'WebSocket' if kind == 'websocket' else 'Request'}"]
    log.clear()

    app.dependency_overrides.clear()
    await ask(app, kind)
    assert log == ["real"]


FAKES = (function, async_function, generator, async_generator)


@pytest.mark.parametrize("real", [*FAKES, Number], ids=lambda one: one.__name__)
@pytest.mark.parametrize("fake", FAKES, ids=lambda one: one.__name__)
async def test_any_callable_is_overridden_by_any_other(real: Dependency, fake: Dependency) -> None:
    app = App()
    app.websocket("/")(telling("websocket", real))
    app.dependency_overrides[real] = fake
    assert await ask(app, "websocket", query="n=8") == "8"
    # The clean-up of the real one is none of it.
    assert closed == ["generator"] * ("generator" in fake.__name__)


async def test_every_callable_that_can_be_a_key_can_be_overridden() -> None:
    everything = {name: one for name, one in (KINDS | GENERATORS).items() if name != "object that cannot be hashed"}
    for name, real in everything.items():
        app = App()
        app.websocket("/")(telling("websocket", real))
        app.dependency_overrides[real] = lambda name=name: f"instead of {name}"
        assert await ask(app, "websocket") == f"instead of {name}"
    assert closed == []


async def test_an_override_replaces_a_class_that_depends_names_by_the_annotation() -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[Number, Depends()]) -> None:
        await ws.accept()
        await ws.send_text(str(value))

    app.dependency_overrides = {Number: lambda: "a fake"}
    assert (await connect(app)).texts == ["a fake"]


async def test_an_override_keeps_to_what_the_dependency_says_of_its_cache() -> None:
    for use_cache, times in ((True, 1), (False, 4)):
        counter = Counter()
        app = diamond(function, use_cache=use_cache)
        app.dependency_overrides[function] = counter.resource
        await connect(app)
        assert (counter.asked, counter.closed) == (times, times)


async def test_two_dependencies_with_one_override_share_its_value() -> None:
    counter = Counter()
    app = App(dependencies=[Depends(function)])
    app.websocket("/")(telling("websocket", async_function))
    app.dependency_overrides = {function: counter.value, async_function: counter.value}
    await connect(app)
    assert counter.asked == 1


async def test_an_override_needs_nothing_of_what_the_real_one_needs() -> None:
    log: Log = []

    def real(x_token: Annotated[str, Header()], below: Annotated[str, Depends(noting(log, "below"))]) -> None: ...

    app = App(dependencies=[Depends(real)])
    app.websocket("/")(telling("websocket", noting([], "value")))
    app.dependency_overrides[real] = lambda: None
    assert await ask(app, "websocket") == "value"
    assert log == []


@pytest.mark.parametrize("real", [wants_body, function], ids=["takes a body", "takes none"])
async def test_an_override_may_take_the_body(real: Dependency) -> None:
    def fake(item: Item) -> int:
        return item.n

    app = App()
    app.post("/")(telling("http", real))
    app.dependency_overrides[real] = fake
    for n in ("4", "5"):  # a second request finds what the first one found
        assert await ask(app, "http", body=b'{"n": %s}' % n.encode()) == n


@pytest.mark.parametrize("refused_before", [False, True], ids=["", "after a parameter that does not validate"])
async def test_an_override_that_needs_what_it_replaces_is_a_circle_and_told_so(refused_before: bool) -> None:
    def real() -> int:
        return 1

    def twice(value: Annotated[int, Depends(real)]) -> int:
        return 2 * value

    app = App(dependencies=[Depends(function if refused_before else ends_at_once)])
    app.websocket("/")(telling("websocket", real))
    app.dependency_overrides[real] = twice
    server = FakeServer()
    error = await outcome(app, server)
    assert isinstance(error, SignatureError)
    assert "a dependency needs itself: " in str(error)
    assert server.status == 500


async def test_an_override_that_cannot_work_is_told_by_name_and_the_client_gets_a_500() -> None:
    app = App()
    app.websocket("/")(telling("websocket", function))
    app.dependency_overrides[function] = wants_request
    server = FakeServer()
    error = await outcome(app, server)
    assert isinstance(error, SignatureError)
    assert "wants_request" in str(error)
    assert server.status == 500


# Clean-up: how a connection may end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """One way in which a connection ends.

    Attributes:
        handler: What the handler does.
        seen: What is raised in the dependencies.
        raises: What reaches the server.
        status: What the handshake was answered with.
        close: Code and reason of the application's close.
        leaves: The client leaves.
        stopped: The server cancels the handler once the handshake is answered.
    """

    handler: Callable[[WebSocket], Awaitable[Any]]
    seen: str | None = None
    raises: str | None = None
    status: int = 101
    close: tuple[int, str] | None = None
    leaves: bool = False
    stopped: bool = False

    async def __call__(self, app: App) -> BaseException | None:
        """Run a connection to this end; what it raised."""
        server = FakeServer()
        if self.leaves:
            server.leave(1001)
        error = await outcome(app, server, accepted if self.stopped else None)
        assert (server.status, server.closed) == (self.status, self.close)
        assert (label(leaf(error)) if error else None) == self.raises  # type: ignore[arg-type]
        return error


async def returns(ws: WebSocket) -> None:
    await ws.accept()


async def returns_before_accept(ws: WebSocket) -> None: ...


async def fails(ws: WebSocket) -> None:
    await ws.accept()
    raise ValueError("a secret")


async def fails_before_accept(ws: WebSocket) -> None:
    raise ValueError("a secret")


async def refuses(ws: WebSocket) -> None:
    raise HTTPException(409)


async def raises_http(ws: WebSocket) -> None:
    await ws.accept()
    raise HTTPException(409, "later")


async def raises_websocket(ws: WebSocket) -> None:
    await ws.accept()
    raise WebSocketException(4001, "bye")


async def reads(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_text()


async def loops(ws: WebSocket) -> None:
    await ws.accept()
    async for _ in ws:
        raise AssertionError


async def sleeps(ws: WebSocket) -> None:
    await ws.accept()
    await anyio.sleep_forever()


ENDINGS: dict[str, Ending] = {
    "returns": Ending(handler=returns, close=(1000, "")),
    "returns before accept": Ending(handler=returns_before_accept, status=403),
    "fails": Ending(handler=fails, seen="ValueError", raises="ValueError", close=(1011, "internal error")),
    "fails before accept": Ending(handler=fails_before_accept, seen="ValueError", raises="ValueError", status=500),
    "HTTPException": Ending(handler=raises_http, seen="HTTPException", close=(4409, "later")),
    "HTTPException before accept": Ending(handler=refuses, seen="HTTPException", status=409),
    "WebSocketException": Ending(handler=raises_websocket, seen="WebSocketException", close=(4001, "bye")),
    "the client leaves, and it raises": Ending(handler=reads, seen="WebSocketDisconnect", leaves=True),
    "the client leaves, and a loop ends": Ending(handler=loops, leaves=True),
    "cancelled": Ending(
        handler=sleeps, seen="cancelled", raises="cancelled", close=(1012, "the server stops"), stopped=True
    ),
}

every_ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)


@every_ending
@pytest.mark.parametrize("open_", [opening, opening_at_once], ids=["async", "plain"])
async def test_clean_up_runs_in_reverse_order_and_sees_how_it_ended(
    open_: Callable[[Log, str], Dependency], ending: Ending
) -> None:
    # T37, T38
    log: Log = []
    app = App(dependencies=[Depends(open_(log, "app"))])

    @app.websocket("/", dependencies=[Depends(open_(log, "route"))])
    async def handler(ws: WebSocket, value: Annotated[str, Depends(open_(log, "parameter"))]) -> None:
        log.append("handler")
        await ending.handler(ws)

    await ending(app)
    closing: Log = []
    for name in ("parameter", "route", "app"):
        closing += ([f"{name}: {ending.seen}"] if ending.seen else []) + [f"-{name}"]
    assert log == ["+app", "+route", "+parameter", "handler", *closing]


@pytest.mark.parametrize(
    ("raised", "status"), [(None, 200), (HTTPException(409), 409), (ValueError("a secret"), 500)], ids=repr
)
async def test_clean_up_after_a_request(raised: Exception | None, status: int) -> None:
    log: Log = []
    app = App(dependencies=[Depends(opening(log, "app"))])

    @app.get("/")
    async def handler(value: Annotated[str, Depends(opening_at_once(log, "parameter"))]) -> str:
        if raised is not None:
            raise raised
        return value

    answer = await request(app, "GET", "/", raises=ValueError if status == 500 else None)
    assert answer.status == status
    seen = [] if raised is None else [type(raised).__name__]
    parameter, whole = ([f"{name}: {error}" for error in seen] for name in ("parameter", "app"))
    assert log == ["+app", "+parameter", *parameter, "-parameter", *whole, "-app"]


async def test_clean_up_after_a_request_that_the_server_stops() -> None:
    log: Log = []
    app = App(dependencies=[Depends(opening(log, "app"))])
    started = anyio.Event()

    @app.get("/")
    async def handler() -> None:
        started.set()
        await anyio.sleep_forever()

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(request, app, "GET", "/"))
            await started.wait()
            group.cancel_scope.cancel()
    assert log == ["+app", "app: cancelled", "-app"]


@every_ending
async def test_all_of_a_connection_runs_in_one_task(ending: Ending) -> None:
    tasks: set[int] = set()

    def note() -> None:
        tasks.add(anyio.get_current_task().id)

    async def resource() -> AsyncIterator[None]:
        note()
        try:
            yield
        finally:
            note()

    app = App(dependencies=[Depends(note), Depends(resource)])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        note()
        await ending.handler(ws)

    await ending(app)
    assert len(tasks) == 1


@every_ending
async def test_a_dependency_may_yield_inside_a_task_group(ending: Ending) -> None:
    # T36, T40
    log: Log = []

    async def heartbeat() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("heartbeat ended")

    async def background() -> AsyncIterator[anyio.abc.TaskGroup]:
        async with anyio.create_task_group() as group:
            group.start_soon(heartbeat)
            yield group
            group.cancel_scope.cancel()

    app = App(dependencies=[Depends(opening(log, "before"))])

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        group: Annotated[anyio.abc.TaskGroup, Depends(background)],
        after: Annotated[str, Depends(opening(log, "after"))],
    ) -> None:
        await anyio.wait_all_tasks_blocked()  # the heartbeat beats
        await ending.handler(ws)

    await ending(app)
    # Each is closed before what stands around it.
    assert log.index("-after") < log.index("-before")
    assert log.index("heartbeat ended") < log.index("-before")


@every_ending
async def test_a_dependency_may_yield_inside_a_cancel_scope(ending: Ending) -> None:
    # T36
    log: Log = []

    async def scope() -> AsyncIterator[anyio.CancelScope]:
        with anyio.CancelScope() as found:
            yield found

    app = App(dependencies=[Depends(opening(log, "before")), Depends(scope), Depends(opening(log, "after"))])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ending.handler(ws)

    await ending(app)
    closings = [entry for entry in log if entry.startswith("-")]
    assert closings == ["-after", "-before"]


async def test_a_handler_that_cancels_the_scope_of_a_dependency_ends_as_one_that_returned() -> None:
    log: Log = []

    async def scope() -> AsyncIterator[anyio.CancelScope]:
        with anyio.CancelScope() as found:
            yield found

    app = App()

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        scope: Annotated[anyio.CancelScope, Depends(scope)],
        after: Annotated[str, Depends(opening(log, "after"))],
    ) -> None:
        await ws.accept()
        scope.cancel()
        await anyio.sleep_forever()

    server = FakeServer()
    assert await outcome(app, server) is None
    assert server.closed == (1000, "")
    # Clean-up that awaits is done whoever cancelled the handler.
    assert log == ["+after", "after: cancelled", "-after"]


async def never_ends() -> None:
    await anyio.sleep_forever()


async def ends_at_once() -> None: ...


@pytest.mark.parametrize("after", [ends_at_once, never_ends], ids=lambda one: one.__name__)
@pytest.mark.parametrize("who", ["a later dependency", "the handler"])
async def test_a_cancellation_that_a_dependency_takes_back_never_reaches_the_server(
    who: str, after: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a scope cancels, it catches: raised again outside of it, it would cancel the server's own task.
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)

    async def scope() -> AsyncIterator[anyio.CancelScope]:
        with anyio.CancelScope() as found:
            yield found
        await after()

    async def timed_out(scope: Annotated[anyio.CancelScope, Depends(scope)]) -> None:
        if who == "a later dependency":
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    app = App(dependencies=[Depends(timed_out)])

    @app.websocket("/")
    async def handler(ws: WebSocket, scope: Annotated[anyio.CancelScope, Depends(scope)]) -> None:
        await ws.accept()
        scope.cancel()
        await anyio.sleep_forever()

    server = FakeServer()
    raised: list[str] = []
    try:
        await app(server.scope, server.receive, server.send)
    except BaseException as error:
        raised.append(label(error))
    assert "cancelled" not in raised
    if who == "the handler":
        assert server.closed == (1000, "")
    else:
        assert server.status in (403, 500)


async def test_a_background_task_that_fails_ends_the_connection_and_all_clean_up_is_done() -> None:
    # T38: the handler is cancelled by the group of one dependency; another's clean-up awaits inside of that group.
    log: Log = []

    async def background() -> AsyncIterator[anyio.abc.TaskGroup]:
        async with anyio.create_task_group() as group:
            yield group

    app = App(dependencies=[Depends(opening(log, "before"))])

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        group: Annotated[anyio.abc.TaskGroup, Depends(background)],
        after: Annotated[str, Depends(opening(log, "after"))],
    ) -> None:
        async def revoked() -> None:
            raise HTTPException(401, "revoked")

        await ws.accept()
        group.start_soon(revoked)
        await anyio.sleep_forever()

    server = FakeServer()
    assert await outcome(app, server) is None
    assert server.closed == (4401, "revoked")
    assert log == ["+before", "+after", "after: cancelled", "-after", "before: ExceptionGroup", "-before"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_asyncio_itself_cancels_is_cleaned_up_and_stays_cancelled() -> None:
    # hypercorn and daphne stop handlers like this.
    log: Log = []

    async def background() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield

    app = App(dependencies=[Depends(opening(log, "before")), Depends(background), Depends(opening(log, "after"))])
    app.websocket("/")(sleeps)
    server = FakeServer()
    task = asyncio.create_task(app(server.scope, server.receive, server.send))
    await server.until(accepted)
    task.cancel()
    with anyio.fail_after(DEADLINE), pytest.raises(asyncio.CancelledError):
        await task
    assert server.closed == (1012, "the server stops")
    assert log == ["+before", "+after", "after: cancelled", "-after", "before: cancelled", "-before"]


async def test_what_is_cancelled_while_dependencies_are_opened_is_cleaned_up() -> None:
    log: Log = []
    started = anyio.Event()

    async def slow() -> AsyncIterator[None]:
        started.set()
        try:
            await anyio.sleep_forever()
            yield
        finally:
            log.append("slow ended")

    app = App(dependencies=[Depends(opening(log, "before")), Depends(slow), Depends(opening(log, "never"))])
    app.websocket("/")(sleeps)
    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await started.wait()
            group.cancel_scope.cancel()
    assert log == ["+before", "slow ended", "before: cancelled", "-before"]
    assert server.closed == (1012, "the server stops")


# Clean-up: the shield and its limit


@dataclasses.dataclass
class Slow:
    """A dependency whose clean-up takes until it is let go."""

    log: Log
    closing: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    go: anyio.Event = dataclasses.field(default_factory=anyio.Event)

    async def __call__(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.closing.set()
            await self.go.wait()
            self.log.append("done")

    __hash__ = object.__hash__


async def stopped_while_closing(handler: Callable[..., Any]) -> tuple[FakeServer, Log]:
    """A connection whose server stops it while its clean-up waits for something."""
    log: Log = []
    slow = Slow(log)
    app = App(dependencies=[Depends(slow)])
    app.websocket("/")(handler)
    server = FakeServer()
    ended: Log = []

    async def serve() -> None:
        try:
            await app(server.scope, server.receive, server.send)
        except ValueError:
            assert handler is fails
        finally:
            ended.append("ended")

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            await slow.closing.wait()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            assert ended == log == []
            slow.go.set()
    return server, log


@pytest.mark.parametrize("handler", [returns, fails, raises_http], ids=lambda one: one.__name__)
async def test_a_cancellation_from_outside_does_not_reach_the_clean_up(handler: Callable[..., Any]) -> None:
    # T38
    _, log = await stopped_while_closing(handler)
    assert log == ["done"]


@pytest.mark.parametrize("handler", [returns, fails, raises_http], ids=lambda one: one.__name__)
async def test_a_connection_that_is_stopped_during_its_clean_up_is_closed_all_the_same(
    handler: Callable[..., Any],
) -> None:
    # P20: every end is explicit.
    server, _ = await stopped_while_closing(handler)
    assert server.closed is not None
    assert server.types.count("websocket.close") == 1


CUT = ["returns", "fails", "HTTPException", "the client leaves, and it raises", "cancelled"]


@pytest.mark.parametrize("ending", [ENDINGS[name] for name in CUT], ids=CUT)
async def test_clean_up_that_takes_too_long_is_cut_and_nothing_else_is_lost(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    log: Log = []
    ids: Log = []

    def stuck(name: str) -> Dependency:
        async def dependency() -> AsyncIterator[None]:
            try:
                yield
            finally:
                try:
                    await anyio.sleep_forever()
                finally:
                    log.append(f"{name} was cut")

        return dependency

    def quick() -> Iterator[None]:
        try:
            yield
        finally:
            log.append("what needs no time is done")

    app = App(dependencies=[Depends(quick), Depends(stuck("outer")), Depends(stuck("inner"))])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        ids.append(ws.id)
        await ending.handler(ws)

    await ending(app)
    assert log == ["inner was cut", "outer was cut", "what needs no time is done"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"connection {ids[0]}: the clean-up took over 0.01 s and was cut"]


async def test_the_limit_is_that_of_a_connections_whole_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.05)
    count = 20

    async def stuck() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.sleep_forever()

    app = App(dependencies=[Depends(stuck, use_cache=False)] * count)
    app.websocket("/")(returns)
    before = anyio.current_time()
    await connect(app)
    assert anyio.current_time() - before < count * 0.05 / 2


@pytest.mark.parametrize(("raised", "status"), [(None, 200), (HTTPException(409), 409)], ids=repr)
async def test_clean_up_of_a_request_that_takes_too_long_is_cut(
    raised: Exception | None, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)

    async def stuck() -> AsyncIterator[str]:
        try:
            yield "value"
        finally:
            await anyio.sleep_forever()

    app = App()

    @app.get("/")
    async def handler(value: Annotated[str, Depends(stuck)]) -> str:
        if raised is not None:
            raise raised
        return value

    assert (await request(app, "GET", "/")).status == status
    assert "the clean-up took over 0.01 s and was cut" in caplog.text


async def test_the_limit_of_the_clean_up_is_none_of_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.0)
    log: Log = []

    async def patient() -> AsyncIterator[None]:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        yield
        log.append("closed")

    app = App(dependencies=[Depends(patient)])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        await ws.send_text("still here")

    server = await connect(app)
    assert (server.texts, server.closed, log) == (["still here"], (1000, ""), ["closed"])


# Clean-up: exceptions


async def test_a_dependency_makes_another_exception_of_the_handlers() -> None:
    # T37
    async def domain() -> AsyncIterator[None]:
        try:
            yield
        except KeyError as error:
            raise HTTPException(404, "no such room") from error

    app = App(dependencies=[Depends(domain)])

    @app.websocket("/<when>")
    async def handler(ws: WebSocket, when: str) -> None:
        if when == "after":
            await ws.accept()
        raise KeyError(when)

    before = await connect(app, "/before")
    assert (before.status, before.body) == (404, b'{"detail":"no such room"}')
    assert (await connect(app, "/after")).closed == (4404, "no such room")


@pytest.mark.parametrize("open_", [opening, opening_at_once], ids=["async", "plain"])
async def test_clean_up_that_fails_after_a_return_fails_the_connection_and_the_rest_is_done(
    open_: Callable[[Log, str], Dependency], caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []

    def commit() -> Iterator[None]:
        yield
        raise ValueError("cannot commit")

    app = App(dependencies=[Depends(open_(log, "before")), Depends(commit), Depends(open_(log, "after"))])
    app.websocket("/")(returns)
    server = FakeServer()
    error = await outcome(app, server)
    assert isinstance(error, ValueError)
    assert server.closed == (1011, "internal error")
    assert log == ["+before", "+after", "-after", "before: ValueError", "-before"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_clean_up_that_fails_after_an_exception_keeps_that_as_its_context() -> None:
    def rollback() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("cannot roll back")

    log: Log = []
    app = App(dependencies=[Depends(opening(log, "before")), Depends(rollback)])
    app.websocket("/")(fails)
    server = FakeServer()
    error = await outcome(app, server)
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__context__, ValueError)
    assert server.closed == (1011, "internal error")
    assert log == ["+before", "before: RuntimeError", "-before"]


async def test_clean_up_of_a_request_that_fails_is_a_500() -> None:
    def commit() -> Iterator[str]:
        yield "value"
        raise ValueError("cannot commit")

    app = App()
    app.post("/")(telling("http", commit))
    assert (await request(app, "POST", "/", raises=ValueError)).status == 500


def swallowing(log: Log) -> Dependency:
    """A dependency that takes every exception for its own."""

    async def dependency() -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            log.append(f"swallowed {type(error).__name__}")

    return dependency


@pytest.mark.parametrize("name", ["fails", "HTTPException", "WebSocketException", "the client leaves, and it raises"])
async def test_a_handler_whose_exception_a_dependency_swallows_has_returned(name: str) -> None:
    ending, log = ENDINGS[name], Log()
    app = App(dependencies=[Depends(opening(log, "before")), Depends(swallowing(log))])
    app.websocket("/")(ending.handler)
    expected = dataclasses.replace(ending, raises=None, close=None if ending.leaves else (1000, ""))
    await expected(app)
    assert log == ["+before", f"swallowed {ending.seen}", "-before"]


async def test_a_request_whose_exception_a_dependency_swallows_is_answered() -> None:
    log: Log = []
    app = App(dependencies=[Depends(swallowing(log))])

    @app.get("/")
    async def handler() -> str:
        raise ValueError("a secret")

    # There is no result, so it cannot be a success.
    answer = await request(app, "GET", "/", raises=Exception)
    assert answer.status == 500
    assert log == ["swallowed ValueError"]


@pytest.mark.parametrize("error", [HTTPException(401), WebSocketException(4401), ValueError("a secret")], ids=repr)
async def test_a_refusal_that_an_earlier_dependency_swallows_is_still_a_refusal(error: Exception) -> None:
    # T29: what was refused must not be let in, and no generator of ours may be told to have done wrong.
    log: Log = []

    def guard() -> None:
        raise error

    app = App(dependencies=[Depends(swallowing(log)), Depends(guard), Depends(noting(log, "later"))])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        log.append("handler")

    server = FakeServer()
    raised = await outcome(app, server)
    assert raised in (None, error)
    assert server.status in (401, 403, 500)
    assert log == [f"swallowed {type(error).__name__}"]


def yields_nothing() -> Iterator[None]:
    yield from ()


def yields_twice() -> Iterator[None]:
    yield
    yield


async def yields_nothing_async() -> AsyncIterator[None]:
    for _ in ():
        yield


async def yields_twice_async() -> AsyncIterator[None]:
    yield
    yield


@pytest.mark.parametrize(
    "dependency",
    [yields_nothing, yields_nothing_async, yields_twice, yields_twice_async],
    ids=lambda one: one.__name__,
)
async def test_a_generator_yields_once(dependency: Dependency) -> None:
    log: Log = []
    app = App(dependencies=[Depends(opening(log, "before")), Depends(dependency)])
    app.websocket("/")(returns)
    server = FakeServer()
    error = await outcome(app, server)
    assert isinstance(error, RuntimeError)
    assert server.status == 500 or server.closed == (1011, "internal error")
    assert log == ["+before", "before: RuntimeError", "-before"]


# A refused handshake


async def refuses_with_http() -> None:
    raise HTTPException(401, "who are you")


async def refuses_with_websocket() -> None:
    raise WebSocketException(4401, "who are you")


def refuses_by_parameter(x_token: Annotated[str, Header()]) -> None:
    raise AssertionError("must not run")


def refuses_with_parameter_error() -> None:
    raise ParameterError([])


def refuses_below(_: Annotated[None, Depends(refuses_with_http)]) -> None:
    raise AssertionError("must not run")


async def refuses_by_closing(ws: WebSocket) -> None:
    await ws.close(4401, "who are you")


async def refuses_by_denial(ws: WebSocket) -> None:
    await ws.send_denial_response(Response("who are you", 401))


async def finds_the_client_gone() -> None:
    raise WebSocketDisconnect(1006)


def breaks() -> None:
    raise ValueError("a secret")


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE], ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("guard", "status", "close"),
    [
        (refuses_with_http, 401, None),
        (refuses_with_websocket, 403, (4401, "who are you")),
        (refuses_by_parameter, 403, (1008, "header 'x-token': is missing")),
        (refuses_with_parameter_error, 403, (1008, "")),
        (refuses_below, 401, None),
        (refuses_by_closing, 403, (4401, "who are you")),
        (refuses_by_denial, 401, None),
        (finds_the_client_gone, 403, None),
        (breaks, 500, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_refused_handshake_runs_no_later_dependency(
    guard: Dependency, status: int, close: tuple[int, str] | None, shape: Shape
) -> None:
    # T29
    log: Log = []
    app = App(dependencies=[Depends(opening(log, "before"))])
    router = Router(dependencies=[Depends(guard), Depends(opening(log, "router"))])

    @router.websocket("/", dependencies=[Depends(noting(log, "route"))])
    async def handler(ws: WebSocket, value: Annotated[str, Depends(noting(log, "parameter"))]) -> None:
        log.append("handler")

    app.include_router(router, dependencies=[Depends(noting(log, "include"))])
    server = FakeServer(shape)
    error = await outcome(app, server)
    assert error is None or guard is breaks
    assert (log[0], log[-1]) == ("+before", "-before")
    assert not {"+router", "route", "include", "parameter", "handler"}.intersection(log)
    if shape.denial:
        assert (server.status, server.closed) == (status, close)
    else:
        assert server.status == 403


@pytest.mark.parametrize("kind", ["websocket", "http"])
async def test_an_exception_handler_sees_what_a_dependency_raised(kind: str) -> None:
    app = App(dependencies=[Depends(breaks)])

    @app.exception_handler(ValueError)
    async def mapped(connection: Connection, error: ValueError) -> Response:
        return Response(str(error), 418)

    register(app, kind, "/", telling(kind, noting([], "")))
    if kind == "websocket":
        server = await connect(app)
        assert (server.status, server.body) == (418, b"a secret")
    else:
        answer = await request(app, "POST", "/")
        assert (answer.status, answer.body) == (418, b"a secret")


# Several values that do not validate


def details(answer: HTTPAnswer) -> list[str]:
    """What a client is told of its values."""
    assert answer.status == 422, answer
    return [" ".join(map(str, problem["loc"])) for problem in json.loads(answer.body)["detail"]]


def chain_of_parameters(log: Log) -> App:
    """An app that wants a parameter of every dependency."""

    def fine(a: int = 1) -> None:
        log.append("fine")

    def first(b: int) -> None:
        log.append("first")

    def below(x_token: Annotated[str, Header()]) -> None:
        log.append("below")

    def second(_: Annotated[None, Depends(below)], c: Annotated[int, Query(ge=1)]) -> None:
        log.append("second")

    def third(fine: Annotated[None, Depends(fine)], d: str = Cookie()) -> None:
        log.append("third")

    app = App(dependencies=[Depends(fine), Depends(first)])

    async def handler(connection: Connection, value: Annotated[None, Depends(third)], e: int) -> None:
        log.append("handler")

    for kind in ("websocket", "http"):
        register(app, kind, "/", handler, dependencies=[Depends(second)])
    return app


async def test_all_values_that_do_not_validate_are_told_and_nothing_runs_after_the_first() -> None:
    log: Log = []
    app = chain_of_parameters(log)
    answer = await request(app, "POST", "/", query="b=x&c=0")
    assert details(answer) == ["query b", "header x-token", "query c", "cookie d", "query e"]
    server = await connect(app, query="b=1&c=0", headers={"x-token": "t"})
    assert server.closed == (1008, "query 'c': expected `int` >= 1; cookie 'd': is missing; query 'e': is missing")
    assert log == ["fine", "fine", "first", "below"]


async def test_a_value_that_two_dependencies_want_is_told_once() -> None:
    def below(x_token: Annotated[str, Header()]) -> None: ...

    def one(_: Annotated[None, Depends(below)]) -> None: ...

    def two(_: Annotated[None, Depends(below)]) -> None: ...

    app = App(dependencies=[Depends(one), Depends(two)])
    app.post("/")(telling("http", below))
    assert details(await request(app, "POST", "/")) == ["header x-token"]


async def test_a_body_that_came_is_not_told_as_missing_by_who_is_not_run_any_more() -> None:
    def first(a: int) -> None: ...

    app = App(dependencies=[Depends(first)])
    app.post("/")(telling("http", wants_body))
    assert details(await request(app, "POST", "/", body=b'{"n": 1}')) == ["query a"]
    assert details(await request(app, "POST", "/", body=b'{"n": "x"}')) == ["query a", "body $.n"]


async def test_what_an_override_does_not_want_is_not_told_as_missing() -> None:
    def first(a: int) -> None: ...

    def login(x_token: Annotated[str, Header()]) -> None: ...

    def fake(name: str) -> None: ...

    app = App(dependencies=[Depends(first), Depends(login)])
    app.post("/")(telling("http", noting([], "")))
    app.dependency_overrides[login] = fake
    assert details(await request(app, "POST", "/")) == ["query a", "query name"]


# Endpoints that are async generators


@pytest.mark.parametrize("takes_websocket", [False, True], ids=["watched", "has the WebSocket"])
@pytest.mark.parametrize("how", ["returns", "fails", "cancelled", "the client leaves"])
async def test_a_stream_is_closed_before_what_it_depends_on(how: str, takes_websocket: bool) -> None:
    # T39
    log: Log = []
    app = App(dependencies=[Depends(opening(log, "app"))])
    Name = Annotated[str, Depends(opening(log, "name"))]

    async def next_item(receive: Callable[[], Awaitable[Any]]) -> None:
        if how == "fails":
            raise ValueError("a secret")
        if how != "returns":
            await receive()

    async def watched(name: Name) -> AsyncIterator[str]:
        try:
            yield name
            await next_item(anyio.sleep_forever)
        finally:
            log.append("stream closed")

    async def reading(ws: WebSocket, name: Name) -> AsyncIterator[str]:
        try:
            yield name
            await next_item(ws.receive_text)
        finally:
            log.append("stream closed")

    app.websocket("/")(reading if takes_websocket else watched)
    server = FakeServer()
    if how == "the client leaves":
        server.leave()
    raised = await outcome(app, server, accepted if how == "cancelled" else None)
    assert (label(raised) if raised else None) == {"fails": "ValueError", "cancelled": "cancelled"}.get(how)
    assert [entry for entry in log if ":" not in entry] == ["+app", "+name", "stream closed", "-name", "-app"]
    assert server.closed == {
        "returns": (1000, ""), "fails": (1011, "internal error"), "cancelled": (1012, "the server stops"),
    }.get(how)  # fmt: skip


async def test_a_stream_whose_dependency_refuses_is_not_accepted() -> None:
    log: Log = []
    app = App(dependencies=[Depends(opening(log, "before"))])

    @app.websocket("/")
    async def stream(value: Annotated[None, Depends(refuses_with_http)]) -> AsyncIterator[str]:
        log.append("must not run")
        yield ""

    assert (await connect(app)).status == 401
    assert log == ["+before", "before: HTTPException", "-before"]


# Many connections at once


async def test_connections_share_nothing_that_was_made_for_one() -> None:
    # S23
    count = 200
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    alive: set[int] = set()
    opened = anyio.Event()

    class Session:
        def __init__(self, n: int) -> None:
            self.n = n

    async def session(connection: Connection, n: int) -> AsyncIterator[Session]:
        await anyio.lowlevel.checkpoint()
        connection.state.n = n
        name.set(f"connection {n}")
        alive.add(n)
        if len(alive) == count:
            opened.set()
        found = Session(n)
        yield found
        assert (found.n, name.get()) == (n, f"connection {n}")
        alive.remove(n)

    async def user(session: Annotated[Session, Depends(session)], connection: Connection) -> str:
        await opened.wait()  # all of them are being served now
        return f"{session.n} {connection.state.n}"

    app = App(dependencies=[Depends(user)])

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        n: int,
        mine: Annotated[Session, Depends(session)],
        user: Annotated[str, Depends(user)],
    ) -> None:
        await ws.accept()
        await ws.send_json([n, mine.n, user, name.get()])

    servers = [FakeServer(query=f"n={n}") for n in range(count)]
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for server in servers:
                group.start_soon(app, server.scope, server.receive, server.send)
    assert [json.loads(*server.texts) for server in servers] == [
        [n, n, f"{n} {n}", f"connection {n}"] for n in range(count)
    ]
    assert not alive


async def test_a_connection_is_cleaned_up_while_another_goes_on() -> None:
    log: Log = []
    app = App()

    def session(n: int) -> Iterator[int]:
        log.append(f"+{n}")
        yield n
        log.append(f"-{n}")

    @app.websocket("/")
    async def handler(ws: WebSocket, n: Annotated[int, Depends(session)]) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(f"{n} {text}")

    servers = [FakeServer(query=f"n={n}") for n in range(3)]
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for server in servers:
                group.start_soon(app, server.scope, server.receive, server.send)
                await server.until(accepted)
            for n, others in ((1, (0, 2)), (0, (2,)), (2, ())):
                servers[n].leave()
                await soon(functools.partial(log.__contains__, f"-{n}"))
                for other in others:
                    servers[other].say(f"after {n}")
                    text = f"{other} after {n}"
                    await servers[other].until(lambda server, text=text: text in server.texts)  # type: ignore[misc]
    assert log == ["+0", "+1", "+2", "-1", "-0", "-2"]
