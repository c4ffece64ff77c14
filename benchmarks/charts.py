"""One picture per table: a dot for each peer on a logarithmic scale, and a line for the middle half of its runs.

The picture brings its own background and has colours for light and dark, so that it reads well on any page.
"""

import math
from collections.abc import Iterator
from html import escape
from pathlib import Path

from benchmarks.report import Row, Table, figure, label

WIDTH, LEFT, RIGHT, TOP, LINE = 760, 210, 150, 78, 26
STYLE = """
  .ground { fill: #ffffff; } text { fill: #24292f; font: 13px system-ui, sans-serif; }
  .head { font-size: 15px; font-weight: 600; } .small { font-size: 11px; fill: #57606a; }
  .grid { stroke: #d0d7de; stroke-width: 1; } .spread { stroke: #6e7781; stroke-width: 2; } .dot { fill: #6e7781; }
  .own { font-weight: 600; } .spread.own { stroke: #0969da; stroke-width: 3; } .dot.own { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } text { fill: #e6edf3; } .small { fill: #9198a1; } .grid { stroke: #30363d; }
    .spread, .spread.own { stroke: #9198a1; } .dot { fill: #9198a1; }
    .spread.own { stroke: #4493f8; } .dot.own { fill: #4493f8; }
  }
"""


def chart(table: Table) -> str:
    """The picture as SVG."""
    rows = sorted(table.rows, key=lambda row: _spot(row)[0], reverse=table.higher_is_better)
    low, high = _ends(rows)
    height = TOP + LINE * len(rows) + 34
    better = "higher is better" if table.higher_is_better else "lower is better"
    what = f"ratio to {table.base}" if table.base else table.unit
    hint = f"{what}, logarithmic scale, {better}; line: the middle half of all runs"
    box = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title hint"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<title id="title">{escape(table.title)}</title><desc id="hint">{escape(hint)}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>',
        _text(20, 28, table.title, "head"),
        _text(20, 48, hint, "small"),
        *_grid(low, high, height),
    ]
    for number, row in enumerate(rows):
        parts += _line(row, TOP + LINE * number + LINE / 2, low, high, table.unit)
    if table.about is not None:
        where = f"{table.about.python}, {table.about.cpu}; machines differ, measure on yours"
        parts.append(_text(20, height - 10, where, "small"))
    return "\n".join([*parts, "</svg>", ""])


def _spot(row: Row) -> tuple[float, float, float]:
    """Where the dot is, and the ends of its line."""
    if row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return row.value, row.value_low, row.value_high
    return row.ratio, row.ratio_low, row.ratio_high


def _ends(rows: list[Row]) -> tuple[float, float]:
    spots = [end for row in rows for end in _spot(row) if end > 0]
    return min(spots, default=1) / 1.15, max(spots, default=1) * 1.15


def _across(value: float, low: float, high: float) -> float:
    share = (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _steps(low: float, high: float) -> Iterator[float]:
    """Round numbers within the ends; only powers of ten where there is no room for more."""
    digits = (1, 2, 5) if high / low < 200 else (1,)  # noqa: PLR2004 - what reads well
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in digits:
            if low <= digit * 10**power <= high:
                yield digit * 10.0**power


def _grid(low: float, high: float, height: int) -> Iterator[str]:
    for step in _steps(low, high):
        x = _across(step, low, high)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 30}"/>'
        yield _text(x, TOP - 8, f"{step:,g}", "small", "middle")


def _line(row: Row, y: float, low: float, high: float, unit: str) -> Iterator[str]:
    own = " own" if row.peer == "asgiws" else ""
    middle, first, last = _spot(row)
    x, x1, x2 = (_across(value, low, high) for value in (middle, first, last))
    yield _text(LEFT - 14, y + 4, label(row), own.strip(), "end")
    yield f'<line class="spread{own}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield f'<circle class="dot{own}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    value = f"{figure(row.value)} {unit}".strip()
    yield _text(WIDTH - RIGHT + 14, y + 4, f"{row.ratio:.2f}" if row.ratio is not None else "", own.strip())
    yield _text(WIDTH - 16, y + 4, value, "small", "end")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    more = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more} text-anchor="{anchor}">{escape(text)}</text>'


def draw(tables: dict[str, Table], directory: Path) -> list[Path]:
    """Write a picture for each table; of the look-ups only those among most routes."""
    directory.mkdir(parents=True, exist_ok=True)
    most = max((int(name.rpartition("_")[2]) for name in tables if name.startswith("match_")), default=0)
    written = []
    for name, table in tables.items():
        if table.rows and (not name.startswith("match_") or name.endswith(f"_{most}")):
            target = directory / f"{name}.svg"
            target.write_text(chart(table), encoding="utf-8")
            written.append(target)
    return written
