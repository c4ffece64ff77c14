"""What a run found: rows with medians and spreads, printed as tables and kept as JSON."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

SERVERS = ("uvicorn", "uvloop", "httptools", "websockets", "picows", "msgspec", "anyio", "pydantic")
"""What takes part beside the peers, and stands with its version in the results."""
BEGIN, END = "<!-- the last full run, written by `python -m benchmarks` -->", "<!-- end of the last full run -->"


class Row(msgspec.Struct):
    """One peer in one job: medians, and in `low` and `high` the middle half of all runs."""

    peer: str
    title: str
    kind: str
    value: float
    value_low: float
    value_high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


class About(msgspec.Struct):
    """Where the figures come from."""

    cpu: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    quick: bool


class Table(msgspec.Struct):
    """One job. `base` says what the ratios are to; `left_out` names who had no part and why."""

    name: str
    title: str
    unit: str
    base: str
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    notes: list[str] = []
    higher_is_better: bool = False
    about: About | None = None

    def add(
        self, peer: str, title: str, values: Sequence[float], bases: Sequence[float] = (), *, kind: str = ""
    ) -> None:
        """Add a row; `bases` are measured in step with the values."""
        row = Row(peer, title, kind, *_middle(values))
        if bases:
            row.ratio, row.ratio_low, row.ratio_high = _middle([v / b for v, b in zip(values, bases, strict=True)])
        self.rows.append(row)

    def text(self) -> str:
        """The table for a reader."""
        lines = [f"\n{self.title}" + (f" (ratios to {self.base})" if self.base else "")]
        width = max([len(label(row)) for row in self.rows] + [20])
        for row in self.rows:
            line = f"  {label(row):{width}} {figure(row.value):>10} {self.unit}"
            if row.ratio is not None and row.ratio_low is not None and row.ratio_high is not None:
                line += f"   {row.ratio:8.2f}   ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
            else:
                line += f"              ({figure(row.value_low)} to {figure(row.value_high)})"
            lines.append(line)
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {peer} left out: {why}" for peer, why in self.left_out.items()]
        return "\n".join(lines)


def _middle(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), low, high


def label(row: Row) -> str:
    """How a row is called."""
    return f"{row.title}, {row.kind}" if row.kind else row.title


def figure(value: float) -> str:
    """A number with as many digits as one reads."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"  # noqa: PLR2004 - enough digits


def about(versions: dict[str, str], *, quick: bool) -> About:
    """The machine, without its name, and the versions of what took part."""
    for name in SERVERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return About(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=dict(sorted(versions.items())),
        quick=quick,
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


def save(table: Table, directory: Path) -> Path:
    """Write one table as JSON; the file has the table's name."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{table.name}.json"
    target.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    return target


COLUMNS = {
    "echo": "text echo", "json": "JSON echo", "typed": "typed JSON echo", "connect": "connect, 4 parameters",
    "depends": "connect, 3 dependencies", "match_parameters_1000": "1,000 routes to 3", "memory": "idle memory",
    "instructions_echo": "instructions, echo", "instructions_connect": "instructions, connect",
    "server_messages": "echo, uvicorn", "server_p50": "round trip, uvicorn",
    "server_handshakes": "handshakes, uvicorn", "rss": "idle memory, uvicorn", "fanout": "publish to 1,000",
    "import": "import, ms",
}  # fmt: skip
"""Which tables have a column in the summary, and its head."""


def summary(tables: dict[str, Table]) -> str:
    """All tables in one of Markdown: peers down, jobs across; of several declared types the fastest."""
    columns = {name: tables[name] for name in COLUMNS if name in tables}
    titles: dict[str, str] = {}
    for table in columns.values():
        titles |= {row.peer: row.title for row in table.rows if row.peer not in titles and table.base}
    lines = ["| |" + "".join(f" {COLUMNS[name]} |" for name in columns), "|---|" + "---|" * len(columns)]
    for peer, title in titles.items():
        lines.append(f"| {title} |" + "".join(f" {_cell(table, peer)} |" for table in columns.values()))
    return "\n".join(lines)


def _cell(table: Table, peer: str) -> str:
    found = [row.value if row.ratio is None else row.ratio for row in table.rows if row.peer == peer]
    if not found:
        return "-"
    best = max(found) if table.higher_is_better else min(found)
    return f"{best:.0f}" if best >= 100 or not table.base else f"{best:.2f}"  # noqa: PLR2004 - enough digits


def rewrite(page: str, tables: dict[str, Table]) -> str:
    """A page with the summary and where it comes from between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    where = next(table.about for table in tables.values() if table.about is not None)
    seen = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    told = f"{where.python}, {where.cores} x {where.cpu}, {where.system}. Versions: {seen}."
    return f"{before}{BEGIN}\n{told}\n\n{summary(tables)}\n{END}{after}"


def saved(directory: Path) -> dict[str, Table]:
    """All tables of a directory by name."""
    return {path.stem: msgspec.json.decode(path.read_bytes(), type=Table) for path in sorted(directory.glob("*.json"))}
