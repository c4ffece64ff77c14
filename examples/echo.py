"""The smallest program: every message comes back, as often as the path says.

    python -m examples.echo

Then, in a second terminal, with the client that comes with the server:

    python -m websockets "ws://127.0.0.1:8000/echo/lobby/3?lang=fr"

What to look at: `room` and `count` come from the path and `lang` from the query string, each by its name and converted
to its annotation. With `/echo/lobby/99` or `/echo/lobby/many` the handler is never called.
"""

from typing import Annotated

from msgspec import Meta

from asgiws import App, WebSocket

from ._serve import serve

app = App()


@app.websocket("/echo/<room>/<count:int>")
async def echo(ws: WebSocket, room: str, count: Annotated[int, Meta(ge=1, le=10)], lang: str = "en") -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(f"{room}/{lang}: {text * count}")


if __name__ == "__main__":
    serve(app, "ws://{}/echo/lobby/3?lang=fr")
