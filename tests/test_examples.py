"""Every example as a stranger runs it, in a process of its own with real clients; the chat also in-process."""

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import msgspec
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import asgiws.watch
from asgiws import App, Limits, WebSocket, WebSocketException
from asgiws.security import SubprotocolToken
from asgiws.testing import (
    SHAPES,
    AsyncTestClient,
    AsyncWebSocketSession,
    FakeServer,
    Shape,
    TestClient,
    WebSocketDenied,
    WebSocketSession,
)
from examples import metrics as metrics_example
from examples import tracing as tracing_example
from examples.chat import app as chat_app
from examples.chat.app import IsTyping, Joined, Left, Rooms, Said, Say, Typing, Welcome
from tests.fakes import DEADLINE

ROOT = pathlib.Path(__file__).parent.parent
HEADER = 14  # bytes of the longest header of a frame (RFC 6455, 5.2)
LOOPBACK = "127.0.0.1"
NAMES = ("echo", "chat", "embedded", "metrics", "tracing")
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

    def connect(
        self, path: str, name: str | None = None, **options: Any
    ) -> contextlib.AbstractContextManager[ClientConnection]:
        """A real client; its name, if it has one, is in a cookie."""
        headers = {"cookie": f"name={quote(name)}"} if name is not None else {}
        opened: contextlib.AbstractContextManager[ClientConnection] = connect(
            self.url(path), open_timeout=DEADLINE, close_timeout=DEADLINE, proxy=None, additional_headers=headers,
            **options,
        )  # fmt: skip
        return opened

    def deaf(self, path: str, name: str) -> socket.socket:
        """The socket of a client that has shaken hands and does nothing from then on, not even read."""
        client = socket.socket()
        client.settimeout(DEADLINE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((LOOPBACK, self.port))
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{self.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Cookie: name={name}\r\n"
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
metrics = module_fixture("metrics")
tracing = module_fixture("tracing")


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
        ("metrics", "prometheus_client", "pip install prometheus-client"),
        ("tracing", "opentelemetry", "pip install opentelemetry-sdk"),
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
    [
        ("echo", "/echo/lobby/2"),
        ("chat", "/rooms/lobby"),
        ("embedded", "/ws/clock?every=0.1"),
        ("metrics", "/echo/lobby"),
        ("tracing", "/echo/lobby"),
    ],
)
def test_a_signal_ends_it_within_seconds_though_sockets_are_open(name: str, path: str, how: signal.Signals) -> None:
    with (
        running(name) as example,
        example.connect(path, "ann") as one,
        example.connect(path, "bob"),
        example.deaf(path, "deaf"),
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


# chat, in-process


OUT = chat_app.Out
PREFIX = SubprotocolToken().prefix


def offer(name: str) -> list[str]:
    """The subprotocols that the page offers."""
    return ["chat", PREFIX + base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")]


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Rooms]]:
    """The rooms of each start of the app. When the test is over nobody may be in them."""
    opened: list[Rooms] = []

    class Kept(Rooms):
        def __init__(self, background: TaskGroup) -> None:
            super().__init__(background)
            opened.append(self)

    monkeypatch.setattr(chat_app, "Rooms", Kept)
    yield opened
    assert opened
    assert not any(one._rooms for one in opened)


@pytest.fixture
def client(rooms: list[Rooms]) -> Iterator[TestClient]:
    with TestClient(chat_app.app) as client:
        yield client


@contextlib.contextmanager
def member(client: TestClient, room: str, name: str, *others: str) -> Iterator[WebSocketSession]:
    """A member of a room where these others are already."""
    with client.websocket_connect(f"/rooms/{quote(room)}", subprotocols=offer(name)) as ws:
        assert ws.accepted_subprotocol == "chat"
        assert ws.receive(OUT) == Welcome(sorted([name, *others]))
        assert ws.receive(OUT) == Joined(name)
        yield ws


def test_members_of_a_room_see_who_comes_who_speaks_and_who_goes(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann:
        with member(client, "lobby", "bob", "ann") as bob:
            assert ann.receive(OUT) == Joined("bob")
            ann.send_json(Say("hello"))
            assert ann.receive(OUT) == bob.receive(OUT) == Said("ann", "hello")
            bob.send_json(Say("hi\n<b>ann</b>"))
            assert ann.receive(OUT) == bob.receive(OUT) == Said("bob", "hi\n<b>ann</b>")
            bob.send_json(Typing())
            assert ann.receive(OUT) == bob.receive(OUT) == IsTyping("bob")
        assert ann.receive(OUT) == Left("bob")
        with member(client, "lobby", "bob", "ann"):
            assert ann.receive(OUT) == Joined("bob")
        assert ann.receive(OUT) == Left("bob")
        ann.expect_no_message()


def test_the_messages_are_on_the_wire_as_the_page_knows_them(client: TestClient) -> None:
    with client.websocket_connect("/rooms/lobby", subprotocols=offer("ann")) as ann:
        assert ann.receive_text() == '{"type":"welcome","users":["ann"]}'
        assert ann.receive_text() == '{"type":"joined","user":"ann"}'
        ann.send_text('{"type": "say", "text": "hi"}')
        assert ann.receive_text() == '{"type":"said","user":"ann","text":"hi"}'
        ann.send_text('{"type": "typing"}')
        assert ann.receive_text() == '{"type":"typing","user":"ann"}'


def test_nothing_is_seen_in_another_room(client: TestClient) -> None:
    with member(client, "other", "eve") as eve:
        with member(client, "lobby", "ann") as ann:
            ann.send_json(Say("for this room"))
            assert ann.receive(OUT) == Said("ann", "for this room")
        eve.expect_no_message()


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
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
    client: TestClient, message: str | bytes, detail: str
) -> None:
    with member(client, "lobby", "ann") as ann, member(client, "lobby", "bob", "ann") as bob:
        assert ann.receive(OUT) == Joined("bob")
        bob.send_bytes(message) if isinstance(message, bytes) else bob.send_text(message)
        error = bob.receive_json()
        assert error["type"] == "error"
        assert detail in error["detail"]
        bob.send_json(Say("x" * 1000))
        assert ann.receive(OUT) == bob.receive(OUT) == Said("bob", "x" * 1000)


def test_who_sends_nothing_but_bad_messages_is_closed_and_has_left(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann, member(client, "lobby", "bob", "ann") as bob:
        for _ in range(10):
            bob.send_text("{")
            assert bob.receive_json()["type"] == "error"
        bob.expect_close(1007)
        assert [ann.receive(OUT), ann.receive(OUT)] == [Joined("bob"), Left("bob")]


messages = st.text() | st.binary() | st.sampled_from(["say", "typing", "x"]).flatmap(
    lambda kind: st.fixed_dictionaries({"type": st.just(kind), "text": st.text() | st.none()}).map(json.dumps)
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(messages, max_size=5))
def test_whatever_a_member_sends_is_answered_and_the_next_message_gets_through(sent: list[str | bytes]) -> None:
    with TestClient(chat_app.app) as client, member(client, "lobby", "ann") as ann:
        for message in sent:
            ann.send_bytes(message) if isinstance(message, bytes) else ann.send_text(message)
            assert ann.receive_json()["type"] in {"error", "said", "typing"}
        ann.send_json(Say("still here"))
        assert ann.receive(OUT) == Said("ann", "still here")


# The name


@pytest.mark.parametrize("name", ["a", "x" * 24, "नीलम शर्मा", "O'Brien", "<b>", "🙂", "50%", "a;b", 'say "hi"', "=+/"])
def test_a_name_may_be_in_any_script_as_a_token_and_as_a_cookie(client: TestClient, name: str) -> None:
    with member(client, "lobby", name) as ws:
        ws.send_json(Say("hi"))
        assert ws.receive(OUT) == Said(name, "hi")
    with client.websocket_connect("/rooms/lobby", cookies={"name": quote(name)}) as ws:
        assert ws.accepted_subprotocol is None
        assert ws.receive(OUT) == Welcome([name])


def test_two_tabs_of_a_browser_are_two_members_whatever_their_cookie_says(client: TestClient) -> None:
    client.cookies.set("name", "eve")
    with member(client, "lobby", "ann") as ann, member(client, "lobby", "bob", "ann"):
        assert ann.receive(OUT) == Joined("bob")


REFUSED = "a name is one line of up to 24 characters, with no space at its ends"
NAMELESS = "send your name, as a token or in a cookie"
LONELY = "offer another subprotocol besides the token: the answer must name one"


@pytest.mark.parametrize(
    ("subprotocols", "cookie", "status", "detail"),
    [
        ([], None, 401, NAMELESS),
        (["chat"], None, 401, NAMELESS),
        ([], "", 401, NAMELESS),
        (["chat", PREFIX], None, 401, NAMELESS),
        (["chat", f"{PREFIX}Y"], None, 401, NAMELESS),
        (["chat", f"{PREFIX}_w"], None, 401, NAMELESS),
        (offer("a\tb"), None, 401, NAMELESS),
        ([*offer("ann"), *offer("bob")], None, 401, NAMELESS),
        (offer("ann")[1:], None, 400, LONELY),
        *[(offer(name), None, 422, REFUSED) for name in (" ", " ann", "ann ", "x" * 25)],
        *[([], quote(name), 422, REFUSED) for name in (" ", " ann", "ann\n", "a\nb", "x" * 25, "\N{NO-BREAK SPACE}")],
        (offer(" "), "ann", 422, REFUSED),
    ],
)
def test_a_name_that_is_missing_or_breaks_its_constraints_is_refused_with_a_reason(
    client: TestClient, subprotocols: list[str], cookie: str | None, status: int, detail: str
) -> None:
    cookies = {} if cookie is None else {"name": cookie}
    with (
        pytest.raises(WebSocketDenied) as denied,
        client.websocket_connect("/rooms/lobby", subprotocols=subprotocols, cookies=cookies),
    ):
        pass
    assert (denied.value.status_code, denied.value.json()) == (status, {"detail": detail})
    assert ("www-authenticate" in denied.value.headers) == (status == 401)


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.booleans())
def test_any_name_is_either_taken_as_it_is_or_refused(name: str, as_token: bool) -> None:
    sent: Any = {"subprotocols": offer(name)} if as_token else {"cookies": {"name": quote(name)}}
    with TestClient(chat_app.app) as client:
        status = 101
        try:
            with client.websocket_connect("/rooms/lobby", **sent) as ws:
                assert ws.receive(OUT) == Welcome([name])
        except WebSocketDenied as denied:
            status = denied.status_code
    fits = 0 < len(name) <= 24 and name == name.strip() and "\n" not in name
    has_controls = as_token and re.search(r"[\x00-\x1f\x7f]", name)
    if name == "" or has_controls:
        assert status == 401
    else:
        assert status == (101 if fits else 422)


def test_the_name_in_the_token_stands_in_no_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with (
        member(client, "lobby", "ann"),
        contextlib.suppress(WebSocketDenied),
        client.websocket_connect("/rooms/lobby", subprotocols=[*offer("ann"), *offer("bob")]),
    ):
        pass
    assert offer("ann")[1] not in caplog.text
    assert PREFIX not in caplog.text


@pytest.mark.parametrize(("room", "status"), [("", 404), ("a/b", 404), ("a%20b", 403), ("x" * 25, 403), ("a%0A", 403)])
def test_a_room_that_breaks_its_constraints_is_refused(client: TestClient, room: str, status: int) -> None:
    with (
        pytest.raises(WebSocketDenied) as denied,
        client.websocket_connect(f"/rooms/{room}", subprotocols=offer("ann")),
    ):
        pass
    assert denied.value.status_code == status


def test_a_name_is_taken_once_a_room_and_the_close_says_so(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann:
        with client.websocket_connect("/rooms/lobby", subprotocols=offer("ann")) as second:
            second.expect_close(4409, reason="ann is here already, choose another name")
        ann.send_json(Say("still here"))
        assert ann.receive(OUT) == Said("ann", "still here")
        with member(client, "other", "ann"):
            ann.expect_no_message()


@pytest.mark.parametrize(("origin", "status"), [
    ("http://testserver", 101), ("http://evil.example", 403), ("http://testserver:1", 403), ("null", 403),
])  # fmt: skip
@pytest.mark.parametrize(
    "sent", [{"subprotocols": offer("ann")}, {"cookies": {"name": "ann"}}], ids=["token", "cookie"]
)
def test_only_the_page_of_this_server_may_join(
    client: TestClient, sent: dict[str, Any], origin: str, status: int
) -> None:
    outcome = 101
    try:
        with client.websocket_connect("/rooms/lobby", origin=origin, **sent):
            pass
    except WebSocketDenied as denied:
        outcome = denied.status_code
    assert outcome == status


# The end of a member


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["close", "abort", "vanish"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_who_goes_has_left_on_every_server_however_it_went(rooms: list[Rooms], shape: Shape, how: str) -> None:
    async with (
        AsyncTestClient(chat_app.app, server=shape) as client,
        client.websocket_connect("/rooms/lobby", subprotocols=offer("ann")) as ann,
    ):
        assert ann.accepted_subprotocol == "chat"
        assert [await ann.receive(OUT), await ann.receive(OUT)] == [Welcome(["ann"]), Joined("ann")]
        if how == "vanish":
            await client.websocket_vanish("/rooms/lobby", cookies={"name": "bob"})
        else:
            async with client.websocket_connect("/rooms/lobby", cookies={"name": "bob"}) as bob:
                assert await bob.receive(OUT) == Welcome(["ann", "bob"])
                assert await ann.receive(OUT) == Joined("bob")
                await (bob.close(4000, "enough") if how == "close" else bob.abort())
                assert await ann.receive(OUT) == Left("bob")
        await ann.send_json(Say("alone"))
        others = []
        while (message := await ann.receive(OUT)) != Said("ann", "alone"):
            others.append(message)
        # Where a client that is gone before accept is let in all the same, it is out again.
        assert others in ([], [Joined("bob"), Left("bob")])


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_member_who_goes_while_another_speaks_goes_without_an_error(shape: Shape) -> None:
    ann, bob = (FakeServer(shape, "/rooms/lobby", headers={"cookie": f"name={name}"}) for name in ("ann", "bob"))
    async with chat_app.app.lifespan_context(), anyio.create_task_group() as group:
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


class Fragile(Rooms):
    """Rooms with a bug."""

    async def broadcast(self, room: str, message: chat_app.Out) -> None:
        if message == Said("bob", "crash"):
            raise RuntimeError("a bug")
        await super().broadcast(room, message)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def made() -> AsyncIterator[Rooms]:
        async with anyio.create_task_group() as group:
            yield Fragile(group)

    monkeypatch.setitem(chat_app.app.dependency_overrides, Rooms, made)


@pytest.mark.usefixtures("fragile")
def test_a_member_whose_handler_raised_has_left() -> None:
    with TestClient(chat_app.app, raise_server_exceptions=False) as client, member(client, "lobby", "ann") as ann:
        with member(client, "lobby", "bob", "ann") as bob:
            assert ann.receive(OUT) == Joined("bob")
            bob.send_json(Say("crash"))
            bob.expect_close(1011, reason="internal error")
            assert ann.receive(OUT) == Left("bob")
        with member(client, "lobby", "bob", "ann"):
            assert ann.receive(OUT) == Joined("bob")


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_all_have_left_when_the_server_stops(rooms: list[Rooms], shape: Shape) -> None:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncTestClient(chat_app.app, server=shape))
        for name in ("ann", "bob", "eve"):
            ws = client.websocket_connect("/rooms/lobby", cookies={"name": name})
            await stack.enter_async_context(ws)
        await client.stop_server()


# The slow


async def heard(ws: AsyncWebSocketSession, wanted: chat_app.Out) -> list[chat_app.Out]:
    """What came before the message that is waited for."""
    before = []
    while (message := await ws.receive(OUT)) != wanted:
        before.append(message)
    return before


BLOCKING = [shape for shape in SHAPES if shape.blocks]


@pytest.mark.anyio
@pytest.mark.parametrize("shape", BLOCKING, ids=lambda shape: shape.name)
async def test_who_does_not_read_is_dropped_and_told_so(
    rooms: list[Rooms], shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_app, "PATIENCE", 0.05)
    async with (
        AsyncTestClient(chat_app.app, server=shape) as client,
        client.websocket_connect("/rooms/lobby", cookies={"name": "ann"}) as ann,
        client.websocket_connect("/rooms/lobby", cookies={"name": "slow"}) as slow,
        client.websocket_connect("/rooms/lobby", cookies={"name": "slower"}) as slower,
    ):
        await heard(ann, Joined("slower"))
        for one in (slow, slower):
            await heard(one, Joined("slower"))
            await one.stall(1000)
        for text in "abc":
            await ann.send_json(Say(text * 1000))
        came = [await ann.receive(OUT) for _ in range(5)]
        said = [Said("ann", text * 1000) for text in "abc"]
        assert [one for one in came if isinstance(one, Said)] == said
        assert {one.user for one in came if isinstance(one, Left)} == {"slow", "slower"}
        async with client.websocket_connect("/rooms/lobby", cookies={"name": "slow"}) as again:
            assert await again.receive(OUT) == Welcome(["ann", "slow"])
            for one in (slow, slower):
                await one.resume()
                read = [msgspec.json.decode(message, type=OUT) async for message in one]
                assert read[0] == said[0]
                await one.expect_close(1013, reason="you read too slowly")
            await ann.send_json(Say("and on"))
            await heard(again, Said("ann", "and on"))


@pytest.mark.anyio
@pytest.mark.parametrize("shape", BLOCKING, ids=lambda shape: shape.name)
async def test_who_does_not_read_holds_up_nobody_while_there_is_patience(
    rooms: list[Rooms], shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_app, "PATIENCE", 60.0)
    async with (
        AsyncTestClient(chat_app.app, server=shape) as client,
        client.websocket_connect("/rooms/lobby", cookies={"name": "ann"}) as ann,
        client.websocket_connect("/rooms/lobby", cookies={"name": "bob"}) as bob,
    ):
        async with client.websocket_connect("/rooms/lobby", cookies={"name": "slow"}) as slow:
            await slow.stall(0)
            await ann.send_json(Say("one"))
            await heard(ann, Said("ann", "one"))
            await heard(bob, Said("ann", "one"))
            await bob.send_json(Say("two"))
            assert await heard(ann, Said("bob", "two")) == []
            assert await heard(bob, Said("bob", "two")) == []
            await slow.abort()
        assert await ann.receive(OUT) == Left("slow")


@pytest.mark.anyio
async def test_a_message_for_a_member_who_is_just_being_closed_is_nobodys_error(
    rooms: list[Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_app, "PATIENCE", 60.0)
    async with (
        AsyncTestClient(chat_app.app) as client,
        client.websocket_connect("/rooms/lobby", cookies={"name": "ann"}) as ann,
        client.websocket_connect("/rooms/lobby", cookies={"name": "bob"}) as bob,
    ):
        await heard(ann, Joined("bob"))
        await heard(bob, Joined("bob"))
        await bob.send_text("{")
        frame = len(await bob.receive_text()) + HEADER
        await bob.stall(8 * frame + 1)  # nine errors go out, the close does not
        for _ in range(9):
            await bob.send_text("{")
        await anyio.wait_all_tasks_blocked()
        await ann.send_json(Say("hello"))
        assert await ann.receive(OUT) == Said("ann", "hello")
        await anyio.wait_all_tasks_blocked()
        await bob.resume()
        assert len([message async for message in bob]) == 9
        await bob.expect_close(1007)
        assert await ann.receive(OUT) == Left("bob")


# The page


def test_the_page_is_served_with_all_that_it_loads(client: TestClient) -> None:
    page = client.get("/")
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
    kinds = [client.get(f"/{file}").headers["content-type"] for file in loaded]
    assert kinds == ["text/css; charset=utf-8", "text/javascript; charset=utf-8"]


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_but_its_script(client: TestClient) -> None:
    page = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[of] for of in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script[^>]*>[^<]", page.text)
    script = client.get("/chat.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    for text in (page.text.replace("http://www.w3.org/2000/svg", ""), script, client.get("/chat.css").text):
        assert not re.search(r"(https?|wss?)://|@import|\burl\(", text)


def test_the_page_knows_every_message_of_the_server_its_limits_and_its_tokens(client: TestClient) -> None:
    script, page = client.get("/chat.js").text, client.get("/").text
    tags = [message.__struct_config__.tag for message in typing.get_args(OUT)]
    for tag in [*tags, "error"]:
        assert re.search(rf"^  {tag}\(", script, re.MULTILINE), tag
    assert [int(limit) for limit in re.findall(r'maxlength="(\d+)"', page)] == [24, 24, 1000]
    assert "4409" in script
    assert f'["chat", `{PREFIX}${{base64url(name)}}`]' in script


# chat, as a process


@contextlib.contextmanager
def real_member(chat: Example, room: str, name: str, *others: str) -> Iterator[ClientConnection]:
    """A real client in a room where these others are already."""
    with chat.connect(f"/rooms/{room}", name) as ws:
        assert receive(ws) == {"type": "welcome", "users": sorted([name, *others])}
        assert receive(ws) == {"type": "joined", "user": name}
        yield ws


def say(ws: ClientConnection, text: str) -> None:
    ws.send(json.dumps({"type": "say", "text": text}))


def test_real_clients_talk_with_each_other_one_as_the_page_does_and_one_with_a_cookie(chat: Example) -> None:
    origin = f"http://{LOOPBACK}:{chat.port}"
    with chat.connect("/rooms/talk", subprotocols=offer("नीलम"), origin=origin) as page:
        assert page.subprotocol == "chat"
        assert receive(page) == {"type": "welcome", "users": ["नीलम"]}
        assert receive(page) == {"type": "joined", "user": "नीलम"}
        with real_member(chat, "talk", "bob", "नीलम") as bob:
            assert receive(page) == {"type": "joined", "user": "bob"}
            say(bob, "hello")
            assert receive(page) == receive(bob) == {"type": "said", "user": "bob", "text": "hello"}
        assert receive(page) == {"type": "left", "user": "bob"}


def test_a_real_client_without_a_name_or_of_another_site_is_refused_with_the_status(chat: Example) -> None:
    for options, status in (({}, 401), ({"name": " "}, 422), ({"name": "ann", "origin": "http://localhost"}, 403)):
        with pytest.raises(InvalidStatus) as refused, chat.connect("/rooms/lobby", **options):
            pass
        assert refused.value.response.status_code == status


def test_a_message_too_big_ends_its_own_connection_only(chat: Example) -> None:
    with real_member(chat, "big", "ann") as ann:
        with real_member(chat, "big", "bob", "ann") as bob:
            say(bob, "x" * 65_536)
            with pytest.raises(ConnectionClosed) as closed:
                bob.recv(timeout=DEADLINE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert [receive(ann), receive(ann)] == [{"type": "joined", "user": "bob"}, {"type": "left", "user": "bob"}]


def test_a_client_whose_connection_breaks_has_left(chat: Example) -> None:
    with real_member(chat, "break", "ann") as ann:
        with chat.deaf("/rooms/break", "bob"):
            assert receive(ann) == {"type": "joined", "user": "bob"}
        assert receive(ann) == {"type": "left", "user": "bob"}


def test_clients_that_do_not_read_are_dropped_and_hold_up_neither_the_others_nor_the_end() -> None:
    with (
        running("chat") as chat,
        real_member(chat, "lobby", "ann") as ann,
        chat.deaf("/rooms/lobby", "late") as late,
        chat.deaf("/rooms/lobby", "never"),
    ):
        assert {receive(ann)["user"], receive(ann)["user"]} == {"late", "never"}
        others = []
        for number in range(5_000):  # 20 MB: more than lies between a server and a client
            say(ann, f"{number} {'🙂' * 990}")
            while (message := receive(ann))["type"] != "said":
                others.append(message)
            assert message["text"].startswith(f"{number} ")
            if len(others) == 2:
                break
        assert sorted(others, key=str) == [{"type": "left", "user": name} for name in ("late", "never")]
        with real_member(chat, "lobby", "bob", "ann") as bob:
            say(bob, "hello")
            assert receive(bob)["text"] == "hello"
        close_frame = b"\x88\x15\x03\xf5you read too slowly"  # 1013 and the reason (RFC 6455, 5.5.1)
        last = b""
        while not last.endswith(close_frame) and (part := late.recv(1_000_000)):
            last = (last + part)[-100:]
        assert last.endswith(close_frame)
        # The close for the other one is still on its way: the server may say that it did not wait for it.
        assert "Traceback" not in chat.end()


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


# metrics


Number = tuple[str, str]
"""A name of Prometheus, and the values of its labels."""


def numbers(text: str) -> dict[Number, float]:
    """What stands in a text of Prometheus."""
    return {
        (sample.name, " ".join(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(registry: CollectorRegistry) -> dict[Number, float]:
    """What a scrape of a registry gives."""
    return numbers(generate_latest(registry).decode())


def grown(before: dict[Number, float], after: dict[Number, float]) -> dict[Number, float]:
    """What is not as it was."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog looks every hundredth of a second."""
    monkeypatch.setattr(asgiws.watch, "TICK", 0.01)


def test_the_page_of_metrics_tells_what_is_open_and_what_has_ended() -> None:
    with TestClient(metrics_example.app) as client:

        def scrape() -> dict[Number, float]:
            page = client.get("/metrics")
            assert page.headers["content-type"] == CONTENT_TYPE_LATEST
            return numbers(page.text)

        before = scrape()
        with client.websocket_connect("/echo/lobby") as ws:
            ws.send_text("hi")
            assert ws.receive_text() == "lobby: hi"
            with client.websocket_connect("/echo/hall"):
                open_now = grown(before, scrape())
            ws.close(4001, "bye")
        with pytest.raises(WebSocketDenied), client.websocket_connect("/nowhere?token=secret"):
            pass
        assert open_now == {
            ("websockets_open", "/echo/<room>"): 2,
            ("websockets_opened_total", ""): 2,
            ("websockets_messages_total", "in"): 1,
            ("websockets_messages_total", "out"): 1,
            ("websockets_bytes_total", "in"): 2,
            ("websockets_bytes_total", "out"): 9,
        }
        after = scrape()
        ended = {key: value for key, value in grown(before, after).items() if not key[0].startswith("websockets_sec")}
        assert ended == {
            ("websockets_messages_total", "in"): 1,
            ("websockets_messages_total", "out"): 1,
            ("websockets_bytes_total", "in"): 2,
            ("websockets_bytes_total", "out"): 9,
            ("websockets_opened_total", ""): 3,
            ("websockets_closed_total", "1000"): 1,
            ("websockets_closed_total", "4001"): 1,
            ("websockets_closed_total", "4404"): 1,
        }
        assert after["websockets_open", "/echo/<room>"] == 0  # and has not vanished
        assert "secret" not in client.get("/metrics").text


def test_the_metrics_have_a_histogram_of_how_long_accepted_connections_lasted() -> None:
    app = App()
    registry = metrics_example.metrics_of(app.connections)

    @app.websocket("/accepts")
    async def accepts(ws: WebSocket) -> None:
        await ws.accept()

    @app.websocket("/refuses")
    async def refuses(ws: WebSocket) -> None:
        raise WebSocketException(4000)

    with TestClient(app) as client:
        for _ in range(3):
            with client.websocket_connect("/accepts") as ws:
                ws.expect_close(1000)
        with pytest.raises(WebSocketDenied), client.websocket_connect("/refuses"):
            pass
    found = scraped(registry)
    assert found["websockets_seconds_count", "/accepts"] == 3
    assert found["websockets_seconds_bucket", "+Inf /accepts"] == 3
    assert found["websockets_seconds_bucket", "60.0 /accepts"] == 3
    assert 0 < found["websockets_seconds_sum", "/accepts"] < 3 * DEADLINE
    assert ("websockets_seconds_count", "/refuses") not in found
    assert found["websockets_closed_total", "4000"] == 1


def test_the_metrics_tell_what_the_limits_have_refused_by_cause() -> None:
    app = App(limits=Limits(connections=1, query_bytes=10))
    registry = metrics_example.metrics_of(app.connections)

    @app.websocket("/")
    async def hold(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    with TestClient(app) as client:
        with pytest.raises(WebSocketDenied), client.websocket_connect("/?token=0123456789"):
            pass
        with client.websocket_connect("/"):
            for _ in range(2):
                with pytest.raises(WebSocketDenied), client.websocket_connect("/"):
                    pass
    found = scraped(registry)
    refused = {cause: count for (name, cause), count in found.items() if name == "websockets_refused_total"}
    assert refused == {"connections": 2, "query": 1}
    assert found["websockets_opened_total", ""] == 1


@pytest.mark.usefixtures("quick_looks")
def test_the_metrics_tell_of_handlers_that_the_watchdog_has_read_for_and_cancelled() -> None:
    app = App(limits=Limits(linger=0))
    registry = metrics_example.metrics_of(app.connections)

    @app.websocket("/sleeps")
    async def sleeps(ws: WebSocket) -> None:
        await ws.accept()
        await anyio.sleep_forever()

    with TestClient(app) as client:
        assert scraped(registry)["websockets_cancelled_total", ""] == 0
        with client.websocket_connect("/sleeps"):
            pass
    found = scraped(registry)
    assert found["websockets_taken_over_total", ""] == found["websockets_cancelled_total", ""] == 1
    assert found["websockets_dropped_total", ""] == 0


@pytest.mark.anyio
@pytest.mark.usefixtures("quick_looks")
async def test_the_metrics_tell_of_clients_that_were_dropped_since_they_do_not_read() -> None:
    app = App(limits=Limits(send_timeout=0.05, linger=0.05))
    registry = metrics_example.metrics_of(app.connections)
    ended = anyio.Event()
    app.connections.on_close(lambda _: ended.set())

    @app.websocket("/pours")
    async def pours(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_text("x" * 10_000)

    async with AsyncTestClient(app) as client, client.websocket_connect("/pours") as ws:
        await ws.stall()
        with anyio.fail_after(DEADLINE):
            await ended.wait()
    found = scraped(registry)
    assert found["websockets_dropped_total", ""] == found["websockets_closed_total", "1013"] == 1


def test_the_metrics_of_a_process_are_read_over_http(metrics: Example) -> None:
    with metrics.connect("/echo/lobby") as ws:
        ws.send("hi")
        assert ws.recv(timeout=DEADLINE) == "lobby: hi"
        page = metrics.get("/metrics")
        assert page.headers["content-type"] == CONTENT_TYPE_LATEST
        assert numbers(page.text)["websockets_open", "/echo/<room>"] >= 1


# tracing


@pytest.fixture
def spans() -> Callable[[], list[ReadableSpan]]:
    """Gives the spans of the example that have ended since it was asked for the last time."""
    memory = InMemorySpanExporter()
    tracing_example.provider.add_span_processor(SimpleSpanProcessor(memory))

    def take() -> list[ReadableSpan]:
        found = list(memory.get_finished_spans())
        memory.clear()
        return found

    return take


def test_a_connection_is_one_span_with_its_route_and_close_code(spans: Callable[[], list[ReadableSpan]]) -> None:
    with TestClient(tracing_example.app) as client:
        with client.websocket_connect("/echo/lobby?token=secret") as ws:
            ws.send_text("hi")
            assert ws.receive_text() == "lobby: hi"
            assert spans() == []  # a span is told when it ends
            ws.close(4001, "bye")
        (span,) = spans()
    assert span.name == "websocket /echo/<room>"
    attributes = dict(span.attributes or {})
    assert re.fullmatch("[0-9a-f]{16}", str(attributes.pop("websocket.id")))
    assert attributes == {
        "http.route": "/echo/<room>",
        "url.path": "/echo/lobby",
        "websocket.accepted": True,
        "websocket.close_code": 4001,
        "websocket.close_reason": "bye",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.end_time
    assert span.status.status_code is StatusCode.UNSET
    assert "secret" not in span.to_json()


def test_connections_at_the_same_time_have_spans_of_their_own(spans: Callable[[], list[ReadableSpan]]) -> None:
    with (
        TestClient(tracing_example.app) as client,
        client.websocket_connect("/echo/a") as first,
        client.websocket_connect("/echo/b") as second,
    ):
        second.close(4002)
        first.close(4001)
    codes = {(span.attributes or {})["url.path"]: (span.attributes or {})["websocket.close_code"] for span in spans()}
    assert codes == {"/echo/a": 4001, "/echo/b": 4002}


def test_a_refused_handshake_is_a_span_too(spans: Callable[[], list[ReadableSpan]]) -> None:
    with (
        TestClient(tracing_example.app) as client,
        pytest.raises(WebSocketDenied),
        client.websocket_connect("/nowhere"),
    ):
        pass
    (span,) = spans()
    attributes = dict(span.attributes or {})
    assert (attributes["websocket.accepted"], attributes["websocket.close_code"]) == (False, 4404)


@pytest.mark.parametrize(("accepts", "code"), [(True, 1011), (False, 4500)])
def test_the_span_of_a_handler_that_failed_is_an_error(accepts: bool, code: int) -> None:
    app = App()
    provider, memory = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracing_example.trace(app.connections, provider.get_tracer("tests"))

    @app.websocket("/fails")
    async def fails(ws: WebSocket) -> None:
        if accepts:
            await ws.accept()
        raise ValueError("a bug")

    with (
        TestClient(app, raise_server_exceptions=False) as client,
        contextlib.suppress(WebSocketDenied),
        client.websocket_connect("/fails") as ws,
    ):
        ws.expect_close(1011)
    (span,) = memory.get_finished_spans()
    assert (span.attributes or {})["websocket.close_code"] == code
    assert span.status.status_code is StatusCode.ERROR


def test_a_process_prints_a_span_for_each_connection_those_that_its_end_closes_too() -> None:
    with running("tracing") as example:
        with example.connect("/echo/lobby") as ws:
            ws.send("hi")
            assert ws.recv(timeout=DEADLINE) == "lobby: hi"
        with example.connect("/echo/hall"):
            example.process.send_signal(signal.SIGTERM)
            printed, errors = example.process.communicate(timeout=DEADLINE)
    assert errors == ""
    attributes = [json.loads(line)["attributes"] for line in printed.splitlines()]
    assert [(one["http.route"], one["url.path"], one["websocket.close_code"]) for one in attributes] == [
        ("/echo/<room>", "/echo/lobby", 1000),
        ("/echo/<room>", "/echo/hall", 1012),
    ]
