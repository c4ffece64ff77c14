"""Two minutes of clients that come, talk, stall and vanish; then nothing of them may be left.

Run `python -m benchmarks.soak` (`--seconds 120 --clients 2000`). A uvicorn process serves; the clients run here. A
first round of the same kind, half as long, warms up, and its memory is what the end is compared with: it must be back
within 5 %.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import random
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asgiws import App, Limits, WebSocket, controller

SPARE = 0.05
"""How much more memory than after the first round the end may hold."""

app = App(limits=Limits(linger=1, send_timeout=2))
rooms: set[WebSocket] = set()


@controller("/chat")
class Chat:
    """Answer every message, and keep a registry that must be empty in the end."""

    async def on_connect(self, ws: WebSocket) -> None:
        """Come in."""
        await ws.accept()
        rooms.add(ws)

    async def on_message(self, message: str) -> str:
        """Answer, with more for who asks for much."""
        return message * 100_000 if message == "much" else message

    async def on_disconnect(self, ws: WebSocket) -> None:
        """Go."""
        rooms.discard(ws)


app.include(Chat)


@app.websocket("/sleep")
async def sleep(ws: WebSocket) -> None:
    """Never read."""
    await ws.accept()
    rooms.add(ws)
    try:
        await asyncio.Event().wait()
    finally:
        rooms.discard(ws)


@app.get("/left")
async def left() -> dict[str, Any]:
    """What there is of connections, tasks and memory."""
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])  # noqa: ASYNC230, SIM115, PTH123 - a moment's work
    return {
        "connections": len(app.connections),
        "registry": len(rooms),
        "notes": len(app.connections.record.notes),
        "tasks": len(asyncio.all_tasks()),
        "memory": pages * resource.getpagesize(),
        "statistics": app.connections.statistics(),
    }


async def client(url: str, rng: random.Random) -> None:
    """One client with a character of its own."""
    what = rng.choice(("talks", "talks", "talks", "stalls", "vanishes", "sleeps"))
    path = "/sleep" if what == "sleeps" else "/chat"
    with contextlib.suppress(OSError, ConnectionClosed, TimeoutError):
        async with connect(url + path, proxy=None, open_timeout=30, close_timeout=2, max_queue=1) as ws:
            await _live(ws, what, rng)


async def _live(ws: ClientConnection, what: str, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 10)):
        await ws.send("much" if what == "stalls" else "hello")
        if what == "talks":
            await ws.recv()
        await asyncio.sleep(rng.random())
    if what == "stalls":
        await asyncio.sleep(4 * rng.random())
    if what in ("vanishes", "stalls"):
        ws.transport.abort()


async def crowd(url: str, count: int, seconds: float) -> int:
    """Keep so many clients going for so long; how many there were."""
    rng = random.Random(1)
    end = time.monotonic() + seconds
    running: set[asyncio.Task[None]] = set()
    total = 0
    while time.monotonic() < end:
        while len(running) < count:
            task = asyncio.create_task(client(url, rng))
            running.add(task)
            task.add_done_callback(running.discard)
            total += 1
            if total % 50 == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    await asyncio.wait(running, timeout=60)
    return total


def left_over(port: int, *, patience: float = 30) -> dict[str, Any]:
    """What is left, as soon as no connection is."""
    end = time.monotonic() + patience
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/left") as answer:
            found: dict[str, Any] = json.load(answer)
        if not found["connections"] or time.monotonic() > end:
            return found
        time.sleep(0.5)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=2000)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.soak:app", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command) as server:  # noqa: S603 - this program itself
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            url = f"ws://127.0.0.1:{port}"
            asyncio.run(crowd(url, options.clients, options.seconds / 2))
            before = left_over(port)
            total = asyncio.run(crowd(url, options.clients, options.seconds))
            after = left_over(port)
        finally:
            server.terminate()
    growth = after["memory"] / before["memory"] - 1
    print(f"{total} clients; memory {before['memory']:,} -> {after['memory']:,} bytes ({growth:+.1%})")
    print(f"left: { ({key: after[key] for key in ('connections', 'registry', 'notes', 'tasks')}) }")
    print(f"statistics: {after['statistics']}")
    clean = not (after["connections"] or after["registry"] or after["notes"]) and growth <= SPARE
    print("nothing is left" if clean else "SOMETHING IS LEFT")
    return 0 if clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
