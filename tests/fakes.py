"""What the project's own tests need besides the fake servers of `asgiws.testing`: whole connections in one call."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from asgiws.testing.errors import ClientDisconnectedError, ServerChokedError
from asgiws.testing.servers import Event, FakeServer, HeadersInput, raw_headers
from asgiws.testing.shapes import (
    DAPHNE,
    GRANIAN,
    HYPERCORN,
    SHAPES,
    STRICT,
    UVICORN,
    UVICORN_LEGACY,
    UVICORN_WSPROTO,
    Shape,
)
from asgiws.types import RawHeaders

__all__ = [
    "DAPHNE",
    "DEADLINE",
    "GRANIAN",
    "HYPERCORN",
    "SHAPES",
    "STRICT",
    "UVICORN",
    "UVICORN_LEGACY",
    "UVICORN_WSPROTO",
    "ClientDisconnectedError",
    "FakeServer",
    "HTTPAnswer",
    "ServerChokedError",
    "Shape",
    "converse",
    "request",
    "soon",
]

DEADLINE = 5.0
"""Seconds after which a test that waits for something has failed."""

Application: TypeAlias = Callable[..., Awaitable[Any]]


async def soon(condition: Callable[[], object]) -> None:
    """Let the other tasks run until the condition holds.

    Raises:
        TimeoutError: It does not hold within the deadline.
    """
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def converse(
    app: Application, server: FakeServer, *messages: str | bytes, leave: int | None = 1000
) -> FakeServer:
    """Run a whole connection: the client says these messages and leaves. What the application raises comes out.

    Raises:
        TimeoutError: The application has not ended within the deadline.
    """
    for message in messages:
        server.say(message)
    if leave != -1:
        server.leave(leave)
    with anyio.fail_after(DEADLINE):
        await app(server.scope, server.receive, server.send)
    assert not server.choked
    return server


@dataclasses.dataclass
class HTTPAnswer:
    """What a client of HTTP got."""

    status: int
    headers: RawHeaders
    body: bytes

    def header(self, name: str) -> str | None:
        """The one header of this name."""
        found = [value.decode("latin-1") for key, value in self.headers if key == name.encode()]
        assert len(found) < 2, found
        return found[0] if found else None


async def request(
    app: Application,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: HeadersInput = (),
    body: bytes | list[bytes] = b"",
    raises: type[BaseException] | None = None,
    **extra: Any,
) -> HTTPAnswer:
    """One HTTP request to an application. With `raises`, the application must raise that after its answer."""
    chunks = list(body) if isinstance(body, list) else [body]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"testserver"), *raw_headers(headers)],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "extensions": {}, "state": {},
    } | extra  # fmt: skip
    sent: list[Event] = []

    async def receive() -> Event:
        await anyio.lowlevel.checkpoint()
        if chunks:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append(event)

    caught: BaseException | None = None
    with anyio.fail_after(DEADLINE):
        try:
            await app(scope, receive, send)
        except BaseException as error:
            if raises is None or not isinstance(error, raises):
                raise
            caught = error
    assert (raises is None) == (caught is None), f"expected {raises} to be raised"
    assert [event["type"] for event in sent[:1]] == ["http.response.start"], sent
    assert all(event["type"] == "http.response.body" for event in sent[1:])
    assert [bool(event.get("more_body")) for event in sent[1:]] == [True] * (len(sent) - 2) + [False], sent
    return HTTPAnswer(sent[0]["status"], list(sent[0]["headers"]), b"".join(e.get("body", b"") for e in sent[1:]))
