"""A socket in a topic."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec

from ..log import logger
from ..messages import encode
from ..session import Session
from .backend import Page, sent_as
from .listeners import Listener
from .outbox import Frame, Outbox
from .policies import Joined, Lost, Notice, Policy, same
from .publication import Order, Publication, envelope_of, payload_of, size_of


class Membership(Listener):
    """One socket in one topic.

    Args:
        ws: The socket.
        topic: The topic.
        tally: Counts what is dropped, by cause.
        policy: What becomes of publications for which there is no room.
        transform: Makes what the socket gets of a publication; None keeps it back.
        envelope: Send topic and position with each payload.
        notice: Makes what the socket is told where publications are missing; None to tell nothing.
        strict: Close the connection where publications are missing that `notice` does not tell of.

    Attributes:
        ws: The socket.
        id: Its `id`.
        plain: It takes publications as they are.
        outbox: Its line.
        newest_until: It is to take the place of others, and has not seen its own order to them yet: until then, or this
            moment, orders of others to do so are older.
    """

    __slots__ = (
        "_envelope", "_notice", "_policy", "_strict", "_transform", "id", "newest_until", "outbox", "plain", "ws",
    )  # fmt: skip

    def __init__(
        self,
        ws: Session,
        topic: str,
        tally: "collections.Counter[str]",
        *,
        policy: Policy,
        transform: Callable[[Publication], Any] | None,
        envelope: bool,
        notice: Notice | None,
        strict: bool,
    ) -> None:
        super().__init__(topic, tally)
        self.ws = ws
        self.id = ws.id
        self._policy = policy
        self._transform = transform
        self._envelope = envelope
        self._notice = notice
        self._strict = strict
        self.plain = False
        self.newest_until = 0.0
        self.outbox = Outbox.of(ws)

    def __repr__(self) -> str:
        return f"<Membership of {self.id} in {self._topic!r}>"

    def begin(self, page: Page, joined: Joined, *, ahead: bool = False) -> None:
        """As `Listener.begin`, after the frame that tells what it begins with.

        Args:
            page: The history.
            joined: What the membership begins with.
            ahead: The history knows more than the topic, which will give it once more.
        """
        if self._envelope:
            self._send_text(_joined_frame(self._topic, joined))
        super().begin(page, joined)
        self.plain = not ahead and self._is_plain

    @property
    def _is_plain(self) -> bool:
        return not self._envelope and self._transform is None and self._policy.latest is None

    def _is_past_history(self) -> None:
        self.plain = self._is_plain

    def _is_too_much(self, held: Sequence[Publication | Lost]) -> bool:
        return not self.outbox.fits(sum(one.size for one in held if isinstance(one, Publication)), len(held))

    def _give_up(self) -> None:
        self._tally["overflow"] += 1
        self.outbox.close(1013, "slow consumer")

    def _pass_on(self, publication: Publication) -> None:
        if publication.exclude is not None and publication.exclude == self.id:
            self.newest_until = 0.0
            return
        if publication.kind == "close":
            if publication.exclude is None or not self.newest_until or anyio.current_time() > self.newest_until:
                self._close(publication)
            return
        key = None
        try:
            made = self._content(publication)
            if made is None:
                return
            if self._policy.latest is not None and publication.kind != "presence":
                key = self._policy.latest.key_of(publication)
        except Exception:  # noqa: BLE001 - what the user's function raises is not the publisher's business
            logger().exception("%r: %r could not be made ready", self, publication)
            self._tally["error"] += 1
            return
        kind, data, size = made
        self.outbox.send(self, kind, data, size, key)

    def _content(self, publication: Publication) -> tuple[str, Any, int] | None:
        """Field, content and size of what is sent."""
        kind, data = publication.kind, publication.data
        if kind == "presence":
            return "text", data, publication.size
        if self._transform is not None:
            made = self._transform(publication)
            if made is None:
                return None
            kind, data = payload_of(made)
            if self._envelope:
                text = envelope_of(publication, kind, data)
                return "text", text, size_of(text)
            return sent_as(kind), data, size_of(data)
        if self._envelope:
            return "text", publication.envelope, size_of(publication.envelope)
        return sent_as(kind), data, publication.size

    def _close(self, publication: Publication) -> None:
        order = msgspec.convert(publication.message, Order)
        self.outbox.close(order.code, order.reason)

    def _send_text(self, text: str) -> None:
        self.outbox.send(self, "text", text, size_of(text), always=True)

    # When publications are missing

    def _tell(self, lost: Lost) -> None:
        if self._notice is not None:
            kind, data = self._notice_of(lost)
            self.outbox.send(self, kind, data, size_of(data), always=True)
        elif self._strict:
            self.outbox.close(1013, "messages were lost, connect again")

    def dropped(self, count: int) -> tuple[str, Any]:
        """Field and content of what is told of publications that were dropped."""
        return self._notice_of(Lost(self._topic, count, "overflow"))

    def _notice_of(self, lost: Lost) -> tuple[str, Any]:
        notice = self._notice or same
        try:
            kind, data = payload_of(notice(lost))
        except Exception:  # noqa: BLE001 - it is the user's function
            logger().exception("%r: the notice of %r could not be made", self, lost)
            self._tally["error"] += 1
            self.outbox.close(1011, "internal error")
            kind, data = payload_of(same(lost))
        return sent_as(kind), data

    def make_room(self, frame: Frame) -> None:
        """Put a frame into a line that is full, or that may hold an older one of its key."""
        outbox, name = self.outbox, self._policy.name
        if frame.key is not None and self._replaced(frame):
            return
        if outbox.fits(frame.size):
            outbox.put(frame)
            return
        if name == "close":
            self._tally["overflow"] += outbox.frames + 1
            outbox.close(1013, "slow consumer")
        elif name == "drop_newest":
            self._drop_newest()
        else:
            self._drop_oldest(frame)

    def _replaced(self, frame: Frame) -> bool:
        for one in self.outbox.of_owner(self):
            if one.key == frame.key and not one.missing:
                self._tally["latest"] += 1
                if not self.outbox.fits(frame.size - one.size, 0):
                    self.outbox.drop(one)
                    return False
                self.outbox.swap(one, frame.kind, frame.data, frame.size)
                return True
        return False

    def _drop_newest(self) -> None:
        self._tally["overflow"] += 1
        if self._notice is not None:
            mine = self.outbox.of_owner(self)
            if not mine or not mine[-1].missing:
                marker = self._marker()
                self.outbox.put(marker)  # one more than there is room for
                mine.append(marker)
            mine[-1].missing += 1

    def _drop_oldest(self, frame: Frame) -> None:
        outbox = self.outbox
        mine = outbox.of_owner(self)
        marker = mine.pop(0) if mine and mine[0].missing else None
        while mine and not outbox.fits(frame.size):
            oldest = mine.pop(0)
            self._tally["overflow"] += 1
            if self._notice is not None and marker is None:
                marker = oldest
                outbox.swap(marker, "text", "", 0)
                marker.key = None
            else:
                outbox.drop(oldest)
            if marker is not None:
                marker.missing += 1
        if outbox.fits(frame.size):
            outbox.put(frame)
        else:  # others fill the line
            self._tally["overflow"] += 1
            if self._notice is not None:
                if marker is None:
                    marker = self._marker()
                    outbox.put(marker)
                marker.missing += 1

    def _marker(self) -> Frame:
        return Frame(self.outbox, self, "text", "", 0)


def _joined_frame(topic: str, joined: Joined) -> str:
    frame: dict[str, Any] = {"type": "joined", "topic": topic, "position": str(joined.position)}
    if joined.recovered is not None:
        frame["recovered"] = joined.recovered
    if joined.reason is not None:
        frame["reason"] = joined.reason
    if joined.present is not None:
        frame["present"] = joined.present
    return encode(frame).decode()
