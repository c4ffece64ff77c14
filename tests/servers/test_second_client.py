"""Part of the contract with another client, httpx-ws, which shares no code with the first: on every server."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from httpx_ws import WebSocketDisconnect, WebSocketSession, WebSocketUpgradeError, connect_ws

from tests.apps import SECRET
from tests.servers import DEADLINE
from tests.servers.clients import Server


def _read(response: httpx.Response) -> None:
    """Read the body of a denial, which the client leaves unread."""
    if response.status_code != 101:
        response.read()


@contextlib.contextmanager
def session(server: Server, path: str, subprotocols: Sequence[str] = (), **headers: str) -> Iterator[WebSocketSession]:
    """A client of the server."""
    ws: WebSocketSession
    with (
        httpx.Client(trust_env=False, timeout=DEADLINE, event_hooks={"response": [_read]}) as client,
        connect_ws(
            f"ws://127.0.0.1:{server.process.port}{path}", client, headers=headers,
            subprotocols=list(subprotocols) or None, keepalive_ping_interval_seconds=None,
        ) as ws,
    ):  # fmt: skip
        yield ws


def refused(server: Server, path: str, **headers: str) -> httpx.Response:
    """The answer to a handshake that is refused."""
    with pytest.raises(WebSocketUpgradeError) as upgrade, session(server, path, **headers):
        pass
    return upgrade.value.response


def closing(ws: WebSocketSession) -> tuple[int, str]:
    """Code and reason of the server's close, which is the next frame."""
    with pytest.raises(WebSocketDisconnect) as closed:
        ws.receive(DEADLINE)
    return closed.value.code, closed.value.reason or ""


def test_a_handshake_and_messages_of_each_kind(server: Server) -> None:
    with session(server, "/raw") as ws:
        assert ws.response is not None
        assert ws.response.status_code == 101
        assert ws.response.headers.get("x-answer") == ("42" if server.can.accept_headers else None)
        ws.send_text("é€😀")
        assert ws.receive_text(DEADLINE) == "é€😀"
        ws.send_bytes(b"\x00\xff")
        assert ws.receive_bytes(DEADLINE) == b"\x00\xff"
        ws.send_json({"a": [1, None]})
        assert ws.receive_json(DEADLINE) == {"a": [1, None]}
        ws.send_text("")
        ws.send_bytes(b"")
        ws.send_text("end")
        if server.can.empty_messages:
            assert (ws.receive_text(DEADLINE), ws.receive_bytes(DEADLINE)) == ("", b"")
        assert ws.receive_text(DEADLINE) == "end"


def test_a_ping_is_answered(server: Server) -> None:
    with session(server, "/raw") as ws:
        assert ws.ping(b"there?").wait(DEADLINE)


def test_path_query_and_headers_are_parameters(server: Server) -> None:
    with session(server, "/echo/caf%C3%A9/2?lang=fr%20CA") as ws:
        ws.send_text("ab")
        assert ws.receive_text(DEADLINE) == "café/fr CA: abab"
    with session(server, "/parameters/5?limit=3", **{"X-Token": "t"}) as ws:
        assert ws.receive_json(DEADLINE) == [5, 3, "t"]
        assert closing(ws) == (1000, "")


def test_subprotocols(server: Server) -> None:
    with session(server, "/raw", ["one", "two"]) as ws:
        assert ws.subprotocol == "two"
    with session(server, "/raw") as ws:
        assert ws.subprotocol is None


@pytest.mark.parametrize(
    ("path", "status", "detail", "headers"),
    [
        ("/nowhere", 404, "Not Found", {}),
        ("/raise/http/before", 401, "who are you", {"www-authenticate": "Basic"}),
        ("/raise/http-detail/before", 422, {"field": ["x"]}, {}),
        ("/returns/before", 403, "Forbidden", {}),
    ],
)
def test_a_denial(server: Server, path: str, status: int, detail: Any, headers: dict[str, str]) -> None:
    answer = refused(server, path)
    assert answer.status_code == server.status(status)
    if server.can.denials:
        assert answer.json() == {"detail": detail}
        assert answer.headers["content-type"] == "application/json"
        assert {name: answer.headers[name] for name in headers} == headers


def test_an_origin_that_is_refused(server: Server) -> None:
    answer = refused(server, "/raw", Origin="https://evil.example")
    assert answer.status_code == 403
    assert ("https://evil.example" in answer.text) == server.can.denials


def test_an_exception_before_accept(server: Server) -> None:
    answer = refused(server, "/raise/value/before")
    assert answer.status_code == server.status(500)
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/returns/after", 1000, ""),
        ("/close/1000?reason=done", 1000, "done"),
        ("/close/1013?reason=later", 1013, "later"),
        ("/close/4001?reason=%C3%A9t%C3%A9", 4001, "été"),
        ("/close/3000?reason=" + "x" * 200, 3000, "x" * 123),
        ("/raise/http/after", 4401, "who are you"),
        ("/raise/websocket-1013/after", 1013, "later"),
        ("/raise/value/after", 1011, "internal error"),
    ],
)
def test_the_applications_close(server: Server, path: str, code: int, reason: str) -> None:
    with session(server, path) as ws:
        assert closing(ws) == (server.code(code), server.reason(reason))


def test_a_message_of_the_wrong_kind(server: Server) -> None:
    with session(server, "/receive/text") as ws:
        ws.send_bytes(b"x")
        assert closing(ws)[0] == server.code(1003)


def test_the_clients_close(server: Server) -> None:
    with session(server, "/leave") as ws:
        ws.close(4000, "bye")
    # This client cuts the connection right behind its close.
    told = 4000 if server.can.tells_code else 1006
    server.wait_for(f"left with {told} {'bye' if server.can.tells_reason else ''!r}")
    assert "Traceback" not in server.log


def test_a_big_message(server: Server) -> None:
    with session(server, "/raw") as ws:
        for message in ("x" * 1_000_000, "é" * 400_000):
            ws.send_text(message)
            assert ws.receive_text(DEADLINE) == message


def test_a_message_above_the_limit_of_the_application(server: Server) -> None:
    with session(server, "/typed") as ws:
        ws.send_text('"' + "x" * 1_048_573 + '"')  # as much as is let through
        assert ws.receive_json(DEADLINE)["type"] == "error"
        if server.can.largest > 1_048_576:
            ws.send_text("x" * 1_048_577)
            assert closing(ws)[0] == server.code(1009)
