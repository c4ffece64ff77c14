"""What happens when: every line of the table in docs/behaviour.md, before accept and after, on every server."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.apps import SECRET
from tests.servers import DEADLINE
from tests.servers.clients import Server, abort, answer, closing, handshake
from tests.test_behaviour import ROWS, Row, Visit, check_denial, parsed

REPORTS = {
    "uvicorn": "Exception in ASGI application",
    "hypercorn": "Error in ASGI Framework",
    "daphne": "Exception inside application",
    "granian": "Application callable raised an exception",
}
"""With what each server reports that an exception was raised again."""

QUIET = {name: row for name, row in ROWS.items() if row.raises is None}
RAISING = {name: row for name, row in ROWS.items() if row.raises is not None}


def visit(server: Server, row: Row) -> Visit:
    """Go through a row as a client."""
    headers = dict(row.headers)
    try:
        with server.connect(row.path, headers=headers, origin=headers.pop("origin", None)) as ws:
            for message in row.say:
                ws.send(message)
            heard = []
            try:
                while True:
                    heard.append(parsed(ws.recv(DEADLINE)))
            except ConnectionClosed as closed:
                close = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else None
                return Visit(heard=tuple(heard), close=close)
    except InvalidStatus as refused:
        response = refused.response
        names = {name.lower(): value for name, value in response.headers.raw_items()}
        return Visit(response.status_code, names, bytes(response.body))


def check(server: Server, row: Row, seen: Visit) -> None:
    """Compare what a client saw with the row, and with what the server can do."""
    denied = row.status != 101 and row.close is None
    assert seen.status == (server.status(row.status) if denied else row.status)
    if row.status == 101:
        assert row.close is not None
        assert seen.close is not None, "the connection broke"
        assert seen.close[0] == server.code(row.close[0])
        assert seen.close[1].startswith(server.reason(row.close[1]))
        assert seen.heard == tuple(message for message in row.hear if message != "" or server.can.empty_messages)
        assert SECRET not in repr(seen)
    elif denied and server.can.denials:
        check_denial(row, seen.headers, seen.body)


@pytest.mark.parametrize("row", QUIET.values(), ids=QUIET.keys())
def test_a_line_of_the_table(server: Server, row: Row) -> None:
    check(server, row, visit(server, row))
    assert "Traceback" not in server.log
    if row.status != 101 and row.close is None and not server.can.denials:
        server.wait_for(f"{row.status}")  # the cause is in the log
    if "evil" in str(row.headers):
        server.wait_for("refused a WebSocket from origin 'https://evil.example'")


def test_the_lines_with_an_exception(server: Server) -> None:
    # T16, P20; all at once, since daphne looks after its handlers once a second only
    with ThreadPoolExecutor(len(RAISING)) as pool:
        visits = pool.map(lambda row: visit(server, row), RAISING.values())
        for row, seen in zip(RAISING.values(), visits, strict=True):
            check(server, row, seen)
            if row.status == 500 and server.can.denials:
                server.wait_for(f"connection {json.loads(seen.body)['id']} failed")
    server.wait_for(REPORTS[server.name.partition("-")[0]], times=len(RAISING))
    failed = re.findall(
        r"(websocket \S+) \(apps\.\w+, tests/apps\.py:\d+\).*connection ([0-9a-f]{16}) failed", server.log
    )
    assert len({identifier for _, identifier in failed}) == len(failed) == len(RAISING)  # each is logged once
    templates = [re.sub(r"^/raise/[^/]+", "/raise/<what>", row.path) for row in RAISING.values()]
    assert sorted(route for route, _ in failed) == sorted(f"websocket {template}" for template in templates)


def test_the_clients_close(server: Server) -> None:
    # P23; the disconnect that escapes is a normal end
    with server.connect("/leave") as ws:
        ws.send("first")
        ws.close(4000, "bye")
    told = 4000 if server.can.tells_code else 1006
    server.wait_for(f"left with {told} {'bye' if server.can.tells_reason else ''!r}")
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


def test_a_close_after_the_clients_close_is_no_error(server: Server) -> None:
    # T17
    with server.connect("/close-after-client"):
        pass
    server.wait_for("closed after the client")
    assert "Traceback" not in server.log


def test_sending_and_receiving_after_ones_own_close(server: Server) -> None:
    with server.connect("/state") as ws:
        assert "not accepted yet" in str(ws.recv(DEADLINE))
        assert closing(ws)[0] == 4000
    for doing in ("send", "receive"):
        server.wait_for(f"cannot {doing}: this WebSocket is closed (you closed it with 4000)")


def test_two_receivers_at_once(server: Server) -> None:
    with server.connect("/two-receivers") as ws:
        assert "receive" in str(ws.recv(DEADLINE))
        ws.send("the first one gets it")
        assert closing(ws) == (1000, "")
    assert "Traceback" not in server.log


def test_typed_messages_of_a_controller(server: Server) -> None:
    with server.connect("/lobby") as ws:
        for _ in range(2):
            ws.send('{"type": "move", "x": "1", "y": 2}')
            frame = json.loads(ws.recv(DEADLINE))
            assert (frame["type"], frame["path"]) == ("error", "$.x")
        ws.send('{"type": "say", "text": "hi"}')
        assert json.loads(ws.recv(DEADLINE)) == {"type": "said", "text": "hi"}
        for _ in range(3):
            ws.send("{")
            assert json.loads(ws.recv(DEADLINE))["type"] == "error"
        code, text = closing(ws)
    assert (code, bool(text)) == (server.code(1007), server.can.reasons)
    server.wait_for("lobby: on_disconnect with 1007")


@pytest.mark.parametrize("how", ["leaves", "breaks off"])
@pytest.mark.parametrize(
    ("path", "told"),
    [("/echo/leaving/1", "echo leaving ended"), ("/stream/endless", "the stream is stopped")],
    ids=["handler", "stream"],
)
def test_what_ends_when_its_client_goes(server: Server, path: str, told: str, how: str) -> None:
    # T6, T39
    if how == "leaves":
        with server.connect(path):
            pass
    else:
        raw = handshake(server.process, path)
        assert " 101 " in answer(raw)
        abort(raw)
    server.wait_for(told)
    assert "Traceback" not in server.log
