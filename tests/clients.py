"""One interface to both test clients, so that one test serves them all."""

import pathlib
from collections.abc import Callable
from typing import Any, Self

import anyio
import anyio.to_thread

from asgiws.testing import AsyncTestClient, TestClient, WebSocketSession

MakeClient = Callable[..., Any]


class InThread:
    """A `TestClient` or its session behind the interface of the async one: every call is made in a worker thread."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self._plain.__enter__)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await anyio.to_thread.run_sync(self._plain.__exit__, *failure)

    def __aiter__(self) -> Self:
        self._messages = iter(self._plain)
        return self

    async def __anext__(self) -> Any:
        message = await anyio.to_thread.run_sync(next, self._messages, None)
        if message is None:
            raise StopAsyncIteration
        return message

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._plain, name)
        if not callable(found):
            return found
        if name == "websocket_connect":
            return lambda *args, **options: InThread(found(*args, **options))

        async def call(*args: Any, **options: Any) -> Any:
            return await anyio.to_thread.run_sync(lambda: found(*args, **options))

        return call


def make_client(kind: str, backend: str) -> MakeClient:
    """What makes a client of a kind: "async", or "plain" with the application in a thread."""
    if kind == "async":
        return AsyncTestClient
    return lambda app, **options: InThread(TestClient(app, backend=backend, **options))  # type: ignore[arg-type]


def line_of(file: str, mark: str) -> int:
    """The number of the line that ends with a comment."""
    lines = pathlib.Path(file).read_text("utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    assert len(found) == 1, (mark, found)
    return found[0]


__all__ = ["InThread", "MakeClient", "WebSocketSession", "line_of", "make_client"]
