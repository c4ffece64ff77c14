"""How long what a handler depends on lives, in which thread it is made, and when it expires."""

import asyncio
import contextlib
import contextvars
import dataclasses
import datetime as dt
import functools
import inspect
import logging
import math
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import pytest

from asgiws import (
    App,
    Connection,
    Depends,
    HTTPException,
    Request,
    Router,
    SignatureError,
    WebSocket,
    WebSocketException,
    controller,
    dependencies,
    endpoints,
    hooks,
)
from tests.fakes import DAPHNE, DEADLINE, SHAPES, FakeServer, Shape, converse, request, soon

pytestmark = pytest.mark.anyio

Log = list[str]

every_kind = pytest.mark.parametrize("kind", ["websocket", "http"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


async def connect(app: App, path: str = "/", raises: type[Exception] | None = None) -> FakeServer:
    """A whole connection on which the client says nothing and does not leave."""
    server = FakeServer(path=path)
    if raises is None:
        return await converse(app, server, leave=-1)
    with pytest.raises(raises):
        await converse(app, server, leave=-1)
    return server


async def talk(app: App, server: FakeServer, *messages: str) -> FakeServer:
    """A whole connection on which the client leaves when it has got as many messages as it has sent."""
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            for count, message in enumerate(messages, 1):
                server.say(message)
                await server.until(lambda found, count=count: len(found.texts) == count)  # type: ignore[misc]
            server.leave()
    assert not server.choked
    return server


async def accepts(ws: WebSocket) -> None:
    await ws.accept()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says at the level of a warning or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Which lives longer


def session() -> Iterator[str]:
    yield "session"


def user(value: Annotated[str, Depends(session, scope="handshake")]) -> str:
    return f"user of {value}"


async def account(value: Annotated[str, Depends(user)]) -> str:
    return f"account of {value}"


class Service:
    """A class that needs what is gone before it."""

    def __init__(self, value: Annotated[str, Depends(session, scope="handshake")]) -> None: ...


LIVES = "lives as long as its connection, but needs session, which lives until the handshake is answered"


def register_parameter(app: App, marker: Any) -> None:
    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[str, marker]) -> None: ...


def register_route(app: App, marker: Any) -> None:
    app.websocket("/", dependencies=[marker])(accepts)


def register_request(app: App, marker: Any) -> None:
    @app.get("/")
    async def handler(value: Annotated[str, marker]) -> str:
        return value


def register_controller(app: App, marker: Any) -> None:
    @controller("/")
    class Lobby:
        def __init__(self, value: Annotated[str, marker]) -> None: ...

        async def on_message(self, message: str) -> None: ...

    app.include(Lobby)


def register_on_message(app: App, marker: Any) -> None:
    @controller("/")
    class Lobby:
        async def on_message(self, message: str, value: Annotated[str, marker]) -> None: ...

    app.include(Lobby)


@pytest.mark.parametrize("register", [register_parameter, register_route, register_request])
@pytest.mark.parametrize("scope", [None, "connection", "function", "request"])
@pytest.mark.parametrize(
    ("dependency", "name", "chain"),
    [
        (user, "user", "user -> session"),
        (account, "user", "account -> user -> session"),
        (Service, "Service", "Service -> session"),
        (functools.partial(user), "functools.partial", "session"),
    ],
    ids=["function", "further down", "class", "partial"],
)
def test_what_lives_longer_than_what_it_needs_is_refused_with_the_chain(
    dependency: Callable[..., Any], name: str, chain: str, scope: Any, register: Callable[[App, Any], None]
) -> None:
    with pytest.raises(SignatureError) as caught:
        register(App(), Depends(dependency, scope=scope))
    text = str(caught.value)
    assert name in text
    assert LIVES in text
    assert chain in text
    assert "Give what is needed the wider scope, or what needs it the narrower one." in text
    assert "test_scopes.py:" in text


@pytest.mark.parametrize("register", [register_parameter, register_route, register_request])
def test_what_is_needed_by_its_like_is_let_through(register: Callable[[App, Any], None]) -> None:
    register(App(), Depends(user, scope="handshake"))
    register(App(), Depends(Service, scope="handshake"))
    register(App(), Depends(session, scope="handshake"))


def test_all_in_between_needs_the_narrower_scope_too() -> None:
    # `account` asks for `user` without a scope, which is that of the connection whoever asks.
    with pytest.raises(SignatureError, match="user lives as long as its connection"):
        register_parameter(App(), Depends(account, scope="handshake"))


def test_an_object_of_a_connection_cannot_need_what_is_over_with_the_handshake() -> None:
    with pytest.raises(SignatureError) as caught:
        register_controller(App(), Depends(session, scope="handshake"))
    assert LIVES in str(caught.value)
    assert "Lobby -> session" in str(caught.value)


@pytest.mark.parametrize("dependency", [session, user], ids=lambda one: one.__name__)
def test_what_is_asked_for_each_message_cannot_be_over_with_the_handshake(dependency: Callable[..., Any]) -> None:
    with pytest.raises(SignatureError) as caught:
        register_on_message(App(), Depends(dependency, scope="handshake"))
    text = str(caught.value)
    assert "what is asked for each message" in text
    assert "is over with the handshake" in text


def test_what_a_message_asks_for_asks_for_no_handshake_either() -> None:
    with pytest.raises(SignatureError, match=r"is over with the handshake.*user -> session"):
        register_on_message(App(), Depends(user))


@pytest.mark.parametrize("dependency", [user, account], ids=lambda one: one.__name__)
async def test_an_override_that_lives_longer_than_what_it_needs_is_told_by_the_chain(
    dependency: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def real() -> str:
        raise AssertionError("must not run")

    app = App()
    register_parameter(app, Depends(real))
    app.dependency_overrides[real] = dependency
    assert (await connect(app, raises=SignatureError)).status == 500
    assert "user -> session" in caplog.text


# One value each


@dataclasses.dataclass
class Numbers:
    """Gives the next number each time, and notes when it is closed."""

    last: int = 0
    closed: list[int] = dataclasses.field(default_factory=list)

    def __call__(self) -> Iterator[int]:
        self.last += 1
        number = self.last
        yield number
        self.closed.append(number)

    __hash__ = object.__hash__


@pytest.mark.parametrize("scope", ["handshake", "connection", "function", "request", None])
@pytest.mark.parametrize("use_cache", [True, False])
async def test_one_scope_asks_once_or_each_asks_anew(scope: Any, use_cache: bool) -> None:
    numbers = Numbers()
    marker = Depends(numbers, scope=scope, use_cache=use_cache)
    app = App(dependencies=[marker])
    seen: list[int] = []

    def below(number: Annotated[int, marker]) -> None:
        seen.append(number)

    @app.websocket("/", dependencies=[marker, Depends(below, scope=scope)])
    async def handler(ws: WebSocket, number: Annotated[int, marker]) -> None:
        seen.append(number)
        await ws.accept()

    await connect(app)
    assert seen == ([1, 1] if use_cache else [3, 4])
    assert numbers.closed == ([1] if use_cache else [4, 3, 2, 1])


async def test_the_names_of_one_scope_share_their_value() -> None:
    numbers = Numbers()
    app = App()
    names: Any = ("connection", "function", "request", None)

    @app.get("/", dependencies=[Depends(numbers, scope=name) for name in names])
    async def handler(number: Annotated[int, Depends(numbers)]) -> int:
        return number

    assert (await request(app, "GET", "/")).body == b"1"
    assert numbers.closed == [1]


async def test_two_scopes_have_a_value_each() -> None:
    numbers = Numbers()
    app = App()

    @app.websocket("/", dependencies=[Depends(numbers), Depends(numbers, scope="handshake")])
    async def handler(
        ws: WebSocket,
        short: Annotated[int, Depends(numbers, scope="handshake")],
        long: Annotated[int, Depends(numbers)],
    ) -> None:
        assert (long, short) == (1, 2)
        await ws.accept()
        await soon(lambda: numbers.closed)
        assert numbers.closed == [2]

    await connect(app)
    assert numbers.closed == [2, 1]


async def test_every_connection_has_a_value_of_its_own() -> None:
    numbers = Numbers()
    app = App()
    app.websocket("/", dependencies=[Depends(numbers, scope="handshake")])(accepts)
    for count in (1, 2, 3):
        await connect(app)
        assert numbers.closed == list(range(1, count + 1))


async def test_each_message_asks_anew_what_says_nothing_of_its_scope() -> None:
    numbers, lasting = Numbers(), Numbers()

    @controller("/")
    class Counting:
        async def on_message(
            self,
            message: str,
            number: Annotated[int, Depends(numbers)],
            again: Annotated[int, Depends(numbers)],
            same: Annotated[int, Depends(lasting, scope="connection")],
        ) -> str:
            assert numbers.closed == list(range(1, number))
            return f"{number} {again} {same}"

    app = App()
    app.include(Counting)
    server = await talk(app, FakeServer(), "a", "b", "c")
    assert server.texts == ["1 1 1", "2 2 1", "3 3 1"]
    assert (numbers.closed, lasting.closed) == ([1, 2, 3], [1])


# Overrides


@pytest.mark.parametrize("fake", ["function", "plain", "async"])
@pytest.mark.parametrize("place", ["app", "router", "route", "parameter", "dependency"])
async def test_an_override_lives_as_long_as_what_it_replaces(place: str, fake: str) -> None:
    log: Log = []

    def real() -> str:
        raise AssertionError("must not run")

    def function() -> str:
        log.append("+fake")
        return "fake"

    def plain() -> Iterator[str]:
        log.append("+fake")
        yield "fake"
        log.append("-fake")

    async def generator() -> AsyncIterator[str]:
        log.append("+fake")
        yield "fake"
        log.append("-fake")

    marker = Depends(real, scope="handshake")

    def below(value: Annotated[str, marker]) -> None:
        assert value == "fake"

    here: dict[str, list[Any]] = {name: [] for name in ("app", "router", "route")} | {place: [marker]}
    app = App(dependencies=here["app"])
    router = Router(dependencies=here["router"])
    shut = ["-fake"] if fake != "function" else []

    @router.websocket("/", dependencies=[*here["route"], Depends(below, scope="handshake")])
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await soon(lambda: log == ["+fake", *shut])
        log.append("goes on")

    app.include_router(router)
    app.dependency_overrides[real] = {"function": function, "plain": plain, "async": generator}[fake]
    await connect(app)
    assert log == ["+fake", *shut, "goes on"]


async def test_an_override_of_what_runs_in_a_thread_may_be_async() -> None:
    def real() -> str:
        raise AssertionError("must not run")

    async def fake() -> AsyncIterator[str]:
        yield "fake"

    app = App()
    app.get("/")(telling(Depends(real, thread=True)))
    app.dependency_overrides[real] = fake
    assert (await request(app, "GET", "/")).body == b"fake"


# In a thread


def telling(marker: Any) -> Callable[..., Awaitable[Any]]:
    """A handler of HTTP that answers with its dependency's value."""

    async def handler(value: Annotated[Any, marker]) -> str:
        return str(value)

    return handler


def here() -> str:
    """The thread that this is called in."""
    return "loop" if _is_loop() else "thread"


def _is_loop() -> bool:
    try:
        anyio.get_current_task()
    except (RuntimeError, anyio.NoEventLoopError):
        return False
    return True


def function(n: int = 1) -> str:
    return f"{here()} {n}"


class Made:
    """Made where it is made."""

    def __init__(self, n: int = 1) -> None:
        self.text = f"{here()} {n}"

    def __str__(self) -> str:
        return self.text


class Callable1:
    def __call__(self, n: int = 1) -> str:
        return f"{here()} {n}"

    def method(self, n: int = 1) -> str:
        return f"{here()} {n}"


closed: Log = []


@pytest.fixture(autouse=True)
def _nothing_closed() -> None:
    closed.clear()


def generator(n: int = 1) -> Iterator[str]:
    yield f"{here()} {n}"
    closed.append(here())


class GeneratorCallable:
    def __call__(self, n: int = 1) -> Iterator[str]:
        yield from generator(n)


def coroutine(n: int = 1) -> Awaitable[str]:
    """A plain function that gives a coroutine, as one does that a decorator has wrapped: that is for the loop."""
    made_in = here()

    async def later() -> str:
        return f"{made_in} {n}"

    return later()


IN_THREADS: dict[str, Callable[..., Any]] = {
    "function": function,
    "class": Made,
    "object": Callable1(),
    "method": Callable1().method,
    "partial": functools.partial(function),
    "lambda": lambda n=1: function(n),
    "gives a coroutine": coroutine,
    "generator": generator,
    "generator object": GeneratorCallable(),
    "partial of a generator": functools.partial(generator),
}


@every_kind
@pytest.mark.parametrize("thread", [True, False])
@pytest.mark.parametrize("dependency", IN_THREADS.values(), ids=IN_THREADS)
async def test_what_is_not_async_runs_in_a_thread_if_told_so(
    dependency: Callable[..., Any], thread: bool, kind: str
) -> None:
    app = App()
    marker = Depends(dependency, thread=thread)
    if kind == "http":
        app.get("/")(telling(marker))
        answer = (await request(app, "GET", "/", query="n=7")).body.decode()
    else:

        @app.websocket("/")
        async def handler(ws: WebSocket, value: Annotated[Any, marker]) -> None:
            await ws.accept()
            await ws.send_text(str(value))

        (answer,) = (await converse(app, FakeServer(query="n=7"), leave=-1)).texts
    where = "thread" if thread else "loop"
    assert answer == f"{where} 7"
    assert closed == ([where] if "generator" in _label(dependency) else [])


def _label(dependency: Callable[..., Any]) -> str:
    return next(name for name, one in IN_THREADS.items() if one is dependency)


@pytest.mark.parametrize("scope", ["handshake", "connection"])
async def test_a_generator_in_a_thread_is_closed_in_one_however_its_handler_ended(scope: str) -> None:
    log: Log = []

    def resource() -> Iterator[None]:
        log.append(here())
        try:
            yield
        except LookupError as error:
            log.append(f"{here()}: {error}")
            raise
        finally:
            log.append(here())

    app = App()

    @app.websocket("/", dependencies=[Depends(resource, scope=scope, thread=True)])
    async def handler(ws: WebSocket) -> None:
        raise LookupError("nothing there")

    assert (await connect(app, raises=LookupError)).status == 500
    assert log == ["thread", "thread: nothing there", "thread"]


async def test_each_message_may_ask_a_thread() -> None:
    @controller("/")
    class Lobby:
        async def on_message(self, message: str, value: Annotated[str, Depends(generator, thread=True)]) -> str:
            return f"{message} {value}"

    app = App()
    app.include(Lobby)
    assert (await talk(app, FakeServer(query="n=7"), "a", "b")).texts == ["a thread 7", "b thread 7"]
    assert closed == ["thread", "thread"]


async def async_function() -> None: ...


async def async_generator() -> AsyncIterator[None]:
    yield


class AsyncCallable:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize("register", [register_parameter, register_route, register_request, register_on_message])
@pytest.mark.parametrize(
    "dependency",
    [async_function, async_generator, AsyncCallable(), functools.partial(async_function)],
    ids=["function", "generator", "object", "partial"],
)
def test_what_is_async_has_no_business_in_a_thread(
    dependency: Callable[..., Any], register: Callable[[App, Any], None]
) -> None:
    with pytest.raises(SignatureError) as caught:
        register(App(), Depends(dependency, thread=True))
    assert "thread=True) is async" in str(caught.value)
    assert "leave thread=True out" in str(caught.value)


async def test_a_thread_sees_the_context_of_its_connection() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    async def sets() -> None:
        variable.set("of this connection")

    def reads() -> str:
        return variable.get()

    app = App(dependencies=[Depends(sets)])
    app.get("/")(telling(Depends(reads, thread=True)))
    assert (await request(app, "GET", "/")).body == b"of this connection"


async def test_the_event_loop_goes_on_while_a_thread_blocks() -> None:
    let_go = threading.Event()

    def blocks() -> Iterator[bool]:
        assert let_go.wait(DEADLINE)
        yield True
        assert let_go.wait(DEADLINE)

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, done: Annotated[bool, Depends(blocks, thread=True)]) -> None:
        await ws.accept()
        let_go.clear()

    app.websocket("/other")(accepts)
    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            for closing in (False, True):
                assert (await connect(app, "/other")).closed == (1000, "")
                assert (server.status, server.closed) == ((101 if closing else None), None)
                let_go.set()
                if not closing:
                    await soon(lambda: server.status == 101 and not let_go.is_set())
    assert server.closed == (1000, "")


@every_kind
@pytest.mark.parametrize(
    ("error", "status"),
    [(HTTPException(401), 401), (WebSocketException(4401), 403), (ValueError("a secret"), 500), (StopIteration(), 500)],
    ids=repr,
)
@pytest.mark.parametrize("yields", [True, False], ids=["generator", "function"])
async def test_what_a_thread_raises_is_what_the_dependency_raises(
    error: Exception, status: int, yields: bool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # T29
    def raises() -> None:
        raise error

    def raises_and_yields() -> Iterator[None]:
        raise error
        yield

    app = App(dependencies=[Depends(raises_and_yields if yields else raises, thread=True)])
    app.websocket("/")(accepts)
    app.get("/")(telling(Depends(function)))
    if kind == "websocket":
        server = await connect(app, raises=Exception if status == 500 else None)
        assert server.status == status
    elif not isinstance(error, WebSocketException):
        raised = Exception if status == 500 else None
        assert (await request(app, "GET", "/", raises=raised)).status == status
    if isinstance(error, ValueError):
        assert caplog.text.count("ValueError: a secret") == 1


async def test_a_server_that_stops_waits_for_a_thread_and_cleans_up() -> None:
    # T38: a thread cannot be stopped, and what it was opening has to be closed.
    log: Log = []
    let_go = threading.Event()

    def resource() -> Iterator[None]:
        log.append("opening")
        assert let_go.wait(DEADLINE)
        try:
            yield
        finally:
            log.append("closed")

    app = App()

    @app.websocket("/", dependencies=[Depends(resource, thread=True)])
    async def handler(ws: WebSocket) -> None:
        await anyio.sleep_forever()

    server = FakeServer()
    try:
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as group:
                group.start_soon(app, server.scope, server.receive, server.send)
                await soon(lambda: log == ["opening"])
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    for _ in range(20):
                        await anyio.lowlevel.checkpoint()
                    assert server.sent == []
                let_go.set()
    finally:
        let_go.set()
    assert log == ["opening", "closed"]
    assert server.closed == (1012, "the server stops")


async def test_many_connections_wait_for_their_threads_at_once() -> None:
    count = 10
    barrier = threading.Barrier(count)

    def meets() -> None:
        barrier.wait(DEADLINE)

    app = App(dependencies=[Depends(meets, thread=True)])
    app.websocket("/")(accepts)
    servers: list[FakeServer] = []

    async def one() -> None:
        servers.append(await connect(app))

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
    assert [server.closed for server in servers] == [(1000, "")] * count


# What holds up the event loop


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def block(self, seconds: float = 0.0625) -> None:
        """Hold up the event loop, as far as anybody can tell."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def blocking_ones(clock: Clock) -> dict[str, tuple[Callable[..., Any], int]]:
    """Dependencies that hold up the event loop, and how often each does for one connection."""

    def blocks() -> None:
        clock.block()

    def raises() -> None:
        clock.block()
        raise HTTPException(401)

    def while_opening() -> Iterator[None]:
        clock.block()
        yield

    def while_closing() -> Iterator[None]:
        yield
        clock.block()

    def twice() -> Iterator[None]:
        clock.block()
        yield
        clock.block()

    class Blocks:
        def __init__(self) -> None:
            clock.block()

    class CalledBlocks:
        def __call__(self) -> None:
            clock.block()

    return {
        "function": (blocks, 1),
        "raises": (raises, 1),
        "class": (Blocks, 1),
        "object": (CalledBlocks(), 1),
        "partial": (functools.partial(blocks), 1),
        "opening": (while_opening, 1),
        "closing": (while_closing, 1),
        "opening and closing": (twice, 2),
    }


BLOCKING = ["function", "raises", "class", "object", "partial", "opening", "closing", "opening and closing"]


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("scope", ["connection", "handshake"])
@pytest.mark.parametrize("name", BLOCKING)
async def test_a_debugging_app_tells_by_name_and_place_who_holds_up_the_event_loop(
    name: str, scope: str, debug: bool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dependency, times = blocking_ones(clock)[name]
    app = App(debug=debug)
    app.websocket("/", dependencies=[Depends(dependency, scope=scope)])(accepts)
    await connect(app)
    told = warnings(caplog)
    assert len(told) == (times if debug else 0)
    for text in told:
        assert text.startswith("test_scopes.blocking_ones.")
        assert "test_scopes.py:" in text
        assert text.endswith("held up the event loop for 62 ms: make it async, or write Depends(..., thread=True)")


@pytest.mark.parametrize("name", BLOCKING)
async def test_it_tells_of_requests_and_of_dependencies_further_down_too(
    name: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dependency, times = blocking_ones(clock)[name]

    def above(value: Annotated[Any, Depends(dependency)]) -> None: ...

    app = App(debug=True)
    app.get("/", dependencies=[Depends(above)])(telling(Depends(function)))
    await request(app, "GET", "/")
    assert len(warnings(caplog)) == times


async def test_each_call_is_told_of(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    dependency, _ = blocking_ones(clock)["function"]
    marker = Depends(dependency, use_cache=False)
    app = App(debug=True, dependencies=[marker, marker])
    app.websocket("/")(accepts)
    for connections in (1, 2):
        await connect(app)
        assert len(warnings(caplog)) == 2 * connections


async def test_a_kept_value_is_not_told_of_again(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    dependency, _ = blocking_ones(clock)["function"]
    app = App(debug=True, dependencies=[Depends(dependency), Depends(dependency)])
    app.websocket("/")(accepts)
    await connect(app)
    assert len(warnings(caplog)) == 1


async def test_each_message_that_is_held_up_is_told_of(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    dependency, _ = blocking_ones(clock)["opening and closing"]

    @controller("/")
    class Lobby:
        async def on_message(self, message: str, value: Annotated[Any, Depends(dependency)]) -> None: ...

    app = App(debug=True)
    app.include(Lobby)
    await converse(app, FakeServer(), "a", "b")
    assert len(warnings(caplog)) == 4


@pytest.mark.parametrize(("seconds", "told"), [(0.0, ""), (0.046875, ""), (0.0546875, "54 ms"), (2.5, "2500 ms")])
async def test_over_50_ms_are_told_of(
    seconds: float, told: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def blocks() -> None:
        clock.block(seconds)

    app = App(debug=True, dependencies=[Depends(blocks)])
    app.websocket("/")(accepts)
    await connect(app)
    found = warnings(caplog)
    assert len(found) == bool(told)
    assert not told or f"for {told}:" in found[0]


@pytest.mark.parametrize("scope", ["connection", "handshake"])
async def test_what_waits_or_runs_in_a_thread_holds_up_nothing(
    scope: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def waits() -> None:
        clock.block()

    async def waits_and_yields() -> AsyncIterator[None]:
        clock.block()
        yield
        clock.block()

    markers = [Depends(one, scope=scope) for one in (waits, waits_and_yields)]
    markers += [Depends(one, scope=scope, thread=True) for one, _ in blocking_ones(clock).values()]
    app = App(debug=True)

    @app.websocket("/", dependencies=[one for one in markers if "raises" not in repr(one)])
    async def handler(ws: WebSocket) -> None:
        clock.block()
        await ws.accept()
        clock.block()

    assert (await connect(app)).closed == (1000, "")
    assert warnings(caplog) == []


async def test_one_that_really_blocks_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def sleeps() -> None:
        time.sleep(0.055)

    app = App(debug=True, dependencies=[Depends(sleeps)])
    app.websocket("/")(accepts)
    await connect(app)
    (text,) = warnings(caplog)
    assert "sleeps" in text
    assert "held up the event loop" in text


# Credentials that expire


@dataclasses.dataclass
class Principal:
    """Who a client is, and until when."""

    expires_at: Any
    name: str = "ann"


NOW = 1_800_000_000.0


@pytest.fixture
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Unix time stands still; the event loop's clock goes on."""
    monkeypatch.setattr(time, "time", lambda: NOW)


at_now = pytest.mark.usefixtures("_now")

UTC = dt.UTC
ELSEWHERE = dt.timezone(dt.timedelta(hours=-9, minutes=-30))

EXPIRED: dict[str, Any] = {
    "long ago": 0,
    "before there was time": -1.5,
    "an int": int(NOW) - 1,
    "a float": NOW - 0.001,
    "just now": NOW,
    "a datetime": dt.datetime.fromtimestamp(NOW - 1, UTC),
    "a datetime elsewhere": dt.datetime.fromtimestamp(NOW - 1, ELSEWHERE),
}
LASTING: dict[str, Any] = {
    "never": None,
    "an int": int(NOW) + 3600,
    "a float": NOW + 3600.5,
    "for ever": math.inf,
    "a datetime": dt.datetime.fromtimestamp(NOW + 3600, UTC),
    "a datetime elsewhere": dt.datetime.fromtimestamp(NOW + 3600, ELSEWHERE),
    "the last datetime": dt.datetime.max.replace(tzinfo=UTC),
}
SOON: dict[str, Any] = {
    "a float": NOW + 0.02,
    "a datetime": dt.datetime.fromtimestamp(NOW + 0.02, UTC),
    "a datetime elsewhere": dt.datetime.fromtimestamp(NOW + 0.02, ELSEWHERE),
}
EXPIRES = NOW + 0.02
WWW_AUTHENTICATE = b'Bearer error="invalid_token"'


def principal(expires_at: Any, how: str = "function", log: Log | None = None) -> Any:
    """A dependency on a principal, made in one of several ways."""
    noted = log if log is not None else []

    def plain() -> Principal:
        return Principal(expires_at)

    async def waiting() -> Principal:
        return Principal(expires_at)

    def made() -> Iterator[Principal]:
        try:
            yield Principal(expires_at)
        except BaseException as error:
            noted.append(f"principal: {error!r}")
            raise
        finally:
            noted.append("-principal")

    async def generated() -> AsyncIterator[Principal]:
        try:
            yield Principal(expires_at)
        except BaseException as error:
            noted.append(f"principal: {error!r}")
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            noted.append("-principal")

    class Known(Principal):
        def __init__(self) -> None:
            super().__init__(expires_at)

    calls: dict[str, Callable[..., Any]] = {
        "function": plain, "async function": waiting, "generator": made, "async generator": generated, "class": Known,
        "thread": plain, "generator in a thread": made, "handshake": generated, "plain for the handshake": plain,
    }  # fmt: skip
    return Depends(calls[how], scope="handshake" if "handshake" in how else "connection", thread="thread" in how)


WAYS = (
    "function", "async function", "generator", "async generator", "class", "thread", "generator in a thread",
    "handshake", "plain for the handshake",
)  # fmt: skip
every_way = pytest.mark.parametrize("how", WAYS)


def denial_header(server: FakeServer) -> bytes | None:
    """The `WWW-Authenticate` of a denial."""
    (start,) = (event for event in server.sent if event["type"] == "websocket.http.response.start")
    return dict(start["headers"]).get(b"www-authenticate")


@at_now
@pytest.mark.parametrize("expires_at", EXPIRED.values(), ids=EXPIRED)
async def test_expired_credentials_are_refused_at_the_handshake(expires_at: Any) -> None:
    # S7
    app = App()

    @app.websocket("/", dependencies=[principal(expires_at)])
    async def handler(ws: WebSocket) -> None:
        raise AssertionError("must not run")

    server = await connect(app)
    assert (server.status, server.body) == (401, b'{"detail":"the credentials have expired"}')
    assert denial_header(server) == WWW_AUTHENTICATE


@at_now
@every_way
async def test_expired_credentials_are_refused_however_they_were_found(how: str) -> None:
    log: Log = []
    app = App()
    app.websocket("/", dependencies=[principal(int(NOW) - 1, how, log)])(accepts)
    assert (await connect(app)).status == 401
    if log:
        assert log == ["principal: HTTPException(401, 'the credentials have expired')", "-principal"]


@at_now
@every_shape
async def test_expired_credentials_are_refused_on_every_server(shape: Shape) -> None:
    # T28
    app = App()
    app.websocket("/", dependencies=[principal(0)])(accepts)
    server = await converse(app, FakeServer(shape), leave=-1)
    assert server.status == (403 if shape is DAPHNE else 401)


@at_now
async def test_expired_credentials_are_refused_on_http() -> None:
    app = App()

    @app.get("/", dependencies=[principal(0)])
    async def handler() -> str:
        raise AssertionError("must not run")

    answer = await request(app, "GET", "/")
    assert (answer.status, answer.body) == (401, b'{"detail":"the credentials have expired"}')
    assert answer.header("www-authenticate") == WWW_AUTHENTICATE.decode()


@at_now
@pytest.mark.parametrize("expires_at", LASTING.values(), ids=LASTING)
async def test_credentials_that_last_stop_nothing(expires_at: Any) -> None:
    app = App(dependencies=[principal(expires_at)])
    app.websocket("/")(accepts)
    app.get("/")(telling(Depends(function)))
    assert (await connect(app)).closed == (1000, "")
    assert (await request(app, "GET", "/")).status == 200


def ways_to_wait(log: Log) -> dict[str, Callable[..., Any]]:
    """Handlers that hold a conversation until they are stopped."""

    async def sleeps(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("stopped")

    async def reads(ws: WebSocket) -> None:
        await ws.accept()
        try:
            async for _ in ws:
                raise AssertionError
        finally:
            log.append("stopped")

    async def group(ws: WebSocket) -> None:
        await ws.accept()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                group.start_soon(ws.receive_text)
        finally:
            log.append("stopped")

    async def stream() -> AsyncIterator[str]:
        try:
            yield "item"
            await anyio.sleep_forever()
        finally:
            log.append("stopped")

    async def reading_stream(ws: WebSocket) -> AsyncIterator[str]:
        try:
            yield "item"
            await ws.receive_text()
        finally:
            log.append("stopped")

    async def handler_that_cleans_up(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ws.send_text("goodbye")
                log.append("stopped")

    return {
        "sleeps": sleeps, "reads": reads, "in a group": group, "stream": stream, "reading stream": reading_stream,
        "cleans up": handler_that_cleans_up,
    }  # fmt: skip


WAITING = ("sleeps", "reads", "in a group", "stream", "reading stream", "cleans up")
CLOSED = (4401, "the credentials have expired")


@at_now
@pytest.mark.parametrize("handler", WAITING)
@pytest.mark.parametrize("expires_at", SOON.values(), ids=SOON)
async def test_credentials_that_expire_end_the_connection(expires_at: Any, handler: str) -> None:
    # T39: a stream is closed too.
    log: Log = []
    app = App()
    app.websocket("/", dependencies=[principal(expires_at)])(ways_to_wait(log)[handler])
    server = await connect(app)
    assert (server.status, server.closed) == (101, CLOSED)
    assert log == ["stopped"]


@at_now
@every_way
async def test_credentials_that_expire_end_the_connection_however_they_were_found(how: str) -> None:
    log: Log = []
    app = App()
    app.websocket("/", dependencies=[principal(EXPIRES, how, log)])(ways_to_wait(log)["sleeps"])
    assert (await connect(app)).closed == CLOSED
    expected: dict[str, Log] = {
        "handshake": ["-principal", "stopped"],
        "generator": ["stopped", "principal: HTTPException(401, 'the credentials have expired')", "-principal"],
    }
    expected |= dict.fromkeys(("async generator", "generator in a thread"), expected["generator"])
    assert log == expected.get(how, ["stopped"])


@at_now
@every_shape
async def test_credentials_that_expire_end_the_connection_on_every_server(shape: Shape) -> None:
    log: Log = []
    app = App()
    app.websocket("/", dependencies=[principal(EXPIRES)])(ways_to_wait(log)["reads"])
    server = await converse(app, FakeServer(shape), leave=-1)
    assert server.closed == CLOSED
    assert log == ["stopped"]


@at_now
async def test_credentials_that_expire_before_the_answer_refuse_the_handshake() -> None:
    app = App()

    @app.websocket("/", dependencies=[principal(EXPIRES)])
    async def handler(ws: WebSocket) -> None:
        await anyio.sleep_forever()

    server = await connect(app)
    assert server.status == 401
    assert denial_header(server) == WWW_AUTHENTICATE


@at_now
async def test_credentials_that_expire_end_a_request() -> None:
    log: Log = []
    app = App()

    @app.get("/", dependencies=[principal(EXPIRES, "async generator", log)])
    async def handler() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("stopped")
        return "never"

    answer = await request(app, "GET", "/")
    assert (answer.status, answer.header("www-authenticate")) == (401, WWW_AUTHENTICATE.decode())
    assert log == ["stopped", "principal: HTTPException(401, 'the credentials have expired')", "-principal"]


async def test_credentials_that_expired_while_later_dependencies_waited_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [NOW]
    monkeypatch.setattr(time, "time", lambda: now[0])
    app = App(dependencies=[principal(NOW + 60)])

    async def waits() -> None:
        now[0] += 61

    @app.websocket("/", dependencies=[Depends(waits)])
    async def handler(ws: WebSocket) -> None:
        raise AssertionError("must not run")

    assert (await connect(app)).status == 401


async def test_credentials_that_expire_after_a_dependency_accepted_close_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # S7: the token comes in the first message.
    monkeypatch.setattr(time, "time", lambda: NOW)

    async def first_message(ws: WebSocket) -> Principal:
        await ws.accept()
        return Principal(float(await ws.receive_text()))

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, known: Annotated[Principal, Depends(first_message)]) -> None:
        await anyio.sleep_forever()

    for expires_at in (NOW - 1, EXPIRES):
        server = await converse(app, FakeServer(), str(expires_at), leave=-1)
        assert server.closed == CLOSED


@at_now
@pytest.mark.parametrize("order", [(NOW + 3600, EXPIRES), (EXPIRES, NOW + 3600), (EXPIRES, None, math.inf)])
async def test_the_earliest_of_several_counts(order: tuple[Any, ...]) -> None:
    log: Log = []
    app = App(dependencies=[principal(one) for one in order])
    app.websocket("/")(ways_to_wait(log)["sleeps"])
    assert (await connect(app)).closed == CLOSED


@at_now
@pytest.mark.parametrize("use_cache", [True, False])
async def test_those_of_a_dependency_further_down_count(use_cache: bool) -> None:
    def token() -> Principal:
        return Principal(EXPIRES)

    marker = Depends(token, use_cache=use_cache)

    def name(one: Annotated[Principal, marker], again: Annotated[Principal, marker]) -> str:
        return one.name

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, name: Annotated[str, Depends(name)], token: Annotated[Principal, marker]) -> None:
        await ws.accept()
        await anyio.sleep_forever()

    assert (await connect(app)).closed == CLOSED


@at_now
async def test_those_of_an_override_count() -> None:
    def login() -> Principal:
        raise AssertionError("must not run")

    app = App(dependencies=[Depends(login)])
    app.websocket("/")(accepts)
    app.dependency_overrides[login] = lambda: Principal(0)
    assert (await connect(app)).status == 401
    app.dependency_overrides[login] = lambda: Principal(None)
    assert (await connect(app)).closed == (1000, "")


@at_now
@pytest.mark.parametrize("scope", [None, "connection"])
async def test_those_of_a_message_count(scope: Any) -> None:
    log: Log = []

    def token() -> Principal:
        log.append("asked")
        return Principal(EXPIRES)

    @controller("/")
    class Lobby:
        async def on_message(self, message: str, token: Annotated[Principal, Depends(token, scope=scope)]) -> None:
            log.append(message)
            try:
                await anyio.sleep_forever()
            finally:
                log.append("stopped")

        async def on_disconnect(self, code: int) -> None:
            log.append(str(code))

    app = App()
    app.include(Lobby)
    server = await converse(app, FakeServer(), "hello", "again", leave=-1)
    assert server.closed == CLOSED
    assert log == ["asked", "hello", "stopped", "4401"]


@at_now
async def test_those_of_a_message_count_for_that_message_alone() -> None:
    def token() -> Principal:
        return Principal(EXPIRES)

    @controller("/")
    class Lobby:
        async def on_message(self, message: str, token: Annotated[Principal, Depends(token)]) -> str:
            return message

    app = App()
    app.include(Lobby)
    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            server.say("one")
            await soon(lambda: server.texts == ["one"])
            await anyio.sleep(0.03)  # past the end of the first one
            server.say("two")
            await soon(lambda: server.texts == ["one", "two"])
            server.leave()
    assert server.closed is None


@at_now
async def test_who_expires_is_cleaned_up_in_order_and_sees_why() -> None:
    log: Log = []

    async def outer() -> AsyncIterator[None]:
        try:
            yield
        except HTTPException as error:
            log.append(f"outer: {error.status_code}")
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("-outer")

    app = App(dependencies=[Depends(outer), principal(EXPIRES, "async generator", log)])
    app.websocket("/")(ways_to_wait(log)["sleeps"])
    assert (await connect(app)).closed == CLOSED
    seen = "principal: HTTPException(401, 'the credentials have expired')"
    assert log == ["stopped", seen, "-principal", "outer: 401", "-outer"]


@at_now
async def test_an_exception_handler_may_say_it_in_other_words() -> None:
    app = App(dependencies=[principal(EXPIRES)])
    app.websocket("/")(ways_to_wait([])["sleeps"])

    @app.exception_handler(401)
    async def expired(connection: Connection, error: HTTPException) -> None:
        assert isinstance(connection, WebSocket)
        await connection.close(4000, str(error.detail).upper())

    assert (await connect(app)).closed == (4000, "THE CREDENTIALS HAVE EXPIRED")


@at_now
async def test_an_end_before_that_is_the_end() -> None:
    app = App(dependencies=[principal(NOW + 3600)])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        raise WebSocketException(4001, "bye")

    assert (await connect(app)).closed == (4001, "bye")


@at_now
async def test_a_handler_that_closed_and_goes_on_is_stopped_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    app = App(dependencies=[principal(EXPIRES)])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(4001, "bye")
        await anyio.sleep_forever()

    assert (await connect(app)).closed == (4001, "bye")
    assert warnings(caplog) == []


@at_now
async def test_a_server_that_stops_first_says_so() -> None:
    app = App(dependencies=[principal(NOW + 3600)])
    app.websocket("/")(ways_to_wait([])["sleeps"])
    server = FakeServer()
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await soon(lambda: server.status == 101)
        group.cancel_scope.cancel()
    assert server.closed == (1012, "the server stops")


@at_now
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_is_left_running_when_credentials_expired_or_did_not() -> None:
    before = asyncio.all_tasks()
    app = App()
    app.websocket("/expires", dependencies=[principal(EXPIRES, "handshake")])(ways_to_wait([])["sleeps"])
    app.websocket("/lasts", dependencies=[principal(NOW + 3600, "handshake")])(accepts)
    app.websocket("/expired", dependencies=[principal(0, "handshake")])(accepts)
    for path in ("/expires", "/lasts", "/expired"):
        await connect(app, path)
        await app.connections.rest()
        assert asyncio.all_tasks() == before
    loop = asyncio.get_running_loop()
    waiting = [one for one in getattr(loop, "_scheduled", ()) if not one.cancelled()]
    assert all(one.when() - loop.time() < 60 for one in waiting)


NO_MOMENTS: dict[str, Any] = {
    "a datetime without a zone": dt.datetime(2999, 1, 1),  # noqa: DTZ001 - that is the point
    "a date": dt.date(2999, 1, 1),
    "a duration": dt.timedelta(hours=1),
    "a str": "2999-01-01T00:00:00Z",
    "digits": "32503680000",
    "bytes": b"32503680000",
    "a list": [32503680000],
    "not a number": math.nan,
    "a bool": True,
}


@every_kind
@pytest.mark.parametrize("expires_at", NO_MOMENTS.values(), ids=NO_MOMENTS)
async def test_what_names_no_moment_is_a_500_that_the_log_explains(
    expires_at: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Who cannot be told when to go must not stay for ever.
    log: Log = []
    app = App(dependencies=[principal(expires_at, "generator", log)])
    app.websocket("/")(accepts)
    app.get("/")(telling(Depends(function)))
    if kind == "websocket":
        server = await connect(app, raises=TypeError)
        assert server.status == 500
        assert b"2999" not in server.body
    else:
        assert (await request(app, "GET", "/", raises=TypeError)).status == 500
    assert log[-1] == "-principal"
    found = "expires_at of what test_scopes.principal.made, tests/test_scopes.py:"
    assert found in caplog.text
    assert f"gives is a {type(expires_at).__name__} that names no moment" in caplog.text
    assert "make it a datetime with a time zone, or a Unix time in seconds" in caplog.text


async def test_what_has_a_method_of_that_name_expires_by_itself() -> None:
    class Cache:
        def expires_at(self, key: str) -> float:
            return 0.0

    app = App()
    app.get("/")(telling(Depends(Cache)))
    assert (await request(app, "GET", "/")).status == 200


# What is not asked for costs nothing


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Notes each time that dependencies are looked after."""
    log: Log = []

    def spying(where: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            log.append(where)
            return real(*args, **kwargs)

        return spy

    solved = dependencies.solved
    for module in (dependencies, endpoints, hooks):
        monkeypatch.setattr(module, "solved", spying(module.__name__, solved))
    for name in ("make", "solve"):
        monkeypatch.setattr(dependencies.Solved, name, spying(name, getattr(dependencies.Solved, name)))
    return log


async def test_an_endpoint_without_dependencies_looks_after_none(entered: Log) -> None:
    app = App()

    @app.websocket("/<name>")
    async def handler(ws: WebSocket, name: str, n: int = 1) -> None:
        await ws.accept()

    @app.websocket("/stream/<name>")
    async def stream(name: str) -> AsyncIterator[str]:
        yield name

    @app.get("/<name>")
    async def page(request: Request, name: str, app: App) -> str:
        return name

    await connect(app, "/ann")
    await connect(app, "/stream/ann")
    assert (await request(app, "GET", "/ann")).body == b"ann"
    assert (await connect(app, "/no/where")).status == 404
    assert entered == []


async def test_an_endpoint_with_dependencies_looks_after_them(entered: Log) -> None:
    app = App()
    app.websocket("/", dependencies=[Depends(function)])(accepts)
    await connect(app)
    assert entered == ["asgiws.endpoints", "solve", "make"]


async def test_a_message_without_dependencies_looks_after_none(entered: Log) -> None:
    @controller("/")
    class Lobby:
        def __init__(self, n: int = 1) -> None: ...

        async def on_message(self, message: str) -> str:
            return message

    app = App()
    app.include(Lobby)
    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await soon(lambda: server.status == 101)
            before = list(entered)
            server.say("hello")
            await soon(lambda: server.texts)
            assert entered == before
            server.leave()


MACHINERY = ("anyio", "asyncio", "trio", "outcome")
OF_VALUES = ("iscoroutine", "isawaitable")


@contextlib.contextmanager
def calls_of_inspect() -> Iterator[Log]:
    """The functions of `inspect` that are called, but for the event loop's own calls and what is asked of a value."""
    called: Log = []
    place = inspect.__file__

    def spy(frame: FrameType, event: str, arg: Any) -> None:
        back = frame.f_back
        if event == "call" and frame.f_code.co_filename == place and back is not None:
            caller = back.f_code.co_filename
            machinery = any(name in caller for name in MACHINERY)
            if caller != place and not machinery and frame.f_code.co_name not in OF_VALUES:
                called.append(f"{frame.f_code.co_name} from {Path(caller).name}:{back.f_lineno}")

    before = sys.getprofile()
    sys.setprofile(spy)
    try:
        yield called
    finally:
        sys.setprofile(before)


def test_the_spy_sees_a_call() -> None:
    with calls_of_inspect() as called:
        inspect.iscoroutinefunction(accepts)
    assert len(called) == 1
    assert called[0].startswith("iscoroutinefunction from test_scopes.py")


def everything() -> App:
    """An app that makes use of all that is planned."""

    async def waits(n: int = 1) -> AsyncIterator[int]:
        yield n

    class Thing:
        def __init__(self, n: Annotated[int, Depends(waits)]) -> None: ...

    needed = [
        Depends(function), Depends(async_function), Depends(generator), Depends(async_generator), Depends(Thing),
        Depends(Callable1()), Depends(functools.partial(function)), Depends(function, use_cache=False),
        Depends(generator, scope="handshake"), Depends(async_generator, scope="handshake"),
    ]  # fmt: skip
    app = App(debug=True, dependencies=needed)
    app.websocket("/")(accepts)

    @app.websocket("/stream")
    async def stream(value: Annotated[str, Depends(function)]) -> AsyncIterator[str]:
        yield value

    @controller("/lobby")
    class Lobby:
        async def on_connect(self, ws: WebSocket, value: Annotated[str, Depends(function)]) -> None:
            await ws.accept()

        async def on_message(self, message: str, value: Annotated[str, Depends(function)]) -> str:
            return message

        async def on_disconnect(self, code: int) -> None: ...

    app.include(Lobby)
    app.get("/")(telling(Depends(function)))
    return app


async def test_nothing_is_inspected_while_connections_are_served() -> None:
    app = everything()
    await connect(app)  # what is imported late is imported now
    with calls_of_inspect() as called:
        for _ in range(3):
            assert (await connect(app)).closed == (1000, "")
        for path in ("/stream", "/lobby"):
            await converse(app, FakeServer(path=path), "hello")
        await request(app, "GET", "/")
    # What a handler of HTTP returned may be a response of another framework: that is asked of it each time.
    assert [one for one in called if "http.py" not in one] == []
