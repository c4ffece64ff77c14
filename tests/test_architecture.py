"""The house rules that no linter knows: who imports whom, and what an import costs.

The law of imports: the modules stand in one order, and each imports only from those above it. Every import counts, in
functions and under TYPE_CHECKING too. Each rule is a function of a syntax tree, and is first shown to find what it is
there to find.
"""

import ast
import functools
import graphlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import asgiws

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "asgiws"

ORDER = (
    "types",
    "log",
    "codes",
    "errors",
    "wire",
    "limits",
    "params",
    "converters",
    "paths",
    "connection",
    "messages",
    "http",
    "states",
    "background",
    "inbox",
    "session",
    "websocket",
    "signature",
    "watch",
    "taps",
    "registry",
    "channels.publication",
    "channels.options",
    "channels.backend",
    "channels.memory",
    "channels.redis_link",
    "channels.redis_scripts",
    "channels.redis_servers",
    "channels.redis",
    "channels.outbox",
    "channels.policies",
    "channels.listeners",
    "channels.members",
    "channels.subscriptions",
    "channels.topics",
    "channels.presence",
    "channels.hub",
    "channels.channels",
    "channels.script",
    "channels.__init__",
    "components",
    "values",
    "plans",
    "injection",
    "cleanup",
    "dependencies",
    "singletons",
    "streams",
    "endpoints",
    "routes",
    "routing",
    "hooks",
    "controllers",
    "origins",
    "credentials",
    "tokens",
    "security",
    "lifespan",
    "app",
    "__init__",
)
"""The law of imports. A new module finds its place here."""

THIRD_PARTY = {"anyio", "msgspec"}
"""All that the core may import besides the standard library."""
ALSO = {
    "testing": {"asyncio", "httpx"},
    "channels.redis": {"asyncio", "redis"},
    "channels.redis_link": {"asyncio", "redis"},
    "channels.redis_servers": {"asyncio", "redis"},
}
"""What a part may import besides that is loaded only where it is used."""
ONLY_FOR_TYPES = {"typing_extensions"}
"""What may be imported under TYPE_CHECKING besides."""
OTHERS_BUSINESS = {"asyncio"}
"""Parts of the standard library that would bind the core to one event loop."""


class Import(NamedTuple):
    """One imported module: its dots, its name and whether only type checkers see it."""

    level: int
    name: str
    only_for_types: bool


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Every module by its name below the package."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"), str(path))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(tree: ast.AST) -> set[Import]:
    """What a module imports, anywhere in it."""
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {Import(0, alias.name, id(node) in hidden) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(Import(node.level, node.module, id(node) in hidden))
        elif isinstance(node, ast.ImportFrom):
            found |= {Import(node.level, alias.name, id(node) in hidden) for alias in node.names}
    return found


def own_imports(tree: ast.AST, module: str = "module") -> set[str]:
    """The modules of the package that a module of it imports."""
    inside = module.split(".")
    return {".".join([*inside[: -found.level], found.name]) for found in imports(tree) if found.level}


def foreign_imports(tree: ast.AST) -> set[str]:
    """The packages that a module imports and may not."""
    allowed = (set(sys.stdlib_module_names) | THIRD_PARTY) - OTHERS_BUSINESS
    outside = {found for found in imports(tree) if not found.level}
    return {
        name
        for name, only_for_types in ((found.name.partition(".")[0], found.only_for_types) for found in outside)
        if name not in allowed and not (only_for_types and name in ONLY_FOR_TYPES)
    }


def hidden_imports(tree: ast.AST) -> list[int]:
    """The lines with an import that no statement shows."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"__import__", "import_module"}
    ]


def asserts(tree: ast.AST) -> list[int]:
    """The lines with an `assert`: a check of input that `python -O` takes away."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def dropped_tasks(tree: ast.AST) -> list[int]:
    """The lines that start a task and keep no reference to it: it may be collected while it runs."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).rpartition(".")[2]
        in {"create_task", "ensure_future", "run_coroutine_threadsafe"}
    ]


def without_docstring(tree: ast.Module) -> list[str]:
    """The public classes, functions and methods that say nothing of themselves."""
    return list(_silent(tree, ""))


def _silent(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if any(ast.unparse(decorator).rpartition(".")[2] == "overload" for decorator in node.decorator_list):
            continue
        if ast.get_docstring(node) is None:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _silent(node, f"{prefix}{node.name}.")


every_module = pytest.mark.parametrize("module", trees())


# The rules find what they are there to find

EXAMPLE = '''
"""A module that breaks every rule."""
import asyncio, os.path
import anyio
import starlette.routing as routing
from . import app
from .paths import Converter
from ..above import thing
from asgiws.errors import RouteError
from typing import TYPE_CHECKING
import typing_extensions
if TYPE_CHECKING:
    from typing_extensions import TypeVar
    from .websocket import WebSocket
else:
    import trio

def silent():
    from msgspec import json
    assert json
    importlib.import_module("redis")
    asyncio.create_task(f())
    create_task(f())
    task = asyncio.create_task(f())

class Speaks:
    """It does."""
    def silent_too(self): ...
    @overload
    def heard(self): ...
    def _private(self): ...
    class Inner: ...
'''


def test_every_rule_finds_what_breaks_it() -> None:
    tree = ast.parse(EXAMPLE)
    line = {text.strip(): at for at, text in enumerate(EXAMPLE.splitlines(), 1)}
    assert own_imports(tree, "inner.module") == {"inner.app", "inner.paths", "above", "inner.websocket"}
    assert foreign_imports(tree) == {"asyncio", "starlette", "asgiws", "trio", "typing_extensions"}
    assert hidden_imports(tree) == [line['importlib.import_module("redis")']]
    assert asserts(tree) == [line["assert json"]]
    assert dropped_tasks(tree) == [line["asyncio.create_task(f())"], line["create_task(f())"]]
    assert without_docstring(tree) == ["silent", "Speaks.silent_too", "Speaks.Inner"]


def test_an_import_for_type_checkers_alone_is_told_from_others() -> None:
    found = imports(ast.parse("if TYPE_CHECKING:\n  import a\nelse:\n  import b\nimport c"))
    assert {name for _, name, only_for_types in found if only_for_types} == {"a"}


# The rules hold


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(module for module in trees() if not module.startswith("testing."))


@every_module
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    imported = own_imports(trees()[module], module)
    if module.startswith("testing."):
        assert {name for name in imported if not name.startswith("testing.")} <= set(ORDER) - {"__init__"}
    else:
        assert imported <= set(ORDER[: ORDER.index(module)])


def test_imports_have_no_circle() -> None:
    graph = {module: own_imports(tree, module) for module, tree in trees().items()}
    assert not {"__init__", "testing.__init__"} & set().union(*graph.values())
    graphlib.TopologicalSorter(graph).prepare()


@every_module
def test_a_module_imports_nothing_else_but_anyio_msgspec_and_the_standard_library(module: str) -> None:
    also = ALSO.get(module) or ALSO.get(module.partition(".")[0], set())
    assert foreign_imports(trees()[module]) <= also
    assert len(hidden_imports(trees()[module])) == (module == "controllers")  # scan() imports what it is told to


@every_module
def test_no_module_leaves_the_package_or_imports_it_as_a_whole(module: str) -> None:
    assert {found.level for found in imports(trees()[module])} <= set(range(2 + module.count(".")))
    nameless = [node for node in ast.walk(trees()[module]) if isinstance(node, ast.ImportFrom) and node.module is None]
    assert nameless == []


@every_module
def test_no_module_checks_by_assert(module: str) -> None:
    assert asserts(trees()[module]) == []


# T41
@every_module
def test_no_task_is_started_without_a_reference(module: str) -> None:
    assert dropped_tasks(trees()[module]) == []


@every_module
def test_all_that_is_public_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(trees()[module])
    assert without_docstring(trees()[module]) == []


# What an import does and costs


def fresh(code: str) -> Any:
    """What a program prints as JSON, run by a Python of its own."""
    # Not measured by coverage: that loads and calls things of its own.
    env = {key: value for key, value in os.environ.items() if key != "COVERAGE_PROCESS_START"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOADED = """
import json, sys, threading
before = set(sys.modules)
import {modules}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print(json.dumps([sorted(names), threading.active_count()]))
"""


def test_an_import_loads_no_package_but_anyio_and_msgspec_and_starts_nothing() -> None:
    names, threads = fresh(LOADED.format(modules="asgiws"))
    needed, _ = fresh(LOADED.format(modules="anyio, msgspec"))
    assert "asgiws" in names
    assert set(names) <= {"asgiws", *needed}
    assert not {"httpx", "redis", "uvicorn", "starlette", "trio"} & set(names)
    assert threads == 1


CALLS = """
import sys
calls = 0
def count(frame, event, arg):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
import {modules}
sys.setprofile(None)
print(calls)
"""


def test_an_import_costs_at_most_1_4_times_that_of_anyio_and_msgspec() -> None:
    """Counted in calls, which are the same in every run; a clock is not."""
    assert fresh(CALLS.format(modules="asgiws")) <= 1.4 * fresh(CALLS.format(modules="anyio, msgspec"))


def test_what_is_exported_is_there_and_sorted() -> None:
    exported = fresh("import asgiws, json; print(json.dumps([one for one in asgiws.__all__ if hasattr(asgiws, one)]))")
    assert exported == asgiws.__all__
    assert exported == sorted(set(exported))
