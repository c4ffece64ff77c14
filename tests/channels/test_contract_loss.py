"""What is lost, doubled or put out of order between the broker and a member is mended, or told: never silence."""

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgiws import App, WebSocket
from asgiws.channels import (
    BrokerError,
    Channels,
    GapError,
    Keep,
    Lost,
    Page,
    Position,
    Publication,
    TopicOptions,
    latest,
)
from asgiws.testing import AsyncTestClient
from tests.channels.contract import (
    WAYS,
    Client,
    Doubling,
    Dropping,
    Kind,
    Lossy,
    Swapping,
    Taker,
    World,
    opened,
    taking,
)
from tests.fakes import DEADLINE, soon

pytestmark = pytest.mark.anyio

KEEP = Keep(10, 60.0)
FATES: dict[str, Callable[[], Callable[[Publication], Iterable[Publication]]]] = {
    "doubled": Doubling,
    "swapped": Swapping,
    "dropped": lambda: Dropping(3),
    "late": lambda: Dropping(7),
}


@pytest.fixture
def anyio_backend(run: tuple[Kind, str]) -> str:
    return run[1]


async def seen(backend: Lossy, position: Position) -> None:
    """Wait until a publication has come from the broker, whatever becomes of it then."""
    await soon(lambda: position in backend.seen)


class Slow(Lossy):
    """Its reads wait for an event."""

    wait: anyio.Event | None = None
    reading = 0

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        page = await super().read(topic, since, limit)
        self.reading += 1
        if self.wait is not None:
            await self.wait.wait()
        return page


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("way", WAYS)
async def test_r7_what_comes_badly_from_the_broker_comes_well_to_a_member(world: World, way: str, fate: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=100) as channels, taking(channels, way, "t") as taker:
        backend.fate = FATES[fate]()
        for n in range(1, 24):
            await channels.publish("t", n)
        backend.fate = lambda publication: [publication]
        assert await taker.finish() == list(range(1, 24))


@pytest.mark.parametrize("way", WAYS)
async def test_r7_what_comes_while_a_gap_is_filled_comes_after_it(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=100) as channels, taking(channels, way, "t") as taker:
        for first in range(1, 20, 4):
            backend.fate = lambda _: []
            await seen(backend, await channels.publish("t", first))
            backend.fate = lambda publication: [publication]
            for n in range(first + 1, first + 4):
                await channels.publish("t", n)
        assert await taker.finish() == list(range(1, 21))


@pytest.mark.parametrize("way", WAYS)
async def test_r7_a_gap_that_cannot_be_filled_is_told_in_its_place(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=2) as channels, taking(channels, way, "t", lost=True) as taker:
        await channels.publish("t", 1)
        await taker.has(lambda items: items == [1])
        backend.fate = lambda _: []
        for n in range(2, 7):
            await seen(backend, await channels.publish("t", n))
        backend.fate = lambda publication: [publication]
        await channels.publish("t", 7)
        await taker.has(lambda items: len(items) >= 2)
        await channels.publish("t", 8)
        assert await taker.finish() == [1, Lost("t", 4, "trimmed"), 6, 7, 8]
        assert channels.statistics().dropped == {"trimmed": 4}


@pytest.mark.parametrize("way", ["plain", "transform"])
async def test_r7_a_gap_that_is_not_told_of_closes_and_nothing_goes_out_after_it(world: World, way: str) -> None:
    backend = Slow(world.backend())
    async with opened(backend, history=2) as channels, taking(channels, way, "t") as taker:
        await channels.publish("t", 1)
        await taker.has(lambda items: items == [1])
        backend.fate = lambda _: []
        for n in range(2, 7):
            await seen(backend, await channels.publish("t", n))
        backend.snap()
        backend.fate = lambda publication: [publication]
        backend.reading, backend.wait = 0, anyio.Event()
        backend.mend()
        await soon(lambda: backend.reading)
        for n in range(7, 10):  # they come after the history was read, and before anybody knows what was in it
            await seen(backend, await channels.publish("t", n))
        backend.wait.set()
        assert (await taker.source.closed())[0] == 1013
        assert taker.items == [1]


async def test_r7_a_subscription_that_is_not_told_of_a_gap_ends_there(world: World) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=2) as channels, channels.subscribe("t") as subscription:
        await channels.publish("t", 1)
        await anext(subscription)
        backend.fate = lambda _: []
        for n in range(2, 7):
            await seen(backend, await channels.publish("t", n))
        backend.fate = lambda publication: [publication]
        for n in range(7, 10):
            await channels.publish("t", n)
        with anyio.fail_after(DEADLINE), pytest.raises(GapError):
            await anext(subscription)


@pytest.mark.parametrize("way", WAYS)
async def test_r7_without_a_history_a_gap_is_told_with_its_size(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend) as channels, taking(channels, way, "t", lost=True) as taker:
        await channels.publish("t", 1)
        await taker.has(lambda items: items == [1])
        backend.fate = lambda _: []
        for n in (2, 3):
            await seen(backend, await channels.publish("t", n))
        backend.fate = lambda publication: [publication]
        await channels.publish("t", 4)
        assert await taker.finish() == [1, Lost("t", 2, "gap"), 4]


@pytest.mark.parametrize("way", WAYS)
async def test_r5_the_last_publication_is_missed_and_found(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    backend.shared = True
    async with opened(backend, history=10, lease=0.15) as channels, taking(channels, way, "t") as taker:
        await channels.publish("t", 1)
        await taker.has(lambda items: items == [1])
        backend.fate = lambda _: []
        await channels.publish("t", 2)
        await channels.publish("t", 3)
        assert await taker.has(lambda items: len(items) == 3) == [1, 2, 3]


@pytest.mark.parametrize("way", WAYS)
async def test_r6_what_others_publish_while_the_broker_is_gone_comes_when_it_is_back(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=10) as channels, taking(channels, way, "t") as taker:
        health: list[bool] = []
        channels.on_health(health.append)
        await channels.publish("t", 1)
        await taker.has(lambda items: items == [1])
        backend.snap()
        assert not channels.healthy
        with pytest.raises(BrokerError):
            await channels.publish("t", 0)
        for n in (2, 3):
            await seen(backend, await backend.elsewhere("t", n, KEEP))
        backend.mend()
        assert channels.healthy
        assert await taker.has(lambda items: len(items) == 3) == [1, 2, 3]
        backend.snap()
        backend.mend()
        assert await taker.finish() == [1, 2, 3]
        assert health == [False, True, False, True]
        assert channels.statistics().breaks == 2


@pytest.mark.parametrize("way", WAYS)
async def test_r6_what_was_lost_without_a_history_is_told_when_the_broker_is_back(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend) as channels, taking(channels, way, "t", lost=True) as taker:
        backend.snap()
        for n in (1, 2):
            await seen(backend, await backend.elsewhere("t", n, Keep(0, 1.0)))
        backend.mend()
        assert await taker.has(lambda items: items) == [Lost("t", 2, "gap")]
        await channels.publish("t", 3)
        assert await taker.finish() == [Lost("t", 2, "gap"), 3]


@pytest.mark.parametrize("way", WAYS)
async def test_r6_a_broker_that_has_lost_the_counter_is_told_of(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=10) as channels, taking(channels, way, "t", lost=True) as taker:
        await channels.publish("t", 1)
        await taker.has(lambda items: items == [1])
        backend.snap()
        world.forget(backend.inner)
        backend.mend()
        assert await taker.has(lambda items: len(items) == 2) == [1, Lost("t", None, "epoch")]
        await channels.publish("t", 2)
        assert await taker.finish() == [1, Lost("t", None, "epoch"), 2]


class Mending(Lossy):
    """The link comes back just after a history was read, while nobody has taken note of that yet."""

    armed = False

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        page = await super().read(topic, since, limit)
        if self.armed:
            self.armed = False
            self.gone = True  # what is published now comes to nobody
            await seen(self, await self.elsewhere(topic, 3, KEEP))
            self.mend()
        return page


@pytest.mark.parametrize("way", WAYS)
async def test_r6_what_came_between_a_read_and_the_end_of_a_break_is_found(world: World, way: str) -> None:
    backend = Mending(world.backend())
    async with opened(backend, history=10) as channels, taking(channels, way, "t") as taker:
        backend.snap()
        await seen(backend, await backend.elsewhere("t", 1, KEEP))
        await seen(backend, await backend.elsewhere("t", 2, KEEP))
        backend.armed = True
        backend.mend()
        assert await taker.has(lambda items: len(items) == 3) == [1, 2, 3]


class Refusing(Lossy):
    """It cannot read some topics."""

    refused: frozenset[str] = frozenset()

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        await anyio.lowlevel.checkpoint()
        if topic in self.refused:
            raise BrokerError("this topic cannot be read")
        return await super().read(topic, since, limit)


async def test_r18_a_topic_that_cannot_be_read_holds_up_no_other(world: World) -> None:
    backend = Refusing(world.backend())
    async with (
        opened(backend, history=10) as channels,
        taking(channels, "plain", "bad") as bad,
        taking(channels, "plain", "good") as good,
    ):
        backend.refused = frozenset({"bad"})
        backend.snap()
        backend.mend()
        for topic in ("bad", "good"):
            await channels.publish(topic, 1)
        assert await good.finish() == [1]
        assert bad.items == []
        backend.refused = frozenset()
        assert await bad.finish() == [1]


@pytest.mark.parametrize("way", WAYS)
async def test_r13_one_leaves_while_a_gap_is_filled(world: World, way: str) -> None:
    backend = Refusing(world.backend())
    async with opened(backend, history=10) as channels, taking(channels, "plain", "other") as other:
        async with taking(channels, way, "t"):
            backend.refused = frozenset({"t"})
            backend.snap()
            backend.mend()
            await channels.publish("t", 1)
        backend.refused = frozenset()
        async with taking(channels, way, "t") as taker:
            await channels.publish("t", 2)
            assert await taker.finish() == [2]
        assert await other.finish() == []


class Flapping(Lossy):
    """The first publication in a topic is lost while the topic is begun, and the read after that fails."""

    reads = 0

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        self.reads += 1
        if self.reads == 1:
            page = await super().read(topic, since, limit)
            self.fate = lambda _: []
            await seen(self, await self.elsewhere(topic, 1, KEEP))
            self.fate = lambda publication: [publication]
            await seen(self, await self.elsewhere(topic, 2, KEEP))
            return page
        await anyio.lowlevel.checkpoint()
        if self.reads == 2:
            raise BrokerError("gone")
        return await super().read(topic, since, limit)


async def test_r6_a_broker_that_fails_while_a_topic_is_begun_leaves_nobody_without_news(world: World) -> None:
    """Two begin at once; the one that sees to the topic fails half-way."""
    backend = Flapping(world.backend())
    async with opened(backend, history=10) as channels:
        failed = anyio.Event()

        async def first() -> None:
            with pytest.raises(BrokerError):
                async with channels.subscribe("t"):
                    pytest.fail("the broker was gone")
            failed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await soon(lambda: backend.reads)
            async with channels.subscribe("t") as second:
                await failed.wait()
                await channels.publish("t", 3)
                with anyio.fail_after(DEADLINE):
                    publication = await anext(second)
                assert isinstance(publication, Publication)
                assert publication.message == 3


@pytest.mark.parametrize("way", ["envelope", "subscription"])
async def test_r7_a_gap_while_a_member_begins_is_told_after_what_came_before_it(world: World, way: str) -> None:
    backend = Slow(world.backend())
    async with opened(backend, history=2) as channels, contextlib.AsyncExitStack() as stack:
        since = await channels.publish("t", 1)
        await channels.publish("t", 2)
        other = await stack.enter_async_context(channels.subscribe("t", lost=True))
        backend.wait = anyio.Event()
        backend.reading = 0
        takers: list[Taker] = []

        async def begin() -> None:
            takers.append(await stack.enter_async_context(taking(channels, way, "t", since=since, lost=True)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            await soon(lambda: backend.reading)
            waits, backend.wait = backend.wait, None
            backend.fate = lambda _: []
            for n in range(3, 8):
                await seen(backend, await channels.publish("t", n))
            backend.fate = lambda publication: [publication]
            await channels.publish("t", 8)
            assert isinstance(await anext(other), Lost)
            waits.set()
        [taker] = takers
        if way == "envelope":
            frames = await taker.source.until(lambda frames: len(frames) >= 3)
            assert [frame["type"] for frame in frames[:3]] == ["joined", "message", "lost"]
        await channels.publish("t", 9)
        assert await taker.finish() == [2, Lost("t", 4, "trimmed"), 7, 8, 9]


def fails(_: Any) -> Any:
    raise ZeroDivisionError("a bug of the user's")


@pytest.mark.parametrize("history", [0, 2])
async def test_a_notice_that_fails_is_the_end_of_its_member_only(
    world: World, history: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Lossy(world.backend())
    caplog.set_level(logging.CRITICAL, "asgiws")
    async with opened(backend, history=history) as channels, contextlib.AsyncExitStack() as stack:
        client = await Client.connected()
        await stack.enter_async_context(channels.join(client.ws, "t", lost=fails))
        taker = await stack.enter_async_context(taking(channels, "envelope", "t", lost=True))
        await channels.publish("t", 1)
        backend.fate = lambda _: []
        for n in range(2, 7):
            await seen(backend, await channels.publish("t", n))
        backend.fate = lambda publication: [publication]
        await channels.publish("t", 7)
        await taker.has(lambda items: any(isinstance(one, Lost) for one in items))
        await channels.publish("t", 8)
        items = await taker.finish()
        assert items.count(8) == 1
        assert len([one for one in items if isinstance(one, Lost)]) == 1
        await client.closed()


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_a_notice_of_an_overflow_that_fails_ends_the_connection_and_stops_no_sender(
    world: World, overflow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "asgiws")
    async with opened(world.backend()) as channels, taking(channels, "plain", "t") as taker:
        client = await Client.connected(outbox_messages=2)
        client.server.hold = anyio.Event()
        async with channels.join(client.ws, "t", lost=fails, overflow=overflow):
            for n in range(10):
                await channels.publish("t", n)
            assert await taker.finish() == list(range(10))
            client.server.hold.set()
            client.server.hold = None
            await client.closed()
            with anyio.fail_after(DEADLINE), contextlib.suppress(Exception):
                await client.ws.send_text("it must not wait for ever")
        client.check()


@pytest.mark.parametrize("way", ["envelope", "subscription"])
async def test_a_key_that_cannot_be_told_touches_neither_publisher_nor_others(
    world: World, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "asgiws")
    topics = {"t": TopicOptions(presence=True, history=5)}
    async with opened(world.backend(), topics=topics) as channels, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(taking(channels, way, "t", overflow=latest(lambda message: message["id"])))
        taker = await stack.enter_async_context(taking(channels, "subscription", "t"))
        for n in range(3):
            await channels.publish("t", n)
        assert await taker.finish() == [0, 1, 2]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
@pytest.mark.parametrize("way", ["envelope", "subscription"])
async def test_what_was_dropped_is_told_with_the_right_number(world: World, way: str, overflow: Any) -> None:
    async with opened(world.backend()) as channels, contextlib.AsyncExitStack() as stack:
        marks = await stack.enter_async_context(taking(channels, "plain", "t"))
        if way == "subscription":
            source = await stack.enter_async_context(channels.subscribe("t", lost=True, messages=4, overflow=overflow))
            taker = Taker(channels, "t", way, source.joined, source)
        else:
            client = await Client.connected(outbox_messages=4)
            joined = await stack.enter_async_context(channels.join(client.ws, "t", envelope=True, overflow=overflow))
            await client.until(lambda frames: len(frames) == 1)
            client.server.hold = hold = anyio.Event()
            taker = Taker(channels, "t", way, joined, client)
        for n in range(20):
            await channels.publish("t", n)
        await marks.has(lambda items: 19 in items)
        if way == "envelope":
            hold.set()
            await taker.has(lambda items: len(items) >= 4)
        else:
            await taker.has(lambda items: items)
            while taker.source._queue:
                taker._read.append(await anext(taker.source))
        got = await taker.finish()
        at = 0
        for one in got:
            if isinstance(one, Lost):
                assert one.count
                at += one.count
            else:
                assert one == at
                at += 1
        assert at == 20
        lost = sum(one.count or 0 for one in got if isinstance(one, Lost))
        assert channels.statistics().dropped == {"overflow": lost}


async def test_a_server_that_fails_at_one_message_leaves_no_silent_hole(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What a server raises that means nothing to the WebSocket: the frames behind it are not dropped in silence."""
    caplog.set_level(logging.CRITICAL, "asgiws")
    async with opened(world.backend(), history=50) as channels, taking(channels, "envelope", "t") as taker:
        server = taker.source.server
        await taker.source.until(lambda frames: len(frames) == 1)
        server.hold = hold = anyio.Event()
        for n in range(1, 5):
            await channels.publish("t", n)
        async with taking(channels, "plain", "t") as other:
            await other.finish()
        server.fail = ValueError("this one it cannot take")
        hold.set()
        await soon(lambda: caplog.records or taker.source.ws._queue is None or not taker.source.ws._queue)
        server.fail = None
        await channels.publish("t", 6)
        await server.until(lambda server: server.closed or any(one == 6 for one in taker.items))
        assert server.closed or taker.items == [1, 2, 3, 4, ["the end"], 6]


async def test_a_burst_while_a_topic_is_read_loses_nothing(world: World) -> None:
    backend = Slow(world.backend())
    async with opened(backend, history=5000) as channels, channels.subscribe("t", messages=5000) as subscription:
        backend.wait = anyio.Event()
        backend.snap()
        backend.mend()
        await soon(lambda: backend.reading > 1)
        for n in range(1500):
            await channels.publish("t", n)
        waits, backend.wait = backend.wait, None
        waits.set()
        with anyio.fail_after(DEADLINE):
            await channels.publish("t", 1500)
            got: list[Any] = []
            while len(got) < 1501:
                one = await anext(subscription)
                got.append(one.message if isinstance(one, Publication) else one)
        assert got == list(range(1501))


async def test_channels_that_are_closed_while_a_gap_is_filled_end(world: World) -> None:
    backend = Refusing(world.backend())
    channels = Channels(backend, history=5)
    async with channels, channels.subscribe("t"):
        backend.refused = frozenset({"t"})
        backend.snap()
        backend.mend()
    assert channels._topics == {}


@pytest.mark.parametrize("way", WAYS)
async def test_r7_what_comes_late_of_an_epoch_that_is_over_stops_nothing(world: World, way: str) -> None:
    backend = Lossy(world.backend())
    late: list[Publication] = []
    async with opened(backend, history=10) as channels, taking(channels, way, "t", lost=True) as taker:
        for n in (1, 2):
            await channels.publish("t", n)
        await taker.has(lambda items: items == [1, 2])
        backend.fate = lambda publication: late.append(publication) or []  # type: ignore[func-returns-value]
        await channels.publish("t", 3)
        await soon(lambda: late)
        backend.snap()
        world.forget(backend.inner)
        backend.fate = lambda publication: [publication]
        backend.mend()
        await taker.has(lambda items: len(items) == 3)
        assert backend.receiver is not None
        backend.receiver.deliver(late[0])
        await soon(lambda: channels._topics["t"].held is None)
        for n in (4, 5):
            await channels.publish("t", n)
        items = [item for item in await taker.finish() if not isinstance(item, Lost)]
        assert items == [1, 2, 4, 5]


async def test_a_notice_of_a_gap_is_no_publication_that_may_be_dropped(world: World) -> None:
    backend = Lossy(world.backend())
    async with opened(backend, history=10) as channels, taking(channels, "plain", "t") as marks:
        client = await Client.connected(outbox_messages=4)
        async with channels.join(client.ws, "t", envelope=True, overflow="drop_newest"):
            await client.until(lambda frames: len(frames) == 1)
            client.server.hold = hold = anyio.Event()
            for n in range(8):
                await channels.publish("t", n)
            await marks.has(lambda items: 7 in items)
            backend.snap()
            world.forget(backend.inner)
            backend.mend()
            await soon(lambda: "epoch" in channels.statistics().dropped)
            client.server.hold = None
            hold.set()
            frames = await client.until(lambda frames: frames[-1]["type"] == "lost" and frames[-1]["reason"] == "epoch")
            assert [frame["reason"] for frame in frames if frame["type"] == "lost"] == ["overflow", "epoch"]


async def test_r17_what_replaces_the_latest_is_counted_in_the_bounds_of_the_line(world: World) -> None:
    async with opened(world.backend()) as channels, taking(channels, "plain", "t") as marks:
        client = await Client.connected(outbox_bytes=1000)
        client.server.hold = hold = anyio.Event()
        async with channels.join(client.ws, "t", overflow="latest"):
            for key in range(20):
                await channels.publish("t", "1", key=f"{key}")
            for key in range(20):
                await channels.publish("t", "1" * 500, key=f"{key}")
            await channels.publish("t", 2)
            await marks.has(lambda items: items[-1] == 2)
            line: Any = client.ws._queue
            assert line.size <= 1000 + 500
            hold.set()


async def test_r11_who_cannot_tell_the_others_is_not_tagged(world: World) -> None:
    lossy = Lossy(world.backend())
    channels = Channels(lossy)
    app = App(channels=channels)

    @app.websocket("/")
    async def serve(ws: WebSocket) -> None:
        await ws.accept()
        lossy.gone = await ws.receive_text() == "gone"
        await ws.tag("anna", exclusive=True)
        await ws.send_text("tagged")
        await ws.receive_text()

    async with AsyncTestClient(app) as client, client.websocket_connect("/") as old:
        await old.send_text("there")
        assert await old.receive_text() == "tagged"
        async with client.websocket_connect("/") as ws:
            await ws.send_text("gone")
            await ws.expect_close(1013)
        assert len(channels._topics["\0anna"].sockets) == 1
        await old.expect_no_message()


async def test_r17_a_socket_that_is_tagged_again_and_again_costs_nothing_more() -> None:
    channels = Channels()
    app = App(channels=channels)

    @app.websocket("/")
    async def serve(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(50):
            untag = await channels.tag(ws, "anna")
            untag()
        line: Any = ws._queue
        await ws.send_text(f"{len(line.at_end)}")

    async with AsyncTestClient(app) as client, client.websocket_connect("/") as ws:
        assert int(await ws.receive_text()) <= 1
