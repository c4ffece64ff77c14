"""The servers behind topics: one, a master that Sentinels know, and a cluster whose slots move and whose nodes die."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.crc import key_slot

from asgiws.channels import BrokerError, Channels, Keep, Publication, redis_servers
from tests.channels.brokers import PACE, Cluster, Recorder, Relay, backend_on, channels_on, fresh, nothing_left, until
from tests.channels.contract import taking
from tests.fakes import DEADLINE, soon
from tests.servers import free_port
from tests.valkey import Valkey

pytestmark = pytest.mark.anyio

KEEP = Keep(100, 60.0)
TURNS = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def one_node() -> Iterator[str]:
    """The URL of a cluster of one node."""
    with Valkey(cluster=True) as server:
        yield server.url.replace("redis:", "redis+cluster:")


@pytest.fixture
def url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    """Of one server, or of a cluster."""
    if request.param == "cluster":
        found: str = request.getfixturevalue("one_node")
        return found
    return valkey.url


both = pytest.mark.parametrize("url", ["server", "cluster"], indirect=True)


def number(n: int, topic: str = "t") -> Publication:
    return Publication(topic, None, "json", str(n))


async def published(channels: Channels, topic: str, message: Any) -> None:
    """Publish as soon as the broker takes it."""
    async with asyncio.timeout(DEADLINE * 2):
        while True:
            try:
                await channels.publish(topic, message)
            except BrokerError:
                await asyncio.sleep(PACE)
            else:
                return


# Watching


@both
async def test_a_topic_that_is_left_and_watched_again_at_once_is_watched(url: str) -> None:
    async with backend_on(url) as (backend, recorder):
        await backend.watch("t")
        for n in range(1, 50):
            backend.unwatch("t")
            if n % 3 == 0:
                waiting = asyncio.create_task(backend.watch("t"))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                backend.unwatch("t")
            await backend.watch("t")
            await backend.publish(number(n), KEEP)
            await soon(lambda: len(recorder.got) == n)  # noqa: B023 - it is called before the next
        assert [one.message for one in recorder.got] == list(range(1, 50))
        assert recorder.told == []


@both
async def test_many_topics_are_watched_again_after_a_break(url: str) -> None:
    port = int(url.rpartition(":")[2])
    async with channels_on(url) as channels, contextlib.AsyncExitStack() as stack:
        takers = [await stack.enter_async_context(taking(channels, "envelope", f"t{n}")) for n in range(700)]
        await asyncio.to_thread(_kill_links, port)
        await soon(lambda: channels.statistics().breaks == 1 and channels.healthy)
        # Without a history, what comes while they look what they have missed may be told as missing.
        await soon(lambda: all(topic.held is None for topic in channels._topics.values()))
        for n in (0, 1, 499, 500, 699):
            await channels.publish(f"t{n}", n)
            assert await takers[n].finish() == [n]


def _kill_links(port: int) -> None:
    server = Valkey()
    try:
        server.url = f"redis://127.0.0.1:{port}"
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
    finally:
        server._remove()


async def test_what_is_left_while_the_broker_is_gone_is_not_watched_when_it_is_back() -> None:
    prefix = fresh()
    with Valkey() as server:
        async with channels_on(server.url, prefix=prefix) as channels, channels.subscribe("stays"):
            async with channels.subscribe("goes"):
                server.kill()
                await soon(lambda: not channels.healthy)
            server.start()
            await soon(lambda: channels.healthy)
            assert server.command("PUBSUB", "CHANNELS", f"{prefix}*") == [f"{prefix}:{{stays}}".encode()]


async def test_what_is_left_while_it_is_subscribed_to_again_is_not_watched(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = fresh()
    async with Relay(valkey.port) as relay:
        url = f"redis://127.0.0.1:{relay.port}"
        async with channels_on(url, prefix=prefix) as channels, channels.subscribe("stays"):
            sent, plain = asyncio.Event(), redis_servers.Server._subscribe_again

            async def told(self: Any) -> None:
                sent.set()
                await plain(self)

            async with channels.subscribe("goes"):
                monkeypatch.setattr(redis_servers.Server, "_subscribe_again", told)
                relay.cut()
                async with asyncio.timeout(DEADLINE):
                    await sent.wait()
            await soon(lambda: channels.healthy)
            await until(lambda: valkey.command("PUBSUB", "CHANNELS", f"{prefix}*") == [f"{prefix}:{{stays}}".encode()])


async def test_a_server_that_always_breaks_at_once_is_not_tried_without_a_pause(valkey: Valkey) -> None:
    async with Relay(valkey.port) as relay, channels_on(f"redis://127.0.0.1:{relay.port}") as channels:
        before = relay.accepted
        turns = 0

        def cut_again(healthy: bool) -> None:
            nonlocal turns
            turns += healthy
            if turns < TURNS:
                asyncio.get_running_loop().call_soon(relay.cut)

        channels.on_health(cut_again)
        async with asyncio.timeout(DEADLINE * 2):
            loop = asyncio.get_running_loop()
            begin = loop.time()
            relay.cut()
            await until(lambda: turns == TURNS)
        assert relay.accepted - before >= 2 * TURNS
        # So many pauses of at least half the least one.
        assert loop.time() - begin > TURNS * redis_servers.RETRY_LEAST / 2


# Sentinel


@contextlib.contextmanager
def watched() -> Iterator[tuple[Valkey, Valkey, Valkey]]:
    """A master, its replica, and a Sentinel that knows both."""
    with (
        Valkey("--repl-diskless-sync-delay", "0") as master,
        Valkey("--replicaof", "127.0.0.1", str(master.port)) as replica,
    ):
        replica.wait_for("INFO", "replication", until=lambda info: info["master_link_status"] == "up")
        with Valkey(watches=master) as sentinel:
            sentinel.wait_for("SENTINEL", "REPLICAS", "main", until=lambda found: len(found) > 0)
            yield master, replica, sentinel


async def test_sentinel_the_topics_go_on_when_another_server_becomes_the_master() -> None:
    with watched() as (master, replica, sentinel):
        nobody = free_port()
        url = f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{sentinel.port}"
        async with (
            channels_on(f"{url}/main", history=100) as channels,
            taking(channels, "subscription", "t", lost=True) as taker,
        ):
            health: list[bool] = []
            channels.on_health(health.append)
            await channels.publish("t", 1)
            await taker.has(lambda items: items == [1])
            master.kill()
            await published(channels, "t", 2)
            items = await taker.has(lambda items: 2 in items)
            assert [one for one in items if isinstance(one, int)] == [1, 2]
            assert channels.healthy
            assert health[0] is False
            assert health[-1] is True
            assert replica.command("PUBSUB", "NUMSUB", *replica.command("PUBSUB", "CHANNELS"))[1] == 1


async def test_sentinel_by_a_client_of_redis_py() -> None:
    with watched() as (master, _, sentinel):
        sentinels: Any = Sentinel
        known = sentinels([("127.0.0.1", free_port()), ("127.0.0.1", sentinel.port)])
        async with (
            channels_on(known.master_for("main"), history=100) as channels,
            taking(channels, "subscription", "t", lost=True) as taker,
        ):
            await channels.publish("t", 1)
            await taker.has(lambda items: items == [1])
            master.kill()
            await published(channels, "t", 2)
            assert [one for one in await taker.has(lambda items: 2 in items) if isinstance(one, int)] == [1, 2]
        with pytest.raises(BrokerError, match="nosuch"):
            async with Channels(known.master_for("nosuch")):
                pytest.fail("there is no such master")


async def test_sentinel_a_name_that_none_knows_is_told_though_another_one_is_gone() -> None:
    with Valkey() as master, Valkey(watches=master) as sentinel, pytest.raises(BrokerError, match="nosuch"):
        async with Channels(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/nosuch"):
            pytest.fail("there is no such master")


async def test_sentinel_a_master_that_is_demoted_is_left() -> None:
    with watched() as (_, replica, sentinel):
        async with (
            channels_on(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", history=100) as channels,
            taking(channels, "subscription", "t", lost=True) as taker,
        ):
            await channels.publish("t", 1)
            sentinel.wait_for("SENTINEL", "FAILOVER", "main", until=bool)
            replica.wait_for("INFO", "replication", until=lambda info: bool(info["role"] == "master"))
            await published(channels, "t", 2)
            await taker.has(lambda items: 2 in items)


# A cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as found:
        yield found


def topic_of(cluster: Cluster, node: int, prefix: str, *, but: tuple[int, ...] = ()) -> tuple[str, int]:
    """A topic that a node has, and its slot."""
    ranges = [
        (first, last)
        for first, last, owner, *_ in cluster.nodes[node].command("CLUSTER", "SLOTS")
        if owner[1] == cluster.nodes[node].port
    ]
    for n in range(10_000):
        slot = key_slot(f"{prefix}:{{t{n}}}".encode())
        if slot not in but and any(first <= slot <= last for first, last in ranges):
            return f"t{n}", slot
    raise AssertionError("the node has no slot")


@contextlib.asynccontextmanager
async def on_cluster(cluster: Cluster, **options: Any) -> AsyncIterator[tuple[Channels, str]]:
    prefix = fresh()
    async with channels_on(cluster.url, prefix=prefix, **options) as channels:
        yield channels, prefix


@pytest.mark.parametrize("by_client", [False, True])
async def test_cluster_topics_on_all_nodes_go_to_their_members(cluster: Cluster, by_client: bool) -> None:
    prefix = fresh()
    source = RedisCluster(host="127.0.0.1", port=cluster.nodes[1].port) if by_client else cluster.url
    async with channels_on(source, prefix=prefix, history=10) as channels, contextlib.AsyncExitStack() as stack:
        topics = [topic_of(cluster, node, prefix)[0] for node in range(3)] + [f"x{n}" for n in range(30)]
        takers = [await stack.enter_async_context(taking(channels, "envelope", topic)) for topic in topics]
        for n, topic in enumerate(topics):
            await channels.publish(topic, n)
        for n, taker in enumerate(takers):
            assert await taker.finish() == [n]
        for node in cluster.nodes:
            assert node.command("PUBSUB", "SHARDCHANNELS", f"{prefix}*")
            assert not node.command("PUBSUB", "CHANNELS", f"{prefix}*")
    for node in cluster.nodes:
        await until(lambda: not node.command("PUBSUB", "SHARDCHANNELS", f"{prefix}*"))  # noqa: B023 - called at once


async def test_cluster_a_topic_moves_with_its_members(cluster: Cluster) -> None:
    async with on_cluster(cluster, history=10) as (channels, prefix):
        topic, slot = topic_of(cluster, 0, prefix)
        async with taking(channels, "subscription", topic, lost=True) as taker:
            for n, to in enumerate((1, 2, 0)):
                cluster.move(slot, to)
                await published(channels, topic, n)
                await taker.has(lambda items: n in items)  # noqa: B023 - called at once
            assert channels.healthy
        await until(lambda: not any(node.command("PUBSUB", "SHARDCHANNELS", f"{prefix}*") for node in cluster.nodes))


async def test_cluster_who_joins_a_topic_that_has_moved_finds_it(cluster: Cluster) -> None:
    async with on_cluster(cluster, history=10) as (channels, prefix):
        topic, slot = topic_of(cluster, 0, prefix)
        stays, _ = topic_of(cluster, 0, prefix, but=(slot,))
        async with taking(channels, "envelope", stays) as staying:
            cluster.move(slot, 1)
            try:
                async with taking(channels, "envelope", topic) as taker:
                    await channels.publish(topic, 1)
                    assert await taker.finish() == [1]
                assert channels.statistics().breaks == 0
                await channels.publish(stays, 1)
                assert await staying.finish() == [1]
            finally:
                cluster.move(slot, 0)


async def test_cluster_a_slot_that_is_between_two_nodes_refuses_or_takes_and_then_goes_on(cluster: Cluster) -> None:
    async with on_cluster(cluster, history=10) as (channels, prefix):
        topic, slot = topic_of(cluster, 0, prefix)
        async with taking(channels, "subscription", topic, lost=True) as taker:
            await channels.publish(topic, 1)
            cluster.begin_move(slot, 1)
            with contextlib.suppress(BrokerError):
                await channels.publish(topic, 2)
            with contextlib.suppress(BrokerError):
                await channels.publish("t" + topic, 2)
            cluster.move(slot, 1)
            await published(channels, topic, 3)
            await taker.has(lambda items: 3 in items)
            assert channels.healthy
        cluster.move(slot, 0)


async def test_cluster_a_topic_that_is_left_while_it_moves_is_watched_nowhere(cluster: Cluster) -> None:
    async with on_cluster(cluster, history=10) as (channels, prefix):
        topic, slot = topic_of(cluster, 0, prefix)
        async with channels.subscribe(topic):
            cluster.move(slot, 1)
            await soon(lambda: channels._backend._moving is not None)  # type: ignore[attr-defined]
        try:
            await soon(lambda: channels._backend._moving.done())  # type: ignore[attr-defined]
            await until(
                lambda: not any(node.command("PUBSUB", "SHARDCHANNELS", f"{prefix}*") for node in cluster.nodes)
            )
        finally:
            cluster.move(slot, 0)


async def test_cluster_they_are_closed_while_they_look_around(cluster: Cluster) -> None:
    async with nothing_left():
        for turns in range(0, 40, 4):
            backend = Channels(cluster.url, prefix=fresh())._backend
            await backend.open(Recorder())
            looking = [asyncio.create_task(backend.look_around()) for _ in range(2)]  # type: ignore[attr-defined]
            for _ in range(turns):
                await asyncio.sleep(0)
            await backend.close()
            await asyncio.gather(*looking, return_exceptions=True)


async def test_cluster_a_node_dies_its_slot_moves_and_it_comes_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_servers, "RETRY_MOST", 0.3)
    monkeypatch.setattr(redis_servers, "BACK_WITHIN", 0.3)
    async with on_cluster(cluster, history=10) as (channels, prefix):
        alive, _ = topic_of(cluster, 1, prefix)
        dead, _ = topic_of(cluster, 2, prefix)
        moved, slot = topic_of(cluster, 2, prefix, but=(key_slot(f"{prefix}:{{{dead}}}".encode()),))
        async with (
            taking(channels, "envelope", alive) as on_alive,
            taking(channels, "subscription", dead, lost=True) as on_dead,
            taking(channels, "subscription", moved, lost=True) as on_moved,
        ):
            await channels.publish(moved, 1)
            await channels.publish(dead, 1)
            cluster.nodes[2].kill()
            await soon(lambda: not channels.healthy)
            await channels.publish(alive, 1)
            await on_alive.has(lambda items: items == [1])
            with pytest.raises(BrokerError):
                await channels.publish(dead, 2)
            # The other two agree that one of them has the slot now.
            cluster.nodes[0].command("CLUSTER", "SETSLOT", slot, "NODE", cluster.nodes[0].command("CLUSTER", "MYID"))
            cluster.nodes[0].command("CLUSTER", "BUMPEPOCH")
            cluster.nodes[1].command("CLUSTER", "SETSLOT", slot, "NODE", cluster.nodes[0].command("CLUSTER", "MYID"))
            await published(channels, moved, 2)
            await on_moved.has(lambda items: 2 in items)
            cluster.nodes[2].start()
            cluster.nodes[2].wait_for("CLUSTER", "INFO", until=lambda info: b"cluster_state:ok" in info)
            await published(channels, dead, 3)
            await on_dead.has(lambda items: 3 in items)
            await until(lambda: channels.healthy)
