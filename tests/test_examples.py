"""Every example as a stranger runs it: a process of its own on a real port, and real clients."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import typing
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from examples.chat import app as chat_app
from tests.fakes import DEADLINE, SHAPES, FakeServer, Shape

ROOT = pathlib.Path(__file__).parent.parent
LOOPBACK = "127.0.0.1"
NAMES = ("echo", "chat", "embedded")
START = 20.0
"""Seconds that a process may take until it prints its address: it imports a whole server."""


@dataclasses.dataclass
class Example:
    """An example that runs."""

    process: subprocess.Popen[str]
    port: int
    line: str

    def url(self, path: str, scheme: str = "ws") -> str:
        return f"{scheme}://{LOOPBACK}:{self.port}{path}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url(path, "http"), timeout=DEADLINE, trust_env=False)

    def connect(self, path: str, **options: Any) -> contextlib.AbstractContextManager[ClientConnection]:
        opened: contextlib.AbstractContextManager[ClientConnection] = connect(
            self.url(path), open_timeout=DEADLINE, close_timeout=DEADLINE, proxy=None, **options
        )
        return opened

    def deaf(self, path: str) -> socket.socket:
        """The socket of a client that has shaken hands and does nothing from then on, not even read."""
        client = socket.socket()
        client.settimeout(DEADLINE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((LOOPBACK, self.port))
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{self.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        assert client.recv(12) == b"HTTP/1.1 101"
        return client

    def end(self, how: signal.Signals = signal.SIGTERM) -> str:
        """End the process; what it wrote to stderr."""
        self.process.send_signal(how)
        return self.process.communicate(timeout=DEADLINE)[1]


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(name: str) -> Iterator[Example]:
    port = free_port()
    command = [sys.executable, "-m", f"examples.{name}", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        late = threading.Timer(START, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            late.cancel()
            yield Example(process, port, line)
        finally:
            late.cancel()
            process.kill()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A process that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, text=True, capture_output=True, timeout=START, check=False
    )


def module_fixture(name: str) -> Any:
    @pytest.fixture(scope="module", name=name)
    def fixture() -> Iterator[Example]:
        with running(name) as example:
            yield example
            errors = example.end()
            if "Traceback" in errors:
                pytest.fail(f"{name} wrote tracebacks:\n{errors}")

    return fixture


echo = module_fixture("echo")
chat = module_fixture("chat")
embedded = module_fixture("embedded")


def receive(ws: ClientConnection) -> Any:
    return json.loads(ws.recv(timeout=DEADLINE))


# What all of them have in common


@pytest.mark.parametrize("name", NAMES)
def test_an_example_prints_the_address_at_which_it_serves(name: str, request: pytest.FixtureRequest) -> None:
    example: Example = request.getfixturevalue(name)
    assert re.fullmatch(rf"(http|ws)://127\.0\.0\.1:{example.port}/\S* \(Ctrl-C stops it\)\n", example.line)
    address = example.line.split()[0]
    if address.startswith("http"):
        assert httpx.get(address, timeout=DEADLINE, trust_env=False).status_code == 200
    else:
        with connect(address, proxy=None):
            pass


@pytest.mark.parametrize("name", NAMES)
def test_a_taken_port_is_one_line_and_exit_code_1(name: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        done = run("-m", f"examples.{name}", "--port", str(port))
    expected = f"port {port} on 127.0.0.1 is taken: stop what runs there or choose another with --port\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_an_address_that_is_not_of_this_machine_is_one_line_and_exit_code_1() -> None:
    done = run("-m", "examples.echo", "--host", "192.0.2.1")  # RFC 5737: an address that nobody has
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"cannot listen on port 8000 of 192\.0\.2\.1: .+\n", done.stderr)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", ""])
def test_a_port_that_is_none_is_told_with_the_usage(port: str) -> None:
    done = run("-m", "examples.echo", f"--port={port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"a port is a number from 1 to 65535, got {port!r}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [
        ("echo", "uvicorn", 'pip install -e ".[server]"'),
        ("chat", "uvicorn", 'pip install -e ".[server]"'),
        ("chat", "websockets", 'pip install -e ".[server]"'),
        ("embedded", "starlette", "pip install starlette"),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(name: str, missing: str, remedy: str) -> None:
    program = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv[1:] = []; "
        f"runpy.run_module('examples.{name}', run_name='__main__')"
    )
    done = run("-c", program)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"{missing}\S* is missing, install it with: {re.escape(remedy)}\n", done.stderr)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("name", "path"),
    [("echo", "/echo/lobby/2"), ("chat", "/rooms/lobby?name={}"), ("embedded", "/ws/clock?every=0.1")],
)
def test_a_signal_ends_it_within_seconds_though_sockets_are_open(name: str, path: str, how: signal.Signals) -> None:
    with (
        running(name) as example,
        example.connect(path.format("ann")) as one,
        example.connect(path.format("bob")),
        example.deaf(path.format("deaf")),
    ):
        errors = example.end(how)
        assert errors == ""
        assert example.process.returncode == (0 if how is signal.SIGINT else -signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            list(one)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


def test_a_refused_handshake_is_no_error_in_the_log_of_the_server() -> None:
    with running("echo") as example:
        for path in ("/echo/42/11", "/nowhere"):
            with pytest.raises(InvalidStatus), example.connect(path):
                pass
        assert example.end() == ""


# echo


def test_echo_sends_each_message_back_as_often_as_the_path_says(echo: Example) -> None:
    with echo.connect("/echo/42/3?lang=fr") as ws:
        ws.send("hi")
        assert ws.recv(timeout=DEADLINE) == "42/fr: hihihi"
        ws.send("")
        assert ws.recv(timeout=DEADLINE) == "42/fr: "
    with echo.connect("/echo/caf%C3%A9/1") as ws:
        ws.send("hi")
        assert ws.recv(timeout=DEADLINE) == "café/en: hi"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/echo/42/11", 403), ("/echo/42/0", 403), ("/echo/42/many", 404), ("/echo/42", 404), ("/", 404)],
)
def test_echo_refuses_a_path_that_does_not_validate(echo: Example, path: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, echo.connect(path):
        pass
    assert refused.value.response.status_code == status


# chat

_numbers = itertools.count()


@pytest.fixture
def room() -> str:
    """A room that no other test uses."""
    return f"room-{next(_numbers)}"


@contextlib.contextmanager
def member(chat: Example, room: str, name: str, *others: str) -> Iterator[ClientConnection]:
    """A member of a room where these others are already."""
    with chat.connect(f"/rooms/{quote(room)}?name={quote(name)}") as ws:
        assert receive(ws) == {"type": "welcome", "users": sorted([name, *others])}
        assert receive(ws) == {"type": "joined", "user": name}
        yield ws


def say(ws: ClientConnection, text: str) -> None:
    ws.send(json.dumps({"type": "say", "text": text}))


def test_members_of_a_room_see_who_comes_who_speaks_and_who_goes(chat: Example, room: str) -> None:
    with member(chat, room, "ann") as ann:
        with member(chat, room, "bob", "ann") as bob:
            assert receive(ann) == {"type": "joined", "user": "bob"}
            say(ann, "hello")
            say(bob, "hi\n<b>ann</b>")
            said = (
                {"type": "said", "user": "ann", "text": "hello"},
                {"type": "said", "user": "bob", "text": "hi\n<b>ann</b>"},
            )
            for ws in (ann, bob):
                assert sorted((receive(ws), receive(ws)), key=lambda message: message["user"]) == list(said)
            bob.send('{"type": "typing"}')
            assert receive(ann) == receive(bob) == {"type": "typing", "user": "bob"}
        assert receive(ann) == {"type": "left", "user": "bob"}
        with member(chat, room, "bob", "ann"):
            assert receive(ann) == {"type": "joined", "user": "bob"}


def test_nothing_is_seen_in_another_room(chat: Example, room: str) -> None:
    with member(chat, f"{room}-other", "eve") as eve:
        with member(chat, room, "ann") as ann:
            say(ann, "for this room")
            assert receive(ann)["text"] == "for this room"
        say(eve, "alone")
        assert receive(eve) == {"type": "said", "user": "eve", "text": "alone"}


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ("{", "not JSON"),
        ("[]", "expected `object`"),
        ('{"type": "shout", "text": "hi"}', "'say', 'typing'"),
        ('{"text": "hi"}', "type"),
        ('{"type": "say"}', "text"),
        ('{"type": "say", "text": 1}', "expected `str`"),
        ('{"type": "say", "text": " \\n"}', "'say'"),
        (json.dumps({"type": "say", "text": "x" * 1001}), "length <= 1000"),
        ('{"type": "say", "text": "\\ud800"}', "JSON"),
        (b"\xff", ": JSON is malformed"),
        (b'{"type": "say", "text": "\xff"}', "UTF-8"),
    ],
)
def test_a_message_that_does_not_validate_gets_an_error_frame_and_nobody_else_sees_it(
    chat: Example, room: str, message: str | bytes, detail: str
) -> None:
    with member(chat, room, "ann") as ann, member(chat, room, "bob", "ann") as bob:
        bob.send(message)
        error = receive(bob)
        assert error["type"] == "error"
        assert detail in error["detail"]
        say(bob, "x" * 1000)
        assert receive(bob)["text"] == "x" * 1000
        assert [receive(ann)["type"], receive(ann)["type"]] == ["joined", "said"]


@pytest.mark.parametrize("name", ["", " ", " ann", "ann ", "ann\n", "a\nb", "x" * 25])
def test_a_name_that_breaks_its_constraints_is_refused(chat: Example, room: str, name: str) -> None:
    with pytest.raises(InvalidStatus) as refused, chat.connect(f"/rooms/{room}?name={quote(name)}"):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(("room", "status"), [("", 404), ("a/b", 404), ("a%20b", 403), ("x" * 25, 403), ("a%0A", 403)])
def test_a_room_that_breaks_its_constraints_is_refused(chat: Example, room: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, chat.connect(f"/rooms/{room}?name=ann"):
        pass
    assert refused.value.response.status_code == status


@pytest.mark.parametrize("name", ["x" * 24, "नीलम शर्मा", "O'Brien", "<b>", "🙂"])
def test_a_name_may_be_in_any_script(chat: Example, room: str, name: str) -> None:
    with member(chat, room, name) as ws:
        say(ws, "hi")
        assert receive(ws) == {"type": "said", "user": name, "text": "hi"}


def test_a_name_is_taken_once_a_room_and_the_close_says_so(chat: Example, room: str) -> None:
    with member(chat, room, "ann") as ann:
        with chat.connect(f"/rooms/{room}?name=ann") as second, pytest.raises(ConnectionClosed) as closed:
            second.recv(timeout=DEADLINE)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4409, "ann is here already, choose another name")
        say(ann, "still here")
        assert receive(ann)["text"] == "still here"
        with member(chat, f"{room}-other", "ann"):
            pass


def test_a_message_too_big_ends_its_own_connection_only(chat: Example, room: str) -> None:
    with member(chat, room, "ann") as ann:
        with member(chat, room, "bob", "ann") as bob:
            say(bob, "x" * 65_536)
            with pytest.raises(ConnectionClosed) as closed:
                bob.recv(timeout=DEADLINE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert [receive(ann), receive(ann)] == [{"type": "joined", "user": "bob"}, {"type": "left", "user": "bob"}]


def test_a_client_whose_connection_breaks_has_left(chat: Example, room: str) -> None:
    with member(chat, room, "ann") as ann:
        with chat.deaf(f"/rooms/{room}?name=bob"):
            assert receive(ann) == {"type": "joined", "user": "bob"}
        assert receive(ann) == {"type": "left", "user": "bob"}


def test_a_client_that_does_not_read_is_dropped_and_holds_up_neither_the_others_nor_the_end(room: str) -> None:
    with running("chat") as chat, member(chat, room, "ann") as ann, chat.deaf(f"/rooms/{room}?name=deaf"):
        assert receive(ann) == {"type": "joined", "user": "deaf"}
        others = []
        for number in range(5_000):  # 20 MB: more than lies between a server and a client
            say(ann, f"{number} {'🙂' * 990}")
            while (message := receive(ann))["type"] != "said":
                others.append(message)
            assert message["text"].startswith(f"{number} ")
            if others:
                break
        assert others == [{"type": "left", "user": "deaf"}]
        with member(chat, room, "bob", "ann") as bob:
            say(bob, "hello")
            assert receive(bob)["text"] == "hello"
        assert "Traceback" not in chat.end()


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_member_who_goes_while_another_speaks_goes_without_an_error(shape: Shape) -> None:
    ann, bob = (FakeServer(shape, "/rooms/lobby", query=f"name={name}") for name in ("ann", "bob"))
    async with anyio.create_task_group() as group:
        for server in (ann, bob):
            group.start_soon(chat_app.app, server.scope, server.receive, server.send)
            await server.until(lambda server: any('"joined"' in text for text in server.texts))
        await anyio.wait_all_tasks_blocked()  # both of them wait for a message
        bob._gone = True  # the server knows that he has gone, and has not told it yet
        ann.say('{"type": "say", "text": "hello"}')
        await ann.until(lambda server: any('"said"' in text for text in server.texts))
        bob.leave(1001)
        await ann.until(lambda server: any('"left"' in text for text in server.texts))
        ann.leave()
    assert not ann.choked
    assert not bob.choked
    assert not chat_app.rooms


def test_the_page_is_served_with_all_that_it_loads(chat: Example) -> None:
    page = chat.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for needed in (
        '<html lang="en">',
        'for="name"',
        'for="room"',
        'for="text"',
        'role="log"',
        'role="status"',
        'id="people"',
    ):
        assert needed in page.text
    loaded = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert loaded == ["chat.css", "chat.js"]
    kinds = [chat.get(f"/{file}").headers["content-type"] for file in loaded]
    assert kinds == ["text/css; charset=utf-8", "text/javascript; charset=utf-8"]


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_but_its_script(chat: Example) -> None:
    page = chat.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[of] for of in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script[^>]*>[^<]", page.text)
    script = chat.get("/chat.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    for text in (page.text.replace("http://www.w3.org/2000/svg", ""), script, chat.get("/chat.css").text):
        assert not re.search(r"(https?|wss?)://|@import|url\(", text)


def test_the_page_knows_every_message_of_the_server_and_its_limits(chat: Example) -> None:
    script, page = chat.get("/chat.js").text, chat.get("/").text
    tags = [message.__struct_config__.tag for message in typing.get_args(chat_app.Out)]
    for tag in [*tags, "error"]:
        assert re.search(rf"^  {tag}\(", script, re.MULTILINE), tag
    assert [int(limit) for limit in re.findall(r'maxlength="(\d+)"', page)] == [24, 24, 1000]
    assert "4409" in script


@pytest.mark.parametrize(("scheme", "authority", "status"), [
    ("http", "own", 101), ("http", "evil.example", 403), ("http", "127.0.0.1:1", 403), ("http", "localhost", 403),
])  # fmt: skip
def test_only_the_page_of_this_server_may_join(
    chat: Example, room: str, scheme: str, authority: str, status: int
) -> None:
    host = f"{LOOPBACK}:{chat.port}" if authority == "own" else authority
    outcome = 101
    try:
        with chat.connect(f"/rooms/{room}?name=ann", origin=f"{scheme}://{host}"):
            pass
    except InvalidStatus as refused:
        outcome = refused.response.status_code
    assert outcome == status


# embedded


def test_embedded_serves_the_page_of_starlette_and_the_stream_of_asgiws(embedded: Example) -> None:
    page = embedded.get("/")
    assert page.status_code == 200
    found = re.search(r'new URL\("([^"]+)"', page.text)
    assert found is not None
    with embedded.connect(f"/{found[1]}") as ws:
        first, second = receive(ws), receive(ws)
        assert first.keys() == {"now"}
        assert first["now"] < second["now"]


@pytest.mark.parametrize(
    ("path", "status"), [("/ws/clock?every=0", 403), ("/ws/clock?every=soon", 403), ("/ws/nothing", 404)]
)
def test_embedded_refuses_what_the_app_inside_refuses(embedded: Example, path: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, embedded.connect(path):
        pass
    assert refused.value.response.status_code == status
