"""A member of a topic where the history ends and what comes begins: no hole, nothing twice, no other order."""

import collections
from abc import ABC, abstractmethod
from collections.abc import Sequence

from .backend import Page
from .policies import Joined, Lost
from .publication import Position, Publication


class Listener(ABC):
    """A member of a topic. It is subscribed first and the history is read then: until that has been given, it holds
    back what comes, and after that it passes over what was in the history already.

    Args:
        topic: The topic.
        tally: Counts what is dropped, by cause.

    Attributes:
        joined: What it began with; not set before it has begun.
    """  # noqa: D205 - it takes two lines to say

    __slots__ = ("_after", "_held", "_tally", "_topic", "joined")

    joined: Joined

    def __init__(self, topic: str, tally: "collections.Counter[str]") -> None:
        self._topic = topic
        self._tally = tally
        self._held: list[Publication | Lost] | None = []
        self._after: Position | None = None

    def begin(self, page: Page, joined: Joined) -> None:
        """Give what the history has, then what has come since it was asked, and go on with what comes."""
        self.joined = joined
        for entry in page.entries:
            self._pass_on(entry)
        self._after = page.position
        held, self._held = self._held or [], None
        for one in held:
            if isinstance(one, Lost):
                self.missed(one.count, one.reason)
            else:
                self.take(one)

    def take(self, publication: Publication) -> None:
        """A publication has come; nobody waits for the member."""
        if self._held is not None:
            self._held.append(publication)
            if self._is_too_much(self._held):
                self._held.clear()
                self._give_up()
            return
        position, after = publication.position, self._after
        if position is not None and after is not None:
            if position.epoch == after.epoch and position.offset <= after.offset:
                return  # it was in the history
            self._after = None
            self._is_past_history()
        self._pass_on(publication)

    def missed(self, count: int | None, reason: str) -> None:
        """So many publications are missing before the next one."""
        if self._held is not None:
            self._held.append(Lost(self._topic, count, reason))
            return
        self._tally[reason] += count or 1
        self._tell(Lost(self._topic, count, reason))

    def _is_past_history(self) -> None:  # noqa: B027 - not all need to know
        """Nothing of the history can come again."""

    @abstractmethod
    def _pass_on(self, publication: Publication) -> None:
        """Give it a publication."""

    @abstractmethod
    def _is_too_much(self, held: Sequence[Publication | Lost]) -> bool:
        """Whether it cannot take so much at once."""

    @abstractmethod
    def _give_up(self) -> None:
        """More has come than it could take while the history was read."""

    @abstractmethod
    def _tell(self, lost: Lost) -> None:
        """Tell it what is missing, or end it."""
