"""Falcon, as its documentation writes it: resources with `on_websocket`.

Faster than its defaults, and documented: `max_receive_queue = 0` reads from the server without a task and a queue in
between, and the media handler takes any JSON library.
"""

import falcon
import falcon.asgi
import falcon.media
import msgspec

from benchmarks.peers import ASGI, templates

TITLE = "Falcon"
DISTRIBUTION = "falcon"
IMPORTS = "import falcon, falcon.asgi"
TYPED: dict[str, str] = {}
LACKS = {"typed": "it has no typed messages", "depends": "it has no dependencies"}


def application() -> falcon.asgi.App:
    """An application with the fast options."""
    made = falcon.asgi.App()
    made.ws_options.max_receive_queue = 0
    made.ws_options.media_handlers[falcon.WebSocketPayloadType.TEXT] = falcon.media.JSONHandlerWS(
        dumps=lambda value: msgspec.json.encode(value).decode(),
        loads=msgspec.json.decode,
    )
    return made


class Echo:
    """Echo text."""

    async def on_websocket(self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket) -> None:
        """Until the client leaves."""
        del req
        try:
            await ws.accept()
            while True:
                await ws.send_text(await ws.receive_text())
        except falcon.WebSocketDisconnected:
            pass


class Json:
    """Echo JSON."""

    async def on_websocket(self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket) -> None:
        """Until the client leaves."""
        del req
        try:
            await ws.accept()
            while True:
                await ws.send_media(await ws.receive_media())
        except falcon.WebSocketDisconnected:
            pass


class Connect:
    """Two path and two query parameters."""

    async def on_websocket(self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket, room: str, number: int) -> None:
        """Accept, send, close."""
        lang, page = req.get_param("lang", required=True), req.get_param_as_int("page", default=1)
        await ws.accept()
        await ws.send_text(f"{room} {number} {lang} {page}")
        await ws.close()


app = application()
app.add_route("/echo", Echo())
app.add_route("/json", Json())
app.add_route("/connect/{room}/{number:int}", Connect())


class Nothing:
    """Accept and close."""

    async def on_websocket(
        self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket, room: str = "", number: int = 0
    ) -> None:
        """With or without parameters."""
        del req, room, number
        await ws.accept()
        await ws.close()


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    many = application()
    for template in templates(kind, count, "{room}", "{number:int}"):
        many.add_route(template, Nothing())
    return many
