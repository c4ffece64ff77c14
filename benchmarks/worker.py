"""A process in which one peer is measured, always side by side with the base of its ratios.

Each peer has a process to itself, so that none pays for what another has imported; the base is measured in the same
process, right before, so that what the machine does meanwhile falls out of the ratio.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from benchmarks import drivers, peers

CONNECT, DEPENDS = ("/connect/general/7", b"lang=fr&page=2"), ("/depends", b"token=ann")
FEW = 3
"""How many routes the look-ups among many are compared with."""
AREAS = 40
"""How many of the routes are looked up."""
IDLE = 500
"""How many idle connections are weighed."""
BUILDING = 180.0
"""Seconds in which a peer must have made ready for a job and measured once."""

Measure = Callable[[int], Coroutine[Any, Any, float]]


class Order(NamedTuple):
    """What a worker is to measure: a job, which kind of it, how many routes, and seconds a sample is to take."""

    job: str
    kind: str = ""
    routes: int = 0
    seconds: float = 0.05


class Gauge:
    """One thing to measure, with as many repetitions as fill the time of a sample."""

    def __init__(self, measure: Measure, seconds: float, *, first: int = 40) -> None:
        self._measure, self._seconds, self._count, self._first = measure, seconds, 0, first

    async def read(self) -> float:
        """Seconds (or whatever the job counts) for one."""
        if not self._count:
            await self._measure(self._first)  # whatever is made at the first use
            taken = await self._measure(self._first)
            self._count = max(self._first, min(int(self._seconds / max(taken, 1e-9)), 1_000_000))
        gc.collect()
        return await self._measure(self._count)


class Bench:
    """The peer of this process and the base beside it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer, self.raw = peers.load(name), peers.load("raw")
        self._gauges: dict[Order, tuple[Gauge, Gauge]] = {}
        self._made = contextlib.AsyncExitStack()
        self._main = contextlib.AsyncExitStack()
        self._fresh, self._started = 0, False

    async def measure(self, order: Order) -> tuple[float, float]:
        """What the base takes, and what the peer."""
        if not self._started:
            self._started = True
            await self._main.enter_async_context(drivers.lifespan(self.peer.app))
        if order not in self._gauges:
            await self._made.aclose()
            if order.job == "match":
                self._gauges.clear()  # and with them the apps of the job before
            self._gauges[order] = await self._prepare(order)
        base, own = self._gauges[order]
        return await base.read(), await own.read()

    async def close(self) -> None:
        """Stop all apps."""
        await self._made.aclose()
        await self._main.aclose()

    async def _prepare(self, order: Order) -> tuple[Gauge, Gauge]:
        if order.job == "match":
            gauges = [await self._match(order, count) for count in (FEW, order.routes)]
            return gauges[0], gauges[1]
        return self._gauge(self.raw, order), self._gauge(self.peer, order)

    def _gauge(self, peer: peers.Peer, order: Order) -> Gauge:
        if order.job in ("connect", "depends"):
            visit = CONNECT if order.job == "connect" else DEPENDS
            answer = "general 7 fr 2" if order.job == "connect" else "settings database ann"
            return Gauge(lambda count: drivers.connections(peer.app, [visit] * count, answer), order.seconds)
        if order.job == "memory":
            return Gauge(lambda _: drivers.memory(peer.app, "/echo", IDLE), 0, first=1)
        path, text = f"/{order.job}", "hello"
        if order.job != "echo":
            text = getattr(peer, "MESSAGE", peers.JSON)
        if order.job == "typed":
            path = peer.TYPED.get(order.kind) or next(iter(peer.TYPED.values()))
        return Gauge(functools.partial(drivers.messages, peer.app, path, text), order.seconds, first=2000)

    async def _match(self, order: Order, count: int) -> Gauge:
        many = self.peer.routes(order.kind, count)
        await self._made.enter_async_context(drivers.lifespan(many))

        async def look_up(visits: int) -> float:
            taken = 0.0
            rounds = max(visits // AREAS, 1)
            for _ in range(rounds):
                self._fresh += AREAS
                found = peers.paths(order.kind, count, AREAS, self._fresh)
                taken += await drivers.connections(many, [(path, b"") for path in found])
            return taken / rounds

        return Gauge(look_up, order.seconds, first=AREAS)


def work(pipe: multiprocessing.connection.Connection, name: str) -> None:
    """Measure what comes through the pipe until it says None."""
    logging.disable(logging.ERROR)
    with asyncio.Runner() as runner:
        bench = Bench(name)
        while (order := pipe.recv()) is not None:
            try:
                pipe.send(runner.run(bench.measure(order)))
            except Exception as error:  # noqa: BLE001 - the table says it
                pipe.send(f"{type(error).__name__}: {error}"[:200])
        runner.run(bench.close())


class Worker:
    """The other end of such a process."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: multiprocessing.context.SpawnProcess | None = context.Process(
            target=work, args=(theirs, name), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def ended(self) -> bool:
        """Whether it can measure no more."""
        return self._process is None

    def measure(self, order: Order) -> tuple[float, float]:
        """The base and the peer.

        Raises:
            RuntimeError: It failed, or took too long; the text says which.
        """
        if self._process is None:
            raise RuntimeError("its process has ended")
        self._pipe.send(order)
        if not self._pipe.poll(BUILDING):
            self._process.kill()
            self._process = None
            raise RuntimeError(f"took over {BUILDING:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process = None
            raise RuntimeError("its process died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)  # noqa: TRY004 - the text is the error of the other process
        base, own = answer
        return base, own

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._pipe.send(None)
            self._process.join(10)
            self._process.kill()
            self._process = None
