"""A ticker: prices that change faster than anybody has to see, and nobody waits for who reads slowly.

    python -m examples.ticker

What to look at: `overflow=latest(...)`. While a client takes what it gets, it gets every price. While it does not, one
price of each symbol waits for it, always the last one: a client on a bad line is behind by one round, never by a
minute. Nothing else waits, however many come: the page is dropped for no reason, and the server's memory does not grow.

The function is asked for the key of each message; here it is the symbol. `channels.publish(..., key=symbol)` and
`overflow="latest"` do the same without a function.
"""

import contextlib
import random
from collections.abc import AsyncIterator

import anyio
from msgspec import Struct

from asgiws import App, HTMLResponse, WebSocket
from asgiws.channels import Channels, client_module, latest

from ._serve import serve

SYMBOLS = ("ALFA", "BRAVO", "CHARLIE", "DELTA", "ECHO", "FOXTROT", "GOLF", "HOTEL")
PAUSE = 0.02
"""Seconds between two prices."""


class Price(Struct):
    """What a share costs just now."""

    symbol: str
    price: float


async def trade(channels: Channels) -> None:
    """Publish a price after the other, for ever."""
    prices = dict.fromkeys(SYMBOLS, 100.0)
    while True:
        symbol = random.choice(SYMBOLS)  # noqa: S311 - a game
        prices[symbol] = max(1.0, prices[symbol] * random.gauss(1, 0.002))
        await channels.publish("prices", Price(symbol, round(prices[symbol], 2)))
        await anyio.sleep(PAUSE)


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """The exchange is open as long as the app is."""
    assert app.channels is not None  # noqa: S101 - they are open by now
    async with anyio.create_task_group() as group:
        group.start_soon(trade, app.channels)
        yield
        group.cancel_scope.cancel()


app = App(channels=Channels(history=100), lifespan=lifespan)


@app.websocket("/prices")
async def prices(ws: WebSocket, channels: Channels) -> None:
    await ws.accept()
    # The history is for who is new: there is a price of nearly every symbol in it.
    newest = latest(lambda price: price["symbol"])
    async with channels.join(ws, "prices", history=100, overflow=newest, envelope=True):
        async for _ in ws:
            """A client has nothing to say."""


PAGE = """
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Prices</title>
<link rel="icon" href="data:,">
<style>
  :root { --up: #15803d; --down: #b42318; --line: #8884; }
  @media (prefers-color-scheme: dark) { :root { --up: #4ade80; --down: #ff9a8f; } }
  body { margin: 2rem auto; max-width: 24rem; padding: 0 1rem; font: 1.125rem/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.5rem; margin: 0; }
  p { margin: 0 0 1rem; font-size: 0.9375rem; opacity: 0.8; min-height: 1.5em; }
  table { width: 100%; border-collapse: collapse; }
  th, td { padding: 0.5rem 0.25rem; border-bottom: 1px solid var(--line); text-align: start; font-weight: 400; }
  td { text-align: end; font-variant-numeric: tabular-nums; }
  .up { color: var(--up); } .down { color: var(--down); }
  .up::after { content: " \\25b2"; } .down::after { content: " \\25bc"; }
</style>
<h1>Prices</h1>
<p role="status">Connecting</p>
<table><tbody></tbody></table>
<script type="module">
  import { connect } from "./client.js";

  const cells = new Map();
  const status = document.querySelector("[role=status]");

  function cell(symbol) {
    if (!cells.has(symbol)) {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      const price = document.createElement("td");
      head.scope = "row";
      head.textContent = symbol;
      row.append(head, price);
      cells.set(symbol, price);
      document.querySelector("tbody").append(...[...cells].sort().map(([, made]) => made.parentNode ?? row));
    }
    return cells.get(symbol);
  }

  connect("prices", {
    onMessage({ symbol, price }) {
      const shown = cell(symbol);
      const before = Number(shown.dataset.price ?? price);
      if (price !== before) shown.className = price > before ? "up" : "down";
      shown.dataset.price = price;
      shown.textContent = price.toFixed(2);
    },
    onState(state) {
      const words = { open: "Connected", waiting: "No connection; trying again", closed: "The connection has ended" };
      status.textContent = words[state] ?? "Connecting";
    },
  });
</script>
""".lstrip()


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


app.get("/client.js")(client_module)

if __name__ == "__main__":
    serve(app)
