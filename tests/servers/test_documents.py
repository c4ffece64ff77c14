"""The table of what a server cannot do is the one that the scenarios assert."""

import pathlib
import re
from collections.abc import Callable

import pytest

from tests.servers import ROOT
from tests.servers.differences import COLUMNS, UVICORN_WSPROTO, Abilities


def _yes(ability: bool) -> str:
    return "yes" if ability else "**no**"


def _pings(can: Abilities) -> str:
    if can.ping_interval is not None:
        return f"every {can.ping_interval} s"
    return "only if configured" if can.pings else "**no**"


def _bomb(can: Abilities) -> str:
    return _yes(can.bounded_inflation) if can.compression else "-"


def _too_big(can: Abilities) -> str:
    named = {None: "the connection breaks", 1005: "closed without a code"}
    return named.get(can.too_big) or str(can.too_big)


CELLS: dict[str, Callable[[Abilities], str]] = {
    "a handshake refused with a status of your own": lambda can: _yes(can.denials),
    "`accept(headers=...)` reaches the client": lambda can: _yes(can.accept_headers),
    "close codes 1001-1013 reach the client": lambda can: _yes(can.registered_codes),
    "the reason of a close reaches the client": lambda can: _yes(can.reasons),
    "the client's close code reaches your handler": lambda can: _yes(can.tells_code),
    "the client's reason reaches your handler": lambda can: _yes(can.tells_reason),
    "empty messages": lambda can: _yes(can.empty_messages),
    "lifespan events": lambda can: _yes(can.lifespan),
    "a second `Sec-WebSocket-Protocol` header line": lambda can: _yes(can.all_subprotocols),
    "your handler learns of a client that leaves before the answer": lambda can: _yes(can.sees_vanish),
    "pings to find dead clients": _pings,
    "largest message by default": lambda can: f"{can.largest // 2**20} MiB",
    "a larger one": _too_big,
    "permessage-deflate by default": lambda can: _yes(can.compression),
    "a small bomb is unpacked no further than that": lambda can: (
        _yes(can.bounded_inflation) if can.compression else "-"
    ),
    "the root path is put before the path": lambda can: _yes(can.root_path_first),
}
"""How each row of the table tells an ability: the beginning of the cell."""


def _rows(document: pathlib.Path) -> dict[str, list[str]]:
    """The rows of the first table, by their first cell."""
    table = re.search(r"^\|[^\n]*\n\|---.*?\n\n", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert table
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].strip().splitlines()]
    assert rows[0][1:] == list(COLUMNS)
    return {row[0]: row[1:] for row in rows[2:]}


ROWS = _rows(ROOT / "docs" / "servers.md")


def test_every_row_is_asserted() -> None:
    assert list(ROWS) == list(CELLS)


@pytest.mark.parametrize("row", CELLS)
def test_a_row_tells_what_the_scenarios_assert(row: str) -> None:
    for cell, (name, can) in zip(ROWS[row], COLUMNS.items(), strict=True):
        assert re.match(re.escape(CELLS[row](can)) + r"(?![\w])", cell), (name, cell)


def test_the_exception_of_wsproto_is_told() -> None:
    assert ROWS["a small bomb is unpacked no further than that"][0] == "yes [2]"
    assert not UVICORN_WSPROTO.bounded_inflation
