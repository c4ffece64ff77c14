"""Every Python block of the documents runs, in an interpreter of its own and with warnings as errors."""

import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
import warnings
from typing import Any

import pytest

import asgiws.testing
from asgiws import Limits

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.name}:{line}", match[1]))
    return found


BLOCKS = blocks()


@pytest.mark.parametrize("code", [code for _, code in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_a_block_of_the_documents_runs(code: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "block.py"
    file.write_text(code, encoding="utf-8")
    run = subprocess.run([sys.executable, "-W", "error", file], capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_documents_have_blocks() -> None:
    assert len(BLOCKS) >= 7


MIGRATION = [
    tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | "))
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


@pytest.mark.parametrize("column", [0, 1], ids=["FastAPI", "asgiws"])
def test_a_column_of_the_table_from_fastapi_runs_from_top_to_bottom(column: int) -> None:
    assert len(MIGRATION) >= 12
    assert all(len(row) == 2 for row in MIGRATION)
    program = ["async def check() -> int: return 1", "async def other() -> int: return 2"]
    for row in MIGRATION:
        handler = "\nasync def handler(websocket: WebSocket, room: str) -> None: await websocket.accept()"
        request = "\nasync def health(room: str) -> str: return room"
        decorated = request if ".get(" in row[column] else handler
        program.append(row[column] + (decorated if row[column].startswith("@") else ""))
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Starlette's test client, about its own requirements
        exec("\n".join(program), names)  # noqa: S102 - that is what it is for
    assert (names["TestClient"] is asgiws.testing.TestClient) == (column == 1)
    with names["TestClient"](names["app"]) as client:
        assert client.get("/health/7").status_code == 200
        with client.websocket_connect("/api/v1/files/a/b"):
            pass


SHOWN = {1_048_576: "1 MiB", "auto": '`"auto"`'}
"""How the guide writes a default that it does not write as Python does."""


def test_the_guide_has_every_limit_with_its_default() -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    section = text.partition("\n## Limits\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    defaults: list[tuple[str, Any]] = [(name, getattr(Limits(), name)) for name in inspect.signature(Limits).parameters]
    assert rows == [(name, SHOWN.get(value) or (f"{value:g}" if value else str(value))) for name, value in defaults]


def test_the_two_lines_of_the_readme_are_there() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert 'pip install -e ".[server]" && python -m examples.chat' in lines
    assert 'pip install -e ".[dev]" && pytest' in lines


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_the_links_between_documents_lead_somewhere(document: pathlib.Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_every_extra_that_a_text_names_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    files = [*DOCUMENTS, *ROOT.glob("*.md"), *(ROOT / "asgiws").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    named = {name for file in files for name in re.findall(r"asgiws\[(\w+)\]", file.read_text("utf-8"))}
    assert named >= {"redis", "server", "testing"}
    assert named <= project["optional-dependencies"].keys()
