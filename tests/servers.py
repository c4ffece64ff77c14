"""Real server processes on free loopback ports."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

DEADLINE = 10.0
"""Seconds after which a wait for a real server has failed."""

ROOT = pathlib.Path(__file__).parent.parent

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

    def __init__(self, command: Callable[[int], Sequence[str]], env: Mapping[str, str] | None = None) -> None:
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

    def wait_for(self, text: str, since: int = 0, *, times: int = 1) -> None:
        """Wait until the process has written a text, so many times."""
        with self._news:
            found = self._news.wait_for(lambda: self.log(since).count(text) >= times, DEADLINE)
        assert found, f"{text!r} is not {times} times in the log:\n{self.log(since)}"

    def wait_until_ready(self) -> "ServerProcess":
        """Wait until the server accepts connections."""
        for _ in range(int(DEADLINE / _PACE)):
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
def running(**commands: Callable[[int], Sequence[str]]) -> Iterator[dict[str, ServerProcess]]:
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


def uvicorn(app: str, *options: str, ws: str = "websockets-sansio") -> Callable[[int], list[str]]:
    """The command line of uvicorn, by port."""
    return lambda port: python("uvicorn", app, "--host", "127.0.0.1", "--port", port, "--ws", ws, *options)


def hypercorn(app: str, *options: str, worker: str = "asyncio") -> Callable[[int], list[str]]:
    """The command line of hypercorn, by port."""
    return lambda port: python("hypercorn", app, "--bind", f"127.0.0.1:{port}", "-k", worker, *options)


def daphne(app: str, *options: str) -> Callable[[int], list[str]]:
    """The command line of daphne, by port."""
    return lambda port: python("daphne", "-b", "127.0.0.1", "-p", port, *options, app)


def granian(app: str, *options: str) -> Callable[[int], list[str]]:
    """The command line of granian, by port."""
    return lambda port: python("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", port, *options, app)
