"""The line of one socket: one send at a time, in the order in which they were made, and nobody waits who publishes."""

import asyncio
import functools
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgiws import App, Limits, WebSocket, WebSocketDisconnect
from asgiws.background import ScopedSend, on_trio
from asgiws.channels import Channels
from asgiws.channels.outbox import Frame, Outbox, is_taskless
from tests.channels.sockets import (
    WAYS,
    InstantServer,
    Socket,
    accepted,
    carriers,
    foreign,
    in_module,
    line_of,
    lost_client,
    nothing_left,
    quiet,
    running,
    scoped,
    stall,
)
from tests.fakes import DEADLINE, SHAPES, UVICORN, FakeServer, Shape, soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

each_way = pytest.mark.parametrize("way", WAYS)


class Bug(Exception):
    """What a server raises that means nothing."""


class Owner:
    """Who has frames in a line, and notes what there was no room for."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def make_room(self, frame: Frame) -> None:
        self.refused.append(frame.data)

    def dropped(self, count: int) -> tuple[str, Any]:
        return "text", f"{count} lost"


def publish(ws: Socket, *texts: str, owner: Owner | None = None) -> None:
    for text in texts:
        line_of(ws).send(owner or Owner(), "text", text, len(text))


async def begin(group: Any, ws: Socket, call: Callable[[], Awaitable[Any]]) -> anyio.CancelScope:
    """Start a call of the handler's that has to wait in the line, and wait until it stands there."""
    before = len(line_of(ws))
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call()

    group.start_soon(run)
    await soon(lambda: len(line_of(ws)) == before + 1)
    return scope


# One at a time, in order


@each_way
async def test_sends_and_publications_go_out_in_the_order_in_which_they_were_made(way: str) -> None:
    ws, server = await accepted(way)
    for number in range(6):
        publish(ws, f"p{number}", f"q{number}")
        await ws.send_text(f"h{number}")
    publish(ws, "last")
    await quiet(ws)
    assert server.texts == [f"{kind}{number}" for number in range(6) for kind in "pqh"] + ["last"]
    assert server.most_sending == 1
    await nothing_left(ws)


@each_way
@pytest.mark.parametrize("first", ["publication", "handler"])
async def test_a_client_that_stalls_in_the_middle_changes_no_order(way: str, first: str) -> None:
    ws, server = await accepted(way)
    publish(ws, "before")
    await quiet(ws)
    resume = stall(server)
    async with anyio.create_task_group() as group:
        if first == "publication":
            publish(ws, "0")
        else:
            line_of(ws)
            group.start_soon(ws.send_text, "0")
        await soon(lambda: server.sending)
        publish(ws, "1", "2")
        await begin(group, ws, lambda: ws.send_text("3"))
        await begin(group, ws, lambda: ws.send_bytes(b"4"))
        publish(ws, "5")
        await begin(group, ws, lambda: ws.send_json(6))
        publish(ws, "7", "8")
        assert line_of(ws).frames == 5
        assert server.texts == ["before"]
        resume()
    await quiet(ws)
    found = [event.get("text") or event["bytes"].decode() for event in server.sent]
    assert found == ["before", *"012345678"]
    assert server.most_sending == 1
    await nothing_left(ws)


@each_way
async def test_many_at_once_never_overlap(way: str) -> None:
    ws, server = await accepted(way, outbox_messages=10_000)
    made: list[str] = []

    async def handler(name: str) -> None:
        for number in range(20):
            made.append(f"{name}{number}")
            await ws.send_text(f"{name}{number}")

    async def publisher(name: str) -> None:
        for number in range(20):
            made.append(f"{name}{number}")
            publish(ws, f"{name}{number}")
            if number % 3 == 0:
                await anyio.lowlevel.checkpoint()

    async def client() -> None:
        for _ in range(5):
            resume = stall(server)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            resume()
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(handler, name)
            group.start_soon(publisher, name.upper())
        group.start_soon(client)
    await quiet(ws)
    assert server.texts == made
    assert server.most_sending == 1
    assert not server.choked
    await nothing_left(ws)


@each_way
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_close_goes_out_behind_what_waits(way: str, shape: Shape) -> None:
    server = FakeServer(shape)
    ws: Socket = WebSocket(server.scope, server.receive, WAYS[way][1](server))
    await ws.accept()
    resume = stall(server)
    publish(ws, "1", "2", "3")
    await soon(lambda: server.sending)
    async with anyio.create_task_group() as group:
        await begin(group, ws, lambda: ws.close(3001, "done"))
        publish(ws, "too late")
        resume()
    await quiet(ws)
    assert server.texts == ["1", "2", "3"]
    assert server.closed == (3001, "done")
    assert not server.choked
    await nothing_left(ws)


async def test_frames_of_both_kinds() -> None:
    ws, server = await accepted()
    line_of(ws).send(Owner(), "bytes", b"\0", 1)
    line_of(ws).send(Owner(), "text", "a", 1)
    line_of(ws).send(Owner(), "bytes", b"", 0)
    await quiet(ws)
    assert server.sent == [
        {"type": "websocket.send", "bytes": b"\0"}, {"type": "websocket.send", "text": "a"},
        {"type": "websocket.send", "bytes": b""},
    ]  # fmt: skip


# Nobody waits who publishes


@each_way
async def test_a_publisher_does_not_wait_for_a_client_that_never_reads(way: str) -> None:
    ws, server = await accepted(way, outbox_messages=2000)
    resume = stall(server)
    for number in range(1000):
        publish(ws, str(number))  # no await: it cannot wait
    await soon(lambda: server.sending)
    assert server.texts == []
    assert line_of(ws).frames == 999
    assert len(carriers()) == 1
    resume()
    await quiet(ws)
    assert server.texts == [str(number) for number in range(1000)]


async def test_a_send_that_ends_in_its_first_step_costs_no_task() -> None:
    ws, server = await accepted("instant")
    line_of(ws)
    before = len(running("Outbox._carry"))
    for number in range(100):
        publish(ws, str(number))
        if not on_trio():
            assert server.texts[-1] == str(number)
            assert not ws._sending
    assert len(running("Outbox._carry")) - before == (1 if on_trio() else 0)
    await quiet(ws)
    assert len(server.texts) == 100


@each_way
@pytest.mark.parametrize("error", [ConnectionResetError("gone"), RuntimeError("over"), Bug("why")])
@pytest.mark.parametrize("held", [False, True], ids=["at once", "later"])
async def test_what_send_raises_does_not_reach_the_publisher(
    way: str, error: Exception, held: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ws, server = await accepted(way)
    server.fail = error
    resume = stall(server) if held else None
    publish(ws, "1")
    publish(ws, "2")
    if resume is not None:
        await soon(lambda: server.sending)
        publish(ws, "3")
        resume()
    await quiet(ws)
    assert server.sent == []
    if isinstance(error, Bug):
        assert "a publication could not be sent" in caplog.text
    else:
        assert not [record for record in caplog.records if record.levelno > logging.INFO]
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("mine")
        publish(ws, "after the end")
        await quiet(ws)
        assert server.sent == []
    await nothing_left(ws)


@each_way
async def test_a_failed_send_lets_the_handler_that_waits_go_on(way: str) -> None:
    ws, server = await accepted(way)
    resume = stall(server)
    publish(ws, "1", "2")
    await soon(lambda: server.sending)
    server.fail = ConnectionResetError("gone")
    async with anyio.create_task_group() as group:

        async def send() -> None:
            with pytest.raises(WebSocketDisconnect):
                await ws.send_text("h")

        await begin(group, ws, send)
        publish(ws, "3")
        resume()
    assert server.sent == []
    await nothing_left(ws)


@each_way
@pytest.mark.parametrize("how", ["cancelled before", "cancelled after", "deadline"])
async def test_a_publisher_that_is_cancelled_does_no_harm_to_what_it_began(way: str, how: str) -> None:
    ws, server = await accepted(way)
    resume = stall(server)
    begun = anyio.Event()

    async def publisher(scope: anyio.CancelScope) -> None:
        with scope:
            if how == "cancelled before":
                scope.cancel()
            publish(ws, "1", "2")
            begun.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope(deadline=anyio.current_time() + 0.01 if how == "deadline" else float("inf"))
        group.start_soon(publisher, scope)
        await begun.wait()
        if how == "cancelled after":
            scope.cancel()
    assert scope.cancel_called
    await soon(lambda: server.sending == 1)
    publish(ws, "3")
    resume()
    await quiet(ws)
    assert server.texts == ["1", "2", "3"]
    await nothing_left(ws)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_publisher_whose_task_is_cancelled_does_no_harm_to_what_it_began() -> None:
    ws, server = await accepted("yielding")
    resume = stall(server)

    async def publisher() -> None:
        publish(ws, "1", "2")
        await asyncio.sleep(60)

    task = asyncio.get_running_loop().create_task(publisher())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    resume()
    await quiet(ws)
    assert server.texts == ["1", "2"]
    await nothing_left(ws)


# The handler's sends in the line


@each_way
async def test_a_send_that_is_cancelled_while_it_waits_is_not_sent(way: str) -> None:
    ws, server = await accepted(way)
    resume = stall(server)
    publish(ws, "1")
    await soon(lambda: server.sending)
    async with anyio.create_task_group() as group:
        first = await begin(group, ws, lambda: ws.send_text("first"))
        publish(ws, "2")
        second = await begin(group, ws, lambda: ws.send_text("second"))
        await begin(group, ws, lambda: ws.send_text("third"))
        publish(ws, "3")
        first.cancel()
        second.cancel()
        await soon(lambda: len(line_of(ws)) == 3)
        resume()
    await quiet(ws)
    assert server.texts == ["1", "2", "third", "3"]
    await nothing_left(ws)


@each_way
async def test_a_send_that_is_cancelled_when_it_has_got_the_turn_passes_it_on(way: str) -> None:
    ws, server = await accepted(way)
    resume = stall(server)
    publish(ws, "1")
    await soon(lambda: server.sending)
    async with anyio.create_task_group() as group:
        scope = await begin(group, ws, lambda: ws.send_text("mine"))
        publish(ws, "2")
        turn = line_of(ws)[0]
        resume()
        with anyio.fail_after(DEADLINE):
            await turn.wait()
        scope.cancel()
    await quiet(ws)
    assert server.texts in (["1", "2"], ["1", "mine", "2"])
    await nothing_left(ws)


@each_way
async def test_a_send_that_is_cancelled_under_way_lets_publications_go_on(way: str) -> None:
    ws, server = await accepted(way)
    line_of(ws)
    resume = stall(server)
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def send() -> None:
            with scope:
                await ws.send_text("mine")

        group.start_soon(send)
        await soon(lambda: server.sending)
        publish(ws, "1", "2")
        scope.cancel()
        await soon(lambda: line_of(ws).frames == 1)
        assert server.sending <= 1
        resume()
    await quiet(ws)
    assert server.texts == ["1", "2"]
    assert server.most_sending == 1
    await nothing_left(ws)


# How much waits


@each_way
async def test_at_most_so_many_messages_wait(way: str) -> None:
    ws, server = await accepted(way, outbox_messages=3)
    owner = Owner()
    resume = stall(server)
    publish(ws, "under way", owner=owner)
    await soon(lambda: server.sending)
    publish(ws, "1", "2", "3", owner=owner)
    assert owner.refused == []
    publish(ws, "4", "", owner=owner)
    assert owner.refused == ["4", ""]
    resume()
    await quiet(ws)
    assert server.texts == ["under way", "1", "2", "3"]
    await nothing_left(ws)


@each_way
async def test_at_most_so_many_bytes_wait(way: str) -> None:
    ws, server = await accepted(way, outbox_bytes=10)
    owner = Owner()
    resume = stall(server)
    publish(ws, "under way", owner=owner)
    await soon(lambda: server.sending)
    publish(ws, "12345", "1234", owner=owner)
    publish(ws, "12", owner=owner)
    assert owner.refused == ["12"]
    publish(ws, "1", "", owner=owner)  # exactly full; nothing more fits but what has no bytes
    publish(ws, "x", owner=owner)
    assert owner.refused == ["12", "x"]
    assert (line_of(ws).frames, line_of(ws).size) == (4, 10)
    resume()
    await quiet(ws)
    assert server.texts == ["under way", "12345", "1234", "1", ""]
    await nothing_left(ws)


async def test_sends_of_the_handler_do_not_count() -> None:
    ws, server = await accepted(outbox_messages=1)
    owner = Owner()
    resume = stall(server)
    publish(ws, "under way", owner=owner)
    await soon(lambda: server.sending)
    async with anyio.create_task_group() as group:
        for number in range(5):
            await begin(group, ws, functools.partial(ws.send_text, str(number)))
        publish(ws, "5", owner=owner)
        assert owner.refused == []
        resume()
    await quiet(ws)
    assert server.texts == ["under way", *"012345"]


async def test_a_key_always_asks_for_room() -> None:
    ws, server = await accepted()
    owner = Owner()
    resume = stall(server)
    publish(ws, "under way", owner=owner)
    await soon(lambda: server.sending)
    line_of(ws).send(owner, "text", "1", 1, "key")
    assert owner.refused == ["1"]
    resume()
    await quiet(ws)


async def test_frames_are_found_by_owner_dropped_and_swapped() -> None:
    ws, server = await accepted()
    one, other = Owner(), Owner()
    resume = stall(server)
    publish(ws, "under way", owner=one)
    await soon(lambda: server.sending)
    publish(ws, "1", "2", owner=one)
    publish(ws, "three", owner=other)
    publish(ws, "4", owner=one)
    line = line_of(ws)
    assert [frame.data for frame in line.of_owner(one)] == ["1", "2", "4"]
    assert [frame.data for frame in line.of_owner(other)] == ["three"]
    line.drop(line.of_owner(one)[1])
    line.swap(line.of_owner(other)[0], "bytes", b"3", 1)
    assert (line.frames, line.size) == (3, 3)
    assert line.fits(ws._limits.outbox_bytes - 3)
    assert not line.fits(ws._limits.outbox_bytes - 2)
    assert line.fits(0, ws._limits.outbox_messages - 3)
    assert not line.fits(0, ws._limits.outbox_messages - 2)
    line.of_owner(one)[-1].missing = 7
    resume()
    await quiet(ws)
    assert [event.get("text") or event["bytes"] for event in server.sent] == ["under way", "1", b"3", "7 lost"]
    await nothing_left(ws)


async def test_empty_drops_frames_and_keeps_the_handlers_sends() -> None:
    ws, server = await accepted()
    resume = stall(server)
    publish(ws, "under way")
    await soon(lambda: server.sending)
    async with anyio.create_task_group() as group:
        publish(ws, "1")
        await begin(group, ws, lambda: ws.send_text("mine"))
        publish(ws, "2")
        line_of(ws).empty()
        assert (line_of(ws).frames, line_of(ws).size, len(line_of(ws))) == (0, 0, 1)
        resume()
    await quiet(ws)
    assert server.texts == ["under way", "mine"]


# The end


@each_way
async def test_close_drops_what_waits_and_is_done_once(way: str) -> None:
    ws, server = await accepted(way)
    resume = stall(server)
    publish(ws, "under way")
    await soon(lambda: server.sending)
    publish(ws, "1", "2")
    line_of(ws).close(1013, "slow consumer")
    line_of(ws).close(1008, "again")
    publish(ws, "3")
    assert line_of(ws).frames == 0
    await soon(lambda: len(line_of(ws)) == 1)
    resume()
    await quiet(ws)
    assert server.texts == ["under way"]
    assert server.closed == (1013, "slow consumer")
    assert ws.close_code == 1013
    await nothing_left(ws)


async def test_close_after_the_end_does_nothing() -> None:
    ws, server = await accepted()
    line = line_of(ws)
    await ws.close(3000)
    line.close(1013, "slow consumer")
    assert carriers() == []
    assert server.closed == (3000, "")


@each_way
async def test_nothing_is_sent_after_the_end(way: str) -> None:
    ws, server = await accepted(way)
    await ws.close()
    publish(ws, "1")
    await quiet(ws)
    assert server.types == ["websocket.close"]
    assert not server.choked
    await nothing_left(ws)


@each_way
async def test_release_gives_up_the_send_that_is_carried_on(way: str) -> None:
    ws, server = await accepted(way)
    stall(server)
    ended: list[str] = []
    line_of(ws).at_end["it"] = lambda: ended.append("end")
    publish(ws, "1", "2")
    await soon(lambda: server.sending)
    await lost_client(server, ws)
    line_of(ws).release()
    assert ended == ["end"]
    await soon(lambda: not server.sending)
    await nothing_left(ws)
    assert server.texts == []


async def test_cut_without_a_send_does_nothing() -> None:
    ws, server = await accepted()
    line_of(ws).cut()
    publish(ws, "1")
    await quiet(ws)
    assert server.texts == ["1"]


@each_way
async def test_the_socket_is_freed(way: str) -> None:
    async def live() -> "weakref.ref[Any]":
        ws, server = await accepted(way)
        resume = stall(server)
        publish(ws, "1", "2", "3")
        await soon(lambda: server.sending)
        resume()
        await quiet(ws)
        await nothing_left(ws)
        await lost_client(server, ws)  # where somebody reads ahead, that ends it
        return weakref.ref(line_of(ws))

    line = await live()
    await soon(lambda: gc.collect() is not None and line() is None)


# With an app: what the watchdog and the registry do


def app_with(members: list[Socket], **limits: Any) -> tuple[App, Channels]:
    channels = Channels()
    app = App(channels=channels, limits=Limits(**limits))

    @app.websocket("/")
    async def room(ws: Socket) -> None:
        await ws.accept()
        async with channels.join(ws, "room"):
            members.append(ws)
            async for _ in ws:
                """Until the client leaves."""

    return app, channels


each_app_way = pytest.mark.parametrize("send_of", [lambda server: server.send, scoped, foreign], ids=["own", *"sf"])


@each_app_way
async def test_a_client_that_does_not_read_is_given_up_and_its_task_ends(send_of: Any) -> None:
    members: list[Socket] = []
    app, channels = app_with(members, send_timeout=0.01, linger=0)
    server, other = FakeServer(UVICORN), FakeServer(UVICORN)
    async with app.lifespan_context(), anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, send_of(server))
        group.start_soon(app, other.scope, other.receive, send_of(other))
        await soon(lambda: len(members) == 2)
        stall(server)
        await channels.publish("room", "1")
        await soon(lambda: server.sending)
        for number in range(10):
            await channels.publish("room", str(number))
        with anyio.fail_after(DEADLINE):
            while running("Outbox._carry"):
                app.connections.look()
                await anyio.sleep(0.01)
        given_up = next(ws for ws in members if ws.close_code == 1013)
        await soon(lambda: len(other.texts) == 11)
        await channels.publish("room", "after")
        await soon(lambda: len(other.texts) == 12)
        assert server.sent[1:] == []
        assert app.connections.statistics().dropped == 1
        assert not server.sending
        assert line_of(given_up).frames == 0
        other.leave()
        server.leave()
    assert channels.statistics().members == 0
    assert channels._topics == {}
    assert carriers() == []
    assert not server.choked


@each_app_way
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_disconnect_while_frames_wait_leaves_nothing_behind(send_of: Any, shape: Shape) -> None:
    members: list[Socket] = []
    app, channels = app_with(members, linger=0.2)
    server = FakeServer(shape)
    async with app.lifespan_context():
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, send_of(server))
            await soon(lambda: members)
            stall(server)
            for number in range(10):
                await channels.publish("room", str(number))
            await soon(lambda: server.sending)
            server.leave(1001)
        assert channels._topics == {}
        assert len(app.connections) == 0
        await soon(lambda: not carriers())
        assert not server.sending
        assert members[0]._queue is None or line_of(members[0]).frames == 0
        assert server.calls_after_disconnect == 0
        line = weakref.ref(line_of(members.pop()))
        server.scope.clear()
        await soon(lambda: gc.collect() is not None and line() is None)


async def test_what_waits_when_the_handler_ends_is_sent_before_the_close() -> None:
    app = App(channels=(channels := Channels()))
    joined, end = anyio.Event(), anyio.Event()

    @app.websocket("/")
    async def room(ws: Socket) -> None:
        await ws.accept()
        async with channels.join(ws, "room"):
            joined.set()
            await end.wait()

    server = FakeServer(UVICORN)
    async with app.lifespan_context(), anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await joined.wait()
        resume = stall(server)
        for number in range(4):
            await channels.publish("room", str(number))
        await soon(lambda: server.sending)
        end.set()
        await soon(lambda: channels._topics == {})
        resume()
        await soon(lambda: server.closed)
    assert server.texts == ["0", "1", "2", "3"]
    assert server.types[-1] == "websocket.close"
    assert carriers() == []


# Whose send() it is


async def test_a_line_that_waited_already_is_kept() -> None:
    ws, server = await accepted()
    resume = stall(server)
    async with anyio.create_task_group() as group:
        group.start_soon(ws.send_text, "1")
        await soon(lambda: server.sending)
        group.start_soon(ws.send_text, "2")
        await soon(lambda: ws._queue)
        assert len(Outbox.of(ws)) == 1
        assert Outbox.of(ws) is Outbox.of(ws)
        publish(ws, "3")
        resume()
    await quiet(ws)
    assert server.texts == ["1", "2", "3"]


def _plain(event: Any) -> None:
    """A function of this module."""


class _Sender:
    async def __call__(self, event: Any) -> None: ...


def _in(module: str) -> Any:
    async def send(event: Any) -> None: ...

    return in_module(send, module)


@pytest.mark.parametrize(
    ("send", "expected"),
    [
        (_plain, False), (_Sender(), False), (_in("uvicorn"), True), (_in("uvicorn.protocols.x"), True),
        (_in("uvicornish"), False), (_in("hypercorn.asyncio"), True), (_in("daphne.server"), True),
        (_in("granian.asgi"), False), (_in("starlette.middleware"), False), (_in("asgiws.testing.servers"), True),
        (_in("asgiws.app"), False), (functools.partial(_in("hypercorn.x"), 1), True),
        (functools.partial(_plain, 1), False), (ScopedSend(_in("uvicorn")), True), (ScopedSend(_Sender()), False),
        (functools.partial(functools.partial(_in("uvicorn"))), True),
    ],
)  # fmt: skip
def test_whose_send_may_go_on_in_another_task(send: Any, expected: bool) -> None:
    assert is_taskless(send) is expected


async def test_publishers_take_the_first_step_only_where_that_is_safe() -> None:
    for way, expected in (("instant", True), ("yielding", True), ("scoped", False), ("granian", False)):
        ws, _ = await accepted(way)
        assert line_of(ws).eager is (expected and not on_trio()), way


def test_an_instant_server_is_taken_for_a_known_one() -> None:
    assert is_taskless(InstantServer().send)
