"""How httpx reaches the application. Only this module imports httpx, and it is imported only when it is needed."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx

from .exchange import Exchange
from .portal import LoopThread

MakeExchange = Callable[..., Exchange]


def async_client(make: MakeExchange, **options: Any) -> httpx.AsyncClient:
    """A client in the event loop of the application.

    Args:
        make: Makes an exchange of the body and the parts of a request.
        options: As httpx takes them.
    """
    return httpx.AsyncClient(transport=AsyncTransport(make), **options)


def plain_client(
    loop: Callable[[], AbstractContextManager[LoopThread]], make: MakeExchange, **options: Any
) -> httpx.Client:
    """A client in a thread beside the event loop of the application.

    Args:
        loop: Gives the event loop.
        make: Makes an exchange of the body and the parts of a request.
        options: As httpx takes them.
    """
    return httpx.Client(transport=Transport(loop, make), **options)


def _made(make: MakeExchange, request: httpx.Request, body: Iterable[bytes]) -> Exchange:
    """The exchange of a request of httpx."""
    raw_path, _, query = request.url.raw_path.partition(b"?")
    return make(
        body,
        method=request.method,
        scheme=request.url.scheme,
        server=(request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)),
        raw_path=raw_path,
        query_string=query,
        headers=[(name.lower(), value) for name, value in request.headers.raw],
        timeout=request.extensions.get("timeout", {}).get("read"),
    )


@contextlib.contextmanager
def _errors_of_httpx() -> Iterator[None]:
    try:
        yield
    except ConnectionResetError as error:
        raise httpx.RemoteProtocolError(str(error)) from error


class AsyncTransport(httpx.AsyncBaseTransport):
    """For an `httpx.AsyncClient` in the event loop of the application."""

    def __init__(self, make: MakeExchange) -> None:
        self._make = make

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the response is read by httpx."""
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("an AsyncTestClient sends bytes, files or async iterators")
        exchange = _made(self._make, request, [chunk async for chunk in request.stream])
        status, headers = await exchange.start()
        return httpx.Response(status, headers=headers, stream=_AsyncBody(exchange))


class _AsyncBody(httpx.AsyncByteStream):
    """The body of a response. No generator: one that is left half-way would need to be closed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with _errors_of_httpx():
            chunk = await self._exchange.chunk()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        await self._exchange.close()


class Transport(httpx.BaseTransport):
    """For an `httpx.Client` in a thread beside the event loop of the application."""

    def __init__(self, loop: Callable[[], AbstractContextManager[LoopThread]], make: MakeExchange) -> None:
        self._loop = loop
        self._make = make

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the response is read by httpx."""
        if not isinstance(request.stream, httpx.SyncByteStream):
            raise TypeError("a TestClient sends bytes, files or iterators")
        body = list(request.stream)
        with contextlib.ExitStack() as stack:
            loop = stack.enter_context(self._loop())
            exchange = loop.call(_made, self._make, request, body)
            status, headers = loop.call(exchange.start)
            return httpx.Response(status, headers=headers, stream=_Body(loop, exchange, stack.pop_all()))


class _Body(httpx.SyncByteStream):
    def __init__(self, loop: LoopThread, exchange: Exchange, stack: contextlib.ExitStack) -> None:
        self._loop = loop
        self._exchange = exchange
        self._stack = stack

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._call(self._exchange.chunk):
            yield chunk

    def _call(self, method: Callable[[], Any]) -> Any:
        with _errors_of_httpx():
            return self._loop.call(method)

    def close(self) -> None:
        with self._stack:
            self._call(self._exchange.close)
