"""How topics are kept, who is in them, and what they have come to."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import ChannelsError


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How topics are kept.

    Attributes:
        history: How many publications are kept; 0 for none.
        ttl: For how many seconds after the last one.
        presence: Tell the members of a topic who comes and goes.

    Raises:
        ChannelsError: One of them cannot be.
    """

    history: int = 0
    ttl: float = 300.0
    presence: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.history, int) or isinstance(self.history, bool) or self.history < 0:
            raise ChannelsError(f"history is a whole number of publications of at least 0, got {self.history!r}")
        if not isinstance(self.ttl, int | float) or isinstance(self.ttl, bool) or not 0 < self.ttl < 1e9:  # noqa: PLR2004
            raise ChannelsError(f"ttl is a number of seconds above 0, got {self.ttl!r}")


class Member(msgspec.Struct, frozen=True):
    """Somebody who is present in a topic, by however many connections.

    Attributes:
        key: Tells members apart: two connections of one key are one member.
        meta: What all others are told of it: anything that msgspec encodes.
    """

    key: str
    meta: Any = None


class ChannelsStatistics(msgspec.Struct, frozen=True):
    """What channels have come to in this process.

    Attributes:
        topics: How many have members here.
        members: How many memberships of sockets and subscriptions there are.
        published: How many publications were made here.
        delivered: How many were handed to a member.
        dropped: How many members were not given, by cause: "overflow" and "latest" by the member's own policy, the
            reasons of `Lost`, "error" in a function of the user's, "spoilt" for what could not be read.
        breaks: How often the broker was gone.
        healthy: Whether it is there.
    """

    topics: int
    members: int
    published: int
    delivered: int
    dropped: Mapping[str, int]
    breaks: int
    healthy: bool
