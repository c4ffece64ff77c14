"""Who may connect: the check of `Origin`, which is what stands between a WebSocket and any page on the web.

A browser lets every page open a WebSocket to every host and sends the host's cookies along; CORS does not apply. So the
server must look at `Origin` (RFC 6455, 10.2).
"""

import re
from collections.abc import Iterable

from .connection import parse_authority
from .errors import ConfigurationError
from .types import Scope

Triple = tuple[str, str, int | None]
"""Scheme, host and port of an origin; no port where it is the scheme's own."""

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]+)"


def parse_origin(text: str) -> Triple | None:
    """The parts of an origin (RFC 6454, 7.1); None for anything that is not exactly one."""
    found = re.fullmatch(_SCHEME, text)
    authority = parse_authority(found[2]) if found else None
    if found is None or authority is None:
        return None
    scheme = found[1].lower()
    host, port = authority
    return scheme, host, _port(port, scheme)


def _port(port: int | None, scheme: str) -> int | None:
    return None if port == _DEFAULT_PORTS.get(scheme) else port


class OriginPolicy:
    """Which origins may open a WebSocket.

    Args:
        allowed: None for the same host and port as the request's own; else exactly these: `https://example.com`,
            `https://*.example.com` (any subdomain, not the domain itself), `null`, or `*` for all.

    Raises:
        ConfigurationError: An entry is none of these.
    """

    __slots__ = ("_any", "_exact", "_null", "_same", "_suffixes")

    def __init__(self, allowed: Iterable[str] | None) -> None:
        if isinstance(allowed, str):
            raise ConfigurationError(f"allowed_origins takes a list, got a str: write [{allowed!r}]")
        if not (allowed is None or isinstance(allowed, Iterable)):
            raise ConfigurationError(f"allowed_origins takes a list of origins, got {allowed!r}")
        entries = list(allowed or ())
        self._same = allowed is None
        self._any = "*" in entries
        self._null = "null" in entries
        self._exact: set[Triple] = set()
        self._suffixes: list[tuple[str, str, int | None]] = []
        for entry in entries:
            if entry not in ("*", "null"):
                self._allow(entry)

    def _allow(self, entry: str) -> None:
        scheme, separator, authority = entry.partition("://") if isinstance(entry, str) else ("", "", "")
        if authority.startswith("*."):
            parsed = parse_origin(f"{scheme}{separator}{authority[2:]}")
            if parsed is not None:
                self._suffixes.append((parsed[0], f".{parsed[1]}", parsed[2]))
                return
        parsed = parse_origin(entry) if separator else None
        if parsed is None:
            raise ConfigurationError(
                f"allowed_origins holds origins such as 'https://example.com', 'https://*.example.com', 'null' or '*', "
                f"with no path and no slash at the end; got {entry!r}",
            )
        self._exact.add(parsed)

    @property
    def allows_all(self) -> bool:
        """Whether every origin may: `*` is among those allowed."""
        return self._any

    def refused(self, scope: Scope) -> tuple[str, str] | None:
        """The `Origin` and `Host` of a handshake that must be refused; None if it may go on.

        A handshake without `Origin` does not come from a browser and passes.
        """
        headers = scope.get("headers") or ()
        origins = []
        for name, value in headers:  # no comprehension, which is a call
            # The length is compared first: most names need not be made small then.
            if len(name) == 6 and name.lower() == b"origin":  # noqa: PLR2004
                origins.append(value)
        if not origins or self._any:
            return None
        hosts = [value for name, value in headers if name.lower() == b"host"]
        origin = ", ".join(value.decode("latin-1") for value in origins)
        host = ", ".join(value.decode("latin-1") for value in hosts)
        allowed = len(origins) == 1 and self._allows(origin, host if len(hosts) == 1 else "")
        return None if allowed else (origin, host)

    def _allows(self, origin: str, host: str) -> bool:
        if origin == "null":
            return self._null
        parsed = parse_origin(origin)
        if parsed is None:
            return False
        scheme, name, port = parsed
        if self._same:
            own = parse_authority(host)
            return own is not None and (own[0], _port(own[1], scheme)) == (name, port)
        return parsed in self._exact or any(
            scheme == one and name.endswith(suffix) and len(name) > len(suffix) and port == at
            for one, suffix, at in self._suffixes
        )
