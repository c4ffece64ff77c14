"""A loop over what comes in a topic."""

import collections
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

import anyio

from ..errors import ChannelsError, GapError, SlowSubscriberError
from ..log import logger
from .listeners import Listener
from .policies import Lost, Policy
from .publication import Publication


class Subscription(Listener, AsyncIterator["Publication | Lost"]):
    """What comes in a topic, for a loop: `async for publication in subscription`.

    Args:
        topic: The topic.
        tally: Counts what is dropped, by cause.
        policy: What becomes of publications for which there is no room.
        tells: Give a `Lost` where publications are missing.
        strict: End where publications are missing that `tells` does not tell of.
        messages: How many publications wait at most.
        size: How many bytes of them.
    """

    __slots__ = (
        "_arrival", "_bytes", "_failure", "_messages", "_policy", "_queue", "_size", "_strict", "_tells",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        tally: "collections.Counter[str]",
        *,
        policy: Policy,
        tells: bool,
        strict: bool,
        messages: int,
        size: int,
    ) -> None:
        super().__init__(topic, tally)
        self._policy = policy
        self._tells = tells
        self._strict = strict
        self._messages = messages
        self._size = size
        self._bytes = 0
        self._queue: collections.deque[Publication | Lost] = collections.deque()
        self._arrival: anyio.Event | None = None
        self._failure: ChannelsError | None = None

    def _is_too_much(self, held: Sequence[Publication | Lost]) -> bool:
        return len(held) > self._messages

    def _give_up(self) -> None:
        self._end(self._too_slow())

    def _tell(self, lost: Lost) -> None:
        if self._tells:
            self._queue.append(lost)
            self._wake()
        elif self._strict:
            self._end(GapError(f"publications in {self._topic!r} are missing ({lost.reason})"))

    def _pass_on(self, publication: Publication) -> None:
        if self._failure is not None:
            return
        if self._policy.latest is not None and publication.kind != "presence":
            try:
                if self._replaced(publication, self._policy.latest.key_of):
                    return
            except Exception:  # noqa: BLE001 - what the user's function raises is not the publisher's business
                logger().exception("%r could not be given to a subscription", publication)
                self._tally["error"] += 1
                return
        if not self._fits(publication) and not self._make_room(publication):
            return
        self._queue.append(publication)
        self._bytes += publication.size
        self._wake()

    def _fits(self, publication: Publication) -> bool:
        return len(self._queue) < self._messages and self._bytes + publication.size <= self._size

    def _replaced(self, publication: Publication, key_of: Callable[[Publication], Any]) -> bool:
        key = key_of(publication)
        for at, one in enumerate(self._queue):
            if isinstance(one, Publication) and one.kind != "presence" and key_of(one) == key:
                self._bytes += publication.size - one.size
                self._queue[at] = publication
                self._tally["latest"] += 1
                return True
        return False

    def _make_room(self, publication: Publication) -> bool:
        """Whether there is room for it now."""
        if self._policy.name == "close":
            self._tally["overflow"] += 1
            self._end(self._too_slow())
            return False
        if self._policy.name == "drop_newest":
            self._tally["overflow"] += 1
            self._add_loss(self._queue, 1, last=True)
            return False
        dropped = told = 0
        while self._queue and not self._fits(publication):
            oldest = self._queue.popleft()
            if isinstance(oldest, Publication):
                self._bytes -= oldest.size
                dropped += 1
            elif oldest.count is not None:
                told += oldest.count
        self._tally["overflow"] += dropped
        self._add_loss(self._queue, dropped + told, last=False)
        return True

    def _add_loss(self, queue: "collections.deque[Publication | Lost]", count: int, *, last: bool) -> None:
        if not self._tells or not count:
            return
        lost = Lost(self._topic, count, "overflow")
        if last and queue and isinstance(queue[-1], Lost) and queue[-1].reason == "overflow":
            queue[-1] = Lost(self._topic, (queue[-1].count or 0) + count, "overflow")
        elif last:
            queue.append(lost)
        else:
            queue.appendleft(lost)
        self._wake()

    def closed(self) -> None:
        """The channels were closed."""
        self._end(ChannelsError("these channels were closed"))

    def _too_slow(self) -> ChannelsError:
        return SlowSubscriberError(f"the subscription to {self._topic!r} has read too slowly")

    def _end(self, failure: ChannelsError) -> None:
        """Raise when everything is taken that has come before."""
        self._failure = self._failure or failure
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Publication | Lost:
        """The next publication.

        Raises:
            SlowSubscriberError: More was waiting than it may hold, and `overflow` is "close".
            GapError: Publications are missing that the history should have kept, and no `Lost` is asked for.
            ChannelsError: The channels were closed, or another task is reading.
        """
        if self._arrival is not None:
            raise ChannelsError(f"another task is reading the subscription to {self._topic!r}")
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._arrival = anyio.Event()
            try:
                await self._arrival.wait()
            finally:
                self._arrival = None
        one = self._queue.popleft()
        if isinstance(one, Publication):
            self._bytes -= one.size
        return one
