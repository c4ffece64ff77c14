"""One topic as a process sees it: no hole that its members are not told of."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws.channels.backend import Keep, Page
from asgiws.channels.publication import Position, Publication
from asgiws.channels.topics import MOST_HELD_BACK, Topic
from tests.channels.sockets import accepted, line_of, quiet, stall
from tests.channels.test_members import Room
from tests.fakes import soon


def at(offset: int, epoch: str = "e") -> Publication:
    return Publication("t", Position(epoch, offset), "json", str(offset))


class Listener:
    """A member that notes what it is told: numbers for offsets, and holes."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def take(self, publication: Publication) -> None:
        self.heard.append(publication.message)

    def missed(self, count: int | None, reason: str) -> None:
        self.heard.append((count, reason))

    def closed(self) -> None:
        self.heard.append("closed")


def follow(topic: Any, listener: Listener) -> None:
    topic.others[listener] = None


def topic_at(offset: int = 0, *, history: int = 0) -> tuple[Topic, Listener]:
    topic = Topic("t", Keep(history, 60), tells_presence=False)
    listener = Listener()
    follow(topic, listener)
    assert not topic.catch_up(Page(Position("e", offset), []))
    return topic, listener


def deliver(topic: Topic, *offsets: int) -> list[bool]:
    return [topic.deliver(at(offset)) for offset in offsets]


def test_what_follows_is_given() -> None:
    topic, listener = topic_at(3)
    assert deliver(topic, 4, 5, 6) == [False] * 3
    assert listener.heard == [4, 5, 6]
    assert topic.position == Position("e", 6)
    assert topic.holes == 0


def test_what_came_before_the_position_is_known_is_held_back() -> None:
    topic = Topic("t", Keep(0, 60), tells_presence=False)
    listener = Listener()
    follow(topic, listener)
    assert deliver(topic, 2, 3, 4) == [False] * 3
    assert listener.heard == []
    assert not topic.catch_up(Page(Position("e", 3), []))
    assert listener.heard == [4]


def test_nothing_is_given_twice() -> None:
    topic, listener = topic_at(3)
    assert deliver(topic, 3, 4, 4, 2, 5, 1) == [False] * 6
    assert listener.heard == [4, 5]


def test_a_hole_without_a_history_is_told() -> None:
    topic, listener = topic_at()
    assert deliver(topic, 1, 4, 5) == [False] * 3
    assert listener.heard == [1, (2, "gap"), 4, 5]
    assert topic.holes == 2


def test_a_hole_is_filled_from_the_history() -> None:
    topic, listener = topic_at(history=9)
    assert deliver(topic, 1, 4) == [False, True]
    assert deliver(topic, 5) == [False]
    assert listener.heard == [1]
    assert not topic.catch_up(Page(Position("e", 5), [at(2), at(3), at(4), at(5)]))
    assert deliver(topic, 6) == [False]
    assert listener.heard == [1, 2, 3, 4, 5, 6]
    assert topic.holes == 0


@pytest.mark.parametrize("reason", ["trimmed", "expired", "limit"])
def test_a_hole_that_the_history_cannot_fill_is_told(reason: str) -> None:
    topic, listener = topic_at(history=9)
    assert deliver(topic, 1, 4, 6) == [False, True, False]
    assert topic.catch_up(Page(Position("e", 5), [], reason))
    assert listener.heard == [1, (2, reason), 4]  # which came meanwhile; the fifth may still be read
    assert not topic.catch_up(Page(Position("e", 5), [at(5)]))
    assert listener.heard == [1, (2, reason), 4, 5, 6]
    assert topic.holes == 2


@pytest.mark.parametrize("reason", ["trimmed", "limit"])
def test_what_is_still_kept_comes_after_the_hole(reason: str) -> None:
    topic, listener = topic_at(history=2)
    assert deliver(topic, 1, 7, 8) == [False, True, False]
    assert not topic.catch_up(Page(Position("e", 7), [at(6), at(7)], reason))
    assert listener.heard == [1, (4, reason), 6, 7, 8]
    assert topic.holes == 4


@pytest.mark.parametrize("history", [0, 9])
def test_a_new_epoch_is_told(history: int) -> None:
    topic, listener = topic_at(7, history=history)
    assert topic.deliver(at(1, "f"))
    assert not topic.catch_up(Page(Position("f", 2), [], "epoch"))
    assert not topic.deliver(at(2, "f"))
    assert not topic.deliver(at(3, "f"))
    # Without a history the second is told to be missing: nobody knows that it is only late.
    assert listener.heard == [(None, "epoch"), 1, 2 if history else (1, "gap"), 3]


def test_a_history_that_is_behind_is_read_again() -> None:
    topic, listener = topic_at(history=9)
    assert deliver(topic, 1, 5, 6) == [False, True, False]
    assert topic.catch_up(Page(Position("e", 3), [at(2), at(3)]))
    assert listener.heard == [1, 2, 3]
    assert not topic.catch_up(Page(Position("e", 6), [at(4), at(5), at(6)]))
    assert listener.heard == [1, 2, 3, 4, 5, 6]


def test_hold_holds_back_once() -> None:
    topic, listener = topic_at(history=9)
    assert topic.hold()
    assert not topic.hold()
    deliver(topic, 1)
    assert listener.heard == []
    assert topic.catch_up(Page(Position("e", 0), []))  # the second who asked may know of more than was read
    assert listener.heard == [1]
    assert not topic.catch_up(Page(Position("e", 1), []))
    assert topic.hold()


def test_what_is_held_back_is_bounded() -> None:
    topic, listener = topic_at()
    topic.hold()
    deliver(topic, *range(1, MOST_HELD_BACK + 1))
    assert topic.held is not None
    assert len(topic.held) == MOST_HELD_BACK
    deliver(topic, MOST_HELD_BACK + 1)
    assert topic.held == []
    deliver(topic, MOST_HELD_BACK + 2)
    topic.catch_up(Page(Position("e", 0), []))
    assert listener.heard == [(MOST_HELD_BACK + 1, "gap"), MOST_HELD_BACK + 2]


def test_what_has_no_position_moves_nothing() -> None:
    topic, listener = topic_at(3)
    assert not topic.deliver(Publication("t", None, "presence", '"came"'))
    assert listener.heard == []  # its members are not to be told
    topic.tells_presence = True
    assert not topic.deliver(Publication("t", None, "presence", '"came"'))
    assert listener.heard == ["came"]
    assert topic.position == Position("e", 3)


@given(st.lists(st.sampled_from(["next", "again", "skip", "late", "read"]), max_size=30), st.sampled_from([0, 4]))
def test_what_is_given_has_no_hole_that_is_not_told(steps: list[str], history: int) -> None:
    """A broker that leaves out, doubles and delays, and a history that is trimmed."""
    topic, listener = topic_at(history=history)
    top, late, reads = 0, [], False

    def read() -> bool:
        position = topic.position
        assert position is not None
        missed = top - position.offset
        if missed > history:
            kept = [at(n) for n in range(top - history + 1, top + 1)]
            return topic.catch_up(Page(Position("e", top), kept, "trimmed"))
        return topic.catch_up(Page(Position("e", top), [at(n) for n in range(position.offset + 1, top + 1)]))

    for step in steps:
        if step == "next":
            top += 1
            reads |= topic.deliver(at(top))
        elif step == "again" and top:
            reads |= topic.deliver(at(top))
        elif step == "skip":
            top += 1
            late.append(top)
        elif step == "late" and late:
            reads |= topic.deliver(at(late.pop(0)))
        elif step == "read" and reads:
            reads = read()
    while topic.held is not None:
        read()
    last = 0
    for one in listener.heard:
        if isinstance(one, tuple):
            last += one[0]
        else:
            last += 1
            assert one == last
    assert topic.position is not None
    assert topic.position.offset == last


# Sockets


@pytest.mark.anyio
async def test_sockets_and_others_get_it_and_whether_somebody_had_to_wait() -> None:
    topic, listener = topic_at()
    one, two = [Room(*await accepted("instant")) for _ in range(2)]
    fast = one.member.outbox.eager
    for room in (one, two):
        topic.sockets[room.member] = None
    assert set(topic.members) == {one.member, two.member, listener}
    deliver(topic, 1)
    assert topic.crowded is not fast
    resume = stall(one.server)
    deliver(topic, 2)
    await soon(lambda: one.server.sending)
    deliver(topic, 3)
    assert topic.crowded
    resume()
    await quiet(one.ws)
    await quiet(two.ws)
    assert one.server.texts == two.server.texts == ["1", "2", "3"]
    assert listener.heard == [1, 2, 3]


@pytest.mark.anyio
async def test_who_is_excluded_gets_nothing() -> None:
    topic, _ = topic_at()
    one, two = [Room(*await accepted()) for _ in range(2)]
    for room in (one, two):
        topic.sockets[room.member] = None
    topic.deliver(Publication("t", Position("e", 1), "text", "a", None, one.ws.id))
    await quiet(two.ws)
    assert (one.server.texts, two.server.texts) == ([], ["a"])


@pytest.mark.anyio
async def test_an_order_to_close_closes_sockets() -> None:
    topic, _ = topic_at()
    room = Room(*await accepted())
    topic.sockets[room.member] = None
    topic.deliver(Publication("t", None, "close", '{"code":3001,"reason":"out"}'))
    await soon(lambda: room.server.closed)
    assert room.server.closed == (3001, "out")
    await quiet(room.ws)
    assert line_of(room.ws).frames == 0


@pytest.mark.anyio
async def test_who_leaves_while_it_is_given_does_no_harm() -> None:
    topic, first = topic_at()

    class Leaving(Listener):
        def take(self, publication: Publication) -> None:
            super().take(publication)
            others: Any = topic.others
            del others[self]

    leaving, last = Leaving(), Listener()
    follow(topic, leaving)
    follow(topic, last)
    deliver(topic, 1, 2)
    assert (first.heard, leaving.heard, last.heard) == ([1, 2], [1], [1, 2])
