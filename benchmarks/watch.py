"""What one look of the watchdog costs, over connections that are idle, and over some whose handlers do not read.

Run `python -m benchmarks.watch`. The looks are called by hand, one after the other, in an event loop with real tasks:
each connection is a handler that waits for its next message.
"""

import argparse
import asyncio
import statistics
import time

from asgiws import App, WebSocket
from asgiws.types import Message, Scope
from asgiws.watch import TICK
from benchmarks.drivers import scope_of

BAR = 10.0
"""Milliseconds that a look over 10,000 idle connections may take."""

app = App()


@app.websocket("/idle")
async def idle(ws: WebSocket) -> None:
    """Read until the end."""
    await ws.accept()
    async for _ in ws.iter_text():
        pass


@app.websocket("/busy")
async def busy(ws: WebSocket) -> None:
    """Never read."""
    await ws.accept()
    await asyncio.Event().wait()


async def connection(path: str, end: asyncio.Event) -> None:
    """One client that says nothing until the end."""
    fresh = True

    async def receive() -> Message:
        nonlocal fresh
        if fresh:
            fresh = False
            return {"type": "websocket.connect"}
        await end.wait()
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(_: Message) -> None:
        """Take it."""

    scope: Scope = scope_of(path)
    await app(scope, receive, send)


async def measure(count: int, share_busy: float, looks: int) -> list[float]:
    """Milliseconds of each look."""
    end = asyncio.Event()
    few = int(count * share_busy)
    paths = ["/busy"] * few + ["/idle"] * (count - few)
    tasks = [asyncio.create_task(connection(path, end)) for path in paths]
    while len(app.connections) < count:  # noqa: ASYNC110 - a benchmark
        await asyncio.sleep(0)
    taken = []
    for _ in range(looks):
        before = time.perf_counter()
        app.connections.look()
        taken.append((time.perf_counter() - before) * 1000)
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await app.connections.rest()
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=10_000)
    count = parser.parse_args().connections
    for share in (0.0, 0.1):
        taken = asyncio.run(measure(count, share, 21))
        middle = statistics.median(taken)
        print(
            f"{count} connections, {share:.0%} not read: a look takes {middle:.2f} ms (at most {max(taken):.2f}), "
            f"{middle / TICK / 10:.2f} % of a core; stay below {BAR:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
