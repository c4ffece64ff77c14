"""What lives until the handshake is answered: when it is cleaned up, in which order and task, and what it sees."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asgiws import (
    App,
    Depends,
    Header,
    HTTPException,
    JSONResponse,
    Response,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    cleanup,
    controller,
)
from asgiws.session import Session
from tests.fakes import (
    DAPHNE,
    DEADLINE,
    HYPERCORN,
    SHAPES,
    UVICORN,
    ClientDisconnectedError,
    FakeServer,
    Shape,
    converse,
    request,
    soon,
)

pytestmark = pytest.mark.anyio

Log = list[str]
Handler = Callable[[WebSocket], Awaitable[Any]]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
FLAVOURS = ("async", "plain", "thread")
every_flavour = pytest.mark.parametrize("flavour", FLAVOURS)


def label(error: BaseException) -> str:
    """What a test calls an exception, on either event loop; one in a group by its own name."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return "cancelled" if isinstance(error, asyncio.CancelledError) or "Cancelled" in str(type(error)) else (
        type(error).__name__
    )  # fmt: skip


def noting(log: Log, name: str, flavour: str = "async") -> Callable[..., Any]:
    """A generator that notes how it was opened and closed; clean-up that may wait does so before it is done."""

    async def dependency() -> AsyncIterator[str]:
        log.append(f"+{name}")
        try:
            yield name
        except BaseException as error:
            log.append(f"{name}: {label(error)}")
            raise
        finally:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            log.append(f"-{name}")

    def plain() -> Iterator[str]:
        log.append(f"+{name}")
        try:
            yield name
        except BaseException as error:
            log.append(f"{name}: {label(error)}")
            raise
        finally:
            log.append(f"-{name}")

    return dependency if flavour == "async" else plain


def kept(log: Log, name: str, flavour: str = "async", *, scope: str = "handshake") -> Any:
    """A `Depends` on such a generator."""
    return Depends(noting(log, name, flavour), scope=scope, thread=flavour == "thread")


def failing(error: Exception, log: Log | None = None) -> Callable[..., Any]:
    """A generator whose clean-up raises."""

    async def fails_to_close() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            if log is not None:
                log.append(f"raises {error}")
            raise error

    return fails_to_close


async def run(app: Any, server: FakeServer, stop_when: Callable[[FakeServer], object] | None = None) -> str | None:
    """A whole connection; what it raises. With a condition, the server stops it as soon as that holds."""
    raised: list[str] = []

    async def serve() -> None:
        try:
            await app(server.scope, server.receive, server.send)
        except Exception as error:
            raised.append(label(error))
        except BaseException as error:
            raised.append(label(error))
            raise

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            if stop_when is not None:
                await soon(lambda: stop_when(server))
                group.cancel_scope.cancel()
    assert not server.choked
    return raised[0] if raised else None


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What the log says at this level or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The exceptions in the log, by their texts."""
    return [str(record.exc_info[1]) for record in caplog.records if record.exc_info and record.exc_info[1]]


# How a handshake is answered


async def accepts(ws: WebSocket) -> None:
    await ws.accept()


async def accepts_raw(ws: WebSocket) -> None:
    assert (await ws.receive())["type"] == "websocket.connect"
    await ws.send({"type": "websocket.accept"})


async def accepts_within_a_time(ws: WebSocket) -> None:
    with anyio.move_on_after(DEADLINE):
        await ws.accept()


async def accepts_in_a_scope_that_is_then_cancelled(ws: WebSocket) -> None:
    with anyio.CancelScope() as scope:
        await ws.accept()
        scope.cancel()
        await anyio.sleep_forever()


async def accepts_in_a_task_group(ws: WebSocket) -> None:
    async with anyio.create_task_group() as group:
        await ws.accept()
        group.cancel_scope.cancel()


async def accepts_in_another_task(ws: WebSocket) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(ws.accept)


async def closes(ws: WebSocket) -> None:
    await ws.close(4001, "no")


async def closes_raw(ws: WebSocket) -> None:
    await ws.send({"type": "websocket.close", "code": 4001, "reason": "no"})


async def denies(ws: WebSocket) -> None:
    await ws.send_denial_response(JSONResponse({"who": "are you"}, 401))


ACCEPTING: dict[str, Handler] = {
    "accept": accepts,
    "raw accept": accepts_raw,
    "accept within a time": accepts_within_a_time,
    "accept in a scope that is then cancelled": accepts_in_a_scope_that_is_then_cancelled,
    "accept in a task group": accepts_in_a_task_group,
    "accept in another task": accepts_in_another_task,
}
REFUSING: dict[str, Handler] = {"close": closes, "raw close": closes_raw, "denial": denies}
ANSWERS = ACCEPTING | REFUSING

every_answer = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)


def serving(log: Log, answer: Handler, *markers: Any) -> App:
    """An app whose handler notes when it answers, and that the first of its dependencies is gone while it goes on."""
    app = App()

    @app.websocket("/", dependencies=markers[1:])
    async def handler(ws: WebSocket, value: Annotated[str, markers[0]]) -> None:
        log.append(f"uses {value}")
        await anyio.wait_all_tasks_blocked()
        log.append("answers")
        await answer(ws)
        await soon(lambda: f"-{value}" in log)
        log.append("goes on")

    return app


@every_flavour
@every_answer
async def test_clean_up_comes_as_soon_as_the_handshake_is_answered(answer: Handler, flavour: str) -> None:
    log: Log = []
    assert await run(serving(log, answer, kept(log, "db", flavour)), FakeServer()) is None
    assert log == ["+db", "uses db", "answers", "-db", "goes on"]


@every_shape
@every_answer
async def test_clean_up_comes_with_the_answer_on_every_server(answer: Handler, shape: Shape) -> None:
    # T28: a denial is a close where the server has none.
    log: Log = []
    server = FakeServer(shape)
    assert await run(serving(log, answer, kept(log, "db")), server) is None
    assert log == ["+db", "uses db", "answers", "-db", "goes on"]
    if answer is denies and shape.denial:
        assert (server.status, server.body) == (401, b'{"who":"are you"}')
    else:
        assert server.status == (101 if answer in ACCEPTING.values() else 403)


@pytest.mark.parametrize("held", [False, True], ids=["at once", "while the answer is held up"])
async def test_an_accept_that_was_given_up_is_an_answer(held: bool) -> None:
    log: Log = []

    async def gives_up(ws: WebSocket) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(ws.accept)
                if held:
                    await soon(lambda: server.sending)
                scope.cancel()

    server = FakeServer()
    server.hold = anyio.Event()
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[str, kept(log, "db")]) -> None:
        await gives_up(ws)
        if held:
            await soon(lambda: "-db" in log)
        log.append("goes on")
        assert server.hold is not None
        server.hold.set()

    await run(app, server)
    assert log == (["+db", "-db", "goes on"] if held else ["+db", "goes on", "-db"])


async def test_a_refused_accept_is_no_answer() -> None:
    log: Log = []

    async def accepts_at_the_second_try(ws: WebSocket) -> None:
        with pytest.raises(ValueError, match="offered"):
            await ws.accept("chat.v1")
        await anyio.wait_all_tasks_blocked()
        assert log[-1] == "answers"
        await ws.accept()

    await run(serving(log, accepts_at_the_second_try, kept(log, "db")), FakeServer())
    assert log == ["+db", "uses db", "answers", "-db", "goes on"]


@pytest.mark.parametrize("takes_websocket", [False, True], ids=["watched", "has the WebSocket"])
async def test_a_stream_begins_after_the_answer(takes_websocket: bool) -> None:
    # T39
    log: Log = []
    app = App()

    async def items() -> AsyncIterator[str]:
        await soon(lambda: "-db" in log)
        log.append("item")
        yield "item"

    async def watched(value: Annotated[str, kept(log, "db")]) -> AsyncIterator[str]:
        async for item in items():
            yield item

    async def reading(ws: WebSocket, value: Annotated[str, kept(log, "db")]) -> AsyncIterator[str]:
        async for item in items():
            yield item

    app.websocket("/", dependencies=[kept(log, "outer", scope="connection")])(reading if takes_websocket else watched)
    server = FakeServer()
    assert await run(app, server) is None
    assert (server.texts, server.closed) == (["item"], (1000, ""))
    assert log == ["+outer", "+db", "-db", "item", "-outer"]


async def test_on_connect_uses_it_and_the_messages_come_when_it_is_gone() -> None:
    log: Log = []

    @controller("/")
    class Lobby:
        async def on_connect(self, ws: WebSocket, value: Annotated[str, kept(log, "db")]) -> None:
            await anyio.wait_all_tasks_blocked()
            log.append(f"uses {value}")
            await ws.accept()

        async def on_message(self, message: str) -> None:
            await soon(lambda: "-db" in log)
            log.append(message)

    app = App()
    app.include(Lobby)
    await converse(app, FakeServer(), "hello")
    assert log == ["+db", "uses db", "-db", "hello"]


@every_flavour
async def test_a_request_has_no_handshake_and_keeps_it_to_the_end(flavour: str) -> None:
    log: Log = []
    app = App()

    @app.get("/")
    async def handler(
        value: Annotated[str, kept(log, "db", flavour)], other: Annotated[str, kept(log, "other", scope="connection")]
    ) -> str:
        await anyio.wait_all_tasks_blocked()
        log.append("handler")
        return value

    assert (await request(app, "GET", "/")).body == b"db"
    assert log == ["+db", "+other", "handler", "-other", "-db"]


@pytest.mark.parametrize("scope", ["connection", "function", "request", None])
@every_flavour
async def test_every_other_scope_keeps_it_to_the_end_of_the_connection(scope: Any, flavour: str) -> None:
    log: Log = []
    app = App()
    marker = Depends(noting(log, "db", flavour), scope=scope, thread=flavour == "thread")

    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[str, marker]) -> None:
        await ws.accept()
        await anyio.wait_all_tasks_blocked()
        log.append(f"uses {value}")
        assert await ws.receive_text() == "bye"
        log.append("ends")

    await converse(app, FakeServer(), "bye", leave=-1)
    assert log == ["+db", "uses db", "ends", "-db"]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_what_a_dependency_accepted_is_cleaned_up_while_the_next_ones_run(flavour: str) -> None:
    log: Log = []
    app = App(dependencies=[kept(log, "db", flavour), Depends(accepts)])

    async def later() -> None:
        await soon(lambda: "-db" in log)
        log.append("later")

    @app.websocket("/", dependencies=[Depends(later)])
    async def handler(ws: WebSocket) -> None:
        log.append("handler")

    assert await run(app, FakeServer()) is None
    assert log == ["+db", "-db", "later", "handler"]


@every_flavour
async def test_what_is_opened_after_the_answer_is_there_for_who_depends_on_it(flavour: str) -> None:
    # S7: a token in the first message is checked in a database, after accept.
    log: Log = []
    db = kept(log, "db", flavour)

    async def first_message(ws: WebSocket) -> str:
        await ws.accept()
        return await ws.receive_text()

    async def user(token: Annotated[str, Depends(first_message)], value: Annotated[str, db]) -> str:
        await anyio.wait_all_tasks_blocked()
        log.append(f"{token} is looked up in {value}")
        return token

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, name: Annotated[str, Depends(user, scope="handshake")]) -> None:
        await soon(lambda: "-db" in log)
        log.append("handler")

    await converse(app, FakeServer(), "a token", leave=-1)
    assert log == ["+db", "a token is looked up in db", "-db", "handler"]


# The order


def chain(log: Log, flavours: tuple[str, str, str], scope: str = "handshake") -> list[Any]:
    """Three dependencies, the second needs the third, which is so opened before it."""
    third = kept(log, "pool", flavours[2], scope=scope)

    async def session(pool: Annotated[str, third]) -> AsyncIterator[str]:
        assert pool == "pool"
        log.append("+session")
        try:
            yield "session"
        except BaseException as error:
            log.append(f"session: {label(error)}")
            raise
        finally:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            log.append("-session")

    return [
        kept(log, "first", flavours[0]),
        Depends(session, scope="handshake"),
        kept(log, "last", flavours[1]),
    ]


OPENED = ["+first", "+pool", "+session", "+last"]
CLOSED = ["-last", "-session", "-pool", "-first"]


@pytest.mark.parametrize("flavours", [("async", "async", "async"), ("plain", "thread", "async"), ("thread",) * 3])
@every_answer
async def test_the_last_one_opened_is_closed_first_and_alone(answer: Handler, flavours: tuple[str, str, str]) -> None:
    log: Log = []
    app = App(dependencies=chain(log, flavours))

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await answer(ws)
        await soon(lambda: "-first" in log)

    assert await run(app, FakeServer()) is None
    assert log == OPENED + CLOSED


async def returns(ws: WebSocket) -> None: ...


async def raises(ws: WebSocket) -> None:
    raise ValueError("a secret")


async def sleeps(ws: WebSocket) -> None:
    await anyio.sleep_forever()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A way in which a connection ends before its handshake was answered.

    Attributes:
        handler: What the handler does, if it is run.
        guard: A dependency that is run after those that are looked at.
        seen: What is raised in them.
        raises: What reaches the server.
        status: What the client gets.
        close: Code and reason of the application's close.
        stopped: The server stops the connection.
        vanished: The client has left.
    """

    handler: Handler = returns
    guard: Callable[..., Any] | None = None
    seen: str | None = None
    raises: str | None = None
    status: int | None = 403
    close: tuple[int, str] | None = None
    stopped: bool = False
    vanished: bool = False

    async def __call__(self, log: Log, *markers: Any, shape: Shape = UVICORN) -> FakeServer:
        """A connection that depends on these and ends so."""
        app = App(dependencies=[*markers, *([Depends(self.guard)] if self.guard else [])])

        @app.websocket("/")
        async def handler(ws: WebSocket) -> None:
            try:
                log.append("handler")
                await self.handler(ws)
            finally:
                log.append("handler ends")

        server = FakeServer(shape)
        if self.vanished:
            server.vanish()
        stop = (lambda _: "handler" in log) if self.stopped else None
        assert await run(app, server, stop) == self.raises
        if shape.denial:
            assert (server.status, server.closed) == (self.status, self.close)
        else:
            assert server.status == (None if self.status is None else 403)
        return server


def raiser(error: BaseException) -> Handler:
    """A handler that raises."""

    async def raises(ws: WebSocket) -> None:
        raise error

    return raises


async def refuses() -> None:
    raise HTTPException(401, "who are you")


async def refuses_by_closing(ws: WebSocket) -> None:
    await ws.close(4401, "who are you")


def refuses_by_parameter(x_token: Annotated[str, Header()]) -> None: ...


def breaks() -> None:
    raise ValueError("a secret")


UNANSWERED: dict[str, Unanswered] = {
    "returns": Unanswered(),
    "raises": Unanswered(handler=raises, seen="ValueError", raises="ValueError", status=500),
    "HTTPException": Unanswered(handler=raiser(HTTPException(409)), seen="HTTPException", status=409),
    "WebSocketException": Unanswered(
        handler=raiser(WebSocketException(4001, "bye")), seen="WebSocketException", close=(4001, "bye")
    ),
    "accepts too late": Unanswered(handler=accepts, seen="WebSocketDisconnect", status=None, vanished=True),
    "stopped": Unanswered(
        handler=sleeps, seen="cancelled", raises="cancelled", close=(1012, "the server stops"), stopped=True
    ),
    "a later dependency refuses": Unanswered(guard=refuses, seen="HTTPException", status=401),
    "a later dependency misses a parameter": Unanswered(
        guard=refuses_by_parameter, seen="ParameterError", close=(1008, "header 'x-token': is missing")
    ),
    "a later dependency fails": Unanswered(guard=breaks, seen="ValueError", raises="ValueError", status=500),
    "a later dependency closes": Unanswered(guard=refuses_by_closing, close=(4401, "who are you")),
}

every_unanswered = pytest.mark.parametrize("ending", UNANSWERED.values(), ids=UNANSWERED)


@every_flavour
@every_unanswered
async def test_each_sees_what_ended_the_connection_before_the_answer(ending: Unanswered, flavour: str) -> None:
    # T37: on return, raise and cancel. T29: a refusal runs nothing that comes later.
    log: Log = []
    await ending(log, kept(log, "db", flavour))
    ran = ["handler", "handler ends"] if ending.guard is None else []
    seen = [f"db: {ending.seen}"] if ending.seen else []
    assert log == ["+db", *ran, *seen, "-db"]


@every_unanswered
async def test_before_the_answer_they_are_closed_in_reverse_order_too(ending: Unanswered) -> None:
    # T37: a session is closed before the pool that it is of, also when the server stops.
    log: Log = []
    await ending(log, *chain(log, ("async", "async", "async")))
    ran = ["handler", "handler ends"] if ending.guard is None else []
    told: Log = []
    for name in CLOSED:
        told += [f"{name[1:]}: {ending.seen}", name] if ending.seen else [name]
    assert log == [*OPENED, *ran, *told]


@every_unanswered
async def test_before_the_answer_what_lives_with_the_connection_is_closed_after_them(ending: Unanswered) -> None:
    log: Log = []
    await ending(log, kept(log, "outer", scope="connection"), kept(log, "db"), kept(log, "inner", scope="connection"))
    assert [entry for entry in log if entry[0] == "-"] == ["-db", "-inner", "-outer"]
    assert (f"db: {ending.seen}" in log) is (ending.seen is not None)


async def test_who_opens_slowly_while_the_server_stops_is_closed_before_what_it_needs() -> None:
    log: Log = []
    app = App()

    async def slow() -> AsyncIterator[None]:
        log.append("opening")
        try:
            await anyio.sleep_forever()
            yield
        finally:
            for _ in range(5):
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
            log.append("given up")

    markers = [kept(log, "pool"), Depends(slow, scope="handshake"), kept(log, "never")]
    app.websocket("/", dependencies=markers)(sleeps)
    server = FakeServer()
    assert await run(app, server, lambda _: "opening" in log) == "cancelled"
    assert server.closed == (1012, "the server stops")
    assert log == ["+pool", "opening", "given up", "pool: cancelled", "-pool"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("answered", [False, True])
async def test_a_task_that_asyncio_itself_cancels_is_cleaned_up_and_stays_cancelled(answered: bool) -> None:
    # hypercorn and daphne stop handlers like this.
    log: Log = []
    app = App(dependencies=chain(log, ("async", "plain", "async")))

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        if answered:
            await ws.accept()
            await soon(lambda: "-first" in log)
        log.append("sleeps")
        await anyio.sleep_forever()

    server = FakeServer(HYPERCORN)
    task = asyncio.create_task(app(server.scope, server.receive, server.send))
    await soon(lambda: "sleeps" in log)
    task.cancel()
    with anyio.fail_after(DEADLINE), pytest.raises(asyncio.CancelledError):
        await task
    assert server.closed == (1012, "the server stops")
    assert [entry for entry in log if entry[0] == "-"] == CLOSED
    assert [entry for entry in log if ": " in entry] == (
        [] if answered else [f"{one[1:]}: cancelled" for one in CLOSED]
    )


@every_shape
@pytest.mark.parametrize("how", ["was never there", "leaves, and accept raises", "leaves, and accept does not tell"])
async def test_a_client_that_leaves_before_the_answer_leaves_nothing_open(how: str, shape: Shape) -> None:
    log: Log = []
    server = FakeServer(shape)
    app = App(dependencies=[kept(log, "outer", scope="connection")])

    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[str, kept(log, "db")]) -> None:
        assert how == "was never there" or (await ws.receive())["type"] == "websocket.connect"
        server.fail = ClientDisconnectedError() if how == "leaves, and accept raises" else None
        server.leave(1001)
        await ws.accept()
        await ws.receive_text()
        raise AssertionError("must not come here")

    if how == "was never there":
        server.vanish()
    assert await run(app, server) is None
    assert server.types == (["websocket.accept"] if how == "leaves, and accept does not tell" else [])
    assert server.calls_after_disconnect == 0
    assert [entry for entry in log if entry[0] == "-"] == ["-db", "-outer"]
    # An answer was given, whatever came of it; without one they see why.
    seen = ["db: WebSocketDisconnect"] if how == "was never there" else []
    assert [entry for entry in log if entry.startswith("db: ")] == seen


@pytest.mark.parametrize("ending", [raises, raiser(HTTPException(409)), sleeps], ids=["raises", "HTTP", "stopped"])
@every_flavour
async def test_it_sees_nothing_of_what_comes_after_the_answer(ending: Handler, flavour: str) -> None:
    log: Log = []
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, value: Annotated[str, kept(log, "db", flavour)]) -> None:
        await ws.accept()
        await ending(ws)

    await run(app, FakeServer(), (lambda _: "-db" in log) if ending is sleeps else None)
    assert log == ["+db", "-db"]


# The task


@pytest.mark.parametrize("inside", ["nothing", "a task group", "a cancel scope", "a timeout"])
@pytest.mark.parametrize("ending", [*ANSWERS, *UNANSWERED])
async def test_each_is_opened_and_closed_in_one_task_whatever_it_yields_in(ending: str, inside: str) -> None:
    # T36, T40
    tasks: list[int] = []
    log: Log = []

    async def heartbeat(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("heartbeat ended")

    async def resource() -> AsyncIterator[str]:
        tasks.append(anyio.get_current_task().id)
        try:
            match inside:
                case "a task group":
                    async with anyio.create_task_group() as group:
                        await group.start(heartbeat)
                        yield "db"
                        group.cancel_scope.cancel()
                case "a cancel scope":
                    with anyio.CancelScope():
                        yield "db"
                case "a timeout":
                    with anyio.fail_after(DEADLINE):
                        yield "db"
                case _:
                    yield "db"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            tasks.append(anyio.get_current_task().id)
            log.append("-db")

    marker = Depends(resource, scope="handshake")
    if ending in ANSWERS:
        assert await run(serving(log, ANSWERS[ending], marker), FakeServer()) is None
        assert [entry for entry in log if "heart" not in entry] == ["uses db", "answers", "-db", "goes on"]
    else:
        await UNANSWERED[ending](log, marker)
        assert log[-1] == "-db"
    assert (tasks[0], len(tasks)) == (tasks[1], 2)
    assert ("heartbeat ended" in log) is (inside == "a task group")


async def test_each_has_a_task_of_its_own_and_the_handler_has_the_connections() -> None:
    tasks: list[int] = []
    outer: list[int] = []

    def note() -> Iterator[None]:
        tasks.append(anyio.get_current_task().id)
        yield
        tasks.append(anyio.get_current_task().id)

    async def connected() -> AsyncIterator[None]:
        outer.append(anyio.get_current_task().id)
        yield
        outer.append(anyio.get_current_task().id)

    two = [Depends(note, scope="handshake", use_cache=False) for _ in range(2)]
    app = App(dependencies=[Depends(connected), *two])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        outer.append(anyio.get_current_task().id)
        await ws.accept()

    await run(app, FakeServer())
    assert len(set(outer)) == 1
    assert tasks == [tasks[0], tasks[1], tasks[1], tasks[0]]
    assert len({*tasks, *outer}) == 3


async def test_a_timeout_that_is_one_of_a_dependencys_ends_the_connection() -> None:
    # T40: what a generator's own scope or task raises while the handler thinks.
    async def bounded() -> AsyncIterator[None]:
        with anyio.fail_after(0.01):
            yield

    app = App()
    app.websocket("/", dependencies=[Depends(bounded, scope="handshake")])(sleeps)
    server = FakeServer()
    assert await run(app, server) == "TimeoutError"
    assert server.status == 500


async def test_a_background_task_that_refuses_refuses_the_handshake() -> None:
    # T40
    log: Log = []

    async def revoked() -> None:
        await soon(lambda: "handler" in log)
        raise HTTPException(401, "revoked")

    async def background() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(revoked)
            yield

    app = App(dependencies=[kept(log, "outer", scope="connection"), Depends(background, scope="handshake")])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        log.append("handler")
        await anyio.sleep_forever()

    server = FakeServer()
    assert await run(app, server) is None
    assert server.status == 401
    assert log[-1] == "-outer"


# Opening


@pytest.mark.parametrize("flavour", ["async", "plain", "thread"])
@pytest.mark.parametrize(
    ("error", "status"), [(HTTPException(401), 401), (WebSocketException(4401), 403), (ValueError("a secret"), 500)],
    ids=repr,
)  # fmt: skip
async def test_one_that_refuses_while_it_opens_ends_the_handshake(error: Exception, status: int, flavour: str) -> None:
    # T29
    log: Log = []

    def plain() -> Iterator[None]:
        raise error
        yield

    async def refuses() -> AsyncIterator[None]:
        raise error
        yield

    guard = Depends(refuses if flavour == "async" else plain, scope="handshake", thread=flavour == "thread")
    app = App()

    @app.websocket("/", dependencies=[kept(log, "pool"), guard, kept(log, "never")])
    async def handler(ws: WebSocket) -> None:
        raise AssertionError("must not run")

    server = FakeServer()
    assert await run(app, server) == ("ValueError" if status == 500 else None)
    assert server.status == status
    assert log == ["+pool", f"pool: {type(error).__name__}", "-pool"]


@pytest.mark.parametrize("flavour", ["async", "plain", "thread"])
async def test_a_generator_yields_once(flavour: str) -> None:
    def plain() -> Iterator[int]:
        yield 1
        yield 2

    async def twice() -> AsyncIterator[int]:
        yield 1
        yield 2

    def never() -> Iterator[int]:
        yield from ()

    async def never_async() -> AsyncIterator[int]:
        for one in range(0):
            yield one

    for bad, status in {
        (twice if flavour == "async" else plain): 101,
        never_async if flavour == "async" else never: 500,
    }.items():
        app = App()
        marker = Depends(bad, scope="handshake", thread=flavour == "thread")

        @app.websocket("/", dependencies=[marker])
        async def handler(ws: WebSocket) -> None:
            await ws.accept()
            await anyio.sleep_forever()

        server = FakeServer()
        assert await run(app, server) == "RuntimeError"
        assert server.status == status


# Clean-up that fails


async def accepts_and_sleeps(ws: WebSocket) -> None:
    await ws.accept()
    await anyio.sleep_forever()


async def accepts_and_reads(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_text()


async def accepts_and_waits_in_a_group(ws: WebSocket) -> None:
    await ws.accept()
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)


@every_shape
@pytest.mark.parametrize(
    "handler", [accepts_and_sleeps, accepts_and_reads, accepts_and_waits_in_a_group, accepts],
    ids=lambda one: one.__name__,
)  # fmt: skip
async def test_clean_up_that_fails_ends_the_connection_and_is_logged_once(
    handler: Handler, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []
    app = App(dependencies=[kept(log, "outer", scope="connection"), kept(log, "pool")])
    app.websocket("/", dependencies=[Depends(failing(ValueError("the session cannot be closed")), scope="handshake")])(
        handler
    )
    server = FakeServer(shape)
    assert await run(app, server) == "ValueError"
    assert server.closed == ((4011 if shape is DAPHNE else 1011), "internal error")
    assert failures(caplog) == ["the session cannot be closed"]
    assert len(logged(caplog)) == 1
    # It was closed before the handler was stopped, and has no part in it.
    assert [entry for entry in log if entry.startswith(("pool", "-pool"))] == ["-pool"]
    assert log[-1] == "-outer"


async def test_a_stream_whose_handshake_cannot_be_cleaned_up_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    # T39
    log: Log = []
    app = App()

    @app.websocket("/", dependencies=[Depends(failing(ValueError("no")), scope="handshake")])
    async def stream() -> AsyncIterator[str]:
        try:
            await anyio.sleep_forever()
            yield ""
        finally:
            log.append("stream closed")

    server = FakeServer()
    assert await run(app, server) == "ValueError"
    assert server.closed == (1011, "internal error")
    assert log == ["stream closed"]
    assert failures(caplog) == ["no"]


@pytest.mark.parametrize(
    ("error", "close"),
    [
        (HTTPException(409, "the transaction failed"), (4409, "the transaction failed")),
        (WebSocketException(4001, "bye"), (4001, "bye")),
    ],
    ids=repr,
)
async def test_what_clean_up_raises_ends_the_connection_by_the_table(
    error: Exception, close: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    app.websocket("/", dependencies=[Depends(failing(error), scope="handshake")])(accepts_and_sleeps)
    server = FakeServer()
    assert await run(app, server) is None
    assert server.closed == close
    assert logged(caplog) == []


async def test_an_exception_handler_sees_what_clean_up_raised() -> None:
    app = App()
    app.websocket("/", dependencies=[Depends(failing(ValueError("a secret")), scope="handshake")])(accepts_and_sleeps)

    @app.exception_handler(ValueError)
    async def mapped(ws: WebSocket, error: ValueError) -> None:
        await ws.close(4500, str(error))

    server = FakeServer()
    assert await run(app, server) is None
    assert server.closed == (4500, "a secret")


@every_shape
@pytest.mark.parametrize("answer", REFUSING.values(), ids=REFUSING)
async def test_clean_up_that_fails_spoils_no_refusal(
    answer: Handler, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    # T30: a denial whose body never comes leaves the client waiting.
    app = App()
    app.websocket("/", dependencies=[Depends(failing(ValueError("no")), scope="handshake")])(answer)
    server = FakeServer(shape)

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        async def send_slowly(event: Any) -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            await send(event)

        await app(scope, receive, send_slowly)

    assert await run(slowly, server) == "ValueError"
    if answer is denies and shape.denial:
        assert server.types == ["websocket.http.response.start", "websocket.http.response.body"]
        assert (server.status, server.body) == (401, b'{"who":"are you"}')
    else:
        assert server.types == ["websocket.close"]
    assert failures(caplog) == ["no"]


async def test_clean_up_that_fails_after_the_handlers_own_close_is_logged_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()

    @app.websocket("/", dependencies=[Depends(failing(ValueError("no")), scope="handshake")])
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(1000)

    server = FakeServer()
    assert await run(app, server) == "ValueError"
    assert server.closed == (1000, "")
    assert failures(caplog) == ["no"]


@pytest.mark.parametrize("when", ["before the answer", "after the answer"])
async def test_a_handler_and_a_clean_up_that_both_fail_are_both_told(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @app.websocket("/", dependencies=[Depends(failing(ValueError("of the clean-up")), scope="handshake")])
    async def handler(ws: WebSocket) -> None:
        if when == "after the answer":
            await ws.accept()
        raise LookupError("of the handler")

    server = FakeServer()
    assert await run(app, server) in ("LookupError", "ValueError")
    assert server.status == (101 if when == "after the answer" else 500)
    assert server.closed == ((1011, "internal error") if when == "after the answer" else None)
    # Each has a record of its own, or is the context of the other.
    assert "ValueError: of the clean-up" in caplog.text
    assert "LookupError: of the handler" in caplog.text
    assert len(failures(caplog)) == len(set(failures(caplog)))


@pytest.mark.parametrize("answered", [True, False])
async def test_two_clean_ups_that_fail_are_both_told_and_the_others_are_done(
    answered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []
    app = App()

    @app.websocket(
        "/",
        dependencies=[
            kept(log, "pool"),
            Depends(failing(ValueError("of the first"), log), scope="handshake"),
            kept(log, "between"),
            Depends(failing(LookupError("of the second"), log), scope="handshake"),
            kept(log, "session"),
        ],
    )
    async def handler(ws: WebSocket) -> None:
        if answered:
            await accepts_and_sleeps(ws)

    server = FakeServer()
    assert await run(app, server) in ("LookupError", "ValueError")
    assert log[3:] == ["-session", "raises of the second", "-between", "raises of the first", "-pool"]
    assert "ValueError: of the first" in caplog.text
    assert "LookupError: of the second" in caplog.text
    assert len(failures(caplog)) == len(set(failures(caplog)))


@pytest.mark.parametrize("flavour", ["async", "plain", "thread"])
async def test_one_may_say_before_the_answer_what_an_exception_of_the_handlers_means(flavour: str) -> None:
    # As one that lives with the connection may.
    def plain() -> Iterator[None]:
        try:
            yield
        except LookupError as error:
            raise HTTPException(404, str(error)) from error

    async def translating() -> AsyncIterator[None]:
        try:
            yield
        except LookupError as error:
            raise HTTPException(404, str(error)) from error

    marker = Depends(translating if flavour == "async" else plain, scope="handshake", thread=flavour == "thread")
    app = App()
    app.websocket("/", dependencies=[marker])(raiser(LookupError("no such room")))
    server = FakeServer()
    assert await run(app, server) is None
    assert server.status == 404


@every_flavour
async def test_a_handler_whose_exception_one_swallows_before_the_answer_has_returned(flavour: str) -> None:
    def plain() -> Iterator[None]:
        with contextlib.suppress(LookupError):
            yield

    async def swallowing() -> AsyncIterator[None]:
        with contextlib.suppress(LookupError):
            yield

    marker = Depends(swallowing if flavour == "async" else plain, scope="handshake", thread=flavour == "thread")
    app = App()
    app.websocket("/", dependencies=[marker])(raiser(LookupError("no such room")))
    server = FakeServer()
    assert await run(app, server) is None
    assert server.status == 403


# Clean-up: the shield and its limit


async def stuck(log: Log) -> AsyncIterator[None]:
    try:
        yield
    finally:
        log.append("closing")
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cut")


@every_unanswered
async def test_clean_up_before_the_answer_has_a_limit(
    ending: Unanswered, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    log: Log = []
    markers = [
        kept(log, "quick", "plain"),
        Depends(functools.partial(stuck, log), scope="handshake"),
        Depends(functools.partial(stuck, log), scope="handshake"),
    ]
    await ending(log, *markers)
    assert [entry for entry in log if "handler" not in entry and ": " not in entry] == [
        "+quick", "closing", "cut", "closing", "cut", "-quick",
    ]  # fmt: skip
    cut = [text for text in logged(caplog) if "clean-up" in text]
    assert len(cut) == 1
    assert cut[0].endswith("the clean-up took over 0.01 s and was cut")


async def test_clean_up_after_the_answer_has_a_limit_and_the_handler_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    log: Log = []
    app = App()

    @app.websocket(
        "/", dependencies=[kept(log, "pool", "plain"), Depends(functools.partial(stuck, log), scope="handshake")]
    )
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await soon(lambda: "-pool" in log)
        await ws.send_text("still here")

    server = FakeServer()
    assert await run(app, server) is None
    assert (server.texts, server.closed) == (["still here"], (1000, ""))
    assert log == ["+pool", "closing", "cut", "-pool"]
    (cut,) = logged(caplog)
    assert cut.endswith("the clean-up took over 0.01 s and was cut")


async def test_a_connection_that_ends_during_the_clean_up_waits_for_it() -> None:
    log: Log = []
    closing, go = anyio.Event(), anyio.Event()

    async def slow() -> AsyncIterator[None]:
        try:
            yield
        finally:
            closing.set()
            await go.wait()
            log.append("-slow")

    app = App(dependencies=[kept(log, "outer", scope="connection"), Depends(slow, scope="handshake")])

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await closing.wait()

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await closing.wait()
            await anyio.wait_all_tasks_blocked()
            assert (server.closed, log) == (None, ["+outer"])
            go.set()
    assert server.closed == (1000, "")
    assert log == ["+outer", "-slow", "-outer"]


@pytest.mark.parametrize("handler", [accepts_and_sleeps, accepts], ids=lambda one: one.__name__)
async def test_a_server_that_stops_does_not_reach_the_clean_up(handler: Handler) -> None:
    # T38
    log: Log = []
    closing, go = anyio.Event(), anyio.Event()

    async def slow(pool: Annotated[str, kept(log, "pool")]) -> AsyncIterator[None]:
        yield
        closing.set()
        await go.wait()
        log.append("-slow")

    app = App(dependencies=[Depends(slow, scope="handshake")])
    app.websocket("/")(handler)
    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await closing.wait()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            assert log == ["+pool"]
            go.set()
    # What waited for its turn has seen a clean end all the same.
    assert log == ["+pool", "-slow", "-pool"]
    assert server.types.count("websocket.close") == 1


# Clean-up in threads


def blocking(go: threading.Event, log: Log) -> Callable[[], Iterator[None]]:
    """A generator whose clean-up blocks."""

    def blocks() -> Iterator[None]:
        try:
            yield
        finally:
            log.append("closing")
            go.wait(DEADLINE)
            log.append("closed")

    return blocks


@pytest.mark.parametrize("scope", ["handshake", "connection"])
async def test_a_thread_that_blocks_past_the_limit_is_left_behind(
    scope: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38: a thread cannot be stopped.
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    go = threading.Event()
    log: Log = []
    app = App(dependencies=[kept(log, "pool", scope=scope)])
    app.websocket("/", dependencies=[Depends(blocking(go, log), scope=scope, thread=True)])(accepts)
    server = FakeServer()
    try:
        assert await run(app, server) is None
        assert "closed" not in log
    finally:
        go.set()
    assert server.closed == (1000, "")
    (cut,) = logged(caplog)
    assert cut.endswith("the clean-up took over 0.01 s and was cut")
    await soon(lambda: "closed" in log)


@pytest.mark.parametrize("scope", ["handshake", "connection"])
async def test_a_thread_whose_turn_comes_after_the_limit_still_gets_its_clean_up(
    scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one that needs no thread does: others took the time, and it would need none.
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    threads: list[bool] = []
    log: Log = []

    def quick() -> Iterator[None]:
        try:
            yield
        finally:
            threads.append(threading.current_thread() is threading.main_thread())
            log.append("-quick")

    app = App(dependencies=[Depends(quick, scope=scope, thread=True)])
    app.websocket("/", dependencies=[Depends(functools.partial(stuck, log), scope=scope)])(accepts)
    assert await run(app, FakeServer()) is None
    await soon(lambda: "-quick" in log)
    assert log == ["closing", "cut", "-quick"]
    assert threads == [False]


# What the session tells


def websocket(server: FakeServer) -> tuple[WebSocket, Log]:
    """A WebSocket, and a log of its answers."""
    log: Log = []
    ws: WebSocket = WebSocket(server.scope, server.receive, server.send)
    ws.when_answered(lambda: log.append("answered"))
    return ws, log


@every_answer
async def test_an_answer_is_told_once_and_never_again(answer: Handler) -> None:
    ws, log = websocket(FakeServer())
    assert log == []
    await answer(ws)
    assert log == ["answered"]
    await ws.close(4002)
    assert log == ["answered"]


async def test_after_the_answer_nothing_stands_between_the_handler_and_the_server() -> None:
    server = FakeServer()
    ws, _ = websocket(server)
    await ws.accept()
    assert ws._send == server.send
    assert ws._server_send == server.send
    assert isinstance(ws, Session)


async def test_reading_the_connect_is_no_answer() -> None:
    ws, log = websocket(FakeServer())
    await ws.receive()
    assert log == []


@pytest.mark.parametrize("error", [ClientDisconnectedError(), ValueError("a bug")], ids=repr)
async def test_an_answer_that_the_server_cannot_send_is_one(error: Exception) -> None:
    server = FakeServer()
    ws, log = websocket(server)
    server.fail = error
    with pytest.raises((WebSocketDisconnect, ValueError)):
        await ws.accept()
    assert log == ["answered"]


async def test_a_cancelled_answer_is_one() -> None:
    server = FakeServer()
    server.hold = anyio.Event()
    ws, log = websocket(server)
    async with anyio.create_task_group() as group:
        group.start_soon(ws.accept)
        await soon(lambda: server.sending)
        group.cancel_scope.cancel()
    assert log == ["answered"]


async def test_a_denial_is_told_when_all_of_it_was_sent() -> None:
    server = FakeServer()
    sent: list[Log] = []
    ws: WebSocket = WebSocket(server.scope, server.receive, server.send)
    ws.when_answered(lambda: sent.append(server.types))
    await ws.send_denial_response(Response("no", 401))
    assert sent == [["websocket.http.response.start", "websocket.http.response.body"]]
