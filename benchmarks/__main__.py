"""Measure everything in one run: `python -m benchmarks` (`--quick`, `--only JOB`, `--peers NAMES`).

Install the peers first, in an environment of their own: `pip install -e ".[dev]" -r benchmarks/requirements.txt`. One
that is not installed is left out, and said so.
"""

import argparse
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.charts import draw
from benchmarks.jobs import Run, jobs
from benchmarks.report import about, rewrite, save, saved

HERE = Path(__file__).parent
RESULTS = HERE / "results"
QUICK = RESULTS / "quick"
CHARTS = HERE.parent / "docs" / "benchmarks"
PAGE = HERE.parent / "docs" / "performance.md"


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure asgiws beside its peers.")
    parser.add_argument("--only", nargs="+", metavar="JOB", default=[], help=f"some of: {', '.join(jobs())}")
    parser.add_argument("--peers", nargs="+", metavar="NAME", default=[], help=f"some of: {', '.join(peers.NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a first look; its results are kept apart")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="keep results and pictures there, and only there")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what was kept")
    asked = parser.parse_args()
    for given, known in ((asked.only, tuple(jobs())), (asked.peers, peers.NAMES)):
        for name in given:
            if name not in known:
                parser.error(f"unknown: {name}; known: {', '.join(known)}")
    return asked


def main() -> None:
    """Run, print, keep, draw."""
    asked = options()
    directory: Path = asked.out or (QUICK if asked.quick else RESULTS)
    if not asked.draw:
        names = [name for name in peers.NAMES if not asked.peers or name in asked.peers or name in peers.ALWAYS]
        measure(Run(names, quick=asked.quick), asked.only or list(jobs()), directory)
    tables = saved(directory)
    published = directory == RESULTS
    pictures = draw(tables, CHARTS if published else directory)
    if published:
        PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"\nkept in {directory}; {len(pictures)} pictures drawn")


def measure(run: Run, only: list[str], directory: Path) -> None:
    """Do the jobs, print each table as soon as it is there, and keep it."""
    for name, why in run.absent.items():
        print(f"{name} left out: {why}")
    versions = {peer.DISTRIBUTION: peers.version(peer) for peer in run.peers.values() if peer.DISTRIBUTION}
    where = about(versions, quick=run.quick)
    print(f"{where.python} on {where.cores} x {where.cpu}, {where.system}", flush=True)
    start = time.monotonic()
    try:
        for name in only:
            for table in jobs()[name](run):
                table.about = where
                save(table, directory)
                print(table.text(), f"\n  [{time.monotonic() - start:.0f} s]", flush=True)
    finally:
        run.close()


if __name__ == "__main__":
    main()
