"""`App.scan`: which modules it imports, and what it finds in them; they are those of `tests.scanned`."""

import importlib
import json
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from asgiws import App, RouteError
from tests.fakes import request
from tests.test_controllers import talk

pytestmark = pytest.mark.anyio

ROOT = pathlib.Path(__file__).parents[1]
WHOLE = ["/api/child/age", "/api/health", "/chat", "/lobby", "/rooms/<room>/seats", "/rooms/inherited", "/top/"]
PROGRAM = ["/own/", "/rooms/<room>", "/router/"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test import the packages anew."""
    for name in list(sys.modules):
        if name.startswith("tests.scanned."):
            monkeypatch.delitem(sys.modules, name)


def paths_of(app: App) -> list[str]:
    """The paths of all routes."""
    return sorted(route.path for route in app.routes)


def scanned(package: str) -> App:
    """An app that has scanned a package."""
    app = App()
    app.scan(package)
    return app


# What is found


@pytest.mark.parametrize("how", ["by name", "the module itself"])
def test_every_controller_and_router_of_a_package_is_included(how: str) -> None:
    app = App()
    name = "tests.scanned.whole"
    app.scan(name if how == "by name" else importlib.import_module(name))
    assert paths_of(app) == WHOLE


async def test_what_was_found_serves() -> None:
    app = scanned("tests.scanned.whole")
    assert (await talk(app, "/rooms/blue/seats")).texts == ["blue"]
    assert (await talk(app, "/rooms/inherited")).texts == ["Rooms"]
    assert (await talk(app, "/lobby", "hello")).texts == ["HELLO"]
    assert (await talk(app, "/chat", "hello")).texts == ["hello"]
    assert (await request(app, "GET", "/top/")).body == b"Top"
    assert (await request(app, "GET", "/api/child/age")).body == b"7"
    assert (await talk(app, "/outside/")).status == 404
    assert (await talk(app, "/of-the-app")).status == 404


@pytest.mark.parametrize(
    ("package", "paths"),
    [
        ("tests.scanned.whole.deep", ["/lobby"]),
        ("tests.scanned.whole.deep.deeper.lobby", ["/lobby"]),
        ("tests.scanned.whole.rooms", ["/chat", "/rooms/<room>/seats", "/rooms/inherited"]),
        ("tests.scanned.whole.api", ["/api/child/age", "/api/health"]),
    ],
)
def test_a_package_below_or_a_module_is_scanned_alone(package: str, paths: list[str]) -> None:
    assert paths_of(scanned(package)) == paths


def test_a_scan_imports_all_that_lies_below_but_runs_no_program() -> None:
    scanned("tests.scanned.whole")
    below = {
        name.removeprefix("tests.scanned.whole.") for name in sys.modules if name.startswith("tests.scanned.whole.")
    }
    assert below == {"api", "child", "rooms", "deep", "deep.deeper", "deep.deeper.lobby"}


def test_a_package_whose_name_begins_alike_is_another_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scan_alike", "scan_alike_too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            "from asgiws import controller, get\n"
            f"@controller('/{name}')\n"
            "class Found:\n"
            "    @get('')\n"
            "    async def found(self): return 1\n"
        )
    (tmp_path / "scan_alike" / "other.py").write_text("from scan_alike_too import Found\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert paths_of(scanned("scan_alike")) == ["/scan_alike"]
    finally:
        for name in ("scan_alike", "scan_alike.other", "scan_alike_too"):
            sys.modules.pop(name, None)


def test_a_package_without_a_file_of_its_own_is_scanned(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scan_bare").mkdir()
    (tmp_path / "scan_bare" / "inside.py").write_text(
        "from asgiws import Router\nrouter = Router('/bare')\n@router.get('')\nasync def found(): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert paths_of(scanned("scan_bare")) == ["/bare"]
    finally:
        for name in ("scan_bare", "scan_bare.inside"):
            sys.modules.pop(name, None)


# What is told


def test_what_was_included_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "asgiws"):
        scanned("tests.scanned.whole")
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    lines = [record.getMessage() for record in caplog.records if "scan" in record.getMessage()]
    for name in ("whole.Top", "whole.rooms.Rooms", "whole.rooms.Chat", "whole.deep.deeper.lobby.Lobby"):
        assert sum(f"tests.scanned.{name}" in line for line in lines) == 1, name
    assert not any("Outside" in line or "Later" in line for line in lines)


def test_a_router_that_was_included_is_told_by_its_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "asgiws"):
        scanned("tests.scanned.whole.api")
    [line] = [record.getMessage() for record in caplog.records if "scan" in record.getMessage()]
    assert "tests.scanned.whole.api" in line or "/api" in line
    assert "0x" not in line


# What is left out


def test_a_router_that_the_app_has_already_is_left_out() -> None:
    api = importlib.import_module("tests.scanned.whole.api")
    app = App()
    app.include_router(api.router, prefix="/v1")
    app.scan("tests.scanned.whole")
    assert paths_of(app) == sorted(
        [path for path in WHOLE if not path.startswith("/api")] + ["/v1/api/child/age", "/v1/api/health"]
    )


def test_two_apps_scan_one_package() -> None:
    assert paths_of(scanned("tests.scanned.whole")) == WHOLE
    assert paths_of(scanned("tests.scanned.whole")) == WHOLE


def test_two_apps_scan_a_module_of_routers_alone() -> None:
    for _ in range(2):
        assert paths_of(scanned("tests.scanned.whole.api")) == ["/api/child/age", "/api/health"]


def test_an_app_that_scans_twice_is_told_what_stands_there_already() -> None:
    app = scanned("tests.scanned.whole")
    with pytest.raises(RouteError, match=r"can never be told apart from .*tests/scanned/whole/"):
        app.scan("tests.scanned.whole")


def test_an_app_that_scans_a_part_again_is_told_what_stands_there_already() -> None:
    app = scanned("tests.scanned.whole")
    with pytest.raises(RouteError, match=r"'/lobby' can never be told apart from '/lobby' of .*lobby\.py"):
        app.scan("tests.scanned.whole.deep")


# What is refused


def test_an_error_of_an_import_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="the module is wrong"):
        scanned("tests.scanned.broken")


def test_a_module_that_cannot_be_found_comes_out_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        scanned("tests.scanned.missing")
    with pytest.raises(ModuleNotFoundError, match=r"tests\.scanned\.nowhere"):
        scanned("tests.scanned.nowhere")


def test_a_scan_that_failed_included_nothing() -> None:
    app = App()
    with pytest.raises(LookupError):
        app.scan("tests.scanned")
    assert app.routes == []


def test_a_package_in_which_nothing_is_found_is_refused() -> None:
    with pytest.raises(RouteError) as caught:
        scanned("tests.scanned.empty")
    text = str(caught.value)
    assert "no controller and no router stands in 'tests.scanned.empty' or below" in text
    assert "@controller('/path')" in text


def test_a_package_in_which_nothing_is_found_is_named_even_if_the_module_was_given() -> None:
    with pytest.raises(RouteError, match=r"stands in .*tests\.scanned\.empty.* or below"):
        App().scan(importlib.import_module("tests.scanned.empty"))


def test_two_controllers_that_can_never_be_told_apart_are_refused_with_both_places() -> None:
    with pytest.raises(RouteError) as caught:
        scanned("tests.scanned.clash")
    assert all(name in str(caught.value) for name in ("One.one", "Two.two", "tests/scanned/clash/__init__.py:"))


@pytest.mark.parametrize("wrong", ["", ".whole", "tests/scanned/whole.py"])
def test_a_name_that_is_none_of_a_package_is_refused(wrong: str) -> None:
    with pytest.raises((ImportError, RouteError)) as caught:
        App().scan(wrong)
    assert repr(wrong) in str(caught.value)


# A program that scans the package in which it stands itself


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a Python of its own prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_module_that_is_being_imported_scans_its_own_package() -> None:
    main = importlib.import_module("tests.scanned.program.main")
    assert paths_of(main.app) == PROGRAM


async def test_the_controllers_of_a_module_that_scans_serve() -> None:
    app = importlib.import_module("tests.scanned.program.main").app
    assert (await talk(app, "/own/")).texts == ["Own"]
    assert (await talk(app, "/rooms/7")).texts == ["7"]


def test_a_server_that_imports_the_app_gets_all_of_it() -> None:
    code = (
        "import json; from uvicorn.importer import import_from_string\n"
        "app = import_from_string('tests.scanned.program.main:app')\n"
        "print(json.dumps(sorted(route.path for route in app.routes)))\n"
    )
    assert json.loads(run("-c", code).stdout) == PROGRAM


def test_a_module_that_is_run_scans_its_own_package_and_is_not_imported_again() -> None:
    told = json.loads(run("-m", "tests.scanned.program.main").stdout)
    assert told == {"runs": ["__main__"], "paths": PROGRAM}


def test_a_package_that_is_run_imports_its_app() -> None:
    told = json.loads(run("-m", "tests.scanned.program").stdout)
    assert told == {"runs": ["tests.scanned.program.main"], "paths": PROGRAM}


def test_a_file_that_is_run_scans_its_own_package() -> None:
    told = json.loads(run(str(pathlib.Path("tests", "scanned", "program", "main.py"))).stdout)
    assert told["paths"] == PROGRAM


@pytest.mark.parametrize("how", ["first", "last"])
def test_a_scan_in_the_file_of_the_package_itself(
    how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = "app = App()\napp.scan(__name__)\n"
    route = "@controller('/here')\nclass Here:\n    @get('')\n    async def found(self): return 1\n"
    parts: dict[str, Callable[[], str]] = {"first": lambda: scan + route, "last": lambda: route + scan}
    (tmp_path / "scan_itself").mkdir()
    (tmp_path / "scan_itself" / "__init__.py").write_text("from asgiws import App, controller, get\n" + parts[how]())
    (tmp_path / "scan_itself" / "below.py").write_text(
        "from asgiws import controller, get\n" + route.replace("here", "below").replace("Here", "Below")
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        app = importlib.import_module("scan_itself").app
        # What stands below the scan is not there yet when it looks.
        assert paths_of(app) == (["/below"] if how == "first" else ["/below", "/here"])
    finally:
        for name in ("scan_itself", "scan_itself.below"):
            sys.modules.pop(name, None)
