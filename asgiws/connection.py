"""What an HTTP request and a WebSocket handshake have in common: the scope, decoded only when asked for."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from .types import Scope


class Address(NamedTuple):
    """One end of a connection."""

    host: str
    port: int


class MultiDict(Mapping[str, str]):
    """A read-only mapping whose keys may have several values.

    `[key]` and `get` give the last value, as Starlette's `QueryParams` do; `getlist` gives all of them.
    """

    __slots__ = ("_pairs", "_values")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = list(pairs)
        values: dict[str, list[str]] = {}
        for key, value in self._pairs:
            if key in values:
                values[key].append(value)
            else:
                values[key] = [value]
        self._values = values

    def __getitem__(self, key: str) -> str:
        return self._values[key][-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """The last value of a key, else the default."""
        values = self._values.get(key)
        return values[-1] if values else default

    def getlist(self, key: str) -> list[str]:
        """All values of a key, in the order in which they came; empty if there are none."""
        return list(self._values.get(key, ()))

    def multi_items(self) -> list[tuple[str, str]]:
        """Every key and value, one pair a value, in the order in which they came."""
        return list(self._pairs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(map(repr, self._values)) or 'nothing'}>"


class Headers(MultiDict):
    """Headers: names in any case; `[name]` gives the first value, as Starlette's `Headers` do."""

    __slots__ = ()

    def __init__(self, raw: Iterable[Iterable[bytes]] = ()) -> None:
        super().__init__((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The first value of a header, else the default."""
        values = self._values.get(key.lower())
        return values[0] if values else default

    def getlist(self, key: str) -> list[str]:
        """All values of a header, one a line of the request; empty if there are none."""
        return super().getlist(key.lower())


class State:
    """The scope's `state` with its keys as attributes, as Starlette has it; also a mapping by `[key]`."""

    __slots__ = ("_values",)
    _values: MutableMapping[str, Any]

    def __init__(self, values: MutableMapping[str, Any]) -> None:
        object.__setattr__(self, "_values", values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":  # asked for by copy and pickle, before there is anything
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(map(str, self._values)) or "nothing"
            raise AttributeError(f"the state has no {name!r}; it holds {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._values[name]
        except KeyError:
            raise AttributeError(f"the state has no {name!r}") from None

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __copy__(self) -> "State":
        return State(dict(self._values))

    def __repr__(self) -> str:
        return f"<State of {', '.join(map(str, self._values)) or 'nothing'}>"


class URL(NamedTuple):
    """The URL of a connection.

    Attributes:
        scheme: `ws`, `wss`, `http` or `https`.
        hostname: From the one valid `Host` header, else the server's own; "" where neither is known.
        port: The port that the client named; None for the scheme's own.
        path: Decoded, with the root path.
        query: As it came, not decoded.
    """

    scheme: str
    hostname: str
    port: int | None
    path: str
    query: str

    def __str__(self) -> str:
        from urllib.parse import quote  # noqa: PLC0415 - slow to import

        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        port = "" if self.port is None else f":{self.port}"
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{host}{port}{quote(self.path)}{query}"

    def __repr__(self) -> str:
        """The URL without its query string, which may hold a token."""
        return f"<URL {str(self._replace(query=''))!r}>"


class Connection:
    """What is known of a connection before anything is sent on it; the base of `WebSocket` and `Request`.

    Attributes:
        scope: The ASGI scope.
        path_params: The values from the path.
    """

    __slots__ = ("_app", "_cookies", "_headers", "_id", "_query", "path_params", "scope")

    def __init__(self, scope: Scope, app: Any = None, path_params: dict[str, Any] | None = None) -> None:
        self.scope = scope
        if path_params is None:
            path_params = scope.get("path_params") or {}
        self.path_params: dict[str, Any] = path_params
        self._app = app
        self._headers: Headers | None = None
        self._query: MultiDict | None = None
        self._cookies: dict[str, str] | None = None
        self._id: str | None = None

    @property
    def app(self) -> Any:
        """The `App` that serves the connection; without one, what `scope["app"]` holds, or None."""
        return self._app if self._app is not None else self.scope.get("app")

    @property
    def id(self) -> str:
        """A random name of this connection, for logs: 16 hex digits, the same as long as the connection lives."""
        if self._id is None:
            self._id = os.urandom(8).hex()
        return self._id

    def replace_in_scope(self, **replaced: Any) -> None:
        """Give the connection a scope of its own with other values; what middleware sees stays as it is."""
        self.scope = {**self.scope, **replaced}
        self._headers = self._query = self._cookies = None

    @property
    def headers(self) -> Headers:
        """The headers, decoded as latin-1 (RFC 9110, 5.5)."""
        if self._headers is None:
            self._headers = Headers(self.scope.get("headers") or ())
        return self._headers

    @property
    def query_params(self) -> MultiDict:
        """The query string, percent-decoded as UTF-8; what is not UTF-8 becomes U+FFFD."""
        if self._query is None:
            self._query = MultiDict(_query_pairs(self.scope.get("query_string") or b""))
        return self._query

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies, from one header or several (RFC 9113, 8.2.3)."""
        if self._cookies is None:
            self._cookies = dict(_cookie_pairs("; ".join(self.headers.getlist("cookie"))))
        return self._cookies

    @property
    def client(self) -> Address | None:
        """The peer's address; None where the server does not know it."""
        return _address(self.scope.get("client"))

    @property
    def state(self) -> State:
        """What the lifespan yielded and what middleware and handlers add; each connection has its own mapping."""
        values = self.scope.get("state")
        if values is None:
            values = self.scope["state"] = {}
        return State(values)

    @property
    def url(self) -> URL:
        """The URL that the client asked for, as far as the scope tells. It never trusts `X-Forwarded-*`."""
        scope = self.scope
        hosts = [value for name, value in scope.get("headers") or () if name.lower() == b"host"]
        host = parse_authority(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if host is None:
            server = scope.get("server")
            host = (server[0], int(server[1])) if server and server[1] is not None else ("", None)
        scheme = scope.get("scheme") or ("ws" if scope["type"] == "websocket" else "http")
        query = (scope.get("query_string") or b"").decode("latin-1")
        return URL(scheme, host[0], host[1], "".join(split_root(scope)) or "/", query)


# Patterns are not compiled here but by the first who uses them: `re` keeps them, and an import stays quick.
_AUTHORITY = r"(?P<host>[\w-]+(?:\.[\w-]+)*\.?|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\])(?::(?P<port>[0-9]{1,5}))?"
_LAST_PORT = 65535


def parse_authority(text: str) -> tuple[str, int | None] | None:
    """Host (small letters, no brackets) and port of `host:port`; None for anything else (RFC 3986, 3.2)."""
    found = re.fullmatch(_AUTHORITY, text, re.ASCII)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > _LAST_PORT:
        return None
    return found["host"].strip("[]").lower(), port


def split_root(scope: Scope) -> tuple[str, str]:
    """The root path of a scope, and the path below it: "" for the root path itself.

    uvicorn puts the root path before the path, other servers do not: it is taken off where it is there, on a segment's
    border.
    """
    path: str = scope.get("path") or "/"
    if len(path) > 1 and path[-1] == "/" and not (scope.get("raw_path") or b"/").endswith((b"/", b"%2F", b"%2f")):
        path = path[:-1]  # Litestar puts a slash at the end of every path that it hands to what it mounts
    root: str = (scope.get("root_path") or "").rstrip("/")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return root, path[len(root) :]
    return root, path


def _address(pair: Any) -> Address | None:
    """The address in a scope: servers give a tuple or list, the port as int or str, or None for a Unix socket."""
    if not pair:
        return None
    host, port = pair
    return Address(host, int(port or 0))


def _query_pairs(raw: bytes) -> list[tuple[str, str]]:
    pairs = []
    text = raw.decode("utf-8", "replace")
    for pair in text.split("&"):
        if pair:
            key, _, value = pair.partition("=")
            pairs.append((key, value))
    if "%" in text or "+" in text:
        from urllib.parse import unquote_plus  # noqa: PLC0415 - slow to import

        return [(unquote_plus(key), unquote_plus(value)) for key, value in pairs]
    return pairs


def _cookie_pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals and name.strip():
            yield name.strip(), value.strip().strip('"')
