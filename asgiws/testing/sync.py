"""The test client of tests that are not async: an event loop in a thread, and the async client's parts in it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from .client import Client, no_httpx
from .errors import tell
from .handshake import HeadersInput, Params
from .portal import LoopThread
from .shapes import Shape
from .sync_session import WebSocketSession

if TYPE_CHECKING:
    import httpx


class TestClient(Client["httpx.Response"]):
    """A client of an application, which runs in an event loop of its own, in a thread.

    `with TestClient(app) as client:` runs the lifespan, once, in the event loop of all handlers. Without `with` every
    request and every WebSocket has an event loop of its own, and there is no lifespan. What the application raises is
    raised in the test.

    Args:
        app: Any ASGI application.
        base_url: What URLs without a host are put after.
        headers: Sent with every request and handshake.
        cookies: Kept from the beginning, for any host.
        server: Which server to be like: "uvicorn", "uvicorn-websockets", "uvicorn-wsproto", "hypercorn", "daphne",
            "granian", "strict", or a `Shape`.
        timeout: Seconds after which anything that waits fails.
        backend: "asyncio" or "trio".
        backend_options: As `anyio.run` takes them.
        raise_server_exceptions: Raise what the application raised. Else the test sees what a client sees: a 500 or a
            close.
        root_path: Where the application is mounted.
        client: Host and port of the client.
        follow_redirects: For HTTP requests.

    Raises:
        ConfigurationError: The server or the base URL is none.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        base_url: str = "http://testserver",
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        server: str | Shape = "uvicorn",
        timeout: float = 5.0,
        backend: Literal["asyncio", "trio"] = "asyncio",
        backend_options: Mapping[str, Any] | None = None,
        raise_server_exceptions: bool = True,
        root_path: str = "",
        client: tuple[str, int] = ("testclient", 50000),
        follow_redirects: bool = True,
    ) -> None:
        super().__init__(
            app, base_url=base_url, headers=headers, cookies=cookies, server=server, timeout=timeout,
            raise_server_exceptions=raise_server_exceptions, root_path=root_path, client=client,
            follow_redirects=follow_redirects,
        )  # fmt: skip
        self._backend = backend
        self._backend_options = backend_options
        self._loop: LoopThread | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        loop = LoopThread(self._backend, self._backend_options, self._service.timeout).start()
        try:
            loop.call(self._service.start)
        except BaseException as failure:
            _stop(loop, failure)
            raise
        self._loop = loop
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop, self._loop = self._running, None
        try:
            loop.call(self._service.stop, failure)
        except BaseException as problem:  # noqa: BLE001 - told, or raised again
            _stop(loop, failure or problem)
            tell(problem, failure)
        else:
            _stop(loop, failure)

    @property
    def _running(self) -> LoopThread:
        if self._loop is None:
            raise RuntimeError("this client runs nothing: enter it with `with TestClient(app) as client:`")
        return self._loop

    @contextlib.contextmanager
    def _loop_of_a_call(self) -> Iterator[LoopThread]:
        """The event loop of the client, or one for this call alone."""
        if self._loop is not None:
            yield self._loop
            return
        loop = LoopThread(self._backend, self._backend_options, self._service.timeout).start()
        try:
            yield loop
        except BaseException as failure:
            _stop(loop, failure)
            raise
        _stop(loop, None)

    # WebSockets

    def websocket_connect(
        self,
        url: str,
        *,
        params: Params | None = None,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        subprotocols: Iterable[str] = (),
        origin: str | None = None,
    ) -> WebSocketSession:
        """A WebSocket, opened by `with`.

        Entering it raises `WebSocketDenied` if the handshake is refused, and what the application raised if it did.

        Args:
            url: A path with a query, or a whole URL.
            params: Put after the query.
            headers: On top of those of the client.
            cookies: On top of those that the client keeps, for this handshake.
            subprotocols: What the client offers.
            origin: The `Origin` of a browser; left out, the client is none.

        Raises:
            ConfigurationError: The URL is none of a WebSocket, or a subprotocol is no token.
            ProtocolError: A header is none.
        """
        handshake = self._handshake(url, params, headers, cookies, subprotocols, origin)
        return WebSocketSession(self._service, handshake, self._loop_of_a_call)

    def websocket_vanish(
        self,
        url: str,
        *,
        params: Params | None = None,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        subprotocols: Iterable[str] = (),
        origin: str | None = None,
    ) -> None:
        """Send a handshake and leave before it is answered; return when the application has ended.

        Raises:
            StuckError: It did not end in time.
            BaseException: What it raised.
        """
        handshake = self._handshake(url, params, headers, cookies, subprotocols, origin)
        with self._loop_of_a_call() as loop:
            loop.call(self._service.vanish, handshake)

    def stop_server(self) -> None:
        """Let the server stop (SIGTERM), as far as the open connections see it.

        uvicorn tells the application a disconnect with 1012, granian one with 1005; hypercorn and daphne cancel it.
        """
        self._running.call(self._service.interrupt)

    # HTTP

    @property
    def _http(self) -> "httpx.Client":
        if self._client is None:
            try:
                from .transport import plain_client  # noqa: PLC0415 - httpx is needed for HTTP only
            except ModuleNotFoundError as error:
                raise no_httpx() from error
            self._client = plain_client(self._loop_of_a_call, self._service.exchange, **self._http_options())
        return self._client

    @property
    def cookies(self) -> "httpx.Cookies":
        """The cookies that the client keeps, of HTTP answers and of handshakes."""
        return self._http.cookies

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "httpx.Response":
        """Send an HTTP request.

        Args:
            method: GET, POST and so on.
            url: A path with a query, or a whole URL.
            headers: On top of those of the client.
            cookies: On top of those that the client keeps, for this request.
            options: As httpx takes them: `params`, `json`, `content`, `data`, `files`, `auth`, `timeout`...

        Raises:
            ModuleNotFoundError: httpx is missing.
            StuckError: The application did not answer in time.
        """
        pairs = self._service.request_headers(url, headers, cookies)
        return self._http.request(method, url, headers=pairs, **options)

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "contextlib.AbstractContextManager[httpx.Response]":
        """Send an HTTP request whose response is read piece by piece: `with client.stream(...) as response:`."""
        pairs = self._service.request_headers(url, headers, cookies)
        return self._http.stream(method, url, headers=pairs, **options)


def _stop(loop: LoopThread, failure: BaseException | None) -> None:
    try:
        loop.stop()
    except BaseException as problem:  # noqa: BLE001 - told, or raised again
        tell(problem, failure)
