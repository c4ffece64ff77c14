"""What is published: its place in a topic, its payload, and the frames in which a client gets it."""

import functools
from typing import Any, Literal, Self

import msgspec

from ..errors import ChannelsError
from ..messages import decoder_for, encode, encode_message
from ..wire import sendable_bytes, sendable_text

Kind = Literal["json", "text", "bytes", "presence", "close"]
"""What was published: an object, a str or bytes; who came and went; or the order to close what was tagged. A client
gets bytes as a binary message, anything else as text."""

MOST_BYTES_OF_A_NAME = 255

USER = "\0"
"""What the name of a user's own topic begins with; no topic of an application does."""


class Position(msgspec.Struct, frozen=True):
    """The place of a publication in its topic.

    Its text form, `str(position)`, is opaque to a client, which keeps the last one that it saw and sends it back.

    Attributes:
        epoch: Of the topic's counter: whenever that begins anew, the epoch is another one.
        offset: 1 for the first publication, and one more for each.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        """Its text form."""
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The position of a text form; a text that is none gives one that no topic ever has."""
        epoch, _, offset = text.rpartition("-")
        return cls(epoch, int(offset)) if offset.isascii() and offset.isdigit() and len(offset) < 20 else cls("", 0)  # noqa: PLR2004


class Order(msgspec.Struct):
    """The order to close all connections of a user.

    Attributes:
        code: The close code.
        reason: The reason.
    """

    code: int
    reason: str


class Publication:
    """One message in a topic.

    Attributes:
        topic: The topic.
        position: Its place there; None for what has none, as a change of presence.
        kind: What was published.
        data: JSON or text as a str, or bytes.
        key: What it is the latest of, for members that want only the latest.
        exclude: The `id` of the WebSocket that does not get it.
        size: How many bytes the payload has.
    """

    __slots__ = ("_cache", "data", "exclude", "key", "kind", "position", "size", "topic")

    def __init__(
        self,
        topic: str,
        position: Position | None,
        kind: Kind,
        data: str | bytes,
        key: str | None = None,
        exclude: str | None = None,
    ) -> None:
        self.topic = topic
        self.position = position
        self.kind = kind
        self.data = data
        self.key = key
        self.exclude = exclude
        self.size = size_of(data)
        self._cache: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Topic, position and size, never the payload."""
        return f"<Publication {self.topic!r} {self.position} {self.kind} of {len(self.data)}>"

    @property
    def message(self) -> Any:
        """The payload: of JSON the decoded object, decoded once for all who ask.

        Raises:
            MessageError: It came from elsewhere and is no JSON.
        """
        if self.kind in ("text", "bytes"):
            return self.data
        return self._cached("message", functools.partial(_decoded, self.data))

    @property
    def envelope(self) -> str:
        """The payload with topic and position, as the text of a frame; encoded once for all who ask."""
        envelope: str = self._cached("envelope", lambda: envelope_of(self, self.kind, self.data))
        return envelope

    def _cached(self, name: str, make: Any) -> Any:
        if self._cache is None:
            self._cache = {}
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]


def envelope_of(publication: Publication, kind: Kind, data: str | bytes) -> str:
    """The frame of a publication with topic and position; its payload may be another one."""
    frame: dict[str, Any] = {"type": "message", "topic": publication.topic}
    if publication.position is not None:
        frame["position"] = str(publication.position)
    frame["data"] = msgspec.Raw(data.encode()) if kind == "json" else data  # type: ignore[union-attr]
    if kind == "bytes":
        frame["encoding"] = "base64"
    return encode(frame).decode()


def payload_of(message: Any) -> tuple[Kind, str | bytes]:
    """How a message is published.

    Raises:
        ProtocolError: It holds half a surrogate pair.
        TypeError: It is neither str nor bytes, and msgspec cannot encode it.
    """
    if isinstance(message, str):
        if not message.isascii():
            sendable_text(message)
        return "text", message
    if isinstance(message, bytes | bytearray | memoryview):
        return "bytes", sendable_bytes(message)
    return "json", encode_message(message).decode()


def size_of(data: str | bytes) -> int:
    """How many bytes a payload has, text as UTF-8."""
    return len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())


def checked_name(topic: Any, what: str = "a topic") -> str:
    """A name that can be a topic's.

    Raises:
        ChannelsError: It cannot.
    """
    if isinstance(topic, str) and topic:
        try:
            size = len(topic.encode())
        except UnicodeEncodeError:
            raise ChannelsError(f"{what} is UTF-8, but in {topic!r} stands half a surrogate pair") from None
        if size <= MOST_BYTES_OF_A_NAME:
            return topic
        raise ChannelsError(f"{what} has at most {MOST_BYTES_OF_A_NAME} bytes, {topic[:40]!r}... has {size}")
    raise ChannelsError(f"{what} is a str of 1 to {MOST_BYTES_OF_A_NAME} bytes, got {topic!r}")


def checked_topic(topic: Any) -> str:
    """A name that can be a topic's; raises ChannelsError."""
    if checked_name(topic).startswith(USER):
        raise ChannelsError(f"the name of a topic does not begin with NUL, got {topic!r}")
    return str(topic)


def user_topic(key: Any) -> str:
    """The topic of a user, by which all that was tagged with a key is reached; raises ChannelsError."""
    return USER + checked_name(key, "the key of a user")


def _decoded(data: str | bytes) -> Any:
    return decoder_for(Any)({"text": data})
