"""Every example as a stranger runs it, in a process of its own with real clients; the chat also in-process."""

import base64
import contextlib
import datetime as dt
import inspect
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import asgiws.watch
from asgiws import App, Limits, WebSocket, WebSocketException
from asgiws.channels import BrokerError, Channels, Joined, Lost, Position, Publication, TopicOptions, client_module
from asgiws.channels.backend import presence_change
from asgiws.channels.members import _joined_frame
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
from examples import ticker as ticker_example
from examples import tracing as tracing_example
from examples.chat import app as chat_app
from examples.chat.app import Said, Say, Typing
from tests.fakes import DEADLINE
from tests.valkey import Valkey

ROOT = pathlib.Path(__file__).parent.parent
HEADER = 14  # bytes of the longest header of a frame (RFC 6455, 5.2)
LOOPBACK = "127.0.0.1"
NAMES = ("echo", "chat", "ticker", "embedded", "metrics", "tracing")
START = 20.0
"""Seconds that a process may take until it prints its address: it imports a whole server."""


class Example:
    """An example that runs, in a process of its own, or in several.

    Args:
        name: The module.
        options: The command line.

    Attributes:
        port: Where it listens, however often it is started.
        process: The handle of the process that runs now.
        line: What it has printed first.
    """

    def __init__(self, name: str, *options: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", f"examples.{name}", "--port", str(self.port), *options]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it prints its address."""
        # A session of its own: whatever it starts can be killed together with it.
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        late = threading.Timer(START, self.process.kill)
        late.start()
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        late.cancel()

    def kill(self) -> None:
        """Kill it and all that it has started, in no time and without a farewell."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=DEADLINE)

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
def running(name: str, *options: str) -> Iterator[Example]:
    example = Example(name, *options)
    try:
        yield example
    finally:
        if example.process.returncode is None:
            example.kill()


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
ticker = module_fixture("ticker")
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
        ("ticker", "/prices"),
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


PREFIX = SubprotocolToken().prefix
POSITION = "[0-9a-f]+-[0-9]+"


def offer(name: str) -> list[str]:
    """The subprotocols that the page offers."""
    return ["chat", PREFIX + base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")]


def channels() -> Channels:
    assert chat_app.app.channels is not None
    return chat_app.app.channels


@pytest.fixture
def emptied() -> Iterator[None]:
    """When the test is over nobody may be in a room."""
    yield
    assert channels().statistics().topics == 0


@pytest.fixture
def client(emptied: None) -> Iterator[TestClient]:
    with TestClient(chat_app.app) as client:
        yield client


def said(frame: Any) -> tuple[str, str]:
    """Who said what, in a frame as the page gets it."""
    assert (frame["type"], frame["data"]["type"]) == ("message", "said"), frame
    return frame["data"]["user"], frame["data"]["text"]


def change(room: str, joined: str | None = None, left: str | None = None) -> dict[str, Any]:
    """The frame that tells who came or went."""
    came = [] if joined is None else [{"key": joined, "meta": None}]
    return {"type": "presence", "topic": f"room:{room}", "joined": came, "left": [] if left is None else [left]}


@contextlib.contextmanager
def member(client: TestClient, room: str, name: str, *others: str, since: str = "") -> Iterator[WebSocketSession]:
    """A member of an empty room, or of one where these others are already."""
    params = {"since": since} if since else {}
    with client.websocket_connect(f"/rooms/{quote(room)}", params=params, subprotocols=offer(name)) as ws:
        assert ws.accepted_subprotocol == "chat"
        joined = ws.receive_json()
        assert (joined["type"], joined["topic"]) == ("joined", f"room:{room}")
        ws.beginning = [joined]  # type: ignore[attr-defined]
        while (frame := ws.receive_json())["type"] == "message":
            ws.beginning.append(frame)  # type: ignore[attr-defined]
        if name not in others:
            assert frame == change(room, joined=name)
            frame = ws.receive_json()
        assert frame == {"type": "here", "users": sorted({name, *others})}
        yield ws


def test_members_of_a_room_see_who_comes_who_speaks_and_who_goes(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann:
        with member(client, "lobby", "bob", "ann") as bob:
            assert ann.receive_json() == change("lobby", joined="bob")
            ann.send_json(Say("hello"))
            assert said(ann.receive_json()) == said(bob.receive_json()) == ("ann", "hello")
            bob.send_json(Say("hi\n<b>ann</b>"))
            assert said(ann.receive_json()) == said(bob.receive_json()) == ("bob", "hi\n<b>ann</b>")
            bob.send_json(Typing())
            assert ann.receive_json() == {"type": "typing", "user": "bob"}
            bob.expect_no_message()
        assert ann.receive_json() == change("lobby", left="bob")
        with member(client, "lobby", "bob", "ann"):
            assert ann.receive_json() == change("lobby", joined="bob")
        assert ann.receive_json() == change("lobby", left="bob")
        ann.expect_no_message()


def test_the_messages_are_on_the_wire_as_the_page_knows_them(client: TestClient) -> None:
    with client.websocket_connect("/rooms/lobby", subprotocols=offer("ann")) as ann:
        joined = rf'\{{"type":"joined","topic":"room:lobby","position":"{POSITION}","present":\[\]\}}'
        assert re.fullmatch(joined, ann.receive_text())
        presence = '{"type":"presence","topic":"room:lobby","joined":[{"key":"ann","meta":null}],"left":[]}'
        assert ann.receive_text() == presence
        assert ann.receive_text() == '{"type":"here","users":["ann"]}'
        ann.send_text('{"type": "say", "text": "hi", "id": "7"}')
        frame = json.loads(ann.receive_text())
        at = dt.datetime.fromisoformat(frame["data"].pop("at"))
        assert abs(dt.datetime.now(dt.UTC) - at) < dt.timedelta(minutes=1)
        assert re.fullmatch(POSITION, frame.pop("position"))
        data = {"type": "said", "user": "ann", "text": "hi", "id": "7"}
        assert frame == {"type": "message", "topic": "room:lobby", "data": data}


def test_who_is_new_gets_what_was_said_last_though_nobody_is_there_any_more(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann:
        for number in range(150):
            ann.send_json(Say(f"{number}"))
            assert said(ann.receive_json()) == ("ann", f"{number}")
        ann.send_json(Typing())
    with member(client, "lobby", "bob") as bob:
        before = [said(frame) for frame in bob.beginning[1:]]  # type: ignore[attr-defined]
        assert before == [("ann", f"{number}") for number in range(50, 150)]


def test_who_comes_back_gets_exactly_what_was_missed(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann:
        with member(client, "lobby", "bob", "ann") as bob:
            ann.receive_json()
            ann.send_json(Say("seen"))
            position = bob.receive_json()["position"]
        for text in ("missed", "missed too"):
            ann.send_json(Say(text))
        while ann.receive_json().get("data", {}).get("text") != "missed too":
            """Also that bob has left."""
        with member(client, "lobby", "bob", "ann", since=position) as bob:
            joined, *missed = bob.beginning  # type: ignore[attr-defined]
            assert joined["recovered"] is True
            assert [said(frame) for frame in missed] == [("ann", "missed"), ("ann", "missed too")]
            ann.send_json(Say("and on"))
            assert said(bob.receive_json()) == ("ann", "and on")


@pytest.mark.parametrize("since", ["nowhere-7", "x", "-", "\N{SNOWMAN}", "1" * 1000])
def test_who_comes_back_from_nowhere_is_told_so_and_gets_what_was_said_last(client: TestClient, since: str) -> None:
    with member(client, "lobby", "ann") as ann:
        ann.send_json(Say("hello"))
        assert said(ann.receive_json()) == ("ann", "hello")
    with member(client, "lobby", "bob", since=since) as bob:
        joined, *last = bob.beginning  # type: ignore[attr-defined]
        assert (joined["recovered"], joined["reason"]) == (False, "epoch")
        assert [said(frame) for frame in last] == [("ann", "hello")]


def test_the_memory_of_a_server_ends_with_it() -> None:
    with TestClient(chat_app.app) as client, member(client, "lobby", "ann") as ann:
        ann.send_json(Say("hello"))
        position = ann.receive_json()["position"]
    with TestClient(chat_app.app) as client, member(client, "lobby", "bob") as bob:
        assert len(bob.beginning) == 1  # type: ignore[attr-defined]
        with member(client, "lobby", "ann", "bob", since=position) as ann:
            assert ann.beginning[0]["recovered"] is False  # type: ignore[attr-defined]


def test_nothing_is_seen_in_another_room(client: TestClient) -> None:
    with member(client, "other", "eve") as eve:
        with member(client, "lobby", "ann") as ann:
            ann.send_json(Say("for this room"))
            assert said(ann.receive_json()) == ("ann", "for this room")
            ann.send_json(Typing())
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
        (json.dumps({"type": "say", "text": "x", "id": "x" * 37}), "length <= 36"),
        ('{"type": "say", "text": "\\ud800"}', "JSON"),
        (b"\xff", ": JSON is malformed"),
        (b'{"type": "say", "text": "\xff"}', "UTF-8"),
    ],
)
def test_a_message_that_does_not_validate_gets_an_error_frame_and_nobody_else_sees_it(
    client: TestClient, message: str | bytes, detail: str
) -> None:
    with member(client, "lobby", "ann") as ann, member(client, "lobby", "bob", "ann") as bob:
        assert ann.receive_json() == change("lobby", joined="bob")
        bob.send_bytes(message) if isinstance(message, bytes) else bob.send_text(message)
        error = bob.receive_json()
        assert error["type"] == "error"
        assert detail in error["detail"]
        bob.send_json(Say("x" * 1000))
        assert said(ann.receive_json()) == said(bob.receive_json()) == ("bob", "x" * 1000)


def test_who_sends_nothing_but_bad_messages_is_closed_and_has_left(client: TestClient) -> None:
    with member(client, "lobby", "ann") as ann, member(client, "lobby", "bob", "ann") as bob:
        for _ in range(10):
            bob.send_text("{")
            assert bob.receive_json()["type"] == "error"
        bob.expect_close(1007)
        assert [ann.receive_json(), ann.receive_json()] == [change("lobby", "bob"), change("lobby", left="bob")]


messages = st.text() | st.binary() | st.sampled_from(["say", "typing", "x"]).flatmap(
    lambda kind: st.fixed_dictionaries({"type": st.just(kind), "text": st.text() | st.none()}).map(json.dumps)
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(messages, max_size=5))
def test_whatever_a_member_sends_is_answered_and_the_next_message_gets_through(sent: list[str | bytes]) -> None:
    with TestClient(chat_app.app) as client, member(client, "lobby", "ann") as ann:
        for message in sent:
            ann.send_bytes(message) if isinstance(message, bytes) else ann.send_text(message)
        ann.send_json(Say("still here", "last"))
        while (frame := ann.receive_json()).get("data", {}).get("id") != "last":
            assert frame["type"] in {"error", "message"}


# The name


@pytest.mark.parametrize("name", ["a", "x" * 24, "नीलम शर्मा", "O'Brien", "<b>", "🙂", "50%", "a;b", 'say "hi"', "=+/"])
def test_a_name_may_be_in_any_script_as_a_token_and_as_a_cookie(client: TestClient, name: str) -> None:
    with member(client, "lobby", name) as ws:
        ws.send_json(Say("hi"))
        assert said(ws.receive_json()) == (name, "hi")
    with client.websocket_connect("/rooms/other", cookies={"name": quote(name)}) as ws:
        assert ws.accepted_subprotocol is None
        assert [ws.receive_json()["type"], ws.receive_json()] == ["joined", change("other", joined=name)]


def test_two_tabs_of_a_browser_are_two_members_whatever_their_cookie_says(client: TestClient) -> None:
    client.cookies.set("name", "eve")
    with member(client, "lobby", "ann") as ann, member(client, "lobby", "bob", "ann"):
        assert ann.receive_json() == change("lobby", joined="bob")


def test_two_tabs_with_one_name_are_one_member_who_leaves_with_the_last_of_them(client: TestClient) -> None:
    with member(client, "lobby", "bob") as bob:
        with member(client, "lobby", "ann", "bob") as first:
            assert bob.receive_json() == change("lobby", joined="ann")
            with member(client, "lobby", "ann", "bob", "ann") as second:
                second.send_json(Say("from the second"))
                for one in (bob, first, second):
                    assert said(one.receive_json()) == ("ann", "from the second")
            bob.expect_no_message()
        assert bob.receive_json() == change("lobby", left="ann")


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
                assert [ws.receive_json()["type"], ws.receive_json()] == ["joined", change("lobby", joined=name)]
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


async def until(ws: AsyncWebSocketSession, wanted: Callable[[Any], bool]) -> list[Any]:
    """What came, the frame that was waited for being the last."""
    frames = [await ws.receive_json()]
    while not wanted(frames[-1]):
        frames.append(await ws.receive_json())
    return frames


def is_text(text: str) -> Callable[[Any], bool]:
    """Whether a frame is a message with that text."""
    return lambda frame: frame.get("data", {}).get("text") == text


def is_here(frame: Any) -> bool:
    return bool(frame["type"] == "here")


@pytest.mark.anyio
@pytest.mark.usefixtures("emptied")
@pytest.mark.parametrize("how", ["close", "abort", "vanish"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_who_goes_has_left_on_every_server_however_it_went(shape: Shape, how: str) -> None:
    async with (
        AsyncTestClient(chat_app.app, server=shape) as client,
        client.websocket_connect("/rooms/lobby", subprotocols=offer("ann")) as ann,
    ):
        assert ann.accepted_subprotocol == "chat"
        await until(ann, is_here)
        if how == "vanish":
            await client.websocket_vanish("/rooms/lobby", cookies={"name": "bob"})
        else:
            async with client.websocket_connect("/rooms/lobby", cookies={"name": "bob"}) as bob:
                assert (await until(bob, is_here))[-1]["users"] == ["ann", "bob"]
                assert await ann.receive_json() == change("lobby", joined="bob")
                await (bob.close(4000, "enough") if how == "close" else bob.abort())
                assert await ann.receive_json() == change("lobby", left="bob")
        await ann.send_json(Say("alone"))
        others = (await until(ann, is_text("alone")))[:-1]
        # Where a client that is gone before accept is let in all the same, it is out again.
        assert others in ([], [change("lobby", joined="bob"), change("lobby", left="bob")])


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_member_who_goes_while_another_speaks_goes_without_an_error(shape: Shape) -> None:
    ann, bob = (FakeServer(shape, "/rooms/lobby", headers={"cookie": f"name={name}"}) for name in ("ann", "bob"))
    async with chat_app.app.lifespan_context(), anyio.create_task_group() as group:
        for server in (ann, bob):
            group.start_soon(chat_app.app, server.scope, server.receive, server.send)
            await server.until(lambda server: any('"here"' in text for text in server.texts))
        await anyio.wait_all_tasks_blocked()  # both of them wait for a message
        bob._gone = True  # the server knows that he has gone, and has not told it yet
        ann.say('{"type": "say", "text": "hello"}')
        await ann.until(lambda server: any('"said"' in text for text in server.texts))
        bob.leave(1001)
        await ann.until(lambda server: any('"left":["bob"]' in text for text in server.texts))
        ann.leave()
    assert not ann.choked
    assert not bob.choked


def publish_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    publish = channels().publish

    async def failing(topic: str, message: Any, **options: Any) -> Any:
        if getattr(message, "text", "") == "fail":
            raise error
        return await publish(topic, message, **options)

    monkeypatch.setattr(channels(), "publish", failing)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (RuntimeError("a bug"), 1011, "internal error"),
        (BrokerError("it has gone"), 1013, "try again later"),
    ],
)
def test_a_member_whose_handler_raised_has_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, reason: str
) -> None:
    publish_fails(monkeypatch, error)
    with TestClient(chat_app.app, raise_server_exceptions=False) as client, member(client, "lobby", "ann") as ann:
        with member(client, "lobby", "bob", "ann") as bob:
            assert ann.receive_json() == change("lobby", joined="bob")
            bob.send_json(Say("fail"))
            list(bob)
            bob.expect_close(code, reason=reason)
            assert ann.receive_json() == change("lobby", left="bob")
        with member(client, "lobby", "bob", "ann"):
            assert ann.receive_json() == change("lobby", joined="bob")


@pytest.mark.anyio
@pytest.mark.usefixtures("emptied")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_all_have_left_when_the_server_stops(shape: Shape) -> None:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncTestClient(chat_app.app, server=shape))
        for name in ("ann", "bob", "eve"):
            ws = client.websocket_connect("/rooms/lobby", cookies={"name": name})
            await stack.enter_async_context(ws)
        await client.stop_server()


# The slow


@pytest.mark.anyio
@pytest.mark.usefixtures("emptied")
async def test_who_does_not_read_holds_up_nobody_is_closed_and_comes_back_to_where_it_was() -> None:
    most = chat_app.app.limits.outbox_messages
    async with (
        AsyncTestClient(chat_app.app) as client,
        client.websocket_connect("/rooms/lobby", cookies={"name": "ann"}) as ann,
        client.websocket_connect("/rooms/lobby", cookies={"name": "slow"}) as slow,
    ):
        await until(slow, is_here)
        await slow.stall(0)
        # One is on its way, as many wait as may, and one more closes.
        texts = [str(number) for number in range(most + 2)]
        for text in texts:
            await ann.send_json(Say(text))
            await until(ann, is_text(text))
        await slow.resume()
        read = [json.loads(message) async for message in slow]
        await slow.expect_close(1013, reason="slow consumer")
        assert [said(frame)[1] for frame in read if frame["type"] == "message"] == texts[: len(read)]
        assert 0 < len(read) < 3
        # What was missed is more than the history has: the client is told.
        path = f"/rooms/lobby?since={quote(read[-1]['position'])}"
        async with client.websocket_connect(path, cookies={"name": "slow"}) as again:
            joined, *last = await until(again, is_text(texts[-1]))
            assert (joined["recovered"], joined["reason"]) == (False, "trimmed")
            assert [said(frame)[1] for frame in last] == texts[-100:]


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
    loaded += re.findall(r' from "\./(.+)";', client.get("/chat.js").text)
    assert loaded == ["chat.css", "chat.js", "client.js"]
    kinds = [client.get(f"/{file}").headers["content-type"] for file in loaded]
    assert kinds == ["text/css; charset=utf-8", *["text/javascript; charset=utf-8"] * 2]


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_but_its_scripts(client: TestClient) -> None:
    page = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[of] for of in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script[^>]*>[^<]", page.text)
    scripts = client.get("/chat.js").text + client.get("/client.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", scripts)
    style = client.get("/chat.css").text
    for text in (page.text.replace("http://www.w3.org/2000/svg", ""), scripts, style):
        assert not re.search(r"(https?|wss?)://", text)
    assert not re.search(r"@import|\burl\(", style)


def test_the_page_knows_every_message_of_the_server_its_limits_and_its_tokens(client: TestClient) -> None:
    script, page = client.get("/chat.js").text, client.get("/").text
    for tag in ("here", "typing", "error"):
        assert re.search(rf"^  {tag}\(", script, re.MULTILINE), tag
    for field in Said.__struct_fields__:
        assert re.search(rf"function said\(.*\b{field}\b.*\) {{", script), field
    assert [int(limit) for limit in re.findall(r'maxlength="(\d+)"', page)] == [24, 24, 1000]
    assert f'["chat", `{PREFIX}${{base64url(name)}}`]' in script


# client.js


@pytest.fixture(scope="module")
def script() -> str:
    """The module as an app serves it."""
    app = App()
    app.get("/client.js")(client_module)
    with TestClient(app) as client:
        answer = client.get("/client.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-cache", "nosniff")
    return answer.text


def test_the_module_of_a_page_is_a_file_of_the_package_and_needs_no_other(script: str) -> None:
    assert script == (ROOT / "asgiws" / "channels" / "client.js").read_text("utf-8")
    assert not re.search(r"^\s*import |require\(", script, re.MULTILINE)
    assert re.findall(r"^export (?:async )?function (\w+)", script, re.MULTILINE) == ["isFinal", "connect"]


def test_the_module_of_a_page_knows_every_frame_of_a_member(script: str) -> None:
    joined = _joined_frame("a", Joined(Position("e", 1), recovered=False, reason="epoch"))
    publication = Publication("a", Position("e", 1), "bytes", b"\x00")
    frames = [json.loads(text) for text in (joined, publication.envelope, presence_change("a", {}, ["b"]).data)]
    frames.append(json.loads(msgspec.json.encode(Lost("a", 1, "gap"))))
    assert {frame["type"] for frame in frames} == set(re.findall(r'type === "(\w+)"', script))
    for frame in frames:
        for field in frame:
            assert re.search(rf"\b{field}\b", script), field


def test_the_comment_of_the_module_tells_of_every_option(script: str) -> None:
    told = re.findall(r"^//   (\w+) {2,}", script.partition("// Gives an object")[0], re.MULTILINE)
    taken = re.findall(r"const \{ (.+?) \} = options;", script)
    names = [name.strip() for part in taken for name in re.split(r",(?![^\[{]*[\]}])", part)]
    assert told == ["url", *[name.partition(" ")[0] for name in names]]


@pytest.mark.parametrize(
    "function", [Channels.__init__, Channels.publish, Channels.join, Channels.subscribe, TopicOptions.__init__]
)
def test_an_example_in_the_document_of_channels_has_every_option(function: Callable[..., Any]) -> None:
    text = (ROOT / "docs" / "channels.md").read_text("utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    optional = [one.name for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    shown = {name: re.search(rf"\b{name}=", code) or f"`Channels({name}=" in text for name in optional}
    assert [name for name, found in shown.items() if not found] == []


def test_the_document_of_channels_has_every_option_of_the_module(script: str) -> None:
    text = (ROOT / "docs" / "channels.md").read_text("utf-8")
    section = text.partition("### In a page")[2].partition("\n### ")[0]
    told = re.findall(r"^//   (\w+) {2,}", script.partition("// Gives an object")[0], re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == told[1:]


# chat, as a process


@contextlib.contextmanager
def real_member(chat: Example, room: str, name: str, *others: str) -> Iterator[ClientConnection]:
    """A real client in a room where these others are already."""
    with chat.connect(f"/rooms/{room}", name) as ws:
        while (frame := receive(ws))["type"] != "here":
            """What was said before, and that it came."""
        assert frame["users"] == sorted([name, *others])
        yield ws


def say(ws: ClientConnection, text: str) -> None:
    ws.send(json.dumps({"type": "say", "text": text}))


def test_real_clients_talk_with_each_other_one_as_the_page_does_and_one_with_a_cookie(chat: Example) -> None:
    origin = f"http://{LOOPBACK}:{chat.port}"
    with chat.connect("/rooms/talk", subprotocols=offer("नीलम"), origin=origin) as page:
        assert page.subprotocol == "chat"
        assert [receive(page)["type"] for _ in range(3)] == ["joined", "presence", "here"]
        with real_member(chat, "talk", "bob", "नीलम") as bob:
            assert receive(page) == change("talk", joined="bob")
            say(bob, "hello")
            assert said(receive(page)) == said(receive(bob)) == ("bob", "hello")
        assert receive(page) == change("talk", left="bob")


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
        assert [receive(ann), receive(ann)] == [change("big", joined="bob"), change("big", left="bob")]


def test_a_client_whose_connection_breaks_has_left(chat: Example) -> None:
    with real_member(chat, "break", "ann") as ann:
        with chat.deaf("/rooms/break", "bob"):
            assert receive(ann) == change("break", joined="bob")
        assert receive(ann) == change("break", left="bob")


# chat, in two processes


class Page:
    """What the page of the chat does, in a thread: connects again, resumes, and says again what has not come back.

    Args:
        example: Where the chat runs.
        name: The name of the member.
        texts: What it says, one after the other.
        wanted: How many different messages it waits for, before it goes.

    Attributes:
        shown: The ids in the order in which they came for the first time.
        positions: All that came.
        joins: The frames with which each connection began.
    """

    def __init__(self, example: Example, name: str, texts: int, wanted: int) -> None:
        self.shown: dict[str, None] = {}
        self.positions: list[str] = []
        self.joins: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._example = example
        self._name = name
        self._unconfirmed = [f"{name}-{number}" for number in range(texts)]
        self._wanted = wanted
        self._since = ""
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        end = time.monotonic() + 3 * START
        while len(self.shown) < self._wanted and time.monotonic() < end:
            query = f"?topic=room%3Aload&since={quote(self._since)}" if self._since else ""
            with (
                contextlib.suppress(OSError, ConnectionClosed, InvalidMessage, InvalidStatus),
                self._example.connect(f"/rooms/load{query}", self._name) as ws,
            ):
                self._talk(ws)
            time.sleep(0.05)  # the page, too, waits before it tries again

    def _talk(self, ws: ClientConnection) -> None:
        asked = None
        while len(self.shown) < self._wanted:
            frame = receive(ws)
            if frame["type"] == "joined":
                self.joins.append(frame)
                self._since = frame["position"]
            elif frame["type"] == "message":
                self._since = frame["position"]
                self.positions.append(self._since)
                self.shown[frame["data"]["id"]] = None
                if frame["data"]["id"] in self._unconfirmed:
                    self._unconfirmed.remove(frame["data"]["id"])
            elif frame["type"] in ("lost", "error"):
                self.complaints.append(str(frame))
            if self.joins and self._unconfirmed and asked != self._unconfirmed[0]:
                asked = self._unconfirmed[0]
                ws.send(json.dumps({"type": "say", "text": asked, "id": asked}))


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def test_two_processes_on_one_port_are_one_chat_and_pages_resume_when_both_are_killed(valkey: Valkey) -> None:
    members, texts = 5, 40
    with running("chat", "--redis", valkey.url) as example:
        pages = [Page(example, f"member{number}", texts, members * texts) for number in range(members)]
        for share in (0.2, 0.6):
            wait_for(lambda share=share: len(pages[0].shown) >= share * members * texts)  # type: ignore[misc]
            example.kill()
            example.start()
        for page in pages:
            page.thread.join(3 * START)
        errors = example.end()
    for page in pages:
        assert page.complaints == []
        assert len(page.joins) >= 3
        assert [joined.get("recovered") for joined in page.joins] == [None, *[True] * (len(page.joins) - 1)]
        # Each page has seen each message, all in the same order, and no publication twice.
        assert list(page.shown) == list(pages[0].shown)
        assert len(page.shown) == members * texts
        assert page.positions == pages[0].positions[: len(page.positions)]
    assert len(set(pages[0].positions)) == len(pages[0].positions)
    assert "Traceback" not in errors


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for something that threads do."""
    end = time.monotonic() + START
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_chat_without_its_broker_is_one_line_and_exit_code_1() -> None:
    for command in (["chat", "--redis"], ["publish_from_outside"]):
        rest = ["room:lobby", "hello"] if command[0] != "chat" else []
        done = run("-m", f"examples.{command[0]}", *command[1:], f"redis://{LOOPBACK}:{free_port()}", *rest)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"the broker cannot be reached.*\n", done.stderr)


# publish_from_outside


def processes_with(valkey: Valkey, topic: str) -> int:
    """How many processes watch a topic."""
    channels = valkey.command("PUBSUB", "CHANNELS", f"*{topic}*")
    found = valkey.command("PUBSUB", "NUMSUB", *channels)
    return max((int(count) for count in found[1::2]), default=0)


def test_a_script_publishes_to_the_members_in_both_processes_and_prints_the_position(valkey: Valkey) -> None:
    with running("chat", "--redis", valkey.url) as example, contextlib.ExitStack() as stack:
        names: list[str] = []
        members: list[ClientConnection] = []
        while processes_with(valkey, "room:outside") < 2:  # the system gives a new connection to either of them
            assert len(names) < 100
            members.append(stack.enter_context(real_member(example, "outside", f"m{len(names):02}", *names)))
            names.append(f"m{len(names):02}")
        line = ("-m", "examples.publish_from_outside", valkey.url, "room:outside")
        done = run(*line, "The canteen is open.", "--user", "the canteen")
        assert (done.returncode, done.stderr) == (0, "")
        for ws in members:
            while (frame := receive(ws))["type"] == "presence":
                """Who came after it."""
            assert said(frame) == ("the canteen", "The canteen is open.")
            assert done.stdout == f"{frame['position']}\n"
        with example.connect("/rooms/outside", "late") as late:  # it is in the history
            assert [receive(late)["type"], said(receive(late))[1]] == ["joined", "The canteen is open."]


# ticker


@pytest.mark.anyio
async def test_the_ticker_sends_a_slow_client_only_the_last_price_of_each_symbol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ticker_example, "trade", _no_trade)
    app = ticker_example.app
    assert app.channels is not None
    async with AsyncTestClient(app) as client, client.websocket_connect("/prices") as slow:
        assert (await slow.receive_json())["type"] == "joined"
        await slow.stall(0)
        for price in range(1, 1001):
            for symbol in ticker_example.SYMBOLS:
                await app.channels.publish("prices", ticker_example.Price(symbol, price))
        await slow.resume()
        # What was on its way when it could take no more, and then one price of each symbol, the last one.
        first = await slow.receive_json()
        prices = [(await slow.receive_json())["data"] for _ in ticker_example.SYMBOLS]
        assert first["data"] == {"symbol": ticker_example.SYMBOLS[0], "price": 1.0}
        assert {price["symbol"]: price["price"] for price in prices} == dict.fromkeys(ticker_example.SYMBOLS, 1000.0)
        await slow.expect_no_message()


async def _no_trade(channels: Channels) -> None:
    """Nobody trades."""


def test_the_ticker_has_a_page_that_loads_the_module_and_prices_that_come_by_themselves(ticker: Example) -> None:
    page = ticker.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'from "./client.js"' in page.text
    assert ticker.get("/client.js").headers["content-type"] == "text/javascript; charset=utf-8"
    with ticker.connect("/prices") as ws:
        assert receive(ws)["type"] == "joined"
        # More than the history has. Who leaves has read nearly all: a client with much to read is slow to close.
        prices = [receive(ws)["data"] for _ in range(110)]
    assert {price["symbol"] for price in prices} == set(ticker_example.SYMBOLS)
    assert all(price["price"] > 0 for price in prices)


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
