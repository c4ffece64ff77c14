"""The watchdog in real server processes. What a server cannot do is asserted as what it does instead.

A scenario runs on all servers side by side, since most of it is waiting.
"""

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.apps_watched import LINGER
from tests.servers import DEADLINE, ServerProcess, daphne, granian, hypercorn, running, uvicorn

APP = "tests.apps_watched:app"

Commands = Mapping[str, Callable[[int], Sequence[str]]]

COMMANDS: Commands = {
    "uvicorn": uvicorn(APP, "--loop", "asyncio"),
    "uvicorn-uvloop": uvicorn(APP, "--loop", "uvloop"),
    "uvicorn-wsproto": uvicorn(APP, "--loop", "asyncio", ws="wsproto"),
    "hypercorn": hypercorn(APP),
    "hypercorn-trio": hypercorn(APP, worker="trio"),
    "daphne": daphne(APP),
    "granian": granian(APP),
}

# uvicorn ends a client whose pong it has not read: after 40 s by default.
PINGS = ("--ws-ping-interval", "1", "--ws-ping-timeout", "1")
PINGING: Commands = {
    "uvicorn-pinging": uvicorn(APP, "--loop", "asyncio", *PINGS),
    "uvicorn-uvloop-pinging": uvicorn(APP, "--loop", "uvloop", *PINGS),
    "uvicorn-wsproto-pinging": uvicorn(APP, "--loop", "asyncio", *PINGS, ws="wsproto"),
}

HELD = {"reading": 20, "sending": 5, "sleeping": 5, "unanswered": 3}
"""How many connections of which kind a server has when it is told to stop."""


T = TypeVar("T")


class Stopped(NamedTuple):
    """What comes of a stop.

    Attributes:
        exit_code: Of the process.
        seen: The close code that every client sees; None for a connection that breaks.
        answer: The status that a pending handshake is answered with; None for none.
        told: The codes that `on_disconnect` may be called with, by what the handler was doing.
    """

    exit_code: int
    seen: int | None
    answer: int | None
    told: dict[str, set[int]]


def _told(**others: set[int]) -> dict[str, set[int]]:
    return {"reading": {1012}, "sending": {1012}, "sleeping": {1012}, "unanswered": {1012}, **others}


# A handler that sends learns of the end by its next send, which tells no code, or by the reader that it was given.
_BY_UVICORN = Stopped(-15, 1012, 500, _told(sending={1006, 1012}, unanswered={1006}))
_BY_HYPERCORN = Stopped(0, 1012, 403, _told())

STOPPED = {
    "uvicorn": _BY_UVICORN,
    "uvicorn-uvloop": _BY_UVICORN,
    "uvicorn-wsproto": _BY_UVICORN,
    "hypercorn": _BY_HYPERCORN,
    "hypercorn-trio": _BY_HYPERCORN,
    "daphne": Stopped(0, 4012, 403, _told()),
    # It waits for the handshakes: without one it ends at once, and most handlers with it, with no clean-up.
    "granian": Stopped(0, None, 503, _told(reading={1005}, sending={1005, 1013}, sleeping={1005}, unanswered={4503})),
}
if sys.version_info >= (3, 12):
    # Its asyncio worker waits for the last client there, as Server.wait_closed() does what it says.
    del STOPPED["hypercorn"]

LEFT = {name: 1006 if name.startswith("hypercorn") else 1000 for name in COMMANDS}
"""What the handler is told of a client that closes with 1000."""

STALLED = {
    "uvicorn": "given up",
    "uvicorn-uvloop": "given up",
    "uvicorn-wsproto": "given up",
    "hypercorn": "given up",
    # It shields its send() from every cancellation.
    "hypercorn-trio": "stuck until the client leaves",
    # It never makes a sender wait, and keeps what the client does not read in memory.
    "daphne": "all is sent",
    "granian": "given up",
}
"""What comes of a send to a client that does not read."""


def code(name: str, expected: int) -> int:
    """What a client sees of a close code: daphne sends no 10xx but 1000."""
    return expected + 3000 if name == "daphne" else expected


# Several servers


class LostRaceError(Exception):
    """A server has lost a race against itself: it is tried once more."""


def start(command: Callable[[int], Sequence[str]]) -> ServerProcess:
    process = ServerProcess(command)
    if command is COMMANDS["daphne"]:
        # It forgets to end its handlers if at the stop it has a connection without a request, or had one a second
        # before: none is made to see whether it listens.
        process.wait_for("Listening on TCP address")
        return process
    return process.wait_until_ready()


def on_each(
    servers: dict[str, ServerProcess],
    scenario: Callable[[str, ServerProcess], T],
    commands: Commands = COMMANDS,
) -> dict[str, T]:
    """What comes of a scenario, by server; all run side by side."""

    def run(name: str) -> T:
        for attempt in range(4):
            if attempt:
                servers[name].stop()
                servers[name] = start(commands[name])
            try:
                found = scenario(name, servers[name])
            except LostRaceError:
                continue
            except Exception:
                if not servers[name].died_of_its_race:
                    print(f"{name}:\n{servers[name].log()}")  # noqa: T201 - pytest shows it with a failure
                    raise
            else:
                if not servers[name].died_of_its_race:
                    return found
        raise AssertionError(f"{name} has lost the race against itself four times:\n{servers[name].log()}")

    with ThreadPoolExecutor(len(servers)) as pool:
        runs = {name: pool.submit(run, name) for name in servers}
    return {name: one.result() for name, one in runs.items()}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, ServerProcess]]:
    with running(**COMMANDS) as processes:
        yield processes


# Clients


def client(process: ServerProcess, path: str, **options: Any) -> ClientConnection:
    """A client that reads all the time, for a with statement."""
    ws: ClientConnection = connect(
        f"ws://127.0.0.1:{process.port}{path}", open_timeout=DEADLINE, close_timeout=1, proxy=None, compression=None,
        **{"max_queue": None, "max_size": None, **options},
    )  # fmt: skip
    return ws


def get(process: ServerProcess, path: str) -> dict[str, int]:
    found: dict[str, int] = httpx.get(
        f"http://127.0.0.1:{process.port}{path}", trust_env=False, timeout=DEADLINE
    ).json()
    return found


def closing(ws: ClientConnection) -> int | None:
    """The code of the server's close, after whatever came before; None if the connection broke without one."""
    try:
        while True:
            ws.recv(DEADLINE)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


def handshake(process: ServerProcess, path: str) -> socket.socket:
    """A handshake that waits for its answer."""
    raw = socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE)
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return raw


def status(raw: socket.socket) -> int | None:
    """The status of the answer to a handshake; None if there is none."""
    try:
        got = raw.recv(100)
    except ConnectionError:
        return None
    return int(got.split()[1]) if got else None


# The service stops


def _stop(processes: dict[str, ServerProcess], name: str) -> None:
    processes[name].stop()  # which may be another one by then


def test_every_server_stops_and_every_handler_is_cleaned_up() -> None:
    def stop(name: str, process: ServerProcess) -> Stopped:
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(client(process, f"/hold/{how}/{number}"))
                for how in HELD
                if how != "unanswered"
                for number in range(HELD[how])
            ]
            raws = [
                stack.enter_context(handshake(process, f"/hold/unanswered/{number}"))
                for number in range(HELD["unanswered"])
            ]
            process.wait_for("is there", times=sum(HELD.values()))
            if name == "daphne":  # as above; a handshake counts as a connection without a request for a second
                sending = clients[HELD["reading"]]
                for _ in range(50):
                    assert sending.recv(DEADLINE) == "news"
            begin = time.monotonic()
            process.process.terminate()
            process.process.wait(LINGER + 5)
            assert time.monotonic() - begin < LINGER + 5
            exit_code = process.stop()
            log = process.log()
            codes = {closing(ws) for ws in clients}
            if name == "daphne" and codes != {4012}:
                # It waits for the first handler to end only: what the others send then may stay in its buffers.
                raise LostRaceError
            (seen,) = codes
            for how, count in HELD.items():
                # granian ends as soon as the last handshake is answered, and leaves the rest of it.
                cut = name == "granian" and how == "unanswered"
                for step in ("finally",) if cut else ("finally", "on_disconnect", "cleaned up"):
                    numbers = re.findall(rf"^{how} (\d+): {step}", log, re.MULTILINE)
                    assert sorted(map(int, numbers)) == list(range(count)), (name, how, step, log)
            (answer,) = {status(raw) for raw in raws}
        told = {how: set(map(int, re.findall(rf"{how} \d+: on_disconnect with (\d+)", log))) for how in HELD}
        allowed = STOPPED[name].told
        assert all(told[how] <= allowed[how] for how in HELD), (name, told)
        return Stopped(exit_code, seen, answer, allowed)

    with contextlib.ExitStack() as stack:
        processes: dict[str, ServerProcess] = {}
        for name in STOPPED:
            processes[name] = start(COMMANDS[name])
            stack.callback(_stop, processes, name)
        assert on_each(processes, stop) == STOPPED


def test_daphne_forgets_its_handlers_if_it_has_a_connection_without_a_request() -> None:
    process = start(COMMANDS["daphne"])
    try:
        with socket.create_connection(("127.0.0.1", process.port)), client(process, "/hold/reading/1"):
            process.wait_for("is there")
            assert process.stop() == 0
        assert "finally" not in process.log()
    finally:
        process.stop()


def test_close_all_spreads_the_closes_and_refuses_who_comes_later() -> None:
    def close(name: str, process: ServerProcess) -> tuple[set[int | None], int]:
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(client(process, f"/hold/{how}/{number}"))
                for how in ("reading", "sending", "sleeping")
                for number in range(3)
            ]
            begin = time.monotonic()
            assert get(process, "/close-all?window=1") == {"closed": 9}
            assert time.monotonic() - begin > 0.8  # the last one is closed at 8 of 9 parts
            seen = {closing(ws) for ws in clients}
            with pytest.raises(InvalidStatus) as refused, client(process, "/echo"):
                pass
        for step in ("finally", "on_disconnect with 1012", "cleaned up"):
            process.wait_for(f": {step}", times=9)
        return seen, refused.value.response.status_code

    with running(**COMMANDS) as processes:
        expected = {name: ({code(name, 1012)}, 403 if name == "daphne" else 503) for name in COMMANDS}
        assert on_each(processes, close) == expected


# A client leaves, a client stalls


def test_a_handler_that_sleeps_is_cancelled_after_its_client(servers: dict[str, ServerProcess]) -> None:
    def leave(name: str, process: ServerProcess) -> int:
        mark = process.mark
        cancelled = get(process, "/statistics")["cancelled"]
        with client(process, "/hold/sleeping/1"):
            process.wait_for("sleeping 1 is there", mark)
            begin = time.monotonic()
        process.wait_for("sleeping 1: cleaned up", mark)
        assert time.monotonic() - begin >= LINGER
        assert get(process, "/statistics")["cancelled"] == cancelled + 1
        log = process.log(mark)
        assert "sleeping 1: finally" in log
        assert "Traceback" not in log
        (told,) = re.findall(r"on_disconnect with (\d+)", log)
        return int(told)

    assert on_each(servers, leave) == LEFT


def test_a_client_that_does_not_read_is_given_up(servers: dict[str, ServerProcess]) -> None:
    def stall(name: str, process: ServerProcess) -> str:
        mark = process.mark
        dropped = get(process, "/statistics")["dropped"]
        with contextlib.closing(socket.socket()) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", process.port))
            with client(process, "/flood", sock=raw, max_queue=1) as stalled:
                process.wait_for("flood begins", mark)
                try:
                    return _what_comes_of_the_flood(name, process, mark, dropped)
                finally:
                    stalled.socket.shutdown(socket.SHUT_RDWR)

    assert on_each(servers, stall) == STALLED
    for process in servers.values():
        process.wait_for("flood: finally")


def _what_comes_of_the_flood(name: str, process: ServerProcess, mark: int, dropped: int) -> str:
    with client(process, "/echo") as other:  # is served all the time
        begin = time.monotonic()
        while True:
            other.send("x")
            assert other.recv(DEADLINE) == "x"
            log = process.log(mark)
            if "flood: all is sent" in log:
                return "all is sent"
            if get(process, "/statistics")["dropped"] > dropped:
                break
            assert time.monotonic() - begin < DEADLINE, f"nothing comes of it:\n{log}"
        if name == "hypercorn-trio":
            for _ in range(50):  # what would end now has time to
                other.send("x")
                assert other.recv(DEADLINE) == "x"
            assert "flood: finally" not in process.log(mark)
            return "stuck until the client leaves"
    process.wait_for("flood: disconnected with 1013 'you read too slowly'", mark)
    process.wait_for("flood: finally", mark)
    return "given up"


# A handler is busy, or impatient


def test_a_busy_handler_keeps_its_client_and_gets_all_messages(servers: dict[str, ServerProcess]) -> None:
    def work(name: str, process: ServerProcess) -> bool:
        count = 50 if name in PINGING else 300  # the inbox holds 64: of what is behind them no server reads a pong
        mark = process.mark
        messages = [str(number) for number in range(count)]
        with client(process, f"/busy/{count}") as ws:
            for message in messages:
                ws.send(message)
            assert json.loads(ws.recv(DEADLINE)) == messages
            ws.send("still there")
            assert ws.recv(DEADLINE) == "still there"
        return "busy no more" in process.log(mark)

    with running(**PINGING) as pinging:
        every = {**servers, **pinging}
        try:
            assert on_each(every, work, {**COMMANDS, **PINGING}) == dict.fromkeys(every, True)
        finally:
            servers.update({name: every[name] for name in servers})


def test_a_handler_that_gives_up_reading_very_often_loses_nothing(servers: dict[str, ServerProcess]) -> None:
    count = 4000

    def hurry(name: str, process: ServerProcess) -> bool:
        with client(process, f"/impatient/{count}") as ws:
            for number in range(count):
                ws.send(str(number))
                time.sleep(0.0002)  # a pace at which the handler waits now and then
            told = json.loads(ws.recv(DEADLINE))
        assert told["got"] == [str(number) for number in range(count)]
        return bool(told["cancelled"] > 0 and told["timeouts"] > 0)

    chosen = {name: servers[name] for name in ("granian", "uvicorn")}
    assert on_each(chosen, hurry) == {"granian": True, "uvicorn": True}


def test_a_handshake_that_is_not_answered_is_refused(servers: dict[str, ServerProcess]) -> None:
    def wait(name: str, process: ServerProcess) -> tuple[int | None, int | None, int]:
        mark = process.mark
        with handshake(process, "/late") as plain, handshake(process, "/hold/late/unanswered/1") as controlled:
            answers = status(plain), status(controlled)
        process.wait_for("unanswered 1: cleaned up", mark)
        (told,) = re.findall(r"unanswered 1: on_disconnect with (\d+)", process.log(mark))
        if name == "hypercorn-trio" and told == "1006":
            told = "4503"  # it tells of the end before the answer is through
        return *answers, int(told)

    expected = {name: (403, 403, 4503) if name == "daphne" else (503, 503, 4503) for name in COMMANDS}
    assert on_each(servers, wait) == expected


def test_a_message_that_is_too_big_closes_with_1009(servers: dict[str, ServerProcess]) -> None:
    def exceed(name: str, process: ServerProcess) -> tuple[Any, int | None]:
        with client(process, "/echo") as ws:
            ws.send("x" * 1000)
            echoed = ws.recv(DEADLINE)
            ws.send("é" * 501)
            return echoed, closing(ws)

    assert on_each(servers, exceed) == {name: ("x" * 1000, code(name, 1009)) for name in COMMANDS}
