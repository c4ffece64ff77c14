"""What is read ahead of a handler: nothing is lost, doubled or out of order, whoever gives up and whenever."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asgiws.watch
from asgiws import App, Limits, WebSocket, WebSocketDisconnect
from asgiws.inbox import Inbox
from asgiws.testing.servers import Event
from asgiws.types import Message
from tests.fakes import DEADLINE, GRANIAN, HYPERCORN, SHAPES, UVICORN, UVICORN_LEGACY, FakeServer, Shape, converse, soon

pytestmark = pytest.mark.anyio

Socket: TypeAlias = WebSocket[Any, Any]


class Bug(Exception):
    """What a server raises that means nothing to anybody."""


def text(content: str) -> Event:
    return {"type": "websocket.receive", "text": content}


def gone(code: int | None = 1000, reason: str = "") -> Event:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


class Source:
    """A server's `receive()` that is looked at: nobody may call it twice at once."""

    def __init__(self, *events: Event | Exception) -> None:
        self.waiting: collections.deque[Event | Exception] = collections.deque(events)
        self.taken = 0
        self.calls = 0
        self.cancelled = 0
        self.pending = False
        self._news = anyio.Event()

    def put(self, *events: Event | Exception) -> None:
        self.waiting.extend(events)
        self._news.set()
        self._news = anyio.Event()

    async def receive(self) -> Event:
        assert not self.pending, "two receive() at once"
        self.calls += 1
        self.pending = True
        try:
            await anyio.lowlevel.checkpoint()
            while not self.waiting:
                await self._news.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.pending = False
        event = self.waiting.popleft()
        self.taken += 1
        if isinstance(event, Exception):
            raise event
        return event


class Owner:
    """What an inbox knows of its session."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def read_directly(self, receive: Any) -> None:
        self.told.append(("read directly", receive))

    def asked(self) -> None:
        self.told.append(("asked",))

    def peer_left(self, code: int, reason: str) -> None:
        self.told.append(("peer left", code, reason))


class Desk:
    """An inbox with all that is around it."""

    def __init__(
        self, *events: Event | Exception, messages: int = 64, size: int = 1_000_000, stays: bool = False
    ) -> None:
        self.source = Source(*events)
        self.owner = Owner()
        self.inbox = Inbox(self.owner, self.source.receive, messages, size, stays=stays)

    async def get(self) -> Event:
        with anyio.fail_after(DEADLINE):
            return dict(await self.inbox.get())

    @property
    def handed_over(self) -> int:
        return self.owner.told.count(("read directly", self.source.receive))


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def settle() -> None:
    """Let everybody run until all wait: nothing here waits for more than another task, so this is plenty."""
    await turns(30)


async def reading_ahead(desk: Desk) -> Desk:
    desk.inbox.go_ahead()
    await settle()
    return desk


async def giving_up(desk: Desk, then: Callable[[], None] = lambda: None) -> list[Event]:
    """A `get()` that is cancelled while it waits; what it got all the same if `then` happens at the same moment."""
    found: list[Event] = []
    scope = anyio.CancelScope()

    async def get() -> None:
        with scope:
            found.append(dict(await desk.inbox.get()))

    async with anyio.create_task_group() as group:
        group.start_soon(get)
        await settle()
        then()
        scope.cancel()
    return found


async def failing_get(desk: Desk) -> Exception:
    with anyio.fail_after(DEADLINE):
        try:
            event = await desk.inbox.get()
        except (OSError, RuntimeError, Bug) as error:
            return error
    raise AssertionError(event)


async def waiting_get(
    desk: Desk, then: Callable[[], Awaitable[None] | None], results: list[Any] | None = None
) -> Exception | Event:
    """What comes of a `get()` that waits while something happens."""
    results = [] if results is None else results

    async def get() -> None:
        try:
            results.append(await desk.inbox.get())
        except (OSError, RuntimeError, Bug) as error:
            results.append(error)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(get)
            await settle()
            happening = then()
            if happening is not None:
                await happening
    found: Exception | Event = results[0]
    return found


# Order and bounds


async def test_what_was_read_ahead_comes_in_order_and_unchanged() -> None:
    events = [text("a"), {"type": "websocket.receive", "bytes": b"b"}, {**text(""), "bytes": None}, text("d")]
    desk = await reading_ahead(Desk(*events))
    assert desk.source.taken == 4
    assert [await desk.get() for _ in events] == events


async def test_it_reads_on_while_nobody_gets() -> None:
    desk = await reading_ahead(Desk(text("a")))
    desk.source.put(text("b"))
    await settle()
    desk.source.put(text("c"))
    await settle()
    assert desk.source.taken == 3
    assert [(await desk.get())["text"] for _ in "abc"] == ["a", "b", "c"]


async def test_a_reader_is_there_once() -> None:
    # A second one would call the server's receive() while the first waits in it.
    desk = await reading_ahead(Desk())
    desk.inbox.start()
    await reading_ahead(desk)
    desk.source.put(text("a"))
    await settle()
    assert desk.source.calls == 2  # one that brought the message, and the one that is under way
    assert not desk.inbox.done


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("limit", [1, 3])
async def test_it_holds_so_many_messages_and_no_more(limit: int, stays: bool) -> None:
    events = [text(str(number)) for number in range(10)]
    desk = await reading_ahead(Desk(*events, messages=limit, stays=stays))
    assert desk.source.taken == limit
    assert desk.inbox.full
    assert await desk.get() == events[0]
    assert not desk.inbox.full
    await settle()
    assert desk.source.taken == limit + 1
    assert [await desk.get() for _ in events[1:]] == events[1:]


@pytest.mark.parametrize("content", ["four", b"four", "\N{GRINNING FACE}"])
async def test_it_holds_so_many_bytes_and_no_more(content: str | bytes) -> None:
    key = "text" if isinstance(content, str) else "bytes"
    events: list[Event] = [{"type": "websocket.receive", key: content} for _ in range(9)]
    desk = await reading_ahead(Desk(*events, size=12))
    assert desk.source.taken == 3
    assert desk.inbox.full
    assert await desk.get() == events[0]
    await settle()
    assert desk.source.taken == 4
    assert [await desk.get() for _ in range(8)] == events[1:]
    await settle()
    # All that was taken out is forgotten: there is room for as much as in the beginning.
    await reading_ahead(desk)
    desk.source.put(*events)
    await settle()
    assert desk.source.taken == 9 + 3


async def test_a_message_over_the_size_is_taken_and_then_no_other() -> None:
    desk = await reading_ahead(Desk(text("x" * 100), text("y"), size=10))
    assert desk.source.taken == 1
    assert desk.inbox.full
    assert (await desk.get())["text"] == "x" * 100
    assert (await desk.get())["text"] == "y"


async def test_empty_messages_count_as_messages() -> None:
    desk = await reading_ahead(Desk(*[text("")] * 5, messages=2))
    assert desk.source.taken == 2


async def test_who_looks_is_told_that_something_came() -> None:
    desk = await reading_ahead(Desk())
    desk.inbox.heard = False
    await settle()
    assert not desk.inbox.heard
    desk.source.put(text("a"))
    await settle()
    assert desk.inbox.heard


@pytest.mark.parametrize("stays", [False, True])
async def test_a_receive_that_never_waits_holds_nobody_up(stays: bool) -> None:
    # T42: also where a server has always something to say
    taken = 0

    async def receive() -> Event:
        nonlocal taken
        taken += 1
        return text(str(taken))

    inbox = Inbox(Owner(), receive, 8, 1000, stays=stays)
    inbox.go_ahead()
    await settle()
    assert taken == 8
    for number in range(1, 30):
        assert (await inbox.get())["text"] == str(number)
        await settle()
        assert taken <= number + 8
    inbox.stop()
    await settle()


# Hand-over


async def test_who_takes_a_message_at_once_reads_directly_again() -> None:
    desk = await reading_ahead(Desk())
    assert await waiting_get(desk, lambda: desk.source.put(text("a"), text("b"))) == text("a")
    assert desk.inbox.done
    assert desk.handed_over == 1
    await settle()
    assert not desk.source.pending  # nobody but the handler reads any more
    assert desk.source.taken == 1
    assert await desk.source.receive() == text("b")


async def test_nothing_is_handed_over_while_messages_are_left() -> None:
    desk = await reading_ahead(Desk(text("a"), text("b")))
    assert await desk.get() == text("a")
    assert await desk.get() == text("b")
    assert desk.handed_over == 0  # the reader is in receive(): nobody else may be
    assert await waiting_get(desk, lambda: desk.source.put(text("c"))) == text("c")
    assert desk.handed_over == 1


async def test_a_message_that_its_taker_left_behind_comes_before_those_that_are_read_directly() -> None:
    desk = await reading_ahead(Desk())
    found = await giving_up(desk, lambda: desk.source.put(text("a"), text("b")))
    await settle()
    while len(found) < 2:
        found.append(await desk.get())
    assert found == [text("a"), text("b")]


async def test_without_a_reader_get_is_the_servers_receive() -> None:
    desk = Desk(text("a"))
    assert await desk.get() == text("a")
    assert desk.handed_over == 1
    assert desk.source.calls == 1


async def test_after_the_hand_over_it_can_read_ahead_again() -> None:
    desk = await reading_ahead(Desk())
    for content in ("a", "b", "c"):
        assert await waiting_get(desk, functools.partial(desk.source.put, text(content))) == text(content)
        await reading_ahead(desk)
    assert desk.handed_over == 3
    assert desk.source.cancelled == 0


# Who gives up


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_cancelled_get_loses_nothing_and_does_not_reach_the_server(stays: bool, at_once: bool) -> None:
    desk = await reading_ahead(Desk(stays=stays))
    found: list[Event] = []
    for number in range(20):
        event = text(str(number))
        found += await giving_up(desk, lambda event=event: desk.source.put(event) if at_once else None)  # type: ignore[misc]
        if not at_once:
            desk.source.put(event)
        # With the reader that has been asked, or with another: as a look of the watchdog would have it.
        desk.inbox.go_ahead()
        await settle()
    assert desk.source.cancelled == 0
    while len(found) < 20:
        found.append(await desk.get())
    assert [event["text"] for event in found] == [str(number) for number in range(20)]


async def test_who_gave_up_is_not_waited_for() -> None:
    desk = await reading_ahead(Desk())
    assert await giving_up(desk) == []
    desk.source.put(text("a"), text("b"))
    await settle()
    assert desk.source.taken == 2
    assert not desk.inbox.done


async def test_a_get_that_is_cancelled_before_it_began_takes_nothing() -> None:
    desk = await reading_ahead(Desk())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await desk.inbox.get()
    assert scope.cancelled_caught
    desk.source.put(text("a"))
    await settle()
    assert desk.source.cancelled == 0
    assert await desk.get() == text("a")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_is_cancelled_when_its_message_has_come_leaves_it(anyio_backend: str) -> None:
    # anyio does not cancel who has been woken up; a plain task.cancel() does.
    desk = await reading_ahead(Desk())
    getting = asyncio.create_task(desk.inbox.get())
    await settle()
    desk.source.put(text("a"))
    await soon(lambda: desk.source.taken)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert await desk.get() == text("a")


# A handler that never reads directly


async def test_a_reader_that_stays_reads_only_when_it_is_asked() -> None:
    desk = Desk(text("a"), text("b"), stays=True)
    desk.inbox.start()
    await settle()
    assert desk.source.calls == 0
    assert await desk.get() == text("a")
    await settle()
    assert desk.source.calls == 1
    assert await desk.get() == text("b")
    assert desk.source.calls == 2
    assert desk.handed_over == 0
    assert not desk.inbox.done


async def test_a_reader_that_stays_reads_on_for_who_gave_up() -> None:
    desk = Desk(stays=True)
    desk.inbox.start()
    assert await giving_up(desk) == []
    assert desk.source.pending
    desk.source.put(text("a"), text("b"))
    await settle()
    assert desk.source.cancelled == 0
    assert await desk.get() == text("a")
    assert await desk.get() == text("b")


async def test_a_reader_that_stays_reads_ahead_until_somebody_waits_again() -> None:
    desk = Desk(text("a"), text("b"), stays=True)
    desk.inbox.start()
    await settle()
    await reading_ahead(desk)
    assert desk.source.taken == 2
    assert [await desk.get(), await desk.get()] == [text("a"), text("b")]
    assert await waiting_get(desk, lambda: desk.source.put(text("c"), text("d"))) == text("c")
    await settle()
    assert desk.source.taken == 3
    assert desk.handed_over == 0


# The end


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    ("event", "told"),
    [
        (gone(4000, "bye"), (4000, "bye")),
        (gone(None), (1005, "")),
        ({"type": "websocket.disconnect"}, (1005, "")),
        ({"type": "websocket.disconnect", "code": 1001, "reason": None}, (1001, "")),
    ],
)
async def test_the_disconnect_is_told_at_once_and_got_last(event: Event, told: tuple[int, str], stays: bool) -> None:
    desk = await reading_ahead(Desk(text("a"), event, stays=stays))
    assert desk.owner.told == [("peer left", *told)]
    assert desk.inbox.done
    assert await desk.get() == text("a")
    assert await desk.get() == event
    assert isinstance(await failing_get(desk), OSError)
    desk.inbox.go_ahead()
    await settle()
    assert desk.source.calls == 2  # some servers block for ever after the disconnect
    assert desk.handed_over == 0


async def test_who_waits_gets_the_disconnect() -> None:
    desk = await reading_ahead(Desk())
    assert await waiting_get(desk, lambda: desk.source.put(gone(4000))) == gone(4000)
    assert desk.handed_over == 0


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("error", [Bug("x"), ConnectionResetError("x"), RuntimeError("x")], ids=repr)
async def test_what_receive_raises_comes_after_the_messages_before_it(error: Exception, stays: bool) -> None:
    desk = await reading_ahead(Desk(text("a"), text("b"), error, stays=stays))
    assert desk.owner.told == [("peer left", 1006, "")]
    assert [await desk.get(), await desk.get()] == [text("a"), text("b")]
    assert await failing_get(desk) is error
    assert await failing_get(desk) is error
    assert desk.source.calls == 3


@pytest.mark.parametrize("stays", [False, True])
async def test_what_receive_raises_comes_to_who_waits(stays: bool) -> None:
    desk = await reading_ahead(Desk(stays=stays))
    error = Bug("x")
    assert await waiting_get(desk, lambda: desk.source.put(error)) is error


@pytest.mark.parametrize("stays", [False, True])
async def test_a_stop_ends_the_reader_and_who_waits(stays: bool) -> None:
    desk = await reading_ahead(Desk(stays=stays))
    assert isinstance(await waiting_get(desk, desk.inbox.stop), OSError)
    await settle()
    assert desk.inbox.done
    assert not desk.source.pending
    desk.inbox.go_ahead()
    await settle()
    assert desk.source.calls == 1


async def test_a_stop_ends_a_reader_that_has_no_room() -> None:
    desk = await reading_ahead(Desk(text("a"), text("b"), messages=1))
    desk.inbox.stop()
    await settle()
    assert desk.inbox.done
    assert await desk.get() == text("a")
    assert isinstance(await failing_get(desk), OSError)
    assert desk.source.taken == 1


async def test_a_stop_ends_a_reader_that_has_not_begun() -> None:
    desk = Desk(text("a"))
    desk.inbox.start()
    desk.inbox.stop()
    await soon(lambda: desk.inbox.done)
    assert desk.source.calls == 0


async def test_a_stop_without_a_reader_lets_none_begin() -> None:
    desk = Desk(text("a"))
    desk.inbox.stop()
    desk.inbox.start()
    await settle()
    assert desk.source.calls == 0


async def test_a_close_waits_until_the_servers_receive_is_over() -> None:
    desk = await reading_ahead(Desk(stays=True))
    assert desk.source.pending
    with anyio.fail_after(DEADLINE):
        await desk.inbox.let_close()
    assert not desk.source.pending
    assert desk.inbox.done


async def test_who_waits_is_told_when_the_close_is_out() -> None:
    desk = Desk(stays=True)
    desk.inbox.start()
    told: list[Event] = []

    async def close() -> None:
        await desk.inbox.let_close()
        assert not desk.source.pending
        await settle()
        told.extend(results)
        desk.inbox.stop()

    results: list[Any] = []
    result = await waiting_get(desk, close, results)
    assert told == []
    assert isinstance(result, OSError)
    assert desk.source.calls == 1


@pytest.mark.parametrize("stop", [False, True])
async def test_a_close_waits_for_a_reader_that_has_not_begun(stop: bool) -> None:
    desk = Desk(text("a"), stays=True)
    desk.inbox.start()
    if stop:
        desk.inbox.stop()
    with anyio.fail_after(DEADLINE):
        await desk.inbox.let_close()
    await settle()
    assert desk.source.calls == 0


async def test_a_close_does_not_wait_for_a_reader_that_has_ended() -> None:
    desk = await reading_ahead(Desk(gone(), stays=True))
    with anyio.fail_after(DEADLINE):
        await desk.inbox.let_close()
    assert desk.inbox.done


async def test_a_close_leaves_a_reader_that_does_not_stay() -> None:
    # Its server sends a close all the same, and the disconnect is still to come.
    desk = await reading_ahead(Desk())
    with anyio.fail_after(DEADLINE):
        await desk.inbox.let_close()
    assert desk.source.pending
    desk.source.put(gone(1001))
    assert await desk.get() == gone(1001)


# The handshake


async def test_the_connect_is_told_and_not_kept() -> None:
    desk = await reading_ahead(Desk({"type": "websocket.connect"}))
    assert desk.owner.told == [("asked",)]
    desk.source.put(gone(1001))
    await settle()
    assert desk.owner.told == [("asked",), ("peer left", 1001, "")]
    assert await desk.get() == gone(1001)


@pytest.mark.parametrize("stays", [False, True])
async def test_who_waits_gets_the_connect(stays: bool) -> None:
    desk = await reading_ahead(Desk(stays=stays))
    connect = {"type": "websocket.connect"}
    assert await waiting_get(desk, lambda: desk.source.put(connect, text("a"))) == connect
    assert ("asked",) not in desk.owner.told
    assert await desk.get() == text("a")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_end_is_read_while_the_connect_has_been_left_behind(anyio_backend: str) -> None:
    # Nobody knows yet that there was a handshake, so it must not be known to have ended.
    desk = await reading_ahead(Desk(stays=True))
    getting = asyncio.create_task(desk.inbox.get())
    await settle()
    desk.source.put({"type": "websocket.connect"}, gone(1001))
    await soon(lambda: desk.source.taken)
    getting.cancel()
    await asyncio.wait([getting])
    assert getting.cancelled()
    await reading_ahead(desk)
    assert desk.owner.told == []
    assert await desk.get() == {"type": "websocket.connect"}
    await reading_ahead(desk)
    assert desk.owner.told == [("peer left", 1001, "")]
    assert await desk.get() == gone(1001)


# Through a WebSocket


class Server(FakeServer):
    """A server that counts the `receive()` that were cancelled."""

    cancelled = 0

    async def receive(self) -> Event:
        try:
            return await super().receive()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise

    @property
    def is_receiving(self) -> bool:
        return self._receiving

    @property
    def unread(self) -> int:
        return sum(isinstance(event, dict) and event["type"] == "websocket.receive" for event in self._inbox)


@pytest.fixture(autouse=True)
def no_looks_but_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgiws.watch, "TICK", 1000.0)


def take_over(app: App) -> None:
    """Look twice at a handler that does not read."""
    app.connections.look()
    app.connections.look()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_timeout_does_not_reach_the_server(shape: Shape) -> None:
    app, server = App(), Server(shape)
    got: list[str] = []
    cancelled: list[int] = []

    @app.websocket("/")
    async def handler(ws: Socket) -> None:
        await ws.accept()
        for number in range(5):
            with pytest.raises(TimeoutError):
                await ws.receive_text(timeout=0.001)
            server.say(f"{number}")
            # With and without a time it is the reader that brings it.
            got.append(await ws.receive_text(timeout=DEADLINE if number % 2 else None))
        cancelled.append(server.cancelled)

    await converse(app, server, leave=-1)
    await app.connections.rest()
    assert got == ["0", "1", "2", "3", "4"]
    assert cancelled == [0]


STRESSED = [(GRANIAN, "auto"), (UVICORN, "always"), (UVICORN_LEGACY, "auto")]


async def stress(
    shape: Shape,
    reader: Any,
    count: int,
    read: Callable[[App, Socket, list[str]], Any],
    pause: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """A client says all of it while `read` reads; how many `receive()` of the server were cancelled."""
    app = App(limits=Limits(reader=reader, inbox_messages=8))
    server = Server(shape)
    got: list[str] = []
    cancelled: list[int] = []
    pace = random.Random(4)  # noqa: S311 - no secret

    @app.websocket("/")
    async def handler(ws: Socket) -> None:
        await ws.accept()
        try:
            await read(app, ws, got)
        finally:
            cancelled.append(server.cancelled)

    async def client() -> None:
        for number in range(count):
            server.say(str(number))
            await (pause() if pause is not None else turns(pace.choice((0, 0, 1, 3, 9))))
        server.leave(4000)

    with anyio.fail_after(10 * DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(client)
            await app(server.scope, server.receive, server.send)
    await app.connections.rest()
    assert got == [str(number) for number in range(count)]
    assert not server.choked
    assert server.calls_after_disconnect == 0
    return cancelled[0]


@pytest.mark.parametrize(("shape", "reader"), STRESSED)
async def test_4000_messages_arrive_in_order_though_reads_are_cancelled_all_the_time(shape: Shape, reader: str) -> None:
    pace = random.Random(7)  # noqa: S311 - no secret
    given_up = 0

    async def read(app: App, ws: Socket, got: list[str]) -> None:
        nonlocal given_up
        scope = anyio.CancelScope()
        over = False

        async def annoy() -> None:
            while not over:
                for _ in range(pace.choice((1, 1, 2, 3, 7))):
                    await anyio.lowlevel.checkpoint()
                if pace.random() < 0.1:
                    take_over(app)
                scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(annoy)
            try:
                while True:
                    scope = anyio.CancelScope()
                    with scope:
                        got.append(await ws.receive_text())
                    given_up += scope.cancelled_caught
                    if pace.random() < 0.05:  # a slow handler, for which is read ahead
                        take_over(app)
                        for _ in range(20):
                            await anyio.lowlevel.checkpoint()
            except WebSocketDisconnect:
                assert len(got) == 4000
            over = True

    cancelled = await stress(shape, reader, 4000, read)
    assert given_up > 1000
    if shape is GRANIAN or reader == "always":
        assert cancelled == 0


FORGETFUL = dataclasses.replace(UVICORN, name="forgetful", cancel_eats=True)
"""No server of today: it loses messages like granian, but nothing tells that it does."""


@pytest.mark.parametrize("shape", [GRANIAN, FORGETFUL], ids=lambda shape: shape.name)
async def test_4000_messages_arrive_in_order_though_time_runs_out_every_millisecond(shape: Shape) -> None:
    # P16, T8
    pace = random.Random(5)  # noqa: S311 - no secret
    timeouts = 0

    async def read(_: App, ws: Socket, got: list[str]) -> None:
        nonlocal timeouts
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                try:
                    got.append(await ws.receive_text(timeout=0.001))
                except TimeoutError:
                    timeouts += 1

    async def pause() -> None:
        if pace.random() < 0.02:  # longer than the handler waits, and takes for what is in its inbox
            await anyio.sleep(0.02)
        elif pace.random() < 0.3:
            await anyio.lowlevel.checkpoint()

    assert await stress(shape, "auto", 4000, read, pause) == 0
    assert timeouts > 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("shape", "reader"), STRESSED[:2])
async def test_messages_arrive_in_order_though_tasks_are_cancelled_that_read(
    shape: Shape, reader: str, anyio_backend: str
) -> None:
    pace = random.Random(7)  # noqa: S311 - no secret
    given_up = 0

    async def read(app: App, ws: Socket, got: list[str]) -> None:
        nonlocal given_up
        while True:
            reading = asyncio.create_task(ws.receive_text())
            for _ in range(pace.choice((0, 1, 1, 2, 3, 5))):
                await asyncio.sleep(0)
            reading.cancel()
            try:
                got.append(await reading)
            except asyncio.CancelledError:
                given_up += 1
            except WebSocketDisconnect:
                return

    assert await stress(shape, reader, 1000, read) == 0
    assert given_up > 250


# Any order of all that may happen

say = st.tuples(st.just("say"), st.integers(1, 5), st.integers(0, 6))
patience = st.integers(0, 6)
steps = st.one_of(
    say,
    say,
    st.tuples(st.just("read"), st.sampled_from([None, DEADLINE]), st.integers(1, 3)),
    st.tuples(st.just("time out"), st.sampled_from([0.0, 0.0005]), st.just(0)),
    st.tuples(st.just("cancel"), patience, patience),
    st.tuples(st.just("cancel as it comes"), patience, patience),
    st.tuples(st.just("look as it waits"), patience, st.integers(0, 3)),
    st.tuples(st.just("look"), st.integers(1, 3), patience),
    st.tuples(st.just("settle"), st.just(0), st.just(0)),
)
HELD, BYTES = 3, 12


class Life:
    """One connection, and what must come of it."""

    def __init__(self, app: App, server: Server, script: list[tuple[str, Any, int]], end: tuple[str, int]) -> None:
        self.app = app
        self.server = server
        self.script = script
        self.end, self.end_at = end
        self.said: list[str] = []
        self.got: list[str] = []
        self.code: int | None = None
        self.left = False
        self.cancelled = -1

    def say(self, length: int) -> None:
        if not self.left:
            self.said.append(f"{len(self.said)}".ljust(length, "."))
            self.server.say(self.said[-1])

    def leave(self) -> None:
        if not self.left:
            self.left = True
            if self.end == "leave":
                self.server.leave(4000)
            elif self.end == "abort":
                self.server.abort()
            else:
                self.server.put(ConnectionResetError())

    async def read(self, ws: Socket, within: float | None) -> None:
        try:
            self.got.append(await ws.receive_text(within))
        except WebSocketDisconnect as error:
            self.code = error.code
        if self.code is not None:
            assert self.left
            assert self.got == self.said  # what was said before comes before
        assert self.got == self.said[: len(self.got)]

    async def read_and_cancel(self, ws: Socket, before: Callable[[], None], first: int, then: int) -> None:
        scope = anyio.CancelScope()

        async def read() -> None:
            with scope:
                await self.read(ws, None)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await turns(first)
            before()
            await turns(then)
            scope.cancel()

    async def run(self, ws: Socket) -> None:
        await ws.accept()
        for at, (what, first, second) in enumerate(self.script):
            if at == self.end_at:
                self.leave()
            await self.step(ws, what, first, second)
            self.check_bounds()
        self.leave()
        while self.code is None:
            await self.read(ws, None)
        assert self.got == self.said
        self.cancelled = self.server.cancelled

    async def step(self, ws: Socket, what: str, first: Any, second: int) -> None:
        match what:
            case "say":
                for _ in range(first):
                    self.say(second)
            case "read":
                for _ in range(second):
                    if len(self.got) < len(self.said) or self.left:
                        await self.read(ws, first)
            case "time out":
                nothing = len(self.got) == len(self.said) and not self.left
                try:
                    await self.read(ws, first)
                except TimeoutError:
                    return
                assert not nothing
            case "cancel":
                await self.read_and_cancel(ws, lambda: None, first, second)
            case "cancel as it comes":
                await self.read_and_cancel(ws, lambda: self.say(1), first, second)
            case "look as it waits":
                await self.read_and_cancel(ws, self.app.connections.look, first, second)
            case "look":
                for _ in range(first):
                    self.app.connections.look()
                    await turns(second)
            case _:
                await settle()

    def check_bounds(self) -> None:
        """What the server handed out and the handler did not get is no more than an inbox may hold."""
        end = len(self.said) - self.server.unread
        held = self.said[len(self.got) : end]
        assert len(held) <= HELD
        assert sum(map(len, held[:-1])) < BYTES


ends = st.tuples(st.sampled_from(["leave", "leave", "abort", "break"]), st.integers(0, 30))


@pytest.mark.parametrize(
    ("shape", "reader"), [(GRANIAN, "auto"), (UVICORN, "auto"), (UVICORN_LEGACY, "always"), (HYPERCORN, "auto")]
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=80)
@given(script=st.lists(steps, max_size=30), end=ends)
def test_all_messages_arrive_once_and_in_order_whatever_happens(
    backend: str, shape: Shape, reader: Any, script: list[tuple[str, Any, int]], end: tuple[str, int]
) -> None:
    async def main() -> Life:
        app = App(limits=Limits(reader=reader, inbox_messages=HELD, inbox_bytes=BYTES))
        server = Server(shape)
        life = Life(app, server, script, end)

        @app.websocket("/")
        async def handler(ws: Socket) -> None:
            await life.run(ws)

        with anyio.fail_after(2 * DEADLINE):
            await app(server.scope, server.receive, server.send)
        return life

    life = anyio.run(main, backend=backend)
    assert life.got == life.said
    expected = {"leave": 1006 if shape.codes == "1006" else 4000, "abort": shape.abort_code, "break": 1006}
    assert life.code == expected[life.end]
    assert not life.server.choked
    assert life.server.calls_after_disconnect == 0
    if shape.cancel_eats or reader == "always":
        assert life.cancelled == 0


# What else may close


@pytest.mark.parametrize("held", [False, True])
async def test_a_close_is_sent_while_no_receive_is_awaited(held: bool) -> None:
    # granian does not send it otherwise. Who receives sees the end.
    app, server = App(), Server(GRANIAN)
    seen: list[Any] = []
    reading: list[bool] = []
    send = server.send

    async def watched_send(event: Message) -> None:
        if event["type"] == "websocket.close":
            reading.append(server.is_receiving)
            await settle()  # a close that takes its time
            reading.append(server.is_receiving)
        await send(event)

    @app.websocket("/")
    async def handler(ws: Socket) -> None:
        await ws.accept()

        async def receive() -> None:
            seen.append(await ws.receive_text())
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.receive_text()
            seen.append(caught.value.code)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            server.say("a")
            await settle()
            if held:
                app.connections.look()
            assert server.is_receiving
            await ws.close(4001)

    with anyio.fail_after(DEADLINE):
        await app(server.scope, server.receive, watched_send)
    await app.connections.rest()
    assert reading == [False, False]
    assert seen == ["a", 4001]
    assert server.closed == (4001, "")


@pytest.mark.parametrize("taken_over", [False, True])
async def test_a_handler_of_the_raw_protocol_receives_the_connect(
    taken_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long it takes until then must make no difference.
    app, server = App(), Server()
    got: list[str] = []

    @app.websocket("/")
    async def handler(ws: Socket) -> None:
        if taken_over:
            monkeypatch.setattr(asgiws.watch, "TICK", 0.0)  # so that it has waited long enough for its answer
            take_over(app)
            monkeypatch.setattr(asgiws.watch, "TICK", 1000.0)
        await settle()
        got.append((await ws.receive())["type"])
        await ws.send({"type": "websocket.accept"})
        server.say("a")
        server.leave()
        got.extend([(await ws.receive())["type"] for _ in "12"])

    await converse(app, server, leave=-1)
    await app.connections.rest()
    assert got == ["websocket.connect", "websocket.receive", "websocket.disconnect"]
