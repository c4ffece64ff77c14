"""What stands behind channels: the contract of a backend.

A backend keeps, for each topic, an epoch, an offset that grows by one with each publication, and a history of the last
ones. It hands every publication of a watched topic to its receiver, in the order of the offsets. Where it cannot be
sure of that it may leave some out or double them: the receiver looks at the offsets, and reads what is missing from the
history or tells of the hole.

The rules:

- Number and history are one atomic step: two publishers never get the same offset, and who reads the history finds
  every publication up to the offset that the same read tells.
- An epoch is never used twice. When the counter of a topic is lost, its next epoch is another one.
- `publish` returns the position or raises. It never waits for a subscriber.
- `watch` returns when the publications of the topic arrive. What was published later than that is delivered.
- Nothing but `BrokerError` is raised for what goes wrong with a broker.
- A payload that cannot be read is left out, logged and counted, never raised.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..messages import encode
from .publication import Position, Publication


class Keep(msgspec.Struct, frozen=True):
    """How much of a topic is kept.

    Attributes:
        history: How many publications; 0 for none.
        ttl: For how many seconds after the last one.
    """

    history: int
    ttl: float


class Page(msgspec.Struct):
    """What was read of a topic, at one moment.

    Attributes:
        position: Of the last publication; offset 0 if there was none.
        entries: Publications without a hole, up to that one.
        reason: Why what was asked for cannot be given: "epoch", "ahead", "expired", "trimmed" or "limit"; else None.
    """

    position: Position
    entries: Sequence[Publication]
    reason: str | None = None


class Receiver(Protocol):
    """What a backend tells, without ever waiting for an answer."""

    def deliver(self, publication: Publication) -> None:
        """A publication of a watched topic has come."""

    def broken(self) -> None:
        """The broker has gone; it is looked for."""

    def spoilt(self) -> None:
        """Something came that could not be read, and was left out."""

    def moved(self, topic: str) -> None:
        """A topic is watched in another place: what came meanwhile may be missing."""

    def mended(self) -> None:
        """The broker is back, and all watched topics are watched again; what came meanwhile may be missing."""


class Present(msgspec.Struct, frozen=True):
    """One connection that is present in a topic.

    Attributes:
        topic: The topic.
        key: Of the member, who may have several connections.
        connection: Of the connection.
        meta: What the member tells of itself, as JSON.
        tells: Whether those who watch the topic are told who comes and goes.
        grace: For how many seconds it still counts as present after it has left.
    """

    topic: str
    key: str
    connection: str
    meta: bytes
    tells: bool
    grace: float = 0.0


class Backend(Protocol):
    """What keeps topics. It is opened and used in one event loop."""

    shared: bool
    """Whether other processes see the same topics."""

    async def open(self, receiver: Receiver) -> None:
        """Begin; raises BrokerError if the broker is not there, or refuses."""

    async def close(self) -> None:
        """End, and let go of everything."""

    async def publish(self, publication: Publication, keep: Keep) -> Position:
        """Give a publication its position, keep it, and hand it to whoever watches the topic, in any process.

        One of a kind that is no payload ("presence", "close") gets no offset and is not kept.
        """

    async def watch(self, topic: str) -> None:
        """Have the publications of a topic delivered."""

    def unwatch(self, topic: str) -> None:
        """Have them delivered no more; it may take a moment."""

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        """The last publications.

        Args:
            topic: The topic.
            since: Where to begin, exclusive: all from there on or, with a reason, none. None for as many as there are.
            limit: How many at most.
        """

    async def enter(self, present: Present, lease: float) -> None:
        """Note that a connection is present, for so many seconds.

        Of the first one of its key those who watch are told.
        """

    async def leave(self, present: Present) -> None:
        """Note that a connection has gone, or if it has a grace that its time is up then.

        Of the last one of its key those who watch are told.
        """

    async def renew(self, present: Collection[Present], lease: float) -> None:
        """Note that connections are still present, for so many seconds from now; forgotten ones are entered again.

        Those that leave meanwhile are taken out of the collection.

        It also forgets whose time is up in the same topics, and tells of it.
        """

    async def present(self, topic: str) -> Mapping[str, bytes]:
        """Who is present: by key the meta of that of its connections which came last.

        It forgets whose time is up, and tells of it.
        """


def reason_against(since: Position, top: Position, kept: int, limit: int) -> str | None:
    """Why what came after a position cannot be given; None if it can.

    Args:
        since: The position.
        top: Of the last publication.
        kept: How many publications up to that are still there.
        limit: How many are given at most.
    """
    if since.epoch != top.epoch:
        return "epoch"
    missed = top.offset - since.offset
    if missed < 0:
        return "ahead"
    if missed == 0:
        return None
    if kept == 0:
        return "expired"
    if missed > kept:
        return "trimmed"
    return "limit" if missed > limit else None


def presence_change(topic: str, joined: Mapping[str, bytes], left: Iterable[str]) -> Publication:
    """What those who watch a topic are told of who came, with the meta, and who went."""
    frame = {
        "type": "presence",
        "topic": topic,
        "joined": [{"key": key, "meta": msgspec.Raw(meta)} for key, meta in joined.items()],
        "left": list(left),
    }
    return Publication(topic, None, "presence", encode(frame).decode())


def sent_as(kind: str) -> Any:
    """The field of a `websocket.send` event that carries a payload of this kind."""
    return "bytes" if kind == "bytes" else "text"
