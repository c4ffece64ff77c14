"""The life of a service: told by the server, started by the first connection, or run by whoever mounts the app."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgiws import App, ConfigurationError, Middleware, Router, WebSocket
from asgiws.types import ASGIApp, Receive, Scope, Send
from tests.fakes import DAPHNE, DEADLINE, GRANIAN, SHAPES, UVICORN, FakeServer, Shape, converse, request

pytestmark = pytest.mark.anyio

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


class Notes(list[str]):
    """What happened, in order."""

    def lifespan(self, name: str = "app", state: Any = None) -> Callable[[Any], Any]:
        """A lifespan that notes its start and its end."""

        @contextlib.asynccontextmanager
        async def span(app: Any) -> AsyncIterator[Any]:
            await anyio.lowlevel.checkpoint()
            self.append(f"{name} starts")
            try:
                yield state
            finally:
                self.append(f"{name} ends")

        return span


class LifespanServer:
    """The server's side of a lifespan.

    Args:
        app: Runs from `async with` to its end.
        state: What the scope holds as `state`; None for no such key.
        clears: Empties the state before the shutdown, as granian does.
    """

    def __init__(self, app: App, *, state: dict[str, Any] | None = None, clears: bool = False) -> None:
        self.app = app
        self.sent: list[Any] = []
        self.scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        if state is not None:
            self.scope["state"] = state
        self.clears = clears
        self._started = anyio.Event()
        self._stop = anyio.Event()
        self._events = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive(self) -> dict[str, Any]:
        """`lifespan.startup`, then `lifespan.shutdown` when it stops."""
        kind = next(self._events)
        if kind == "lifespan.shutdown":
            await self._stop.wait()
            if self.clears:
                self.scope["state"].clear()
        return {"type": kind}

    async def send(self, event: Any) -> None:
        """Take an event of the app's."""
        self.sent.append(event)
        self._started.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Between startup and shutdown."""
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as group:
                group.start_soon(self.app, self.scope, self.receive, self.send)
                await self._started.wait()
                yield
                self._stop.set()

    @property
    def types(self) -> list[str]:
        """The types of what the app sent."""
        return [event["type"] for event in self.sent]


COMPLETE = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def state_app(lifespan: Any = None, **options: Any) -> App:
    """An app that tells what is in the state."""
    app = App(lifespan=lifespan, **options)

    @app.websocket("/state/<key>")
    async def tell(ws: WebSocket, key: str) -> None:
        await ws.accept()
        await ws.send_json(getattr(ws.state, key, "nothing"))

    return app


async def ask(
    app: App, key: str, shape: Shape = DAPHNE, *, prefix: str = "", state: dict[str, Any] | None = None
) -> str:
    """What the app's state holds, on a connection whose scope has this state."""
    server = FakeServer(shape, f"{prefix}/state/{key}")
    if state is not None:
        server.scope["state"] = state
    await converse(app, server, leave=-1)
    return "".join(server.texts)


# Told by the server


async def test_a_lifespan_starts_and_ends_with_the_server() -> None:
    notes = Notes()
    server = LifespanServer(state_app(notes.lifespan()))
    async with server.running():
        assert notes == ["app starts"]
        assert server.types == ["lifespan.startup.complete"]
    assert notes == ["app starts", "app ends"]
    assert server.types == COMPLETE


async def test_an_app_without_a_lifespan_follows_the_protocol_too() -> None:
    server = LifespanServer(App(), state={})
    async with server.running():
        pass
    assert server.types == COMPLETE


@every_shape
async def test_what_a_lifespan_yields_lands_in_the_state_of_every_connection(shape: Shape) -> None:
    # P13: granian empties the scope's state at the end, daphne has none
    database: list[str] = []
    app = state_app(Notes().lifespan(state={"database": database, "number": 42}))
    shared: dict[str, Any] = {}
    server = LifespanServer(app, state=shared if shape.optional_keys else None, clears=shape is GRANIAN)
    async with server.running():
        for _ in range(2):
            for key, value in (("number", "42"), ("database", "[]")):
                assert await ask(app, key, shape, state=dict(shared) if shape.optional_keys else None) == value
        shared.clear()  # as granian does, while connections are still coming
        assert await ask(app, "number", shape, state={} if shape.optional_keys else None) == "42"
    assert server.types == COMPLETE


async def test_what_the_server_or_a_middleware_put_into_the_state_stays() -> None:
    app = state_app(Notes().lifespan(state={"a": "lifespan"}))
    async with LifespanServer(app, state={}).running():
        own = {"b": "server"}
        assert [await ask(app, key, UVICORN, state=own) for key in "ab"] == ['"lifespan"', '"server"']
        assert own == {"b": "server"}


async def test_a_key_set_by_one_connection_is_not_seen_by_the_next() -> None:
    # P11
    app = App(lifespan=Notes().lifespan(state={"seen": []}))

    @app.websocket("/")
    async def note(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json(["own" in ws.state, ws.state.seen])
        ws.state.own = True
        ws.state.seen.append(1)

    for shape in (DAPHNE, UVICORN):
        assert (await converse(app, FakeServer(shape), leave=-1)).texts[0].startswith("[false,")
    # an object in it is the same for all
    assert (await converse(app, FakeServer(DAPHNE), leave=-1)).texts == ["[false,[1,1]]"]


@pytest.mark.parametrize("yielded", [None, {}], ids=repr)
async def test_a_lifespan_may_yield_nothing(yielded: Any) -> None:
    app = state_app(Notes().lifespan(state=yielded))
    async with LifespanServer(app, state={}).running():
        assert await ask(app, "x", UVICORN) == '"nothing"'


async def test_a_lifespan_is_called_with_the_app() -> None:
    seen: list[Any] = []

    @contextlib.asynccontextmanager
    async def span(app: App) -> AsyncIterator[None]:
        seen.append(app)
        yield

    app = App(lifespan=span)
    async with LifespanServer(app).running():
        pass
    assert seen == [app]


async def test_a_lifespan_passes_middleware_by() -> None:
    notes = Notes()

    class Counting:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            notes.append(scope["type"])
            await self.app(scope, receive, send)

    app = state_app(notes.lifespan(), middleware=[Middleware(Counting)])
    async with LifespanServer(app).running():
        await ask(app, "x")
    assert notes == ["app starts", "websocket", "app ends"]


async def test_the_connection_and_the_lifespan_run_on_one_event_loop() -> None:
    # T53
    @contextlib.asynccontextmanager
    async def span(app: App) -> AsyncIterator[dict[str, Any]]:
        async with anyio.create_task_group() as group:
            yield {"group": group}
            group.cancel_scope.cancel()

    app = App(lifespan=span)
    done = anyio.Event()

    @app.websocket("/")
    async def start(ws: WebSocket) -> None:
        await ws.accept()
        ws.state.group.start_soon(anyio.lowlevel.checkpoint)
        done.set()

    async with LifespanServer(app, state={}).running():
        await converse(app, FakeServer(DAPHNE), leave=-1)
        await done.wait()


# What fails


class StartError(Exception):
    """A service that cannot start or stop."""


@contextlib.asynccontextmanager
async def failing_start(app: App) -> AsyncIterator[None]:
    """A lifespan that cannot start."""
    raise StartError("no database")
    yield


@contextlib.asynccontextmanager
async def failing_stop(app: App) -> AsyncIterator[None]:
    """A lifespan that cannot end."""
    yield
    raise StartError("no end")


@pytest.mark.parametrize(
    ("lifespan", "types", "message"),
    [
        (failing_start, ["lifespan.startup.failed"], "StartError: no database"),
        (failing_stop, ["lifespan.startup.complete", "lifespan.shutdown.failed"], "StartError: no end"),
    ],
    ids=["start", "stop"],
)
async def test_a_lifespan_that_fails_tells_the_server_why(lifespan: Any, types: list[str], message: str) -> None:
    # P13
    server = LifespanServer(App(lifespan=lifespan))
    events = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(events)}

    with pytest.raises(StartError), anyio.fail_after(DEADLINE):
        await server.app(server.scope, receive, server.send)
    assert server.types == types
    assert server.sent[-1]["message"] == message


async def test_what_was_started_before_the_failure_is_ended() -> None:
    notes = Notes()
    app = App(lifespan=notes.lifespan("outer"))
    app.mount("/a", App(lifespan=notes.lifespan("inner")))
    app.mount("/b", App(lifespan=failing_start))
    server = LifespanServer(app)
    with pytest.raises(StartError):
        await server.app(server.scope, server.receive, server.send)
    assert notes == ["outer starts", "inner starts", "inner ends", "outer ends"]
    assert server.types == ["lifespan.startup.failed"]


async def bare(app: App) -> AsyncIterator[None]:
    """A generator that somebody forgot to decorate."""
    yield


@pytest.mark.parametrize(
    ("lifespan", "problem"),
    [(bare, "'bare' is a bare generator: put @contextlib.asynccontextmanager above it"), ("x", "got 'x'")],
    ids=["generator", "str"],
)
def test_what_is_no_lifespan_is_refused(lifespan: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        App(lifespan=lifespan)
    assert problem in str(error.value)


# Started by the first connection


async def test_without_lifespan_events_the_first_connection_starts_the_lifespan(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # P1, T53
    caplog.set_level(logging.INFO)
    notes = Notes()
    app = state_app(notes.lifespan(state={"number": 42}))
    assert notes == []
    for _ in range(3):
        assert await ask(app, "number") == "42"
    assert notes == ["app starts"]
    assert len([record for record in caplog.records if "first connection" in record.getMessage()]) == 1


async def test_the_first_connection_may_be_a_request() -> None:
    notes = Notes()
    app = App(lifespan=notes.lifespan())

    @app.get("/")
    async def hello() -> str:
        return "hello"

    assert (await request(app, "GET", "/")).body == b"hello"
    assert notes == ["app starts"]


async def test_two_first_connections_start_it_once() -> None:
    notes = Notes()
    go_on = anyio.Event()

    @contextlib.asynccontextmanager
    async def slow(app: App) -> AsyncIterator[dict[str, int]]:
        notes.append("starts")
        await go_on.wait()
        yield {"number": 42}

    app = state_app(slow)
    answers: list[str] = []

    async def one() -> None:
        answers.append(await ask(app, "number"))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        assert (notes, answers) == (["starts"], [])
        go_on.set()
    assert notes == ["starts"]
    assert answers == ["42"] * 5


async def test_a_first_connection_that_is_cancelled_does_not_stop_the_start() -> None:
    go_on = anyio.Event()

    @contextlib.asynccontextmanager
    async def slow(app: App) -> AsyncIterator[dict[str, int]]:
        await go_on.wait()
        yield {"number": 42}

    app = state_app(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, app, "number")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    go_on.set()
    assert await ask(app, "number") == "42"


async def test_a_start_that_fails_is_a_500_and_the_next_connection_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = 0

    @contextlib.asynccontextmanager
    async def third_time_lucky(app: App) -> AsyncIterator[dict[str, int]]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StartError("no database at 10.0.0.1")
        yield {"number": tries}

    app = state_app(third_time_lucky)
    server = FakeServer(UVICORN, "/state/number")
    with pytest.raises(StartError):
        await converse(app, server, leave=-1)
    assert server.status == 500
    assert b"10.0.0.1" not in server.body
    assert "no database at 10.0.0.1" in caplog.text
    answer = await request(app, "GET", "/", raises=StartError)
    assert answer.status == 500
    assert await ask(app, "number") == "3"
    assert tries == 3


async def test_a_start_that_fails_fails_all_who_wait_for_it() -> None:
    go_on = anyio.Event()

    @contextlib.asynccontextmanager
    async def failing(app: App) -> AsyncIterator[None]:
        await go_on.wait()
        raise StartError
        yield

    app = state_app(failing)
    servers = [FakeServer(UVICORN, "/state/x") for _ in range(3)]
    raised: list[Exception] = []

    async def one(server: FakeServer) -> None:
        try:
            await converse(app, server, leave=-1)
        except StartError as error:
            raised.append(error)

    async with anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(one, server)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert [server.status for server in servers] == [500] * 3
    assert len(raised) == 3


async def test_a_start_that_fails_is_a_matter_of_the_exception_handlers() -> None:
    app = state_app(failing_start)

    @app.exception_handler(StartError)
    async def busy(connection: Any, error: Exception) -> None:
        if isinstance(connection, WebSocket):
            await connection.close(1013, "try again later")

    server = await converse(app, FakeServer(UVICORN, "/state/x"), leave=-1)
    assert server.closed == (1013, "try again later")


# Apps below apps


@pytest.mark.parametrize("told", [True, False], ids=["told by the server", "by the first connection"])
async def test_the_lifespans_of_mounted_apps_run_inside_that_of_their_parent(told: bool) -> None:
    notes = Notes()
    app = state_app(notes.lifespan("outer", {"who": "outer", "outer": 1}))
    inner = state_app(notes.lifespan("inner", {"who": "inner"}))
    innermost = state_app(notes.lifespan("innermost", {"who": "innermost"}))
    inner.mount("/innermost", innermost)
    router = Router()
    router.mount("/inner", inner)
    app.include_router(router, "/v1")
    app.mount("/again", inner)  # an app that is mounted twice lives once
    server = LifespanServer(app, state={})
    async with server.running() if told else contextlib.nullcontext():
        assert await ask(app, "who") == '"outer"'
        assert notes == ["outer starts", "inner starts", "innermost starts"]
        # the child's own keys are what its connections find, on top of its parent's
        assert await ask(app, "outer", prefix="/v1/inner") == "1"
    if told:
        assert notes[3:] == ["innermost ends", "inner ends", "outer ends"]


async def test_a_mounted_app_finds_its_own_state() -> None:
    app = state_app(Notes().lifespan("outer", {"who": "outer"}))
    app.mount("/inner", state_app(Notes().lifespan("inner", {"who": "inner", "inner": 1})))
    async with LifespanServer(app, state={}).running():
        assert await ask(app, "inner", prefix="/inner") == "1"
        assert await ask(app, "who", prefix="/inner") == '"inner"'


async def test_a_mounted_app_with_a_lifespan_below_an_app_without_one() -> None:
    notes = Notes()
    app = App()
    app.mount("/inner", state_app(notes.lifespan("inner", {"who": "inner"})))
    async with LifespanServer(app, state={}).running():
        assert notes == ["inner starts"]
        assert await ask(app, "who", prefix="/inner") == '"inner"'
    assert notes == ["inner starts", "inner ends"]


async def test_a_mounted_app_whose_parent_is_never_told_is_started_by_its_own_first_connection() -> None:
    notes = Notes()
    app = App()
    app.mount("/inner", state_app(notes.lifespan("inner", {"who": "inner"})))
    assert await ask(app, "who", prefix="/inner") == '"inner"'
    assert notes == ["inner starts"]


async def test_whoever_mounts_the_app_can_run_its_lifespan() -> None:
    notes = Notes()
    app = state_app(notes.lifespan(state={"number": 42}))
    async with app.lifespan_context():
        assert notes == ["app starts"]
        assert await ask(app, "number") == "42"
    assert notes == ["app starts", "app ends"]


# Again


def test_a_lifespan_runs_on_one_event_loop_after_another() -> None:
    notes = Notes()
    app = state_app(notes.lifespan(state={"number": 42}))

    async def told() -> None:
        async with LifespanServer(app, state={}).running():
            assert await ask(app, "number") == "42"

    async def untold() -> None:
        assert await ask(app, "number") == "42"
        assert await ask(app, "number") == "42"

    for backend in ("asyncio", "trio", "asyncio"):
        for way in (told, untold, untold, told):
            notes.clear()
            anyio.run(way, backend=backend)
            assert notes == ["app starts", "app ends"]


def test_a_start_that_the_event_loop_did_not_survive_is_started_anew() -> None:
    tries = 0

    @contextlib.asynccontextmanager
    async def slow(app: App) -> AsyncIterator[dict[str, int]]:
        nonlocal tries
        tries += 1
        if tries == 1:
            await anyio.sleep_forever()
        yield {"number": tries}

    app = state_app(slow)

    async def leave_early() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, app, "number")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()

    async def stay() -> None:
        assert await ask(app, "number") == "2"

    anyio.run(leave_early)
    anyio.run(stay)
