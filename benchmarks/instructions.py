"""How many machine instructions a message and a connection take: the figure that hardly wobbles.

`valgrind --tool=callgrind` counts. The process tells it where a stretch begins and ends by asking for its parent's id,
which nothing else does meanwhile; two stretches of different length give what one more message costs.
"""

import asyncio
import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import drivers, peers
from benchmarks.jobs import Job, Run
from benchmarks.report import Table
from benchmarks.worker import CONNECT

BASE = "the raw ASGI app"
MESSAGES, CONNECTIONS = (400, 2800), (200, 600)
"""How many of them the short and the long stretch have. One look of the watchdog weighs as much as many messages."""
PATIENCE = 600.0
MARKS: tuple[Callable[[], int], ...] = (os.getpid, os.getppid)
"""What is called around each stretch: the first time warms up and marks nothing."""


def stretch(name: str) -> None:
    """What is counted: both jobs, short and long, with marks before, between and after."""
    peer = peers.load(name)
    drivers.QUICK_ENOUGH = PATIENCE

    async def job() -> None:
        async with drivers.lifespan(peer.app):
            gc.disable()  # a collection falls into one stretch and not into the other
            for mark in MARKS:
                for messages, connections in zip(MESSAGES, CONNECTIONS, strict=True):
                    await drivers.messages(peer.app, "/echo", "hello", messages, mark)
                    await drivers.connections(peer.app, [CONNECT] * connections, mark=mark)

    asyncio.run(job())


def count(name: str) -> dict[str, float]:
    """Instructions a message and a connection of a peer.

    Raises:
        RuntimeError: valgrind failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = [
            "valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={directory}/out",
            sys.executable, "-m", "benchmarks.instructions", name,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"}
        try:
            subprocess.run(  # noqa: S603 - our own program
                command, check=True, capture_output=True, text=True, env=environment, timeout=PATIENCE
            )
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stderr.splitlines() if line and not line.startswith("==")]
            raise RuntimeError((said or ["valgrind failed"])[-1][:200]) from None
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"took over {PATIENCE:.0f} s") from None
        totals = [_total(Path(directory, f"out.{number}")) for number in range(1, 9)]
    # Every second dump is a stretch: echo short, connect short, echo long, connect long.
    echo_short, connect_short, echo_long, connect_long = totals[1::2]
    return {
        "echo": (echo_long - echo_short) / (MESSAGES[1] - MESSAGES[0]),
        "connect": (connect_long - connect_short) / (CONNECTIONS[1] - CONNECTIONS[0]),
    }


def _total(dump: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    if not found:
        raise RuntimeError(f"{dump.name} has no sum")
    return int(found[1])


def instructions(run: Run) -> Iterator[Table]:
    """Both jobs for every peer."""
    names, left_out = run.taking("instructions")
    tables = {
        "echo": Table("instructions_echo", "instructions a text echo", "", BASE),
        "connect": Table("instructions_connect", "instructions a connection with four parameters", "", BASE),
    }
    found: dict[str, dict[str, float]] = {}
    if not shutil.which("valgrind"):
        left_out |= dict.fromkeys(names, "valgrind is not installed")
        names = []
    for name in names:
        run.progress(f"instructions: {run.title(name)}")
        try:
            found[name] = count(name)
        except (RuntimeError, OSError) as error:
            left_out[name] = str(error)
    run.progress("")
    for what, table in tables.items():
        for name, values in found.items():
            table.add(name, run.title(name), [values[what]], [found.get("raw", values)[what]])
        table.left_out = left_out
        yield table


JOBS: dict[str, Job] = {"instructions": instructions}

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        stretch(sys.argv[1])
