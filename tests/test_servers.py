"""A smoke set on every real server. What a server cannot do is asserted as what it does instead."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.apps import SECRET
from tests.servers import DEADLINE, ServerProcess, daphne, granian, hypercorn, running, uvicorn

APP = "tests.apps:app"
ROOT = ("--root-path", "/api")

COMMANDS = {
    "uvicorn": uvicorn(APP, *ROOT),
    "uvicorn-wsproto": uvicorn(APP, *ROOT, ws="wsproto"),
    "hypercorn": hypercorn(APP, *ROOT),
    "hypercorn-trio": hypercorn(APP, *ROOT, worker="trio"),
    "daphne": daphne(APP, *ROOT),
    "granian": granian(APP, "--url-path-prefix", "/api"),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, ServerProcess]]:
    with running(**COMMANDS) as processes:
        yield processes


class Server:
    """A running server and its client.

    Attributes:
        name: Which one it is.
        process: Its process.
    """

    def __init__(self, name: str, process: ServerProcess) -> None:
        self.name = name
        self.process = process
        self.mark = process.mark

    def connect(
        self,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        origin: str | None = None,
        subprotocols: Sequence[str] | None = None,
    ) -> ClientConnection:
        """A client of the server."""
        return connect(
            f"ws://127.0.0.1:{self.process.port}{path}",
            additional_headers=headers,
            origin=Origin(origin) if origin else None,
            subprotocols=[Subprotocol(name) for name in subprotocols] if subprotocols else None,
            open_timeout=DEADLINE,
            proxy=None,
        )

    def refused(self, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and body of a handshake that is refused."""
        with pytest.raises(InvalidStatus) as refused, self.connect(path, **options):
            pass
        return refused.value.response.status_code, bytes(refused.value.response.body)

    def get(self, path: str) -> httpx.Response:
        """The answer to a request."""
        return httpx.get(f"http://127.0.0.1:{self.process.port}{path}", trust_env=False, timeout=DEADLINE)

    def wait_for(self, text: str) -> None:
        """Wait until the server's process has written a text since the test began."""
        self.process.wait_for(text, self.mark)

    def wait_for_both_reports(self, secrets: int) -> None:
        """Wait until asgiws has logged an exception, and the server too: it was raised again. Nothing comes later."""
        self.process.wait_for("Traceback (most recent call last)", self.mark, times=2)
        self.process.wait_for(SECRET, self.mark, times=secrets)

    def denial(self, status: int, body: Any) -> tuple[int, Any]:
        """What a client sees of a denial: daphne sends a 403 of its own."""
        return (403, None) if self.name == "daphne" else (status, body)

    def code(self, code: int) -> int:
        """What a client sees of a close code: daphne sends no 10xx but 1000."""
        return code + 3000 if self.name == "daphne" and 1000 < code < 3000 else code


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, servers: dict[str, ServerProcess]) -> Iterator[Server]:
    if servers[request.param].died_of_its_race:  # in a test before, whose report tells
        servers[request.param].stop()
        servers[request.param] = ServerProcess(COMMANDS[request.param]).wait_until_ready()
    chosen = Server(request.param, servers[request.param])
    yield chosen
    print(chosen.process.log(chosen.mark))  # noqa: T201 - pytest shows it with a failure
    assert chosen.process.process.poll() is None or chosen.process.died_of_its_race, "the server has died"


def closing(ws: ClientConnection) -> tuple[int, str]:
    """Code and reason of the server's close, after the last message."""
    with pytest.raises(ConnectionClosed) as closed:
        ws.recv(DEADLINE)
    assert closed.value.rcvd is not None, "the connection broke"
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_text_and_bytes_come_back_as_they_went(server: Server) -> None:
    with server.connect("/raw") as ws:
        for message in ("hello", b"\x00\xff", "é€😀", "x" * 100_000, b"x" * 100_000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message


def test_empty_messages_come_back_too(server: Server) -> None:
    # T21, T22
    with server.connect("/raw") as ws:
        ws.send("")
        ws.send(b"")
        ws.send("end")
        # daphne drops what is empty
        got = [ws.recv(DEADLINE) for _ in range(1 if server.name == "daphne" else 3)]
    assert got == (["end"] if server.name == "daphne" else ["", b"", "end"])


def test_a_text_in_fragments_comes_back_whole(server: Server) -> None:
    # P25
    with server.connect("/raw") as ws:
        ws.send(["h", "é", "😀"])
        assert ws.recv(DEADLINE) == "hé😀"


def test_path_and_query_parameters(server: Server) -> None:
    with server.connect("/echo/caf%C3%A9/2?lang=fr%20CA") as ws:
        ws.send("ab")
        assert ws.recv(DEADLINE) == "café/fr CA: abab"


def test_headers_are_parameters(server: Server) -> None:
    with server.connect("/parameters/5?limit=3", headers={"X-Token": "t"}) as ws:
        assert json.loads(ws.recv(DEADLINE)) == [5, 3, "t"]
        assert closing(ws) == (1000, "")


def test_parameters_that_do_not_validate_refuse_the_handshake(server: Server) -> None:
    assert server.refused("/parameters/5?limit=x")[0] == 403


def test_the_root_path(server: Server) -> None:
    # P11, T34: uvicorn puts it before the path, the others do not
    with server.connect("/scope?a=1&a=%C3%A9") as ws:
        told = json.loads(ws.recv(DEADLINE))
    prepends = server.name.startswith("uvicorn")
    assert told["root_path"] == "/api"
    assert told["path"] == ("/api/scope" if prepends else "/scope")
    assert told["query"] == [["a", "1"], ["a", "é"]]
    assert told["client"][0] == "127.0.0.1"
    assert isinstance(told["client"][1], int)
    assert told["url"] == f"ws://127.0.0.1:{server.process.port}/api/scope?a=1&a=%C3%A9"
    if prepends:
        return
    with server.connect("/api/scope") as ws:  # as a proxy would ask that does not cut the prefix off
        assert json.loads(ws.recv(DEADLINE))["path"] == "/api/scope"


def test_requests_of_http(server: Server) -> None:
    answer = server.get("/health")
    assert (answer.status_code, answer.json()["root_path"]) == (200, "/api")
    assert answer.headers["content-type"] == "application/json"
    assert (server.get("/nowhere").status_code, server.get("/nowhere").json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/nowhere", 404, "Not Found"),
        ("/health", 404, "Not Found"),
        ("/raise/http/before", 401, "who are you"),
        ("/raise/one/before", 401, "who are you"),
        ("/task-group/before", 403, "not in here"),
        ("/returns/before", 403, "Forbidden"),
    ],
)
def test_a_denial(server: Server, path: str, status: int, detail: str) -> None:
    seen, body = server.refused(path)
    assert (seen, json.loads(body)["detail"] if server.name != "daphne" else None) == server.denial(status, detail)


def test_an_origin_that_is_refused(server: Server) -> None:
    # S1
    status, body = server.refused("/raw", origin="https://evil.example")
    assert status == 403
    assert b"https://evil.example" in body or server.name == "daphne"
    server.wait_for("refused a WebSocket from origin 'https://evil.example'")
    with server.connect("/raw", origin="https://good.example") as ws:
        ws.send("x")
        assert ws.recv(DEADLINE) == "x"


def test_a_websocket_exception_before_accept_is_a_403(server: Server) -> None:
    assert server.refused("/raise/websocket/before")[0] == 403


def test_an_exception_before_accept_is_a_500_without_its_text(server: Server) -> None:
    status, body = server.refused("/raise/value/before")
    assert status == server.denial(500, None)[0]
    assert SECRET.encode() not in body
    server.wait_for("websocket /raise/<what>/before (apps.raise_before, tests/apps.py:")
    server.wait_for_both_reports(2)


@pytest.mark.parametrize("what", ["value", "os", "runtime", "several"])
def test_an_exception_after_accept_is_1011_without_its_text(server: Server, what: str) -> None:
    # T16, P20
    with server.connect(f"/raise/{what}/after") as ws:
        assert closing(ws) == (server.code(1011), reason(server, "internal error"))
    server.wait_for("websocket /raise/<what>/after (apps.raise_after, tests/apps.py:")
    server.wait_for_both_reports(3 if what == "several" else 2)
    assert len(re.findall(r"connection [0-9a-f]{16} failed", server.process.log(server.mark))) == 1


def reason(server: Server, text: str) -> str:
    """What a client sees of a reason: daphne sends none."""
    return "" if server.name == "daphne" else text


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/returns/after", 1000, ""),
        ("/close/1000?reason=done", 1000, "done"),
        ("/close/1013?reason=later", 1013, "later"),
        ("/close/4001?reason=%C3%A9t%C3%A9", 4001, "été"),
        ("/close/3000?reason=" + "x" * 200, 3000, "x" * 123),
        ("/raise/http/after", 4401, "who are you"),
        ("/raise/websocket/after", 4401, "who are you"),
        ("/raise/websocket-1013/after", 1013, "later"),
        ("/raise/overridden/after", 4321, "overridden"),
        ("/task-group/after", 4403, "not in here"),
        ("/raise/disconnect/after", 1000, ""),
    ],
)
def test_the_applications_close(server: Server, path: str, code: int, text: str) -> None:
    # T14, P22
    with server.connect(path) as ws:
        assert closing(ws) == (server.code(code), reason(server, text))


def test_the_clients_close(server: Server) -> None:
    # P23
    with server.connect("/leave") as ws:
        ws.send("first")
        ws.close(4000, "bye")
    told = {
        "uvicorn": "left with 4000 'bye'",
        "uvicorn-wsproto": "left with 4000 'bye'",
        "hypercorn": "left with 1006 ''",
        "hypercorn-trio": "left with 1006 ''",
        "daphne": "left with 4000 ''",
        "granian": "left with 4000 ''",
    }
    server.wait_for(told[server.name])
    assert "Traceback" not in server.process.log(server.mark)


def test_a_handler_ends_when_its_client_leaves(server: Server) -> None:
    with server.connect("/echo/leaving/1") as ws:
        ws.send("x")
        assert ws.recv(DEADLINE) == "leaving/en: x"
    server.wait_for("echo leaving ended")
    assert "Traceback" not in server.process.log(server.mark)


def test_a_handler_ends_when_its_client_breaks_off(server: Server) -> None:
    # T6
    with server.connect("/echo/broken/1") as ws:
        ws.send("x")
        assert ws.recv(DEADLINE) == "broken/en: x"
        ws.socket.close()
    server.wait_for("echo broken ended")
    assert "Traceback" not in server.process.log(server.mark)


def test_a_stream_goes_out_and_stops_when_its_client_leaves(server: Server) -> None:
    # T39
    with server.connect("/stream/items") as ws:
        # daphne drops the empty message
        count = 5 if server.name == "daphne" else 6
        got = [ws.recv(DEADLINE) for _ in range(count)]
        assert closing(ws) == (1000, "")
    assert [text for text in got if text] == ["text", b"bytes", '{"a":1}', '{"type":"said","text":"struct"}', "end"]
    with server.connect("/stream/endless") as ws:
        assert ws.recv(DEADLINE) == "first"
    server.wait_for("the stream is stopped")
    assert "Traceback" not in server.process.log(server.mark)


def test_typed_messages(server: Server) -> None:
    with server.connect("/typed") as ws:
        ws.send('{"type": "say", "text": "hi"}')
        assert json.loads(ws.recv(DEADLINE)) == {"type": "said", "text": "hi"}
        ws.send(b'{"type": "move", "x": 1, "y": 2}')
        assert json.loads(ws.recv(DEADLINE)) == {"type": "said", "text": "1,2"}
        for _ in range(3):
            ws.send('{"type": "move", "x": "1", "y": 2}')
            frame = json.loads(ws.recv(DEADLINE))
            assert (frame["type"], frame["path"]) == ("error", "$.x")
        code, text = closing(ws)
    assert code == server.code(1007)
    assert text == reason(server, "expected `int`, got `str` - at `$.x` in message 'move'")


def test_a_message_of_the_wrong_kind(server: Server) -> None:
    with server.connect("/receive/text") as ws:
        ws.send(b"x")
        assert closing(ws)[0] == server.code(1003)


def test_a_subprotocol_and_a_header_of_accept(server: Server) -> None:
    with server.connect("/raw", subprotocols=["one", "two"]) as ws:
        assert ws.subprotocol == "two"
        assert ws.response is not None
        # daphne and granian drop the headers of accept
        assert ws.response.headers.get("x-answer") == (None if server.name in ("daphne", "granian") else "42")
    with server.connect("/raw") as ws:
        assert ws.subprotocol is None


def test_what_the_state_does_not_allow(server: Server) -> None:
    with server.connect("/state") as ws:
        assert "not accepted yet" in str(ws.recv(DEADLINE))
        assert closing(ws)[0] == 4000
    server.wait_for("cannot receive: this WebSocket is closed (you closed it with 4000)")


def test_a_close_after_the_clients_close_is_no_error(server: Server) -> None:
    # T17
    with server.connect("/close-after-client"):
        pass
    server.wait_for("closed after the client")
    assert "Traceback" not in server.process.log(server.mark)


@pytest.mark.parametrize("offered", ["no token", "a,,b", "é", "x" * 5000, '"quoted"', ",", " "])
def test_a_subprotocol_that_is_none_does_no_harm(server: Server, offered: str) -> None:
    # S10: the servers refuse some of them themselves; asgiws accepts none of the others
    if server.name == "hypercorn-trio" and not offered.isascii():
        return  # S26: this ends the server itself before it asks the application
    with contextlib.suppress(Exception), server.connect("/raw", headers={"Sec-WebSocket-Protocol": offered}):
        pass  # not a path that closes by itself: hypercorn-trio ends when both sides close at once
    with server.connect("/returns/after") as ws:
        assert closing(ws) == (1000, "")


def test_a_path_of_odd_bytes_does_no_harm(server: Server) -> None:
    for path in ("/%FF", "/echo/%2F/1", "/echo/%00/1", "//", "/echo//1", "/../raw", "/echo/a/" + "9" * 5000):
        with contextlib.suppress(InvalidStatus), server.connect(path):
            pass
    with server.connect("/returns/after") as ws:
        assert closing(ws) == (1000, "")


@pytest.mark.parametrize("name", ["hypercorn", "hypercorn-trio"])
def test_a_server_that_cancels_its_handlers_lets_them_say_1012(name: str) -> None:
    # P20, P27
    worker = "trio" if name == "hypercorn-trio" else "asyncio"
    with running(stopping=hypercorn(APP, "--graceful-timeout", "0", worker=worker)) as processes:
        process = processes["stopping"]
        with Server(name, process).connect("/raw") as ws:
            ws.send("x")
            assert ws.recv(DEADLINE) == "x"
            process.process.terminate()
            if name == "hypercorn" and sys.version_info >= (3, 12):
                # Its asyncio worker waits for the last client before it cancels anything: Server.wait_closed() of
                # Python 3.12 does what it says.
                ws.send("y")
                assert ws.recv(DEADLINE) == "y"
                ws.close()
                assert process.process.wait(DEADLINE) == 0
                return
            assert closing(ws) == (1012, "the server stops")
        assert process.stop() == 0
