"""Tokens that a page can send with a WebSocket: as a subprotocol, or as the first message.

A browser lets a page set no header of a WebSocket's handshake. Where the client is no page, `HTTPBearer` is simpler.
"""

import base64
import math
import re
from collections.abc import Iterable
from typing import Any

import anyio
import msgspec

from .credentials import LONGEST, HTTPAuthorizationCredentials, SecurityBase, plain, plain_utf8
from .errors import ConfigurationError, HTTPException, MessageError, shown
from .messages import decoder_for
from .types import RawHeaders
from .websocket import WebSocket
from .wire import is_token

_BASE64URL = r"[A-Za-z0-9_-]+"
_FIRST = ""  # no prefix is empty
_TAKEN = "asgiws.tokens"
"""In a scope: the tokens that were taken out of the connection, by prefix, for who asks for them again."""


def _taken(ws: WebSocket, key: str) -> str | None:
    kept: HTTPAuthorizationCredentials | None = ws.scope.get(_TAKEN, {}).get(key)
    return kept.credentials if kept is not None else None


def _keep(ws: WebSocket, key: str, token: str) -> None:
    kept = HTTPAuthorizationCredentials("Bearer", token)  # not the bare token: the scope may be printed
    ws.scope = {**ws.scope, _TAKEN: {**ws.scope.get(_TAKEN, {}), key: kept}}


class SubprotocolToken(SecurityBase):
    """A token among the subprotocols of a WebSocket, the one part of a handshake that a page can fill freely.

    The client offers a prefix with the token in base64url (RFC 4648, 5; without padding), and a real subprotocol:

        new WebSocket(url, ["chat.v1", "base64url.bearer.authorization.k8s.io." + base64url(token)])

    The server must accept the real one, or a browser gives up: `await ws.accept("chat.v1")`. The token is taken out of
    `ws.scope`, and so out of `ws.subprotocols` and `ws.headers`, whether it is good or not: nothing later can send or
    print it. Who asks again on the same connection gets it again.

    Args:
        prefix: What the entry begins with; Kubernetes' own if left out.
        auto_error: Whether a client without a token, with two or with one that is no base64url of UTF-8, is refused
            with a 401. If not, the token is None.

    Raises:
        ConfigurationError: No subprotocol can begin with the prefix.
    """

    def __init__(self, *, prefix: str = "base64url.bearer.authorization.k8s.io.", auto_error: bool = True) -> None:
        super().__init__(auto_error=auto_error)
        if not is_token(prefix):
            raise ConfigurationError(f"SubprotocolToken(prefix=...) begins a subprotocol, got {shown(prefix)}")
        self.prefix = prefix

    async def __call__(self, ws: WebSocket) -> str | None:
        """The token of a WebSocket.

        Raises:
            HTTPException: 401, there is none. 400, there is no other subprotocol that could be accepted.
        """
        self._take(ws)
        if _taken(ws, self.prefix) is None:
            self._missing()
        elif not ws.subprotocols:
            raise HTTPException(400, "offer another subprotocol besides the token: the answer must name one")
        return _taken(ws, self.prefix)

    def _take(self, ws: WebSocket) -> None:
        """Take all that looks like a token out of the connection, and keep it if it is the only one."""
        offered = [name for name in ws.scope.get("subprotocols") or () if isinstance(name, str)]
        # hypercorn makes the list of the last line alone: a token may be in the header and not in the list.
        lines = ws.headers.getlist("sec-websocket-protocol")
        found = {name.strip() for name in [*offered, *",".join(lines).split(",")] if self._holds(name)}
        if not found:
            return
        others = [name for name in offered if not self._holds(name)]
        headers = ws.scope.get("headers") or ()
        ws.replace_in_scope(subprotocols=others, headers=_offering(headers, others) if lines else headers)
        token = self._decoded(found.pop()) if len(found) == 1 else None
        if token is not None:
            _keep(ws, self.prefix, token)

    def _holds(self, name: str) -> bool:
        return name.strip().startswith(self.prefix)

    def _decoded(self, name: str) -> str | None:
        encoded = name.removeprefix(self.prefix)
        if len(encoded) > LONGEST or len(encoded) % 4 == 1 or not re.fullmatch(_BASE64URL, encoded):
            return None
        return plain_utf8(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))


def _offering(headers: Iterable[Any], names: list[str]) -> RawHeaders:
    """The headers of a handshake that offers these subprotocols."""
    pairs = [(name, value) for name, value in headers if name.lower() != b"sec-websocket-protocol"]
    offer = ", ".join(filter(is_token, names))
    return [*pairs, (b"sec-websocket-protocol", offer.encode("ascii"))] if offer else pairs


class _TokenMessage(msgspec.Struct):
    token: str


class FirstMessageToken(SecurityBase):
    """A token in the first message of a WebSocket.

    It accepts the handshake, so the handler must not call `accept()`; what can be checked before (other dependencies)
    stands before it. Then the client has to send the token: as text, as a JSON string or as a JSON object,
    `{"token": "..."}`, whatever else is in that. Else the connection is closed with 4401. Who asks again on the same
    connection gets the token again.

    Args:
        deadline: The time that the client has after accept, in seconds.
        max_bytes: The largest first message, in bytes of UTF-8.
        subprotocols: Those that the service speaks; the first that the client offers is accepted.

    Raises:
        ConfigurationError: An argument is none of these.
    """

    def __init__(self, *, deadline: float = 10.0, max_bytes: int = 4096, subprotocols: Iterable[str] = ()) -> None:
        super().__init__()
        if not _is_number(deadline, float) or not 0 < deadline < math.inf:
            raise ConfigurationError(f"FirstMessageToken(deadline=...) takes seconds above 0, got {shown(deadline)}")
        if not _is_number(max_bytes) or max_bytes < 1:
            raise ConfigurationError(f"FirstMessageToken(max_bytes=...) takes at least 1, got {shown(max_bytes)}")
        known = () if isinstance(subprotocols, str) else tuple(subprotocols)
        if isinstance(subprotocols, str) or not all(map(is_token, known)):
            raise ConfigurationError(
                f"FirstMessageToken(subprotocols=...) takes a list of names such as ['chat.v1'], got "
                f"{shown(subprotocols)}",
            )
        self.deadline = deadline
        self.max_bytes = max_bytes
        self.subprotocols = known

    def make_not_authenticated_error(self) -> HTTPException:
        """What a client is closed with. It says what it should have done, not what was wrong."""
        detail = f"the first message is the token: text, at most {self.max_bytes} bytes, within {self.deadline:g} s"
        return HTTPException(401, detail, self.make_authenticate_headers())

    async def __call__(self, ws: WebSocket) -> str:
        """The token of a WebSocket, which it accepts.

        Raises:
            HTTPException: 401, none came.
            WebSocketDisconnect: The client left.
            WebSocketStateError: The handshake was answered before.
        """
        if _taken(ws, _FIRST) is None:
            offered = ws.subprotocols
            await ws.accept(next((name for name in self.subprotocols if name in offered), None))
            await self._receive(ws)
        token = _taken(ws, _FIRST)
        if token is None:
            raise self.make_not_authenticated_error()
        return token

    async def _receive(self, ws: WebSocket) -> None:
        """Wait for the first message, and keep the token if it is one."""
        with anyio.move_on_after(self.deadline):
            try:
                token = self._token_in(await ws.receive_text())
            except MessageError:
                return
            if token is not None:
                _keep(ws, _FIRST, token)

    def _token_in(self, text: str) -> str | None:
        if len(text) > self.max_bytes or len(text.encode("utf-8", "replace")) > self.max_bytes:
            return None
        text = text.strip()
        if not text.startswith(("{", '"')):
            return plain(text)
        message = decoder_for(str | _TokenMessage)({"text": text})
        return plain(message if isinstance(message, str) else message.token)


def _is_number(value: Any, *others: type) -> bool:
    return isinstance(value, (int, *others)) and not isinstance(value, bool)
