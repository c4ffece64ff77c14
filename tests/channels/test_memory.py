"""Topics in memory: what is freed, when, and what is never given twice."""

import gc
import tracemalloc

import pytest

from asgiws.channels import Channels, ChannelsError, Keep, MemoryBackend, Position, Present, Publication
from tests.channels.contract import Clock, opened, wall_clock_jumps

pytestmark = pytest.mark.anyio

KEEP = Keep(3, 10.0)


class Sink:
    """A receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.got: list[Publication] = []

    def deliver(self, publication: Publication) -> None:
        self.got.append(publication)

    def broken(self) -> None:
        pytest.fail("memory does not break")

    def moved(self, topic: str) -> None:
        pytest.fail(f"{topic} is where it was")

    spoilt = mended = broken


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asgiws.channels.memory.time", clock)
    return clock


@pytest.fixture
async def backend(clock: Clock) -> MemoryBackend:
    backend = MemoryBackend()
    await backend.open(Sink())
    return backend


def number(n: int, topic: str = "t") -> Publication:
    return Publication(topic, None, "json", str(n))


async def messages(backend: MemoryBackend, topic: str = "t") -> list[int]:
    return [one.message for one in (await backend.read(topic, None, 100)).entries]


async def test_it_is_not_shared_and_each_has_topics_of_its_own(backend: MemoryBackend) -> None:
    assert not backend.shared
    position = await backend.publish(number(1), KEEP)
    other = MemoryBackend()
    await other.open(Sink())
    assert (await other.publish(number(1), KEEP)).epoch != position.epoch
    assert (await other.read("t", position, 5)).reason == "epoch"


async def test_the_history_has_the_last_ones_and_the_counter_goes_on(backend: MemoryBackend) -> None:
    for n in range(1, 6):
        await backend.publish(number(n), KEEP)
        assert len(backend._logs["t"].entries) == min(n, 3)
    assert await messages(backend) == [3, 4, 5]
    await backend.publish(number(6), Keep(1, 10.0))
    assert await messages(backend) == [6]


async def test_the_time_of_the_history_is_counted_from_the_last_one(backend: MemoryBackend, clock: Clock) -> None:
    for n in range(1, 4):
        await backend.publish(number(n), KEEP)
        clock.ahead += 9
    assert await messages(backend) == [1, 2, 3]
    clock.ahead += 2
    assert await messages(backend) == []
    await backend.publish(number(4), KEEP)
    assert await messages(backend) == [4]


async def test_who_publishes_after_the_time_of_the_history_does_not_revive_it(
    backend: MemoryBackend, clock: Clock
) -> None:
    first = await backend.publish(number(1), KEEP)
    clock.ahead += 11
    second = await backend.publish(number(2), KEEP)
    assert second == Position(first.epoch, 2)
    assert await messages(backend) == [2]
    assert (await backend.read("t", Position(first.epoch, 0), 5)).reason == "trimmed"


@pytest.mark.parametrize("seconds", [-1e6, 1e6])
async def test_r15_the_wall_clock_neither_ends_nor_revives_a_history(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MemoryBackend()
    await backend.open(Sink())
    await backend.publish(number(1), KEEP)
    with wall_clock_jumps(monkeypatch, seconds):
        assert await messages(backend) == [1]
        await backend.publish(number(2), KEEP)
        assert await messages(backend) == [1, 2]


async def test_the_counter_outlives_the_history_tenfold_and_then_another_epoch_begins(
    backend: MemoryBackend, clock: Clock
) -> None:
    first = await backend.publish(number(1), KEEP)
    clock.ahead += 99
    for n in range(5):
        await backend.publish(number(n, "other"), KEEP)
    assert (await backend.publish(number(2), KEEP)) == Position(first.epoch, 2)
    clock.ahead += 101
    for n in range(5):
        await backend.publish(number(n, "other"), KEEP)
    assert "t" not in backend._logs
    position = await backend.publish(number(3), KEEP)
    assert position.offset == 1
    assert position.epoch != first.epoch
    assert (await backend.read("t", first, 5)).reason == "epoch"


async def test_r3_a_position_is_never_used_twice(clock: Clock) -> None:
    used: list[tuple[str, Position]] = []
    for _ in range(2):
        backend = MemoryBackend()
        for _ in range(2):
            for topic in ("a", "b"):
                for keep in (KEEP, Keep(0, 1.0)):
                    for _ in range(5):
                        await backend.open(Sink())
                        clock.ahead += 1000
                        for _ in range(4):
                            await backend.publish(number(0, "sweeps"), KEEP)
                        used.append((topic, await backend.publish(number(1, topic), keep)))
    assert len(used) == len(set(used))


async def test_r3_a_position_is_not_used_again_after_it_was_closed(backend: MemoryBackend) -> None:
    old = await backend.publish(number(1), KEEP)
    await backend.close()
    await backend.open(Sink())
    assert (await backend.publish(number(2), KEEP)) != old
    assert (await backend.read("t", old, 5)).reason == "epoch"


async def test_a_topic_that_nobody_watches_and_that_has_no_history_takes_no_memory(backend: MemoryBackend) -> None:
    for n in range(100):
        assert (await backend.publish(number(n), Keep(0, 10.0))).offset == 1
        await backend.read(f"{n}", None, 5)
        await backend.read(f"{n}", Position("x", 1), 5)
    assert not backend._logs
    await backend.watch("t")
    positions = [await backend.publish(number(n), Keep(0, 10.0)) for n in range(3)]
    assert [one.offset for one in positions] == [1, 2, 3]
    assert len({one.epoch for one in positions}) == 1
    assert await messages(backend) == []
    backend.unwatch("t")
    backend.unwatch("t")
    assert not backend._logs
    assert not backend._watched


async def test_a_topic_that_is_watched_keeps_its_counter_however_long(backend: MemoryBackend, clock: Clock) -> None:
    await backend.watch("t")
    first = await backend.publish(number(1), KEEP)
    clock.ahead += 1e6
    for n in range(5):
        await backend.publish(number(n, "other"), KEEP)
    assert await backend.publish(number(2), KEEP) == Position(first.epoch, 2)
    clock.ahead += 1e6
    backend.unwatch("t")
    assert "t" not in backend._logs


async def test_what_is_left_with_a_history_stays_until_its_time_is_up(backend: MemoryBackend, clock: Clock) -> None:
    await backend.watch("t")
    position = await backend.publish(number(1), KEEP)
    backend.unwatch("t")
    assert await messages(backend) == [1]
    assert (await backend.read("t", position, 5)).reason is None


async def test_many_topics_are_swept_as_fast_as_they_come(backend: MemoryBackend, clock: Clock) -> None:
    most = 0
    for n in range(5000):
        clock.ahead += 1.0  # a topic's counter is kept for 100 seconds
        await backend.publish(number(n, f"{n}"), KEEP)
        most = max(most, len(backend._logs))
    assert most <= 250


async def test_topics_that_are_kept_long_do_not_keep_the_others(backend: MemoryBackend, clock: Clock) -> None:
    for n in range(3):
        await backend.publish(number(n, f"long {n}"), Keep(3, 1e8))
    for n in range(5000):
        clock.ahead += 1.0
        await backend.publish(number(n, f"{n}"), KEEP)
    assert len(backend._logs) <= 500


async def test_topics_that_are_watched_do_not_keep_the_others(backend: MemoryBackend, clock: Clock) -> None:
    for n in range(10):
        await backend.watch(f"watched {n}")
        await backend.publish(number(n, f"watched {n}"), KEEP)
        await backend.read(f"never published {n}", None, 1)
    for n in range(3000):
        clock.ahead += 1.0
        await backend.publish(number(n, f"{n}"), KEEP)
    assert len(backend._logs) <= 500
    assert {f"watched {n}" for n in range(10)} <= set(backend._logs)


async def test_only_who_watches_is_told(backend: MemoryBackend) -> None:
    sink = backend._receiver
    assert isinstance(sink, Sink)
    await backend.publish(number(1), KEEP)
    await backend.watch("t")
    await backend.publish(number(2), KEEP)
    backend.unwatch("t")
    await backend.publish(number(3), KEEP)
    assert [one.message for one in sink.got] == [2]


@pytest.mark.parametrize("kind", ["presence", "close"])
async def test_what_is_no_payload_has_no_number_and_is_not_kept(backend: MemoryBackend, kind: str) -> None:
    sink = backend._receiver
    assert isinstance(sink, Sink)
    await backend.watch("t")
    top = await backend.publish(number(1), KEEP)
    order = Publication("t", None, kind, "{}")  # type: ignore[arg-type]
    assert await backend.publish(order, KEEP) == top
    assert order.position is None
    assert sink.got[-1] is order
    assert await messages(backend) == [1]
    assert await backend.publish(number(2), KEEP) == Position(top.epoch, 2)


async def test_presence_is_by_connection_told_by_key_and_freed(backend: MemoryBackend) -> None:
    sink = backend._receiver
    assert isinstance(sink, Sink)
    await backend.watch("t")
    one, two = (Present("t", "anna", name, name.encode(), tells=True) for name in ("1", "2"))
    for _ in range(2):
        await backend.enter(one, 1.0)
    await backend.enter(two, 1.0)
    assert await backend.present("t") == {"anna": b"2"}
    assert len(sink.got) == 1
    await backend.leave(two)
    await backend.leave(two)
    assert await backend.present("t") == {"anna": b"1"}
    assert len(sink.got) == 1
    await backend.leave(one)
    await backend.leave(one)
    await backend.leave(Present("never", "x", "1", b"1", tells=True))
    assert [frame.message["left"] for frame in sink.got] == [[], ["anna"]]
    assert not backend._present


async def test_closed_it_has_nothing_and_refuses(backend: MemoryBackend) -> None:
    await backend.watch("t")
    position = await backend.publish(number(1), KEEP)
    await backend.close()
    assert not backend._logs
    with pytest.raises(ChannelsError, match="closed"):
        await backend.publish(number(2), KEEP)
    await backend.open(Sink())
    assert (await backend.read("t", position, 5)).reason == "epoch"


async def test_many_members_in_many_topics_leave_no_memory_behind() -> None:
    async def come_and_go(channels: Channels) -> None:
        for n in range(200):
            async with channels.subscribe(f"{n % 50}", history=2):
                await channels.publish(f"{n % 50}", n)

    async with opened(MemoryBackend()) as channels:
        await come_and_go(channels)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(3):
                await come_and_go(channels)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 100_000
