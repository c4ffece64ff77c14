"""The jobs over real sockets: uvicorn in one process, a client in another.

All servers run at once and are visited in turn, so that an idle one costs nothing and each round compares neighbours in
time. What a server does is counted per second of its own processor time: that is what a busy core carries, and what
else the machine does meanwhile is not counted. uvicorn runs as its defaults have it where uvloop, httptools and
websockets are installed.
"""

import contextlib
import importlib.util
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job, Run
from benchmarks.report import Table

BASE = "the raw ASGI app"
MEASURED = {
    "messages": ("echo through a real server, messages a second of its processor time", "a second", True),
    "p50": ("round trip through a real server, median", "us", False),
    "p99": ("round trip through a real server, 99 of 100", "us", False),
    "handshakes": ("handshakes of a real server, a second of its processor time", "a second", True),
}
COUNTED = ("messages", "handshakes")
DEFAULTS = "uvicorn's defaults"
SETTINGS = {
    "--ws websockets-sansio": ("--ws", "websockets-sansio"),
    "--ws websockets": ("--ws", "websockets"),
    "--ws wsproto": ("--ws", "wsproto"),
    "--loop asyncio": ("--loop", "asyncio"),
    "--http h11": ("--http", "h11"),
}
DEFLATE = {
    "--ws-per-message-deflate true": ("--ws-per-message-deflate", "true"),
    "--ws-per-message-deflate false": ("--ws-per-message-deflate", "false"),
}
BUSY = 0.9
"""A client that works for such a share of the time may be what limits a server."""
READY = 30.0
"""Seconds in which a server must listen."""
SOCKETS, FEW_SOCKETS = 5_000, 500
"""Idle connections of the memory job, in full and in quick."""
NEEDED = ("uvicorn", "uvloop", "httptools", "websockets", "picows")


class Server:
    """A server process for one peer."""

    def __init__(self, name: str, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/echo"
        command = [sys.executable, "-m", "uvicorn", f"benchmarks.peers.{name}:app", "--port", str(self.port)]
        command += ["--log-level", "critical", "--no-access-log", "--interface", "asgi3", "--backlog", "4096"]
        command += options
        if name == "picows":
            command = [sys.executable, "-m", "benchmarks.peers.picows", str(self.port)]
        self._process = subprocess.Popen(  # noqa: S603 - our own programs
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Until it listens.

        Raises:
            RuntimeError: It ended, or does not listen in time.
        """
        end = time.monotonic() + READY
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError("its server does not start")

    def memory(self) -> int:
        """Bytes of memory that the process holds."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()

    def busy(self) -> float:
        """Seconds of processor time that it has taken.

        Raises:
            RuntimeError: It has ended.
        """
        try:
            return int(Path(f"/proc/{self._process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
        except OSError:
            raise RuntimeError("its server has ended") from None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def client(what: str, server: Server, *more: str) -> dict[str, float]:
    """What the client process finds; messages and handshakes are divided by the processor time of the server.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "benchmarks.client", what, server.url, *more]
    before = server.busy()
    try:
        said = subprocess.run(  # noqa: S603 - our own program
            command, check=True, capture_output=True, text=True, timeout=READY * 2
        )
    except subprocess.CalledProcessError as error:
        raise RuntimeError(error.stderr.strip().splitlines()[-1][:200]) from None
    except subprocess.TimeoutExpired:
        raise RuntimeError("the client waited for ever") from None
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    taken = server.busy() - before
    return {key: value / taken if key in COUNTED else value for key, value in found.items()}


def absent() -> str:
    """What these jobs need and is not installed."""
    names = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return ", ".join(names if Path("/proc/self/schedstat").exists() else [*names, "/proc"])


@contextlib.contextmanager
def servers(names: list[str], left_out: dict[str, str]) -> Iterator[dict[str, Server]]:
    """A server for each peer; one that does not start is left out."""
    running = {name: Server(name) for name in names}
    try:
        for name, server in list(running.items()):
            try:
                server.wait()
            except RuntimeError as error:
                left_out[name] = str(error)
                running.pop(name).close()
        yield running
    finally:
        for server in running.values():
            server.close()


def server(run: Run) -> Iterator[Table]:
    """Messages a second, round trips and handshakes."""
    names, left_out = run.taking("server")
    tables = {
        what: Table(f"server_{what}", title, unit, BASE, higher_is_better=higher)
        for what, (title, unit, higher) in MEASURED.items()
    }
    if missing := absent():
        left_out |= dict.fromkeys(names, f"not installed: {missing}")
    else:
        with servers(names, left_out) as running:
            found = _visit(run, running, left_out)
        for what, table in tables.items():
            for name in running:
                if name not in left_out:
                    bases, values = ([pair[side][what] for pair in found[name]] for side in (0, 1))
                    table.add(name, run.title(name), bases if name == "raw" else values, bases)
        tables["messages"].notes = _notes(run, found, left_out)
    for table in tables.values():
        table.left_out = left_out
        yield table


def _visit(
    run: Run, running: dict[str, Server], left_out: dict[str, str]
) -> dict[str, list[tuple[dict[str, float], dict[str, float]]]]:
    """What each round found for the base and for each peer, one right after the other."""
    rounds, seconds = (3, "0.3") if run.quick else (5, "0.8")
    found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {name: [] for name in running}
    for number in range(rounds):
        for name, one in running.items():
            run.progress(f"real servers: {run.title(name)}, round {number + 1} of {rounds}")
            base: dict[str, float] = {}
            own: dict[str, float] = {}
            try:
                for what in ("throughput", "latency", "handshakes") if name not in left_out else ():
                    base |= client(what, running["raw"], "--seconds", seconds)
                    own |= client(what, one, "--seconds", seconds) if name != "raw" else base
                found[name].append((base, own))
            except RuntimeError as error:
                left_out[name] = str(error)
    run.progress("")
    return found


def _notes(
    run: Run, found: dict[str, list[tuple[dict[str, float], dict[str, float]]]], left_out: dict[str, str]
) -> list[str]:
    """Which servers were faster than the client."""
    notes = []
    for name, pairs in found.items():
        busy = statistics.median(own["client_cpu"] for _, own in pairs) if pairs and name not in left_out else 0
        if busy > BUSY:
            notes.append(f"{run.title(name)}: the client was busy {busy:.0%} of the time, the server could do more")
    return notes


def rss(run: Run) -> Iterator[Table]:
    """Memory of a server process with many idle connections."""
    names, left_out = run.taking("rss")
    sockets = FEW_SOCKETS if run.quick else SOCKETS
    table = Table(
        "rss", f"memory of an idle connection in a real server with {sockets:,}", "B", BASE, left_out=left_out
    )
    missing = absent()
    found: dict[str, list[float]] = {name: [] for name in names}
    if missing:
        left_out |= dict.fromkeys(names, f"not installed: {missing}")
        names = []
    for number in range(1 if run.quick else 2):
        for name in names:
            run.progress(f"memory of servers: {run.title(name)}, round {number + 1}")
            try:
                found[name].append(_weigh(name, sockets))
            except RuntimeError as error:
                left_out[name] = str(error)
    run.progress("")
    bases = found.get("raw", [])
    for name, values in found.items():
        if name not in left_out:
            table.add(name, run.title(name), values, bases)
    table.left_out = left_out
    yield table


def options(run: Run) -> Iterator[Table]:
    """Other settings of uvicorn under asgiws: messages a second, and the memory that compression takes."""
    speed = Table(
        "options",
        "asgiws, echo through uvicorn with other settings, messages a second of its processor time",
        "a second",
        DEFAULTS,
    )
    speed.higher_is_better = True
    sockets = FEW_SOCKETS if run.quick else SOCKETS
    weight = Table(
        "deflate",
        f"asgiws, memory of an idle connection of {sockets:,}, compression offered by the client",
        "B",
        DEFAULTS,
    )
    if missing := absent():
        speed.left_out["asgiws"] = weight.left_out["asgiws"] = f"not installed: {missing}"
    else:
        for kind, settings in SETTINGS.items():
            run.progress(f"options: {kind}")
            try:
                speed.add("asgiws", "asgiws", *_compared(run, settings), kind=kind)
            except RuntimeError as error:
                speed.left_out[kind] = str(error)
        bases = [_weigh("asgiws", sockets)]
        for kind, settings in DEFLATE.items():
            run.progress(f"options: {kind}")
            weight.add("asgiws", "asgiws", [_weigh("asgiws", sockets, *settings, deflate=True)], bases, kind=kind)
    run.progress("")
    yield from (speed, weight)


def _compared(run: Run, settings: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Messages a second with some settings, and beside it with none; both servers are new, and take turns to begin."""
    both = Server("asgiws", *settings), Server("asgiws")
    rounds, seconds = (3, "0.3") if run.quick else (5, "0.8")
    found: tuple[list[float], list[float]] = ([], [])
    try:
        for one in both:
            one.wait()
        for number in range(rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                found[side].append(client("throughput", both[side], "--seconds", seconds)["messages"])
    finally:
        for one in both:
            one.close()
    return found


def _weigh(name: str, sockets: int, *settings: str, deflate: bool = False) -> float:
    """Bytes a connection; some come and go before, so that what is made once is not counted."""
    one = Server(name, *settings)
    try:
        one.wait()
        _hold(one, sockets // 20, deflate=deflate)
        before = one.memory()
        return (_hold(one, sockets, deflate=deflate) - before) / sockets
    finally:
        one.close()


def _hold(one: Server, count: int, *, deflate: bool) -> int:
    """The memory of a server with so many connections.

    Raises:
        RuntimeError: They do not open.
    """
    command = [sys.executable, "-m", "benchmarks.client", "hold", one.url, "--count", str(count)]
    command += ["--deflate"] if deflate else []
    with subprocess.Popen(  # noqa: S603 - our own program
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        try:
            said: dict[str, Any] = json.loads((holder.stdout.readline() if holder.stdout else "") or "{}")
            if said.get("open") != count:
                raise RuntimeError(f"{said.get('open', 0)} of {count} connections are open")
            return _settled(one)
        finally:
            if holder.stdin:
                holder.stdin.close()
            holder.wait()


def _settled(one: Server) -> int:
    """The memory of a server, as soon as it has stopped to change."""
    last = [one.memory()]
    while len(last) < 5 or statistics.pstdev(last[-5:]) > last[-1] / 1000:  # noqa: PLR2004 - a second in all
        time.sleep(0.2)
        last.append(one.memory())
        if len(last) > 50:  # noqa: PLR2004 - ten seconds are enough
            break
    return last[-1]


JOBS: dict[str, Job] = {"server": server, "rss": rss, "options": options}
