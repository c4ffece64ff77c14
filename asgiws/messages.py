"""What is in a message: text, bytes, or JSON of a declared type; errors that a client can act on."""

import functools
from typing import Any

import msgspec

from .errors import MessageError, ProtocolError, shown
from .types import Message

encode = msgspec.json.Encoder().encode
"""Any object that msgspec knows, as JSON in UTF-8."""


def encode_message(message: Any) -> bytes:
    """A message as JSON.

    Raises:
        ProtocolError: It holds half a surrogate pair, which UTF-8 cannot express.
        TypeError: msgspec does not know its type.
    """
    try:
        return encode(message)
    except UnicodeEncodeError:
        raise ProtocolError("a message must be UTF-8, but in its text stands half a surrogate pair") from None


class MessageDecoder:
    """Decodes the `websocket.receive` events of one connection into a declared type.

    Args:
        type: Any type that msgspec takes; a union of Structs must be tagged.

    Attributes:
        decode: msgspec's own function, for who handles its exceptions.
        tag_field: The field that tells the messages of a union apart; None if there is none.
        tags: Its valid values.

    Raises:
        TypeError: msgspec cannot decode into this type; the text is msgspec's own.
    """

    __slots__ = ("_decode_tag", "decode", "tag_field", "tags", "type")

    def __init__(self, type: Any) -> None:
        self.type = type
        self.decode = msgspec.json.Decoder(type).decode
        self.tag_field, self.tags = _tags_of(type)
        self._decode_tag = _tag_decoder(self.tag_field) if self.tag_field is not None else None

    def __call__(self, event: Message, mode: str | None = None) -> Any:
        """The message of the event, decoded.

        Args:
            event: A `websocket.receive` event; text and binary are both taken as JSON.
            mode: "text" or "binary" to take only that.

        Raises:
            MessageError: The event is of the other mode, is no JSON, or is not of the type.
        """
        data = event.get("text") if mode != "binary" else event.get("bytes")
        if data is None and mode is None:
            data = event.get("bytes")
        if data is None:
            raise wrong_kind(_sound(event), mode or "text")
        if "bytes" in event and "text" in event:
            _sound(event)
        try:
            return self.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self._explain(error, data) from None

    def _explain(self, error: Exception, data: str | bytes) -> MessageError:
        if isinstance(error, UnicodeError):
            return MessageError("the message is not UTF-8")
        if isinstance(error, RecursionError):
            return MessageError("the message is nested too deeply")
        if not isinstance(error, msgspec.ValidationError):
            return MessageError(f"the message is not JSON: {lower_first(str(error))}")
        detail, path = split_path(str(error))
        tag = self._tag_in(data)
        if self.tag_field is None or tag in self.tags:
            return MessageError(detail, path=path, tag=tag)
        known = (
            "expected " + ", ".join(map(repr, self.tags))
            if len(self.tags) == 1
            else ("expected one of " + ", ".join(map(repr, self.tags)))
        )
        if tag is not None:
            return MessageError(f"unknown {self.tag_field} {shown(tag)}, {known}", path=f"$.{self.tag_field}")
        return MessageError(f"{detail}; {known} in `{self.tag_field}`", path=path)

    def _tag_in(self, data: str | bytes) -> Any:
        """The tag of a message that did not decode; only read when there is an error to explain."""
        if self._decode_tag is None:
            return None
        try:
            return self._decode_tag(data).tag
        except (ValueError, RecursionError):
            return None


@functools.lru_cache(maxsize=512)
def _cached_decoder(type: Any) -> MessageDecoder:
    return MessageDecoder(type)


def decoder_for(type: Any) -> MessageDecoder:
    """The decoder of a type, built once."""
    try:
        return _cached_decoder(type)
    except TypeError:  # an annotation that cannot be hashed, or a type that msgspec refuses: the next line tells
        return MessageDecoder(type)


def text_of(event: Message) -> str:
    """The text of a `websocket.receive` event; raises MessageError if it is binary."""
    text: str | None = event.get("text")
    if text is None:
        raise wrong_kind(_sound(event), "text")
    if event.get("bytes") is not None:
        _sound(event)
    return text


def bytes_of(event: Message) -> bytes:
    """The bytes of a `websocket.receive` event; raises MessageError if it is text."""
    data: bytes | None = event.get("bytes")
    if data is None:
        raise wrong_kind(_sound(event), "binary")
    if event.get("text") is not None:
        _sound(event)
    return data


def either_of(event: Message) -> str | bytes:
    """The text or bytes of a `websocket.receive` event."""
    text: str | None = event.get("text")
    return text if text is not None and event.get("bytes") is None else bytes_of(event)


def _sound(event: Message) -> Message:
    """The event, if it carries either text or bytes, as ASGI demands."""
    if (event.get("text") is None) is (event.get("bytes") is None):
        raise ProtocolError("the server sent a websocket.receive that has not just one of 'text' and 'bytes'")
    return event


def wrong_kind(event: Message, wanted: str) -> MessageError:
    """The error for a text message where a binary one was asked for, or the other way round."""
    found = "text" if event.get("text") is not None else "binary"
    return MessageError(f"expected a {wanted} message, got a {found} one", code=1003)


def split_path(text: str) -> tuple[str, str | None]:
    """A text of msgspec's, as its statement and the path in the data that it is about."""
    detail, _, path = text.partition(" - at ")
    where = path.removeprefix("`").removesuffix("`").replace("`", "")
    return lower_first(detail), where or None


def lower_first(text: str) -> str:
    """The text with a small first letter, to stand inside a sentence; an abbreviation keeps its own."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _tag_decoder(field: str) -> Any:
    """Reads the tag of a message and skips over the rest."""
    only_tag = msgspec.defstruct("OnlyTag", [("tag", str | int)], rename={"tag": field})
    return msgspec.json.Decoder(only_tag).decode


def unknown_type(type: Any) -> Any:
    """The first type in a declaration that msgspec does not know, and so could never decode; None if it knows all.

    Raises:
        TypeError: msgspec refuses the declaration.
        NameError: It names something that cannot be found.
    """
    pending = [msgspec.inspect.type_info(type)]
    seen: set[int] = set()
    while pending:
        info = pending.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, msgspec.inspect.CustomType):
            return info.cls
        for name in ("types", "item_types", "fields"):
            pending += getattr(info, name, ())
        for name in ("item_type", "key_type", "value_type", "type"):
            if isinstance(getattr(info, name, None), msgspec.inspect.Type):
                pending.append(getattr(info, name))
    return None


def _tags_of(type: Any) -> tuple[str | None, tuple[Any, ...]]:
    """The field that tells the messages of a union apart, and its valid values."""
    info = msgspec.inspect.type_info(type)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    members = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    structs = [member for member in members if isinstance(member, msgspec.inspect.StructType) and not member.array_like]
    tags = tuple(member.tag for member in structs if member.tag is not None)
    return (structs[0].tag_field, tags) if tags else (None, ())
