"""The watchdog and every limit: who is read for, who is told, who is cut, and that nobody else is.

Most tests look by hand, with a clock of their own: a look then sees just what the test has set up. The last part has
the watchdog itself at work.
"""

import asyncio
import contextlib
import logging
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
import trio

import asgiws.registry
import asgiws.taps
import asgiws.watch
from asgiws import App, ConfigurationError, Depends, Limits, WebSocket, WebSocketDisconnect, controller, websocket
from asgiws.registry import Summary
from asgiws.testing import AsyncTestClient
from asgiws.testing.servers import Event
from asgiws.watch import Watch
from tests.fakes import (
    DAPHNE,
    DEADLINE,
    GRANIAN,
    HYPERCORN,
    SHAPES,
    UVICORN,
    FakeServer,
    Shape,
    soon,
)

pytestmark = pytest.mark.anyio

Log = list[Any]
Handler = Callable[[WebSocket], Awaitable[Any]]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
SOME = (UVICORN, HYPERCORN, GRANIAN)
some_shapes = pytest.mark.parametrize("shape", SOME, ids=lambda shape: shape.name)


class Peer(FakeServer):
    """A server and client of which the test knows what was not read yet."""

    @property
    def unread(self) -> int:
        """How many events wait for a `receive()`."""
        return len(self._inbox)

    @property
    def is_receiving(self) -> bool:
        """Whether a `receive()` is awaited."""
        return self._receiving

    def _taken(self, event: Event) -> None:
        """Answer a close, as clients do."""
        if event["type"] != "websocket.close":
            return
        accepted = "websocket.accept" in self.types
        code = self.shape.after_close if accepted else self.shape.after_refusal
        if code is not None:
            self.put({"type": "websocket.disconnect", "code": event["code"] if code == "own" else code})


class Clock:
    """The time as the watchdog sees it; it passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """In place of `time.monotonic`."""
        return self.now

    async def look(self, app: App, at: float | None = None) -> None:
        """Have the watchdog look, so many seconds after the test began, and everybody act on it."""
        if at is not None:
            self.now = 1000.0 + at
        app.connections.look()
        await settled()


async def settled() -> None:
    """Let every task run until it waits. There is no input or output in these tests, so that some turns are enough."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the test's own, and no watchdog: the test looks."""
    clock = Clock()

    async def run(_: Watch) -> None:
        """In place of the watchdog."""

    for module in (asgiws.watch, asgiws.registry, asgiws.taps):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(Watch, "_run", run)
    return clock


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watchdog that looks every few milliseconds."""
    monkeypatch.setattr(asgiws.watch, "TICK", 0.005)


class Run:
    """Connections that are served, each in a task of its own, as a server does it."""

    def __init__(self, app: App, group: Any) -> None:
        self.app = app
        self.group = group
        self.servers: list[Peer] = []
        self.over: list[Peer] = []
        self.errors: list[BaseException] = []

    async def come(self, shape: Shape = UVICORN, path: str = "/", **options: Any) -> Peer:
        """A client comes, and is served up to where its handler waits."""
        return await self.serve(Peer(shape, path, **options))

    async def serve(self, server: Peer) -> Peer:
        """The client of a server of one's own comes."""
        self.servers.append(server)
        self.group.start_soon(self._serve, server)
        await settled()
        return server

    async def _serve(self, server: Peer) -> None:
        try:
            await self.app(server.scope, server.receive, server.send)
        except Exception as error:
            self.errors.append(error)
        self.over.append(server)

    async def end_of(self, *servers: Peer) -> None:
        """Wait until these connections are over."""
        await soon(lambda: all(server in self.over for server in servers))

    @property
    def sockets(self) -> list[Any]:
        """The open WebSockets."""
        return list(self.app.connections)


@contextlib.asynccontextmanager
async def serving(app: App, raises: type[BaseException] | None = None) -> AsyncIterator[Run]:
    """An app to which clients come; at the end none of them may be left, and nothing may have gone wrong."""
    with anyio.fail_after(4 * DEADLINE):
        async with anyio.create_task_group() as group:
            run = Run(app, group)
            whole = False
            yield run
            whole = True
            for server in run.servers:
                if server not in run.over:
                    server.leave(1000)
            await soon(lambda: len(run.over) == len(run.servers))
            group.cancel_scope.cancel()
    assert whole, "a cancellation came out of the app, and cut the test"
    assert [type(error) for error in run.errors] == ([] if raises is None else [raises])
    assert [server.choked for server in run.servers if server.choked] == []
    assert [server.calls_after_disconnect for server in run.servers if server.calls_after_disconnect] == []
    assert len(app.connections) == 0
    assert app.connections.by_route() == {}


def app_of(handler: Handler, **options: Any) -> App:
    """An app with one handler, and limits."""
    app = App(limits=Limits(**options))
    app.websocket("/")(handler)
    return app


def looking(app: App) -> bool:
    """Whether the app has a watchdog at work."""
    return any(watch.looking for watch in app.connections._watches.values())


async def reading(ws: WebSocket) -> None:
    """A handler that reads until its client leaves."""
    await ws.accept()
    async for _ in ws:
        pass


def collecting(got: Log) -> Handler:
    """A handler that keeps what its client says."""

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for message in ws:
            got.append(message)

    return handler


def sleeping(log: Log) -> Handler:
    """A handler that neither reads nor sends, and notes with which code its connection ended."""

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await anyio.sleep_forever()
        finally:
            log.append(ws.close_code)

    return handler


def count_tasks() -> int:
    """How many tasks there are in this event loop."""
    return len(asyncio.all_tasks()) if asyncio_runs() else trio.lowlevel.current_statistics().tasks_living


def asyncio_runs() -> bool:
    """Whether this test runs on asyncio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def told(shape: Shape, code: int) -> int:
    """What an application is told of a client's close code."""
    return 1006 if shape.codes == "1006" else code


def as_sent(shape: Shape, code: int) -> int:
    """A close code as this server can send it."""
    return code + 3000 if shape.own_codes_only and 1000 < code < 3000 else code


def header(server: FakeServer, name: bytes) -> bytes | None:
    """A header of the denial."""
    starts = [event for event in server.sent if event["type"] == "websocket.http.response.start"]
    return dict(starts[0]["headers"]).get(name) if starts else None


# Reading for who does not read


@every_shape
async def test_who_does_not_read_for_two_looks_is_read_for_and_then_reads_himself_again(
    clock: Clock, shape: Shape
) -> None:
    go = anyio.Event()
    got: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        async for message in ws:
            got.append(message)

    app = app_of(handler)
    stays = shape is GRANIAN  # has a reader from the start, which reads when it is asked to
    async with serving(app) as run:
        server = await run.come(shape)
        server.say("one")
        server.say("two")
        await clock.look(app, 0)
        assert server.unread == 2, "one look tells nothing"
        assert app.connections.statistics().taken_over == 0
        await clock.look(app, 0.25)
        assert server.unread == 0
        assert app.connections.statistics().taken_over == (not stays)
        server.say("three")
        await settled()
        assert server.unread == 0, "it goes on reading"
        assert got == []
        go.set()
        await settled()
        assert got == ["one", "two", "three"]
        server.say("four")
        await settled()
        assert got == ["one", "two", "three", "four"]
        assert (run.sockets[0]._inbox is not None) == stays, "it was handed back"
        for at in range(1, 5):
            await clock.look(app, at)
        assert app.connections.statistics().taken_over == (not stays), "who reads is left alone"
        server.say("five")
        await settled()
        assert got[4:] == ["five"]


@every_shape
async def test_who_reads_is_never_read_for(clock: Clock, shape: Shape) -> None:
    got: Log = []

    app = app_of(collecting(got))
    async with serving(app) as run:
        server = await run.come(shape)
        for at in range(6):
            await clock.look(app, at)
            if at % 3 == 2:
                server.say(str(at))
                await settled()
        assert got == ["2", "5"]
    assert app.connections.statistics().taken_over == 0


@every_shape
async def test_a_handler_can_be_read_for_many_times_over_and_no_message_is_lost(clock: Clock, shape: Shape) -> None:
    got: Log = []
    turns: list[anyio.Event] = [anyio.Event() for _ in range(4)]

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for turn in turns:
            await turn.wait()
            for _ in range(3):
                got.append(await ws.receive_text())

    app = app_of(handler)
    async with serving(app) as run:
        server = await run.come(shape)
        for at, turn in enumerate(turns):
            server.say(f"{at}a")
            await clock.look(app, at)
            await clock.look(app, at + 0.25)
            server.say(f"{at}b")
            await settled()
            turn.set()
            await settled()
            server.say(f"{at}c")
            await settled()
        await run.end_of(server)
    assert got == [f"{at}{name}" for at in range(4) for name in "abc"]
    assert app.connections.statistics().taken_over == (0 if shape is GRANIAN else 4)


@every_shape
async def test_after_the_clients_end_sends_raise_at_once_and_what_it_said_before_is_still_delivered(
    clock: Clock, shape: Shape
) -> None:
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        for _ in range(2):
            with pytest.raises(WebSocketDisconnect) as gone:
                await ws.send_text("anybody?")
            log.append(gone.value.code)
        log.append(await ws.receive_text())
        with pytest.raises(WebSocketDisconnect):
            await ws.send_bytes(b"anybody?")
        log.append(await ws.receive_text())
        for _ in range(2):
            with pytest.raises(WebSocketDisconnect) as gone:
                await ws.receive_text()
            log.append(gone.value.code)
        log.append((await ws.receive())["code"])
        with pytest.raises(WebSocketDisconnect) as gone:
            await ws.send_json({})
        log.append(gone.value.code)
        await ws.close()

    app = app_of(handler)
    async with serving(app) as run:
        server = await run.come(shape)
        server.say("one")
        server.say("two")
        server.leave(4321)
        for at in range(4):
            await clock.look(app, at)
        go.set()
        await run.end_of(server)
        code = told(shape, 4321)
        assert log == [code, code, "one", "two", code, code, code, code]
        assert server.types == ["websocket.accept"]
    assert app.connections.statistics().closed == {code: 1}


@every_shape
async def test_receive_is_never_called_again_after_the_disconnect(clock: Clock, shape: Shape) -> None:
    go = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        for _ in range(3):
            assert (await ws.receive())["type"] == "websocket.disconnect"
        await anyio.sleep_forever()

    app = app_of(handler, linger=100)
    async with serving(app) as run:
        server = await run.come(shape)
        server.abort()
        for at in range(8):
            await clock.look(app, at)
        go.set()
        for at in range(8, 16):
            await clock.look(app, at)
        assert server.calls_after_disconnect == 0
        await clock.look(app, 200)
        await run.end_of(server)


# Lingering


@every_shape
@pytest.mark.parametrize("linger", [5, 0])
async def test_who_neither_reads_nor_sends_is_cancelled_linger_after_its_client_left(
    clock: Clock, shape: Shape, linger: float
) -> None:
    log: Log = []

    app = app_of(sleeping(log), linger=linger)
    async with serving(app) as run:
        server = await run.come(shape)
        for at in range(4):
            await clock.look(app, at)
        server.leave(4001)
        await settled()
        if linger:
            await clock.look(app, 10)  # sees that it has gone
            await clock.look(app, 14.75)
            assert log == []
            assert app.connections.statistics().cancelled == 0
            await clock.look(app, 15)
        else:
            assert log == []
            await clock.look(app, 10)
        await run.end_of(server)
        assert log == [told(shape, 4001)]
        assert server.types == ["websocket.accept"]
    statistics = app.connections.statistics()
    assert statistics.cancelled == 1
    assert statistics.closed == {told(shape, 4001): 1}


@some_shapes
async def test_a_dependency_is_cleaned_up_in_peace_when_its_handler_is_cancelled(clock: Clock, shape: Shape) -> None:
    log: Log = []
    slow = anyio.Event()

    async def resource() -> AsyncIterator[str]:
        try:
            yield "it"
        finally:
            log.append("closing")
            await slow.wait()
            log.append("closed")

    async def handler(ws: WebSocket, it: Annotated[str, Depends(resource)]) -> None:
        await ws.accept()
        try:
            await anyio.sleep_forever()
        finally:
            log.append(f"finally {it}")

    app = App(limits=Limits(linger=1))
    app.websocket("/")(handler)
    async with serving(app) as run:
        server = await run.come(shape)
        server.leave()
        for at in range(10):
            await clock.look(app, at)
        assert log == ["finally it", "closing"], "the clean-up is neither cut nor cancelled again"
        slow.set()
        await run.end_of(server)
        assert log == ["finally it", "closing", "closed"]
    assert app.connections.statistics().cancelled == 1


@some_shapes
@pytest.mark.parametrize("scope", ["connection", "handshake"])
async def test_a_clean_up_that_lasts_longer_than_linger_is_not_cancelled(
    clock: Clock, shape: Shape, scope: Any
) -> None:
    log: Log = []
    slow = anyio.Event()

    async def resource() -> AsyncIterator[None]:
        try:
            yield
        finally:
            log.append("closing")
            await slow.wait()
            log.append("closed")

    app = App(limits=Limits(linger=1))
    app.websocket("/", dependencies=[Depends(resource, scope=scope)])(reading)
    async with serving(app) as run:
        server = await run.come(shape)
        server.leave()
        await settled()
        for at in range(10):
            await clock.look(app, at)
        assert log == ["closing"]
        slow.set()
        await run.end_of(server)
        assert log == ["closing", "closed"]
    assert app.connections.statistics().cancelled == 0


@some_shapes
async def test_on_disconnect_of_a_controller_runs_when_its_handler_is_cancelled(clock: Clock, shape: Shape) -> None:
    log: Log = []

    @controller("/")
    class Busy:
        async def on_connect(self, ws: WebSocket) -> None:
            await ws.accept()

        async def on_message(self, message: str) -> None:
            log.append(message)
            try:
                await anyio.sleep_forever()
            finally:
                log.append("finally")

        async def on_disconnect(self, code: int) -> None:
            await anyio.lowlevel.checkpoint()
            log.append(code)

    app = App(limits=Limits(linger=1))
    app.include(Busy)
    async with serving(app) as run:
        server = await run.come(shape)
        server.say("work")
        server.leave(4007)
        for at in range(6):
            await clock.look(app, at)
        await run.end_of(server)
        assert log == ["work", "finally", told(shape, 4007)]


async def test_who_ends_in_time_is_not_cancelled(clock: Clock) -> None:
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        await anyio.lowlevel.checkpoint()
        log.append("done")

    app = app_of(handler, linger=5)
    async with serving(app) as run:
        server = await run.come()
        server.leave()
        for at in range(5):
            await clock.look(app, at)
        go.set()
        await run.end_of(server)
        await clock.look(app, 100)
        assert log == ["done"]
    assert app.connections.statistics().cancelled == 0


async def test_a_cancelled_handler_that_raises_something_else_is_logged(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    app = app_of(handler, linger=0)
    async with serving(app) as run:
        server = await run.come()
        server.leave()
        for at in range(4):
            await clock.look(app, at)
        await run.end_of(server)
        run.errors.clear()  # on trio the scope that is cancelled takes it
    assert "in the clean-up" in caplog.text
    assert app.connections.statistics().cancelled == 1


@some_shapes
async def test_a_client_that_left_before_the_answer_is_noticed_and_its_handler_cancelled(
    clock: Clock, shape: Shape
) -> None:
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append(ws.client_state.name)

    app = app_of(handler, linger=1, accept_timeout=None)
    async with serving(app) as run:
        server = await run.come(shape)
        server.leave(1006)
        for at in range(5):
            await clock.look(app, at)
        if shape is GRANIAN:  # tells nothing before the answer, and so is not asked
            assert log == []
            assert server.unread == 2
            run.group.cancel_scope.cancel()
            run.over.append(server)
            return
        await run.end_of(server)
        assert log == ["DISCONNECTED"]
        assert server.sent == []


@pytest.mark.parametrize("early", [False, True], ids=["connect alone", "and left"])
async def test_a_handler_that_is_slow_to_accept_may_do_so_after_the_reader_has_read(clock: Clock, early: bool) -> None:
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await go.wait()
        try:
            await ws.accept()
            log.append(await ws.receive_text())
        except WebSocketDisconnect as gone:
            log.append(gone.code)

    app = app_of(handler, linger=100)
    async with serving(app) as run:
        server = await run.come()
        if early:
            server.leave(1006)
        for at in range(4):
            await clock.look(app, at)
        assert server.unread == 0
        go.set()
        await settled()
        if not early:
            server.say("hello")
        await run.end_of(server)
        assert log == ([1006] if early else ["hello"])
        assert server.status == (None if early else 101)


# Three ways to learn of an end


@every_shape
async def test_the_end_is_told_to_one_who_only_sends(clock: Clock, shape: Shape) -> None:
    """Some servers raise from `send`, the others drop what is sent: these tell it by an event, which must be read."""
    turn: list[anyio.Event] = [anyio.Event()]
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await turn[0].wait()
            turn[0] = anyio.Event()
            await ws.send_text("tick")
            log.append("sent")

    app = app_of(handler)
    async with serving(app) as run:
        server = await run.come(shape)
        server.leave(4002)
        turn[0].set()
        await settled()
        if shape.gone == "silent":
            assert log == ["sent"]
            await clock.look(app, 0)
            await clock.look(app, 0.25)
            turn[0].set()
        await run.end_of(server)
        assert log == ["sent"] * (shape.gone == "silent")
    code = 1006 if shape.gone != "silent" else told(shape, 4002)
    assert app.connections.statistics().closed == {code: 1}
    assert app.connections.statistics().cancelled == 0


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.gone != "silent"], ids=lambda shape: shape.name)
async def test_who_ignores_that_a_send_failed_is_cancelled_linger_later(clock: Clock, shape: Shape) -> None:
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        try:
            await ws.send_text("anybody?")
        except WebSocketDisconnect as gone:
            log.append(gone.code)
        try:
            await anyio.sleep_forever()
        finally:
            log.append("finally")

    app = app_of(handler, linger=5)
    async with serving(app) as run:
        server = await run.come(shape)
        server.leave(4002)
        go.set()
        await settled()
        await clock.look(app, 0)
        await clock.look(app, 4.75)
        assert log == [1006]
        await clock.look(app, 5)
        await run.end_of(server)
        assert log == [1006, "finally"]
    assert app.connections.statistics().cancelled == 1


# The inbox


@every_shape
@pytest.mark.parametrize("unit", ["messages", "bytes"])
@pytest.mark.parametrize("full", [False, True], ids=["one less", "full"])
async def test_a_full_inbox_closes_with_1008_after_its_time(clock: Clock, shape: Shape, unit: str, full: bool) -> None:
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        try:
            await ws.send_text("still there?")
            log.append("sent")
        except WebSocketDisconnect as gone:
            log.append(gone.code)

    limits: dict[str, Any] = {"inbox_messages": 4} if unit == "messages" else {"inbox_bytes": 20}
    app = app_of(handler, inbox_timeout=15, linger=100, **limits)
    async with serving(app) as run:
        server = await run.come(shape)
        for at in range(3):
            await clock.look(app, at)
        for _ in range(5 if full else 3):
            server.say(b"12345")
        await settled()
        assert server.unread == (1 if full else 0), "one message more stays with the server"
        await clock.look(app, 3)  # sees that it is full
        await clock.look(app, 17.75)
        assert server.closed is None
        await clock.look(app, 18)
        expected = (as_sent(shape, 1008), "you send more than this service can read")
        assert server.closed == (expected if full else None)
        go.set()
        await run.end_of(server)
        assert log == ([1008] if full else ["sent"])
    assert app.connections.statistics().closed == {1008 if full else 1000: 1}


async def test_an_inbox_that_was_emptied_in_time_has_its_whole_time_again(clock: Clock) -> None:
    turn = [anyio.Event()]
    got: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await turn[0].wait()
            turn[0] = anyio.Event()
            got.append(await ws.receive_text())

    app = app_of(handler, inbox_messages=2, inbox_timeout=10, linger=0)
    async with serving(app) as run:
        server = await run.come()
        for at in range(3):
            await clock.look(app, at)
        server.say("one")
        server.say("two")
        await settled()
        await clock.look(app, 3)  # sees that it is full
        await clock.look(app, 11.5)
        turn[0].set()
        await settled()
        assert got == ["one"]
        for moment in (12, 12.5, 13):  # it is not full, and who took one does not read again
            await clock.look(app, moment)
        server.say("three")
        await settled()
        await clock.look(app, 14)  # sees that it is full again
        await clock.look(app, 23.75)
        assert server.closed is None
        await clock.look(app, 24)
        assert server.closed is not None
        assert server.closed[0] == 1008
        await clock.look(app, 25)


@every_shape
async def test_a_full_inbox_hides_no_end_for_ever(clock: Clock, shape: Shape) -> None:
    # T10: behind what does not fit stands the disconnect, which nobody can read
    log: Log = []
    app = app_of(sleeping(log), inbox_messages=2, inbox_timeout=15, linger=5)
    async with serving(app) as run:
        server = await run.come(shape)
        for at in range(3):
            await clock.look(app, at)
        for _ in range(3):
            server.say("more")
        server.abort()
        await settled()
        assert server.unread == 2
        await clock.look(app, 3)  # sees that it is full
        await clock.look(app, 18)
        await clock.look(app, 19)  # sees that it has ended
        await clock.look(app, 23.75)
        assert log == []
        await clock.look(app, 24)
        await run.end_of(server)
        assert log == [1008]
    assert app.connections.statistics().cancelled == 1


@some_shapes
async def test_a_flood_starts_one_task_at_the_most(clock: Clock, shape: Shape) -> None:
    # S22
    most = 0

    async def handler(ws: WebSocket) -> None:
        nonlocal most
        await ws.accept()
        await settled()
        before = count_tasks()
        for number in range(100):
            for _ in range(4):
                server.say(str(number))
            if number % 2:
                await clock.look(app)
                await clock.look(app)
            for within in (None, DEADLINE, None, DEADLINE):
                await ws.receive_text(within)
                most = max(most, count_tasks() - before)
            with pytest.raises(TimeoutError):
                await ws.receive_text(0)
            most = max(most, count_tasks() - before)

    app = app_of(handler, inbox_messages=2, messages_per_second=10**9, burst=10**9, heartbeat=10)
    async with serving(app) as run:
        server = await run.come(shape)
        await run.end_of(server)
        assert server.closed == (1000, "")
    assert most <= 1


# The size of a message

FACE = "\N{GRINNING FACE}"  # four bytes
FIT = {"text": "a" * 16, "faces": FACE * 4, "mixed": "abcd" + FACE * 3, "binary": b"a" * 16}
PAST = {"text": "a" * 17, "faces": FACE * 5, "mixed": "abcde" + FACE * 3, "binary": b"a" * 17, "few": FACE * 4 + "a"}
AS_JSON = {"text": '"' + "a" * 14 + '"', "faces": '"' + FACE * 3 + 'ab"', "binary": b'"' + b"a" * 14 + b'"'}
AS_JSON_PAST = {"text": '"' + "a" * 15 + '"', "faces": '"' + FACE * 3 + 'abc"', "binary": b'"' + b"a" * 15 + b'"'}


async def by_receive(ws: WebSocket, log: Log) -> None:
    event = await ws.receive()
    while event["type"] == "websocket.receive":
        log.append(event.get("text") if event.get("text") is not None else event["bytes"])
        event = await ws.receive()
    log.append(event["code"])


async def by_receive_text(ws: WebSocket, log: Log) -> None:
    while True:
        log.append(await ws.receive_text())


async def by_receive_text_in_time(ws: WebSocket, log: Log) -> None:
    while True:
        log.append(await ws.receive_text(timeout=DEADLINE))


async def by_receive_bytes(ws: WebSocket, log: Log) -> None:
    while True:
        log.append(await ws.receive_bytes())


async def by_receive_json(ws: WebSocket, log: Log) -> None:
    while True:
        log.append(await ws.receive_json(str))


async def by_iter_text(ws: WebSocket, log: Log) -> None:
    async for message in ws.iter_text():
        log.append(message)


async def by_iter_bytes(ws: WebSocket, log: Log) -> None:
    async for message in ws.iter_bytes():
        log.append(message)


async def by_iter_json(ws: WebSocket, log: Log) -> None:
    async for message in ws.iter_json(str):
        log.append(message)


async def by_async_for(ws: WebSocket, log: Log) -> None:
    async for message in ws:
        log.append(message)


TEXT = ("text", "faces", "mixed", "few")
WAYS: dict[Any, tuple[str, ...]] = {
    by_receive: (*TEXT, "binary"),
    by_receive_text: TEXT,
    by_receive_text_in_time: TEXT,
    by_receive_bytes: ("binary",),
    by_receive_json: ("json text", "json faces", "json binary"),
    by_iter_text: TEXT,
    by_iter_bytes: ("binary",),
    by_iter_json: ("json text", "json faces", "json binary"),
    by_async_for: (*TEXT, "binary"),
}
CASES = [(way, kind) for way, kinds in WAYS.items() for kind in kinds]
every_way = pytest.mark.parametrize(("way", "kind"), CASES, ids=lambda one: getattr(one, "__name__", one))


def fitting(kind: str) -> Any:
    """A message of just the limit; of "few" there is none, being all characters and too many bytes."""
    return AS_JSON[kind[5:]] if kind.startswith("json") else FIT.get(kind, FACE * 4)


def too_big(kind: str) -> Any:
    """A message of one byte more, or one character."""
    return AS_JSON_PAST[kind[5:]] if kind.startswith("json") else PAST[kind]


def meant(message: Any) -> Any:
    """What a handler that decodes JSON makes of a message."""
    return (message if isinstance(message, str) else message.decode()).strip('"')


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE, GRANIAN], ids=lambda shape: shape.name)
@every_way
async def test_a_message_of_just_the_limit_passes_and_one_past_it_closes_with_1009(
    shape: Shape, way: Any, kind: str
) -> None:
    got: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await way(ws, got)
        except WebSocketDisconnect as gone:
            got.append(gone.code)
        with pytest.raises(WebSocketDisconnect) as after:
            await ws.send_text("more")
        got.append(after.value.code)

    app = app_of(handler, message_bytes=16)
    async with serving(app) as run:
        server = await run.come(shape)
        server.say(fitting(kind))
        server.say(fitting(kind))
        server.say(too_big(kind))
        server.say(fitting(kind))
        await run.end_of(server)
        expected = meant(fitting(kind)) if kind.startswith("json") else fitting(kind)
        end = [] if way in (by_iter_text, by_iter_bytes, by_iter_json, by_async_for) else [1009]
        assert got == [expected, expected, *end, 1009]
        assert server.closed == (as_sent(shape, 1009), "a message has at most 16 bytes")
    assert app.connections.statistics().closed == {1009: 1}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("face", ["a", "\xe9", "\N{EURO SIGN}", FACE], ids=["1", "2", "3", "4"])
async def test_a_text_is_measured_by_its_bytes_at_every_limit(limit: int, face: str) -> None:
    """A text may be let through unmeasured only where no text of so many characters has too many bytes."""
    got: dict[str, Log] = {"/one": [], "/iter": []}
    app = App(limits=Limits(message_bytes=limit))

    @app.websocket("/one")
    async def one(ws: WebSocket) -> None:
        await ws.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await by_receive_text(ws, got["/one"])

    @app.websocket("/iter")
    async def several(ws: WebSocket) -> None:
        await ws.accept()
        await by_iter_text(ws, got["/iter"])

    most = limit // len(face.encode())
    async with serving(app) as run:
        for path, log in got.items():
            server = await run.come(path=path)
            server.say(face * most)
            await settled()
            assert server.closed is None
            server.say(face * (most + 1))
            await run.end_of(server)
            assert server.closed is not None
            assert server.closed[0] == 1009
            assert log == [face * most]


@some_shapes
@pytest.mark.parametrize("message", [b'"' + b"a" * 15 + b'"', '"' + FACE * 3 + 'abc"'], ids=["binary", "text"])
async def test_a_typed_iteration_and_on_message_end_at_a_message_that_is_too_big(
    shape: Shape, message: str | bytes
) -> None:
    got: Log = []
    app = App(limits=Limits(message_bytes=16))

    @app.websocket("/typed")
    async def typed(ws: WebSocket[str, Any]) -> None:
        await ws.accept()
        async for said in ws:
            got.append(said)
        got.append(ws.close_code)

    @controller("/hooks")
    class Hooks:
        async def on_message(self, message: str) -> None:
            got.append(message.strip('"'))

        async def on_disconnect(self, code: int) -> None:
            got.append(code)

    app.include(Hooks)
    async with serving(app) as run:
        for path in ("/typed", "/hooks"):
            server = await run.come(shape, path)
            server.say('"abcdefghijklmn"')
            server.say(message)
            server.say('"lost"')
            await run.end_of(server)
            assert got == ["abcdefghijklmn", 1009], path
            got.clear()
            assert server.closed == (1009, "a message has at most 16 bytes")


@every_shape
async def test_a_message_that_was_read_ahead_is_measured_too(clock: Clock, shape: Shape) -> None:
    go = anyio.Event()
    got: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        async for message in ws:
            got.append(message)

    app = app_of(handler, message_bytes=16)
    async with serving(app) as run:
        server = await run.come(shape)
        server.say(FACE * 4)
        server.say(FACE * 4 + "a")
        for at in range(3):
            await clock.look(app, at)
        go.set()
        await run.end_of(server)
        assert got == [FACE * 4]
        assert server.closed is not None
        assert server.closed[0] == as_sent(shape, 1009)


# How many messages


@every_shape
@pytest.mark.parametrize("ahead", [False, True], ids=["reading", "read for"])
async def test_a_client_may_send_a_burst_and_one_message_more_closes_with_1008(
    clock: Clock, shape: Shape, ahead: bool
) -> None:  # fmt: skip
    go = anyio.Event()
    got: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        if ahead:
            await go.wait()
        async for message in ws:
            got.append(message)
        got.append(ws.close_code)

    app = app_of(handler, messages_per_second=2, burst=3, linger=100)
    async with serving(app) as run:
        server = await run.come(shape)
        for at in range(3):
            server.say(str(at))
        if ahead:
            await clock.look(app)
            await clock.look(app)
        await settled()
        assert server.unread == 0
        assert server.closed is None
        server.say("3")
        await settled()
        go.set()
        await run.end_of(server)
        # What was read ahead of a handler is dropped by a close that is not the client's.
        assert got == ([] if ahead else ["0", "1", "2"]) + [1008]
        assert server.closed == (as_sent(shape, 1008), "you send too many messages")
    assert app.connections.statistics().closed == {1008: 1}


async def test_a_client_may_send_so_many_messages_a_second_in_the_long_run(clock: Clock) -> None:
    got: Log = []

    app = app_of(collecting(got), messages_per_second=2, burst=2)
    async with serving(app) as run:
        server = await run.come()
        for at in range(20):  # the first two are the burst
            clock.now += 0.5 * (at >= 2)
            server.say(str(at))
            await settled()
            assert len(got) == at + 1
        clock.now += 0.25  # half of a message
        server.say("too early")
        await run.end_of(server)
        assert len(got) == 20
        assert server.closed is not None
        assert server.closed[0] == 1008


async def test_a_long_silence_saves_no_more_than_a_burst(clock: Clock) -> None:
    got: Log = []

    app = app_of(collecting(got), messages_per_second=10, burst=2)
    async with serving(app) as run:
        server = await run.come()
        clock.now += 1000
        for at in range(3):
            server.say(str(at))
        await run.end_of(server)
        assert got == ["0", "1"]


# How many connections


@every_shape
async def test_so_many_connections_are_let_in_and_one_more_is_refused_until_one_ends(shape: Shape) -> None:
    app = app_of(reading, connections=2)
    async with serving(app) as run:
        first = await run.come(shape)
        second = await run.come(shape)
        assert (first.status, second.status) == (101, 101)
        third = await run.come(shape)
        await run.end_of(third)
        assert third.status == (503 if shape.denial else 403)
        if shape.denial:
            assert header(third, b"retry-after") == b"5"
            assert b"too many connections" in third.body
        assert len(app.connections) == 2
        first.leave()
        await run.end_of(first)
        assert (await run.come(shape)).status == 101
        assert (await run.come(shape)).status != 101
    statistics = app.connections.statistics()
    assert statistics.refused == {"connections": 2}
    assert statistics.opened == 3


@every_shape
async def test_so_many_connections_of_one_client_are_let_in(shape: Shape) -> None:
    app = app_of(reading, connections_per_client=2)
    async with serving(app) as run:
        first = await run.come(shape)
        await run.come(shape)
        third = await run.come(shape)
        assert third.status == (429 if shape.denial else 403)
        if shape.denial:
            assert header(third, b"retry-after") == b"5"
        other = type(first.scope["client"])(["10.0.0.9", first.scope["client"][1]])
        assert (await run.come(shape, client=other)).status == 101
        first.leave()
        await run.end_of(first)
        assert (await run.come(shape)).status == 101
        assert (await run.come(shape)).status != 101
    assert app.connections.statistics().refused == {"client": 2}
    assert app.connections._clients == {}, "nothing is kept of who has gone"


async def test_a_handshake_counts_before_its_answer() -> None:
    # S12
    go = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await go.wait()
        await reading(ws)

    for limit, status in (("connections", 503), ("connections_per_client", 429)):
        go = anyio.Event()
        app = app_of(handler, **{limit: 1})
        async with serving(app) as run:
            first = await run.come()
            assert first.status is None
            assert (await run.come()).status == status
            go.set()
            await settled()
            assert first.status == 101


@every_shape
async def test_nothing_is_left_of_a_close_that_the_client_never_answers(shape: Shape) -> None:
    # T50
    class Mute(Peer):
        def _taken(self, event: Event) -> None:
            """Say nothing to a close."""

    async def handler(ws: WebSocket) -> None:
        if ws.scope["path"] == "/accepts":
            await ws.accept()
        await ws.close(4001)

    app = App(limits=Limits(connections_per_client=1))
    app.websocket("/refuses")(handler)
    app.websocket("/accepts")(handler)
    async with serving(app) as run:
        for path in ("/refuses", "/accepts"):
            server = Mute(shape, path)
            await run.serve(server)
            await run.end_of(server)
            assert len(app.connections) == 0
            assert not server.is_receiving
    assert app.connections._clients == {}
    assert app.connections.record.notes == {}


async def test_clients_are_told_apart_by_the_key(clock: Clock) -> None:
    def key(connection: Any) -> str:
        return str(connection.headers.get("x-user"))

    app = app_of(reading, connections_per_client=1, client_key=key)
    async with serving(app) as run:
        one = await run.come(headers={"x-user": "one"})
        two = await run.come(headers={"x-user": "two"})
        assert (one.status, two.status) == (101, 101)
        assert (await run.come(headers={"x-user": "one"})).status == 429
        one.leave()
        await run.end_of(one)
        assert (await run.come(headers={"x-user": "one"})).status == 101
        assert (await run.come(headers={"x-user": "two"})).status == 429
    assert app.connections._clients == {}


@pytest.mark.parametrize("end", ["raises", "refuses", "is cancelled"])
async def test_the_count_goes_down_however_a_connection_ends(
    clock: Clock, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ws: WebSocket) -> None:
        if end == "refuses":
            await ws.close()
            return
        await ws.accept()
        if end == "raises":
            raise ValueError("as it should")
        await anyio.sleep_forever()

    app = app_of(handler, connections=1, connections_per_client=1, linger=0)
    for _ in range(3):
        async with serving(app, raises=ValueError if end == "raises" else None) as run:
            server = await run.come()
            if end == "is cancelled":
                server.leave()
                for at in range(4):
                    await clock.look(app, at)
            await run.end_of(server)
            assert server.status == (403 if end == "refuses" else 101)
    statistics = app.connections.statistics()
    assert statistics.refused == {}
    assert statistics.opened == 3
    assert ("as it should" in caplog.text) == (end == "raises")
    assert app.connections._clients == {}


async def test_a_connection_without_an_address_is_counted_as_all_of_them() -> None:
    app = app_of(reading, connections_per_client=1)
    async with serving(app) as run:
        assert (await run.come(client=None)).status == 101
        assert (await run.come(client=None)).status == 429
        assert (await run.come()).status == 101


@some_shapes
async def test_a_client_key_that_fails_is_answered_as_any_failure(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    def key(_: Any) -> str:
        raise ValueError("no key")

    app = app_of(reading, connections_per_client=1, client_key=key)
    async with serving(app, raises=ValueError) as run:
        server = await run.come(shape)
        await run.end_of(server)
        assert server.status == 500
        assert "no key" in caplog.text


# Headers and query


@every_shape
@pytest.mark.parametrize("past", [0, 1])
async def test_the_query_has_so_many_bytes(shape: Shape, past: int) -> None:
    app = app_of(reading, query_bytes=8)
    async with serving(app) as run:
        server = await run.come(shape, query=b"a=%C3%A9" + b"b" * past)
        assert server.status == (101 if not past else 414 if shape.denial else 403)
    assert app.connections.statistics().refused == ({"query": 1} if past else {})


@every_shape
@pytest.mark.parametrize("past", [0, 1])
async def test_the_headers_have_so_many_bytes_in_all(shape: Shape, past: int) -> None:
    app = app_of(reading, header_bytes=len("hosttestserver") + len("x-onex-two") + 10)
    async with serving(app) as run:
        server = await run.come(shape, headers={"x-one": "12345", "x-two": "12345" + "6" * past})
        assert server.status == (101 if not past else 431 if shape.denial else 403)
    assert app.connections.statistics().refused == ({"headers": 1} if past else {})


# Times


@every_shape
async def test_a_handshake_that_is_not_answered_in_time_is_refused_with_503(clock: Clock, shape: Shape) -> None:
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append(f"finally {ws.scope['path']}")

    app = app_of(handler, accept_timeout=30)
    async with serving(app) as run:
        server = await run.come(shape)
        for at in (0, 1, 2, 29.75):
            await clock.look(app, at)
        assert log == []
        assert server.status is None
        await clock.look(app, 30)
        await run.end_of(server)
        assert log == ["finally /"]
        assert server.status == (503 if shape.denial else 403)
        if shape.denial:
            assert header(server, b"retry-after") == b"5"
    assert app.connections.statistics().cancelled == 1
    assert list(app.connections.statistics().closed) == [4503]


async def test_a_dependency_that_takes_too_long_is_cut_too_and_an_answer_in_time_is_enough(clock: Clock) -> None:
    go = anyio.Event()

    async def slow() -> None:
        await go.wait()

    app = App(limits=Limits(accept_timeout=30))
    app.websocket("/", dependencies=[Depends(slow)])(reading)
    async with serving(app) as run:
        late = await run.come()
        await clock.look(app, 0)
        await clock.look(app, 30)
        await run.end_of(late)
        assert late.status == 503
        early = await run.come()
        await clock.look(app, 59)
        go.set()
        await settled()
        for at in (60, 61, 1000):
            await clock.look(app, at)
        assert early.status == 101
        assert early.closed is None


async def test_without_an_accept_timeout_a_handshake_may_wait(clock: Clock) -> None:
    go = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await go.wait()
        await reading(ws)

    app = app_of(handler, accept_timeout=None)
    async with serving(app) as run:
        server = await run.come()
        for at in (0, 1, 10_000, 100_000):
            await clock.look(app, at)
        assert server.status is None
        go.set()
        await settled()
        assert server.status == 101


@every_shape
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not"])
async def test_a_client_that_sends_nothing_for_too_long_is_closed_with_1001(
    clock: Clock, shape: Shape, reads: bool
) -> None:  # fmt: skip
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        if not reads:
            await go.wait()
        async for message in ws:
            log.append(message)
        log.append(ws.close_code)

    app = app_of(handler, idle_timeout=60, linger=100)
    async with serving(app) as run:
        server = await run.come(shape)
        for at in (0, 0.25, 0.5, 0.75, 40):
            await clock.look(app, at)
        server.say("I live")
        await settled()
        await clock.look(app, 50)  # sees that something came
        await clock.look(app, 70)
        await clock.look(app, 109.75)
        assert server.closed is None
        await clock.look(app, 110)
        assert server.closed == (as_sent(shape, 1001), "you sent nothing")
        go.set()
        await run.end_of(server)
        # What was read ahead of a handler is dropped by a close that is not the client's.
        assert log == (["I live"] if reads else []) + [1001]
    assert app.connections.statistics().closed == {1001: 1}


@every_shape
async def test_a_silent_client_is_asked_for_a_sign_of_life_and_ended_if_it_gives_none(
    clock: Clock, shape: Shape
) -> None:
    app = app_of(reading, heartbeat=20)
    async with serving(app) as run:
        server = await run.come(shape)
        await clock.look(app, 0)
        await clock.look(app, 19.75)
        assert server.texts == []
        await clock.look(app, 20)
        assert server.texts == ['{"type":"ping"}']
        server.say("pong")
        await settled()
        await clock.look(app, 21)  # sees the answer
        await clock.look(app, 40.75)
        assert server.texts == ['{"type":"ping"}']
        await clock.look(app, 41)
        assert server.texts == ['{"type":"ping"}'] * 2
        await clock.look(app, 60.75)
        assert server.closed is None
        await clock.look(app, 61)
        assert server.closed == (as_sent(shape, 1001), "no sign of life")
        await run.end_of(server)
        assert len(server.texts) == 2


async def test_a_client_that_speaks_by_itself_is_not_asked(clock: Clock) -> None:
    app = app_of(reading, heartbeat=20)
    async with serving(app) as run:
        server = await run.come()
        for at in range(0, 200, 10):
            server.say("hello")
            await settled()
            await clock.look(app, at)
        assert server.texts == []
        assert server.closed is None


async def test_silence_is_an_end_for_one_who_does_not_read(clock: Clock) -> None:
    log: Log = []

    app = app_of(sleeping(log), heartbeat=20, linger=5)
    async with serving(app) as run:
        server = await run.come()
        for at in (0, 1, 2, 3, 4):
            await clock.look(app, at)
        for at in range(5, 60):
            await clock.look(app, at)
            if server in run.over:
                break
        await run.end_of(server)
        assert server.texts == ['{"type":"ping"}']
        assert log == [1001]
    assert app.connections.statistics().cancelled == 1


async def test_a_connection_lasts_its_lifetime_and_some_a_tenth_less(clock: Clock) -> None:
    app = app_of(reading, lifetime=1000)
    ends: list[int] = []
    async with serving(app) as run:
        servers = [await run.come() for _ in range(20)]
        await clock.look(app, 0)
        await clock.look(app, 899.75)
        assert run.over == []
        for at in range(905, 1000, 5):
            before = len(run.over)
            await clock.look(app, at)
            ends.append(len(run.over) - before)
        await clock.look(app, 1000)
        await run.end_of(*servers)
        assert {server.closed for server in servers} == {(1001, "connect again")}
        assert sum(1 for count in ends if count) > 1, "not all at once"


async def test_the_lifetime_ends_one_who_is_busy_all_the_time_too(clock: Clock) -> None:
    app = app_of(reading, lifetime=10)
    async with serving(app) as run:
        server = await run.come()
        for at in range(9):
            server.say("hello")
            await settled()
            await clock.look(app, at)
        assert server.closed is None
        server.say("hello")
        await clock.look(app, 10)
        await run.end_of(server)
        assert server.closed is not None


# Sends that take too long

BLOCKING = [shape for shape in SHAPES if shape.blocks]
every_blocking_shape = pytest.mark.parametrize("shape", BLOCKING, ids=lambda shape: shape.name)


@every_blocking_shape
async def test_a_send_that_takes_too_long_is_cut_for_all_who_send_and_never_repeated(
    clock: Clock, shape: Shape
) -> None:
    log: Log = []
    others = [f"other {at}" for at in range(8)]
    blocked = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.accept()

        async def send(name: str) -> None:
            try:
                await ws.send_text(name)
                log.append(f"{name} was sent")
            except WebSocketDisconnect as gone:
                log.append((name, gone.code, gone.reason))

        await blocked.wait()
        async with anyio.create_task_group() as group:
            for name in others:
                group.start_soon(send, name)
            await send("own")
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("again")
        with pytest.raises(WebSocketDisconnect):
            await ws.receive_text()
        await anyio.lowlevel.checkpoint()
        log.append("goes on")

    app = app_of(handler, send_timeout=30)
    async with serving(app) as run:
        server = await run.come(shape)
        hold = server.hold = anyio.Event()
        blocked.set()
        await settled()
        assert server.sending == 1
        await clock.look(app, 0)  # sees the send
        await clock.look(app, 29.75)
        assert log == []
        await clock.look(app, 30)
        await run.end_of(server)
        told = [(name, 1013, "you read too slowly") for name in (*others, "own")]
        assert sorted(log[:-1]) == told
        assert log[-1] == "goes on"
        hold.set()
        await settled()
        assert server.sending == 0
        # Some servers send what was cut all the same: but once, and nothing after it.
        assert len(server.texts) == (1 if shape.late else 0)
        assert server.closed is None
    statistics = app.connections.statistics()
    assert statistics.dropped == 1
    assert statistics.closed == {1013: 1}
    assert statistics.cancelled == 0


@every_blocking_shape
@pytest.mark.parametrize("by", ["iteration", "receive_text"])
async def test_the_send_of_a_task_outside_of_the_handler_is_cut_too(clock: Clock, shape: Shape, by: str) -> None:
    log: Log = []
    sockets: list[WebSocket] = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        sockets.append(ws)
        if by == "iteration":
            await by_async_for(ws, log)
        else:
            await by_receive_text(ws, log)

    app = app_of(handler, send_timeout=30, linger=5)

    async def publish() -> None:
        try:
            with anyio.fail_after(DEADLINE):
                await sockets[0].send_bytes(b"news")
        except WebSocketDisconnect as gone:
            log.append(("sender", gone.code))
        await anyio.lowlevel.checkpoint()
        log.append("goes on")

    async with serving(app) as run:
        server = await run.come(shape)
        server.hold = anyio.Event()
        run.group.start_soon(publish)
        await settled()
        await clock.look(app, 0)
        await clock.look(app, 30)
        assert log == [("sender", 1013), "goes on"]
        for at in (31, 35.75, 36, 37):
            await clock.look(app, at)
        await run.end_of(server)
    assert app.connections.statistics().dropped == 1


@every_blocking_shape
@pytest.mark.parametrize("by", ["close", "return"])
async def test_a_close_that_takes_too_long_is_cut_too(clock: Clock, shape: Shape, by: str) -> None:
    go = anyio.Event()
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        if by == "close":
            await ws.close(4000)
            await anyio.lowlevel.checkpoint()
            log.append("closed")

    app = app_of(handler, send_timeout=30)
    async with serving(app) as run:
        server = await run.come(shape)
        server.hold = anyio.Event()
        go.set()
        await settled()
        assert server.sending == 1
        await clock.look(app, 0)
        await clock.look(app, 29.75)
        assert run.over == []
        await clock.look(app, 30)
        await run.end_of(server)
        assert server.sending == 0
        assert log == ["closed"] * (by == "close")
    assert app.connections.statistics().dropped == 1
    assert app.connections.statistics().cancelled == 0


async def fleeting() -> AsyncIterator[None]:
    """A dependency of the handshake."""
    yield


@every_blocking_shape
@pytest.mark.parametrize("waits", ["nobody", "a hook", "a dependency"])
async def test_an_accept_that_takes_too_long_is_cut_too(clock: Clock, shape: Shape, waits: str) -> None:
    hold = anyio.Event()
    dependencies = [Depends(fleeting, scope="handshake")] if waits == "a dependency" else []
    app = App(limits=Limits(send_timeout=10, accept_timeout=None))
    app.websocket("/", dependencies=dependencies)(reading)
    if waits == "a hook":
        app.connections.on_open(lambda _: None)
    async with serving(app) as run:
        server = Peer(shape)
        server.hold = hold
        await run.serve(server)
        assert server.sending == 1
        await clock.look(app, 0)
        await clock.look(app, 9.75)
        assert run.over == []
        await clock.look(app, 10)
        await run.end_of(server)
        assert server.sending == 0
    assert app.connections.statistics().dropped == 1


async def test_sends_that_each_take_their_time_are_not_cut(clock: Clock) -> None:
    """The time is that of one send, not of all that follow each other."""
    app_log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for at in range(5):
            await ws.receive_text()
            await ws.send_text(str(at))
            app_log.append(at)

    app = app_of(handler, send_timeout=10)
    async with serving(app) as run:
        server = await run.come()
        for at in range(5):
            hold = server.hold = anyio.Event()
            server.say("next")
            await settled()
            await clock.look(app, at * 10)
            await clock.look(app, at * 10 + 9.75)
            hold.set()
            await settled()
            assert app_log == list(range(at + 1))
        await run.end_of(server)
    assert app.connections.statistics().dropped == 0


async def test_a_send_in_a_scope_of_the_handlers_own_is_cut_without_harm_to_the_scope(clock: Clock) -> None:
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        with anyio.move_on_after(1000) as scope:
            try:
                await ws.send_text("slow")
            except WebSocketDisconnect as gone:
                log.append(gone.code)
            await anyio.lowlevel.checkpoint()
            log.append("inside")
        log.append(scope.cancelled_caught)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.lowlevel.checkpoint)
        log.append("outside")

    app = app_of(handler, send_timeout=1)
    async with serving(app) as run:
        server = await run.come()
        server.hold = anyio.Event()
        server.say("go")
        await settled()
        await clock.look(app, 0)
        await clock.look(app, 1)
        await run.end_of(server)
        assert log == [1013, "inside", False, "outside"]


async def test_a_send_inside_of_a_generator_is_cut_too(clock: Clock) -> None:
    log: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()

        async def parts() -> AsyncIterator[int]:
            await ws.send_text("part")
            yield 1

        try:
            async for _ in parts():
                log.append("sent")
        except WebSocketDisconnect as gone:
            log.append(gone.code)

    app = app_of(handler, send_timeout=1, linger=1000)
    async with serving(app) as run:
        server = await run.come()
        server.hold = anyio.Event()
        server.say("go")
        await settled()
        await clock.look(app, 0)
        await clock.look(app, 1)
        await run.end_of(server)
        assert log == [1013]


class Unstoppable(Peer):
    """A server whose `send()` cannot be cancelled."""

    async def send(self, event: Any) -> None:
        with anyio.CancelScope(shield=True):
            await super().send(event)

    async def _held_up(self) -> None:
        while self.hold is not None and not self.hold.is_set():
            with contextlib.suppress(anyio.get_cancelled_exc_class()):  # asyncio's own, which asks no scope
                await self.hold.wait()


@pytest.mark.parametrize("who", ["the handler", "another task"])
async def test_a_send_that_cannot_be_cut_is_an_end_all_the_same(clock: Clock, who: str) -> None:
    log: Log = []

    async def send() -> None:
        with contextlib.suppress(WebSocketDisconnect):  # on asyncio it got through, and is none that was cut
            await ws.send_text("slow")

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        if who == "the handler":
            await send()
        for _ in range(2):
            with pytest.raises(WebSocketDisconnect) as gone:
                await ws.send_text("more")
            log.append(gone.value.code)

    app = app_of(handler, send_timeout=30, linger=1000)
    async with serving(app) as run:
        server = Unstoppable()
        await run.serve(server)
        (ws,) = run.sockets
        hold = server.hold = anyio.Event()
        if who == "another task":
            run.group.start_soon(send)
            await settled()
        server.say("go")
        await settled()
        await clock.look(app, 0)
        await clock.look(app, 30)
        assert (ws.close_code, ws.application_state.name) == (1013, "DISCONNECTED")
        assert log == [1013, 1013] * (who == "another task"), "nobody else waits for it"
        for at in (31, 61, 100):
            await clock.look(app, at)
        hold.set()
        await run.end_of(server)
        await settled()
        assert log == [1013, 1013]
        assert (server.texts, server.closed) == (["slow"], None)
    statistics = app.connections.statistics()
    assert (statistics.dropped, statistics.closed) == (1, {1013: 1})


@every_blocking_shape
async def test_a_close_that_waits_for_a_send_is_called_for_once(clock: Clock, shape: Shape) -> None:
    # S22
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        with contextlib.suppress(WebSocketDisconnect):
            await ws.send_text("slow")

    app = app_of(handler, idle_timeout=10, send_timeout=1000, linger=1000)
    async with serving(app) as run:
        server = await run.come(shape)
        hold = server.hold = anyio.Event()
        server.say("go")
        await settled()
        before = count_tasks()
        for at in range(20):
            await clock.look(app, at)
        assert server.closed is None
        assert count_tasks() <= before + 2, "the close, and the reader of one who does not read"
        hold.set()
        await soon(lambda: server.closed)
        assert server.closed == (as_sent(shape, 1001), "you sent nothing")
        await run.end_of(server)


class LibraryError(Exception):
    """What the library below a server raises."""


@every_shape
async def test_a_message_that_the_server_cannot_carry_is_an_exception_like_any_other(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    # T27: daphne raises for more than 1 MiB
    class Small(Peer):
        def _take(self, event: Event) -> None:
            if event["type"] == "websocket.send" and len(event["text"]) > 8:
                raise LibraryError("the payload is too large")
            super()._take(event)

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.send_text("a" * 9)
        except LibraryError:
            if ws.scope["path"] == "/plain":
                raise
            await ws.send_text("b")

    app = App()
    app.websocket("/plain")(handler)
    app.websocket("/caught")(handler)
    async with serving(app, raises=LibraryError) as run:
        plain = await run.serve(Small(shape, "/plain"))
        caught = await run.serve(Small(shape, "/caught"))
        await run.end_of(plain, caught)
        assert plain.closed == (as_sent(shape, 1011), "internal error")
        assert (caught.texts, caught.closed) == (["b"], (1000, ""))
    (record,) = caplog.records
    assert "websocket /plain" in record.getMessage()


async def test_only_the_one_connection_that_is_stuck_is_cut(clock: Clock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for message in ws:
            await ws.send_text(str(message))

    app = app_of(handler, send_timeout=1)
    async with serving(app) as run:
        stuck, well = await run.come(), await run.come()
        stuck.hold = anyio.Event()
        for server in (stuck, well):
            server.say("hello")
        await settled()
        await clock.look(app, 0)
        await clock.look(app, 1)
        await run.end_of(stuck)
        assert run.over == [stuck]
        well.say("still here?")
        await settled()
        assert well.texts == ["hello", "still here?"]


# Limits of a route


async def test_the_limits_of_a_route_take_the_place_of_those_of_the_app() -> None:
    app = App(limits=Limits(message_bytes=4, query_bytes=4))
    app.websocket("/app")(reading)
    app.websocket("/route", limits=Limits(message_bytes=8))(reading)

    @controller("/controller")
    class Own:
        @websocket("/wide", limits=Limits(message_bytes=8))
        async def wide(self, ws: WebSocket) -> None:
            await reading(ws)

        @websocket("/narrow")
        async def narrow(self, ws: WebSocket) -> None:
            await reading(ws)

    app.include(Own)
    async with serving(app) as run:
        for path, limit in (("/app", 4), ("/route", 8), ("/controller/wide", 8), ("/controller/narrow", 4)):
            server = await run.come(path=path)
            server.say("a" * limit)
            await settled()
            assert server.closed is None, path
            server.say("a" * (limit + 1))
            await run.end_of(server)
            assert server.closed == (1009, f"a message has at most {limit} bytes"), path
            long = await run.come(path=path, query="a=123")
            assert long.status == (101 if limit == 8 else 414), path


async def test_the_times_of_a_route_take_the_place_of_those_of_the_app(clock: Clock) -> None:
    app = App(limits=Limits(idle_timeout=10))
    app.websocket("/app")(reading)
    app.websocket("/route", limits=Limits(idle_timeout=20))(reading)
    async with serving(app) as run:
        one, two = await run.come(path="/app"), await run.come(path="/route")
        await clock.look(app, 0)
        await clock.look(app, 10)
        assert run.over == [one]
        await clock.look(app, 19.75)
        assert run.over == [one]
        await clock.look(app, 20)
        assert run.over == [one, two]


# Closing all


@every_shape
async def test_close_all_closes_all_and_refuses_newcomers(clock: Clock, shape: Shape) -> None:
    log: Log = []
    waiting = anyio.Event()

    async def reader(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws:
            pass
        log.append(("reader", ws.close_code, ws.close_reason))

    async def busy(ws: WebSocket) -> None:
        await ws.accept()
        await waiting.wait()
        with pytest.raises(WebSocketDisconnect) as gone:
            await ws.send_text("more")
        log.append(("busy", gone.value.code, gone.value.reason))

    app = App()
    app.websocket("/reader")(reader)
    app.websocket("/busy")(busy)
    async with serving(app) as run:
        servers = [await run.come(shape, "/reader"), await run.come(shape, "/busy")]
        await app.close_all(reason="a new version")
        await soon(lambda: all(server.closed for server in servers))
        waiting.set()
        await run.end_of(*servers)
        assert [server.closed for server in servers] == [(as_sent(shape, 1012), "a new version")] * 2
        assert sorted(log) == [("busy", 1012, "a new version"), ("reader", 1012, "a new version")]
        late = await run.come(shape, "/reader")
        assert late.status == (503 if shape.denial else 403)
        if shape.denial:
            assert header(late, b"retry-after") == b"5"
    statistics = app.connections.statistics()
    assert statistics.refused == {"draining": 1}
    assert statistics.closed == {1012: 2}


@every_blocking_shape
@pytest.mark.parametrize("then", ["returns", "raises"])
async def test_the_close_is_out_before_the_handler_is_done(
    clock: Clock, shape: Shape, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    # P20
    go = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        if then == "raises":
            raise ValueError("as it should")

    app = app_of(handler, linger=1000)
    async with serving(app, raises=ValueError if then == "raises" else None) as run:
        server = await run.come(shape)
        hold = server.hold = anyio.Event()
        await app.close_all()
        await settled()
        assert server.sending == 1
        go.set()
        await settled()
        assert run.over == []
        hold.set()
        await run.end_of(server)
        assert server.closed == (as_sent(shape, 1012), "")
    assert ("as it should" in caplog.text) == (then == "raises")


async def test_close_all_cancels_who_does_not_mind_linger_later(clock: Clock) -> None:
    log: Log = []

    app = app_of(sleeping(log), linger=5)
    async with serving(app) as run:
        server = await run.come()
        await app.close_all(4000)
        await settled()
        assert server.closed == (4000, "")
        await clock.look(app, 0)
        await clock.look(app, 4.75)
        assert log == []
        await clock.look(app, 5)
        await run.end_of(server)
        assert log == [4000]


async def test_close_all_spreads_its_closes_over_a_window(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[float] = []
    closed: list[int] = []
    app = app_of(reading)
    async with serving(app) as run:
        servers = [await run.come() for _ in range(4)]

        async def sleep_until(deadline: float) -> None:
            moments.append(deadline)
            await settled()
            closed.append(sum(server.closed is not None for server in servers))

        monkeypatch.setattr(anyio, "sleep_until", sleep_until)
        await app.close_all(window=8)
        await run.end_of(*servers)
        assert [moment - moments[0] for moment in moments] == pytest.approx([0, 2, 4, 6])
        assert closed == [0, 1, 2, 3]
        assert {server.closed for server in servers} == {(1012, "")}


async def test_newcomers_are_refused_from_the_first_moment_of_a_window(clock: Clock) -> None:
    app = app_of(reading)
    async with serving(app) as run:
        servers = [await run.come(), await run.come()]
        async with anyio.create_task_group() as group:
            group.start_soon(app.close_all, 1012, "", 1000)
            await settled()
            assert len(run.over) == 1
            assert (await run.come()).status == 503
            group.cancel_scope.cancel()
        assert len([server for server in servers if server.closed]) == 1


async def test_close_all_refuses_a_handshake_that_waits(clock: Clock) -> None:
    log: Log = []
    go = anyio.Event()

    async def handler(ws: WebSocket) -> None:
        await go.wait()
        with pytest.raises(WebSocketDisconnect) as gone:
            await ws.accept()
        log.append(gone.value.code)

    app = app_of(handler)
    async with serving(app) as run:
        server = await run.come()
        await app.close_all()
        await settled()
        assert server.status == 403
        go.set()
        await run.end_of(server)
        assert log == [1012]


async def test_close_all_does_not_fail_where_the_handler_is_just_accepting(clock: Clock) -> None:
    app = app_of(reading)
    async with serving(app) as run:
        server = Peer()
        connect = server._inbox.popleft()  # the server has not told of it yet
        await run.serve(server)
        failures: Log = []
        if asyncio_runs():
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        await app.close_all()
        await settled()
        import gc  # noqa: PLC0415

        gc.collect()
        await settled()
        server.put(connect)
        await settled()
        assert failures == []


async def test_close_all_without_connections_does_nothing_but_to_refuse(clock: Clock) -> None:
    app = app_of(reading)
    async with serving(app) as run:
        await app.close_all(window=5)
        assert (await run.come()).status == 503


# What is known


async def test_the_statistics_tell_what_the_connections_have_come_to(clock: Clock) -> None:
    async def refusing(ws: WebSocket) -> None:
        await ws.close()

    app = App(limits=Limits(query_bytes=4))
    app.websocket("/room/{name}")(reading)
    app.websocket("/no")(refusing)
    async with serving(app) as run:
        assert app.connections.statistics().opened == 0
        one = await run.come(path="/room/one")
        await run.come(path="/room/two")
        await run.come(path="/no")
        await run.come(path="/no", query="abcde")
        await run.come(path="/nowhere")
        assert len(app.connections) == 2
        assert app.connections.by_route() == {"/room/{name}": 2}
        assert sorted(ws.scope["path"] for ws in app.connections) == ["/room/one", "/room/two"]
        assert repr(app.connections) == "<2 connections>"
        statistics = app.connections.statistics()
        assert statistics.open == 2
        assert statistics.refused == {"query": 1}
        one.leave(4242)
        await run.end_of(one)
        assert app.connections.statistics().open == 1
        assert app.connections.statistics().closed[4242] == 1
        assert app.connections.by_route() == {"/room/{name}": 1}
    statistics = app.connections.statistics()
    assert statistics.closed[1000] == 2  # the other one, and the close before accept
    assert statistics.opened == sum(statistics.closed.values())
    assert (statistics.taken_over, statistics.cancelled, statistics.dropped) == (0, 0, 0)


@every_shape
async def test_the_hooks_are_told_of_each_accept_and_each_end(clock: Clock, shape: Shape) -> None:
    opened: Log = []
    closed: list[Summary] = []

    async def refusing(ws: WebSocket) -> None:
        assert ws.scope["path"] == "/no"

    app = App(limits=Limits(query_bytes=4))
    app.websocket("/room/{name}")(reading)
    app.websocket("/no")(refusing)
    app.connections.on_open(lambda ws: opened.append((ws.id, ws.path_params["name"])))
    assert app.connections.on_close(closed.append) == closed.append
    async with serving(app) as run:
        server = await run.come(shape, "/room/one")
        ids = [ws.id for ws in app.connections]
        assert opened == [(ids[0], "one")]
        assert closed == []
        server.say("hello")
        await settled()
        await clock.look(app, 7)
        clock.now += 0.5
        server.leave(4001, "bye")
        await run.end_of(server)
        reason = "bye" if shape.codes == "all" else ""
        assert closed == [Summary(ids[0], "/room/{name}", "/room/one", True, told(shape, 4001), reason, 7.5)]
        await run.come(shape, "/no")
        await run.come(shape, "/no", query="abcde")
        assert len(opened) == 1
        assert len(closed) == 2, "who was refused by a limit was never in"
        assert (closed[1].route, closed[1].accepted, closed[1].code) == ("/no", False, 4403)


async def test_a_hook_that_fails_is_logged_and_harms_nobody(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    calls: Log = []
    app = app_of(reading)

    @app.connections.on_open
    def opening(_: Any) -> None:
        raise ValueError("open went wrong")

    @app.connections.on_close
    def closing(_: Any) -> None:
        raise ValueError("close went wrong")

    app.connections.on_open(lambda _: calls.append("open"))
    app.connections.on_close(lambda _: calls.append("close"))
    with caplog.at_level(logging.ERROR):
        async with serving(app) as run:
            server = await run.come()
            assert server.status == 101
    assert calls == ["open", "close"]
    assert "open went wrong" in caplog.text
    assert "close went wrong" in caplog.text
    assert [record.getMessage() for record in caplog.records] == [
        "the hook opening failed",
        "the hook closing failed",
    ]


async def test_after_the_accept_neither_hook_nor_dependency_stands_between_handler_and_server(clock: Clock) -> None:
    senders: Log = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        senders.append(type(ws._send))

    app = App()
    app.websocket("/plain")(handler)
    app.websocket("/both", dependencies=[Depends(fleeting, scope="handshake")])(handler)
    async with serving(app) as run:
        await run.come(path="/plain")
        app.connections.on_open(lambda _: None)
        await run.come(path="/both")
    assert senders[0] is senders[1]


@pytest.mark.parametrize("name", ["on_open", "on_close"])
def test_a_hook_is_a_plain_function(name: str) -> None:
    async def coroutine(_: Any) -> None: ...

    for wrong in (coroutine, 5, None):
        with pytest.raises(ConfigurationError, match=f"{name} takes a plain function"):
            getattr(App().connections, name)(wrong)


# The watchdog itself


@every_shape
async def test_the_watchdog_reads_for_who_does_not_and_cancels_who_lingers(quick: None, shape: Shape) -> None:
    log: Log = []

    app = app_of(sleeping(log), linger=0.01)
    async with serving(app) as run:
        server = await run.come(shape)
        server.say("hello")
        server.leave(4003)
        await run.end_of(server)
        assert log == [told(shape, 4003)]


async def test_the_watchdog_ends_without_connections_and_the_next_one_starts_it_again(quick: None) -> None:
    log: Log = []

    app = app_of(sleeping(log), linger=0)
    for round_ in range(3):
        async with serving(app) as run:
            server = await run.come()
            assert looking(app)
            server.leave()
            await run.end_of(server)
            assert len(log) == round_ + 1
        await soon(lambda: not looking(app))


async def test_the_watchdog_goes_on_while_there_is_a_connection(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    look = Watch.look

    def counting(self: Watch) -> None:
        nonlocal looks
        looks += 1
        look(self)

    monkeypatch.setattr(Watch, "look", counting)
    app = app_of(reading)
    async with serving(app) as run:
        await run.come()
        await soon(lambda: looks > 3 * asgiws.watch._EMPTY_LOOKS)
        assert looking(app)
        await app.connections.rest()
        assert looking(app), "it rests only without connections"
        before = looks
        await soon(lambda: looks > before + 2)


async def test_rest_ends_the_watchdog_and_the_next_connection_starts_it_again() -> None:
    app = app_of(reading)
    await app.connections.rest()  # nothing to end
    for _ in range(3):
        async with serving(app) as run:
            await run.come()
            assert looking(app)
        await app.connections.rest()
        assert not looking(app)


async def test_one_who_comes_while_the_watchdog_goes_to_rest_is_watched(quick: None) -> None:
    app = app_of(reading, idle_timeout=0.05)
    async with serving(app) as run:
        first = await run.come()
        first.leave()
        await run.end_of(first)
        server = Peer()
        run.servers.append(server)
        run.group.start_soon(app.connections.rest)
        run.group.start_soon(run._serve, server)
        with anyio.move_on_after(2):
            await server.until(lambda server: server.closed)
        assert server.closed == (1001, "you sent nothing")


def test_an_app_serves_in_one_event_loop_after_the_other(quick: None) -> None:
    log: Log = []

    app = app_of(sleeping(log), linger=0)

    async def main() -> None:
        async with serving(app) as run:
            server = await run.come()
            server.leave()
            await run.end_of(server)

    for at, backend in enumerate(("asyncio", "asyncio", "trio", "trio", "asyncio")):
        anyio.run(main, backend=backend)
        assert len(log) == at + 1


def test_an_event_loop_that_was_just_closed_takes_no_watchdog_with_it(quick: None) -> None:
    app = app_of(reading, idle_timeout=0.05)

    async def short() -> None:
        async with serving(app) as run:
            await run.come()

    async def watched() -> None:
        async with serving(app) as run:
            server = await run.come()
            await run.end_of(server)
            assert server.closed is not None

    for main in (short, watched):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "daphne", "granian"])
async def test_a_client_of_a_test_sees_what_the_watchdog_does(quick: None, server: str) -> None:
    app = App()
    cut: Log = []

    @app.websocket("/idle", limits=Limits(idle_timeout=0.05))
    async def idle(ws: WebSocket) -> None:
        await reading(ws)

    @app.websocket("/stuck", limits=Limits(send_timeout=0.05))
    async def stuck(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        try:
            while True:
                await ws.send_bytes(b"a" * 1024)
        except WebSocketDisconnect as gone:
            cut.append(gone.code)

    @app.websocket("/busy", limits=Limits(linger=0.01))
    async def busy(ws: WebSocket) -> None:
        await ws.accept()
        await anyio.sleep_forever()

    async with AsyncTestClient(app, server=server) as client:
        async with client.websocket_connect("/idle") as ws:
            await ws.expect_close(4001 if server == "daphne" else 1001, reason="you sent nothing")
        async with client.websocket_connect("/busy") as ws:
            await ws.send_text("hello")
        if server != "daphne":  # whose send never blocks
            async with client.websocket_connect("/stuck") as ws:
                await ws.stall()
                await ws.send_text("go")
                await soon(lambda: app.connections.statistics().dropped == 1)
        await soon(lambda: len(app.connections) == 0)
    assert app.connections.statistics().cancelled == 1
    assert cut == [1013] * (server != "daphne")
    assert looking(app) == (server == "daphne"), "the end of the lifespan ends it, where there is one"


# A server that ends the lifespan while connections are open


@pytest.mark.parametrize("what", ["reads", "sleeps"])
async def test_what_is_open_at_the_end_of_the_lifespan_is_closed_and_cleaned_up(what: str) -> None:
    # P27: granian tells of the end of the lifespan while handlers still run
    log: list[str] = []
    app = App(limits=Limits(linger=0.1))

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        log.append("open")
        try:
            if what == "sleeps":
                await anyio.sleep_forever()
            async for _ in ws.iter_text():
                pass
        finally:
            log.append("end")

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            async with app.lifespan_context():
                group.start_soon(app, server.scope, server.receive, server.send)
                await soon(lambda: log)
            assert log == ["open", "end"]
    assert server.sent[-1] == {"type": "websocket.close", "code": 1012, "reason": "the server stops"}
    assert len(app.connections) == 0


@pytest.mark.parametrize("left", ["nobody", "a reader", "a sleeper"])
async def test_nothing_is_left_of_the_watchdog_after_the_lifespan(quick: None, left: str) -> None:
    async def handler(ws: WebSocket) -> None:
        await (sleeping([]) if left == "a sleeper" else reading)(ws)

    app = app_of(handler, linger=0)
    async with serving(app) as run:
        before = count_tasks()
        async with app.lifespan_context():
            without = count_tasks()
            server = await run.come()
            assert count_tasks() > without + 1, "its handler, and the watchdog"
            if left == "nobody":
                server.leave()
                await run.end_of(server)
        assert len(app.connections) == 0
        await run.end_of(server)
        assert count_tasks() == before
        assert app.connections._watches == {}
        assert app.connections.record.notes == {}


async def test_a_look_that_fails_is_logged_and_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def look(_: Watch) -> None:
        looks.append(len(looks))
        if looks == [0]:
            raise LookupError("a fault")

    monkeypatch.setattr(Watch, "look", look)
    monkeypatch.setattr(asgiws.watch, "TICK", 0.01)
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await soon(lambda: len(looks) > 2)
            server.leave(1000)
    assert [record.getMessage() for record in caplog.records] == ["a look of the watchdog failed"]
