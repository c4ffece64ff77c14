"""What a server can put on the wire of what an application sends."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..wire import is_token
from .shapes import Shape

Problem = str | None

ORDER: dict[str, frozenset[str]] = {
    "new": frozenset({"websocket.accept", "websocket.close", "websocket.http.response.start"}),
    "accepted": frozenset({"websocket.send", "websocket.close"}),
    "refused": frozenset({"websocket.http.response.body"}),
}
"""Which events may come in which state of the connection."""


class Checks:
    """Tells what is wrong with an event.

    Args:
        shape: The server.
        offered: The subprotocols that the client offers.
        portable: Find also what only other servers refuse.
    """

    def __init__(self, shape: Shape, offered: list[Any], *, portable: bool) -> None:
        self.shape = shape
        self.offered = offered
        self.portable = portable
        self._length: int | None = None
        self._sent = 0
        self._of: dict[str, Callable[[Mapping[str, Any]], Problem]] = {
            "websocket.accept": self._accept,
            "websocket.send": self._message,
            "websocket.close": self._close,
            "websocket.http.response.start": self._denial,
            "websocket.http.response.body": self._body,
        }

    def problem(self, state: str, event: Mapping[str, Any]) -> Problem:
        """What is wrong with an event in this state of the connection; None for nothing."""
        kind = event.get("type")
        if kind not in ORDER[state]:
            return f"{kind} while {state}"
        if kind == "websocket.close" and state == "accepted" and self.shape.own_codes_only:
            code = event.get("code", 1000)
            if isinstance(code, int) and 1000 < code < 3000:  # noqa: PLR2004
                return f"close code {code}, where only 1000 and 3000-4999 go"
        return self._of[str(kind)](event)

    def _accept(self, event: Mapping[str, Any]) -> Problem:
        subprotocol = event.get("subprotocol")
        if subprotocol is not None and (not is_token(subprotocol) or subprotocol not in self.offered):
            return f"subprotocol {subprotocol!r}, where the client offered {self.offered!r}"
        headers = event.get("headers") or []
        if problem := self._headers(headers):
            return problem
        if any(name.lower() == b"sec-websocket-protocol" for name, _ in headers):
            return "sec-websocket-protocol among the headers of accept"
        return None

    def _headers(self, headers: Any) -> Problem:
        for name, value in headers:
            if not isinstance(name, bytes) or not isinstance(value, bytes):
                return f"header {name!r}: {value!r} is not bytes"
            if not is_token(name.decode("latin-1")) or (self.portable and name != name.lower()):
                return f"header name {name!r}, which is no token{' in small letters' if self.portable else ''}"
            if re.search(rb"[\x00\r\n]", value) or (self.portable and value != value.strip()):
                return f"header value {value!r}"
        return None

    def _message(self, event: Mapping[str, Any]) -> Problem:
        text, data = event.get("text"), event.get("bytes")
        if (text is None) is (data is None):
            return f"not just one of text and bytes: {event!r}"
        if text is not None:
            return self._text(text)
        allowed = (bytes,) if self.portable or self.shape.only_bytes else (bytes, bytearray, memoryview)
        return None if isinstance(data, allowed) else f"bytes is {type(data)}"

    @staticmethod
    def _text(text: Any) -> Problem:
        if not isinstance(text, str):
            return f"text is {type(text)}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "a lone surrogate"
        return None

    def _close(self, event: Mapping[str, Any]) -> Problem:
        code, reason = event.get("code", 1000), event.get("reason") or ""
        allowed = {1000, 1001, 1002, 1003, *range(1007, 1015)}
        if self.portable:
            allowed -= {1010, 1014}
        number = isinstance(code, int) and not isinstance(code, bool) and (type(code) is int or not self.portable)
        if not number or not (code in allowed or 3000 <= code <= 4999):  # noqa: PLR2004
            return f"close code {code!r}"
        return "a reason over 123 bytes" if len(reason.encode()) > 123 else None  # noqa: PLR2004

    def _denial(self, event: Mapping[str, Any]) -> Problem:
        if not self.shape.denial:
            return "a denial without the extension"
        status = event.get("status")
        if not isinstance(status, int) or not 200 <= status <= 599:  # noqa: PLR2004
            return f"status {status!r}"
        headers = event.get("headers") or []
        if problem := self._headers(headers):
            return problem
        lengths = [value for name, value in headers if name.lower() == b"content-length"]
        if len(lengths) > 1 or (self.portable and not lengths):
            return "a denial has just one content-length"
        if lengths and not lengths[0].isdigit():
            return f"content-length {lengths[0]!r}"
        self._length = int(lengths[0]) if lengths else None
        return None

    def _body(self, event: Mapping[str, Any]) -> Problem:
        more = event.get("more_body")
        if more and (self.shape.one_body or self.portable):
            return "more_body"
        self._sent += len(event.get("body", b""))
        if self._length is not None and (self._sent > self._length or (not more and self._sent != self._length)):
            return "content-length is not the body's"
        return None
