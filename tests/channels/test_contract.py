"""What every backend of channels promises; each test is named after its rule (R) of delivery."""

import contextlib
import functools

import anyio
import anyio.lowlevel
import pytest

from asgiws import App, WebSocket
from asgiws.channels import (
    BrokerError,
    Channels,
    ChannelsError,
    Keep,
    Member,
    Position,
    Present,
    Publication,
    SlowSubscriberError,
    TopicOptions,
)
from asgiws.testing import AsyncTestClient
from tests.channels.contract import WAYS, Client, Interleaved, Kind, World, opened, taking
from tests.fakes import DEADLINE, soon

pytestmark = pytest.mark.anyio

KEEP = Keep(5, 60.0)


@pytest.fixture
def anyio_backend(run: tuple[Kind, str]) -> str:
    return run[1]


class Silent:
    """A receiver that is told nothing."""

    def __init__(self) -> None:
        self.got: list[Publication] = []

    def deliver(self, publication: Publication) -> None:
        self.got.append(publication)

    def broken(self) -> None:
        pytest.fail("the broker is there")

    def moved(self, topic: str) -> None:
        pytest.fail(f"{topic} is where it was")

    spoilt = mended = broken


def has_length(length: int, frames: list[object]) -> bool:
    return len(frames) == length


def number(n: int, topic: str = "t") -> Publication:
    return Publication(topic, None, "json", str(n))


# The backend


async def test_a_backend_numbers_from_1_without_a_hole_and_tells_who_watches(world: World) -> None:
    backend, receiver = world.backend(), Silent()
    await backend.open(receiver)
    try:
        await backend.watch("t")
        top = (await backend.read("t", None, 5)).position
        assert top.offset == 0
        assert top.epoch
        positions = [await backend.publish(number(n), KEEP) for n in range(1, 8)]
        assert positions == [Position(top.epoch, n) for n in range(1, 8)]
        await soon(lambda: len(receiver.got) == 7)
        assert [(one.position, one.message) for one in receiver.got] == list(zip(positions, range(1, 8), strict=True))
        page = await backend.read("t", None, 3)
        assert [one.message for one in page.entries] == [5, 6, 7]
        assert (page.position, page.reason) == (positions[-1], None)
        assert (await backend.read("t", None, 0)).entries == []
    finally:
        await backend.close()


@pytest.mark.parametrize(
    ("since", "limit", "reason", "given"),
    [
        (10, 5, None, []),
        (9, 5, None, [10]),
        (5, 5, None, [6, 7, 8, 9, 10]),
        (4, 5, "trimmed", []),
        (0, 5, "trimmed", []),
        (6, 3, "limit", []),
        (7, 3, None, [8, 9, 10]),
        (10, 0, None, []),
        (9, 0, "limit", []),
        (11, 5, "ahead", []),
        (2**63, 5, "ahead", []),
        ("another", 5, "epoch", []),
        ("", 5, "epoch", []),
    ],
)
async def test_r2_all_that_was_missed_is_given_or_nothing_and_why(
    world: World, since: int | str, limit: int, reason: str | None, given: list[int]
) -> None:
    async with opened(world.backend(), history=5) as channels:
        top = [await channels.publish("t", n) for n in range(1, 11)][-1]
        position = Position(top.epoch, since) if isinstance(since, int) else Position(since, 9)
        page = await channels._backend.read("t", position, limit)
        assert (page.reason, [one.message for one in page.entries], page.position) == (reason, given, top)
        client = await Client.connected()
        async with channels.join(client.ws, "t", since=str(position), limit=limit, envelope=True) as joined:
            assert (joined.recovered, joined.reason) == (reason is None, reason)
            live = await channels.publish("t", 11)
            frames = await client.until(lambda frames: frames and frames[-1].get("data") == 11)
            assert [frame["type"] for frame in frames] == ["joined"] + ["message"] * (len(given) + 1)
            assert [frame["data"] for frame in frames[1:]] == [*given, 11]
            assert frames[-1]["position"] == str(live)
        client.check()


async def test_r2_what_is_too_old_is_expired_but_who_missed_nothing_is_told_so(world: World) -> None:
    async with opened(world.backend(), history=5, ttl=0.2) as channels:
        first = await channels.publish("t", 1)
        top = await channels.publish("t", 2)
        world.pass_time(0.3)
        with anyio.fail_after(DEADLINE):
            while await channels.history("t"):
                await anyio.lowlevel.checkpoint()
        page = await channels._backend.read("t", first, 5)
        assert (page.reason, list(page.entries), page.position) == ("expired", [], top)
        assert (await channels._backend.read("t", top, 5)).reason is None
        # The counter outlives the history (R3).
        assert await channels.publish("t", 3) == Position(top.epoch, 3)
        assert [one.message for one in await channels.history("t")] == [3]


async def test_r2_a_text_that_is_no_position_recovers_nothing(world: World) -> None:
    async with opened(world.backend(), history=5) as channels:
        await channels.publish("t", 1)
        for since in ("", "-", "x", "0", "-1", "x-", "x-1.5", "x-²", "x-" + "9" * 30, "\ud800-1", "a-b-c"):
            async with channels.subscribe("t", since=since) as subscription:
                assert (subscription.joined.recovered, subscription.joined.reason) == (False, "epoch"), since


async def test_r3_a_lost_counter_begins_with_another_epoch(world: World) -> None:
    async with opened(world.backend(), history=5) as channels:
        epochs = set()
        for _ in range(3):
            old = await channels.publish("t", 1)
            epochs.add(old.epoch)
            world.forget(channels._backend)
            async with channels.subscribe("t", since=old) as subscription:
                assert subscription.joined.reason == "epoch"
        assert len(epochs) == 3


async def test_r4_another_process_gives_what_was_missed_only_if_the_topics_are_shared(world: World) -> None:
    async with opened(world.backend(), history=5) as one, opened(world.backend(), history=5) as other:
        position = await one.publish("t", 1)
        await one.publish("t", 2)
        async with other.subscribe("t", since=position) as subscription:
            if world.shared:
                assert subscription.joined.recovered
                publication = await anext(subscription)
                assert isinstance(publication, Publication)
                assert publication.message == 2
            else:
                assert subscription.joined.reason == "epoch"


async def test_r14_a_position_is_a_text_that_comes_back_whole(world: World) -> None:
    async with opened(world.backend(), history=5) as channels:
        position = await channels.publish("t", 1)
        assert Position.parse(str(position)) == position
        assert Position.parse(str(Position(position.epoch, 2**53 + 1))).offset == 2**53 + 1
        assert len(position.epoch) >= 16  # 64 bits


# The begin of a membership


@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("used", [False, True], ids=["", "used"])
@pytest.mark.parametrize("way", WAYS)
async def test_r1_what_is_published_while_a_member_begins_comes_once_and_in_order(
    world: World, way: str, used: bool, late: bool
) -> None:
    """Whatever the moment; `late`: what is delivered comes only after the member has begun."""
    moments = 0
    for at in range(1, 20):
        backend = Interleaved(world.backend())
        async with opened(backend, history=100) as channels, contextlib.AsyncExitStack() as stack:
            topic = f"{at}"
            since = await channels.publish(topic, 1)
            await channels.publish(topic, 2)
            if used:
                await stack.enter_async_context(channels.subscribe(topic))

            async def publish(topic: str = topic, backend: Interleaved = backend) -> None:
                for n in (3, 4):
                    await backend.inner.publish(number(n, topic), Keep(100, 300.0))

            backend.do, backend.at, backend.late = publish, at, late
            async with taking(channels, way, topic, since=since) as taker:
                backend.do = None
                assert taker.joined.recovered
                backend.release()
                done = backend.moments < at
                assert await taker.finish() == ([2] if done else [2, 3, 4]), at
            if done:
                break
            moments = at
    assert moments == (2 if used else 6)


@pytest.mark.parametrize("way", WAYS)
async def test_r1_members_that_begin_while_others_publish_get_all(world: World, way: str) -> None:
    async with opened(world.backend(), history=1000) as channels:
        since = await channels.publish("t", 0)
        got: list[list[int]] = []
        takers = 0

        async def take() -> None:
            nonlocal takers
            async with taking(channels, way, "t", since=since) as taker:
                takers += 1
                got.append((await taker.has(lambda items: 100 in items))[:100])

        async def publish() -> None:
            for n in range(1, 101):
                await channels.publish("t", n)
                await anyio.lowlevel.checkpoint()

        with anyio.fail_after(DEADLINE * 2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish)
                for _ in range(8):
                    tasks.start_soon(take)
                    await anyio.lowlevel.checkpoint()
        assert got == [list(range(1, 101))] * 8


@pytest.mark.parametrize("how", ["cancelled", "the broker fails"])
@pytest.mark.parametrize("way", ["envelope", "subscription"])
async def test_r13_who_gives_up_at_whatever_moment_leaves_nothing_behind(world: World, way: str, how: str) -> None:
    for at in range(1, 20):
        backend = Interleaved(world.backend())
        async with opened(backend, history=100) as channels:
            topic = f"{at}"
            since = await channels.publish(topic, 1)
            await channels.publish(topic, 2)
            done = False
            with anyio.CancelScope() as scope:

                async def give_up(scope: anyio.CancelScope = scope) -> None:
                    if how == "cancelled":
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
                    raise BrokerError("gone")

                backend.do, backend.at = give_up, at
                options = {} if way == "subscription" else {"presence": Member("anna")}
                with contextlib.suppress(BrokerError):
                    async with taking(channels, way, topic, since=since, **options):
                        done = backend.moments < at
            backend.do = None
            assert done or scope.cancelled_caught or how != "cancelled"
            assert await channels.presence(topic) == []
            async with taking(channels, way, topic, since=since) as taker:
                assert await taker.finish() == [2]
        if done:
            break
    else:
        pytest.fail("it never came to an end")


@pytest.mark.parametrize("how", ["cancelled", "the broker fails"])
async def test_r13_who_waits_for_one_that_gives_up_gets_what_is_published(world: World, how: str) -> None:
    """Two begin at once in a topic that nobody watches yet; the one that sees to it gives up."""
    for at in range(1, 5):
        backend = Interleaved(world.backend())
        async with opened(backend, history=100) as channels:
            scope = anyio.CancelScope()

            async def give_up(scope: anyio.CancelScope = scope) -> None:
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                if how == "cancelled":
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
                raise BrokerError("gone")

            async def begin(channels: Channels = channels, scope: anyio.CancelScope = scope) -> None:
                with scope, contextlib.suppress(BrokerError):
                    async with channels.subscribe("t"):
                        await anyio.sleep_forever()

            backend.do, backend.at = give_up, at
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin)
                await soon(functools.partial(getattr, backend, "moments"))
                with anyio.fail_after(DEADLINE):
                    async with channels.subscribe("t") as subscription:
                        await channels.publish("t", 7)
                        publication = await anext(subscription)
                        assert isinstance(publication, Publication)
                        assert publication.message == 7
                scope.cancel()


async def test_r10_no_position_is_told_before_what_comes_before_it(world: World) -> None:
    """A client keeps the last position it saw: if it is cut off there, nothing may be missing before that."""
    async with opened(world.backend(), history=5) as channels:
        for n in range(1, 4):
            await channels.publish("t", n)
        client = await Client.connected()
        async with channels.join(client.ws, "t", history=2, envelope=True):
            frames = await client.until(lambda frames: len(frames) == 3)
        for cut in range(1, 4):
            seen = [frame["data"] for frame in frames[:cut] if frame["type"] == "message"]
            other = await Client.connected()
            async with channels.join(other.ws, "t", since=frames[cut - 1]["position"], envelope=True) as joined:
                assert joined.recovered
                rest = (await other.until(functools.partial(has_length, 4 - cut)))[1:]
            assert [*seen, *(frame["data"] for frame in rest)] == [2, 3], cut


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("missed", [3, 9, 20])
@pytest.mark.parametrize("way", ["plain", "envelope"])
async def test_r9_a_tail_that_does_not_fit_into_the_line_is_refused_not_a_slow_consumer(
    world: World, way: str, missed: int, size: int
) -> None:
    async with opened(world.backend(), history=50) as channels:
        since = await channels.publish("t", "begin")
        for _ in range(missed):
            await channels.publish("t", "x" * size)
        client = await Client.connected(outbox_messages=10, outbox_bytes=2000)
        async with channels.join(client.ws, "t", since=since, limit=50, envelope=way == "envelope") as joined:
            assert (joined.recovered, joined.reason) in ((True, None), (False, "limit"))
            await channels.publish("t", "end")
            await client.server.until(lambda server: server.closed or any("end" in one for one in server.texts))
            assert client.server.closed is None
            expected = (missed if joined.recovered else 0) + 1 + (way == "envelope")
            assert len(client.server.texts) == expected
        client.check()


async def test_r9_a_client_that_comes_back_to_many_topics_at_once_is_no_slow_consumer(world: World) -> None:
    async with opened(world.backend(), history=50) as channels, contextlib.AsyncExitStack() as stack:
        topics = [f"topic {n}" for n in range(5)]
        since = {topic: await channels.publish(topic, 0) for topic in topics}
        for topic in topics:
            for n in range(1, 5):
                await channels.publish(topic, n)
        client = await Client.connected(outbox_messages=10)
        recovered = 0
        for topic in topics:
            joined = await stack.enter_async_context(channels.join(client.ws, topic, since=since[topic], envelope=True))
            recovered += bool(joined.recovered)
            assert joined.recovered or joined.reason == "limit"
        await client.server.until(lambda server: server.closed or len(server.texts) == 5 + 4 * recovered)
        assert client.server.closed is None
        assert recovered


# Who gets what


async def test_r8_what_a_member_does_not_get_is_no_loss(world: World) -> None:
    async with opened(world.backend(), history=50) as channels:
        client = await Client.connected()

        def even(publication: Publication) -> object:
            return publication.message if publication.message % 2 == 0 else None

        async with channels.join(client.ws, "t", envelope=True, transform=even):
            for n in range(1, 6):
                await channels.publish("t", n, exclude=client.ws if n == 2 else None)
            last = await channels.publish("t", 6, exclude="somebody else")
            frames = await client.until(lambda frames: len(frames) == 3)
            assert [frame.get("data") for frame in frames] == [None, 4, 6]
            assert frames[-1]["position"] == str(last)
        async with channels.join(client.ws, "t", envelope=True, transform=even, since=frames[1]["position"]) as joined:
            assert joined.recovered
            assert (await client.until(lambda frames: len(frames) == 5))[4]["data"] == 6


async def test_r18_who_does_not_read_delays_nobody(world: World) -> None:
    async with opened(world.backend(), history=5) as channels, contextlib.AsyncExitStack() as stack:
        stalled = [await Client.connected(outbox_messages=20) for _ in range(20)]
        for at, client in enumerate(stalled):
            client.server.hold = anyio.Event()
            overflow = ("close", "drop_oldest", "drop_newest", "latest")[at % 4]
            await stack.enter_async_context(channels.join(client.ws, "t", overflow=overflow))  # type: ignore[arg-type]
        reads = await Client.connected()
        await stack.enter_async_context(channels.join(reads.ws, "t"))
        with anyio.fail_after(DEADLINE):
            for n in range(100):
                await channels.publish("t", n)
                await reads.until(functools.partial(has_length, n + 1))
        assert reads.frames == list(range(100))
        for at, client in enumerate(stalled):
            line = client.ws._queue
            assert line is not None
            assert len(line) <= (1 if at % 4 == 0 else 20)
            assert client.server.hold is not None
            client.server.hold.set()
        for client in stalled[::4]:
            assert await client.closed() == (1013, "slow consumer")


async def test_r18_a_slow_subscription_ends_and_the_others_go_on(world: World) -> None:
    async with (
        opened(world.backend()) as channels,
        channels.subscribe("t", messages=2) as slow,
        taking(channels, "plain", "t") as taker,
    ):
        for n in range(4):
            await channels.publish("t", n)
        assert await taker.finish() == [0, 1, 2, 3]
        await soon(lambda: channels.statistics().dropped == {"overflow": 1})
        for n in range(2):
            publication = await anext(slow)
            assert isinstance(publication, Publication)
            assert publication.message == n
        with pytest.raises(SlowSubscriberError):
            await anext(slow)


async def test_t43_all_members_get_what_many_publish_at_once_in_one_order(world: World) -> None:
    async with opened(world.backend(), history=500) as channels, contextlib.AsyncExitStack() as stack:
        takers = [await stack.enter_async_context(taking(channels, way, "t")) for way in WAYS]
        positions: dict[int, Position] = {}

        async def publish(first: int) -> None:
            for n in range(first, first + 20):
                positions[n] = await channels.publish("t", n)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for first in range(0, 100, 20):
                tasks.start_soon(publish, first)
        assert sorted(one.offset for one in positions.values()) == list(range(1, 101))
        await channels.publish("t", 1000)
        expected = sorted(positions, key=lambda n: positions[n].offset)
        for taker in takers:
            assert await taker.has(lambda items: 1000 in items) == [*expected, 1000]


async def test_t44_members_come_and_go_while_something_is_published(world: World) -> None:
    async with opened(world.backend()) as channels:
        stays = await Client.connected()

        async def come_and_go() -> None:
            for _ in range(20):
                async with taking(channels, "plain", "t"):
                    await anyio.lowlevel.checkpoint()

        async with channels.join(stays.ws, "t"):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(come_and_go)
                for n in range(60):
                    await channels.publish("t", n)
                    await anyio.lowlevel.checkpoint()
            assert await stays.until(lambda frames: len(frames) == 60) == list(range(60))


async def test_t45_a_topic_and_a_backend_can_be_left_and_used_again(world: World) -> None:
    channels = Channels(world.backend(), history=5)
    for _ in range(2):
        async with channels:
            for n in range(10):
                async with channels.subscribe("t") as subscription:
                    await channels.publish("t", n)
                    publication = await anext(subscription)
                    assert isinstance(publication, Publication)
                    assert publication.message == n
            assert channels._topics == {}
        with pytest.raises(ChannelsError, match="not open"):
            await channels.publish("t", 1)


async def test_t45_who_joins_after_they_were_opened_again_is_told_though_somebody_has_stayed(world: World) -> None:
    channels = Channels(world.backend(), history=5)
    async with contextlib.AsyncExitStack() as stack:
        async with channels:
            await stack.enter_async_context(channels.subscribe("t"))
        async with channels, channels.subscribe("t") as subscription:
            await channels.publish("t", 1)
            with anyio.fail_after(DEADLINE):
                publication = await anext(subscription)
            assert isinstance(publication, Publication)
            assert publication.message == 1
            await stack.aclose()
            await channels.publish("t", 2)
            with anyio.fail_after(DEADLINE):
                await anext(subscription)


async def test_t46_one_that_leaves_takes_nothing_from_the_others(world: World) -> None:
    async with opened(world.backend()) as channels, taking(channels, "plain", "t") as taker:
        for way in WAYS:
            async with taking(channels, way, "t"):
                pass
        await channels.publish("t", 1)
        assert await taker.finish() == [1]


async def test_t48_what_is_too_large_is_refused_and_touches_nobody(world: World) -> None:
    options = {"history": 5, "message_bytes": 20}
    async with opened(world.backend(), **options) as channels, taking(channels, "plain", "t") as taker:
        with pytest.raises(ChannelsError, match="at most 20 bytes, this one has 21"):
            await channels.publish("t", b"x" * 21)
        with pytest.raises(ChannelsError, match="at most 20 bytes"):
            await channels.publish("t", "ä" * 11)
        assert (await channels.publish("t", 1)).offset == 1
        assert await taker.finish() == [1]


@pytest.mark.parametrize("way", ["text", "bytes"])
async def test_t48_the_largest_publication_closes_no_member_that_reads(world: World, way: str) -> None:
    async with opened(world.backend()) as channels:
        client = await Client.connected()
        async with channels.join(client.ws, "t", envelope=True):
            await channels.publish("t", "x" * 1_048_576 if way == "text" else b"x" * 1_048_576)
            await client.server.until(lambda server: server.closed or len(server.texts) == 2)
            assert client.server.closed is None


async def test_publish_in_several_topics_is_refused_as_a_whole(world: World) -> None:
    async with opened(world.backend(), history=5) as channels:
        with pytest.raises(ChannelsError):
            await channels.publish(["a", "b", ""], 1)
        assert [len(await channels.history(topic)) for topic in ("a", "b")] == [0, 0]
        positions = await channels.publish(["a", "b"], 1)
        assert [one.offset for one in positions] == [1, 1]


@pytest.mark.parametrize("limit", [-1, -3])
async def test_a_negative_number_of_publications_gives_none_or_is_refused(world: World, limit: int) -> None:
    async with opened(world.backend(), history=5) as channels:
        for n in range(3):
            await channels.publish("t", n)
        try:
            found = await channels.history("t", limit)
        except ChannelsError:
            return
        assert found == []


# Who is there


async def test_r12_two_connections_of_one_key_are_one_member(world: World) -> None:
    topics = {"t": TopicOptions(presence=True)}
    async with opened(world.backend(), topics=topics) as channels, contextlib.AsyncExitStack() as stack:
        sees = await Client.connected()
        await stack.enter_async_context(channels.join(sees.ws, "t", envelope=True))
        first, second = await Client.connected(), await Client.connected()
        async with channels.join(first.ws, "t", presence=Member("anna", {"n": 1})):
            async with channels.join(second.ws, "t", presence=Member("anna", {"n": 2})):
                assert await channels.presence("t") == [Member("anna", {"n": 2})]
            assert await channels.presence("t") == [Member("anna", {"n": 1})]
            frames = await sees.until(lambda frames: len(frames) == 2)
        assert frames[1]["joined"] == [{"key": "anna", "meta": {"n": 1}}]
        frames = await sees.until(lambda frames: len(frames) == 3)
        assert frames[2]["left"] == ["anna"]
        assert await channels.presence("t") == []


async def test_r12_a_socket_that_is_present_twice_has_left_only_when_both_are_left(world: World) -> None:
    async with opened(world.backend()) as channels:
        client = await Client.connected()
        async with channels.join(client.ws, "t", presence=Member("anna")):
            async with channels.join(client.ws, "t", presence=Member("anna")):
                pass
            assert await channels.presence("t") == [Member("anna")]


async def test_r12_whose_process_has_died_is_gone_when_its_lease_is(world: World) -> None:
    async with opened(world.backend(), lease=60) as channels:
        died = world.backend()
        await died.open(Silent())
        await died.enter(Present("t", "ghost", "1", b"null", tells=True), 0.2)
        await died.close()
        with anyio.fail_after(DEADLINE):
            while await channels.presence("t"):
                await anyio.lowlevel.checkpoint()


async def test_r12_who_is_back_within_the_grace_has_not_left(world: World) -> None:
    topics = {"*": TopicOptions(presence=True, grace=1.0)}
    async with (
        opened(world.backend(), topics=topics) as channels,
        contextlib.AsyncExitStack() as stack,
    ):
        elsewhere = channels
        if world.shared:
            elsewhere = await stack.enter_async_context(opened(world.backend(), topics=topics))
        sees = await Client.connected()
        for topic in ("back", "gone"):
            await stack.enter_async_context(channels.join(sees.ws, topic, envelope=True))
        first, second = await Client.connected(), await Client.connected()
        for topic in ("back", "gone"):
            async with elsewhere.join(first.ws, topic, presence=Member("anna")):
                pass
            assert await channels.presence(topic) == [Member("anna")]
        async with channels.join(second.ws, "back", presence=Member("anna", "again")):
            frames = await sees.until(functools.partial(has_length, 5))
            await soon(lambda: not elsewhere._presence.leaving)
            assert await channels.presence("back") == [Member("anna", "again")]
            assert await channels.presence("gone") == []
        told = [(frame["topic"], frame["left"]) for frame in frames[2:]]
        assert told == [("back", []), ("gone", []), ("gone", ["anna"])]
        assert sees.frames == frames
        await soon(lambda: not channels._presence.leaving)
        assert await channels.presence("back") == []
    await soon(lambda: not channels._scopes)


# The whole


async def test_r11_of_several_sessions_that_want_to_be_the_only_one_the_last_stays(world: World) -> None:
    channels = Channels(world.backend())
    app = App(channels=channels)

    @app.websocket("/{user}")
    async def serve(ws: WebSocket, user: str, alone: bool = True) -> None:
        await ws.accept()
        await ws.tag(user, exclusive=alone)
        await ws.send_text("ready")
        async for _ in ws.iter_text():
            await channels.send_to(user, "to the only one")

    async with AsyncTestClient(app) as client:
        async with (
            client.websocket_connect("/anna?alone=0") as old,
            client.websocket_connect("/anna?alone=0") as tab,
            client.websocket_connect("/bert") as other,
        ):
            for ws in (old, tab, other):
                assert await ws.receive_text() == "ready"
            async with client.websocket_connect("/anna") as newer:
                assert await newer.receive_text() == "ready"
                for ws in (old, tab):
                    await ws.expect_close(4009, reason="connected elsewhere")
                async with client.websocket_connect("/anna") as newest:
                    assert await newest.receive_text() == "ready"
                    await newer.expect_close(4009)
                    await newest.send_text("")
                    assert await newest.receive_text() == "to the only one"
                    await other.expect_no_message()
        assert channels._topics == {}


async def test_r11_of_sessions_that_come_at_once_just_one_stays(world: World) -> None:
    channels = Channels(world.backend())
    app = App(channels=channels)
    ended: list[int | None] = []

    @app.websocket("/")
    async def serve(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        try:
            await ws.tag("anna", exclusive=True)
            await ws.send_text("ready")
            async for _ in ws.iter_text():
                pass
        finally:
            ended.append(ws.close_code)

    async with AsyncTestClient(app) as client, contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(client.websocket_connect("/")) for _ in range(10)]
        for ws in sessions:
            await ws.send_text("go")
        await soon(lambda: len(ended) == 9)
        assert ended == [4009] * 9
        assert len(channels._topics) == 1
        await channels.send_to("anna", "you")
        assert channels.statistics().members == 1


async def test_a_key_reaches_all_its_sockets_and_closes_them(world: World) -> None:
    channels = Channels(world.backend())
    app = App(channels=channels)

    @app.websocket("/{user}")
    async def serve(ws: WebSocket, user: str) -> None:
        await ws.accept()
        untag = await channels.tag(ws, user)
        await ws.send_text("ready")
        async for text in ws.iter_text():
            if text == "untag":
                untag()
                untag()
                await ws.send_text("untagged")

    async with AsyncTestClient(app) as client:
        async with (
            client.websocket_connect("/anna") as one,
            client.websocket_connect("/anna") as two,
            client.websocket_connect("/bert") as other,
        ):
            for ws in (one, two, other):
                assert await ws.receive_text() == "ready"
            await channels.send_to("anna", {"a": 1})
            assert [await ws.receive_json() for ws in (one, two)] == [{"a": 1}] * 2
            await two.send_text("untag")
            assert await two.receive_text() == "untagged"
            await channels.disconnect("anna", 4001, "out")
            await one.expect_close(4001, reason="out")
            await channels.send_to("anna", "nobody")
            await channels.send_to("bert", "you")
            assert await other.receive_text() == "you"
            await two.expect_no_message()
        assert channels._topics == {}


async def test_statistics_and_members(world: World) -> None:
    async with (
        opened(world.backend(), history=5) as channels,
        taking(channels, "plain", "t") as taker,
        channels.subscribe("t"),
    ):
        await channels.publish("t", 1)
        await channels.publish("other", 1)
        await taker.has(lambda items: items == [1])
        found = channels.statistics()
        assert (found.topics, found.members, found.published, found.delivered) == (1, 2, 2, 2)
        assert (found.dropped, found.breaks, found.healthy) == ({}, 0, True)
        assert channels.members("t") == (taker.source.ws,)
        assert channels.members("other") == ()
    assert channels.statistics().healthy is False
