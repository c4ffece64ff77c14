"""The jobs: what is measured, and how a table comes of it.

A job is a function that takes the `Run` and gives tables. To add one, write it and put it into `JOBS`, or into the
`JOBS` of a module that `jobs()` names.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from benchmarks import peers
from benchmarks.report import Table
from benchmarks.worker import FEW, Order, Worker

BASE = "the raw ASGI app"
MICRO = 1e6


class Run:
    """One run of the command: who takes part, how long, and the processes in which they are measured."""

    def __init__(self, names: Sequence[str], *, quick: bool = False) -> None:
        self.quick = quick
        self.rounds = 5 if quick else 15
        self.seconds = 0.01 if quick else 0.05
        self.absent = {name: why for name in names if (why := peers.missing(name))}
        self.peers = {name: peers.load(name) for name in names if name not in self.absent}
        self._workers: dict[str, Worker] = {}

    def taking(self, job: str) -> tuple[list[str], dict[str, str]]:
        """Who has a part in a job, and who has none and why."""
        lacks = {name: peer.LACKS[job] for name, peer in self.peers.items() if job in peer.LACKS}
        return [name for name in self.peers if name not in lacks], {**lacks, **self.absent}

    def title(self, name: str) -> str:
        """How the tables call a peer."""
        return self.peers[name].TITLE

    def progress(self, text: str) -> None:
        """Say how far it is, on a line that is overwritten where that is possible."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def worker(self, name: str) -> Worker:
        """The process of a peer; a new one if it had to be ended."""
        if name not in self._workers or self._workers[name].ended:
            self._workers[name] = Worker(name)
        return self._workers[name]

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def rows(self, table: Table, orders: dict[tuple[str, str], Order], scale: float) -> None:
        """Fill a table: every round visits all peers, so that no one has a better hour than another.

        `orders` tells for each peer and kind what its process is to measure.
        """
        pairs: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in orders}
        for number in range(self.rounds):
            for key, order in orders.items():
                name = key[0]
                self.progress(f"{table.title}: {self.title(name)}, round {number + 1} of {self.rounds}")
                if name in table.left_out:
                    continue
                try:
                    pairs[key].append(self.worker(name).measure(order))
                except RuntimeError as error:
                    table.left_out[name] = str(error)
        self.progress("")
        for (name, kind), found in pairs.items():
            if name in table.left_out:
                continue
            bases, values = [base * scale for base, _ in found], [value * scale for _, value in found]
            if name == "raw":
                values = [base * scale for some in pairs.values() for base, _ in some]
                bases = values
            table.add(name, self.title(name), values, bases, kind=kind)


def paired(name: str, title: str, unit: str = "us", scale: float = MICRO) -> "Job":
    """A job that each peer does once a round beside the raw app."""

    def job(run: Run) -> Iterator[Table]:
        names, left_out = run.taking(name)
        table = Table(name, title, unit, BASE, left_out=left_out)
        run.rows(table, {(peer, ""): Order(name, seconds=run.seconds) for peer in names}, scale)
        yield table

    return job


def typed(run: Run) -> Iterator[Table]:
    """JSON echo with each declaration that a peer knows."""
    names, left_out = run.taking("typed")
    table = Table("typed", "JSON echo with a declared type, a message", "us", BASE, left_out=left_out)
    orders = {
        (name, kind): Order("typed", kind, seconds=run.seconds) for name in names for kind in run.peers[name].TYPED
    }
    run.rows(table, orders, MICRO)
    yield table


def match(run: Run) -> Iterator[Table]:
    """Connections among few and many routes."""
    names, left_out = run.taking("match")
    for kind in peers.KINDS:
        for count in (100, 1000) if run.quick else (100, 1000, 10_000):
            table = Table(
                f"match_{kind}_{count}", f"accept and close among {count:,} routes ({kind})", "us",
                f"the same peer with {FEW} routes", left_out=dict(left_out),
            )  # fmt: skip
            orders = {(name, ""): Order("match", kind, count, run.seconds / 2) for name in names}
            run.rows(table, orders, MICRO)
            yield table
    run.close()  # and with it all those routes


def imports(run: Run) -> Iterator[Table]:
    """What a service has to import before it can begin, in a fresh interpreter."""
    names, left_out = run.taking("import")
    table = Table("import", "import, with all that it imports", "ms", "", left_out=left_out)
    taken: dict[str, list[float]] = {name: [] for name in names}
    code = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
    with tempfile.TemporaryDirectory() as cache:
        # Compiled files for all, wherever they are installed: the first round makes them and is thrown away.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for number in range(-1, run.rounds):
            for name, values in taken.items():
                run.progress(f"import: {run.title(name)}, round {number + 1} of {run.rounds}")
                command = [sys.executable, "-c", code.format(run.peers[name].IMPORTS)]
                said = subprocess.run(  # noqa: S603 - our own interpreter
                    command, check=True, capture_output=True, text=True, env=environment
                )
                if number >= 0:
                    values.append(float(said.stdout.split()[-1]) * 1e3)
    run.progress("")
    for name, values in taken.items():
        title = "import asyncio alone" if name == "raw" else run.title(name)
        table.add(name, title, values)
    yield table


Job = Callable[[Run], Iterator[Table]]

JOBS: dict[str, Job] = {
    "echo": paired("echo", "text echo, a message"),
    "json": paired("json", "JSON echo with a plain dict, a message"),
    "typed": typed,
    "connect": paired("connect", "connect with two path and two query parameters, accept, send, close"),
    "depends": paired("depends", "connect with three dependencies and a yield, accept, send, close"),
    "memory": paired("memory", "memory of an idle connection, in-process", "B", 1.0),
    "match": match,
    "import": imports,
}

MODULES = ("instructions", "sockets", "fanout")
"""Modules beside this one with `JOBS` of their own; one that is not there yet is named by the command."""


def jobs() -> dict[str, Job]:
    """All jobs by name."""
    found = dict(JOBS)
    for module in MODULES:
        if importlib.util.find_spec(f"benchmarks.{module}") is not None:
            found |= getattr(importlib.import_module(f"benchmarks.{module}"), "JOBS", {})
    return found
