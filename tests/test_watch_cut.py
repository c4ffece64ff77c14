"""A send that takes too long is cut at its deadline, however deep in the handler it stands."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

import asgiws.watch
from asgiws import App, Limits, WebSocket, WebSocketDisconnect
from asgiws.testing import AsyncTestClient
from tests.fakes import DEADLINE

pytestmark = pytest.mark.anyio


async def plainly(ws: WebSocket) -> None:
    while True:
        await ws.send_text("x" * 10_000)


async def in_a_generator(ws: WebSocket) -> None:
    async def parts() -> AsyncIterator[int]:
        while True:
            await ws.send_text("x" * 10_000)
            yield 1

    async for _ in parts():
        pass


def app_that(pours: Any, saw: Callable[[Exception], None]) -> App:
    # A handler that is not cut would be cancelled after `linger`: not while a test waits.
    app = App(limits=Limits(send_timeout=0.05, linger=1000))

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await pours(ws)
        except Exception as error:
            saw(error)
            raise

    return app


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgiws.watch, "TICK", 0.01)


@pytest.mark.parametrize("pours", [plainly, in_a_generator])
async def test_a_send_is_cut_however_deep_it_stands(pours: Any) -> None:
    seen: list[Exception] = []
    app = app_that(pours, seen.append)
    connected = False

    async def receive() -> dict[str, Any]:
        nonlocal connected
        if connected:
            await anyio.sleep_forever()
        connected = True
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send":
            await anyio.sleep_forever()  # the client does not read

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "asgi": {"spec_version": "2.4"}}
    with anyio.move_on_after(DEADLINE):
        await app(scope, receive, send)
    assert [(type(error), getattr(error, "code", None)) for error in seen] == [(WebSocketDisconnect, 1013)]


async def test_a_send_is_cut_under_the_test_client_as_on_a_server() -> None:
    seen: list[Exception] = []
    ended = anyio.Event()
    app = app_that(plainly, seen.append)
    app.connections.on_close(lambda _: ended.set())
    async with AsyncTestClient(app) as client, client.websocket_connect("/") as ws:
        await ws.stall()
        with anyio.move_on_after(DEADLINE):
            await ended.wait()
        was_cut = ended.is_set()
    assert was_cut
    assert [(type(error), getattr(error, "code", None)) for error in seen] == [(WebSocketDisconnect, 1013)]
