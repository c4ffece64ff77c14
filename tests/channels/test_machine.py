"""Random lives of a topic, its broker and its members, beside a plain list of all that was published (R17).

(a) what is delivered runs on without a hole, (b) or the member is told, or its connection is closed; (c) one position
has one payload; (d) in order; (e) in bounded memory. The rules are sync, as hypothesis wants them: the event loop runs
in a thread of its own.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
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

from asgiws.channels import Channels, GapError, Joined, Keep, Lost, MemoryBackend, Position, Publication
from asgiws.channels import SlowSubscriberError as Slow
from tests.channels.contract import Client, Clock, Lossy, with_position
from tests.fakes import DEADLINE

HISTORY, TTL, LINE = 5, 100.0, 12
KEEP = Keep(HISTORY, TTL)
SEATS = 3
FATES: dict[str, Callable[[Publication], list[Publication]]] = {
    "comes": lambda publication: [publication],
    "is lost": lambda _: [],
    "is doubled": lambda publication: [publication, publication],
}


ways = st.sampled_from(["envelope", "transform", "transform, told", "subscription", "subscription, told"])


class Seat:
    """Somebody who comes and goes, and keeps the last position it saw.

    Attributes:
        last: That position; None while it has seen nothing.
        start: Where its membership began.
        items: What the membership gave, of those that are no sockets: positions with payloads, or `Lost`.
        failed: The subscription has ended with an exception.
    """

    def __init__(self) -> None:
        self.last: Position | None = None
        self.manager: Any = None
        self.client: Client | None = None
        self.subscription: Any = None
        self.start: Position
        self.items: list[Any] = []
        self.failed = False

    def look(self) -> list[Any]:
        """All that the membership has given until now."""
        if self.client is None:
            return self.items
        found: list[Any] = []
        for frame in self.client.frames:
            if frame["type"] == "message":
                found.append((Position.parse(frame["position"]), frame["data"]))
            elif frame["type"] == "lost":
                found.append(Lost(frame["topic"], frame["count"], frame["reason"]))
        return found

    @property
    def over(self) -> bool:
        return self.failed or (self.client is not None and self.client.server.closed is not None)

    @property
    def stalled(self) -> bool:
        return self.client is not None and self.client.server.hold is not None


class Machine(RuleBasedStateMachine):
    """One topic."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, clock: Clock) -> None:
        super().__init__()
        self.portal = portal
        self.clock = clock
        self.order: dict[Position, int] = {}  # of all publications, with their number
        self.kept = 0
        self.number = 0
        self.waiting: list[Publication] = []
        self.seats = [Seat() for _ in range(SEATS)]

    @initialize(first=ways, second=ways)
    def open(self, first: str, second: str) -> None:
        self.memory = MemoryBackend()
        self.backend = Lossy(self.memory)
        self.channels = Channels(self.backend, history=HISTORY, ttl=TTL)
        self.portal.call(self.channels.__aenter__)
        self.begin(0, first, "close")
        self.begin(1, second, "drop_oldest")

    # The reference

    @property
    def top(self) -> Position:
        """The position of the topic, as its backend has it."""
        log = self.memory._logs.get("t")
        return log.position if log is not None else Position(self.memory._epoch(), 0)

    def published(self, position: Position) -> None:
        assert position not in self.order
        self.order[position] = self.number
        self.kept = min(self.kept + 1, HISTORY)

    def reason(self, since: Position) -> str | None:
        """Why what came after a position cannot be given."""
        if since.epoch != self.top.epoch:
            return "epoch"
        missed = self.top.offset - since.offset
        if missed <= 0:
            return None
        if not self.kept:
            return "expired"
        return None if missed <= self.kept else "trimmed"

    # What happens

    @rule(times=st.integers(1, 2 * HISTORY))
    def publish_well(self, times: int) -> None:
        self.publish("comes", times)

    @rule(fate=st.sampled_from([*FATES, "waits"]), times=st.integers(1, 3))
    def publish(self, fate: str, times: int) -> None:
        """Somebody publishes: another process, if the broker cannot be reached from here."""
        self.backend.fate = FATES.get(fate) or self.wait
        for _ in range(times):
            self.number += 1
            if self.backend.gone:
                position = self.portal.call(self.backend.elsewhere, "t", self.number, KEEP)
            else:
                position = self.portal.call(self.channels.publish, "t", self.number)
            self.published(position)

    def wait(self, publication: Publication) -> list[Publication]:
        self.waiting.append(publication)
        return []

    @rule(backwards=st.booleans())
    @precondition(lambda self: self.waiting and not self.backend.gone)
    def what_waits_comes(self, backwards: bool) -> None:
        waiting, self.waiting = self.waiting, []
        receiver = self.backend.receiver
        assert receiver is not None
        for publication in reversed(waiting) if backwards else waiting:
            self.portal.call(receiver.deliver, publication)

    @rule()
    def the_history_expires(self) -> None:
        self.clock.ahead += TTL + 1
        self.kept = 0

    @rule()
    @precondition(lambda self: "t" in self.memory._logs)
    def the_counter_is_lost(self) -> None:
        self.memory._forget("t")
        self.kept = 0

    @rule()
    @precondition(lambda self: not self.backend.gone)
    def the_broker_goes(self) -> None:
        self.portal.call(self.backend.snap)

    @rule()
    @precondition(lambda self: self.backend.gone)
    def the_broker_comes_back(self) -> None:
        self.portal.call(self.backend.mend)

    @rule(
        at=st.integers(0, SEATS - 1),
        way=ways,
        overflow=st.sampled_from(["close", "drop_oldest", "drop_newest"]),
    )
    @precondition(lambda self: not self.backend.gone)
    def begin(self, at: int, way: str, overflow: str) -> None:
        self.leave(at)
        seat = self.seats[at]
        reason = None if seat.last is None else self.reason(seat.last)
        joined: Joined = self.portal.call(self._begin, seat, way, overflow)
        assert joined.recovered is (None if seat.last is None else reason is None)
        assert joined.reason == reason
        seat.start = seat.last if joined.recovered and seat.last is not None else joined.position

    async def _begin(self, seat: Seat, way: str, overflow: Any) -> Joined:
        told = way.endswith("told")
        # Where a drop is told to nobody a hole is what was asked for.
        overflow = overflow if told or way == "envelope" else "close"
        options: dict[str, Any] = {"since": seat.last, "overflow": overflow}
        if way.startswith("subscription"):
            seat.manager = self.channels.subscribe("t", lost=told, messages=LINE, **options)
            seat.subscription = await seat.manager.__aenter__()
            joined: Joined = seat.subscription.joined
            return joined
        seat.client = await Client.connected(outbox_messages=LINE)
        options |= {"envelope": True} if way == "envelope" else {"transform": with_position, "lost": told}
        seat.manager = self.channels.join(seat.client.ws, "t", **options)
        found: Joined = await seat.manager.__aenter__()
        return found

    @rule(at=st.integers(0, SEATS - 1))
    def leave(self, at: int) -> None:
        seat = self.seats[at]
        if seat.manager is None:
            return
        self.resume(seat)
        self.check(seat)
        seen = [item[0] for item in seat.look() if not isinstance(item, Lost)]
        told = [item for item in seat.look() if isinstance(item, Lost)]
        # Who was told of a loss has reloaded its state, and begins anew.
        left = self.seats[at] = Seat()
        if not told:
            left.last = seen[-1] if seen else seat.start
        self.portal.call(seat.manager.__aexit__, None, None, None)

    @rule(at=st.integers(0, SEATS - 1))
    def stop_reading(self, at: int) -> None:
        client = self.seats[at].client
        if client is not None and not self.seats[at].over:
            client.server.hold = client.server.hold or anyio.Event()

    @rule(at=st.integers(0, SEATS - 1))
    def read_on(self, at: int) -> None:
        self.resume(self.seats[at])

    def resume(self, seat: Seat) -> None:
        if seat.client is not None and seat.client.server.hold is not None:
            hold, seat.client.server.hold = seat.client.server.hold, None
            self.portal.call(hold.set)
        self.portal.call(self._settle)

    # What holds

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        self.portal.call(self._settle)
        for seat in self.seats:
            if seat.manager is not None:
                self.check(seat)
        assert len(self.memory._logs) <= 1
        assert all(len(log.entries) <= HISTORY for log in self.memory._logs.values())

    async def _settle(self) -> None:
        """Wait until nothing moves but for what waits for the broker or for a client."""
        with anyio.fail_after(DEADLINE):
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            while not self._still():
                await anyio.lowlevel.checkpoint()
        for seat in self.seats:
            await self._take(seat)

    def _still(self) -> bool:
        topic = self.channels._topics.get("t")
        if topic is not None and topic.held is not None and not self.backend.gone:
            return False
        return all(
            seat.client is None or seat.stalled or (not seat.client.ws._sending and not seat.client.ws._queue)
            for seat in self.seats
        )

    async def _take(self, seat: Seat) -> None:
        if seat.subscription is None or seat.failed:
            return
        with anyio.CancelScope() as scope:
            scope.cancel()  # only what is there
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                try:
                    while True:
                        one = await anext(seat.subscription)
                        seat.items.append(one if isinstance(one, Lost) else (one.position, one.message))
                except (GapError, Slow):
                    seat.failed = True

    def check(self, seat: Seat) -> None:
        """(a), (b), (c), (d), (e): walk along what a membership has given."""
        at = seat.start
        newest = 0
        most: float = 0  # how many may be missing here: a member is told of more where it knew more than the topic
        for item in seat.look():
            if isinstance(item, Lost):
                most += float("inf") if item.count is None else item.count
                continue
            position, number = item
            assert self.order[position] == number
            assert number > newest
            if position.epoch == at.epoch:
                assert 0 < position.offset - at.offset <= most + 1, "a hole that nobody was told of"
            else:
                assert most, "another epoch that nobody was told of"
            newest, at, most = number, position, 0
        if seat.client is not None:
            seat.client.check()
            line = seat.client.ws._queue
            # Notices of what was lost stand there beside what waits.
            assert line is None or len(line) <= 2 * LINE
            if seat.over:
                assert seat.client.server.closed == (1013, seat.client.server.closed and seat.client.server.closed[1])
        if self.is_last_check and not seat.over and at != self.top:
            assert most, "it waits for what will never come"

    is_last_check = False

    def teardown(self) -> None:
        if not hasattr(self, "channels"):
            return
        self.portal.call(self.backend.snap)
        self.portal.call(self.backend.mend)
        for seat in self.seats:
            self.resume(seat)
        self.is_last_check = True
        self.all_is_as_it_should_be()
        for at in range(SEATS):
            self.leave(at)
        assert (self.channels._topics, self.memory._watched) == ({}, set())
        self.portal.call(self.channels.__aexit__, None, None, None)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_r17_members_get_all_or_are_told(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("asgiws.channels.memory.time", clock)
    monkeypatch.setattr("asgiws.channels.hub.RETRY_LEAST", 0.001)
    monkeypatch.setattr("asgiws.channels.hub.RETRY_MOST", 0.002)
    with anyio.from_thread.start_blocking_portal(loop) as portal:

        class OnThisLoop(Machine):
            def __init__(self) -> None:
                super().__init__(portal, clock)

        run_state_machine_as_test(OnThisLoop, settings=settings(max_examples=40, stateful_step_count=40))
