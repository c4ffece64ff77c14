"""Close codes and reasons: what an application may send (RFC 6455, 7.4, and the IANA registry of close codes)."""

from typing import Any

# 1004 to 1006 and 1015 must not be sent, 1010 is the client's own, and peers take 1014 for a violation.
_REGISTERED = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013})
_OWN_FIRST, _OWN_LAST = 3000, 4999

REASON_BYTES = 123
"""A close frame carries 125 bytes at most, two of them for the code (RFC 6455, 5.5)."""


def check_code(code: Any) -> str | None:
    """What is wrong with a close code that an application wants to send; None for a good one."""
    if (
        isinstance(code, int)
        and not isinstance(code, bool)
        and (code in _REGISTERED or _OWN_FIRST <= code <= _OWN_LAST)
    ):
        return None
    return f"a close code is one of 1000-1003, 1007-1009, 1011-1013 or 3000-4999, got {code!r}"


def cut_reason(reason: str) -> str:
    """The reason, cut to the 123 bytes that fit into a close frame, never inside a character."""
    if not isinstance(reason, str):
        raise TypeError(f"the reason of a close is a str, got {type(reason).__name__}")
    data = reason.encode("utf-8", "replace")
    return data[:REASON_BYTES].decode("utf-8", "ignore")
