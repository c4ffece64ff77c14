"""The application under test and the server that serves it, in one event loop."""

import http.cookiejar
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel

from ..types import RawHeaders, Scope
from ..wire import header_pairs
from .conversation import Conversation
from .errors import WebSocketDenied, attach
from .exchange import Exchange
from .handshake import (
    ClientHeaders,
    HeadersInput,
    Params,
    Target,
    checked_subprotocols,
    handshake_headers,
    keep_cookies,
    set_cookie,
    target,
    with_cookies,
)
from .lifespan import Lifespan
from .line import Line
from .shapes import Shape, make_scope, seen_headers, shape_of


class Handshake(NamedTuple):
    """What a client sends to open a WebSocket.

    Attributes:
        to: Where it goes.
        headers: All of them.
        subprotocols: What the client offers.
    """

    to: Target
    headers: RawHeaders
    subprotocols: list[str]


class Service:
    """An application on a server. All but `handshake` belongs into the event loop.

    Args:
        app: The application.
        server: The server, by name or as a Shape.
        base_url: What URLs without a host are put after.
        headers: Sent with every request.
        cookies: Kept from the beginning.
        timeout: Seconds that anything may take.
        raises: Exceptions of the application are raised in the test.
        root_path: Where the application is mounted.
        client: Host and port of the client.

    Attributes:
        jar: The cookies.
        headers: Sent with every request; a test may change them.
        timeout: Seconds that anything may take.

    Raises:
        ConfigurationError: The server or the base URL is none.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        server: str | Shape,
        base_url: str,
        headers: Mapping[str, str] | None,
        cookies: Mapping[str, str] | None,
        timeout: float,
        raises: bool,
        root_path: str,
        client: tuple[str, int],
    ) -> None:
        self.jar = http.cookiejar.CookieJar()
        self.headers = ClientHeaders(headers or {})
        self.timeout = timeout
        self.base_url = base_url
        self._app = app
        self._shape = shape_of(server)
        self._raises = raises
        self._root_path = root_path.rstrip("/")
        self._client = client
        self._lifespan: Lifespan | None = None
        self._open: list[Conversation] = []
        for name, value in (cookies or {}).items():
            set_cookie(self.jar, name, value)
        target(base_url, "/")

    # The life of the server

    async def start(self) -> None:
        """Run the startup of the application, if the server does such a thing.

        Raises:
            BaseException: What the application raised.
            LifespanError: It said that it failed.
            StuckError: It did not answer in time.
        """
        if self._shape.lifespan:
            self._lifespan = Lifespan(self._app, self._shape, self.timeout)
            await self._lifespan.startup()

    async def stop(self, failure: BaseException | None) -> None:
        """End what is still open, then run the shutdown of the application.

        Args:
            failure: What the test raises already; it is told of any problem.

        Raises:
            BaseException: What the application raised.
        """
        problems: list[BaseException] = [] if failure is None else [failure]
        with anyio.CancelScope(shield=True):
            for end in [*(talk.finish(failure) for talk in self._open), self._shut_down()]:
                try:
                    await end
                except BaseException as problem:  # noqa: BLE001 - all of them are told together
                    problems.append(problem)
        self._open.clear()
        for second in problems[1:]:
            attach(problems[0], second)
        if failure is None and problems:
            raise problems[0]

    async def _shut_down(self) -> None:
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.shutdown()

    async def interrupt(self) -> None:
        """Let the server stop (SIGTERM), as far as open connections see it."""
        for talk in self._open:
            talk.stop()
        await anyio.lowlevel.checkpoint()

    # WebSockets

    def handshake(
        self,
        url: str,
        *,
        params: Params | None,
        headers: HeadersInput | None,
        cookies: Mapping[str, str] | None,
        subprotocols: Iterable[str],
        origin: str | None,
    ) -> Handshake:
        """What the client sends.

        Raises:
            ConfigurationError: The URL is none of a WebSocket, or a subprotocol is no token.
            ProtocolError: A header is none.
        """
        to = target(self.base_url, url, params)
        offered = checked_subprotocols(subprotocols)
        pairs = handshake_headers(
            to, self.merged(headers), origin=origin, subprotocols=offered, cookies=cookies, jar=self.jar
        )
        return Handshake(to, pairs, offered)

    def merged(self, headers: HeadersInput | None) -> RawHeaders:
        """The headers of one request: its own, and those of the client that it does not replace."""
        own = header_pairs(headers)
        names = {name for name, _ in own}
        return [pair for pair in header_pairs(self.headers) if pair[0] not in names] + own

    def request_headers(self, url: str, headers: HeadersInput | None, cookies: Mapping[str, str] | None) -> RawHeaders:
        """The headers of an HTTP request that are not httpx's own."""
        pairs = self.merged(headers)
        if not cookies:
            return pairs
        return with_cookies(pairs, cookies, self.jar, target(self.base_url, url).http_url)

    def _conversation(self, handshake: Handshake) -> Conversation:
        to = handshake.to
        line = Line(self._shape, subprotocols=handshake.subprotocols)
        line.scope |= make_scope(
            self._shape, "websocket", **self._paths(to.raw_path), query_string=to.query,
            headers=seen_headers(self._shape, handshake.headers), client=self._client, server=(to.host, to.port),
            scheme=to.scheme,
        )  # fmt: skip
        self._add_state(line.scope)
        return Conversation(self._app, line, timeout=self.timeout, raises=self._raises)

    def _paths(self, raw_path: bytes) -> dict[str, Any]:
        if self._shape.prepends_root:
            raw_path = urllib.parse.quote(self._root_path).encode() + raw_path
        path = urllib.parse.unquote(raw_path.decode("latin-1"))
        return {"path": path, "raw_path": raw_path, "root_path": self._root_path}

    def _add_state(self, scope: Scope) -> None:
        if "state" in scope and self._lifespan is not None:
            scope["state"] = dict(self._lifespan.state)

    async def open(self, handshake: Handshake) -> Conversation:
        """Open a WebSocket; raises as `Conversation.open`."""
        talk = self._conversation(handshake)
        self._open.append(talk)
        try:
            await talk.open()
        except BaseException as error:
            self._open.remove(talk)
            if isinstance(error, WebSocketDenied):
                keep_cookies(self.jar, handshake.to.http_url, error.raw_headers)
            raise
        keep_cookies(self.jar, handshake.to.http_url, talk.line.accept_headers)
        return talk

    async def close(self, talk: Conversation, failure: BaseException | None) -> None:
        """End a WebSocket; raises as `Conversation.finish`."""
        try:
            await talk.finish(failure)
        finally:
            if talk in self._open:
                self._open.remove(talk)

    async def vanish(self, handshake: Handshake) -> None:
        """Send a handshake and leave before it is answered; raises as `Conversation.finish`."""
        await self._conversation(handshake).vanish()

    # HTTP

    def exchange(
        self,
        body: Iterable[bytes],
        *,
        method: str,
        raw_path: bytes,
        timeout: float | None,
        headers: RawHeaders,
        **parts: Any,
    ) -> Exchange:
        """An HTTP request with its response.

        Args:
            body: In chunks.
            method: In capitals.
            raw_path: Without the query.
            timeout: In seconds; None for that of the client.
            headers: As the client sends them.
            parts: More of the scope: scheme, server, query_string.
        """
        scope = make_scope(
            self._shape, "http", **self._paths(raw_path), headers=seen_headers(self._shape, headers),
            client=self._client, **parts,
        )  # fmt: skip
        scope |= {"method": method, "http_version": "1.1", "scheme": parts["scheme"], "extensions": {}}
        self._add_state(scope)
        seconds = self.timeout if timeout is None else timeout
        return Exchange(self._app, self._shape, scope, body, timeout=seconds, raises=self._raises)
