"""What may go on the wire: headers, subprotocols, text. Servers choke on anything else, each in its own way."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ProtocolError
from .types import RawHeaders

_NAME_FORM = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Control characters but the tab may not stand in a value; leading and trailing white space is not part of it.
_CONTROL = rb"[\x00-\x08\x0a-\x1f\x7f]"


def is_token(text: object) -> bool:
    """Whether it is a token of RFC 9110, 5.6.2: what a header's name and a subprotocol must be."""
    return isinstance(text, str) and re.fullmatch(_NAME_FORM, text) is not None


def header_pairs(headers: Mapping[str, str] | Iterable[tuple[Any, Any]] | None) -> RawHeaders:
    """Headers as a server takes them: bytes, names in small letters, values as they were given.

    Args:
        headers: A mapping, or pairs where a name comes more than once; str or bytes.

    Raises:
        ProtocolError: A name is no token, or a value has a control character or is not latin-1 (RFC 9110, 5.5).
    """
    if headers is None:
        return []
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(_header_name(name), _header_value(name, value)) for name, value in pairs]


def _header_name(name: Any) -> bytes:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if not is_token(text):
        raise ProtocolError(f"a header's name is letters, digits and hyphens, got {name!r}")
    return str(text).lower().encode("ascii")


def _header_value(name: Any, value: Any) -> bytes:
    try:
        data = value.encode("latin-1") if isinstance(value, str) else bytes(memoryview(value))
    except (UnicodeEncodeError, TypeError):
        raise ProtocolError(f"the value of header {name!r} is not latin-1 text: {type(value).__name__}") from None
    if re.search(_CONTROL, data):
        raise ProtocolError(f"the value of header {name!r} has a line break or another control character")
    return data.strip(b" \t")


def sendable_text(text: Any) -> str:
    """The text, if a text frame can carry it.

    Raises:
        TypeError: It is no str.
        ProtocolError: It holds half of a surrogate pair, which UTF-8 cannot express (RFC 6455, 5.6).
    """
    if not isinstance(text, str):
        raise TypeError(f"a text message is a str, got {type(text).__name__}; use send_bytes() or send_json()")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(
            f"a text message must be UTF-8, but at {error.start} stands half a surrogate pair"
        ) from None
    return text


def sendable_bytes(data: Any) -> bytes:
    """The data as bytes, which is what every server takes.

    Raises:
        TypeError: It is no bytes, bytearray or memoryview.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"a binary message is bytes, got {type(data).__name__}; use send_text() or send_json()")
    return bytes(data)
