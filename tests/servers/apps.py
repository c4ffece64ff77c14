"""What the watchdog is tried on in real servers: handlers that do not read, do not end, or do not stop to send."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import anyio

from asgiws import App, Depends, Limits, WebSocket, WebSocketDisconnect, controller, websocket
from asgiws.types import Receive, Scope, Send
from tests.apps import tell

LINGER = 1.0
"""Seconds that a handler may go on without its client."""

ACCEPT_TIMEOUT = 4.5
"""Seconds for which a handshake may wait for its answer: later than any server but granian ends it at a stop."""

LATE = 2.5
"""The same for a handshake that is to run into it: well before daphne's own limit of five seconds."""

BUSY = 4.0
"""Seconds for which the busy handler reads nothing."""

PIECE = "x" * 262_144
"""A message that a client cannot take many of without reading."""

PIECES = 100
"""How many of them are sent: far more than all buffers on the way hold."""


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """Tell when it begins and ends."""
    tell("lifespan: started")
    yield
    tell("lifespan: stopped")


app = App(limits=Limits(linger=LINGER, send_timeout=1, accept_timeout=ACCEPT_TIMEOUT), lifespan=lifespan)


@app.get("/statistics")
async def statistics() -> dict[str, int]:
    """What the connections have come to."""
    told = app.connections.statistics()
    return {"open": told.open, "cancelled": told.cancelled, "dropped": told.dropped}


async def resource(how: str, number: int) -> AsyncIterator[None]:
    """A dependency that has something to clean up."""
    try:
        yield
    finally:
        tell(f"{how} {number}: cleaned up")


@controller("/hold")
class Hold:
    """A connection that is held in one way or another, and tells how it ends."""

    @websocket("/<how>/<number:int>")
    async def hold(self, ws: WebSocket, how: str, number: int, held: Annotated[None, Depends(resource)]) -> None:
        """Do one thing for ever."""
        try:
            if how == "unanswered":
                tell(f"{how} {number} is there")
                await anyio.sleep_forever()
            await ws.accept()
            tell(f"{how} {number} is there")
            if how == "reading":
                await ws.receive_text()
            elif how == "sending":
                while True:
                    await ws.send_text("news")
                    await anyio.sleep(0.05)
            else:
                await anyio.sleep_forever()
        finally:
            tell(f"{how} {number}: finally")

    @websocket("/late/<how>/<number:int>", limits=Limits(linger=LINGER, accept_timeout=LATE))
    async def late(self, ws: WebSocket, how: str, number: int, held: Annotated[None, Depends(resource)]) -> None:
        """Leave the handshake without an answer."""
        tell(f"{how} {number} is there")
        await anyio.sleep_forever()

    @websocket("/silent/<how>/<number:int>", limits=Limits(linger=LINGER, idle_timeout=1))
    async def silent(self, ws: WebSocket, how: str, number: int, held: Annotated[None, Depends(resource)]) -> None:
        """Wait for a client that says nothing."""
        await ws.accept()
        await ws.receive_text()

    def on_disconnect(self, ws: WebSocket, code: int) -> None:
        """Tell which code it was."""
        tell(f"{ws.path_params['how']} {ws.path_params['number']}: on_disconnect with {code}")


app.include(Hold)

stopping = App(limits=Limits(accept_timeout=ACCEPT_TIMEOUT), lifespan=lifespan)
"""The same with the linger of the defaults, for the stop."""
stopping.include(Hold)


@app.websocket("/late", limits=Limits(linger=LINGER, accept_timeout=LATE))
async def late(ws: WebSocket) -> None:
    """Leave the handshake without an answer, and have nothing to clean up."""
    await anyio.sleep_forever()


@app.websocket("/impatient/<count:int>")
async def impatient(ws: WebSocket, count: int) -> None:
    """Receive with very little patience, in two ways by turns, and tell what came."""
    await ws.accept()
    got: list[str] = []
    cancelled = timeouts = 0
    patience = shortest = 0.0001
    while len(got) < count:
        before = len(got)
        if (cancelled + timeouts) % 2:
            with anyio.move_on_after(patience) as scope:
                got.append(await ws.receive_text())
            cancelled += scope.cancelled_caught
        else:
            try:
                got.append(await ws.receive_text(timeout=patience))
            except TimeoutError:
                timeouts += 1
        # On a busy machine a message may need longer to come in than the shortest patience lasts.
        patience = shortest if len(got) > before else patience * 2
    await ws.send_json({"got": got, "cancelled": cancelled, "timeouts": timeouts})


@app.websocket("/busy/<count:int>")
async def busy(ws: WebSocket, count: int) -> None:
    """Read nothing for a while, then everything."""
    await ws.accept()
    await anyio.sleep(BUSY)
    tell("busy no more")
    await ws.send_json([await ws.receive_text() for _ in range(count)])
    async for text in ws.iter_text():
        await ws.send_text(text)


@app.websocket("/flood")
async def flood(ws: WebSocket) -> None:
    """Send more than a client takes that does not read."""
    await ws.accept()
    tell("flood begins")
    try:
        for _ in range(PIECES):
            await ws.send_text(PIECE)
        tell("flood: all is sent")
        await ws.receive_text()
    except WebSocketDisconnect as gone:
        tell(f"flood: disconnected with {gone.code} {gone.reason!r}")
        raise
    finally:
        tell("flood: finally")


@app.websocket("/echo", limits=Limits(message_bytes=1000))
async def echo(ws: WebSocket) -> None:
    """Send back what comes."""
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


@app.websocket("/unlimited", limits=Limits(message_bytes=2**30))
async def unlimited(ws: WebSocket) -> None:
    """Tell the size of every message."""
    await ws.accept()
    async for message in ws:
        await ws.send_text(str(len(message)))
    tell("unlimited: ended")


@app.get("/close-all")
async def close_all(window: float = 0.0) -> dict[str, int]:
    """Close every connection, and let none in any more."""
    there = len(app.connections)
    await app.close_all(1012, "come back", window)
    return {"closed": there}


async def careless(scope: Scope, receive: Receive, send: Send) -> None:
    """The busy handler without asgiws."""
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    await anyio.sleep(BUSY)
