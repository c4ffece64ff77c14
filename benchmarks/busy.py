"""What becomes of a client whose handler is busy for a minute, on a raw ASGI app and on asgiws, under uvicorn.

Run `python -m benchmarks.busy` (`--seconds 60`). The client sends a message every four seconds and answers all pings.
uvicorn stops reading, and so overlooks the pongs, as soon as one message waits for an application that does not read.
"""

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from asgiws import App, WebSocket
from asgiws.types import Receive, Scope, Send

PACE = 4.0
"""Seconds between two messages of the client."""


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """Work, then tell how many messages came, by hand."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    await asyncio.sleep(float(scope["query_string"] or 60))
    count = 0
    while (event := await receive()).get("text") != "end" and event["type"] == "websocket.receive":
        count += 1
    await send({"type": "websocket.send", "text": str(count)})


app = App()


@app.websocket("/")
async def work(ws: WebSocket) -> None:
    """The same with asgiws."""
    await ws.accept()
    await asyncio.sleep(float(ws.scope["query_string"] or 60))
    count = 0
    async for text in ws.iter_text():
        if text == "end":
            break
        count += 1
    await ws.send_text(str(count))


def visit(name: str, seconds: float) -> str:
    """What a client sees that talks to a handler which is busy for so long."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.busy:{name}", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command) as server:  # noqa: S603 - this program itself
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            return _talk(f"ws://127.0.0.1:{port}/?{seconds:g}", seconds)
        finally:
            server.kill()  # it would wait for the handler


def _talk(url: str, seconds: float) -> str:
    start, sent = time.monotonic(), 0
    try:
        with connect(url, proxy=None) as ws:
            while time.monotonic() - start < seconds:
                ws.send("still here")
                sent += 1
                time.sleep(PACE)
            ws.send("end")
            return f"kept: {ws.recv(60)!s} of {sent} messages arrived"
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd is not None else 1006
        return f"cut with {code} after {time.monotonic() - start:.0f} s and {sent} messages"


def main() -> None:
    """Visit both and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    with ThreadPoolExecutor() as pool:
        found = {name: pool.submit(visit, name, seconds) for name in ("raw", "app")}
        for name, future in found.items():
            print(f"{name:4} {future.result()}", flush=True)


if __name__ == "__main__":
    main()
