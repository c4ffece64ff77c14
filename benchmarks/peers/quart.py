"""Quart, as its documentation writes it: the global `websocket`."""

from quart import Quart, websocket

from benchmarks.peers import ASGI, templates

TITLE = "Quart"
DISTRIBUTION = "quart"
IMPORTS = "from quart import Quart, websocket"
TYPED: dict[str, str] = {}
LACKS = {"typed": "it has no typed messages", "depends": "it has no dependencies"}

app = Quart(__name__, static_folder=None)


@app.websocket("/echo")
async def echo() -> None:
    """Echo text."""
    while True:
        await websocket.send(await websocket.receive())


@app.websocket("/json")
async def json() -> None:
    """Echo JSON."""
    while True:
        await websocket.send_json(await websocket.receive_json())


@app.websocket("/connect/<room>/<int:number>")
async def connect(room: str, number: int) -> None:
    """Two path and two query parameters."""
    lang, page = websocket.args["lang"], websocket.args.get("page", 1, type=int)
    await websocket.accept()
    await websocket.send(f"{room} {number} {lang} {page}")
    await websocket.close(1000)


async def nothing(room: str = "", number: int = 0) -> None:
    """Accept and close."""
    del room, number
    await websocket.accept()
    await websocket.close(1000)


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    many = Quart(__name__, static_folder=None)
    for index, template in enumerate(templates(kind, count, "<room>", "<int:number>")):
        many.add_websocket(template, f"route{index}", nothing)
    return many
