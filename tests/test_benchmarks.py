"""The measurements measure what they say, and what a message and a connection cost is written down here.

The guard does not use a clock: it counts the calls and the steps of the interpreter inside of asgiws, which are the
same in every run on the same Python.
"""

import ast
import asyncio
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.sync.client import connect

import asgiws
from asgiws.types import Message, Receive, Scope, Send
from benchmarks import charts, drivers, instructions, jobs, peers, report, sockets
from benchmarks.in_process import swallow
from benchmarks.peers import asgiws as ours
from benchmarks.peers import raw
from benchmarks.worker import CONNECT, DEPENDS, Gauge, Order, Worker

ROOT = pathlib.Path(__file__).parent.parent
HOME = str(pathlib.Path(asgiws.__file__).parent)
IN_DEV = ("raw", "asgiws", "starlette", "fastapi", "litestar")
"""The peers that the tests of other things install as well; but for Quart, which on Python 3.13 does not answer the
driver's handshakes in time."""


# The guard

ALLOWED = {
    "echo": (5, 107),
    "json": (10, 147),
    "typed": (10, 147),
    "connect": (92, 1680),
    "depends": (126, 2320),
}
"""Calls and steps that a message or a connection may take inside of asgiws, on the Python and the loop that take most.

Lower them when the code becomes faster. Whoever raises them should know what for.
"""


async def spent(job: Awaitable[None], again: Awaitable[None]) -> tuple[int, int]:
    """Calls that asgiws makes in a job, and bytecode instructions that it runs when the same is done again."""
    calls = steps = 0

    def profile(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call") and frame.f_code.co_filename.startswith(HOME)

    def trace(frame: types.FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    before = sys.getprofile(), sys.gettrace()
    try:
        sys.setprofile(profile)
        await job
        sys.setprofile(before[0])
        sys.settrace(trace)
        await again
    finally:
        sys.setprofile(before[0])
        sys.settrace(before[1])
    return calls, steps


async def conversation(path: str, text: str, count: int) -> None:
    """One connection with so many messages."""
    events: list[Message] = [{"type": "websocket.receive", "text": text} for _ in range(count)]
    following = iter([{"type": "websocket.connect"}, *events, {"type": "websocket.disconnect", "code": 1000}])

    async def receive() -> Message:
        return next(following)

    await ours.app(drivers.scope_of(path), receive, swallow)


async def visits(visit: tuple[str, bytes], count: int) -> None:
    """So many connections."""

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    for _ in range(count):
        await ours.app(drivers.scope_of(*visit), receive, swallow)


COUNTED: dict[str, Callable[[int], Awaitable[None]]] = {
    "echo": lambda count: conversation("/echo", "hello", count),
    "json": lambda count: conversation("/json", peers.JSON, count),
    "typed": lambda count: conversation("/typed/msgspec", peers.JSON, count),
    "connect": lambda count: visits(CONNECT, count),
    "depends": lambda count: visits(DEPENDS, count),
}


async def slope(job: Callable[[int], Awaitable[None]]) -> tuple[float, float]:
    """Calls and steps that one more of it takes; the middle of three, since the watchdog may have its turn in one."""
    await spent(job(3), job(3))  # whatever is made, or prepared for tracing, at the first use
    found = []
    for _ in range(3):
        few, many = await spent(job(10), job(10)), await spent(job(30), job(30))
        found.append([(one - other) / 20 for one, other in zip(many, few, strict=True)])
    calls, steps = (sorted(values)[1] for values in zip(*found, strict=True))
    return calls, steps


@pytest.mark.anyio
@pytest.mark.parametrize("name", ALLOWED)
async def test_a_message_and_a_connection_take_no_more_calls_and_steps_than_is_written_down(name: str) -> None:
    calls, steps = await slope(COUNTED[name])
    await ours.app.connections.rest()
    assert (calls, steps) > (0, 0)
    assert calls <= ALLOWED[name][0]
    assert steps <= ALLOWED[name][1]


@pytest.mark.anyio
async def test_the_guard_counts_one_more_call() -> None:
    """So that it cannot be content with counting nothing."""

    async def longer(count: int) -> None:
        for _ in range(count):
            ours.app.url_path_for("echo")

    async def shorter(count: int) -> None:
        assert count

    assert await slope(shorter) == (0, 0)
    assert await slope(longer) > (1, 1)


WEIGHED = """
import asyncio, json
from benchmarks import drivers
from benchmarks.peers import asgiws, raw
# The first time something is made that stays.
weigh = lambda app: min(asyncio.run(drivers.memory(app, "/echo", 100)) for _ in range(3))
print(json.dumps([weigh(raw.app), weigh(asgiws.app)]))
"""


def test_an_idle_connection_takes_at_most_half_as_much_memory_again_as_a_raw_one() -> None:
    # In a process of its own, which coverage does not measure: what that keeps would be weighed as well.
    env = {key: value for key, value in os.environ.items() if key != "COVERAGE_PROCESS_START"}
    done = subprocess.run(
        [sys.executable, "-c", WEIGHED], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    base, own = json.loads(done.stdout)
    assert 1000 < base < own <= 1.5 * base


# The drivers


async def silent(_: Scope, receive: Receive, send: Send) -> None:
    """Accept, and never answer."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def wrong(_: Scope, receive: Receive, send: Send) -> None:
    """Accept, and answer with something else."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": ""})


async def refusing(_: Scope, receive: Receive, send: Send) -> None:
    """Do not accept."""
    await receive()
    await send({"type": "websocket.close", "code": 1000})


async def queued(_: Scope, receive: Receive, send: Send) -> None:
    """Echo with a task and a queue in between, as some frameworks do."""
    await receive()
    await send({"type": "websocket.accept"})
    queue: asyncio.Queue[Message] = asyncio.Queue()

    async def read() -> None:
        while True:
            queue.put_nowait(await receive())

    reader = asyncio.create_task(read())
    while (event := await queue.get())["type"] != "websocket.disconnect":
        assert queue.empty()  # the next message only comes after the answer
        await send({"type": "websocket.send", "text": event["text"]})
    reader.cancel()


def test_a_conversation_is_timed_whether_the_app_reads_itself_or_has_a_task_and_a_queue() -> None:
    for app in (raw.app, queued):
        assert 0 < asyncio.run(drivers.messages(app, "/echo", "hello", 400)) < 1


def test_an_app_that_does_not_do_its_job_is_no_fast_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "QUICK_ENOUGH", 0.05)
    with pytest.raises(RuntimeError, match="was not echoed"):
        asyncio.run(drivers.messages(wrong, "/echo", "hello", 40))
    with pytest.raises(TimeoutError):
        asyncio.run(drivers.messages(silent, "/echo", "hello", 40))
    with pytest.raises(RuntimeError, match="was not echoed"):
        asyncio.run(drivers.messages(refusing, "/echo", "hello", 40))
    with pytest.raises(RuntimeError, match="was not accepted"):
        asyncio.run(drivers.connections(refusing, [CONNECT] * 3))
    with pytest.raises(RuntimeError, match="was not accepted and answered"):
        asyncio.run(drivers.connections(ours.app, [CONNECT] * 3, "something else"))


def test_a_gauge_repeats_until_a_sample_takes_its_time() -> None:
    counts: list[int] = []

    async def measure(count: int) -> float:
        counts.append(count)
        return 0.001

    gauge = Gauge(measure, 0.5, first=10)
    assert [asyncio.run(gauge.read()) for _ in range(2)] == [0.001, 0.001]
    assert counts == [10, 10, 500, 500]


# The peers


def defined(name: str, path: pathlib.Path) -> Any:
    """What a peer's file defines, read without its packages."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def test_every_peer_has_its_file_and_its_pinned_version() -> None:
    files = {path.stem: path for path in (ROOT / "benchmarks" / "peers").glob("[a-z]*.py")}
    assert set(files) == set(peers.NAMES)
    pinned = set(
        re.findall(
            r"^([\w-]+)(?:\[[\w-]+\])?==[\d.]+$", (ROOT / "benchmarks/requirements.txt").read_text(), re.MULTILINE
        )
    )
    asked = {defined("DISTRIBUTION", path) for name, path in files.items() if name not in peers.ALWAYS}
    assert {name.lower() for name in asked} <= {name.lower() for name in pinned}


@pytest.mark.parametrize("name", IN_DEV)
def test_a_peer_does_what_it_says(name: str) -> None:
    assert peers.missing(name) == ""
    peer = peers.load(name)
    assert set(peer.LACKS) <= set(jobs.jobs())
    assert peers.version(peer) or name == "raw"

    async def inside() -> None:
        async with drivers.lifespan(peer.app):
            for job, path in [("echo", "/echo"), ("json", "/json"), *[("typed", path) for path in peer.TYPED.values()]]:
                if job not in peer.LACKS:
                    assert await drivers.messages(peer.app, path, peers.JSON, 40) > 0
            for job, visit, answer in (
                ("connect", CONNECT, "general 7 fr 2"), ("depends", DEPENDS, "settings database ann"),
            ):  # fmt: skip
                if job not in peer.LACKS:
                    assert await drivers.connections(peer.app, [visit] * 3, answer) > 0

    asyncio.run(inside())


@pytest.mark.parametrize("name", [name for name in IN_DEV if name != "raw"])
@pytest.mark.parametrize("kind", peers.KINDS)
def test_a_peer_finds_each_of_its_routes(name: str, kind: str) -> None:
    app = peers.load(name).routes(kind, 5)

    async def inside() -> None:
        async with drivers.lifespan(app):
            await drivers.connections(app, [(path, b"") for path in peers.paths(kind, 5, 5, 0)])
            with pytest.raises((RuntimeError, ValueError)):
                await drivers.connections(app, [("/area7/nowhere", b"")])

    asyncio.run(inside())


def test_paths_are_spread_over_all_routes_and_never_the_same() -> None:
    found = peers.paths("parameters", 1000, 4, 10)
    assert found == ["/area125/room10/10", "/area375/room11/11", "/area625/room12/12", "/area875/room13/13"]
    assert peers.templates("deep", 2, "{a}", "{b:int}")[1].endswith("/{a}/projects/main/area1/things/{b:int}/live")


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "falcon", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.falcon", raising=False)
    monkeypatch.setitem(sys.modules, "picows", types.ModuleType("picows"))
    monkeypatch.delitem(sys.modules, "benchmarks.peers.picows", raising=False)
    assert peers.missing("picows").startswith("does not import (AttributeError: ")
    run = jobs.Run(["raw", "falcon"])
    names, left_out = run.taking("echo")
    assert names == ["raw"]
    assert left_out == {"falcon": "not installed (falcon)"}
    assert run.taking("match") == ([], {"raw": "it has no router", "falcon": "not installed (falcon)"})


# Workers, tables, pictures, the command


def test_a_worker_measures_beside_the_base_and_says_what_fails() -> None:
    worker = Worker("asgiws")
    try:
        base, own = worker.measure(Order("echo", seconds=0.001))
        assert 0 < base < own
        base, own = worker.measure(Order("match", "static", 10, 0.001))
        assert base > 0
        assert own > 0
        with pytest.raises(RuntimeError, match="KeyError: 'nonsense'"):
            worker.measure(Order("match", "nonsense", 10, 0.001))
        assert worker.measure(Order("memory"))[1] > 1000
    finally:
        worker.close()
    with pytest.raises(RuntimeError, match="its process"):
        worker.measure(Order("echo"))


def table(*, base: str = "the raw ASGI app") -> report.Table:
    """One that is filled."""
    made = report.Table("echo", "text echo <&>", "us", base, left_out={"falcon": "not installed (falcon)"})
    made.add("raw", "raw ASGI app", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0] if base else ())
    made.add("asgiws", "asgiws", [3.0, 1.5, 2.0], [2.0, 1.0, 1.0] if base else (), kind="msgspec")
    made.about = report.about({"falcon": "1"}, quick=True)
    return made


def test_a_table_has_medians_and_the_middle_half() -> None:
    row = table().rows[1]
    assert (row.value, row.value_low, row.value_high) == (2.0, 1.75, 2.5)
    assert (row.ratio, row.ratio_low, row.ratio_high) == (1.5, 1.5, 1.75)
    text = table().text()
    assert "asgiws, msgspec" in text
    assert "1.50   (1.50 to 1.75)" in text
    assert "falcon left out: not installed (falcon)" in text
    assert "(1.75 to 2.50)" in table(base="").text()


def test_results_are_kept_without_the_machine_s_name(tmp_path: pathlib.Path) -> None:
    kept = report.save(table(), tmp_path)
    assert report.saved(tmp_path) == {"echo": table()}
    assert set(json.loads(kept.read_text())["about"]) == {
        "cpu", "cores", "system", "python", "versions", "quick",
    }  # fmt: skip
    assert str(pathlib.Path.home()) not in kept.read_text()


@pytest.mark.parametrize("base", ["the raw ASGI app", ""])
def test_a_picture_is_well_formed_and_names_every_peer(base: str, tmp_path: pathlib.Path) -> None:
    tables = {"echo": table(base=base), "match_static_100": table(), "match_static_1000": table()}
    assert [path.name for path in charts.draw(tables, tmp_path)] == ["echo.svg", "match_static_1000.svg"]
    svg = (tmp_path / "echo.svg").read_text()
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"raw ASGI app", "asgiws, msgspec", "text echo <&>"} <= set(texts)
    assert "prefers-color-scheme: dark" in svg
    width = float(root.attrib["viewBox"].split()[2])
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert charts.LEFT <= float(circle.attrib["cx"]) <= width - charts.RIGHT


def test_the_page_of_figures_is_that_of_the_results() -> None:
    """No figure in it that a full run did not find."""
    page, tables = (ROOT / "docs/performance.md").read_text(), report.saved(ROOT / "benchmarks/results")
    assert tables
    assert not any(one.about is None or one.about.quick for one in tables.values())
    assert report.rewrite(page, tables) == page
    for name in re.findall(r"\(benchmarks/(\w+)\.svg\)", page):
        assert (ROOT / f"docs/benchmarks/{name}.svg").read_text() == charts.chart(tables[name])


def test_what_other_jobs_need_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = jobs.Run(["raw", "asgiws"])
    monkeypatch.setattr(sockets, "NEEDED", ("no_such_module",))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for job in (sockets.server, sockets.rss, instructions.instructions):
        for found in job(run):
            assert not found.rows
            assert set(found.left_out) == {"raw", "asgiws"}
            assert "not installed" in found.left_out["raw"]


def test_real_servers_run_side_by_side_and_one_that_does_not_start_is_left_out() -> None:
    left_out: dict[str, str] = {}
    with sockets.servers(["raw", "asgiws", "nonsense"], left_out) as running:
        assert set(running) == {"raw", "asgiws"}
        for server in running.values():
            with connect(server.url, proxy=None) as ws:
                ws.send("hello")
                assert ws.recv(10) == "hello"
            assert server.memory() > 1_000_000
            assert server.busy() > 0
    assert left_out == {"nonsense": "its server does not start"}
    with pytest.raises(RuntimeError, match="its server has ended"):
        sockets.client("throughput", running["raw"], "--seconds", "0.1")


def test_what_callgrind_wrote_is_read(tmp_path: pathlib.Path) -> None:
    dump = tmp_path / "out.1"
    dump.write_text("version: 1\nevents: Ir\nsummary: 1234\n")
    assert instructions._total(dump) == 1234
    dump.write_text("version: 1\n")
    with pytest.raises(RuntimeError, match=r"out\.1 has no sum"):
        instructions._total(dump)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command itself."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_measures_prints_keeps_and_draws(tmp_path: pathlib.Path) -> None:
    done = command("--quick", "--only", "echo", "--peers", "raw", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for text in ("raw ASGI app", "asgiws", "1.00 (1.00 to 1.00)", "to the raw ASGI app"):
        assert text in re.sub(" +", " ", done.stdout)
    rows = {row.peer: row for row in report.saved(tmp_path)["echo"].rows}
    assert set(rows) == {"raw", "asgiws"}
    assert rows["raw"].ratio == 1
    assert {path.name for path in tmp_path.iterdir()} == {"echo.json", "echo.svg"}


def test_the_command_knows_its_jobs_and_peers() -> None:
    done = command("--only", "nonsense")
    assert done.returncode == 2
    assert "unknown: nonsense; known: echo, json, typed, connect" in done.stderr
