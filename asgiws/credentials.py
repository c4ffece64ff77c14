"""Credentials that come with a handshake or a request: in its headers, its query string or a cookie.

A value is taken only if it is there once, of printable ASCII without commas (some servers make one line of two, with a
comma between them) and not too long. A function that raises holds no credential in a variable: some reports print them.
"""

import base64
import hmac
import re
from typing import Any, ClassVar, Never

from .connection import Connection
from .errors import ConfigurationError, HTTPException, shown
from .wire import is_token

LONGEST = 8192
"""How many characters a credential has at most: who checks it may do so by a slow hash."""

_REALM = "restricted"
_PRINTABLE = r"[ -+\--~]+"  # ASCII, but for the comma
_PLAIN = r"[^\x00-\x1f\x7f\ud800-\udfff]+"


def constant_time_compare(given: str | bytes | None, expected: str | bytes | None) -> bool:
    """Whether a secret is the expected one, in a time that does not tell how much of it is right.

    The lengths may show. Text is compared as UTF-8: it need not be ASCII, and equals its own bytes.

    Args:
        given: What the client sent.
        expected: What it should be. None, for either of them, equals nothing: a client without a secret is not let in,
            nor is anybody by a service whose own is not configured.

    Raises:
        TypeError: One of them is of another type.
    """
    if given is None or expected is None:
        return False
    return hmac.compare_digest(_as_bytes(given), _as_bytes(expected))


def _as_bytes(secret: Any) -> bytes:
    if isinstance(secret, str):
        return secret.encode("utf-8", "surrogatepass")
    if isinstance(secret, bytes | bytearray | memoryview):
        return bytes(secret)
    raise TypeError(f"a secret is str, bytes or None, got {type(secret).__name__}")


class _Credentials:
    """What a client sent; only its attributes show it."""

    __slots__: tuple[str, ...] = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        same = [constant_time_compare(getattr(self, name), getattr(other, name)) for name in self.__slots__]
        return all(same)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, hidden>"

    def __reduce__(self) -> Never:
        raise TypeError(f"{type(self).__name__} is not copied or pickled: it holds a secret")


class HTTPAuthorizationCredentials(_Credentials):
    """What `HTTPBearer` gives.

    Attributes:
        scheme: As the client wrote it: `Bearer`, in any case.
        credentials: The token.
    """

    __slots__ = ("credentials", "scheme")

    def __init__(self, scheme: str, credentials: str) -> None:
        self.scheme = scheme
        self.credentials = credentials


class HTTPBasicCredentials(_Credentials):
    """What `HTTPBasic` gives.

    Attributes:
        username: May be empty; it has no colon.
        password: May be empty.
    """

    __slots__ = ("password", "username")

    def __init__(self, username: str, password: str) -> None:
        self.username = username
        self.password = password


class SecurityBase:
    """What the helpers have in common.

    Args:
        scheme_name: A name for documentation; the class's if left out.
        description: For documentation.
        auto_error: Whether a client without credentials is refused. If not, its credentials are None; also if what it
            sent can be none.

    Attributes:
        ambient: Whether a browser sends the credentials by itself, also with a WebSocket that a page of somebody else
            opens. Then the check of `Origin` alone keeps such a page out.
    """

    ambient: ClassVar[bool] = False

    def __init__(
        self,
        *,
        scheme_name: str | None = None,
        description: str | None = None,
        auto_error: bool = True,
    ) -> None:
        self.scheme_name = scheme_name or type(self).__name__
        self.description = description
        self.auto_error = auto_error

    def make_authenticate_headers(self) -> dict[str, str]:
        """The challenge, which belongs to every 401 (RFC 9110, 11.6.1)."""
        return {"WWW-Authenticate": f'Bearer realm="{_REALM}"'}

    def make_not_authenticated_error(self) -> HTTPException:
        """What a client is refused with. It does not say what was wrong."""
        return HTTPException(401, "Not authenticated", self.make_authenticate_headers())

    def _missing(self) -> None:
        if self.auto_error:
            raise self.make_not_authenticated_error()


def _only(values: list[str]) -> str | None:
    """The one value, if a credential can look like that."""
    value = values[0].strip(" \t") if len(values) == 1 else ""
    return value if len(value) <= LONGEST and re.fullmatch(_PRINTABLE, value) else None


def plain(text: str) -> str | None:
    """The text, if a credential can look like that: not empty, no control characters, no half of a surrogate pair."""
    return text if re.fullmatch(_PLAIN, text) else None


def plain_utf8(data: bytes) -> str | None:
    """The same, of text in UTF-8."""
    try:
        return plain(data.decode())
    except UnicodeDecodeError:
        return None


# The Authorization header


class _Authorization(SecurityBase):
    """Credentials in the `Authorization` header."""

    scheme: ClassVar[str]

    def __init__(self, *, realm: str | None, **options: Any) -> None:
        super().__init__(**options)
        self.realm = _REALM if realm is None else realm
        if not isinstance(self.realm, str) or not self.realm.isascii() or not self.realm.isprintable():
            raise ConfigurationError(f"{type(self).__name__}(realm=...) takes printable ASCII, got {shown(realm)}")

    def make_authenticate_headers(self) -> dict[str, str]:
        """The challenge: scheme and realm."""
        quoted = re.sub(r'(["\\])', r"\\\1", self.realm)
        return {"WWW-Authenticate": f'{self.scheme} realm="{quoted}"'}

    def _sent(self, connection: Connection) -> tuple[str, str] | None:
        """The scheme and what follows it, if that is this scheme, in any case (RFC 9110, 11.1), and one word."""
        line = _only(connection.headers.getlist("authorization")) or ""
        scheme, _, credentials = line.partition(" ")
        credentials = credentials.lstrip(" ")
        if scheme.lower() != self.scheme.lower() or not credentials or " " in credentials:
            return None
        return scheme, credentials


class HTTPBearer(_Authorization):
    """A token in `Authorization: Bearer <token>` (RFC 6750, 2.1).

    Args:
        bearerFormat: For documentation.
        scheme_name: A name for documentation.
        description: For documentation.
        realm: What the token is for, as the client is told (RFC 9110, 11.5).
        auto_error: Whether a client without a token is refused with a 401. If not, the credentials are None.

    Raises:
        ConfigurationError: The realm is not printable ASCII.
    """

    scheme = "Bearer"

    def __init__(
        self,
        *,
        bearerFormat: str | None = None,  # noqa: N803 - FastAPI's name
        scheme_name: str | None = None,
        description: str | None = None,
        realm: str | None = None,
        auto_error: bool = True,
    ) -> None:
        super().__init__(realm=realm, scheme_name=scheme_name, description=description, auto_error=auto_error)
        self.bearer_format = bearerFormat

    async def __call__(self, connection: Connection) -> HTTPAuthorizationCredentials | None:
        """The credentials of a WebSocket or request.

        Raises:
            HTTPException: 401, there are none.
        """
        credentials = self._read(connection)
        if credentials is None:
            self._missing()
        return credentials

    def _read(self, connection: Connection) -> HTTPAuthorizationCredentials | None:
        sent = self._sent(connection)
        return HTTPAuthorizationCredentials(*sent) if sent is not None else None


class OAuth2PasswordBearer(_Authorization):
    """The token of `Authorization: Bearer <token>` (RFC 6750, 2.1) as a str: `HTTPBearer` for those who know it so.

    Args:
        tokenUrl: Where a client gets its token, for documentation.
        scheme_name: A name for documentation.
        scopes: What a token may be for, for documentation.
        description: For documentation.
        auto_error: Whether a client without a token is refused with a 401. If not, the token is None.
        refreshUrl: For documentation.
        realm: What the token is for, as the client is told (RFC 9110, 11.5).

    Raises:
        ConfigurationError: The realm is not printable ASCII.
    """

    scheme = "Bearer"

    def __init__(
        self,
        tokenUrl: str,  # noqa: N803 - FastAPI's name
        scheme_name: str | None = None,
        scopes: dict[str, str] | None = None,
        description: str | None = None,
        auto_error: bool = True,
        refreshUrl: str | None = None,  # noqa: N803 - same
        *,
        realm: str | None = None,
    ) -> None:
        super().__init__(realm=realm, scheme_name=scheme_name, description=description, auto_error=auto_error)
        self.token_url = tokenUrl
        self.refresh_url = refreshUrl
        self.scopes = dict(scopes or {})

    async def __call__(self, connection: Connection) -> str | None:
        """The token of a WebSocket or request.

        Raises:
            HTTPException: 401, there is none.
        """
        sent = self._sent(connection)
        if sent is None:
            self._missing()
            return None
        return sent[1]


class HTTPBasic(_Authorization):
    """User name and password in `Authorization: Basic <base64>` (RFC 7617).

    Args:
        scheme_name: A name for documentation.
        realm: What they are for, as the browser tells its user (RFC 9110, 11.5).
        description: For documentation.
        auto_error: Whether a client without them is refused with a 401. If not, the credentials are None.

    Raises:
        ConfigurationError: The realm is not printable ASCII.
    """

    scheme = "Basic"
    ambient = True

    def __init__(
        self,
        *,
        scheme_name: str | None = None,
        realm: str | None = None,
        description: str | None = None,
        auto_error: bool = True,
    ) -> None:
        super().__init__(realm=realm, scheme_name=scheme_name, description=description, auto_error=auto_error)

    def make_authenticate_headers(self) -> dict[str, str]:
        """The challenge, which asks for UTF-8 (RFC 7617, 2.1)."""
        (challenge,) = super().make_authenticate_headers().values()
        return {"WWW-Authenticate": f'{challenge}, charset="UTF-8"'}

    async def __call__(self, connection: Connection) -> HTTPBasicCredentials | None:
        """The credentials of a WebSocket or request.

        Raises:
            HTTPException: 401, there are none.
        """
        credentials = self._read(connection)
        if credentials is None:
            self._missing()
        return credentials

    def _read(self, connection: Connection) -> HTTPBasicCredentials | None:
        _, encoded = self._sent(connection) or ("", "")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError:
            return None
        # Control characters may stand in neither of them (RFC 7617, 2).
        username, colon, password = (plain_utf8(data) or "").partition(":")
        return HTTPBasicCredentials(username, password) if colon else None


# Keys by a name


class _APIKey(SecurityBase):
    """A key that the client sends by a name."""

    def __init__(
        self,
        *,
        name: str,
        scheme_name: str | None = None,
        description: str | None = None,
        auto_error: bool = True,
    ) -> None:
        super().__init__(scheme_name=scheme_name, description=description, auto_error=auto_error)
        if not self._is_name(name):
            raise ConfigurationError(f"{type(self).__name__}(name=...): no client can send {shown(name)}")
        self.name = name

    def make_authenticate_headers(self) -> dict[str, str]:
        """The challenge. No scheme is registered for keys: it is FastAPI's."""
        return {"WWW-Authenticate": "APIKey"}

    async def __call__(self, connection: Connection) -> str | None:
        """The key of a WebSocket or request.

        Raises:
            HTTPException: 401, there is none.
        """
        key = _only(self._values(connection))
        if key is None:
            self._missing()
        return key

    @staticmethod
    def _is_name(name: Any) -> bool:
        return is_token(name)

    def _values(self, connection: Connection) -> list[str]:
        """All that the client sent by the name."""
        raise NotImplementedError


class APIKeyHeader(_APIKey):
    """A key in a header.

    Args:
        name: The header, in any case.
        scheme_name: A name for documentation.
        description: For documentation.
        auto_error: Whether a client without a key is refused with a 401. If not, the key is None.

    Raises:
        ConfigurationError: There can be no such name.
    """

    def _values(self, connection: Connection) -> list[str]:
        return connection.headers.getlist(self.name)


class APIKeyQuery(_APIKey):
    """A key in the query string. Arguments and errors are those of `APIKeyHeader`.

    Servers and proxies write query strings to their access logs: let the key be good for once, and for a minute.
    """

    @staticmethod
    def _is_name(name: Any) -> bool:
        return isinstance(name, str) and name != ""

    def _values(self, connection: Connection) -> list[str]:
        return connection.query_params.getlist(self.name)


class APIKeyCookie(_APIKey):
    """A key in a cookie. Arguments and errors are those of `APIKeyHeader`.

    Two cookies of the name are none: a host beside this one may have planted the other.
    """

    ambient = True

    def _values(self, connection: Connection) -> list[str]:
        cookies = ";".join(connection.headers.getlist("cookie")).split(";")
        times = [cookie.partition("=")[0].strip() for cookie in cookies].count(self.name)
        return [connection.cookies.get(self.name, "")] * times
