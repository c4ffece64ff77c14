"""Real server processes on free loopback ports, and scenarios that run on several of them side by side.

`clients` has what the scenarios do to a server, `differences` what each server cannot do, `apps` what they run beside
`tests.apps`.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

DEADLINE = 10.0
"""Seconds after which a wait for a real server has failed."""

ROOT = pathlib.Path(__file__).parent.parent.parent

Command = Callable[[int], Sequence[str]]
"""The command line of a server, made for a port."""

T = TypeVar("T")

START_DEADLINE = 60.0
"""Seconds after which a server has failed to come up: a machine may have to start twenty interpreters at once."""

_replacing = threading.Lock()
_PACE = 0.02  # between two attempts to connect; the wait ends at once if the process does


def free_port() -> int:
    """A port on which nothing listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """One server, started at once and ended by `stop`.

    Args:
        command: The command line, made for a port.
        env: Environment variables on top of this process's own.

    Attributes:
        port: Where it listens.
        process: The handle of the process.
    """

    def __init__(self, command: Command, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._lines: list[str] = []
        self._news = threading.Condition()
        # A session of its own: what the server starts can be ended together with it.
        self.process = subprocess.Popen(
            list(command(self.port)),
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    @property
    def mark(self) -> int:
        """How long the log is now, for `log` and `wait_for`."""
        return len(self._lines)

    @property
    def died_of_its_race(self) -> bool:
        """Whether this is hypercorn -k trio, and it ended its process as docs/servers.md tells: two sends at once."""
        if self.process.poll() is None:
            return False
        self._reader.join(DEADLINE)
        return "trio.BusyResourceError: another task is currently sending" in self.log()

    def log(self, since: int = 0) -> str:
        """What the process has written."""
        return "".join(self._lines[since:])

    def wait_for(self, text: str, since: int = 0, *, times: int = 1, deadline: float = DEADLINE) -> None:
        """Wait until the process has written a text, so many times."""
        with self._news:
            found = self._news.wait_for(lambda: self.log(since).count(text) >= times, deadline)
        assert found, f"{text!r} is not {times} times in the log:\n{self.log(since)}"

    def wait_until_ready(self) -> "ServerProcess":
        """Wait until the server accepts connections."""
        for _ in range(int(START_DEADLINE / _PACE)):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE):
                return self
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_PACE)
                self._reader.join(DEADLINE)
                break
        raise AssertionError(f"the server did not come up (exit code {self.process.poll()}):\n{self.log()}")

    def stop(self, patience: float = DEADLINE) -> int:
        """Ask the process to end, make it end if it does not, and give its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def running(**commands: Command) -> Iterator[dict[str, ServerProcess]]:
    """Servers by name, started side by side and all ready."""
    servers: dict[str, ServerProcess] = {}
    try:
        for name, command in commands.items():
            servers[name] = ServerProcess(command)
        for server in servers.values():
            server.wait_until_ready()
        yield servers
    finally:
        for server in servers.values():
            if server.process.poll() is None:
                server.process.terminate()
        for server in servers.values():
            server.stop()


def python(module: str, *arguments: Any) -> list[str]:
    """The command line of a module."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def uvicorn(app: str, *options: str, ws: str = "websockets-sansio", loop: str = "auto") -> Command:
    """The command line of uvicorn, by port."""
    chosen = ("--ws", ws, "--loop", loop)
    return lambda port: python("uvicorn", app, "--host", "127.0.0.1", "--port", port, *chosen, *options)


def hypercorn(app: str, *options: str, worker: str = "asyncio") -> Command:
    """The command line of hypercorn, by port."""
    return lambda port: python("hypercorn", app, "--bind", f"127.0.0.1:{port}", "-k", worker, *options)


def daphne(app: str, *options: str) -> Command:
    """The command line of daphne, by port."""
    return lambda port: python("daphne", "-b", "127.0.0.1", "-p", port, *options, app)


def granian(app: str, *options: str) -> Command:
    """The command line of granian, by port."""
    return lambda port: python("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", port, *options, app)


def every_server(app: str, *, root_path: str | None = None) -> dict[str, Command]:
    """The command lines of all servers for an application, by name, with their default options."""
    root = () if root_path is None else ("--root-path", root_path)
    prefix = () if root_path is None else ("--url-path-prefix", root_path)
    return {
        "uvicorn": uvicorn(app, *root, loop="asyncio"),
        "uvicorn-uvloop": uvicorn(app, *root, loop="uvloop"),
        "uvicorn-wsproto": uvicorn(app, *root, ws="wsproto", loop="asyncio"),
        "uvicorn-wsproto-uvloop": uvicorn(app, *root, ws="wsproto", loop="uvloop"),
        "hypercorn": hypercorn(app, *root),
        "hypercorn-trio": hypercorn(app, *root, worker="trio"),
        "daphne": daphne(app, *root),
        "granian": granian(app, *prefix),
    }


class LostRaceError(Exception):
    """A server has lost a race against itself: the scenario is to be started again, with a new process."""


def start(name: str, command: Command) -> ServerProcess:
    """A server that is ready."""
    process = ServerProcess(command)
    try:
        if name == "daphne":
            # It forgets to end its handlers if at the stop it has a connection without a request, or had one a second
            # before: none is made to see whether it listens.
            process.wait_for("Listening on TCP address", deadline=START_DEADLINE)
        else:
            process.wait_until_ready()
    except BaseException:
        process.stop()
        raise
    return process


def on_each(
    servers: dict[str, ServerProcess], scenario: Callable[[str, ServerProcess], T], commands: Mapping[str, Command]
) -> dict[str, T]:
    """What comes of a scenario, by server; all run side by side.

    A scenario in which a server lost a race of its own is started again, three times at the most.

    Args:
        servers: The processes by name; one that died is replaced there.
        scenario: Takes the name and the process.
        commands: How each is started.
    """

    def run(name: str) -> T:
        for _ in range(4):
            process = servers[name]
            try:
                found = scenario(name, process)
            except LostRaceError:
                pass
            except Exception:
                if not process.died_of_its_race:
                    print(f"{name}:\n{process.log()}")  # noqa: T201 - pytest shows it with a failure
                    raise
            else:
                if not process.died_of_its_race:
                    return found
            with _replacing:
                if servers[name] is process:  # else another scenario that runs beside has replaced it
                    process.stop()
                    servers[name] = start(name, commands[name])
        raise AssertionError(f"{name} has lost the race against itself four times:\n{process.log()}")

    with ThreadPoolExecutor(len(servers)) as pool:
        runs = {name: pool.submit(run, name) for name in servers}
    return {name: one.result() for name, one in runs.items()}


@contextlib.contextmanager
def starting(commands: Mapping[str, Command]) -> Iterator[dict[str, ServerProcess]]:
    """Servers for a scenario that ends them: daphne is ready without a connection having been made."""
    servers: dict[str, ServerProcess] = {}
    try:
        with ThreadPoolExecutor(len(commands)) as pool:
            starts = {name: pool.submit(start, name, command) for name, command in commands.items()}
        servers = {name: one.result() for name, one in starts.items() if one.exception() is None}
        for one in starts.values():
            one.result()
        yield servers
    finally:
        for process in servers.values():
            process.stop()
