"""What asgiws costs beside a raw ASGI app, with no network and no event loop between them: the bars to stay below.

Run `python -m benchmarks.in_process` (`--quick` for a first look). Nothing but asgiws has to be installed. Runs are
interleaved, the table shows medians and, in brackets, the spread of the middle half. Times depend on the machine, the
ratios to the raw app travel: the last column says what they must stay below. The driver is the smallest that an app
which reads in its handler can do with, so these ratios are stricter than those of `python -m benchmarks`, whose driver
also serves apps with tasks and queues.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from asgiws import App, WebSocket
from benchmarks.drivers import memory, scope_of
from benchmarks.peers import ASGI, JSON, Message, asgiws, raw
from benchmarks.worker import CONNECT, IDLE


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


def connections(target: ASGI, count: int, visits: Sequence[tuple[str, bytes]] = (CONNECT,)) -> float:
    """Microseconds a connection that is opened, used and closed."""

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scopes = [scope_of(*visit) for visit in itertools.islice(itertools.cycle(visits), count)]
    start = time.perf_counter()
    for scope in scopes:
        finish(target(scope, receive, swallow))
    return (time.perf_counter() - start) / count * 1e6


def among(routes: int) -> App:
    """An app with so many routes, two parameters in each."""
    many = App()
    for number in range(routes):
        many.websocket(f"/area{number}/<room>/<number:int>")(_handler)
    return many


async def _handler(ws: WebSocket, room: str, number: int) -> None:
    await ws.accept()
    await ws.close(reason=f"{room} {number}")


def paths(routes: int, count: int) -> list[str]:
    """Paths to all of them, every one a fresh one."""
    return [f"/area{number % routes}/room{number}/{number}" for number in range(count)]


def visits(routes: int, count: int) -> float:
    """Microseconds a connection among so many routes: what the peers can be compared in."""
    many = among(routes)
    known = [(path, b"") for path in paths(routes, count)]
    connections(many, 1, known)  # the first one finds out whether every route can be served
    return connections(many, count, known)


def matches(routes: int, count: int) -> float:
    """Microseconds a look-up among so many routes, without a connection around it."""
    match = among(routes)._tree.match  # noqa: SLF001 - the look-up alone
    known = paths(routes, count)
    start = time.perf_counter()
    for path in known:
        match("websocket", path)
    return (time.perf_counter() - start) / count * 1e6


def importing(modules: str) -> float:
    """Milliseconds to import modules in a fresh interpreter, above an empty one; all of them are compiled before."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: S603 - our own interpreter
        return (time.perf_counter() - start) * 1e3

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as environment["PYTHONPYCACHEPREFIX"]:
        run(f"import {modules}")
        return min(run(f"import {modules}") for _ in range(5)) - min(run("pass") for _ in range(5))


def idle(target: ASGI) -> float:
    """Bytes an idle connection: its task, the scope that the server made for it, and what the app keeps."""
    return asyncio.run(memory(target, "/echo", IDLE))


def raw_idle() -> float:
    """The base of that."""
    return idle(raw.echo)


def our_idle() -> float:
    """The same of asgiws."""
    return idle(asgiws.app)


async def inside(job: Callable[[], float]) -> float:
    """A job inside of an event loop that gets no turn: the apps may ask which one runs."""
    return job()


def measured(job: Callable[[], float]) -> float:
    """What a job measures, inside of an event loop if it runs none itself."""
    return job() if job in (raw_idle, our_idle) else asyncio.run(inside(job))


Job = tuple[str, str, Callable[[], float], Callable[[], float], float | None]


def jobs(scale: int) -> list[Job]:
    """Name, unit, the base, asgiws, and the ratio to stay below if there is one."""
    return [
        (
            "text echo, a message", "us",
            lambda: messages(raw.echo, "/echo", "hello", 50 * scale),
            lambda: messages(asgiws.app, "/echo", "hello", 50 * scale), 2.0,
        ),
        (
            "JSON echo, a message", "us",
            lambda: messages(raw.json, "/json", JSON, 25 * scale),
            lambda: messages(asgiws.app, "/json", JSON, 25 * scale), 1.5,
        ),
        (
            "connect with 4 parameters", "us",
            lambda: connections(raw.connect, 5 * scale), lambda: connections(asgiws.app, 5 * scale), 3.0,
        ),
        ("connect, 1,000 routes to 3", "us", lambda: visits(3, 10 * scale), lambda: visits(1000, 10 * scale), 1.1),
        ("look-up, 1,000 routes to 3", "us", lambda: matches(3, 10 * scale), lambda: matches(1000, 10 * scale), None),
        ("memory, idle connection", "B", raw_idle, our_idle, 1.5),
        ("import, to anyio + msgspec", "ms", lambda: importing("anyio, msgspec"), lambda: importing("asgiws"), 1.4),
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
            f"{statistics.median(ratios):5.2f} ({low:.2f} to {high:.2f})  {'' if bar is None else format(bar, '9.1f')}",
            flush=True,
        )


if __name__ == "__main__":
    main()
