"""BlackSheep, as its documentation writes it: parameters by signature, and the JSON library that one chooses."""

import msgspec
from blacksheep import Application, FromQuery, WebSocket, WebSocketDisconnectError
from blacksheep.server.routing import Router
from blacksheep.settings.json import json_settings

from benchmarks.peers import ASGI, templates

TITLE = "BlackSheep"
DISTRIBUTION = "blacksheep"
IMPORTS = "from blacksheep import Application, WebSocket"
TYPED: dict[str, str] = {}
LACKS = {
    "typed": "it has no typed messages for WebSockets",
    "depends": "its services have no clean-up at the end of a connection",
}

json_settings.use(loads=msgspec.json.decode, dumps=lambda value: msgspec.json.encode(value).decode())


def application() -> Application:
    """An application with a router of its own."""
    return Application(router=Router())


app = application()


@app.router.ws("/echo")
async def echo(websocket: WebSocket) -> None:
    """Echo text."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnectError:
        pass


@app.router.ws("/json")
async def json(websocket: WebSocket) -> None:
    """Echo JSON."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_json(await websocket.receive_json())
    except WebSocketDisconnectError:
        pass


@app.router.ws("/connect/{room}/{int:number}")
async def connect(websocket: WebSocket, room: str, number: int, lang: FromQuery[str], page: FromQuery[int]) -> None:
    """Two path and two query parameters."""
    await websocket.accept()
    await websocket.send_text(f"{room} {number} {lang.value} {page.value}")
    await websocket.close()


async def nothing(websocket: WebSocket) -> None:
    """Accept and close."""
    await websocket.accept()
    await websocket.close()


async def nothing_room(websocket: WebSocket, room: str, number: int) -> None:
    """Accept and close, with parameters."""
    await websocket.accept()
    await websocket.close(reason=f"{room} {number}")


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    many = application()
    for template in templates(kind, count, "{room}", "{int:number}"):
        many.router.add_ws(template, nothing if kind == "static" else nothing_room)
    return many
