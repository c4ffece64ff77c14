"""How topics are kept, who is in them, and what they have come to."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import ChannelsError

MOST = 1e9
"""What is no number of seconds, bytes or messages any more."""


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How topics are kept.

    Attributes:
        history: How many publications are kept; 0 for none.
        ttl: For how many seconds after the last one.
        presence: Tell the members of a topic who comes and goes.
        grace: For how many seconds somebody still counts as present whose last connection has gone: who is back by then
            has not left, and nobody is told.

    Raises:
        ChannelsError: One of them cannot be.
    """

    history: int = 0
    ttl: float = 300.0
    presence: bool = False
    grace: float = 0.0

    def __post_init__(self) -> None:
        checked_number("history", self.history, 0, whole=True)
        checked_number("ttl", self.ttl, 0.001)
        checked_number("grace", self.grace, 0)


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


def checked_number(name: str, value: Any, least: float, *, whole: bool = False) -> None:
    """Refuse what is no number of at least so much; raises ChannelsError."""
    kind: Any = int if whole else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value < MOST:
        raise ChannelsError(f"{name} is a {'whole ' if whole else ''}number of at least {least}, got {value!r}")


def checked_options(topics: Any) -> list[tuple[str, TopicOptions]]:
    """Options by pattern; raises ChannelsError."""
    if not isinstance(topics, Mapping):
        raise ChannelsError(
            f"topics are options by pattern, such as {{'room:*': TopicOptions(history=100)}}, got {topics!r}"
        )
    for pattern, options in topics.items():
        if not isinstance(pattern, str) or not isinstance(options, TopicOptions):
            raise ChannelsError(f"topics[{pattern!r}] is a TopicOptions by a pattern, got {options!r}")
    return list(topics.items())
