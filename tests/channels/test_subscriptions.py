"""A loop over what comes in a topic."""

import collections
from typing import Any

import anyio
import pytest

from asgiws.channels import Joined, Lost, Position, Publication, SlowSubscriberError, Subscription, latest
from asgiws.channels.backend import Page
from asgiws.channels.policies import Policy
from asgiws.channels.publication import payload_of
from tests.fakes import DEADLINE, soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

NOWHERE = Position("e", 0)


def publication(offset: int | None, message: Any = None, **more: Any) -> Publication:
    position = None if offset is None else Position("e", offset)
    return Publication("room", position, *payload_of(str(offset) if message is None else message), **more)


class Room:
    """One subscription, without a hub."""

    def __init__(self, overflow: Any = "close", *, begun: bool = True, **options: Any) -> None:
        self.tally: collections.Counter[str] = collections.Counter()
        options = {"tells": False, "strict": False, "messages": 3, "size": 100} | options
        self.subscription = Subscription("room", self.tally, policy=Policy(overflow), **options)
        self.offset = 0
        if begun:
            self.subscription.begin(Page(NOWHERE, []), Joined(NOWHERE))

    def publish(self, *messages: Any, **more: Any) -> None:
        for message in messages:
            self.offset += 1
            self.subscription.take(publication(self.offset, message, **more))

    async def next(self) -> Any:
        with anyio.fail_after(DEADLINE):
            one = await anext(self.subscription)
        return one if isinstance(one, Lost) else one.message

    async def all(self) -> list[Any]:
        return [await self.next() for _ in range(len(self.subscription._queue))]


def lost(count: int | None, reason: str = "overflow") -> Lost:
    return Lost("room", count, reason)


async def test_what_comes_in_order() -> None:
    room = Room()
    room.publish("a", b"b", {"c": 1})
    assert await room.all() == ["a", b"b", {"c": 1}]
    assert room.subscription._bytes == 0


async def test_a_loop_waits_for_the_next() -> None:
    room = Room()
    seen: list[Any] = []

    async def loop() -> None:
        async for one in room.subscription:
            assert isinstance(one, Publication)
            seen.append(one.message)

    async with anyio.create_task_group() as group:
        group.start_soon(loop)
        for message in "abcdef":
            room.publish(message)
            await soon(lambda: len(seen) == room.offset)
        group.cancel_scope.cancel()
    assert seen == list("abcdef")


async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    room = Room()
    for message in "abc":
        with anyio.move_on_after(0):
            await anext(room.subscription)
        room.publish(message)
        assert await room.next() == message


async def test_the_history_comes_first_then_what_came_meanwhile_and_nothing_twice() -> None:
    room = Room(begun=False, messages=10)
    for offset in (2, 3, 4, 5):
        room.subscription.take(publication(offset, f"live {offset}"))
    joined = Joined(NOWHERE, recovered=True)
    room.subscription.begin(Page(Position("e", 3), [publication(n) for n in (1, 2, 3)]), joined)
    room.subscription.take(publication(6, "live 6"))
    assert await room.all() == ["1", "2", "3", "live 4", "live 5", "live 6"]
    assert room.subscription.joined is joined


async def test_what_has_no_position_always_comes() -> None:
    room = Room(begun=False)
    room.subscription.begin(Page(Position("e", 3), []), Joined(NOWHERE))
    room.subscription.take(publication(None, "change"))
    room.subscription.take(publication(3, "old"))
    room.subscription.take(publication(4, "new"))
    assert await room.all() == ["change", "new"]


@pytest.mark.parametrize("limits", [{"messages": 3}, {"messages": 9, "size": 3}], ids=["messages", "bytes"])
async def test_close(limits: dict[str, Any]) -> None:
    room = Room("close", **limits)
    room.publish("1", "2", "3")
    assert room.tally == {}
    room.publish("4")
    assert room.tally == {"overflow": 1}
    assert await room.all() == ["1", "2", "3"]
    room.publish("5")
    with pytest.raises(SlowSubscriberError, match="'room' has read too slowly"):
        await room.next()


async def test_close_wakes_who_waits() -> None:
    room = Room("close", messages=1, size=0)
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(SlowSubscriberError):
                await room.next()

        group.start_soon(wait)
        await soon(lambda: room.subscription._arrival)
        room.publish("too big")


@pytest.mark.parametrize("tells", [False, True])
async def test_drop_newest(tells: bool) -> None:
    room = Room("drop_newest", tells=tells)
    room.publish("1", "2", "3", "4", "5")
    assert room.tally == {"overflow": 2}
    assert await room.all() == ["1", "2", "3", *([lost(2)] if tells else [])]
    room.publish("6")
    assert await room.next() == "6"


@pytest.mark.parametrize("tells", [False, True])
async def test_drop_oldest(tells: bool) -> None:
    room = Room("drop_oldest", tells=tells)
    room.publish("1", "2", "3")
    assert room.tally == {}
    room.publish("4")
    assert room.tally == {"overflow": 1}
    assert await room.all() == [*([lost(1)] if tells else []), "2", "3", "4"]
    room.publish("5")
    assert await room.next() == "5"


async def test_drop_oldest_by_bytes() -> None:
    room = Room("drop_oldest", messages=9, size=10)
    room.publish("aaaa", "bbbb", "cc", "dddd")
    assert room.subscription._bytes == 10
    assert await room.all() == ["bbbb", "cc", "dddd"]
    assert room.tally == {"overflow": 1}


async def test_latest() -> None:
    room = Room("latest")
    room.publish("1", "two")
    assert room.subscription._bytes == 3
    room.publish("3", key="a")
    room.publish("4", key="a")
    assert await room.all() == ["two", "4"]
    assert room.tally == {"latest": 2}
    assert room.subscription._bytes == 0


async def test_latest_by_a_function() -> None:
    room = Room(latest(lambda message: message["id"]))
    for number, key in enumerate("abab"):
        room.publish({"id": key, "n": number})
    assert await room.all() == [{"id": "a", "n": 2}, {"id": "b", "n": 3}]


async def test_latest_drops_the_oldest_key_when_there_are_too_many() -> None:
    room = Room("latest", messages=2)
    for key in "abc":
        room.publish(key, key=key)
    assert await room.all() == ["b", "c"]
    assert room.tally == {"overflow": 1}


@pytest.mark.parametrize("tells", [False, True])
async def test_what_is_missing_is_told_in_its_place(tells: bool) -> None:
    room = Room(tells=tells)
    room.publish("1")
    room.subscription.missed(2, "gap")
    room.publish("4")
    room.subscription.missed(None, "epoch")
    assert await room.all() == (["1", lost(2, "gap"), "4", lost(None, "epoch")] if tells else ["1", "4"])
    assert room.tally == {"gap": 2, "epoch": 1}


async def test_what_is_missing_wakes_who_waits() -> None:
    room = Room(tells=True)
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            assert await room.next() == lost(1, "gap")

        group.start_soon(wait)
        await soon(lambda: room.subscription._arrival)
        room.subscription.missed(1, "gap")


async def test_too_much_while_the_history_is_read() -> None:
    room = Room(begun=False)
    room.publish("1", "2", "3")
    assert not room.subscription._failure
    room.publish("4")
    room.subscription.begin(Page(NOWHERE, []), Joined(NOWHERE))
    with pytest.raises(SlowSubscriberError):
        await room.next()
