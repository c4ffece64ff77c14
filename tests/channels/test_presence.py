"""Who is present: entered and left with the block, seen off after a grace, and told as far as it can be read."""

import logging
from typing import Any

import anyio
import pytest

from asgiws.channels import BrokerError, Channels, ChannelsError, Member, TopicOptions
from asgiws.channels.memory import MemoryBackend
from asgiws.channels.presence import Presence
from tests.channels.contract import Client
from tests.fakes import soon

pytestmark = pytest.mark.anyio

GRACE = TopicOptions(presence=True, grace=60)


class Broken(MemoryBackend):
    """A backend that fails at one of its tasks."""

    fails = ""

    async def enter(self, present: Any, lease: float) -> None:
        if self.fails == "enter":
            raise BrokerError("the broker is gone")
        await super().enter(present, lease)

    async def leave(self, present: Any) -> None:
        if self.fails == "leave":
            raise BrokerError("the broker is gone")
        await super().leave(present)

    async def present(self, topic: str) -> Any:
        if self.fails == "present":
            raise BrokerError("the broker is gone")
        return await super().present(topic)


async def present(backend: MemoryBackend) -> tuple[Presence, list[Any]]:
    """Somebody's presence, and the jobs that it would run beside."""
    jobs: list[Any] = []
    await backend.open(Any)  # type: ignore[arg-type]

    def beside(job: Any) -> bool:
        jobs.append(job)
        return True

    return Presence(backend, 30, beside), jobs


async def test_who_is_present_is_here_as_long_as_the_block_runs() -> None:
    client = await Client.connected()
    presence, jobs = await present(MemoryBackend())
    async with presence.of(client.ws, "t", Member("anna", [1]), TopicOptions(), 100):
        (here,) = presence.here
        assert (here.topic, here.key, here.meta, here.tells, here.grace) == ("t", "anna", b"[1]", False, 0)
        assert here.connection.startswith(f"{client.ws.id}.")
        assert await presence.everywhere("t", pytest.fail) == [Member("anna", [1])]
    assert (presence.here, jobs) == ({}, [])
    assert await presence.everywhere("t", pytest.fail) == []


async def test_a_meta_has_an_end() -> None:
    client = await Client.connected()
    presence, _ = await present(MemoryBackend())
    with pytest.raises(ChannelsError, match="the meta of a member has at most 5 bytes"):
        async with presence.of(client.ws, "t", Member("anna", "abcd"), TopicOptions(), 5):
            pytest.fail("it is too large")
    assert presence.here == {}


@pytest.mark.parametrize("key", ["", "x" * 256, 7])
async def test_keys_that_cannot_be(key: Any) -> None:
    client = await Client.connected()
    presence, _ = await present(MemoryBackend())
    with pytest.raises(ChannelsError, match="the key of a member"):
        async with presence.of(client.ws, "t", Member(key), TopicOptions(), 5):
            pytest.fail("it cannot be")


async def test_who_cannot_enter_is_not_here() -> None:
    client, backend = await Client.connected(), Broken()
    backend.fails = "enter"
    presence, _ = await present(backend)
    with pytest.raises(BrokerError):
        async with presence.of(client.ws, "t", Member("anna"), TopicOptions(), 5):
            pytest.fail("the broker is gone")
    assert presence.here == {}


async def test_who_cannot_tell_that_it_leaves_leaves_all_the_same() -> None:
    client, backend = await Client.connected(), Broken()
    presence, jobs = await present(backend)
    async with presence.of(client.ws, "t", Member("anna"), GRACE, 5):
        backend.fails = "leave"
    assert (presence.here, jobs) == ({}, [])


async def test_one_job_sees_off_all_who_leave_a_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    client, backend = await Client.connected(), Broken()
    presence, jobs = await present(backend)
    for _ in range(3):
        async with presence.of(client.ws, "t", Member("anna"), GRACE, 5):
            pass
    (see_off,) = jobs
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        backend.fails = "present" if len(slept) == 1 else ""  # a look that fails is not the last one
        if len(slept) < 3:
            presence.leaving["t"] = True

    monkeypatch.setattr(anyio, "sleep", sleep)
    await see_off()
    assert (len(slept), presence.leaving) == (3, {})
    assert all(60 < seconds < 61 for seconds in slept)


async def test_a_meta_that_cannot_be_read_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "asgiws")
    client = await Client.connected()
    presence, _ = await present(MemoryBackend())
    spoilt: list[int] = []
    async with presence.of(client.ws, "t", Member("anna"), TopicOptions(), 5):
        backend: Any = presence._backend
        backend._present["t"]["bert"] = {"1": b"{"}
        assert await presence.everywhere("t", lambda: spoilt.append(1)) == [Member("anna")]
    assert spoilt == [1]
    assert "the meta of 'bert' could not be read" in caplog.text


async def test_r12_nobody_waits_for_a_grace_when_the_channels_are_closed() -> None:
    async with Channels(topics={"*": TopicOptions(presence=True, grace=60)}) as channels:
        client = await Client.connected()
        async with channels.join(client.ws, "t", presence=Member("anna")):
            pass
        assert await channels.presence("t") == [Member("anna")]
        assert len(channels._scopes) == 2
    await soon(lambda: not channels._scopes)
    async with channels:
        assert await channels.presence("t") == []


async def test_r12_who_leaves_while_the_others_are_seen_off_is_seen_off_too() -> None:
    async with Channels(topics={"*": TopicOptions(presence=True, grace=0.1)}) as channels:
        sees, client = await Client.connected(), await Client.connected()
        async with channels.join(sees.ws, "t", envelope=True):
            for name in ("anna", "bert"):
                async with channels.join(client.ws, "t", presence=Member(name)):
                    if name == "bert":
                        await sees.until(lambda frames: any(frame.get("left") == ["anna"] for frame in frames))
            await sees.until(lambda frames: any(frame.get("left") == ["bert"] for frame in frames))
