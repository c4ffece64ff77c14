"""The contract: what happens when. Each row of the table once in memory and once on a real uvicorn."""

import contextlib
import dataclasses
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import anyio
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from asgiws import (
    App,
    HTMLResponse,
    HTTPException,
    JSONResponse,
    MessageError,
    ParameterError,
    Response,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    WebSocketStateError,
)
from tests import apps
from tests.fakes import DAPHNE, DEADLINE, HYPERCORN, SHAPES, UVICORN, FakeServer, Shape, converse, request
from tests.servers import ServerProcess, running, uvicorn

pytestmark = pytest.mark.anyio

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        path: With the query string.
        headers: Of the handshake.
        say: What the client says.
        hear: The messages it gets; those that are JSON objects decoded.
        status: What the handshake is answered with.
        detail: Of the denial's body.
        answer: Headers of the denial.
        close: Code and reason of the application's close; with a status of 403, before accept.
        raises: What reaches the server, and is logged.
    """

    path: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    say: tuple[str | bytes, ...] = ()
    hear: tuple[Any, ...] = ()
    status: int = 101
    detail: Any = None
    answer: Mapping[str, str] = dataclasses.field(default_factory=dict)
    close: tuple[int, str] | None = None
    raises: type[Exception] | None = None


def error_frame(detail: str, path: str | None = None) -> dict[str, str]:
    """What a client is told of its message."""
    return {"type": "error", "detail": detail} | ({"path": path} if path else {})


BAD_X = error_frame("expected `int`, got `str` in 'move'", "$.x")
BAD_TAG = error_frame("unknown type 'go', expected one of 'say', 'move'", "$.type")
TOKEN = {"x-token": "t"}

ROWS: dict[str, Row] = {
    "no route": Row(path="/nowhere", status=404, detail="Not Found"),
    "a route of HTTP only": Row(path="/health", status=404, detail="Not Found"),
    # S1: the handler would raise
    "origin refused": Row(
        path="/raise/value/before",
        headers={"origin": "https://evil.example"},
        status=403,
        detail="origin 'https://evil.example' is not allowed",
    ),
    "origin allowed": Row(path="/returns/after", headers={"origin": "https://good.example"}, close=(1000, "")),
    "a parameter is wrong": Row(
        path="/parameters/5?limit=0", headers=TOKEN, status=403, close=(1008, "query 'limit': expected `int` >= 1"),
    ),
    "two parameters are missing": Row(
        path="/parameters/5", status=403, close=(1008, "query 'limit': is missing; header 'x-token': is missing"),
    ),
    "parameters are right": Row(
        path="/parameters/5?limit=1", headers=TOKEN, hear=('[5,1,"t"]',), close=(1000, ""),
    ),
    "HTTPException before accept": Row(
        path="/raise/http/before", status=401, detail="who are you", answer={"www-authenticate": "Basic"},
    ),
    "HTTPException after accept": Row(path="/raise/http/after", close=(4401, "who are you")),
    "HTTPException with a structured detail before accept": Row(
        path="/raise/http-detail/before", status=422, detail={"field": ["x"]},
    ),
    "HTTPException with a structured detail after accept": Row(
        path="/raise/http-detail/after", close=(4422, '{"field":["x"]}'),
    ),
    "WebSocketException before accept": Row(path="/raise/websocket/before", status=403, close=(4401, "who are you")),
    "WebSocketException after accept": Row(path="/raise/websocket/after", close=(4401, "who are you")),
    "WebSocketException of a registered code": Row(path="/raise/websocket-1013/after", close=(1013, "later")),
    "text was wanted": Row(
        path="/receive/text", say=(b"x",), close=(1003, "expected a text message, got a binary one"),
    ),
    "bytes were wanted": Row(
        path="/receive/bytes", say=("x",), close=(1003, "expected a binary message, got a text one"),
    ),
    "JSON was wanted as text": Row(
        path="/receive/json-text", say=(b"1",), close=(1003, "expected a text message, got a binary one"),
    ),
    # P28, T24
    "receive_json of another type": Row(
        path="/receive/json", say=('{"type": "move", "x": "1", "y": 2}',),
        close=(1007, "expected `int`, got `str` - at `$.x` in message 'move'"),
    ),
    "receive_json of no JSON": Row(
        path="/receive/json", say=("{",), close=(1007, "the message is not JSON: input data was truncated"),
    ),
    "a caught MessageError": Row(
        path="/caught", say=("[]",), hear=("expected `object`, got `array`; expected 'move' in `type`",),
        close=(1000, ""),
    ),
    "typed messages": Row(
        path="/typed",
        say=('{"type": "move", "x": "1", "y": 2}', '{"type": "go"}', '{"type": "say", "text": "hi"}',
             '{"type": "go"}', b'{"type": "move", "x": 1, "y": 2}',
             '{"type": "go"}', '{"type": "go"}', '{"type": "move", "x": "1", "y": 2}'),
        # a message that decodes starts the count anew
        hear=(BAD_X, BAD_TAG, {"type": "said", "text": "hi"}, BAD_TAG, {"type": "said", "text": "1,2"},
              BAD_TAG, BAD_TAG, BAD_X),
        close=(1007, "expected `int`, got `str` - at `$.x` in message 'move'"),
    ),
    # T23
    "typed messages that are no UTF-8": Row(
        path="/typed",
        say=(b'{"type": "say", "text": "\xff"}',) * 3,
        hear=(error_frame("the message is not UTF-8"),) * 3,
        close=(1007, "the message is not UTF-8"),
    ),
    "handler returns before accept": Row(path="/returns/before", status=403, detail="Forbidden"),
    "handler returns after accept": Row(path="/returns/after", close=(1000, "")),
    "WebSocketDisconnect of its own before accept": Row(
        path="/raise/disconnect/before", status=403, detail="Forbidden",
    ),
    "WebSocketDisconnect of its own after accept": Row(path="/raise/disconnect/after", close=(1000, "")),
    "exception before accept": Row(path="/raise/value/before", status=500, raises=ValueError),
    "exception after accept": Row(path="/raise/value/after", close=(1011, "internal error"), raises=ValueError),
    # P20
    "OSError before accept": Row(path="/raise/os/before", status=500, raises=OSError),
    "OSError after accept": Row(path="/raise/os/after", close=(1011, "internal error"), raises=OSError),
    "RuntimeError after accept": Row(path="/raise/runtime/after", close=(1011, "internal error"), raises=RuntimeError),
    # T40
    "group of one before accept": Row(
        path="/raise/one/before", status=401, detail="who are you", answer={"www-authenticate": ""},
    ),
    "group of one after accept": Row(path="/raise/one/after", close=(4401, "who are you")),
    "task group before accept": Row(path="/task-group/before", status=403, detail="not in here"),
    "task group after accept": Row(path="/task-group/after", close=(4403, "not in here")),
    "group of several before accept": Row(path="/raise/several/before", status=500, raises=ExceptionGroup),
    "group of several after accept": Row(
        path="/raise/several/after", close=(1011, "internal error"), raises=ExceptionGroup,
    ),
    "group of disconnects before accept": Row(path="/raise/disconnects/before", status=403, detail="Forbidden"),
    "group of disconnects after accept": Row(path="/raise/disconnects/after", close=(1000, "")),
    "group of one and a disconnect": Row(path="/raise/one-and-disconnect/after", close=(4401, "who")),
    "close twice": Row(path="/close/4001?reason=first", close=(4001, "first")),
    # P22, T25: a reason is cut inside no character
    "a long reason": Row(path="/close/4001?reason=" + "%C3%A9" * 62, close=(4001, "é" * 61)),
    "state errors": Row(
        path="/state",
        hear=("cannot send: this WebSocket is not accepted yet; call `await ws.accept()` first",),
        close=(4000, ""),
    ),
    "exception handler by class before accept": Row(path="/raise/overridden/before", status=409),
    "exception handler by class after accept": Row(path="/raise/overridden/after", close=(4321, "overridden")),
    "exception handler by base class": Row(path="/raise/overridden-too/after", close=(4321, "overridden")),
    "exception handler by status before accept": Row(path="/raise/http-410/before", status=409),
    "exception handler by status after accept": Row(path="/raise/http-410/after", close=(4321, "overridden")),
    "exception handler that fails before accept": Row(
        path="/raise/badly-overridden/before", status=500, raises=apps.BadlyOverriddenError,
    ),
    "exception handler that fails after accept": Row(
        path="/raise/badly-overridden/after", close=(1011, "internal error"), raises=apps.BadlyOverriddenError,
    ),
    "generator": Row(
        path="/stream/items",
        hear=("text", b"bytes", {"a": 1}, {"type": "said", "text": "struct"}, "", "end"), close=(1000, ""),
    ),
    "generator that fails": Row(
        path="/stream/fails", hear=("first",), close=(1011, "internal error"), raises=ValueError,
    ),
}  # fmt: skip

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def parsed(message: Any) -> Any:
    """A message, decoded if it is a JSON object."""
    return json.loads(message) if isinstance(message, str) and message.startswith("{") else message


def check_denial(row: Row, headers: Mapping[str, str], body: bytes) -> None:
    """Compare what a refused client got with the row."""
    told = json.loads(body)
    if row.raises is not None:
        assert told == {"detail": "Internal Server Error", "id": told["id"]}
    elif row.detail is not None:
        assert told == {"detail": row.detail}
    assert int(headers["content-length"]) == len(body)
    assert headers["content-type"] == "application/json"
    assert {name: headers.get(name, "") for name in row.answer} == dict(row.answer)
    assert apps.SECRET not in body.decode()


# In memory


def close_on(shape: Shape, code: int) -> int:
    """The code of a close as it goes to a server of this shape: daphne sends no other 10xx than 1000."""
    return code + 3000 if shape.own_codes_only and 1000 < code < 3000 else code


@every_row
@every_shape
async def test_each_row_in_memory(row: Row, shape: Shape, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path, _, query = row.path.partition("?")
    server = FakeServer(shape, path.replace("%C3%A9", "é"), query=query, headers=row.headers)
    if row.raises is None:
        await converse(apps.app, server, *row.say, leave=-1)
    else:
        with pytest.raises(row.raises):
            await converse(apps.app, server, *row.say, leave=-1)
    assert not server.choked
    denied = row.status != 101 and row.close is None
    assert server.status == (row.status if shape.denial or not denied else 403)
    if denied and shape.denial:
        assert server.closed is None
        headers = {name.decode(): value.decode() for name, value in server.sent[0]["headers"]}
        check_denial(row, headers, server.body)
    elif denied:
        assert server.closed is not None
    else:
        assert row.close is not None
        assert server.closed is not None
        code, reason = server.closed
        assert code == close_on(shape, row.close[0])
        assert reason.startswith(row.close[1])
    heard = [event.get("text", event.get("bytes")) for event in server.sent if event["type"] == "websocket.send"]
    assert tuple(map(parsed, heard)) == row.hear
    assert apps.SECRET not in repr(server.sent)
    check_log(row, shape, server, caplog, plain=denied and not shape.denial)


def check_log(row: Row, shape: Shape, server: FakeServer, caplog: pytest.LogCaptureFixture, *, plain: bool) -> None:
    """Compare what was logged with the row: an exception once, a plain 403 in place of a denial once, else nothing."""
    records = [record for record in caplog.records if record.name == "asgiws" and record.levelno > logging.DEBUG]
    errors = [record for record in records if record.levelno == logging.ERROR]
    assert len(errors) == (row.raises is not None)
    for record in errors:
        template = re.sub(r"^/raise/[^/]+", "/raise/<what>", row.path)
        assert f"websocket {template} (apps." in record.getMessage()
        found = re.search(r"connection ([0-9a-f]{16})", record.getMessage())
        assert found
        assert record.exc_info
        if row.status == 500 and shape.denial:
            assert json.loads(server.body)["id"] == found[1]
    infos = [record for record in records if record.levelno == logging.INFO]
    assert len(infos) == plain
    assert all(str(row.status) in record.getMessage() for record in infos)
    warnings = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert len(warnings) == ("evil" in str(row.headers))
    for part in ("https://evil.example", "testserver", "allowed_origins") if warnings else ():
        assert part in warnings[0]


# On a real server


@pytest.fixture(scope="module")
def real() -> Iterator[ServerProcess]:
    with running(uvicorn=uvicorn("tests.apps:app")) as servers:
        yield servers["uvicorn"]


@dataclasses.dataclass
class Visit:
    """What a real client saw."""

    status: int = 101
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    heard: tuple[Any, ...] = ()
    close: tuple[int, str] | None = None


def visit(server: ServerProcess, row: Row) -> Visit:
    """Go through a row as a real client."""
    headers = dict(row.headers)
    origin = headers.pop("origin", None)
    try:
        with connect(
            f"ws://127.0.0.1:{server.port}{row.path}",
            additional_headers=headers,
            origin=Origin(origin) if origin else None,
            proxy=None,
        ) as ws:
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
        return Visit(
            response.status_code, {k.lower(): v for k, v in response.headers.raw_items()}, bytes(response.body)
        )


@every_row
def test_each_row_on_uvicorn(row: Row, real: ServerProcess) -> None:
    mark = real.mark
    seen = visit(real, row)
    assert seen.status == row.status
    if row.status == 101:
        assert row.close is not None
        assert seen.close is not None
        assert seen.close[0] == row.close[0]
        assert seen.close[1].startswith(row.close[1])
        assert seen.heard == row.hear
    elif row.close is None:
        check_denial(row, seen.headers, seen.body)
    if row.raises is not None:
        real.wait_for("Exception in ASGI application", mark)
        log = real.log(mark)
        assert len(re.findall(r"connection [0-9a-f]{16} failed", log)) == 1
        if row.status == 500:
            assert f"connection {json.loads(seen.body)['id']} failed" in log
    else:
        assert "Traceback" not in real.log(mark)


def test_a_disconnect_that_escapes_is_a_normal_end_on_uvicorn(real: ServerProcess) -> None:
    mark = real.mark
    with connect(f"ws://127.0.0.1:{real.port}/leave", proxy=None) as ws:
        ws.close(4000, "bye")
    real.wait_for("left with 4000 'bye'", mark)
    assert visit(real, ROWS["handler returns after accept"]).close == (1000, "")
    assert "ERROR" not in real.log(mark)
    assert "Traceback" not in real.log(mark)


def test_closing_after_the_client_is_no_error_on_uvicorn(real: ServerProcess) -> None:
    mark = real.mark
    with connect(f"ws://127.0.0.1:{real.port}/close-after-client", proxy=None) as ws:
        ws.close(1000)
    real.wait_for("closed after the client", mark)
    assert "Traceback" not in real.log(mark)


def test_sending_and_receiving_after_ones_own_close_on_uvicorn(real: ServerProcess) -> None:
    mark = real.mark
    visit(real, ROWS["state errors"])
    for doing in ("send", "receive"):
        real.wait_for(f"cannot {doing}: this WebSocket is closed (you closed it with 4000)", mark)


# T39
def test_a_stream_is_stopped_when_its_client_leaves_on_uvicorn(real: ServerProcess) -> None:
    mark = real.mark
    with connect(f"ws://127.0.0.1:{real.port}/stream/endless", proxy=None) as ws:
        assert ws.recv(DEADLINE) == "first"
    real.wait_for("the stream is stopped", mark)
    assert "Traceback" not in real.log(mark)


def test_a_big_last_message_and_the_close_reach_a_slow_reader_on_uvicorn(real: ServerProcess) -> None:
    # T20: more than the buffers below the server hold is still to be sent when the handler has ended
    size = 16 * 1024 * 1024
    with contextlib.closing(socket.socket()) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.connect(("127.0.0.1", real.port))
        url = f"ws://127.0.0.1:{real.port}/stream/items?last=x&times={size}"
        with connect(url, sock=raw, max_size=None, max_queue=1, proxy=None) as ws:
            messages = [ws.recv(DEADLINE) for _ in range(6)]
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(DEADLINE)
    assert len(messages[-1]) == size
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000


def test_the_server_that_stops_tells_its_clients_1012() -> None:
    with (
        running(uvicorn=uvicorn("tests.apps:app")) as servers,
        connect(f"ws://127.0.0.1:{servers['uvicorn'].port}/raw", proxy=None) as ws,
    ):
        servers["uvicorn"].process.terminate()
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(DEADLINE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


# The client leaves


@every_shape
@pytest.mark.parametrize("path", ["/leave", "/raw", "/typed", "/close-after-client", "/echo/r/1", "/stream/endless"])
async def test_a_client_that_leaves_is_a_normal_end(shape: Shape, path: str, caplog: pytest.LogCaptureFixture) -> None:
    # T1, T3, T5, T6, T17: whatever the server says, and however it behaves afterwards
    caplog.set_level(logging.DEBUG)
    server = await converse(apps.app, FakeServer(shape, path), leave=None)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert server.calls_after_disconnect == 0
    assert server.closed is None


@every_shape
@pytest.mark.parametrize("path", ["/raw", "/returns/before", "/raise/http/before", "/raise/websocket/before"])
async def test_a_client_that_leaves_before_the_answer_is_a_normal_end(
    shape: Shape, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    # P3, T4
    caplog.set_level(logging.DEBUG)
    server = FakeServer(shape, path)
    server.vanish()
    await converse(apps.app, server, leave=-1)
    assert server.sent == []
    plain = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    assert all("the server cannot send it" in line for line in plain)


@every_shape
async def test_messages_before_the_clients_close_are_delivered_first(shape: Shape) -> None:
    # T7
    app = App()
    got: list[Any] = []

    @app.websocket("/")
    async def keep(ws: WebSocket) -> None:
        await ws.accept()
        got.extend([message async for message in ws])

    await converse(app, FakeServer(shape), "a", b"b", "")
    assert got == ["a", b"b", ""]


async def test_an_error_frame_writes_json_as_it_is_written() -> None:
    server = FakeServer(path="/typed")
    for message in ("{", "nonsense", "", "]"):
        server.say(message)
    with anyio.fail_after(DEADLINE):
        await apps.app(server.scope, server.receive, server.send)
    assert len(server.texts) == 3
    assert "jSON" not in "".join(server.texts)


async def test_the_exception_of_a_handler_whose_client_left_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    @app.websocket("/")
    async def late(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect:
            raise ValueError("late") from None

    server = FakeServer()
    with pytest.raises(ValueError, match="late"):
        await converse(app, server)
    assert server.types == ["websocket.accept"]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


# Streams


@every_shape
async def test_the_finally_of_a_stream_runs_when_its_client_leaves(shape: Shape) -> None:
    # T39
    app = App()
    ended: list[str] = []

    @app.websocket("/<name>")
    async def ticks(name: str) -> Any:
        try:
            yield name
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                ended.append(name)

    server = FakeServer(shape, "/a")
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await server.until(lambda server: server.texts == ["a"])
        server.say("ignored")
        server.leave()
    assert ended == ["a"]
    assert server.closed is None
    assert server.calls_after_disconnect == 0


@pytest.mark.parametrize("reads", [False, True])
async def test_the_exception_of_a_stream_reaches_the_server_as_it_was_raised(reads: bool) -> None:
    app = App()

    @app.websocket("/alone")
    async def alone() -> Any:
        yield "first"
        raise ValueError("mine")

    @app.websocket("/reading")
    async def reading(ws: WebSocket) -> Any:
        yield await ws.receive_text()
        raise ValueError("mine")

    server = FakeServer(path="/reading" if reads else "/alone")
    with pytest.raises(ValueError, match="mine"):
        await converse(app, server, "first", leave=-1)
    assert server.texts == ["first"]
    assert server.closed == (1011, "internal error")


async def test_a_stream_with_the_websocket_reads_for_itself() -> None:
    app = App()

    @app.websocket("/")
    async def doubled(ws: WebSocket) -> Any:
        async for text in ws.iter_text():
            yield text * 2

    server = FakeServer()
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        server.say("a")
        await server.until(lambda server: server.texts == ["aa"])
        server.say("b")
        await server.until(lambda server: server.texts == ["aa", "bb"])
        server.leave()
    assert server.closed is None


@pytest.mark.parametrize(
    ("error", "close"),
    [
        (HTTPException(404, "no more"), (4404, "no more")),
        (WebSocketException(4000, "done"), (4000, "done")),
        (WebSocketDisconnect(1001), (1000, "")),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_stream_that_raises_ends_by_the_table(error: Exception, close: tuple[int, str]) -> None:
    app = App()

    @app.websocket("/")
    async def refusing() -> Any:
        yield "first"
        raise error

    server = await converse(app, FakeServer(), leave=-1)
    assert server.texts == ["first"]
    assert server.closed == close


async def test_a_client_that_leaves_while_a_stream_is_sending_stops_it() -> None:
    app = App()
    ended: list[bool] = []

    @app.websocket("/")
    async def flood() -> Any:
        try:
            while True:
                yield "x"
        finally:
            ended.append(True)

    server = FakeServer(HYPERCORN)  # its send() never tells
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await server.until(lambda server: len(server.texts) > 10)
        server.leave()
    assert ended == [True]


async def test_a_parameter_of_a_stream_that_is_wrong_refuses_the_handshake() -> None:
    app = App()

    @app.websocket("/")
    async def ticks(every: float) -> Any:
        yield every

    server = await converse(app, FakeServer(query="every=often"), leave=-1)
    assert server.closed == (1008, "query 'every': expected `float`")
    assert server.status == 403


# Cancellation


@every_shape
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_cancelled_handler_says_goodbye_with_1012(shape: Shape, accepted: bool) -> None:
    # P20
    app = App()
    waiting = anyio.Event()
    ended = []

    @app.websocket("/")
    async def patient(ws: WebSocket) -> None:
        if accepted:
            await ws.accept()
        try:
            waiting.set()
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    server = FakeServer(shape)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await waiting.wait()
            group.cancel_scope.cancel()
    assert ended == [True]
    assert server.closed is not None
    assert server.closed[0] in (1012, 4012 if shape is DAPHNE else 1012)
    assert server.types[-1] == "websocket.close"
    assert not server.choked


async def test_a_cancelled_stream_says_goodbye_with_1012() -> None:
    server = FakeServer(path="/stream/endless")
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(apps.app, server.scope, server.receive, server.send)
            await server.until(lambda server: bool(server.texts))
            group.cancel_scope.cancel()
    assert server.closed == (1012, "the server stops")


async def test_a_group_that_holds_a_cancellation_says_goodbye_too() -> None:
    app = App()

    @app.websocket("/")
    async def grouped(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except anyio.get_cancelled_exc_class() as cancelled:
            raise BaseExceptionGroup("both", [cancelled, ValueError("x")]) from None

    server = FakeServer()

    async def stop_the_server() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await server.until(lambda server: server.types == ["websocket.accept"])
            group.cancel_scope.cancel()

    with pytest.raises(BaseExceptionGroup) as raised:
        await stop_the_server()
    assert raised.group_contains(ValueError)
    assert server.closed == (1012, "the server stops")


# States


async def refused_call(ws: WebSocket, doing: str) -> str:
    """The text of a call that the state refuses."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "accept": ws.accept,
        "send": lambda: ws.send_text("x"),
        "send bytes": lambda: ws.send_bytes(b"x"),
        "send json": lambda: ws.send_json(1),
        "receive": ws.receive_text,
        "refuse": lambda: ws.send_denial_response(Response()),
    }
    with pytest.raises(WebSocketStateError) as error:
        await calls[doing]()
    assert isinstance(error.value, RuntimeError)
    return str(error.value)


@every_shape
async def test_a_call_that_the_state_does_not_allow_says_what_was_done(shape: Shape) -> None:
    app = App()
    said: list[str] = []

    @app.websocket("/")
    async def illegal(ws: WebSocket) -> None:
        said.extend([await refused_call(ws, "send"), await refused_call(ws, "receive")])
        await ws.accept()
        said.extend([await refused_call(ws, "accept"), await refused_call(ws, "refuse")])
        await ws.close(4000, "enough")
        await ws.close(4001)
        said.extend([await refused_call(ws, doing) for doing in ("send", "send bytes", "send json", "receive")])
        said.append(await refused_call(ws, "accept"))

    # P2: none of it went to the server
    server = await converse(app, FakeServer(shape), "a message", leave=-1)
    assert server.types == ["websocket.accept", "websocket.close"]
    assert [text.partition(":")[0].removeprefix("cannot ") for text in said] == [
        "send", "receive", "accept", "refuse", "send", "send", "send", "receive", "accept",
    ]  # fmt: skip
    assert all("not accepted yet" in text for text in said[:2])
    assert all("already accepted" in text for text in said[2:4])
    assert all("you closed it with 4000" in text for text in said[4:])


async def test_a_second_receiver_is_refused() -> None:
    # P15
    app = App()
    said: list[str] = []

    @app.websocket("/")
    async def two(ws: WebSocket) -> None:
        await ws.accept()
        async with anyio.create_task_group() as group:
            group.start_soon(ws.receive_text)
            await anyio.wait_all_tasks_blocked()
            said.append(await refused_call(ws, "receive"))
            group.cancel_scope.cancel()

    server = await converse(app, FakeServer(), leave=-1)
    assert said == ["cannot receive: another task is already receiving on this WebSocket"]
    assert server.closed == (1000, "")


async def test_a_state_error_that_escapes_is_a_bug_like_any_other() -> None:
    app = App()

    @app.websocket("/")
    async def early(ws: WebSocket) -> None:
        await ws.send_text("too early")

    server = FakeServer()
    with pytest.raises(WebSocketStateError):
        await converse(app, server)
    assert server.status == 500


async def test_the_codes_that_no_application_may_send_are_refused() -> None:
    # P21
    app = App()
    refused: list[int] = []

    @app.websocket("/")
    async def closing(ws: WebSocket) -> None:
        await ws.accept()
        for code in (0, 999, 1004, 1005, 1006, 1010, 1014, 1015, 2999, 5000):
            with pytest.raises(ValueError, match="a close code is one of 1000-1003"):
                await ws.close(code)
            refused.append(code)

    server = await converse(app, FakeServer(), leave=-1)
    assert len(refused) == 10
    assert server.closed == (1000, "")


@pytest.mark.parametrize("address", [{}, {"client": None, "server": None}], ids=["TCP", "Unix socket"])
@pytest.mark.parametrize(("code", "expected"), [(1000, 1000), (1001, 4001), (1013, 4013), (3000, 3000), (4999, 4999)])
async def test_a_code_that_daphne_does_not_send_goes_as_one_that_it_does(
    address: dict[str, Any], code: int, expected: int
) -> None:
    # a close with any other code leaves the socket open there
    server = FakeServer(DAPHNE, f"/close/{code}", query="reason=x", **address)
    await converse(apps.app, server, leave=-1)
    assert server.closed == (expected, "x")


# Denials


@every_shape
async def test_a_denial_by_hand_is_sent_as_one_body_with_its_length(shape: Shape) -> None:
    # P8, T30
    app = App()

    @app.websocket("/")
    async def paying(ws: WebSocket) -> None:
        await ws.send_denial_response(HTMLResponse("<p>Pay first</p>", 402))

    server = await converse(app, FakeServer(shape), leave=-1)
    if shape.denial:
        assert server.types == ["websocket.http.response.start", "websocket.http.response.body"]
        assert server.status == 402
        assert server.body == b"<p>Pay first</p>"
    else:
        assert server.types == ["websocket.close"]


@pytest.mark.parametrize("extensions", [None, {}, "absent"])
async def test_a_server_without_the_extension_gets_a_plain_close(extensions: Any) -> None:
    # P9, T28
    server = FakeServer(path="/raise/http/before")
    if extensions == "absent":
        del server.scope["extensions"]
    else:
        server.scope["extensions"] = extensions
    await converse(apps.app, server, leave=-1)
    assert server.types == ["websocket.close"]


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize(
    "error",
    [HTTPException(400, object()), HTTPException(401, "x", {"x-header": "two\r\nlines"})],
    ids=["detail that is no JSON", "header that cannot be sent"],
)
async def test_an_http_exception_that_cannot_be_sent_is_an_internal_error(
    error: HTTPException, accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # S19
    app = App()

    @app.websocket("/")
    async def odd(ws: WebSocket) -> None:
        if accepted:
            await ws.accept()
        raise error

    server = FakeServer()
    try:
        await converse(app, server, leave=-1)
    except (TypeError, ValueError, HTTPException):
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    if accepted:
        assert server.closed in ((1011, "internal error"), (4401, "x"))  # a close has no headers
    else:
        assert server.status == 500


# Exception handlers


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize(
    ("key", "error"),
    [
        (401, HTTPException(401)),
        (HTTPException, HTTPException(401)),
        (WebSocketException, WebSocketException(4000)),
        (MessageError, MessageError("wrong")),
        (ParameterError, ParameterError([])),
        (LookupError, KeyError("x")),
        (Exception, ValueError("x")),
        (ValueError, ExceptionGroup("one", [ValueError("x")])),
        (WebSocketDisconnect, WebSocketDisconnect(1001)),
    ],
    ids=lambda value: getattr(value, "__name__", None) or repr(value),
)
async def test_an_exception_handler_overrides_each_line(
    key: Any, error: Exception, accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    seen: list[Exception] = []

    @app.exception_handler(key)
    async def own(ws: WebSocket, error: Exception) -> Response:
        seen.append(error)
        if accepted:
            await ws.close(4999, "own")
        return JSONResponse("own", 418)

    @app.websocket("/")
    async def wrong(ws: WebSocket) -> None:
        if accepted:
            await ws.accept()
        raise error

    server = await converse(app, FakeServer(), leave=-1)
    assert len(seen) == 1
    assert not isinstance(seen[0], ExceptionGroup)
    assert caplog.records == []
    if accepted:
        assert server.closed == (4999, "own")
    else:
        assert (server.status, server.body) == (418, b'"own"')


@pytest.mark.parametrize(
    ("path", "headers", "key"),
    [
        ("/nowhere", {}, 404),
        ("/nowhere", {}, HTTPException),
        ("/1", {"origin": "https://evil.example"}, 403),
        ("/x", {}, ParameterError),
        ("/1", {}, 403),
    ],
    ids=["no route by status", "no route by class", "origin", "parameter", "handler returns before accept"],
)
async def test_an_exception_handler_overrides_what_no_handler_raised(
    path: str, headers: dict[str, str], key: Any
) -> None:
    app = App()

    @app.exception_handler(key)
    async def own(ws: WebSocket, error: Exception) -> Response:
        return JSONResponse("own", 418)

    @app.websocket("/<n>")
    async def silent(ws: WebSocket, n: str, limit: int = 1) -> None:
        pass

    query = "limit=x" if key is ParameterError else ""
    app.websocket("/deep/<n>")(silent)
    path = "/a/b/c" if path == "/nowhere" else path
    server = await converse(app, FakeServer(path=path, headers=headers, query=query), leave=-1)
    assert (server.status, server.body) == (418, b'"own"')


async def test_an_exception_handler_that_does_nothing_leaves_the_line_as_it_is() -> None:
    app = App()

    @app.exception_handler(ValueError)
    async def nothing(ws: WebSocket, error: Exception) -> None:
        pass

    @app.websocket("/before")
    async def before(ws: WebSocket) -> None:
        raise ValueError

    @app.websocket("/after")
    async def after(ws: WebSocket) -> None:
        await ws.accept()
        raise ValueError

    assert (await converse(app, FakeServer(path="/before"), leave=-1)).status == 500
    assert (await converse(app, FakeServer(path="/after"), leave=-1)).closed == (1011, "internal error")


async def test_an_exception_handler_may_go_on_with_the_connection() -> None:
    app = App()

    @app.exception_handler(PermissionError)
    async def explain(ws: WebSocket, error: Exception) -> None:
        await ws.accept()
        await ws.send_text("not you")
        await ws.close(4403)

    @app.websocket("/")
    async def closed(ws: WebSocket) -> None:
        raise PermissionError

    server = await converse(app, FakeServer(), leave=-1)
    assert server.types == ["websocket.accept", "websocket.send", "websocket.close"]
    assert server.closed == (4403, "")


@pytest.mark.parametrize("accepted", [False, True])
async def test_an_exception_handler_that_fails_is_logged_with_what_it_was_called_for(
    accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @app.exception_handler(KeyError)
    async def failing(ws: WebSocket, error: Exception) -> None:
        raise LookupError("in the handler")

    @app.websocket("/")
    async def wrong(ws: WebSocket) -> None:
        if accepted:
            await ws.accept()
        raise KeyError("in the route")

    server = FakeServer()
    with pytest.raises(KeyError, match="in the route"):
        await converse(app, server, leave=-1)
    assert server.closed == ((1011, "internal error") if accepted else None)
    assert server.status == (101 if accepted else 500)
    assert len(caplog.records) == 1
    assert "in the handler" in caplog.text
    assert "in the route" in caplog.text


async def test_an_exception_handler_may_find_the_client_gone() -> None:
    app = App()

    @app.exception_handler(KeyError)
    async def farewell(ws: WebSocket, error: Exception) -> None:
        await ws.send_text("sorry")

    @app.websocket("/")
    async def wrong(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws:
            pass
        raise KeyError

    server = await converse(app, FakeServer(UVICORN))
    assert server.types == ["websocket.accept"]


async def test_an_exception_handler_serves_http_too() -> None:
    app = App(exception_handlers={404: apps.as_response, KeyError: apps.as_response})

    @app.get("/")
    async def wrong() -> None:
        raise KeyError

    assert (await request(app, "GET", "/")).body == b'{"overridden":"KeyError"}'
    assert (await request(app, "GET", "/nowhere")).status == 409
