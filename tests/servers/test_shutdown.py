"""The service stops: what every server, its clients and its handlers make of SIGTERM."""

import asyncio
import contextlib
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.servers import (
    DEADLINE,
    Command,
    LostRaceError,
    ServerProcess,
    every_server,
    hypercorn,
    on_each,
    start,
    starting,
)
from tests.servers.apps import LINGER as SHORT_LINGER
from tests.servers.clients import Server, closing, handshake, status
from tests.servers.differences import DIFFERENCES

COMMANDS = every_server("tests.servers.apps:stopping")
CLOSING = every_server("tests.servers.apps:app")

LINGER = 5.0
"""Seconds, the default of `Limits.linger`."""

HELD = {"reading": 100, "sending": 20, "sleeping": 5, "unanswered": 3}
"""How many connections of which kind a server has when it is told to stop."""


class Stopped(NamedTuple):
    """What comes of a stop.

    Attributes:
        exit_code: Of the process.
        seen: The close code that every client sees; None for a connection that breaks.
        answer: The status that a pending handshake is answered with; None for none.
        told: The codes that `on_disconnect` may be called with, by what the handler was doing.
        after: Seconds until the process ends, at least.
        within: The same, at most.
    """

    exit_code: int
    seen: int | None
    answer: int | None
    told: dict[str, set[int]]
    after: float = 0
    within: float = LINGER + 2


def _told(**others: set[int]) -> dict[str, set[int]]:
    return {**{how: {1012} for how in HELD}, **others}


# A handler that sends learns of the end by its next send, which tells no code, or by the reader that it was given.
_BY_UVICORN = Stopped(-15, 1012, 500, _told(sending={1006, 1012}, unanswered={1006}), after=LINGER - 0.5)
_BY_HYPERCORN = Stopped(0, 1012, 403, _told(), after=2.5)  # of its own graceful timeout

STOPPED = {
    "uvicorn": _BY_UVICORN,
    "uvicorn-uvloop": _BY_UVICORN,
    "uvicorn-wsproto": _BY_UVICORN,
    "uvicorn-wsproto-uvloop": _BY_UVICORN,
    "hypercorn": _BY_HYPERCORN,
    "hypercorn-trio": _BY_HYPERCORN,
    "daphne": Stopped(0, 4012, 403, _told(), within=3),
    # It waits for the handshakes: without one it ends at once, and most handlers with it, with no clean-up.
    "granian": Stopped(0, None, 503, _told(reading={1005}, sending={1005, 1013}, sleeping={1005}, unanswered={4503})),
}
WAITS_FOR_CLIENTS = sys.version_info >= (3, 12)
"""Whether hypercorn's asyncio worker waits for the last client, as Server.wait_closed() does what it says there."""
if WAITS_FOR_CLIENTS:
    del STOPPED["hypercorn"]


async def visit(process: ServerProcess, how: str, number: int) -> ClientConnection:
    """A client that reads all the time."""
    return await connect(
        f"ws://127.0.0.1:{process.port}/hold/{how}/{number}", open_timeout=DEADLINE, close_timeout=1, proxy=None,
        compression=None, max_queue=None, ping_interval=None,
    )  # fmt: skip


async def visit_all(process: ServerProcess, held: dict[str, int]) -> list[ClientConnection]:
    """All clients, not too many at once for what a server's socket keeps waiting."""
    kinds = [(how, number) for how, count in held.items() for number in range(count)]
    clients: list[ClientConnection] = []
    for first in range(0, len(kinds), 20):
        clients += await asyncio.gather(*(visit(process, *kind) for kind in kinds[first : first + 20]))
    return clients


async def seen_by(ws: ClientConnection) -> int | None:
    """The code of the server's close; None if the connection broke without one."""
    async with asyncio.timeout(DEADLINE):
        await ws.wait_closed()
    closed = ws.protocol.close_rcvd
    return int(closed.code) if closed is not None else None


def _check_handlers(name: str, log: str) -> None:
    """Compare what the handlers did at their end with what they should."""
    for how, count in HELD.items():
        # granian ends as soon as the last handshake is answered, and leaves the rest of it.
        cut = name == "granian" and how == "unanswered"
        for step in ("finally",) if cut else ("finally", "on_disconnect", "cleaned up"):
            numbers = re.findall(rf"^{how} (\d+): {step}", log, re.MULTILINE)
            assert sorted(map(int, numbers)) == list(range(count)), (name, how, step)
        told = set(map(int, re.findall(rf"^{how} \d+: on_disconnect with (\d+)", log, re.MULTILINE)))
        assert told <= STOPPED[name].told[how], (name, how, told)
    if DIFFERENCES[name].lifespan and name != "granian":
        assert log.rindex("lifespan: stopped") > log.rindex("cleaned up"), name
    assert ("lifespan: stopped" in log) == DIFFERENCES[name].lifespan, name


async def stop(name: str, process: ServerProcess) -> Stopped:
    """Stop a server that has connections of every kind."""
    clients = await visit_all(process, {how: count for how, count in HELD.items() if how != "unanswered"})
    with contextlib.ExitStack() as stack:
        raws = [
            stack.enter_context(handshake(process, f"/hold/unanswered/{number}"))
            for number in range(HELD["unanswered"])
        ]
        await asyncio.to_thread(process.wait_for, "is there", times=sum(HELD.values()))
        if name == "daphne":  # as `start` says; a handshake counts as a connection without a request for a second
            sending = clients[HELD["reading"]]
            for _ in range(30):
                assert await sending.recv() == "news"
        begin = time.monotonic()
        process.process.terminate()
        await asyncio.to_thread(process.process.wait, LINGER + DEADLINE)
        took = time.monotonic() - begin
        codes = {await seen_by(ws) for ws in clients}
        answers = {status(raw) for raw in raws}
    if name == "daphne" and codes != {4012}:
        # It waits for the first handler to end only: what the others send then may stay in its buffers.
        raise LostRaceError
    exit_code = process.stop()
    expected = STOPPED[name]
    assert expected.after <= took < expected.within, (name, took)
    _check_handlers(name, process.log())
    assert len(codes) == len(answers) == 1, (name, codes, answers)
    return expected._replace(exit_code=exit_code, seen=codes.pop(), answer=answers.pop())


def stop_all() -> dict[str, Stopped]:
    """Stop every server."""
    with starting({name: COMMANDS[name] for name in STOPPED}) as processes:
        return on_each(processes, lambda name, process: asyncio.run(stop(name, process)), COMMANDS)


async def close(name: str, process: ServerProcess) -> tuple[set[int | None], int]:
    """Close all connections of a server within a second. What its clients see, and who comes later."""
    clients = await visit_all(process, dict.fromkeys(("reading", "sending", "sleeping"), 3))
    begin = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
        told = await http.get(f"http://127.0.0.1:{process.port}/close-all?window=1")
    assert told.json() == {"closed": 9}
    assert time.monotonic() - begin > 0.8  # the last one is closed at 8 of 9 parts
    seen = {await seen_by(ws) for ws in clients}
    for step in ("finally", "on_disconnect with 1012", "cleaned up"):
        await asyncio.to_thread(process.wait_for, f": {step}", times=9)
    return seen, Server(name, process).refused("/echo").status_code


def close_all() -> dict[str, tuple[set[int | None], int]]:
    """Close all connections of every server."""
    with starting(CLOSING) as processes:
        return on_each(processes, lambda name, process: asyncio.run(close(name, process)), CLOSING)


def stop_granian() -> set[int | None]:
    """Stop granian while no handshake waits. What its clients see."""
    held = {"reading": 20, "sleeping": 5}

    async def run(process: ServerProcess) -> set[int | None]:
        clients = await visit_all(process, held)
        await asyncio.to_thread(process.wait_for, "is there", times=sum(held.values()))
        begin = time.monotonic()
        process.process.terminate()
        await asyncio.to_thread(process.process.wait, DEADLINE)
        assert time.monotonic() - begin < SHORT_LINGER + 2
        return {await seen_by(ws) for ws in clients}

    with starting({"granian": CLOSING["granian"]}) as processes:
        return asyncio.run(run(processes["granian"]))


Found = dict[str, Future[Any]]


@pytest.fixture(scope="module")
def found() -> Iterator[Found]:
    """What comes of each of these scenarios, by its name; they run beside one another."""
    with ThreadPoolExecutor(3) as pool:
        yield {scenario.__name__: pool.submit(scenario) for scenario in (stop_all, close_all, stop_granian)}


def test_every_server_stops_and_every_handler_is_cleaned_up(found: Found) -> None:
    # P27
    assert found["stop_all"].result() == STOPPED


def test_close_all_spreads_the_closes_and_refuses_who_comes_later(found: Found) -> None:
    expected = {
        name: (1012 if can.registered_codes else 4012, 503 if can.denials else 403) for name, can in DIFFERENCES.items()
    }
    assert found["close_all"].result() == {name: ({code}, answer) for name, (code, answer) in expected.items()}


def test_granian_without_a_waiting_handshake_ends_in_time_and_breaks_off_its_connections(found: Found) -> None:
    # Its handlers may have ended by then, or be left behind: that is a race inside of it.
    assert found["stop_granian"].result() == {None}


def test_daphne_forgets_its_handlers_if_it_has_a_connection_without_a_request() -> None:
    process = start("daphne", COMMANDS["daphne"])
    try:
        with (
            socket.create_connection(("127.0.0.1", process.port)),
            Server("daphne", process).connect("/hold/reading/1"),
        ):
            process.wait_for("is there")
            assert process.stop() == 0
        assert "finally" not in process.log()
    finally:
        process.stop()


def test_daphne_has_no_lifespan_events() -> None:
    process = start("daphne", COMMANDS["daphne"])
    try:
        assert "lifespan" not in process.log()
        with Server("daphne", process).connect("/hold/reading/1"):
            process.wait_for("is there")
            assert "lifespan: started" in process.log()
    finally:
        process.stop()
    assert "lifespan: stopped" not in process.log()


@pytest.mark.parametrize("name", ["hypercorn", "hypercorn-trio"])
def test_a_server_that_cancels_its_handlers_lets_them_say_1012(name: str) -> None:
    # P20
    worker = "trio" if name == "hypercorn-trio" else "asyncio"
    command: Command = hypercorn("tests.apps:app", "--graceful-timeout", "0", worker=worker)
    with starting({name: command}) as processes:
        process = processes[name]
        with Server(name, process).connect("/raw") as ws:
            ws.send("x")
            assert ws.recv(DEADLINE) == "x"
            process.process.terminate()
            if name == "hypercorn" and WAITS_FOR_CLIENTS:
                ws.send("y")
                assert ws.recv(DEADLINE) == "y"
                ws.close()
                assert process.process.wait(DEADLINE) == 0
                return
            assert closing(ws) == (1012, "the server stops")
        assert process.stop() == 0
