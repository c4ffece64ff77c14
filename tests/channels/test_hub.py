"""The topics of a process: watched while they have members, kept without a hole whatever the backend does."""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import anyio
import pytest

from asgiws.channels import (
    BrokerError,
    Channels,
    ChannelsError,
    Keep,
    MemoryBackend,
    Page,
    Position,
    Present,
    Publication,
    TopicOptions,
)
from asgiws.channels import hub as hub_module
from asgiws.channels.backend import reason_against
from tests.channels.sockets import running
from tests.fakes import DEADLINE, soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class Backend:
    """A backend that does what the test says: every call notes itself, and may fail or wait."""

    shared = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.log: dict[str, list[Publication]] = {}
        self.epoch = "e"
        self.receiver: Any = None
        self.loses = False
        self.errors: dict[str, list[Exception]] = {}
        self.gates: dict[str, anyio.Event] = {}

    async def _call(self, name: str, what: str = "") -> None:
        self.calls.append(f"{name} {what}".strip())
        if name in self.gates:
            await self.gates[name].wait()
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    async def open(self, receiver: Any) -> None:
        await self._call("open")
        self.receiver = receiver

    async def close(self) -> None:
        await self._call("close")

    async def publish(self, publication: Publication, keep: Keep) -> Position:
        await self._call("publish", publication.topic)
        log = self.log.setdefault(publication.topic, [])
        publication.position = Position(self.epoch, len(log) + 1)
        log.append(publication)
        if not self.loses:
            self.receiver.deliver(publication)
        return publication.position

    async def watch(self, topic: str) -> None:
        await self._call("watch", topic)

    def unwatch(self, topic: str) -> None:
        self.calls.append(f"unwatch {topic}")

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        log = self.log.get(topic, [])
        top = Position(self.epoch, len(log))
        reason = None if since is None else reason_against(since, top, len(log), limit)
        await self._call("read", topic)
        if since is None:
            return Page(top, log[-limit:] if limit else [])
        return Page(top, [] if reason else log[since.offset :], reason)

    async def enter(self, present: Present, lease: float) -> None:
        await self._call("enter", present.key)

    async def leave(self, present: Present) -> None:
        await self._call("leave", present.key)

    async def renew(self, present: Collection[Present], lease: float) -> None:
        await self._call("renew", ",".join(one.key for one in present))

    async def present(self, topic: str) -> Mapping[str, bytes]:
        await self._call("present", topic)
        return {}


async def heard(subscription: Any, count: int) -> list[Any]:
    with anyio.fail_after(DEADLINE):
        return [getattr(await anext(subscription), "message", "lost") for _ in range(count)]


# Life


async def test_they_are_opened_once_and_closed_with_the_last() -> None:
    backend = Backend()
    channels = Channels(backend)
    assert not channels.healthy
    assert repr(channels) == "<Channels with 0 topics, closed>"
    async with channels as same, channels:
        assert same is channels
        assert channels.healthy
        assert repr(channels) == "<Channels with 0 topics, open>"
        assert len(running("Hub._renew")) == 1
    assert backend.calls == ["open", "close"]
    assert not channels.healthy
    await soon(lambda: not running("Hub._renew"))


async def test_a_broker_that_is_not_there() -> None:
    backend = Backend()
    backend.errors["open"] = [BrokerError("no")]
    channels = Channels(backend)
    with pytest.raises(BrokerError):
        async with channels:
            """Not reached."""
    assert not channels.healthy
    assert not running("Hub._renew")
    async with channels:
        assert channels.healthy
    assert backend.calls == ["open", "open", "close"]


async def test_they_can_be_opened_again() -> None:
    channels = Channels()
    for _ in range(3):
        async with channels, channels.subscribe("t") as subscription:
            await channels.publish("t", "a")
            assert await heard(subscription, 1) == ["a"]
    assert channels.statistics().topics == 0


async def test_a_cancelled_end_closes_the_backend_all_the_same() -> None:
    backend = Backend()
    with anyio.CancelScope() as scope:
        async with Channels(backend):
            scope.cancel()
    assert backend.calls == ["open", "close"]


# Topics


async def test_a_topic_is_watched_while_somebody_uses_it() -> None:
    backend = Backend()
    async with Channels(backend) as channels:
        async with channels.subscribe("t"), channels.subscribe("t"), channels.subscribe("u"):
            assert channels.statistics().topics == 2
            assert channels.statistics().members == 3
        assert channels._topics == {}
        assert channels._ready == {}
    assert backend.calls[:-1] == ["open", "watch t", "read t", "watch u", "read u", "unwatch u", "unwatch t"]


@pytest.mark.parametrize("where", ["watch", "read"])
async def test_many_who_come_at_once_watch_once(where: str) -> None:
    backend = Backend()
    gate = backend.gates[where] = anyio.Event()
    subscribed: list[int] = []
    async with Channels(backend) as channels, anyio.create_task_group() as group:

        async def subscribe(number: int) -> None:
            async with channels.subscribe("t"):
                subscribed.append(number)
                await anyio.sleep_forever()

        for number in range(5):
            group.start_soon(subscribe, number)
        await soon(lambda: any(call.startswith(where) for call in backend.calls))
        await anyio.wait_all_tasks_blocked()
        assert subscribed == []
        gate.set()
        await soon(lambda: len(subscribed) == 5)
        assert backend.calls == ["open", "watch t", "read t"]
        group.cancel_scope.cancel()
    assert channels._topics == {}
    assert backend.calls.count("unwatch t") == 1


@pytest.mark.parametrize("where", ["watch", "read"])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_who_comes_first_and_fails_does_not_take_the_others_with_it(where: str, how: str) -> None:
    backend = Backend()
    gate = backend.gates[where] = anyio.Event()
    subscribed = anyio.Event()
    async with Channels(backend) as channels, anyio.create_task_group() as group:
        first = anyio.CancelScope()

        async def fail() -> None:
            with first:
                async with channels.subscribe("t"):
                    """Not reached."""

        async def fail_too() -> None:
            with pytest.raises(BrokerError):
                await fail()

        async def subscribe() -> None:
            async with channels.subscribe("t"):
                subscribed.set()

        group.start_soon(fail if how == "cancelled" else fail_too)
        await soon(lambda: any(call.startswith(where) for call in backend.calls))
        group.start_soon(subscribe)
        await anyio.wait_all_tasks_blocked()
        if how == "cancelled":
            first.cancel()
            await anyio.wait_all_tasks_blocked()
        else:
            backend.errors[where] = [BrokerError("gone")]
        gate.set()
        with anyio.fail_after(DEADLINE):
            await subscribed.wait()
    assert channels._topics == {}
    assert channels._ready == {}
    assert channels.statistics().members == 0


async def test_what_is_published_while_a_topic_is_opened_is_not_lost() -> None:
    backend = Backend()
    gate = backend.gates["read"] = anyio.Event()
    async with Channels(backend) as channels, anyio.create_task_group() as group:
        got: list[Any] = []

        async def subscribe() -> None:
            async with channels.subscribe("t", since="e-0") as subscription:
                got.extend(await heard(subscription, 2))

        group.start_soon(subscribe)
        await soon(lambda: "read t" in backend.calls)
        await channels.publish("t", "1")  # after the read has found nothing, before it has returned
        await channels.publish("t", "2")
        gate.set()
    assert got == ["1", "2"]


async def test_what_nobody_uses_is_not_delivered() -> None:
    async with Channels(Backend()) as channels:
        channels.deliver(Publication("t", Position("e", 1), "text", "a"))
        await channels.publish("t", "a")
        assert (channels.statistics().published, channels.statistics().delivered) == (1, 0)


async def test_delivered_counts_each_member() -> None:
    async with Channels() as channels, channels.subscribe("t"), channels.subscribe("t"):
        await channels.publish(["t", "u"], "a")
        await channels.publish("t", "a")
        assert (channels.statistics().published, channels.statistics().delivered) == (3, 4)


# When something is missing


async def test_a_hole_is_filled_from_the_history() -> None:
    backend = Backend()
    async with Channels(backend, history=10) as channels, channels.subscribe("t", messages=99) as subscription:
        await channels.publish("t", "1")
        backend.loses = True
        await channels.publish("t", "2")
        await channels.publish("t", "3")
        backend.loses = False
        await channels.publish("t", "4")
        assert await heard(subscription, 4) == ["1", "2", "3", "4"]
        assert channels.statistics().dropped == {}


@pytest.mark.parametrize(
    ("call", "expected"),
    [(lambda channels: channels.mended(), ["1"]), (lambda channels: channels.deliver, [])],
    ids=["mended", "silence"],
)
async def test_a_last_publication_that_was_lost_is_found_when_the_broker_is_back(
    call: Callable[[Channels], Any], expected: list[str]
) -> None:
    backend = Backend()
    async with Channels(backend, history=10) as channels, channels.subscribe("t") as subscription:
        backend.loses = True
        await channels.publish("t", "1")
        call(channels)
        await anyio.wait_all_tasks_blocked()
        await soon(lambda: not running("Hub._catch_up"))
        assert [one.message for one in subscription._queue if isinstance(one, Publication)] == expected


@pytest.mark.parametrize("error", [BrokerError("gone"), ValueError("bug")])
async def test_a_history_that_cannot_be_read_is_read_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "RETRY_LEAST", 0.001)
    backend = Backend()
    async with Channels(backend, history=10) as channels, channels.subscribe("t") as subscription:
        backend.loses = True
        await channels.publish("t", "1")
        backend.errors["read"] = [error, error, error]
        channels.mended()
        assert await heard(subscription, 1) == ["1"]
    assert [r.levelno for r in caplog.records if r.levelno > logging.INFO] == (
        [] if isinstance(error, BrokerError) else [logging.ERROR] * 3
    )


async def test_nobody_reads_on_for_a_topic_that_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RETRY_LEAST", 0.001)
    backend = Backend()
    async with Channels(backend, history=10) as channels:
        async with channels.subscribe("t"):
            backend.errors["read"] = [BrokerError("gone")] * 1000
            channels.mended()
            await soon(lambda: backend.calls.count("read t") > 3)
        await soon(lambda: not running("Hub._catch_up"))


async def test_breaks_are_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []
    channels = Channels(Backend())

    @channels.on_health
    def fails(healthy: bool) -> None:
        raise ValueError(healthy)

    channels.on_health(told.append)
    async with channels:
        assert told == []
        channels.broken()
        channels.broken()
        assert not channels.healthy
        assert not channels.statistics().healthy
        channels.mended()
        channels.mended()
        assert channels.healthy
    assert told == [False, True]
    assert channels.statistics().breaks == 2
    assert caplog.text.count("failed\n") == 2


async def test_what_could_not_be_read_is_counted() -> None:
    async with Channels(Backend()) as channels:
        channels.spoilt()
        channels.spoilt()
        assert channels.statistics().dropped == {"spoilt": 2}


# Leases


async def test_leases_are_renewed_and_failures_endured(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    backend.errors["renew"] = [BrokerError("gone"), ValueError("bug")]
    async with Channels(backend, lease=0.01) as channels:
        present = Present("t", "anna", "c", b"null", tells=False)
        channels._presence.here[present] = None
        await soon(lambda: backend.calls.count("renew anna") >= 4)
    assert caplog.text.count("leases could not be renewed") == 1


async def test_with_a_shared_backend_a_last_publication_is_looked_for() -> None:
    backend = Backend()
    backend.shared = True
    async with Channels(backend, lease=0.01, history=10) as channels, channels.subscribe("t") as subscription:
        backend.loses = True
        await channels.publish("t", "1")
        assert await heard(subscription, 1) == ["1"]


# Options


async def test_the_first_pattern_that_fits_counts() -> None:
    channels = Channels(
        history=1,
        ttl=60,
        topics={"room:*": TopicOptions(history=5), "room:1": TopicOptions(history=9), "log": TopicOptions(ttl=1)},
    )
    kept = {name: channels._keep(name) for name in ("room:1", "room:", "Room:1", "log", "other")}
    assert kept == {
        "room:1": Keep(5, 300), "room:": Keep(5, 300), "Room:1": Keep(1, 60), "log": Keep(0, 1), "other": Keep(1, 60),
    }  # fmt: skip


async def test_each_topic_is_kept_as_its_options_say() -> None:
    async with Channels(topics={"kept": TopicOptions(history=2)}) as channels:
        for message in "abc":
            await channels.publish(["kept", "gone"], message)
        assert [one.message for one in await channels.history("kept")] == ["b", "c"]
        assert await channels.history("gone") == []


async def test_another_thread_cannot_open_what_is_open() -> None:
    channels = Channels(MemoryBackend())
    failed: list[BaseException] = []

    async def enter() -> None:
        async with channels:
            """Not reached."""

    def other_loop() -> None:
        try:
            anyio.run(enter)
        except ChannelsError as error:
            failed.append(error)

    run: Callable[[], Awaitable[None]] = lambda: anyio.to_thread.run_sync(other_loop)
    async with channels:
        await run()
    assert len(failed) == 1
    await run()
    assert len(failed) == 1
