"""What the tests of topics on a broker share: receivers, relays, a cluster, and the end of all tasks."""

import asyncio
import contextlib
import inspect
import secrets
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import anyio
import anyio.lowlevel

from asgiws.channels import Channels, Publication
from asgiws.channels.redis import RedisBackend
from tests.fakes import DEADLINE
from tests.servers import free_port
from tests.valkey import Valkey

PACE = 0.01
"""Seconds between two looks at what another process does."""

SLOTS = 16384

depth: list[None] = []
"""One for each `nothing_left` that has not ended."""


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, which may be async, that other processes bring about; what it gave."""
    with anyio.fail_after(DEADLINE * 2):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await anyio.sleep(PACE)


def fresh() -> str:
    """A prefix of keys that nobody has used."""
    return f"test{secrets.token_hex(6)}"


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What is done within leaves no task behind; of several the outermost one looks."""
    before = asyncio.all_tasks()
    depth.append(None)
    try:
        yield
    finally:
        depth.pop()
    with anyio.fail_after(DEADLINE):
        while not depth and asyncio.all_tasks() - before:
            await anyio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def channels_on(source: Any, **options: Any) -> AsyncIterator[Channels]:
    """Channels on a broker, with keys of their own, that leave nothing behind."""
    async with nothing_left():
        channels = Channels(source, **{"prefix": fresh(), **options})
        async with channels:
            yield channels
            assert (channels._topics, channels._ready, channels._presence.here) == ({}, {}, {})


class Recorder:
    """A receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.got: list[Publication] = []
        self.told: list[str] = []

    def deliver(self, publication: Publication) -> None:
        self.got.append(publication)

    def broken(self) -> None:
        self.told.append("broken")

    def spoilt(self) -> None:
        self.told.append("spoilt")

    def moved(self, topic: str) -> None:
        self.told.append(f"moved {topic}")

    def mended(self) -> None:
        self.told.append("mended")


@contextlib.asynccontextmanager
async def backend_on(url: str, prefix: str | None = None) -> AsyncIterator[tuple[RedisBackend, Recorder]]:
    """An open backend without channels, and what it tells."""
    async with nothing_left():
        backend, recorder = RedisBackend(url, prefix=prefix or fresh()), Recorder()
        await backend.open(recorder)
        try:
            yield backend, recorder
        finally:
            await backend.close()


class Relay:
    """A way to a server, which can be cut.

    Args:
        port: The server's.
        context: For TLS between the client and the relay.

    Attributes:
        port: The relay's.
        accepted: How many connections there have been.
    """

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._context = context
        self._open: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = free_port()
        self.accepted = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._context)

    def close(self) -> None:
        """Cut all connections, and take no more."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections, without a farewell."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.append(writer)
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open.append(back)
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """A server that takes the client's name, and answers what comes then with these bytes, or never; its port."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            while said := await reader.read(65536):
                if answer is not None:
                    writer.write(b"+OK\r\n" * said.count(b"SETINFO") or answer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


class Cluster:
    """Three masters without replicas, each with a third of the slots.

    Attributes:
        nodes: The servers.
        url: What a client needs.
    """

    def __init__(self) -> None:
        self.nodes = [self._node() for _ in range(3)]
        self.url = f"redis+cluster://127.0.0.1:{self.nodes[0].port}"
        self._stack = contextlib.ExitStack()

    @staticmethod
    def _node() -> Valkey:
        options = ("--cluster-enabled", "yes", "--cluster-port", free_port(), "--cluster-node-timeout", 1000)
        whole = ("--cluster-require-full-coverage", "no", "--cluster-allow-reads-when-down", "no")
        return Valkey(*map(str, (*options, *whole)))

    def __enter__(self) -> Self:
        with self._stack:
            for node in self.nodes:
                self._stack.enter_context(node)
            edges = [SLOTS * at // 3 for at in range(4)]
            for node, first, end in zip(self.nodes, edges, edges[1:], strict=False):
                node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
                bus = node._options[node._options.index("--cluster-port") + 1]
                self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            for node in self.nodes:
                node.wait_for("CLUSTER", "SLOTS", until=lambda slots: len(slots) == 3)
                node.wait_for("CLUSTER", "INFO", until=lambda info: b"cluster_state:ok" in info)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def owner(self, slot: int) -> int:
        """Which node has a slot."""
        for first, last, node, *_ in self.nodes[0].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(at for at, one in enumerate(self.nodes) if one.port == node[1])
        raise AssertionError(f"nobody has the slot {slot}")

    def begin_move(self, slot: int, to: int) -> None:
        """Let a slot be half at one node and half at another."""
        old, new = self.nodes[self.owner(slot)], self.nodes[to]
        new.command("CLUSTER", "SETSLOT", slot, "IMPORTING", old.command("CLUSTER", "MYID"))
        old.command("CLUSTER", "SETSLOT", slot, "MIGRATING", new.command("CLUSTER", "MYID"))

    def move(self, slot: int, to: int) -> None:
        """Give a slot to another node, with its keys."""
        at = self.owner(slot)
        if at == to:
            return
        self.begin_move(slot, to)
        old, new = self.nodes[at], self.nodes[to]
        # What another process writes meanwhile goes to the new one.
        while found := old.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            old.command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *found)
        for node in (new, old, *self.nodes):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", new.command("CLUSTER", "MYID"))


@contextlib.contextmanager
def stopped(server: Valkey) -> Iterator[None]:
    """A server whose process stands still."""
    assert server.server is not None
    process = server.server.process
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
