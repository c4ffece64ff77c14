"""Every Python block of the documents runs, in an interpreter of its own and with warnings as errors."""

import pathlib
import re
import subprocess
import sys

import pytest

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


def test_the_two_lines_of_the_readme_are_there() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert 'pip install -e ".[server]" && python -m examples.chat' in lines
    assert 'pip install -e ".[dev]" && pytest' in lines


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_the_links_between_documents_lead_somewhere(document: pathlib.Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
