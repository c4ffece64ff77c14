"""asgiws inside another framework: WebSockets under /ws of a Starlette application, and a page that uses one.

    pip install starlette
    python -m examples.embedded

What to look at: an `App` is an ASGI application like any other, so `Mount` takes it. The async generator is a stream
out: the handshake is accepted, each `Tick` is sent as JSON, and the generator is closed when the page goes away.
`every` comes from the query string, and a value that breaks its constraints is refused.
"""

import datetime as dt
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from msgspec import Meta, Struct

from asgiws import App

from ._serve import serve

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse
    from starlette.routing import Mount, Route
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing, install it with: pip install starlette") from None

realtime = App()


class Tick(Struct):
    """What time it is at the server."""

    now: dt.datetime


@realtime.websocket("/clock")
async def clock(every: Annotated[float, Meta(ge=0.1, le=60)] = 1.0) -> AsyncIterator[Tick]:
    while True:
        yield Tick(dt.datetime.now(dt.UTC))
        await anyio.sleep(every)


PAGE = """
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>A clock over a WebSocket</title>
<link rel="icon" href="data:,">
<style>
  body { display: grid; place-content: center; min-height: 90vh; text-align: center;
         font-family: system-ui, sans-serif; }
  h1, p { font-size: 1.125rem; font-weight: 400; opacity: 0.75; }
  time { font-size: clamp(2.5rem, 12vw, 6rem); font-weight: 600; font-variant-numeric: tabular-nums; }
</style>
<h1>At the server it is</h1>
<time>--:--:--</time>
<p role="status">Connecting</p>
<script type="module">
  const url = new URL("ws/clock?every=0.5", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const status = document.querySelector("[role=status]");
  const ws = new WebSocket(url);
  ws.onopen = () => { status.textContent = "Connected"; };
  ws.onclose = () => { status.textContent = "The connection has ended: reload the page"; };
  ws.onmessage = (event) => {
    document.querySelector("time").textContent = new Date(JSON.parse(event.data).now).toLocaleTimeString();
  };
</script>
""".lstrip()


async def page(_: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


app = Starlette(
    routes=[Route("/", page), Mount("/ws", realtime)],
    # Starlette does not tell an application that is mounted of its start and end: this does.
    lifespan=lambda _: realtime.lifespan_context(),
)

if __name__ == "__main__":
    serve(app)
