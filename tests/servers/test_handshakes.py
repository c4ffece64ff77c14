"""Handshakes and what comes with them, on every server."""

import contextlib
import json
import signal
import subprocess

import pytest
from websockets.exceptions import InvalidStatus

from tests.servers import DEADLINE, hypercorn, start, uvicorn
from tests.servers.clients import Server, answer, closing, handshake, status

NOT_ASCII = "Sec-WebSocket-Protocol: \u00e9"


def test_path_and_query_parameters(server: Server) -> None:
    with server.connect("/echo/caf%C3%A9/2?lang=fr%20CA") as ws:
        ws.send("ab")
        assert ws.recv(DEADLINE) == "café/fr CA: abab"


def test_the_root_path(server: Server) -> None:
    # P11, T34
    with server.connect("/scope?a=1&a=%C3%A9") as ws:
        told = json.loads(ws.recv(DEADLINE))
    assert told["root_path"] == "/api"
    assert told["path"] == ("/api/scope" if server.can.root_path_first else "/scope")
    assert told["query"] == [["a", "1"], ["a", "é"]]
    assert told["client"][0] == "127.0.0.1"
    assert isinstance(told["client"][1], int)
    assert told["url"] == f"ws://127.0.0.1:{server.process.port}/api/scope?a=1&a=%C3%A9"
    if server.can.root_path_first:
        return
    with server.connect("/api/scope") as ws:  # as a proxy would ask that does not cut the prefix off
        assert json.loads(ws.recv(DEADLINE))["path"] == "/api/scope"


def test_requests_of_http(server: Server) -> None:
    got = server.get("/health")
    assert (got.status_code, got.json()["root_path"]) == (200, "/api")
    assert got.headers["content-type"] == "application/json"
    assert (server.get("/nowhere").status_code, server.get("/nowhere").json()) == (404, {"detail": "Not Found"})


def test_a_server_goes_on_after_a_denial(server: Server) -> None:
    for _ in range(3):
        assert server.refused("/nowhere").status_code == server.status(404)
        with server.connect("/returns/after") as ws:
            assert closing(ws) == (1000, "")


def test_an_origin_that_is_allowed(server: Server) -> None:
    # S1
    with server.connect("/raw", origin="https://good.example") as ws:
        ws.send("x")
        assert ws.recv(DEADLINE) == "x"


def test_a_subprotocol_and_a_header_of_accept(server: Server) -> None:
    with server.connect("/raw", subprotocols=["one", "two"]) as ws:
        assert ws.subprotocol == "two"
        assert ws.response is not None
        assert ws.response.headers.get("x-answer") == ("42" if server.can.accept_headers else None)
    with server.connect("/raw") as ws:
        assert ws.subprotocol is None


def test_subprotocols_in_two_lines(server: Server) -> None:
    lines = ("Sec-WebSocket-Protocol: one", "Sec-WebSocket-Protocol: two")
    with handshake(server.process, "/scope", *lines) as raw:
        assert " 101 " in answer(raw)
    server.wait_for(f"offered: {['one', 'two'] if server.can.all_subprotocols else ['two']}")


def test_compression_is_agreed_to_or_not(server: Server) -> None:
    with server.connect("/raw") as ws:
        assert ws.response is not None
        agreed = ws.response.headers.get("sec-websocket-extensions", "")
        ws.send("x" * 1000)
        assert ws.recv(DEADLINE) == "x" * 1000
    assert agreed.startswith("permessage-deflate") == server.can.compression


def test_compression_can_be_switched_off_in_uvicorn() -> None:
    process = start("uvicorn", uvicorn("tests.apps:app", "--ws-per-message-deflate", "false"))
    try:
        with Server("uvicorn", process).connect("/raw") as ws:
            assert ws.response is not None
            assert "sec-websocket-extensions" not in ws.response.headers
    finally:
        process.stop()


@pytest.mark.parametrize("offered", ["no token", "a,,b", "é", "x" * 5000, '"quoted"', ",", " "])
def test_a_subprotocol_that_is_none_does_no_harm(server: Server, offered: str) -> None:
    # S10: the servers refuse some of them themselves; asgiws accepts none of the others
    if server.name in ("hypercorn-trio", "uvicorn-wsproto") and not offered.isascii():
        return  # it harms the server itself: see below
    with contextlib.suppress(Exception), server.connect("/raw", headers={"Sec-WebSocket-Protocol": offered}):
        pass  # not a path that closes by itself: hypercorn-trio ends when both sides close at once
    with server.connect("/returns/after") as ws:
        assert closing(ws) == (1000, "")


def test_hypercorn_trio_ends_by_a_subprotocol_that_is_not_ascii() -> None:
    # S26
    process = start("hypercorn-trio", hypercorn("tests.apps:app", worker="trio"))
    try:
        with handshake(process, "/raw", NOT_ASCII):
            assert process.process.wait(DEADLINE) is not None  # by itself
    finally:
        process.stop()


def test_uvicorn_wsproto_waits_for_ever_after_a_subprotocol_that_is_not_ascii() -> None:
    process = start("uvicorn-wsproto", uvicorn("tests.apps:app", ws="wsproto", loop="asyncio"))
    try:
        with handshake(process, "/raw", NOT_ASCII) as raw:
            assert status(raw) is None
        process.process.terminate()
        process.wait_for("Waiting for connections to close")
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(1)
    finally:
        process.process.send_signal(signal.SIGINT)
        process.stop()


def test_a_path_of_odd_bytes_does_no_harm(server: Server) -> None:
    for path in ("/%FF", "/echo/%2F/1", "/echo/%00/1", "//", "/echo//1", "/../raw", "/echo/a/" + "9" * 5000):
        with contextlib.suppress(InvalidStatus), server.connect(path):
            pass
    with server.connect("/returns/after") as ws:
        assert closing(ws) == (1000, "")
