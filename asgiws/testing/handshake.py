"""What a client sends to open a WebSocket: URL, headers, cookies."""

import collections
import email.message
import http.cookiejar
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from ..errors import ConfigurationError
from ..types import RawHeaders
from ..wire import header_pairs, is_token

Params: TypeAlias = Mapping[str, Any] | Iterable[tuple[str, Any]]
HeadersInput: TypeAlias = Mapping[str, str] | Iterable[tuple[Any, Any]]

_ABSOLUTE = r"[A-Za-z][A-Za-z0-9+.\-]*://"
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_PORTS = {"ws": 80, "wss": 443}
# What may stand in a URL as it is (RFC 3986, 3.3 and 3.4); all else is percent-encoded, as every client does.
_PATH = r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/%]"
_QUERY = r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\[\]]"


class Target(NamedTuple):
    """A URL in the parts that a scope has.

    Attributes:
        scheme: `ws` or `wss`.
        host: Without the port.
        port: The scheme's own where the URL names none.
        netloc: Host and port as the `Host` header has them.
        raw_path: Percent-encoded.
        query: Percent-encoded.
    """

    scheme: str
    host: str
    port: int
    netloc: str
    raw_path: bytes
    query: bytes

    @property
    def path(self) -> str:
        """The path as a server hands it over: decoded; what is not UTF-8 becomes U+FFFD."""
        return urllib.parse.unquote(self.raw_path.decode("ascii"))

    @property
    def http_url(self) -> str:
        """The URL for what knows only HTTP."""
        scheme = "https" if self.scheme == "wss" else "http"
        return f"{scheme}://{self.netloc}{self.raw_path.decode('ascii')}"


class ClientHeaders(collections.UserDict[str, str]):
    """Headers that a client sends with everything: a mapping whose names are in any case."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name.lower(), value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name.lower() if isinstance(name, str) else name)


def target(base_url: str, url: str, params: Params | None = None) -> Target:
    """The target of a URL.

    Args:
        base_url: What a URL without a host is put after.
        url: A path with a query, or a whole URL.
        params: Put after the query.

    Raises:
        ConfigurationError: It is no URL of a WebSocket.
    """
    whole = (
        url if re.match(_ABSOLUTE, url) else base_url.rstrip("/") + (url if url[:1] in ("/", "?", "") else f"/{url}")
    )
    try:
        parts = urllib.parse.urlsplit(_one_line(whole))
        scheme, port = _SCHEMES[parts.scheme], parts.port
        netloc = parts.netloc.rpartition("@")[2].encode("idna").decode("ascii")
    except (KeyError, ValueError):
        netloc = ""
    if not netloc:
        raise ConfigurationError(f"a WebSocket needs a URL like '/path?a=1' or 'ws://host/path', got {whole!r}")
    query = "&".join(filter(None, [parts.query, _query_of(params)]))
    return Target(
        scheme,
        parts.hostname or "",
        port or _PORTS[scheme],
        netloc,
        _encoded(parts.path, _PATH) or b"/",
        _encoded(query, _QUERY),
    )


def _query_of(params: Params | None) -> str:
    """A query string of values as httpx makes it: true, false and nothing for None; a list is a repeated key."""
    pairs = params.items() if isinstance(params, Mapping) else params or ()
    return urllib.parse.urlencode(
        [(key, _plain(one)) for key, value in pairs for one in (value if isinstance(value, list | tuple) else [value])]
    )


def _plain(value: Any) -> str:
    return {True: "true", False: "false", None: ""}[value] if value is None or isinstance(value, bool) else str(value)


def _one_line(url: str) -> str:
    """The URL with its control characters encoded: `urlsplit` would drop them without a word."""
    return re.sub(r"[\x00-\x20]", lambda found: f"%{ord(found[0]):02X}", url)


def _encoded(text: str, forbidden: str) -> bytes:
    text = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    encoded = re.sub(forbidden, lambda found: urllib.parse.quote(found[0], safe="", errors="replace"), text)
    return encoded.encode("ascii")


def handshake_headers(
    to: Target,
    headers: HeadersInput | None,
    *,
    origin: str | None,
    subprotocols: Iterable[str],
    cookies: Mapping[str, str] | None,
    jar: http.cookiejar.CookieJar,
) -> RawHeaders:
    """The headers of a handshake, as a server gets them.

    Args:
        to: Where it goes.
        headers: The test's own; they take the place of those that are made here.
        origin: The `Origin` of a browser; None for a client that sends none.
        subprotocols: What the client offers.
        cookies: The test's own.
        jar: What the client has kept.

    Raises:
        ProtocolError: A header is none.
    """
    given = header_pairs(headers)
    names = {name for name, _ in given}
    made = {
        b"host": to.netloc.encode("latin-1"),
        b"user-agent": b"asgiws-testclient",
        b"upgrade": b"websocket",
        b"connection": b"Upgrade",
        b"sec-websocket-version": b"13",
        b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",  # the example of RFC 6455, 1.3
    }
    pairs = [(name, value) for name, value in made.items() if name not in names]
    if origin is not None:
        pairs += header_pairs({"origin": origin})
    if offered := ", ".join(checked_subprotocols(subprotocols)):
        pairs.append((b"sec-websocket-protocol", offered.encode("ascii")))
    pairs += given
    return with_cookies(pairs, cookies, jar, to.http_url)


def with_cookies(
    headers: RawHeaders, cookies: Mapping[str, str] | None, jar: http.cookiejar.CookieJar, url: str
) -> RawHeaders:
    """The headers of a request with one `Cookie` of all that go with it: the test's own and those that were kept."""
    own = "; ".join(f"{name}={value}" for name, value in (cookies or {}).items())
    sent = [value.decode("latin-1") for name, value in headers if name == b"cookie"]
    sent += filter(None, [cookie_header(jar, url), own])
    others = [pair for pair in headers if pair[0] != b"cookie"]
    return [*others, *header_pairs({"cookie": "; ".join(sent)})] if sent else others


def checked_subprotocols(subprotocols: Iterable[str]) -> list[str]:
    """The subprotocols, if a client can offer them.

    Raises:
        ConfigurationError: They are one str, or one of them is no token (RFC 6455, 4.1).
    """
    if isinstance(subprotocols, str):
        raise ConfigurationError(f"subprotocols are a list of str, got {subprotocols!r}. Write [{subprotocols!r}].")
    names = list(subprotocols)
    for name in names:
        if not is_token(name):
            raise ConfigurationError(f"a client cannot offer the subprotocol {name!r}: it is no token (RFC 6455, 4.1)")
    return names


def cookie_header(jar: http.cookiejar.CookieJar, url: str) -> str | None:
    """The cookies of a jar that go to a URL, as the header has them."""
    request = urllib.request.Request(url)  # noqa: S310 - nothing is opened
    jar.add_cookie_header(request)
    return request.get_header("Cookie")


def set_cookie(jar: http.cookiejar.CookieJar, name: str, value: str) -> None:
    """Put a cookie into a jar, for any host."""
    jar.set_cookie(
        http.cookiejar.Cookie(
            version=0, name=name, value=value, port=None, port_specified=False, domain="", domain_specified=False,
            domain_initial_dot=False, path="/", path_specified=True, secure=False, expires=None, discard=True,
            comment=None, comment_url=None, rest={},
        )
    )  # fmt: skip


def keep_cookies(jar: http.cookiejar.CookieJar, url: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Keep the cookies that an answer sets."""
    jar.extract_cookies(_Answer(headers), urllib.request.Request(url))  # type: ignore[arg-type]  # noqa: S310


class _Answer:
    """As much of a response as a cookie jar asks for."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._message = email.message.Message()
        for name, value in headers:
            self._message[name.decode("latin-1")] = value.decode("latin-1")

    def info(self) -> email.message.Message:
        """The headers."""
        return self._message
