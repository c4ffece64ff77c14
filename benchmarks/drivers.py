"""The client and the server in one: what feeds an ASGI app in-process, with no network.

A client is in step: its next message comes as soon as the last one is answered, and not before. An app that reads in
its handler never waits then, and the event loop gets no turn; one that has a task and a queue in between waits, and its
turns of the event loop are a part of its price. So that such a turn is shared, as on a busy server, and not paid by one
connection alone, there are always some connections at once.

The clock is the processor time of this process: nothing here waits for anything outside, and what else the machine does
meanwhile is not counted.
"""

import asyncio
import contextlib
import gc
import itertools
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

Event = MutableMapping[str, Any]
ASGI = Callable[[Any, Any, Any], Awaitable[None]]

HEADERS = [
    (b"host", b"localhost:8000"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
    (b"user-agent", b"benchmark"),
]
CROWD = 20
"""How many connections there are at once."""
QUICK_ENOUGH = 10.0
"""Seconds in which an app has to answer a connection."""


def scope_of(path: str, query: bytes = b"") -> dict[str, Any]:
    """A scope as uvicorn gives it."""
    return {
        "type": "websocket", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "ws",
        "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 50000), "root_path": "", "path": path,
        "raw_path": path.encode(), "query_string": query, "headers": HEADERS, "subprotocols": [], "state": {},
        "extensions": {"websocket.http.response": {}},
    }  # fmt: skip


def nothing() -> None:
    """Mark nothing."""


async def messages(  # noqa: C901 - closures are the fastest
    target: ASGI, path: str, text: str, count: int, mark: Callable[[], object] = nothing
) -> float:
    """Seconds a message, from the first question to the last answer, of so many messages in `CROWD` conversations.

    `mark` is called before the first and after the last.

    Raises:
        RuntimeError: The app did not echo.
    """
    each = max(count // CROWD, 1)
    loop = asyncio.get_running_loop()
    opened, accepted = False, 0
    gates: list[asyncio.Future[None]] = []
    ends: list[float] = []

    def ending() -> Iterator[Event]:
        ends.append(time.process_time())
        yield from itertools.repeat({"type": "websocket.disconnect", "code": 1000, "reason": ""})

    async def converse() -> str:
        questions = [{"type": "websocket.receive", "text": text} for _ in range(each)]
        following = itertools.chain([{"type": "websocket.connect"}], questions, ending()).__next__
        answered = True
        waiting: asyncio.Future[None] | None = None
        last: Event = {}

        async def receive() -> Event:
            nonlocal answered, waiting
            if not answered:
                waiting = loop.create_future()
                if not opened:
                    gates.append(waiting)
                await waiting
            answered = False
            return following()

        async def send(event: Event) -> None:
            nonlocal answered, waiting, last, accepted
            answered = opened
            last = event
            if not opened:
                accepted += event["type"] == "websocket.accept"
            elif waiting is not None:
                if not waiting.done():
                    waiting.set_result(None)
                waiting = None

        await target(scope_of(path), receive, send)
        return str(last.get("text"))

    async with asyncio.timeout(QUICK_ENOUGH + count / 1000):
        tasks = [asyncio.create_task(converse()) for _ in range(CROWD)]
        while accepted < CROWD or len(gates) < CROWD:
            await asyncio.sleep(0)
            if any(task.done() for task in tasks):
                break
        opened = True
        mark()
        start = time.process_time()
        for gate in gates:
            gate.set_result(None)
        answers = await asyncio.gather(*tasks)
        mark()
    if len(ends) != CROWD or len(answers[0]) < len(text):
        raise RuntimeError(f"{path} was not echoed; the last answer was {answers[0]}")
    return (max(ends) - start) / (each * CROWD)


async def connections(
    target: ASGI, visits: list[tuple[str, bytes]], answer: str = "", mark: Callable[[], object] = nothing
) -> float:
    """Seconds a connection that the app opens, uses and closes, in `CROWD` rows one after the other.

    `mark` is called before the first and after the last.

    Raises:
        RuntimeError: The app did not accept, or did not send `answer`.
    """
    loop = asyncio.get_running_loop()

    async def visit(scopes: list[dict[str, Any]]) -> list[str]:
        fresh, events = True, list[Event]()
        gone: asyncio.Future[None] | None = None

        async def receive() -> Event:
            nonlocal fresh, gone
            if fresh:
                fresh = False
                return {"type": "websocket.connect"}
            if not events or events[-1]["type"] != "websocket.close":
                gone = loop.create_future()
                await gone
            return {"type": "websocket.disconnect", "code": 1000, "reason": ""}

        async def send(event: Event) -> None:
            events.append(event)
            if gone is not None and event["type"] == "websocket.close":
                gone.set_result(None)

        for scope in scopes:
            fresh, gone, events = True, None, []
            await target(scope, receive, send)
        return [event.get("text") or event["type"] for event in events]

    scopes = [scope_of(path, query) for path, query in visits]
    rows = [scopes[number::CROWD] for number in range(min(CROWD, len(scopes)))]
    async with asyncio.timeout(QUICK_ENOUGH + len(visits) / 10):
        mark()
        start = time.process_time()
        ended = await asyncio.gather(*[visit(row) for row in rows])
        taken = time.process_time() - start
        mark()
    for events in ended:
        if "websocket.accept" not in events or (answer and answer not in events):
            raise RuntimeError(f"{visits[-1]} was not accepted and answered: {events}")
    return taken / len(visits)


async def memory(target: ASGI, path: str, count: int) -> float:
    """Bytes an idle connection: its task, the scope that the server made for it, and what the app keeps."""
    end = asyncio.Event()
    accepted = 0

    async def send(event: Event) -> None:
        nonlocal accepted
        accepted += event["type"] == "websocket.accept"

    async def connection() -> None:
        fresh = True

        async def receive() -> Event:
            nonlocal fresh
            if fresh:
                fresh = False
                return {"type": "websocket.connect"}
            await end.wait()
            return {"type": "websocket.disconnect", "code": 1001, "reason": ""}

        await target(scope_of(path), receive, send)

    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tasks = [asyncio.create_task(connection()) for _ in range(count)]
        async with asyncio.timeout(QUICK_ENOUGH * 3):
            while accepted < count:  # noqa: ASYNC110 - only turns of the event loop are waited for
                await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    return used / count


@contextlib.asynccontextmanager
async def lifespan(target: ASGI) -> AsyncIterator[None]:
    """Start an app and stop it again; one without a lifespan is left alone."""
    incoming: asyncio.Queue[Event] = asyncio.Queue()
    started, stopped = asyncio.Event(), asyncio.Event()

    async def send(event: Event) -> None:
        (started if "startup" in event["type"] else stopped).set()

    async def run() -> None:
        with contextlib.suppress(Exception):
            await target({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, incoming.get, send)
        started.set()
        stopped.set()

    task = asyncio.create_task(run())
    incoming.put_nowait({"type": "lifespan.startup"})
    await started.wait()
    try:
        yield
    finally:
        incoming.put_nowait({"type": "lifespan.shutdown"})
        await stopped.wait()
        await task
