"""Starlette, as its documentation writes it: `WebSocketRoute` and functions."""

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.peers import ASGI, Publish, templates

TITLE = "Starlette"
DISTRIBUTION = "starlette"
IMPORTS = (
    "from starlette.applications import Starlette; from starlette.routing import WebSocketRoute; "
    "from starlette.websockets import WebSocket"
)
TYPED: dict[str, str] = {}
LACKS = {"typed": "it has no typed messages", "depends": "it has no dependencies"}
FAN = ("a loop that encodes for each",)


async def echo(websocket: WebSocket) -> None:
    """Echo text."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def json(websocket: WebSocket) -> None:
    """Echo JSON."""
    await websocket.accept()
    async for message in websocket.iter_json():
        await websocket.send_json(message)


async def connect(websocket: WebSocket) -> None:
    """Two path and two query parameters."""
    room, number = websocket.path_params["room"], websocket.path_params["number"]
    lang, page = websocket.query_params["lang"], int(websocket.query_params.get("page", "1"))
    await websocket.accept()
    await websocket.send_text(f"{room} {number} {lang} {page}")
    await websocket.close()


app = Starlette(
    routes=[
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/json", json),
        WebSocketRoute("/connect/{room}/{number:int}", connect),
    ],
)


async def nothing(websocket: WebSocket) -> None:
    """Accept and close."""
    await websocket.accept()
    await websocket.close()


async def nothing_room(websocket: WebSocket) -> None:
    """Accept and close, with parameters."""
    room, number = websocket.path_params["room"], websocket.path_params["number"]
    await websocket.accept()
    await websocket.close(reason=f"{room} {number}")


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    handler = nothing if kind == "static" else nothing_room
    return Starlette(
        routes=[WebSocketRoute(template, handler) for template in templates(kind, count, "{room}", "{number:int}")],
    )


def fan(_kind: str, _url: str) -> tuple[ASGI, Publish]:
    """It has no channels: everybody at `/general` stands in a list, and a publisher goes through it."""
    everybody: list[WebSocket] = []

    async def general(websocket: WebSocket) -> None:
        await websocket.accept()
        everybody.append(websocket)
        try:
            async for _ in websocket.iter_text():
                pass
        finally:
            everybody.remove(websocket)

    async def publish(message: object) -> None:
        for websocket in everybody:
            await websocket.send_json(message)

    return Starlette(routes=[WebSocketRoute("/general", general)]), publish
