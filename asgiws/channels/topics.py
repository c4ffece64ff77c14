"""One topic as a process sees it: who is a member, and up to where they have been told.

Publications come in the order of their offsets, without a hole, or the topic knows it: then it holds back what comes,
reads what is missing from the history, and goes on; or it tells its members of the hole.
"""

from collections.abc import Iterable

from .backend import Keep, Page, sent_as
from .listeners import Listener
from .members import Membership
from .publication import Position, Publication
from .subscriptions import Subscription

MOST_HELD_BACK = 1000
"""How many publications a topic holds back while it reads the history."""


class Topic:
    """A topic with members in this process.

    Args:
        name: Its name.
        keep: How much of it is kept.
        tells_presence: Whether its members are told who comes and goes.

    Attributes:
        sockets: The members that are sockets.
        others: The members that are not.
        users: How many are members, or are about to become one.
        position: Of the last publication that the members have been told; None before the first was read.
        held: What is held back; None unless the history is being read.
        crowded: Whether the last publication had to wait at some socket.
        holes: How many publications are known to be missing.
        ready: Whether it is watched and was read once.
    """

    __slots__ = (
        "_again", "_doubted", "crowded", "held", "holes", "keep", "name", "others", "position", "ready", "sockets",
        "tells_presence", "users",
    )  # fmt: skip

    def __init__(self, name: str, keep: Keep, *, tells_presence: bool) -> None:
        self.name = name
        self.keep = keep
        self.tells_presence = tells_presence
        self.sockets: dict[Membership, None] = {}
        self.others: dict[Subscription, None] = {}
        self.users = 0
        self.position: Position | None = None
        self.held: list[Publication] | None = []
        self.crowded = False
        self.holes = 0
        self.ready = False
        self._again = False
        self._doubted = False

    @property
    def members(self) -> Iterable[Listener]:
        """All members."""
        return (*self.sockets, *self.others)

    def deliver(self, publication: Publication) -> bool:
        """Take a publication of the backend's; whether the history has to be read first."""
        position = publication.position
        if publication.kind == "presence" and not self.tells_presence:
            return False
        if self.held is not None:
            self.held.append(publication)
            if len(self.held) > MOST_HELD_BACK:
                self.held.clear()
                self._doubted = False
            return False
        if position is not None and not self._follows(position):
            if self.position is not None and position.epoch == self.position.epoch:
                if position.offset <= self.position.offset:
                    return False
                if not self.keep.history:
                    self._tell_of_hole(position.offset - self.position.offset - 1, "gap")
                    self._give(publication)
                    return False
            self.held = [publication]
            self._doubted = True
            return True
        self._give(publication)
        return False

    def _follows(self, position: Position) -> bool:
        last = self.position
        return last is not None and position.offset == last.offset + 1 and position.epoch == last.epoch

    def _give(self, publication: Publication) -> None:
        if publication.position is not None:
            self.position = publication.position
        kind, data, size, exclude = sent_as(publication.kind), publication.data, publication.size, publication.exclude
        is_order = publication.kind == "close"
        crowded = False
        for member in tuple(self.sockets):
            if not member.plain or is_order:
                member.take(publication)
            elif (exclude is None or member.id != exclude) and not member.outbox.send(member, kind, data, size):
                crowded = True
        self.crowded = crowded
        for other in tuple(self.others):
            other.take(publication)

    def hold(self) -> bool:
        """Hold back what comes, to read the history; False if it is being read already, which is then done again."""
        if self.held is not None:
            self._again = True
            return False
        self.held = []
        return True

    def begin_anew(self) -> None:
        """Know nothing: it could not be read for the first time."""
        self.position, self.held, self._doubted, self._again = None, [], False, False

    def catch_up(self, page: Page) -> bool:
        """Go on after the history was read; whether it has to be read again."""
        held, self.held = self.held or [], None
        if self._doubted and held and _epoch_of(held[0]) not in (None, page.position.epoch):
            del held[0]  # it came before the history was read: its epoch is over
        again, self._doubted, self._again = self._again, False, False
        before = self.position
        if before is None or page.reason is None:
            self._take_in(page)
        else:
            self._pass_over(before, page, held)
        for at, publication in enumerate(held):
            if self.deliver(publication):
                self.held = [publication, *held[at + 1 :]]
                return True
        if page.reason is not None and not self.keep.history:
            self._pass_over(self.position or page.position, page, [])
        return again and self.hold()

    def _take_in(self, page: Page) -> None:
        """Give what was read."""
        before = self.position
        if before is not None:
            for entry in page.entries:
                self._give(entry)
        if before is None or before.epoch != page.position.epoch or page.position.offset > before.offset:
            self.position = page.position

    def _pass_over(self, before: Position, page: Page, held: Iterable[Publication]) -> None:
        """Tell of a hole that cannot be filled, up to the first publication that is kept or has come meanwhile."""
        top = page.position
        known = (one.position for one in (*page.entries, *held) if one.position is not None)
        first = next((one for one in known if one.epoch == top.epoch), None)
        after = top if first is None else Position(top.epoch, min(top.offset, first.offset - 1))
        if before.epoch != top.epoch:
            self._tell_of_hole(None, page.reason or "gap")
        elif page.reason == "ahead":
            self._tell_of_hole(None, page.reason)
        elif after.offset > before.offset:
            reason = page.reason if self.keep.history else None
            self._tell_of_hole(after.offset - before.offset, reason or "gap")
        else:
            after = before
        self.position = after
        for entry in page.entries:
            if entry.position is not None and entry.position.offset > after.offset:
                self._give(entry)

    def _tell_of_hole(self, count: int | None, reason: str) -> None:
        self.holes += count or 1
        for member in self.members:
            member.missed(count, reason)


def _epoch_of(publication: Publication) -> str | None:
    return None if publication.position is None else publication.position.epoch
