"""The test client of async tests, and what it has in common with the other one."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from .handshake import ClientHeaders, HeadersInput, Params
from .service import Handshake, Service
from .session import AsyncWebSocketSession
from .shapes import Shape

if TYPE_CHECKING:
    import httpx


Answer = TypeVar("Answer")
"""What a request gives: a response, or what gives one when it is awaited."""


class Client(Generic[Answer]):
    """What both test clients are made of; see `TestClient` for the arguments."""

    __test__ = False  # no test of pytest's, whatever its name

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        base_url: str,
        headers: Mapping[str, str] | None,
        cookies: Mapping[str, str] | None,
        server: str | Shape,
        timeout: float,
        raise_server_exceptions: bool,
        root_path: str,
        client: tuple[str, int],
        follow_redirects: bool,
    ) -> None:
        self.app = app
        self._follow_redirects = follow_redirects
        self._service = Service(
            app, server=server, base_url=base_url, headers=headers, cookies=cookies, timeout=timeout,
            raises=raise_server_exceptions, root_path=root_path, client=client,
        )  # fmt: skip

    @property
    def headers(self) -> ClientHeaders:
        """Sent with every request and handshake; they may be changed."""
        return self._service.headers

    def _handshake(
        self,
        url: str,
        params: Params | None,
        headers: HeadersInput | None,
        cookies: Mapping[str, str] | None,
        subprotocols: Iterable[str],
        origin: str | None,
    ) -> Handshake:
        return self._service.handshake(
            url, params=params, headers=headers, cookies=cookies, subprotocols=subprotocols, origin=origin
        )

    # HTTP

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
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
        raise NotImplementedError

    def get(self, url: str, **options: Any) -> Answer:
        """Send a GET request; see `request`."""
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Any) -> Answer:
        """Send a HEAD request; see `request`."""
        return self.request("HEAD", url, **options)

    def options(self, url: str, **options: Any) -> Answer:
        """Send an OPTIONS request; see `request`."""
        return self.request("OPTIONS", url, **options)

    def post(self, url: str, **options: Any) -> Answer:
        """Send a POST request; see `request`."""
        return self.request("POST", url, **options)

    def put(self, url: str, **options: Any) -> Answer:
        """Send a PUT request; see `request`."""
        return self.request("PUT", url, **options)

    def patch(self, url: str, **options: Any) -> Answer:
        """Send a PATCH request; see `request`."""
        return self.request("PATCH", url, **options)

    def delete(self, url: str, **options: Any) -> Answer:
        """Send a DELETE request; see `request`."""
        return self.request("DELETE", url, **options)

    def _http_options(self) -> dict[str, Any]:
        return {
            "base_url": self._service.base_url,
            "cookies": self._service.jar,
            "timeout": self._service.timeout,
            "follow_redirects": self._follow_redirects,
            "headers": {"user-agent": "asgiws-testclient"},
        }


def no_httpx() -> ModuleNotFoundError:
    """The error of an HTTP request where httpx is missing."""
    return ModuleNotFoundError(
        'the HTTP requests of a test client need httpx: pip install "asgiws[testing]"', name="httpx"
    )


class AsyncTestClient(Client[Coroutine[Any, Any, "httpx.Response"]]):
    """A client in the event loop of an async test, on asyncio and trio.

    `async with AsyncTestClient(app) as client:` runs the lifespan. Arguments and methods are those of `TestClient`, but
    for the event loop; what waits is awaited.
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
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        await self._service.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._service.stop(failure)

    @property
    def _http(self) -> "httpx.AsyncClient":
        if self._client is None:
            try:
                from .transport import async_client  # noqa: PLC0415 - httpx is needed for HTTP only
            except ModuleNotFoundError as error:
                raise no_httpx() from error
            self._client = async_client(self._service.exchange, **self._http_options())
        return self._client

    @property
    def cookies(self) -> "httpx.Cookies":
        """The cookies that the client keeps, of HTTP answers and of handshakes."""
        return self._http.cookies

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "httpx.Response":
        """Send an HTTP request; see `TestClient.request`."""
        pairs = self._service.request_headers(url, headers, cookies)
        return await self._http.request(method, url, headers=pairs, **options)

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "AbstractAsyncContextManager[httpx.Response]":
        """Send an HTTP request whose response is read piece by piece: `async with client.stream(...) as response:`."""
        pairs = self._service.request_headers(url, headers, cookies)
        return self._http.stream(method, url, headers=pairs, **options)

    def websocket_connect(
        self,
        url: str,
        *,
        params: Params | None = None,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        subprotocols: Iterable[str] = (),
        origin: str | None = None,
    ) -> AsyncWebSocketSession:
        """A WebSocket, opened by `async with`; see `TestClient.websocket_connect`."""
        handshake = self._handshake(url, params, headers, cookies, subprotocols, origin)
        return AsyncWebSocketSession(self._service, handshake)

    async def websocket_vanish(
        self,
        url: str,
        *,
        params: Params | None = None,
        headers: HeadersInput | None = None,
        cookies: Mapping[str, str] | None = None,
        subprotocols: Iterable[str] = (),
        origin: str | None = None,
    ) -> None:
        """Send a handshake and leave before it is answered; see `TestClient.websocket_vanish`."""
        await self._service.vanish(self._handshake(url, params, headers, cookies, subprotocols, origin))

    async def stop_server(self) -> None:
        """Let the server stop, as far as open connections see it; see `TestClient.stop_server`."""
        await self._service.interrupt()
