"""The watchdog on every server: handlers that do not read or do not end, clients that leave, stall or say nothing.

A scenario runs on all servers side by side, since most of it is waiting.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypercorn.config import Config as HypercornConfig
from uvicorn.config import Config as UvicornConfig
from websockets.sync.client import ClientConnection, connect

from tests.servers import (
    DEADLINE,
    ServerProcess,
    daphne,
    every_server,
    hypercorn,
    on_each,
    python,
    running,
    uvicorn,
)
from tests.servers.apps import LINGER
from tests.servers.clients import Server, abort, answer, closed_with, closing, handshake, status
from tests.servers.differences import COLUMNS, DIFFERENCES

APP = "tests.servers.apps:app"

COMMANDS = every_server(APP)

# uvicorn ends a client whose pong it has not read: after 40 s by default.
PINGS = ("--ws-ping-interval", "1", "--ws-ping-timeout", "2")
PINGING = {
    "uvicorn-pinging": uvicorn(APP, *PINGS, loop="asyncio"),
    "uvicorn-wsproto-pinging": uvicorn(APP, *PINGS, ws="wsproto"),
    "hypercorn-pinging": hypercorn(APP, "--websocket-ping-interval", "1"),
    "daphne-pinging": daphne(APP, "--ping-interval", "1", "--ping-timeout", "2"),
}
CARELESS = {
    "uvicorn-careless": uvicorn("tests.servers.apps:careless", *PINGS, loop="asyncio"),
    "uvicorn-wsproto-careless": uvicorn("tests.servers.apps:careless", *PINGS, ws="wsproto"),
}
"""What becomes of a busy handler's client without asgiws."""

STALLED = {
    "uvicorn": "given up",
    "uvicorn-uvloop": "given up",
    "uvicorn-wsproto": "given up",
    "uvicorn-wsproto-uvloop": "given up",
    "hypercorn": "given up",
    # It shields its send() from every cancellation.
    "hypercorn-trio": "stuck until the client leaves",
    # It never makes a sender wait, and keeps what the client does not read in memory.
    "daphne": "all is sent",
    "granian": "given up",
}
"""What comes of a send to a client that does not read."""


@pytest.fixture(scope="module")
def every() -> Iterator[dict[str, ServerProcess]]:
    with running(**COMMANDS, **PINGING, **CARELESS) as processes:
        yield processes


@pytest.fixture(scope="module")
def servers(every: dict[str, ServerProcess]) -> dict[str, ServerProcess]:
    return {name: every[name] for name in COMMANDS}


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


# What is mostly waiting: these scenarios run beside one another


def cleaned_up(process: ServerProcess, mark: int, who: str) -> int:
    """Wait for the end of a handler, and give the code that it was told."""
    process.wait_for(f"{who}: cleaned up", mark)
    log = process.log(mark)
    assert "Traceback" not in log
    (told,) = re.findall(rf"{who}: on_disconnect with (\d+)", log)
    return int(told)


def leave(name: str, process: ServerProcess) -> tuple[int, bool]:
    """Leave a handler that sleeps: one client closes, one breaks off. What the handlers are told."""
    mark = process.mark
    broken = handshake(process, "/hold/sleeping/2")
    with client(process, "/hold/sleeping/1"):
        for number in (1, 2):
            process.wait_for(f"sleeping {number} is there", mark)
        begin = time.monotonic()
    abort(broken)
    told = [cleaned_up(process, mark, f"sleeping {number}") for number in (1, 2)]
    assert time.monotonic() - begin >= LINGER
    assert len(re.findall(r"sleeping \d: finally", process.log(mark))) == 2
    return told[0], told[1] in (1005, 1006)


def be_silent(name: str, process: ServerProcess) -> tuple[int, int | None]:
    """Say nothing, also when the server closes: half open. What the handler is told, and what the client is sent."""
    mark = process.mark
    with handshake(process, "/hold/silent/silent/1") as raw:
        assert " 101 " in answer(raw)
        seen = closed_with(raw)
        return cleaned_up(process, mark, "silent 1"), seen


def wait_for_an_answer(name: str, process: ServerProcess) -> tuple[int | None, int | None, int]:
    """Make handshakes that get no answer, and stay. The answers, and what the handler is told."""
    mark = process.mark
    with handshake(process, "/late") as plain, handshake(process, "/hold/late/unanswered/1") as controlled:
        answers = status(plain), status(controlled)
    told = cleaned_up(process, mark, "unanswered 1")
    if name == "hypercorn-trio" and told == 1006:
        told = 4503  # it tells of the end before the answer is through
    return *answers, told


def vanish(name: str, process: ServerProcess) -> bool:
    """Leave before the answer. Whether the handler ends by that, and not by the time for its answer."""
    # P3, T4
    mark = process.mark
    with handshake(process, "/hold/unanswered/2") as raw:
        process.wait_for("unanswered 2 is there", mark)
        abort(raw)
    if DIFFERENCES[name].sees_vanish:
        return cleaned_up(process, mark, "unanswered 2") in (1005, 1006)
    with handshake(process, "/hold/late/stays/1"):  # for longer than a handler may go on without its client
        cleaned_up(process, mark, "stays 1")
    return "unanswered 2: finally" in process.log(mark)


def keep_busy(name: str, process: ServerProcess) -> bool | int:
    """Talk to a handler that reads nothing for a while: True if all comes back in the end, else the close's code."""
    mark = process.mark
    if name in CARELESS:
        with client(process, "/") as ws:
            ws.send("x")  # the server overlooks pongs as soon as a message waits
            return closing(ws)[0]
    count = 50 if name in PINGING else 300  # the inbox holds 64: of what is behind them no server reads a pong
    messages = [str(number) for number in range(count)]
    with client(process, f"/busy/{count}") as ws:
        for message in messages:
            ws.send(message)
        assert json.loads(ws.recv(DEADLINE)) == messages
        ws.send("still there")
        assert ws.recv(DEADLINE) == "still there"
    process.wait_for("busy no more", mark)
    return True


def play_dead(name: str, process: ServerProcess) -> str:
    """Answer no ping. What the server makes of it."""
    mark = process.mark
    pings = 0
    with handshake(process, "/hold/reading/3") as raw:
        assert " 101 " in answer(raw)
        got = b""
        with contextlib.suppress(ConnectionError):
            while pings < 5:
                frame = raw.recv(4096)
                if not frame:
                    break
                got += frame
                pings = got.count(b"\x89")
        assert pings, got
        if pings == 5:
            return "goes on"
        cleaned_up(process, mark, "reading 3")
        return "ends the connection"


DEAD = {
    "uvicorn-pinging": "ends the connection",
    "uvicorn-wsproto-pinging": "ends the connection",
    "hypercorn-pinging": "goes on",
    "daphne-pinging": "ends the connection",
}
"""What a server that pings makes of a client that answers none."""

Found = dict[str, Future[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(every: dict[str, ServerProcess], servers: dict[str, ServerProcess]) -> Iterator[Found]:
    """What comes of each of these scenarios, by its name."""
    with ThreadPoolExecutor(6) as pool:
        yield {
            "play_dead": pool.submit(on_each, {name: every[name] for name in PINGING}, play_dead, PINGING),
            "keep_busy": pool.submit(on_each, every, keep_busy, {**COMMANDS, **PINGING, **CARELESS}),
            **{
                scenario.__name__: pool.submit(on_each, servers, scenario, COMMANDS)
                for scenario in (leave, be_silent, wait_for_an_answer, vanish)
            },
        }


def test_a_handler_that_sleeps_is_cancelled_after_its_client(found: Found) -> None:
    expected = {name: (1000 if can.tells_code else 1006, True) for name, can in DIFFERENCES.items()}
    assert found["leave"].result() == expected


def test_a_client_that_says_nothing_is_closed_and_not_waited_for(found: Found) -> None:
    codes = {name: 1001 if can.registered_codes else 4001 for name, can in DIFFERENCES.items()}
    assert found["be_silent"].result() == {name: (1001, code) for name, code in codes.items()}


def test_a_handshake_that_is_not_answered_is_refused(found: Found) -> None:
    expected = {name: (503, 503, 4503) if can.denials else (403, 403, 4503) for name, can in DIFFERENCES.items()}
    assert found["wait_for_an_answer"].result() == expected


def test_a_client_that_leaves_before_the_answer(found: Found) -> None:
    # Where the server does not tell, the time for the answer ends the handler.
    assert found["vanish"].result() == {name: can.sees_vanish for name, can in DIFFERENCES.items()}


def test_a_busy_handler_keeps_its_client_and_gets_all_messages(found: Found) -> None:
    expected = {**dict.fromkeys((*COMMANDS, *PINGING), True), **dict.fromkeys(CARELESS, 1011)}
    assert found["keep_busy"].result() == expected


def test_a_client_that_answers_no_ping(found: Found) -> None:
    assert found["play_dead"].result() == DEAD


# Pings, clients that stall, handlers that are impatient


def told_by(*command: str) -> str:
    """What a program says."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_pings_that_a_server_sends_by_default() -> None:
    # daphne's module makes an event loop when it is imported: not in this process
    asked = "import daphne.server as d, inspect; print(inspect.signature(d.Server).parameters['ping_interval'].default)"
    defaults = {
        "uvicorn": UvicornConfig(APP).ws_ping_interval,
        "hypercorn": HypercornConfig().websocket_ping_interval,
        "daphne": float(told_by(sys.executable, "-c", asked)),
        "granian": None,
    }
    assert defaults == {name: can.ping_interval for name, can in COLUMNS.items()}
    options = told_by(*python("granian", "--help"))
    assert bool(re.search(r"--\S*ping", options)) == COLUMNS["granian"].pings


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

    assert on_each(servers, stall, COMMANDS) == STALLED
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


def test_a_handler_that_gives_up_reading_very_often_loses_nothing(servers: dict[str, ServerProcess]) -> None:
    count = 1500

    def hurry(name: str, process: ServerProcess) -> bool:
        with client(process, f"/impatient/{count}") as ws:
            for number in range(count):
                ws.send(str(number))
                time.sleep(0.0002)  # a pace at which the handler waits now and then
            told = json.loads(ws.recv(DEADLINE))
        assert told["got"] == [str(number) for number in range(count)]
        return bool(told["cancelled"] > 0 and told["timeouts"] > 0)

    chosen = {name: servers[name] for name in ("granian", "uvicorn")}
    assert on_each(chosen, hurry, COMMANDS) == {"granian": True, "uvicorn": True}


def test_a_message_that_is_too_big_closes_with_1009(servers: dict[str, ServerProcess]) -> None:
    # S13: text is counted as UTF-8
    def exceed(name: str, process: ServerProcess) -> tuple[Any, int]:
        with client(process, "/echo") as ws:
            ws.send("é" * 500)
            echoed = ws.recv(DEADLINE)
            ws.send("é" * 501)
            return echoed, closing(ws)[0]

    expected = {name: ("é" * 500, Server(name, servers[name]).code(1009)) for name in COMMANDS}
    assert on_each(servers, exceed, COMMANDS) == expected


def test_a_page_of_the_same_host_is_let_in(servers: dict[str, ServerProcess]) -> None:
    # S1, S5
    def ask(name: str, process: ServerProcess) -> bool:
        server = Server(name, process)
        with server.connect("/echo", origin=f"http://127.0.0.1:{process.port}") as ws:
            ws.send("x")
            assert ws.recv(DEADLINE) == "x"
        for origin in (f"http://127.0.0.1:{process.port + 1}", "null", f"http://localhost:{process.port}"):
            assert server.refused("/echo", origin=origin).status_code == 403
        return True

    assert all(on_each(servers, ask, COMMANDS).values())
