"""As much HTTP as a WebSocket service needs: a health check, a page, a hook that publishes."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import anyio

from .connection import Connection
from .errors import HTTPException, ProtocolError
from .limits import DEFAULT_LIMITS, Limits
from .messages import encode
from .types import ASGIApp, Message, RawHeaders, Receive, Scope, Send
from .wire import header_pairs

_NO_BODY = frozenset({204, 304})


class ClientDisconnectError(Exception):
    """The client left before its request was complete; nobody is there to be answered."""


class Request(Connection):
    """An HTTP request.

    Raises:
        ProtocolError: The scope is none of an HTTP request.
    """

    __slots__ = ("_body", "_limits", "_receive")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        *,
        app: Any = None,
        path_params: dict[str, Any] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if scope["type"] != "http":
            raise ProtocolError(f"a Request needs a scope of type 'http', got {scope['type']!r}")
        super().__init__(scope, app, path_params)
        self._receive = receive
        self._body: bytes | None = None
        self._limits = limits

    @property
    def method(self) -> str:
        """The method, in capital letters."""
        return str(self.scope["method"])

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            HTTPException: 413, the body is larger than `Limits.body_bytes`.
        """
        if self._body is None:
            limit = self._limits.body_bytes
            announced = self.headers.get("content-length", "")
            if announced.isdecimal() and len(announced) <= 20 and int(announced) > limit:  # noqa: PLR2004
                raise _too_large(limit)
            self._body = await self._read(limit)
        return self._body

    @property
    def loaded_body(self) -> bytes:
        """The body, if it was read before; else nothing."""
        return self._body or b""

    async def _read(self, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ClientDisconnectError
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
            if not event.get("more_body", False):
                return b"".join(chunks)

    def __repr__(self) -> str:
        """Method and path, never the query string: it may hold a token."""
        return f"<Request {self.method} {self.scope.get('path', '')!r}>"


class Response:
    """A whole response; an ASGI application, for requests and for the denial of a WebSocket handshake.

    Args:
        content: str (as UTF-8), bytes or None.
        status_code: The HTTP status.
        headers: A mapping, or pairs where a name comes more than once.
        media_type: The content type; a `text/` type gets its charset.

    Raises:
        ProtocolError: A header cannot be sent.
    """

    media_type: str | None = None

    def __init__(
        self,
        content: Any = None,
        status_code: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.status_code = status_code
        self.body = self.render(content)
        self.raw_headers = header_pairs(headers)
        names = {name for name, _ in self.raw_headers}
        kind = media_type or self.media_type
        if kind and b"content-type" not in names:
            kind = f"{kind}; charset=utf-8" if kind.startswith("text/") and "charset" not in kind else kind
            self.raw_headers += header_pairs({"content-type": kind})
        if b"content-length" not in names and status_code not in _NO_BODY:
            self.raw_headers.append((b"content-length", b"%d" % len(self.body)))

    def render(self, content: Any) -> bytes:
        """The content as bytes; a subclass may take more than str, bytes and None."""
        if content is None:
            return b""
        return content.encode() if isinstance(content, str) else bytes(memoryview(content))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send it; with the events of a denial where the scope is a WebSocket's."""
        prefix = "websocket." if scope["type"] == "websocket" else ""
        start = {"type": f"{prefix}http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        silent = self.status_code in _NO_BODY or scope.get("method") == "HEAD"
        await send({"type": f"{prefix}http.response.body", "body": b"" if silent else self.body})


class JSONResponse(Response):
    """Anything that msgspec encodes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The content as JSON. Raises TypeError for what msgspec cannot encode."""
        return encode(content)


class HTMLResponse(Response):
    """A page."""

    media_type = "text/html"


class PlainTextResponse(Response):
    """Text."""

    media_type = "text/plain"


def error_response(error: HTTPException) -> Response:
    """The answer of an HTTPException: `{"detail": ...}`, to a request and to a handshake alike."""
    if error.status_code in _NO_BODY:
        return Response(status_code=error.status_code, headers=error.headers)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def to_response(result: Any) -> ASGIApp:
    """What a handler returned, as a response: None is an empty 204, str is text, what is no response JSON."""
    if isinstance(result, Response):
        return result
    # Another framework's response, or any other ASGI application.
    if inspect.iscoroutinefunction(result) or inspect.iscoroutinefunction(getattr(type(result), "__call__", None)):  # noqa: B004
        response: ASGIApp = result
        return response
    if result is None:
        return Response(status_code=204)
    if isinstance(result, str):
        return PlainTextResponse(result)
    if isinstance(result, bytes | bytearray | memoryview):
        return Response(result, media_type="application/octet-stream")
    return JSONResponse(result)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"a body has at most {limit} bytes")


async def collect_response(response: ASGIApp, scope: Scope) -> tuple[int, RawHeaders, bytes]:
    """Status, headers and whole body of an ASGI response."""
    start: Message | None = None
    body: list[bytes] = []

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError  # pragma: no cover

    async def send(message: Message) -> None:
        nonlocal start
        if message["type"].endswith("http.response.start"):
            start = message
        elif message["type"].endswith("http.response.body"):
            body.append(bytes(message.get("body", b"")))

    await response(scope, receive, send)
    if start is None:
        raise ProtocolError(f"a denial response must send a status, {type(response).__name__} sent none")
    if not 200 <= start["status"] <= 599:  # noqa: PLR2004 - RFC 9110, 15
        raise ProtocolError(f"a denial has a final HTTP status, from 200 to 599, got {start['status']}")
    return int(start["status"]), header_pairs(start.get("headers")), b"".join(body)
