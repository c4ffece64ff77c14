"""Sanic under an ASGI server, as its documentation writes it; its own server is another way to run it."""

import itertools
import json as standard_json

from sanic import Request, Sanic, Websocket

from benchmarks.peers import ASGI, templates

TITLE = "Sanic (ASGI)"
DISTRIBUTION = "sanic"
IMPORTS = "from sanic import Request, Sanic, Websocket"
TYPED: dict[str, str] = {}
LACKS = {
    "typed": "it has no typed messages",
    "depends": "its dependencies are another distribution (sanic-ext) and have no clean-up",
}


def application(name: str) -> Sanic:
    """An application that leaves the log and the environment alone."""
    return Sanic(name, configure_logging=False)


app = application("benchmark")
_numbers = itertools.count()


@app.websocket("/echo")
async def echo(request: Request, ws: Websocket) -> None:
    """Echo text."""
    del request
    while (text := await ws.recv()) is not None:
        await ws.send(text)


@app.websocket("/json")
async def json(request: Request, ws: Websocket) -> None:
    """Echo JSON."""
    del request
    while (text := await ws.recv()) is not None:
        await ws.send(standard_json.dumps(standard_json.loads(text)))


@app.websocket("/connect/<room:str>/<number:int>")
async def connect(request: Request, ws: Websocket, room: str, number: int) -> None:
    """Two path and two query parameters; under ASGI its `close` sends nothing, the server closes at the end."""
    lang, page = request.args["lang"][0], int(request.args.get("page", "1"))
    await ws.send(f"{room} {number} {lang} {page}")
    await ws.close()


async def nothing(request: Request, ws: Websocket, room: str = "", number: int = 0) -> None:
    """Accept and close."""
    del request, room, number
    await ws.close()


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    many = application(f"benchmark_{kind}_{count}_{next(_numbers)}")
    many.config.TOUCHUP = False  # its classes were touched up when `app` started, once for all
    for index, template in enumerate(templates(kind, count, "<room:str>", "<number:int>")):
        many.add_websocket_route(nothing, template, name=f"route{index}")
    return many
