"""Several worker processes on one broker, and what becomes of topics when something is killed, cut, full or frozen."""

# ruff: noqa: SIM117 - nested where the inner one is what the test is about
import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import anyio
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asgiws.channels import (
    BrokerError,
    Channels,
    Lost,
    Member,
    Position,
    TopicOptions,
    presence,
    redis_link,
    redis_servers,
)
from tests.channels import apps
from tests.channels.brokers import PACE, Relay, channels_on, fresh, stopped, until
from tests.channels.contract import Client, taking
from tests.fakes import DEADLINE, soon
from tests.servers import ServerProcess, uvicorn
from tests.valkey import Valkey

pytestmark = pytest.mark.anyio

WORKERS, SOCKETS = 4, 50


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Worker processes


class Workers:
    """Processes that run the same application on the same broker."""

    def __init__(self, url: str | None, count: int, lease: float) -> None:
        self.prefix = fresh()
        env = {apps.PREFIX: self.prefix, apps.LEASE: str(lease)}
        if url is not None:
            env[apps.URL] = url
        command = uvicorn("tests.channels.apps:app", "--ws-max-queue", "1000")
        self.processes = [ServerProcess(command, env) for _ in range(count)]

    def __enter__(self) -> Self:
        try:
            for process in self.processes:
                process.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.process.terminate()
        for process in self.processes:
            process.stop()

    def kill(self, at: int) -> None:
        """End one with SIGKILL."""
        self.processes[at].process.kill()
        self.processes[at].stop()

    def connect(self, at: int, path: str) -> Any:
        """A connection to one of them."""
        url = f"ws://127.0.0.1:{self.processes[at].port}/{path}"
        return connect(url, compression=None, proxy=None, open_timeout=DEADLINE, max_queue=None)


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    """The server of the workers, which is killed at times."""
    with Valkey(persistent=True) as server:
        yield server


@pytest.fixture(scope="module")
def workers(broker: Valkey) -> Iterator[Workers]:
    with Workers(broker.url, WORKERS, lease=1.5) as found:
        yield found


@contextlib.asynccontextmanager
async def members(
    workers: Workers, topic: str, *, each: int, of: int = WORKERS
) -> AsyncIterator[list[ClientConnection]]:
    """Sockets of many workers in one topic."""
    async with contextlib.AsyncExitStack() as stack:
        opening = [workers.connect(at, f"join/{topic}") for at in range(of) for _ in range(each)]
        sockets = [await stack.enter_async_context(one) for one in opening]
        for ws in sockets:
            assert (await frame(ws))["type"] == "joined"
        yield sockets


async def frame(ws: ClientConnection) -> Any:
    async with asyncio.timeout(DEADLINE * 2):
        return json.loads(await ws.recv())


async def frames(ws: ClientConnection, end: Callable[[Any], bool]) -> list[Any]:
    """What comes, up to and with the first frame that is the end."""
    found = [await frame(ws)]
    while not end(found[-1]):
        found.append(await frame(ws))
    return found


async def test_200_sockets_of_4_workers_get_what_all_workers_publish_once_and_in_order(workers: Workers) -> None:
    each = 25

    async def publish(at: int) -> None:
        async with workers.connect(at, "publish/room:all") as ws:
            for number in range(each):
                await ws.send(f"{at}/{number}")
            for _ in range(each):
                assert "position" in await frame(ws)

    async def take(ws: ClientConnection) -> list[tuple[str, str]]:
        return [(got["position"], got["data"]) for got in [await frame(ws) for _ in range(WORKERS * each)]]

    async with members(workers, "room:all", each=SOCKETS) as sockets:
        takes = [asyncio.create_task(take(ws)) for ws in sockets]
        await asyncio.gather(*(publish(at) for at in range(WORKERS)))
        first, *others = await asyncio.gather(*takes)
        assert all(one == first for one in others)
        assert [Position.parse(position).offset for position, _ in first] == list(range(1, WORKERS * each + 1))
        for at in range(WORKERS):
            assert [data for _, data in first if data.startswith(f"{at}/")] == [f"{at}/{n}" for n in range(each)]
        # Nothing comes twice: what is published next comes next.
        async with workers.connect(0, "publish/room:all") as ws:
            await ws.send("the end")
        for ws in sockets:
            assert (await frame(ws))["data"] == "the end"


async def test_who_comes_back_to_another_worker_gets_what_was_missed(workers: Workers) -> None:
    async with workers.connect(0, "publish/room:back") as publisher:
        await publisher.send("1")
        seen = (await frame(publisher))["position"]
        for number in range(2, 30):
            await publisher.send(str(number))
            await frame(publisher)
        async with workers.connect(1, f"join/room:back?since={seen}") as ws:
            joined = await frame(ws)
            assert (joined["type"], joined["recovered"]) == ("joined", True)
            assert [got["data"] for got in await frames(ws, lambda got: got["data"] == "29")] == [
                str(number) for number in range(2, 30)
            ]


@pytest.mark.parametrize("empty", [False, True], ids=["with its data", "without its data"])
async def test_the_broker_is_killed_and_started_again_under_load(workers: Workers, broker: Valkey, empty: bool) -> None:
    topic = f"room:{fresh()}"
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def publish() -> None:
        number = 0
        async with workers.connect(0, f"publish/{topic}") as ws:
            while not stop.is_set():
                number += 1
                await ws.send(str(number))
                if "position" in await frame(ws):
                    acknowledged.append(number)
            await ws.send("the end")
            while "position" not in await frame(ws):
                await ws.send("the end")

    async with members(workers, topic, each=2, of=3) as sockets:
        takes = [asyncio.create_task(frames(ws, lambda got: got.get("data") == "the end")) for ws in sockets]
        publishing = asyncio.create_task(publish())
        await until(lambda: len(acknowledged) > 100)
        broker.kill()
        broker.start(empty=empty)
        there = len(acknowledged)
        await until(lambda: len(acknowledged) > there + 100)
        stop.set()
        await publishing
        for got in await asyncio.gather(*takes):
            check(got, acknowledged)


def check(got: list[Any], acknowledged: list[int]) -> None:
    """All that was acknowledged has come, in order and once, or in its place it is told that something is lost."""
    last, holes = 0, False
    due = iter(acknowledged)
    told = 0
    for one in got:
        if one["type"] == "lost":
            holes, told = True, told + 1
            continue
        if one["data"] == "the end":
            break
        number = int(one["data"])
        assert number > last, "twice, or not in order"
        missing = []
        while (expected := next(due, None)) is not None and expected < number:
            missing.append(expected)
        # `number` itself may be one whose acknowledgement was lost: then the next one that is due is still due.
        if expected is not None and expected > number:
            due = _with(expected, due)
        assert holes or not missing, f"{missing} are missing before {number}, and nobody was told"
        last, holes = number, False
    left = list(due)
    assert holes or not left, f"{left} never came"
    assert told <= 3


def _with(first: int, others: Iterator[int]) -> Iterator[int]:
    yield first
    yield from others


@pytest.mark.parametrize("shared", [True, False], ids=["on a broker", "in memory"])
async def test_r16_a_worker_is_stopped_and_its_members_go_on_elsewhere_or_are_told(
    broker: Valkey, shared: bool
) -> None:
    acknowledged: list[int] = []

    async def publish(workers: Workers) -> None:
        with contextlib.suppress(ConnectionClosed):
            async with workers.connect(0, "publish/room:stop") as ws:
                for number in itertools.count(1):
                    await ws.send(str(number))
                    if "position" in await frame(ws):
                        acknowledged.append(number)

    with Workers(broker.url if shared else None, 2, lease=5) as workers:
        async with workers.connect(0, "join/room:stop") as member:
            got = [await frame(member)]
            publishing = asyncio.create_task(publish(workers))
            await until(lambda: len(acknowledged) > 50)
            workers.processes[0].process.terminate()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    got.append(await frame(member))
            assert member.protocol.close_rcvd is not None
            assert member.protocol.close_rcvd.code == 1012
            await publishing
        last = got[-1]["position"]
        async with (
            workers.connect(1, f"join/room:stop?since={last}") as again,
            workers.connect(1, "publish/room:stop") as publisher,
        ):
            await publisher.send("the end")
            joined, *rest = await frames(again, lambda one: one.get("data") == "the end")
        assert (joined["recovered"], joined.get("reason")) == ((True, None) if shared else (False, "epoch"))
        numbers = [int(one["data"]) for one in [*got, *rest[:-1]] if one["type"] == "message"]
        assert numbers == list(range(1, len(numbers) + 1))
        if shared:
            assert set(acknowledged) <= set(numbers)


async def test_r12_a_worker_is_killed_and_its_members_are_gone_when_their_lease_is(broker: Valkey) -> None:
    with Workers(broker.url, 2, lease=1.0) as workers:
        async with (
            workers.connect(0, "join/room:p?who=watcher") as watcher,
            workers.connect(0, "join/room:p") as onlooker,
        ):
            for ws in (watcher, onlooker):
                await frames(ws, lambda got: got["type"] == "joined")
            async with workers.connect(1, "join/room:p?who=ann") as ann, workers.connect(0, "join/room:p?who=bob"):
                here: set[str] = set()
                while not {"ann", "bob"} <= here:
                    here |= {one["key"] for one in (await frame(watcher)).get("joined", ())}
                workers.kill(1)
                with pytest.raises(ConnectionClosed):
                    await frames(ann, lambda _: False)
                for ws in (watcher, onlooker):
                    last = (await frames(ws, lambda got: bool(got.get("left"))))[-1]
                    assert last["left"] == ["ann"]
        async with channels_on(broker.url, prefix=workers.prefix) as channels:

            async def empty() -> bool:
                return not await channels.presence("room:p")

            await until(empty)


# The link


async def load(channels: Channels, topic: str, stop: asyncio.Event, most: int) -> list[int]:
    """Publish numbers until told to stop, the last ones slowly; those that have a position."""
    acknowledged, number = [], 0
    while not stop.is_set():
        number += 1
        if number > most:
            await asyncio.sleep(PACE)
        try:
            await channels.publish(topic, number)
            acknowledged.append(number)
        except BrokerError:
            await asyncio.sleep(PACE)
    return acknowledged


async def test_r6_a_link_that_is_cut_again_and_again_loses_nothing_that_is_kept(valkey: Valkey) -> None:
    prefix = fresh()
    async with Relay(valkey.port) as relay:
        here = f"redis://127.0.0.1:{relay.port}"
        async with (
            channels_on(valkey.url, prefix=prefix, history=10_000) as publisher,
            channels_on(here, prefix=prefix, history=10_000) as channels,
            channels.subscribe("t", messages=10_000) as subscription,
        ):
            stop = asyncio.Event()
            publishing = asyncio.create_task(load(publisher, "t", stop, most=7_000))
            for cuts in range(1, 6):
                got = len(subscription._queue)
                relay.cut()
                await soon(lambda: channels.statistics().breaks == cuts)  # noqa: B023 - called at once
                await soon(lambda: channels.healthy)
                await soon(lambda: len(subscription._queue) > got)  # noqa: B023 - called at once
            stop.set()
            numbers = await publishing
            async with asyncio.timeout(DEADLINE):
                found: list[Any] = [(await anext(subscription)) for _ in numbers]
            assert [one.message for one in found] == numbers
            assert channels.statistics().dropped == {}


async def test_r6_without_a_history_what_came_and_what_is_told_as_lost_make_up_all(valkey: Valkey) -> None:
    prefix = fresh()
    async with (
        Relay(valkey.port) as relay,
        channels_on(valkey.url, prefix=prefix) as publisher,
        channels_on(f"redis://127.0.0.1:{relay.port}", prefix=prefix) as channels,
        channels.subscribe("t", messages=10_000, lost=True) as subscription,
    ):
        await publisher.publish("t", 1)
        await soon(lambda: subscription._queue)
        relay.close()
        await soon(lambda: not channels.healthy)
        for number in (2, 3, 4):
            await publisher.publish("t", number)
        await relay.listen()
        await until(lambda: channels.healthy)
        await soon(lambda: all(topic.held is None for topic in channels._topics.values()))
        await publisher.publish("t", 5)
        await soon(lambda: any(getattr(one, "message", 0) == 5 for one in subscription._queue))
        found = [one.count if isinstance(one, Lost) else one.message for one in subscription._queue]
        assert found == [1, 3, 5]


async def test_a_publication_gets_a_position_or_raises_while_the_broker_is_gone_and_not_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_servers, "BACK_WITHIN", 0.3)
    with Valkey() as server:
        async with channels_on(server.url) as channels, channels.subscribe("t") as subscription:
            health: list[bool] = []
            channels.on_health(health.append)
            channels.on_health(lambda healthy: 1 // 0)  # a hook that fails touches nobody
            server.kill()
            await soon(lambda: not channels.healthy)
            with pytest.raises(BrokerError):
                async with asyncio.timeout(DEADLINE):
                    await channels.publish("t", 1)
            with pytest.raises(BrokerError):
                await channels.subscribe("u").__aenter__()
            waiting = asyncio.create_task(channels.publish("t", 2))
            await asyncio.sleep(0)
            server.start()
            with contextlib.suppress(BrokerError):  # it waits, but not for ever
                assert (await waiting).offset == 1
            await soon(lambda: channels.healthy)
            assert health == [False, True]
            # Without a history, what comes while they look what they have missed may count as missing.
            await soon(lambda: all(topic.held is None for topic in channels._topics.values()))
            await channels.publish("t", 3)
            async with asyncio.timeout(DEADLINE):
                while getattr(await anext(subscription), "message", None) != 3:
                    pass


@pytest.mark.parametrize("when", ["at once", "when it is noticed", "while it waits"])
async def test_r13_they_can_be_closed_while_the_broker_is_gone(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "GOODBYE", 0.2)
    with Valkey() as server:
        async with channels_on(server.url, topics={"*": TopicOptions(presence=True)}) as channels:
            client = await Client.connected()
            async with channels.join(client.ws, "t", presence=Member("ann")), channels.subscribe("u"):
                server.kill()
                if when != "at once":
                    await soon(lambda: not channels.healthy)
                if when == "while it waits":
                    await asyncio.sleep(redis_servers.RETRY_LEAST * 1.5)


# A server that is there and does not do it


async def test_a_full_server_refuses_what_is_published_and_takes_it_when_there_is_room() -> None:
    with Valkey("--maxmemory", "20mb", "--maxmemory-policy", "noeviction") as server:
        async with channels_on(server.url, history=5) as channels, taking(channels, "envelope", "t") as taker:
            await channels.publish("t", 1)
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(BrokerError, match=r"(?i)maxmemory|OOM"):
                await channels.publish("t", 2)
            assert channels.healthy
            server.command("CONFIG", "SET", "maxmemory", "20mb")
            await channels.publish("t", 3)
            assert await taker.finish() == [1, 3]
            assert channels.statistics().breaks == 0


async def test_r3_a_server_that_evicts_its_keys_gives_no_position_twice() -> None:
    with Valkey() as server:
        prefix = fresh()
        async with channels_on(server.url, prefix=prefix, history=5) as channels:
            async with taking(channels, "subscription", "t", lost=True) as taker:
                positions = []
                for number in range(12):
                    positions.append(await channels.publish("t", number))
                    gone = ("counter", "history", "x")[number % 3]
                    server.command("DEL", f"{prefix}:{{t}}:{gone}")
                    await channels.history("t")  # as any other process at any time
                assert len(set(positions)) == 12
                items = await taker.has(lambda items: 11 in items)
                numbers = [one for one in items if isinstance(one, int)]
                assert numbers == sorted(set(numbers))


async def test_a_replica_refuses_what_is_published_without_a_storm_of_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_servers, "BACK_WITHIN", 0.05)
    monkeypatch.setattr(redis_servers, "RETRY_MOST", 0.3)
    with Valkey() as master, Valkey("--replicaof", "127.0.0.1", str(master.port)) as replica:
        async with Relay(replica.port) as relay, channels_on(f"redis://127.0.0.1:{relay.port}") as channels:
            with pytest.raises(BrokerError, match=r"(?i)read only replica"):
                await channels.publish("t", 1)
            for _ in range(20):
                with pytest.raises(BrokerError):
                    await channels.publish("t", 1)
            assert relay.accepted <= 20
            replica.command("REPLICAOF", "NO", "ONE")
            async with asyncio.timeout(DEADLINE):
                while True:
                    with contextlib.suppress(BrokerError):
                        await channels.publish("t", 1)
                        break
                    await asyncio.sleep(PACE)


async def test_a_frozen_server_is_told_of_in_time_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis_link, redis_servers):
        monkeypatch.setattr(module, "ANSWER_WITHIN", 0.3)
    monkeypatch.setattr(redis_link, "PING_EVERY", 0.2)
    monkeypatch.setattr(redis_servers, "BACK_WITHIN", 0.2)
    with Valkey() as server:
        async with (
            channels_on(server.url, history=50) as channels,
            taking(channels, "subscription", "t", lost=True) as taker,
        ):
            await channels.publish("t", 1)
            with stopped(server):
                with pytest.raises(BrokerError):
                    await channels.publish("t", 2)
                await soon(lambda: not channels.healthy)
                with pytest.raises(BrokerError):
                    await channels.publish("t", 3)
            await until(lambda: channels.healthy)
            await channels.publish("t", 4)
            items = await taker.has(lambda items: 4 in items)
            # Whether the second one was done is not known, but it comes once if it was.
            assert [one for one in items if one != 2] == [1, 4]
            assert items.count(2) <= 1


async def test_a_server_that_is_busy_with_a_script_refuses_or_answers_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PING_EVERY", 0.1)
    with Valkey("--busy-reply-threshold", "50") as server:
        async with (
            channels_on(server.url, history=50) as channels,
            taking(channels, "subscription", "t", lost=True) as taker,
        ):
            await channels.publish("t", 1)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, _busy, server)
                with pytest.raises(BrokerError, match="BUSY"):
                    await until(lambda: no(channels.publish("t", 0)))
                server.command("SCRIPT", "KILL")
            async with asyncio.timeout(DEADLINE):
                while True:
                    with contextlib.suppress(BrokerError):
                        await channels.publish("t", 2)
                        break
                    await asyncio.sleep(PACE)
            items = await taker.has(lambda items: 2 in items)
            assert [one for one in items if one != 0] == [1, 2]


async def no(publishing: Awaitable[Any]) -> None:
    await publishing


def _busy(server: Valkey) -> None:
    with contextlib.suppress(Exception):
        server.command("EVAL", "while true do end", 0)


async def test_who_reads_too_slowly_for_the_server_is_cut_and_finds_the_rest_in_the_history() -> None:
    with Valkey("--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1") as server:
        prefix = fresh()
        async with (
            channels_on(server.url, prefix=prefix, history=1000) as channels,
            channels.subscribe("t", messages=1000, size=100_000_000) as subscription,
        ):
            first = await channels.publish("t", "first")
            body = msgspec.msgpack.encode([1, "text", "x" * 200_000])
            for number in range(2, 60):  # all of it is there before this event loop reads a byte
                publish_as(server, f"{prefix}:{{t}}", first.epoch, number, body)
            await channels.publish("t", "last")
            async with asyncio.timeout(DEADLINE):
                found = [await anext(subscription) for _ in range(60)]
            assert [len(str(getattr(one, "message", ""))) for one in found] == [5] + [200_000] * 58 + [4]


def publish_as(server: Valkey, tag: str, epoch: str, number: int, body: bytes) -> None:
    """Publish on the server as another process does."""
    server.command("HINCRBY", f"{tag}:counter", "offset", 1)
    server.command("XADD", f"{tag}:history", f"{number}-0", "b", body)
    server.command("PUBLISH", tag, f"{epoch}:{number}:".encode() + body)
