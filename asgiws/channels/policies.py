"""What members of a topic ask for, and what they are told of it."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ..errors import ChannelsError
from .options import Member
from .publication import Position, Publication

Overflow = Literal["close", "drop_oldest", "drop_newest", "latest"]


class latest:  # noqa: N801 - it reads as a word: overflow=latest(...)
    """Keep only the latest publication of each key while a member does not read.

    Args:
        key: Gives the key of a message; left out, it is the `key` that was published with it, or one for all.
    """

    __slots__ = ("_key",)

    def __init__(self, key: Callable[[Any], Any] | None = None) -> None:
        self._key = key

    def key_of(self, publication: Publication) -> Any:
        """The key; the whole topic has one, if none was given."""
        key = publication.key if self._key is None else self._key(publication.message)
        return "" if key is None else key


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """What a member is told where publications are missing.

    Attributes:
        topic: The topic.
        count: How many; None if that is not known.
        reason: "overflow" if they were dropped, since the member did not read fast enough. Else why they could not be
            read from the history after the broker or its link had failed: "gap" without a history, or one of
            "epoch", "ahead", "expired", "trimmed" and "limit".
    """

    topic: str
    count: int | None
    reason: str


Notice = Callable[[Lost], Any]


class Policy:
    """What becomes of publications for which there is no room.

    Args:
        overflow: As `Channels.join` takes it.

    Raises:
        ChannelsError: There is no such policy.
    """

    __slots__ = ("latest", "name")

    def __init__(self, overflow: Any) -> None:
        self.latest: latest | None = None
        if isinstance(overflow, latest):
            self.name, self.latest = "latest", overflow
        elif overflow in ("close", "drop_oldest", "drop_newest", "latest"):
            self.name = overflow
            self.latest = latest() if overflow == "latest" else None
        else:
            raise ChannelsError(
                "overflow is 'close', 'drop_oldest', 'drop_newest', 'latest' or latest(key=...), got " + repr(overflow)
            )


class Joined(msgspec.Struct, frozen=True):
    """What a membership began with.

    Attributes:
        position: Where to go on if the connection breaks now: of the last publication before what comes first.
        recovered: With `since`: whether everything after that was given; else None.
        reason: Why it was not: "epoch", "ahead", "expired", "trimmed" or "limit".
        present: Who is present, where the topic tells of that: what is told later are changes of it.
    """

    position: Position
    recovered: bool | None = None
    reason: str | None = None
    present: list[Member] | None = None


def same(lost: Lost) -> Lost:
    """What a client is told, if nobody says otherwise."""
    return lost
