"""The line of one socket beside a plain list: random lives, with every policy and every way in which a send is driven.

The rules are sync, as hypothesis wants them: the event loop runs in a thread of its own.
"""

import collections
import dataclasses
from concurrent.futures import Future
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asgiws import WebSocketDisconnect
from asgiws.channels.backend import Page
from asgiws.channels.members import Membership
from asgiws.channels.policies import Joined, Policy
from asgiws.channels.publication import Position, Publication
from tests.channels.sockets import WAYS, accepted, line_of, lost_client, nothing_left, stall
from tests.fakes import soon

MESSAGES, BYTES = 4, 16
NOWHERE = Position("e", 0)
POLICIES = (
    ("drop_oldest", False), ("drop_oldest", True), ("drop_newest", False), ("drop_newest", True), ("latest", False),
    ("latest", True), ("close", False),
)  # fmt: skip
"""What the members ask for, and whether they are told."""


@dataclasses.dataclass(eq=False)
class Item:
    """What waits: of a member, by its number, or of the handler."""

    text: str
    owner: int | None = None
    key: str | None = None
    missing: int = 0
    call: "Future[str] | None" = None

    @property
    def size(self) -> int:
        return 0 if self.missing else len(self.text)

    @property
    def sent(self) -> str:
        return f"{self.owner} lost {self.missing}" if self.missing else self.text


class Model:
    """What must become of the line."""

    def __init__(self) -> None:
        self.stalled = False
        self.under_way: Item | None = None
        self.line: list[Item] = []
        self.sent: list[str] = []
        self.tally: collections.Counter[str] = collections.Counter()
        self.closing = False

    @property
    def frames(self) -> list[Item]:
        return [item for item in self.line if item.owner is not None]

    def fits(self, item: Item) -> bool:
        frames = self.frames
        return len(frames) < MESSAGES and sum(one.size for one in frames) + item.size <= BYTES

    def add(self, item: Item) -> None:
        if not self.stalled:
            self.sent.append(item.sent)
        elif self.under_way is None:
            self.under_way = item
        else:
            self.line.append(item)

    def publish(self, item: Item) -> None:
        name, tells = POLICIES[item.owner or 0]
        if self.closing:
            return
        if self.under_way is None:
            self.add(item)
            return
        for one in self.frames if name == "latest" else []:
            if (one.owner, one.key) == (item.owner, item.key) and not one.missing:
                one.text = item.text
                self.tally["latest"] += 1
                return
        if self.fits(item):
            self.line.append(item)
        elif name == "close":
            self.tally["overflow"] += len(self.frames) + 1
            self.line = [one for one in self.line if one.owner is None]
            self.closing = True
        elif name == "drop_newest":
            self.tally["overflow"] += 1
            mine = [one for one in self.frames if one.owner == item.owner]
            if tells and mine and mine[-1].missing:
                mine[-1].missing += 1
            elif tells:
                self.line.append(Item("", item.owner, missing=1))
        else:
            self.drop_oldest(item, tells=tells)

    def drop_oldest(self, item: Item, *, tells: bool) -> None:
        mine = [one for one in self.frames if one.owner == item.owner]
        marker = next((one for one in mine if one.missing), None)
        for one in [one for one in mine if not one.missing]:
            if self.fits(item):
                break
            self.tally["overflow"] += 1
            if tells and marker is None:
                marker = one
                one.missing, one.key = 1, None
            else:
                self.line.remove(one)
                if marker is not None:
                    marker.missing += 1
        if self.fits(item):
            self.line.append(item)
            return
        self.tally["overflow"] += 1
        if marker is not None:
            marker.missing += 1
        elif tells:
            self.line.append(Item("", item.owner, missing=1))

    def resume(self) -> None:
        self.stalled = False
        if self.under_way is not None:
            self.sent += [one.sent for one in (self.under_way, *self.line)]
        self.under_way = None
        self.line = []


class Machine(RuleBasedStateMachine):
    """One socket in many topics."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, way: str) -> None:
        super().__init__()
        self.portal = portal
        self.way = way
        self.model = Model()
        self.numbers = iter(range(100, 1000))
        self.tally: collections.Counter[str] = collections.Counter()
        self.offset = 0
        self.over = False

    @initialize()
    def connect(self) -> None:
        async def begin() -> None:
            self.ws, self.server = await accepted(self.way, outbox_messages=MESSAGES, outbox_bytes=BYTES)
            self.members = [self.member(number) for number in range(len(POLICIES))]

        self.portal.call(begin)

    def member(self, number: int) -> Membership:
        name, tells = POLICIES[number]
        member = Membership(
            self.ws, str(number), self.tally, policy=Policy(name), transform=None, envelope=False, strict=False,
            notice=(lambda told: f"{told.topic} lost {told.count}") if tells else None,
        )  # fmt: skip
        member.begin(Page(NOWHERE, []), Joined(NOWHERE))
        return member

    async def settle(self) -> None:
        model = self.model
        if not model.stalled:
            await soon(lambda: not self.ws._sending and not self.ws._queue)
        elif not self.over:
            waiting = len(model.line) + model.closing
            await soon(lambda: self.server.sending == (model.under_way is not None) and len(self.line) == waiting)

    @property
    def line(self) -> Any:
        return line_of(self.ws)

    # What is done

    @precondition(lambda self: not self.over and not self.model.closing)
    @rule(number=st.integers(0, len(POLICIES) - 1), more=st.integers(0, 6), key=st.sampled_from("abcde"))
    def publish(self, number: int, more: int, key: str) -> None:
        latest = POLICIES[number][0] == "latest"
        text = str(next(self.numbers)) + "x" * (0 if latest else more)
        self.offset += 1
        publication = Publication(str(number), Position("e", self.offset), "text", text, key)

        async def run() -> None:
            self.members[number].take(publication)
            self.model.publish(Item(text, number, key if latest else None))
            await self.settle()

        self.portal.call(run)

    @precondition(lambda self: self.model.stalled)
    @rule(number=st.integers(0, len(POLICIES) - 1), times=st.integers(2, 7), key=st.sampled_from("abcde"))
    def publish_many(self, number: int, times: int, key: str) -> None:
        for _ in range(times):
            if not self.over and not self.model.closing:
                self.publish(number, 1, key)

    @precondition(lambda self: not self.over and not self.model.closing)
    @rule()
    def send(self) -> None:
        text = str(next(self.numbers))

        async def call() -> str:
            try:
                await self.ws.send_text(text)
            except WebSocketDisconnect:
                return "disconnect"
            return "sent"

        item = Item(text, call=self.portal.start_task_soon(call))
        self.model.add(item)
        self.portal.call(self.settle)

    @precondition(lambda self: not self.over and any(item.call for item in self.model.line))
    @rule(at=st.integers(0, 10))
    def a_send_is_cancelled_in_the_line(self, at: int) -> None:
        mine = [item for item in self.model.line if item.call]
        item = mine[at % len(mine)]
        assert item.call is not None
        item.call.cancel()
        self.model.line.remove(item)
        self.portal.call(self.settle)

    @precondition(lambda self: not self.over and not self.model.stalled and not self.model.closing)
    @rule()
    def stall(self) -> None:
        self.model.stalled = True
        self.resume_server = self.portal.call(stall, self.server)

    @precondition(lambda self: not self.over and self.model.stalled)
    @rule()
    def resume(self) -> None:
        self.model.resume()

        async def run() -> None:
            self.resume_server()
            await self.settle()

        self.portal.call(run)

    @precondition(lambda self: not self.over and not self.model.closing)
    @rule(number=st.integers(0, len(POLICIES) - 1))
    def leave_and_join_again(self, number: int) -> None:
        """What a member has in the line stays there, and is not its successor's."""
        for item in self.model.frames:
            if item.owner == number:
                return  # the model tells members apart by their number
        self.members[number] = self.portal.call(self.member, number)

    @precondition(lambda self: not self.over and self.model.line and not self.model.closing)
    @rule()
    def the_client_leaves(self) -> None:
        waiting = [item.call for item in self.model.line if item.call]
        if self.model.under_way is not None and self.model.under_way.call:
            return  # it is the handler's own send that hangs, which the watchdog gives up

        async def run() -> None:
            await lost_client(self.server, self.ws)
            self.line.release()
            await soon(lambda: not self.ws._sending)

        self.over = True
        self.model.line, self.model.under_way = [], None
        self.portal.call(run)
        assert [call.result(5) for call in waiting] == ["disconnect"] * len(waiting)

    @precondition(lambda self: self.over or self.model.closing)
    @rule(number=st.integers(0, len(POLICIES) - 1))
    def publish_after_the_end(self, number: int) -> None:
        self.offset += 1
        publication = Publication(str(number), Position("e", self.offset), "text", "late", "a")
        self.portal.call(self.members[number].take, publication)

    # What holds after every step

    @invariant()
    def the_wire_has_what_the_model_says(self) -> None:
        assert self.server.texts == self.model.sent
        assert self.server.most_sending <= 1
        assert not self.server.choked

    @invariant()
    def the_line_has_what_the_model_says(self) -> None:
        frames = self.model.frames
        assert (self.line.frames, self.line.size) == (len(frames), sum(item.size for item in frames))

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.line.size <= BYTES
        assert self.line.frames <= MESSAGES + sum(tells for _, tells in POLICIES)

    @invariant()
    def what_was_dropped_is_counted(self) -> None:
        assert self.tally == self.model.tally

    @invariant()
    def a_slow_consumer_is_closed(self) -> None:
        closed = self.model.closing and not self.model.stalled
        assert self.server.closed == ((1013, "slow consumer") if closed else None)

    def teardown(self) -> None:
        async def end() -> None:
            if self.model.stalled:
                self.resume_server()
            await nothing_left(self.ws)
            if self.ws._inbox is not None:
                self.ws._inbox.stop()

        self.portal.call(end)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_line_and_list_agree(backend: str, way: str) -> None:
    with anyio.from_thread.start_blocking_portal(backend) as portal:

        class OnThisLoop(Machine):
            def __init__(self) -> None:
                super().__init__(portal, way)

        run_state_machine_as_test(OnThisLoop, settings=settings(max_examples=20, stateful_step_count=30))
