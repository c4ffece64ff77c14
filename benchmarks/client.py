"""The client of the jobs over real sockets, in a process of its own: `python -m benchmarks.client WHAT PORT ...`.

It prints one line of JSON. picows speaks the protocol, so that the client is faster than any server that it measures.
"""

import argparse
import asyncio
import json
import sys
import time

import picows
import uvloop

PIPES, WINDOW = 16, 16
"""Connections of the throughput job, and how many messages each has on their way."""
CALLERS = 16
"""How many clients knock at once in the handshake job."""
CLIMB = 100
"""How many of the idle connections are opened at once."""


class Pusher(picows.WSListener):
    """Sends a message for each that comes back."""

    count = 0

    def __init__(self, text: bytes) -> None:
        self.text = text

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        """Fill the window."""
        for _ in range(WINDOW):
            transport.send(picows.WSMsgType.TEXT, self.text)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """One came back: send the next."""
        if frame.msg_type == picows.WSMsgType.TEXT:
            self.count += 1
            transport.send(picows.WSMsgType.TEXT, self.text)


class Pinger(picows.WSListener):
    """Measures one message after the other."""

    def __init__(self, text: bytes) -> None:
        self.text, self.sent, self.taken = text, 0.0, list[float]()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        """Send the first."""
        self.sent = time.perf_counter()
        transport.send(picows.WSMsgType.TEXT, self.text)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """It came back: note how long it took and send the next."""
        if frame.msg_type == picows.WSMsgType.TEXT:
            now = time.perf_counter()
            self.taken.append(now - self.sent)
            self.sent = now
            transport.send(picows.WSMsgType.TEXT, self.text)


class Sitter(picows.WSListener):
    """Says nothing."""


async def throughput(url: str, seconds: float) -> dict[str, float]:
    """Messages over busy connections."""
    pairs = [await picows.ws_connect(lambda: Pusher(b"hello"), url) for _ in range(PIPES)]
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    taken, own = time.perf_counter() - start, time.process_time() - cpu
    for transport, _ in pairs:
        transport.disconnect(graceful=False)
    return {"messages": sum(pusher.count for _, pusher in pairs), "client_cpu": own / taken}


async def latency(url: str, seconds: float) -> dict[str, float]:
    """Microseconds of a round trip on one connection."""
    transport, pinger = await picows.ws_connect(lambda: Pinger(b"hello"), url)
    await asyncio.sleep(seconds / 4)
    pinger.taken.clear()
    await asyncio.sleep(seconds)
    transport.disconnect(graceful=False)
    taken = sorted(pinger.taken)
    return {"p50": taken[len(taken) // 2] * 1e6, "p99": taken[len(taken) * 99 // 100] * 1e6}


async def handshakes(url: str, seconds: float) -> dict[str, float]:
    """Connections that are opened and left."""
    end, count = time.perf_counter() + seconds, 0

    async def knock() -> None:
        nonlocal count
        while time.perf_counter() < end:
            transport, _ = await picows.ws_connect(Sitter, url)
            transport.disconnect(graceful=False)
            await transport.wait_disconnected()
            count += 1

    await asyncio.gather(*[knock() for _ in range(CALLERS)])
    return {"handshakes": count}


async def hold(url: str, count: int, *, deflate: bool) -> dict[str, float]:
    """Open idle connections, say so, and keep them until a line comes in."""
    transports = []
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"} if deflate else {}
    for first in range(0, count, CLIMB):
        some = [picows.ws_connect(Sitter, url, extra_headers=headers) for _ in range(min(CLIMB, count - first))]
        transports += [transport for transport, _ in await asyncio.gather(*some)]
    print(json.dumps({"open": sum(not transport.is_disconnected for transport in transports)}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for transport in transports:
        transport.disconnect(graceful=False)
    return {}


def main() -> None:
    """Do one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("throughput", "latency", "handshakes", "hold"))
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--deflate", action="store_true")
    asked = parser.parse_args()
    measures = {"throughput": throughput, "latency": latency, "handshakes": handshakes}
    if asked.what == "hold":
        found = uvloop.run(hold(asked.url, asked.count, deflate=asked.deflate))
    else:
        found = uvloop.run(measures[asked.what](asked.url, asked.seconds))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
