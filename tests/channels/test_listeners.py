"""The seam between the history and what comes: nothing is missing, doubled or in another order."""

import collections
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from asgiws.channels import Joined, Lost, Page, Position, Publication
from asgiws.channels.listeners import Listener

MOST = 20


class Noting(Listener):
    """A member that notes what it is given."""

    def __init__(self) -> None:
        super().__init__("t", collections.Counter())
        self.got: list[object] = []

    def _pass_on(self, publication: Publication) -> None:
        self.got.append(publication.message)

    def _is_past_history(self) -> None:
        self.got.append("past")

    def _is_too_much(self, held: Sequence[Publication | Lost]) -> bool:
        return len(held) > MOST

    def _give_up(self) -> None:
        self.got.append("given up")

    def _tell(self, lost: Lost) -> None:
        self.got.append((lost.topic, lost.count, lost.reason))


def at(offset: int | None, epoch: str = "e") -> Publication:
    position = None if offset is None else Position(epoch, offset)
    return Publication("t", position, "json", str(offset).replace("None", "null"))


def page(top: int, kept: int = 0) -> Page:
    return Page(Position("e", top), [at(offset) for offset in range(top - kept + 1, top + 1)])


JOINED = Joined(Position("e", 0))


@given(top=st.integers(0, 8), kept=st.integers(0, 8), overlap=st.integers(0, 8), held=st.integers(0, 10))
def test_what_comes_while_the_history_is_read_is_given_once_and_after_it(
    top: int, kept: int, overlap: int, held: int
) -> None:
    kept = min(kept, top)
    listener = Noting()
    first = max(top - overlap, 0) + 1  # the first that comes after it was subscribed
    last = max(first + held - 1, top)
    for offset in range(first, first + held):
        listener.take(at(offset))
    assert listener.got == []
    listener.begin(page(top, kept), JOINED)
    for offset in range(first + held, last + 4):
        listener.take(at(offset))
    assert [one for one in listener.got if one != "past"] == list(range(top - kept + 1, last + 4))
    assert listener.got.count("past") == 1
    assert listener.joined is JOINED


def test_a_hole_is_told_where_it_is() -> None:
    listener = Noting()
    listener.take(at(3))
    listener.missed(2, "gap")
    listener.take(at(6))
    listener.begin(page(2, 2), JOINED)
    listener.missed(None, "epoch")
    assert listener.got == [1, 2, "past", 3, ("t", 2, "gap"), 6, ("t", None, "epoch")]
    assert listener._tally == {"gap": 2, "epoch": 1}


def test_what_has_no_position_or_another_epoch_is_given() -> None:
    listener = Noting()
    listener.begin(page(5), JOINED)
    listener.take(at(None))
    listener.take(at(1, "other"))
    listener.take(at(2, "other"))
    assert listener.got == [None, "past", 1, 2]


def test_more_than_it_can_hold_back_is_given_up_at_once() -> None:
    listener = Noting()
    for offset in range(1, MOST + 1):
        listener.take(at(offset))
    assert listener.got == []
    listener.take(at(MOST + 1))
    assert listener.got == ["given up"]
    listener.begin(page(MOST), JOINED)
    assert listener.got == ["given up"]
