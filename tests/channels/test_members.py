"""A socket in a topic: what it gets, and what becomes of publications for which there is no room."""

import collections
import json
from collections.abc import Callable
from typing import Any

import pytest

from asgiws.channels.backend import Page, presence_change
from asgiws.channels.members import Membership
from asgiws.channels.policies import Joined, Lost, Policy, latest, same
from asgiws.channels.publication import Position, Publication, payload_of
from tests.channels.sockets import WAYS, Socket, accepted, carriers, line_of, nothing_left, quiet, stall
from tests.fakes import FakeServer, soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

each_way = pytest.mark.parametrize("way", WAYS)
NOWHERE = Position("e", 0)


def publication(offset: int | None, message: Any, **more: Any) -> Publication:
    position = None if offset is None else Position("e", offset)
    return Publication("room", position, *payload_of(message), **more)


class Room:
    """One socket in one topic, without a hub."""

    def __init__(self, ws: Socket, server: FakeServer, **options: Any) -> None:
        self.ws = ws
        self.server = server
        self.tally: collections.Counter[str] = collections.Counter()
        self.offset = 0
        self.member = self.join(**options)

    def join(self, overflow: Any = "close", *, begun: bool = True, strict: bool = False, **options: Any) -> Membership:
        options = {"transform": None, "envelope": False, "notice": None} | options
        member = Membership(self.ws, "room", self.tally, policy=Policy(overflow), strict=strict, **options)
        if begun:
            member.begin(Page(NOWHERE, []), Joined(NOWHERE))
        return member

    def publish(self, *messages: Any, **more: Any) -> None:
        for message in messages:
            self.offset += 1
            self.member.take(publication(self.offset, message, **more))

    async def stalled(self) -> Callable[[], None]:
        """Have the client not read, with one send under way."""
        resume = stall(self.server)
        self.member.outbox.send(self.member, "text", "0", 1)
        await soon(lambda: self.server.sending)
        return resume

    @property
    def frames(self) -> list[str]:
        """What waits."""
        return [frame.data for frame in line_of(self.ws).of_owner(self.member)]

    def said(self) -> list[Any]:
        """What the client has got: JSON objects decoded, text as it is."""
        return [json.loads(text) if text[:1] in "{[" and text else text for text in self.server.texts]


async def room(way: str = "yielding", overflow: Any = "close", limits: Any = None, **options: Any) -> Room:
    ws, server = await accepted(way, **(limits or {}))
    return Room(ws, server, overflow=overflow, **options)


def lost(count: int | None, reason: str = "overflow") -> dict[str, Any]:
    return {"type": "lost", "topic": "room", "count": count, "reason": reason}


# What it gets


async def test_payloads_of_each_kind() -> None:
    one = await room()
    one.publish("text", b"bytes", {"a": [1]}, "é", "")
    await quiet(one.ws)
    assert one.server.sent == [
        {"type": "websocket.send", "text": "text"}, {"type": "websocket.send", "bytes": b"bytes"},
        {"type": "websocket.send", "text": '{"a":[1]}'}, {"type": "websocket.send", "text": "é"},
        {"type": "websocket.send", "text": ""},
    ]  # fmt: skip


async def test_payloads_in_envelopes() -> None:
    one = await room(envelope=True)
    one.publish("text", b"\0\xff", {"a": [1]}, '"é')
    one.member.take(publication(None, "nowhere"))
    await quiet(one.ws)
    frame = {"type": "message", "topic": "room"}
    assert one.said() == [
        {"type": "joined", "topic": "room", "position": "e-0"}, {**frame, "position": "e-1", "data": "text"},
        {**frame, "position": "e-2", "data": "AP8=", "encoding": "base64"},
        {**frame, "position": "e-3", "data": {"a": [1]}}, {**frame, "position": "e-4", "data": '"é'},
        {**frame, "data": "nowhere"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("joined", "more"),
    [
        (Joined(NOWHERE), {}),
        (Joined(NOWHERE, recovered=True), {"recovered": True}),
        (Joined(NOWHERE, recovered=False, reason="ahead"), {"recovered": False, "reason": "ahead"}),
    ],
)
async def test_an_envelope_begins_with_what_the_membership_begins_with(joined: Joined, more: dict[str, Any]) -> None:
    one = await room()
    member = one.join(begun=False, envelope=True)
    member.begin(Page(Position("e", 2), [publication(1, "a"), publication(2, "b")]), joined)
    await quiet(one.ws)
    assert member.joined is joined
    first, *others = one.said()
    assert first == {"type": "joined", "topic": "room", "position": "e-0", **more}
    assert [frame["data"] for frame in others] == ["a", "b"]


async def test_the_history_comes_first_then_what_came_meanwhile_and_nothing_twice() -> None:
    one = await room()
    one.member = one.join(begun=False)
    for offset in range(2, 6):
        one.member.take(publication(offset, f"live {offset}"))
    assert one.server.texts == []
    one.member.begin(Page(Position("e", 3), [publication(n, f"old {n}") for n in (1, 2, 3)]), Joined(NOWHERE))
    one.member.take(publication(6, "live 6"))
    await quiet(one.ws)
    assert one.server.texts == ["old 1", "old 2", "old 3", "live 4", "live 5", "live 6"]


async def test_a_new_epoch_is_no_repetition() -> None:
    one = await room()
    one.member = one.join(begun=False)
    one.member.take(Publication("room", Position("f", 1), "text", "new"))
    one.member.begin(Page(Position("e", 3), []), Joined(NOWHERE))
    await quiet(one.ws)
    assert one.server.texts == ["new"]


async def test_a_transform_makes_what_is_sent() -> None:
    seen: list[Any] = []

    def transform(made: Publication) -> Any:
        seen.append(made.message)
        return {1: None, 2: "text", 3: b"bytes", 4: {"a": 1}}[made.message]

    for envelope in (False, True):
        one = await room(transform=transform, envelope=envelope)
        one.publish(1, 2, 3, 4)
        await quiet(one.ws)
        if not envelope:
            assert [event.get("text", event.get("bytes")) for event in one.server.sent] == ["text", b"bytes", '{"a":1}']
        else:
            assert [(f["position"], f["data"]) for f in one.said()[1:]] == [
                ("e-2", "text"), ("e-3", "Ynl0ZXM="), ("e-4", {"a": 1}),
            ]  # fmt: skip
    assert seen == [1, 2, 3, 4] * 2


@pytest.mark.parametrize(
    "makes", [lambda _: 1 / 0, lambda _: object(), lambda _: "\ud800"], ids=["raises", "no", "bad"]
)
async def test_a_transform_that_fails_costs_one_publication(
    makes: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    one = await room(transform=lambda made: makes(made) if made.data == "bad" else made.data)
    one.publish("1", "bad", "2")
    await quiet(one.ws)
    assert one.server.texts == ["1", "2"]
    assert one.tally == {"error": 1}
    assert "could not be made ready" in caplog.text
    assert "bad" not in caplog.text.partition("Traceback")[0]  # no payload


async def test_a_key_that_fails_costs_one_publication() -> None:
    one = await room(overflow=latest(lambda message: message["id"]))
    one.publish({"id": 1}, "no object", {"id": 2})
    await quiet(one.ws)
    assert one.said() == [{"id": 1}, {"id": 2}]
    assert one.tally == {"error": 1}


async def test_who_is_excluded_gets_nothing() -> None:
    one = await room()
    one.publish("1", exclude=one.ws.id)
    one.publish("2", exclude="another")
    await quiet(one.ws)
    assert one.server.texts == ["2"]


async def test_presence_is_sent_as_it_is() -> None:
    one = await room(transform=lambda _: 1 / 0, envelope=True, overflow="latest")
    one.member.take(presence_change("room", {"me": b"1"}, ["you"]))
    await quiet(one.ws)
    change = {"type": "presence", "topic": "room", "joined": [{"key": "me", "meta": 1}], "left": ["you"]}
    assert one.said()[1:] == [change]
    assert one.tally == {}


async def test_an_order_to_close_closes() -> None:
    one = await room()
    one.member.take(Publication("room", None, "close", '{"code":3009,"reason":"out"}'))
    await soon(lambda: one.server.closed)
    assert one.server.closed == (3009, "out")
    await nothing_left(one.ws)


@pytest.mark.parametrize(
    ("options", "plain"),
    [({}, True), ({"envelope": True}, False), ({"transform": str}, False), ({"overflow": "latest"}, False),
     ({"overflow": "drop_oldest"}, True), ({"notice": same}, True)],
)  # fmt: skip
async def test_who_takes_publications_as_they_are(options: dict[str, Any], plain: bool) -> None:
    one = await room(**options)
    assert one.member.plain is plain
    assert not one.join(begun=False).plain
    assert repr(one.member) == f"<Membership of {one.ws.id} in 'room'>"
    await quiet(one.ws)


# No room


@each_way
@pytest.mark.parametrize("limits", [{"outbox_messages": 3}, {"outbox_bytes": 3}], ids=["messages", "bytes"])
async def test_close(way: str, limits: dict[str, int]) -> None:
    one = await room(way, "close", limits)
    resume = await one.stalled()
    one.publish("1", "2", "3")
    assert one.tally == {}
    assert not carriers() or not line_of(one.ws)._closing
    one.publish("4")
    assert one.tally == {"overflow": 4}
    one.publish("5", "6")
    assert one.tally == {"overflow": 4}
    assert one.frames == []
    resume()
    await soon(lambda: one.server.closed)
    assert one.server.closed == (1013, "slow consumer")
    assert one.server.texts == ["0"]
    await nothing_left(one.ws)


@each_way
@pytest.mark.parametrize("limits", [{"outbox_messages": 3}, {"outbox_bytes": 3}], ids=["messages", "bytes"])
@pytest.mark.parametrize("tells", [False, True])
async def test_drop_newest(way: str, limits: dict[str, int], tells: bool) -> None:
    one = await room(way, "drop_newest", limits, notice=same if tells else None)
    resume = await one.stalled()
    one.publish("1", "2", "3")
    assert one.tally == {}
    one.publish("4", "5")
    assert one.tally == {"overflow": 2}
    resume()
    await quiet(one.ws)
    one.publish("6")
    await quiet(one.ws)
    assert one.said() == ["0", "1", "2", "3", *([lost(2)] if tells else []), "6"]
    await nothing_left(one.ws)


@each_way
@pytest.mark.parametrize("tells", [False, True])
async def test_drop_oldest(way: str, tells: bool) -> None:
    one = await room(way, "drop_oldest", {"outbox_messages": 3}, notice=same if tells else None)
    resume = await one.stalled()
    one.publish("1", "2", "3")
    assert one.tally == {}
    one.publish("4", "5")
    assert line_of(one.ws).frames == 3
    resume()
    await quiet(one.ws)
    assert one.said() == (["0", lost(3), "4", "5"] if tells else ["0", "3", "4", "5"])
    assert one.tally == {"overflow": 3 if tells else 2}  # the notice stands in the line, too
    await nothing_left(one.ws)


@each_way
async def test_drop_oldest_by_bytes(way: str) -> None:
    one = await room(way, "drop_oldest", {"outbox_bytes": 10}, notice=same)
    resume = await one.stalled()
    one.publish("aaaa", "bbbb", "cc")
    assert one.tally == {}
    one.publish("dddd")
    assert line_of(one.ws).size == 10
    one.publish("eeeeeeeeee")
    assert line_of(one.ws).size == 10
    resume()
    await quiet(one.ws)
    assert one.said() == ["0", lost(4), "eeeeeeeeee"]
    assert one.tally == {"overflow": 4}
    await nothing_left(one.ws)


@each_way
@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_every_publication_is_given_or_told_of_in_its_place(way: str, policy: str) -> None:
    one = await room(way, policy, {"outbox_messages": 4}, notice=lambda told: {"lost": told.count})
    given = 0
    for burst in (3, 9, 4, 5, 20):
        resume = await one.stalled()
        for _ in range(burst):
            given += 1
            one.publish([given])
        resume()
        await quiet(one.ws)
    at, told = 0, 0
    for frame in one.said():
        if frame == "0":
            continue
        if isinstance(frame, dict):
            at += frame["lost"]
            told += frame["lost"]
        else:
            at += 1
            assert frame == [at]
    assert at == given
    assert one.tally == {"overflow": told}
    await nothing_left(one.ws)


@each_way
async def test_latest_keeps_one(way: str) -> None:
    one = await room(way, "latest", {"outbox_messages": 3})
    resume = await one.stalled()
    one.publish("1", "2", "three")
    assert one.frames == ["three"]
    assert (line_of(one.ws).frames, line_of(one.ws).size) == (1, 5)
    resume()
    await quiet(one.ws)
    assert one.server.texts == ["0", "three"]
    assert one.tally == {"latest": 2}
    await nothing_left(one.ws)


@each_way
async def test_latest_by_the_key_of_the_publisher(way: str) -> None:
    one = await room(way, "latest")
    resume = await one.stalled()
    for key, message in (("a", "1"), ("b", "2"), ("a", "3"), (None, "4"), ("b", "5"), (None, "6")):
        one.publish(message, key=key)
    resume()
    await quiet(one.ws)
    assert one.server.texts == ["0", "3", "5", "6"]  # each in the place of the first of its key
    assert one.tally == {"latest": 3}


@each_way
async def test_latest_by_a_function(way: str) -> None:
    one = await room(way, latest(lambda message: message["id"]), {"outbox_messages": 2}, notice=same)
    resume = await one.stalled()
    for number, key in enumerate("abab"):
        one.publish({"id": key, "n": number}, key="unused")
    assert one.tally == {"latest": 2}
    resume()
    await quiet(one.ws)
    assert one.said() == ["0", {"id": "a", "n": 2}, {"id": "b", "n": 3}]


@each_way
async def test_latest_drops_the_oldest_key_when_there_are_too_many(way: str) -> None:
    one = await room(way, "latest", {"outbox_messages": 3}, notice=same)
    resume = await one.stalled()
    for key in "abcd":
        one.publish(key, key=key)
    assert line_of(one.ws).frames == 3
    one.publish("a2", key="a")  # what was dropped is not found any more
    resume()
    await quiet(one.ws)
    assert one.said() == ["0", lost(3), "d", "a2"]
    assert one.tally == {"overflow": 3}
    await nothing_left(one.ws)


async def test_what_makes_room_drops_only_its_own() -> None:
    one = await room("yielding", "drop_oldest", {"outbox_messages": 3}, notice=same)
    other = one.join("drop_oldest")
    resume = await one.stalled()
    for offset in (1, 2):
        other.take(publication(offset, f"other {offset}"))
    one.publish("1", "2", "3")
    resume()
    await quiet(one.ws)
    assert one.said() == ["0", "other 1", "other 2", lost(3)]
    assert one.tally == {"overflow": 3}


async def test_others_that_fill_the_line_leave_a_notice() -> None:
    one = await room("yielding", "drop_oldest", {"outbox_messages": 2}, notice=same)
    other = one.join("drop_oldest")
    resume = await one.stalled()
    for offset in (1, 2):
        other.take(publication(offset, f"other {offset}"))
    one.publish("1", "2")
    resume()
    await quiet(one.ws)
    one.publish("3")
    await quiet(one.ws)
    assert one.said() == ["0", "other 1", "other 2", lost(2), "3"]
    assert one.tally == {"overflow": 2}
    await nothing_left(one.ws)


@pytest.mark.parametrize(
    ("notice", "expected"),
    [
        (lambda told: {"gone": told.count, "why": told.reason, "where": told.topic},
         {"text": '{"gone":1,"why":"overflow","where":"room"}'}),
        (lambda told: f"lost {told.count}", {"text": "lost 1"}),
        (lambda told: bytes([told.count]), {"bytes": b"\1"}),
    ],
)  # fmt: skip
async def test_a_notice_of_ones_own(notice: Any, expected: dict[str, Any]) -> None:
    one = await room("yielding", "drop_newest", {"outbox_messages": 1}, notice=notice)
    resume = await one.stalled()
    one.publish("1", "2")
    resume()
    await quiet(one.ws)
    assert one.server.sent[-1] == {"type": "websocket.send", **expected}


# What came while the history was read


@pytest.mark.parametrize("policy", ["close", "drop_oldest", "latest"])
async def test_too_much_while_the_history_is_read(policy: str) -> None:
    one = await room("yielding", "close", {"outbox_messages": 3})
    one.member = one.join(policy, begun=False)
    one.publish("1", "2", "3")
    assert one.tally == {}
    one.publish("4")
    await soon(lambda: one.server.closed)
    assert one.tally == {"overflow": 1}
    assert one.server.closed == (1013, "slow consumer")
    one.member.begin(Page(Position("e", 0), []), Joined(NOWHERE))
    await nothing_left(one.ws)
    assert one.server.texts == []


# Missing publications


@each_way
async def test_what_is_missing_is_told_in_its_place(way: str) -> None:
    one = await room(way, notice=same, strict=True)
    one.publish("1")
    one.member.missed(3, "gap")
    one.publish("5")
    one.member.missed(None, "epoch")
    one.publish("x")
    await quiet(one.ws)
    assert one.said() == ["1", lost(3, "gap"), "5", lost(None, "epoch"), "x"]
    assert one.tally == {"gap": 3, "epoch": 1}


@each_way
async def test_a_strict_member_is_closed_where_something_is_missing(way: str) -> None:
    one = await room(way, strict=True)
    one.member.missed(1, "trimmed")
    await soon(lambda: one.server.closed)
    assert one.server.closed == (1013, "messages were lost, connect again")
    await nothing_left(one.ws)


async def test_others_are_not() -> None:
    one = await room()
    one.member.missed(1, "gap")
    one.publish("1")
    await quiet(one.ws)
    assert one.server.texts == ["1"]
    assert one.tally == {"gap": 1}


def test_a_notice_has_a_form_of_its_own() -> None:
    assert json.loads(payload_of(same(Lost("room", 2, "overflow")))[1]) == lost(2)
