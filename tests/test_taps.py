"""What counts at a server's `receive()` and `send()`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws import App, Limits, WebSocket, WebSocketDisconnect
from asgiws.registry import Summary
from asgiws.taps import Traffic
from asgiws.testing import AsyncTestClient
from asgiws.types import Message
from tests.fakes import soon

pytestmark = pytest.mark.anyio


def echoing(limits: Limits | None = None) -> tuple[App, list[Summary]]:
    """An app that echoes, and the summaries of its connections."""
    app = App(limits=limits or Limits())
    ended: list[Summary] = []
    app.connections.on_close(ended.append)

    @app.websocket("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for message in ws:
            await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))

    return app, ended


async def test_traffic_is_not_counted_unless_asked_for() -> None:
    app, ended = echoing()
    async with AsyncTestClient(app) as client:
        async with client.websocket_connect("/echo") as ws:
            await ws.send_text("a")
            assert await ws.receive_text() == "a"
        await soon(lambda: ended)
    assert app.connections.statistics().traffic is None
    assert ended[0].traffic is None


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
async def test_messages_and_bytes_are_counted(server: str) -> None:
    app, ended = echoing()
    app.connections.count_traffic()
    async with AsyncTestClient(app, server=server) as client:
        async with client.websocket_connect("/echo") as ws:
            for text in ("é", "", "abc"):
                await ws.send_text(text)
                assert await ws.receive_text() == text
            await ws.send_bytes(b"1234")
            assert await ws.receive_bytes() == b"1234"
            assert app.connections.statistics().traffic == Traffic(4, 9, 4, 9)  # also while it is open
        await soon(lambda: ended)
        async with client.websocket_connect("/echo") as ws:
            await ws.send_text("x")
            assert await ws.receive_text() == "x"
        await soon(lambda: ended[1:])
    assert [one.traffic for one in ended] == [Traffic(4, 9, 4, 9), Traffic(1, 1, 1, 1)]
    assert app.connections.statistics().traffic == Traffic(5, 10, 5, 10)


async def test_asking_twice_counts_once() -> None:
    app, _ = echoing()
    app.connections.count_traffic()
    async with AsyncTestClient(app) as client, client.websocket_connect("/echo") as ws:
        await ws.send_text("a")
        assert await ws.receive_text() == "a"
        app.connections.count_traffic()
        await ws.send_text("b")
        assert await ws.receive_text() == "b"
    assert app.connections.statistics().traffic == Traffic(2, 2, 2, 2)


async def test_a_connection_that_came_before_the_counting_is_left_out() -> None:
    app, ended = echoing()
    async with AsyncTestClient(app) as client:
        async with client.websocket_connect("/echo") as ws:
            app.connections.count_traffic()
            await ws.send_text("a")
            assert await ws.receive_text() == "a"
        await soon(lambda: ended)
    assert ended[0].traffic is None
    assert app.connections.statistics().traffic == Traffic()


async def test_a_message_that_the_server_did_not_take_is_not_counted() -> None:
    app = App()
    app.connections.count_traffic()
    sent: list[object] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(event: Message) -> None:
        if event["type"] == "websocket.send":
            raise OSError("gone")
        sent.append(event)

    @app.websocket("/")
    async def talk(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("lost")

    await app({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert app.connections.statistics().traffic == Traffic(0, 0, 0, 0)


async def test_a_client_that_is_too_quick_is_counted_too() -> None:
    app, ended = echoing(Limits(messages_per_second=0.001, burst=2))
    app.connections.count_traffic()
    async with AsyncTestClient(app) as client:
        async with client.websocket_connect("/echo") as ws:
            for text in ("a", "b", "c"):
                await ws.send_text(text)
            assert [await ws.receive_text() for _ in range(2)] == ["a", "b"]
            await ws.expect_close(1008)
        await soon(lambda: ended)
    assert ended[0].traffic == Traffic(3, 3, 2, 2)


@given(st.lists(st.tuples(*[st.integers(0, 2**60)] * 4), max_size=5))
def test_the_sum_of_traffics_is_theirs(parts: list[tuple[int, int, int, int]]) -> None:
    whole = Traffic(1, 2, 3, 4).plus(*(Traffic(*part) for part in parts))
    assert whole == Traffic(*(1 + at + sum(part[at] for part in parts) for at in range(4)))
