"""The application that tests drive in memory and real servers run: one route for each thing that can happen."""

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any

import anyio
import msgspec

from asgiws import (
    App,
    Header,
    HTTPException,
    JSONResponse,
    Limits,
    MessageError,
    Query,
    Request,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    WebSocketStateError,
    controller,
)

SECRET = "a text that no client may see"


def tell(text: str) -> None:
    """Say on standard output what a client cannot see."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Say(msgspec.Struct, tag="say"):
    """A message to the server."""

    text: str


class Move(msgspec.Struct, tag="move"):
    """Another message to the server."""

    x: int
    y: int


class Said(msgspec.Struct, tag="said"):
    """A message to the client."""

    text: str


class OverriddenError(Exception):
    """The app has a handler for it."""


class OverriddenTooError(OverriddenError):
    """Its base has a handler."""


class BadlyOverriddenError(Exception):
    """The app has a handler for it that fails."""


async def as_response(connection: Any, error: Exception) -> JSONResponse:
    """A response in place of the table."""
    return JSONResponse({"overridden": type(error).__name__}, 409)


async def as_close(ws: WebSocket, error: Exception) -> None:
    """A close in place of the table."""
    if ws.application_state.name == "CONNECTED":
        await ws.close(4321, "overridden")


async def overridden(connection: Any, error: Exception) -> JSONResponse:
    """Both: before accept and after."""
    if isinstance(connection, WebSocket):
        await as_close(connection, error)
    return await as_response(connection, error)


async def failing(connection: Any, error: Exception) -> None:
    """A handler that fails itself."""
    raise LookupError(SECRET)


app = App(
    limits=Limits(bad_messages=3),
    allowed_origins=["https://good.example"],
    exception_handlers={OverriddenError: overridden, BadlyOverriddenError: failing, 410: overridden},
)


@app.websocket("/echo/<room>/<count:int>")
async def echo(ws: WebSocket, room: str, count: int, lang: str = "en") -> None:
    """The first program of the design."""
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(f"{room}/{lang}: {text * count}")
    tell(f"echo {room} ended")


@app.websocket("/raw")
async def raw(ws: WebSocket) -> None:
    """Send back what comes, as it comes."""
    await ws.accept(ws.subprotocols[-1] if ws.subprotocols else None, {"x-answer": "42"})
    async for message in ws:
        await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))


@app.websocket("/scope")
async def scope(ws: WebSocket) -> None:
    """What the server says of the connection."""
    await ws.accept()
    tell(f"offered: {ws.subprotocols}")
    await ws.send_json({
        "root_path": ws.scope.get("root_path"),
        "path": ws.scope["path"],
        "url": str(ws.url),
        "client": ws.client,
        "query": ws.query_params.multi_items(),
    })  # fmt: skip


@app.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """HTTP beside it."""
    return {"root_path": request.scope.get("root_path"), "url": str(request.url)}


ERRORS: Mapping[str, Callable[[], Exception]] = {
    "http": lambda: HTTPException(401, "who are you", {"www-authenticate": "Basic"}),
    "http-detail": lambda: HTTPException(422, {"field": ["x"]}),
    "http-410": lambda: HTTPException(410),
    "websocket": lambda: WebSocketException(4401, "who are you"),
    "websocket-1013": lambda: WebSocketException(1013, "later"),
    "disconnect": lambda: WebSocketDisconnect(1001),
    "value": lambda: ValueError(SECRET),
    "os": lambda: OSError(SECRET),
    "runtime": lambda: RuntimeError(SECRET),
    "one": lambda: ExceptionGroup(SECRET, [ExceptionGroup(SECRET, [HTTPException(401, "who are you")])]),
    "several": lambda: ExceptionGroup(SECRET, [HTTPException(401), ValueError(SECRET)]),
    "disconnects": lambda: ExceptionGroup(SECRET, [WebSocketDisconnect(1001), WebSocketDisconnect(1001)]),
    "one-and-disconnect": lambda: ExceptionGroup(SECRET, [WebSocketDisconnect(1001), WebSocketException(4401, "who")]),
    "overridden": OverriddenError,
    "overridden-too": OverriddenTooError,
    "badly-overridden": BadlyOverriddenError,
}


@app.websocket("/raise/<what>/before")
async def raise_before(ws: WebSocket, what: str) -> None:
    """Raise before the handshake is answered."""
    error = ERRORS[what]()
    raise error


@app.websocket("/raise/<what>/after")
async def raise_after(ws: WebSocket, what: str) -> None:
    """Raise on an open connection."""
    await ws.accept()
    error = ERRORS[what]()
    raise error


@app.websocket("/task-group/<when>")
async def task_group(ws: WebSocket, when: str) -> None:
    """Raise in a task of a task group."""

    async def refuse() -> None:
        raise HTTPException(403, "not in here")

    if when == "after":
        await ws.accept()
    async with anyio.create_task_group() as group:
        group.start_soon(refuse)
        group.start_soon(anyio.sleep_forever)


@app.websocket("/returns/before")
async def returns_before(ws: WebSocket) -> None:
    """Return without an answer."""


@app.websocket("/returns/after")
async def returns_after(ws: WebSocket) -> None:
    """Return without a close."""
    await ws.accept()


@app.websocket("/parameters/<n:int>")
async def parameters(
    ws: WebSocket,
    n: int,
    limit: Annotated[int, Query(ge=1)],
    x_token: Annotated[str, Header()],
) -> None:
    """Take values that may be wrong."""
    await ws.accept()
    await ws.send_json([n, limit, x_token])


@app.websocket("/typed")
async def typed(ws: WebSocket[Say | Move, Said]) -> None:
    """Answer typed messages."""
    await ws.accept()
    async for message in ws:
        match message:
            case Say(text):
                await ws.send_json(Said(text))
            case Move(x, y):
                await ws.send_json(Said(f"{x},{y}"))


@app.websocket("/receive/<what>")
async def receive(ws: WebSocket, what: str) -> None:
    """Take one message of one kind; whatever is wrong with it escapes."""
    await ws.accept()
    if what == "text":
        await ws.receive_text()
    elif what == "bytes":
        await ws.receive_bytes()
    elif what == "json-text":
        await ws.receive_json(mode="text")
    else:
        await ws.receive_json(type=Move)


@app.websocket("/caught")
async def caught(ws: WebSocket) -> None:
    """Catch what is wrong with one message."""
    await ws.accept()
    try:
        await ws.receive_json(type=Move)
    except MessageError as error:
        await ws.send_text(str(error))


@app.websocket("/leave")
async def leave(ws: WebSocket) -> None:
    """Let the disconnect escape."""
    await ws.accept()
    try:
        while True:
            await ws.receive_text()
    except WebSocketDisconnect as gone:
        tell(f"left with {gone.code} {gone.reason!r}")
        raise


@app.websocket("/close/<code:int>")
async def close(ws: WebSocket, code: int, reason: str = "") -> None:
    """Close, and close again: only the first counts."""
    await ws.accept()
    await ws.close(code, reason)
    await ws.close(1000)


@app.websocket("/close-after-client")
async def close_after_client(ws: WebSocket) -> None:
    """Close what the client has closed."""
    await ws.accept()
    async for _ in ws:
        pass
    await ws.close(4000)
    await ws.close()
    tell("closed after the client")


@app.websocket("/state")
async def state(ws: WebSocket) -> None:
    """Do what the state does not allow, and tell what it says."""
    try:
        await ws.send_text("too early")
    except WebSocketStateError as error:
        early = str(error)
    await ws.accept()
    await ws.send_text(early)
    await ws.close(4000)
    for call in (lambda: ws.send_text("too late"), ws.receive_text):
        try:
            await call()
        except WebSocketStateError as error:
            tell(str(error))


@app.websocket("/two-receivers")
async def two_receivers(ws: WebSocket) -> None:
    """Receive in two tasks, and tell what the second one is told."""
    await ws.accept()

    async def second() -> None:
        try:
            await ws.receive_text()
        except WebSocketStateError as error:
            await ws.send_text(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(ws.receive_text)
        await anyio.lowlevel.checkpoint()
        group.start_soon(second)


@controller("/lobby")
class Lobby:
    """Typed messages without a loop of one's own."""

    async def on_message(self, ws: WebSocket, message: Say | Move) -> Said:
        """Answer."""
        return Said(message.text if isinstance(message, Say) else f"{message.x},{message.y}")

    async def on_disconnect(self, ws: WebSocket, code: int) -> None:
        """Tell how it ended."""
        tell(f"lobby: on_disconnect with {code}")


app.include(Lobby)


@app.websocket("/told")
async def told(ws: WebSocket) -> None:
    """Tell all messages when there are no more."""
    await ws.accept()
    await anyio.sleep(0.05)  # the client has closed by then
    tell(f"told: {', '.join([str(message) async for message in ws])}")


@app.websocket("/stream/items")
async def stream_items(last: str = "end", times: int = 1) -> AsyncIterator[Any]:
    """A message of each kind."""
    yield "text"
    yield b"bytes"
    yield {"a": 1}
    yield Said("struct")
    yield ""
    yield last * times


@app.websocket("/stream/endless")
async def stream_endless() -> AsyncIterator[str]:
    """Wait for ever between two messages."""
    try:
        yield "first"
        await anyio.sleep_forever()
    finally:
        tell("the stream is stopped")


@app.websocket("/stream/fails")
async def stream_fails() -> AsyncIterator[str]:
    """Fail on the way."""
    yield "first"
    raise ValueError(SECRET)
