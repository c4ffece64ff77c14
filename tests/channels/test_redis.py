"""Topics on one broker: what stands there, what others write there, and what members are told."""

# ruff: noqa: SIM117 - nested where the inner one is what the test is about
import asyncio
import time
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from asgiws.channels import (
    BrokerError,
    Channels,
    ChannelsError,
    Keep,
    Member,
    Position,
    Publication,
    TopicOptions,
    redis,
)
from tests.channels.brokers import Recorder, backend_on, channels_on, fresh, nothing_left, until
from tests.channels.contract import Client, taking
from tests.fakes import DEADLINE, soon
from tests.servers import free_port
from tests.valkey import Valkey

pytestmark = pytest.mark.anyio

KEEP = Keep(100, 60.0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def keys(server: Valkey, prefix: str) -> list[str]:
    """The keys that there are."""
    return sorted(key.decode() for key in server.command("KEYS", f"{prefix}*"))


# How it begins


def test_on_trio_it_says_what_it_needs(valkey: Valkey) -> None:
    async def use() -> None:
        async with Channels(valkey.url):
            pytest.fail("it cannot work")

    with pytest.raises(ChannelsError, match="asyncio") as caught:
        anyio.run(use, backend="trio")
    assert not isinstance(caught.value, BrokerError)


async def test_a_broker_that_is_not_there_or_refuses_is_told_of_at_the_start_and_leaves_nothing() -> None:
    with Valkey(password="right") as server:
        server.command("ACL", "SETUSER", "little", "on", ">little", "+ping")
        address = f"127.0.0.1:{server.port}"
        urls = {
            f"redis://127.0.0.1:{free_port()}": "cannot be reached",
            f"redis://:wrong@{address}": "WRONGPASS|invalid username",
            f"redis://{address}": "(?i)auth",
            f"redis://little:little@{address}": "(?i)permission",
            f"redis+cluster://127.0.0.1:{free_port()}": "cannot be reached",
            f"redis+cluster://:right@{address}": "(?i)cluster support disabled",
            f"redis+cluster://:wrong@{address}": "WRONGPASS|invalid username",
            f"redis+sentinel://127.0.0.1:{free_port()}/main": "Sentinel",
        }
        for url, told in urls.items():
            async with nothing_left():
                channels = Channels(url)
                with pytest.raises(BrokerError, match=told):
                    await channels.__aenter__()
                assert not channels.healthy
        async with channels_on(f"redis://:right@{address}") as channels:
            assert channels.healthy
            assert (await channels.publish("t", 1)).offset == 1


async def test_it_needs_no_more_rights_than_its_own_keys_and_channels() -> None:
    with Valkey() as server:
        server.command(
            "ACL", "SETUSER", "app", "on", ">app", "resetchannels", "~mine:*", "&mine:*", "+@all", "-@admin",
            "-@dangerous", "+info",
        )  # fmt: skip
        async with channels_on(f"redis://app:app@127.0.0.1:{server.port}", prefix="mine", history=5) as channels:
            async with taking(channels, "envelope", "t") as taker:
                await channels.publish("t", 1)
                await taker.has(lambda items: items == [1])
        async with channels_on(f"redis://app:app@127.0.0.1:{server.port}", prefix="yours") as channels:
            with pytest.raises(BrokerError, match=r"(?i)acl|permission"):
                await channels.publish("t", 1)
            with pytest.raises(BrokerError):
                async with channels.subscribe("t"):
                    pytest.fail("it may not be read")


async def test_a_topic_that_may_not_be_watched_tells_why_and_touches_no_other() -> None:
    with Valkey() as server:
        server.command("ACL", "SETUSER", "app", "on", ">app", "resetchannels", "~*", "&p:{ok*", "+@all")
        async with channels_on(f"redis://app:app@127.0.0.1:{server.port}", prefix="p", history=5) as channels:
            async with taking(channels, "envelope", "ok") as taker:
                with pytest.raises(BrokerError, match=r"(?i)permission"):
                    async with channels.subscribe("forbidden"):
                        pytest.fail("it may not be watched")
                assert channels.healthy
                assert channels.statistics().breaks == 0
                await channels.publish("ok", 1)
                await taker.has(lambda items: items == [1])


# What stands there


async def test_everything_there_ends_by_itself_and_the_history_has_its_length(valkey: Valkey) -> None:
    prefix = fresh()
    options = {"a": TopicOptions(history=3, ttl=60, presence=True)}
    async with channels_on(valkey.url, prefix=prefix, topics=options) as channels:
        client = await Client.connected()
        async with (
            channels.join(client.ws, "a", presence=Member("ann", {"n": 1})),
            channels.subscribe("never published"),
        ):
            for number in range(10):
                await channels.publish("a", number)
                await channels.publish("b", number)
            there = keys(valkey, prefix)
            assert {
                f"{prefix}:{{a}}:{part}" for part in ("counter", "history", "leases", "metas", "connections")
            } <= set(there)
            assert f"{prefix}:{{b}}:history" not in there
            for key in there:
                assert valkey.command("PTTL", key) > 0, key
            assert valkey.command("XLEN", f"{prefix}:{{a}}:history") == 3
            assert 0 < valkey.command("PTTL", f"{prefix}:{{a}}:history") <= 60_000
            assert valkey.command("PTTL", f"{prefix}:{{a}}:counter") >= 600_000
        await until(lambda: not any("lease" in key or "meta" in key for key in keys(valkey, prefix)))


async def test_prefixes_share_nothing(valkey: Valkey) -> None:
    async with channels_on(valkey.url, history=5) as one, channels_on(valkey.url, history=5) as other:
        async with taking(one, "envelope", "t") as mine, taking(other, "envelope", "t") as theirs:
            await one.publish("t", "mine")
            await other.publish("t", "theirs")
            assert await mine.finish() == ["mine"]
            assert await theirs.finish() == ["theirs"]


NAMES = [
    "a",
    "a}",
    "{a",
    "{a}",
    "a%7D",
    "a%257D",
    "a:counter",
    "a:history",
    "*",
    "a?",
    "[a]",
    "ä",
    "\U0001f600",
    " ",
    "a\r\n",
]


async def test_any_name_is_a_topic_of_its_own(valkey: Valkey) -> None:
    async with channels_on(valkey.url, history=5) as channels, anyio.create_task_group() as group:
        got: dict[str, list[Any]] = {}

        async def take(topic: str) -> None:
            async with taking(channels, "envelope", topic) as taker:
                got[topic] = []
                await soon(lambda: len(got) == len(NAMES))
                await channels.publish(topic, topic)
                got[topic] = await taker.finish()

        for name in NAMES:
            group.start_soon(take, name)
    assert got == {name: [name] for name in NAMES}


async def test_a_process_is_told_only_of_topics_that_have_members_in_it(valkey: Valkey) -> None:
    prefix = fresh()

    def watched() -> list[bytes]:
        return sorted(valkey.command("PUBSUB", "CHANNELS", f"{prefix}*"))

    async with channels_on(valkey.url, prefix=prefix) as channels:
        async with channels.subscribe("a"):
            async with channels.subscribe("a"), channels.subscribe("b"):
                assert watched() == [f"{prefix}:{{a}}".encode(), f"{prefix}:{{b}}".encode()]
            await until(lambda: watched() == [f"{prefix}:{{a}}".encode()])
            await channels.publish("c", 1)
        await until(lambda: not watched())


@pytest.mark.parametrize(
    "payload", ["", "ä\x00\U0001f600", b"", bytes(range(256)), {"a": [1, None]}, None, 2**53, "x" * 500_000]
)
async def test_a_payload_comes_as_it_was_live_and_from_the_history(valkey: Valkey, payload: Any) -> None:
    async with channels_on(valkey.url, history=5) as channels:
        async with channels.subscribe("t", messages=5) as subscription:
            position = await channels.publish("t", payload, key="k", exclude="nobody")
            with anyio.fail_after(DEADLINE):
                live = await anext(subscription)
        (kept,) = await channels.history("t")
        for one in (live, kept):
            assert isinstance(one, Publication)
            assert (one.message, one.position, one.key, one.exclude) == (payload, position, "k", "nobody")


@pytest.mark.parametrize("wrong", [{"key": 7}, {"exclude": 7}, {"key": "\ud800"}])
async def test_what_cannot_be_published_is_refused_and_not_lost_in_silence(
    valkey: Valkey, wrong: dict[str, Any]
) -> None:
    async with channels_on(valkey.url, history=5) as channels, channels.subscribe("t") as subscription:
        try:
            await channels.publish("t", 1, **wrong)
        except (ChannelsError, TypeError, ValueError):
            return
        with anyio.fail_after(DEADLINE):
            await anext(subscription)


async def test_what_is_for_one_user_is_kept_nowhere(valkey: Valkey) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=50) as channels:
        await channels.send_to("ann", "private")
        assert not [key for key in keys(valkey, prefix) if key.endswith(":history")]


# The counter


async def test_a_counter_that_is_lost_begins_with_an_epoch_that_nobody_has_seen(valkey: Valkey) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=5) as channels:
        seen = set()
        for _ in range(5):
            seen.add((await channels.publish("t", 1)).epoch)
            await channels.history("t")
            valkey.command("DEL", f"{prefix}:{{t}}:counter")
            seen.add((await channels._backend.read("t", None, 1)).position.epoch)
            valkey.command("DEL", f"{prefix}:{{t}}:counter")
        assert len(seen) == 10


async def test_a_history_without_its_counter_is_not_given_to_anybody(valkey: Valkey) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=5) as channels:
        for number in range(4):
            await channels.publish("t", number)
        valkey.command("DEL", f"{prefix}:{{t}}:counter")
        assert await channels.history("t") == []
        top = await channels.publish("t", "new")
        assert [(one.message, one.position) for one in await channels.history("t")] == [("new", top)]
        page = await channels._backend.read("t", Position(top.epoch, 0), 5)
        assert (page.reason, [one.message for one in page.entries]) == (None, ["new"])


async def test_r3_the_counter_of_a_topic_that_has_members_does_not_run_out(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "COUNTER_LEAST", 1500)
    prefix = fresh()
    counter = f"{prefix}:{{t}}:counter"
    async with channels_on(valkey.url, prefix=prefix, history=5, ttl=0.05, lease=0.2) as channels:
        async with taking(channels, "envelope", "t") as taker:
            await channels.publish("t", 1)
            first = valkey.command("PEXPIRETIME", counter)
            # It has been read again and again by then, since the process looks whether it has missed the last one.
            later = await until(lambda: (found := valkey.command("PEXPIRETIME", counter)) != first and found)
            assert later > first, "the counter is gone, and all members are told of a hole that is none"
            assert await taker.finish() == [1]


# What others write there


def envelope(position: Position | None, body: Any) -> bytes:
    head = b"::" if position is None else f"{position.epoch}:{position.offset}:".encode()
    return head + (body if isinstance(body, bytes) else msgspec.msgpack.encode(body))


GARBAGE = [
    b"", b":", b"::", b":::", b"x", b"\xff\xfe:1:", b"e:x:", b"e:1:\xc1", b"e:-1:", b"::P", b"::P\xff", b"::P\x91\x01",
    b"::P\x92\x92\x01\x02\x90", b"e:99999999999999999999:\x90", b"x" * 100_000,
    envelope(None, [1, "close", "no JSON"]), envelope(None, [1, "close", "{}"]),
    envelope(None, [1, "close", '{"code":1}']),
    envelope(None, [1, "close", '{"code":"x","reason":1}']), envelope(None, [1, "close", b"x"]),
    envelope(None, [1, "close", "[]"]), envelope(None, [2, "text", "x"]), envelope(None, [1, "nosuch", "x"]),
    envelope(None, [1, "text", 5]), envelope(None, [1, "bytes", "x"]), envelope(None, [1]),
    envelope(None, {"version": 1}), envelope(Position("other", 7), [1, "json", "no JSON"]),
]  # fmt: skip


@pytest.mark.parametrize("history", [0, 5])
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_what_others_write_on_the_channel_stops_nothing(valkey: Valkey, garbage: bytes, history: int) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=history) as channels:
        async with (
            taking(channels, "subscription", "t", lost=True) as plain,
            channels.subscribe("t", overflow="latest", lost=True),
            channels.subscribe("other") as other,
        ):
            client = await Client.connected()
            async with channels.join(client.ws, "t", envelope=True):
                await channels.publish("t", 1)
                assert valkey.command("PUBLISH", f"{prefix}:{{t}}", garbage) == 1
                await channels.publish("other", 2)
                with anyio.fail_after(DEADLINE):
                    assert getattr(await anext(other), "message", None) == 2
                await channels.publish("t", 3)
                items = await plain.has(lambda items: 3 in items)
            assert items[0] == 1
            assert channels.statistics().breaks == 0


async def test_a_position_that_nobody_gave_does_not_hold_a_topic_up(valkey: Valkey) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=5) as channels:
        async with taking(channels, "subscription", "t", lost=True) as taker:
            first = await channels.publish("t", 1)
            valkey.command("PUBLISH", f"{prefix}:{{t}}", envelope(Position(first.epoch, 50), [1, "json", "0"]))
            valkey.command("PUBLISH", f"{prefix}:{{t}}", envelope(Position("other", 50), [1, "json", "0"]))
            await channels.publish("t", 2)
            items = await taker.has(lambda items: 2 in items)
            assert [one for one in items if one in (1, 2)] == [1, 2]


async def test_what_cannot_be_read_in_the_history_is_a_hole_and_no_more(valkey: Valkey) -> None:
    prefix = fresh()
    history = f"{prefix}:{{t}}:history"
    async with channels_on(valkey.url, prefix=prefix, history=10) as channels:
        first = await channels.publish("t", 1)
        valkey.command("XADD", history, "1-5", "b", b"\xc1")
        valkey.command("XADD", history, "1-6", "other", "x")
        await channels.publish("t", 2)
        assert [one.message for one in await channels.history("t") if one.position == first] == [1]
        async with taking(channels, "subscription", "t", since=Position(first.epoch, 0), lost=True) as taker:
            assert taker.joined.recovered in (True, False)
            await channels.publish("t", 3)
            assert (await taker.has(lambda items: 3 in items))[-1] == 3
        assert channels.statistics().dropped["spoilt"] > 0


@pytest.mark.parametrize("how", ["the end of the history", "another type"])
async def test_publishing_goes_on_in_a_topic_that_others_have_spoilt(valkey: Valkey, how: str) -> None:
    prefix = fresh()
    history = f"{prefix}:{{t}}:history"
    async with channels_on(valkey.url, prefix=prefix, history=10) as channels:
        async with taking(channels, "subscription", "t", lost=True) as taker:
            await channels.publish("t", 1)
            if how == "the end of the history":
                valkey.command("XADD", history, "999999-0", "b", "x")
            else:
                valkey.command("SET", history, "x")
            with_error = 0
            for number in (2, 3):
                try:
                    await channels.publish("t", number)
                except BrokerError:
                    with_error += 1
            assert with_error == 0, "no publication is possible before the key runs out"
            await taker.has(lambda items: 3 in items)


async def test_a_topic_that_cannot_be_read_holds_no_other_up_after_a_break(valkey: Valkey) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=10) as channels:
        async with channels.subscribe("a"), taking(channels, "subscription", "b") as taker:
            valkey.command("SET", f"{prefix}:{{a}}:history", "x")
            valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
            await soon(lambda: channels.statistics().breaks == 1)
            await soon(lambda: channels.healthy)
            await channels.publish("b", 1)
            await taker.has(lambda items: items == [1])


async def test_scripts_that_the_server_has_forgotten_are_told_again(valkey: Valkey) -> None:
    async with channels_on(valkey.url, history=10) as channels:
        client = await Client.connected()
        for number in (1, 2, 3):
            valkey.command("SCRIPT", "FLUSH")
            assert (await channels.publish("t", number)).offset == number
            valkey.command("SCRIPT", "FLUSH")
            async with channels.join(client.ws, "t", presence=Member("ann")):
                assert [one.key for one in await channels.presence("t")] == ["ann"]
        assert channels.statistics().breaks == 0


async def test_a_second_reader_sees_all_and_takes_nothing(valkey: Valkey) -> None:
    prefix = fresh()
    async with (
        channels_on(valkey.url, prefix=prefix, history=100) as channels,
        backend_on(valkey.url, prefix) as (
            backend,
            recorder,
        ),
    ):
        await backend.watch("t")
        async with taking(channels, "envelope", "t") as taker:
            positions = [await channels.publish("t", number) for number in range(50)]
            backend_kept = valkey.command("XRANGE", f"{prefix}:{{t}}:history", "-", "+")
            assert await taker.finish() == list(range(50))
        await soon(lambda: len(recorder.got) == 51)
        assert [one.position for one in recorder.got[:50]] == positions
        assert len(backend_kept) == 50


# Who is there


async def test_r12_who_asks_who_is_there_keeps_the_others_from_no_news(valkey: Valkey) -> None:
    prefix = fresh()
    options = {"t": TopicOptions(presence=True)}
    async with channels_on(valkey.url, prefix=prefix, topics=options, lease=5) as channels:
        client = await Client.connected()
        async with channels.join(client.ws, "t", presence=Member("ann")):
            # As a process that has died: its lease has run out.
            ends = int(time.time() * 1000) - 1
            valkey.command("ZADD", f"{prefix}:{{t}}:leases", ends, "dead:bob")
            valkey.command("HSET", f"{prefix}:{{t}}:connections", "bob", 1)
            valkey.command("HSET", f"{prefix}:{{t}}:metas", "bob", b"null")
            assert [one.key for one in await channels.presence("t")] == ["ann"]
            frames = await client.until(lambda frames: any(frame["left"] == ["bob"] for frame in frames))
            assert [key for frame in frames for key in frame["left"]] == ["bob"]


async def test_r12_who_only_looks_on_is_told_of_one_whose_process_has_died(valkey: Valkey) -> None:
    prefix = fresh()
    options = {"t": TopicOptions(presence=True)}
    async with channels_on(valkey.url, prefix=prefix, topics=options, lease=0.3) as channels:
        client = await Client.connected()
        async with channels.join(client.ws, "t"):
            ends = int(time.time() * 1000) - 1
            valkey.command("ZADD", f"{prefix}:{{t}}:leases", ends, "dead:bob")
            valkey.command("HSET", f"{prefix}:{{t}}:connections", "bob", 1)
            valkey.command("HSET", f"{prefix}:{{t}}:metas", "bob", b"null")
            await client.until(lambda frames: any(frame["left"] == ["bob"] for frame in frames))


async def test_r12_who_leaves_while_leases_are_renewed_does_not_come_back(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"*": TopicOptions(presence=True)}
    async with channels_on(valkey.url, topics=options, lease=0.3) as channels:
        first, second = await Client.connected(), await Client.connected()
        renewed, go_on = anyio.Event(), anyio.Event()
        renew_one = channels._backend._presence  # type: ignore[attr-defined]

        async def held_up(what: str, present: Any, *rest: Any) -> Any:
            if what == "renew" and not renewed.is_set():
                renewed.set()
                await go_on.wait()
            return await renew_one(what, present, *rest)

        monkeypatch.setattr(channels._backend, "_presence", held_up)
        async with channels.join(first.ws, "a", presence=Member("ann")):
            async with channels.join(second.ws, "b", presence=Member("bob")):
                with anyio.fail_after(DEADLINE):
                    await renewed.wait()
            go_on.set()
            backend = channels._backend
            renewals: list[Any] = []
            plain = backend.renew

            async def counted(*arguments: Any) -> None:
                await plain(*arguments)
                renewals.append(arguments)

            monkeypatch.setattr(backend, "renew", counted)
            await soon(lambda: renewals)
            assert await channels.presence("b") == []


async def test_r12_presence_comes_back_after_the_server_has_lost_it() -> None:
    with Valkey() as server:
        async with channels_on(server.url, lease=0.6) as channels:
            client = await Client.connected()
            async with channels.join(client.ws, "t", presence=Member("ann", [1])):
                server.command("FLUSHALL")

                async def is_back() -> bool:
                    return [(one.key, one.meta) for one in await channels.presence("t")] == [("ann", [1])]

                await until(is_back)
            assert await channels.presence("t") == []


# Life


async def test_r13_they_can_be_opened_again_though_they_were_closed_while_the_broker_was_gone() -> None:
    with Valkey() as server:
        channels = Channels(server.url)
        for _ in range(2):
            async with nothing_left(), channels:
                assert channels.healthy
                await channels.publish("t", 1)
                server.kill()
                await soon(lambda: not channels.healthy)
            assert not channels.healthy
            server.start()


async def test_r13_a_join_that_is_given_up_at_any_moment_leaves_no_subscription(valkey: Valkey) -> None:
    prefix = fresh()
    async with channels_on(valkey.url, prefix=prefix, history=5) as channels:
        for turns in range(12):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def join() -> None:
                        client = await Client.connected()
                        async with channels.join(client.ws, "t", history=3, presence=Member("ann")):
                            await anyio.sleep_forever()

                    group.start_soon(join)
                    for _ in range(turns * 3):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
        await until(lambda: not valkey.command("PUBSUB", "CHANNELS", f"{prefix}*"))
        assert await channels.presence("t") == []
        async with taking(channels, "envelope", "t") as taker:
            await channels.publish("t", 1)
            assert await taker.finish() == [1]


async def test_what_waits_when_they_are_closed_ends(valkey: Valkey) -> None:
    recorder = Recorder()
    async with nothing_left():
        backend = redis.RedisBackend(valkey.url, prefix=fresh())
        await backend.open(recorder)
        tasks = [asyncio.create_task(backend.publish(Publication("t", None, "json", "1"), KEEP)) for _ in range(50)]
        tasks += [asyncio.create_task(backend.watch(f"t{number}")) for number in range(50)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await backend.close()
        async with asyncio.timeout(DEADLINE):
            found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, ChannelsError | Position | None) for one in found), found
        assert recorder.told == []
