"""What asgiws costs beside a raw ASGI app, with no network and no event loop between them.

Run `python -m benchmarks.in_process` (`--quick` for a first look). One driver feeds every app the same events; runs are
interleaved, the table shows medians and, in brackets, the spread of the middle half. Times depend on the machine, the
ratios to the raw app travel: the last column says what they must stay below.
"""

import argparse
import asyncio
import functools
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from asgiws import App, WebSocket
from asgiws.types import Message, Receive, Scope, Send

HEADERS = [
    (b"host", b"localhost:8000"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
    (b"user-agent", b"benchmark"),
]
JSON = '{"type":"say","room":"general","text":"hello, everybody","id":12345,"tags":["a","b"]}'
PATH, QUERY = "/connect/general/7", b"lang=fr&page=2"

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]


# The raw apps: what a careful author would write by hand


async def raw_echo(_: Scope, receive: Receive, send: Send) -> None:
    """Echo text."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            break
        await send({"type": "websocket.send", "text": event["text"]})


async def raw_json(_: Scope, receive: Receive, send: Send) -> None:
    """Echo JSON, decoded and encoded."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            break
        await send({"type": "websocket.send", "text": _encode(_decode(event["text"])).decode()})


async def raw_connect(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept with two path and two query parameters, send one message, close."""
    await receive()
    _, _, room, number = scope["path"].split("/")
    query = dict(parse_qsl(scope["query_string"].decode()))
    text = f"{room} {int(number)} {query['lang']} {int(query['page'])}"
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": text})
    await send({"type": "websocket.close", "code": 1000})


# The same on asgiws

app = App()


@app.websocket("/echo")
async def echo(ws: WebSocket) -> None:
    """Echo text."""
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


@app.websocket("/json")
async def json(ws: WebSocket) -> None:
    """Echo JSON, decoded and encoded."""
    await ws.accept()
    async for message in ws.iter_json():
        await ws.send_json(message)


@app.websocket("/connect/<room>/<number:int>")
async def connect(ws: WebSocket, room: str, number: int, lang: str, page: int = 1) -> None:
    """Accept with two path and two query parameters, send one message, close."""
    await ws.accept()
    await ws.send_text(f"{room} {number} {lang} {page}")
    await ws.close()


# The driver


def scope_of(path: str, query: bytes = b"") -> Scope:
    """A scope as uvicorn gives it."""
    return {
        "type": "websocket", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "ws",
        "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 50000), "root_path": "", "path": path,
        "raw_path": path.encode(), "query_string": query, "headers": HEADERS, "subprotocols": [], "state": {},
        "extensions": {"websocket.http.response": {}},
    }  # fmt: skip


def finish(awaitable: Awaitable[None]) -> None:
    """Run a coroutine that never waits for anything."""
    coroutine: Any = awaitable
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("the app waited for something that the driver does not give")


async def swallow(_: Message) -> None:
    """The server's send."""


def messages(target: ASGI, path: str, text: str, count: int) -> float:
    """Microseconds a message of one long conversation."""
    events: Iterator[Message] = iter(
        [
            {"type": "websocket.connect"},
            *[{"type": "websocket.receive", "text": text} for _ in range(count)],
            {"type": "websocket.disconnect", "code": 1000},
        ],
    )
    following = events.__next__

    async def receive() -> Message:
        return following()

    coroutine = target(scope_of(path), receive, swallow)
    start = time.perf_counter()
    finish(coroutine)
    return (time.perf_counter() - start) / count * 1e6


def connections(target: ASGI, count: int) -> float:
    """Microseconds a connection that is opened, used and closed."""

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scopes = [scope_of(PATH, QUERY) for _ in range(count)]
    start = time.perf_counter()
    for scope in scopes:
        finish(target(scope, receive, swallow))
    return (time.perf_counter() - start) / count * 1e6


def matches(routes: int, count: int) -> float:
    """Microseconds a look-up among so many routes, every path a fresh one."""
    many = App()
    for number in range(routes):
        many.websocket(f"/area{number}/<room>/<number:int>")(_handler)
    paths = [f"/area{number % routes}/room{number}/{number}" for number in range(count)]
    match = many._tree.match  # noqa: SLF001 - the look-up alone, without a connection around it
    start = time.perf_counter()
    for path in paths:
        match("websocket", path)
    return (time.perf_counter() - start) / count * 1e6


async def _handler(ws: WebSocket, room: str, number: int) -> None:
    raise NotImplementedError(ws, room, number)


def memory(target: ASGI, count: int) -> float:
    """Bytes an idle connection: its task, the scope that the server made for it, and what the app keeps."""

    async def connection(end: asyncio.Event) -> None:
        fresh = True

        async def receive() -> Message:
            nonlocal fresh
            if fresh:
                fresh = False
                return {"type": "websocket.connect"}
            await end.wait()
            return {"type": "websocket.disconnect", "code": 1001}

        await target(scope_of("/echo"), receive, swallow)

    async def measure() -> float:
        end = asyncio.Event()
        before = tracemalloc.get_traced_memory()[0]
        tasks = [asyncio.create_task(connection(end)) for _ in range(count)]
        await asyncio.sleep(0)
        used = tracemalloc.get_traced_memory()[0] - before
        end.set()
        await asyncio.gather(*tasks)
        return used / count

    tracemalloc.start()
    try:
        return asyncio.run(measure())
    finally:
        tracemalloc.stop()


def importing(modules: str) -> float:
    """Milliseconds to import modules in a fresh interpreter, above an empty one."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own interpreter
        return (time.perf_counter() - start) * 1e3

    return min(run(f"import {modules}") for _ in range(5)) - min(run("pass") for _ in range(5))


# The table

Job = tuple[str, str, Callable[[], float], Callable[[], float], float]


async def inside(job: Callable[[], float]) -> float:
    """A job inside of an event loop that gets no turn: the apps may ask which one runs."""
    return job()


def measured(job: Callable[[], float]) -> float:
    """What a job measures; one that does not run an event loop itself is run inside of one, which gets no turn."""
    return job() if job.func in (memory, importing) else asyncio.run(inside(job))  # type: ignore[attr-defined]


def jobs(scale: int) -> list[Job]:
    """Name, unit, the base, asgiws, and the ratio to stay below."""
    return [
        (
            "text echo, a message", "us",
            functools.partial(messages, raw_echo, "/echo", "hello", 50 * scale),
            functools.partial(messages, app, "/echo", "hello", 50 * scale), 2.0,
        ),
        (
            "JSON echo, a message", "us",
            functools.partial(messages, raw_json, "/json", JSON, 25 * scale),
            functools.partial(messages, app, "/json", JSON, 25 * scale), 1.5,
        ),
        (
            "connect with 4 parameters", "us",
            functools.partial(connections, raw_connect, 5 * scale),
            functools.partial(connections, app, 5 * scale), 3.0,
        ),
        (
            "match, 1,000 routes to 3", "us",
            functools.partial(matches, 3, 10 * scale), functools.partial(matches, 1000, 10 * scale), 1.1,
        ),
        (
            "memory, idle connection", "B",
            functools.partial(memory, raw_echo, scale), functools.partial(memory, app, scale), 1.5,
        ),
        (
            "import, to anyio + msgspec", "ms",
            functools.partial(importing, "anyio, msgspec"), functools.partial(importing, "asgiws"), 1.4,
        ),
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    quick = parser.parse_args().quick
    rounds, scale = (5, 200) if quick else (15, 1000)
    print(f"{'':27} {'base':>10} {'asgiws':>10}   ratio (middle half)   stay below")
    for name, unit, base, ours, bar in jobs(scale):
        pairs = [(measured(base), measured(ours)) for _ in range(rounds)]
        ratios = sorted(mine / theirs for theirs, mine in pairs)
        low, _, high = statistics.quantiles(ratios, n=4)
        bases, mine = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(
            f"{name:27} {bases:7.2f} {unit:2} {mine:7.2f} {unit:2}   "
            f"{statistics.median(ratios):5.2f} ({low:.2f} to {high:.2f})  {bar:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
