"""The raw events of a WebSocket: order, ends, errors of the server, many tasks at once, on servers of every shape."""

import asyncio
import enum
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.abc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws import ProtocolError, Response, WebSocket, WebSocketDisconnect, WebSocketState, WebSocketStateError
from tests.fakes import (
    DAPHNE,
    DEADLINE,
    GRANIAN,
    HYPERCORN,
    SHAPES,
    STRICT,
    UVICORN,
    UVICORN_LEGACY,
    ClientDisconnectedError,
    FakeServer,
    Shape,
    soon,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

CONNECTING, CONNECTED, DISCONNECTED = WebSocketState
Socket = WebSocket[Any, Any]
Call = Callable[[Socket], Awaitable[Any]]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def socket_on(server: FakeServer) -> Socket:
    return WebSocket(server.scope, server.receive, server.send)


async def opened(shape: Shape = UVICORN, path: str = "/") -> tuple[Socket, FakeServer]:
    server = FakeServer(shape, path)
    ws = socket_on(server)
    await ws.accept()
    return ws, server


def states(ws: Socket) -> tuple[WebSocketState, WebSocketState]:
    return ws.client_state, ws.application_state


async def deny(ws: Socket) -> None:
    await ws.send_denial_response(Response("no", 401))


async def next_message(ws: Socket) -> Any:
    return await anext(aiter(ws))


SENDS: dict[str, Call] = {
    "send": lambda ws: ws.send({"type": "websocket.send", "text": "a"}),
    "send_text": lambda ws: ws.send_text("a"),
    "send_bytes": lambda ws: ws.send_bytes(b"a"),
    "send_json": lambda ws: ws.send_json(1),
    "send_json binary": lambda ws: ws.send_json(1, mode="binary"),
}
RECEIVES: dict[str, Call] = {
    "receive_text": lambda ws: ws.receive_text(),
    "receive_bytes": lambda ws: ws.receive_bytes(),
    "receive_json": lambda ws: ws.receive_json(),
}
RAW: dict[str, Call] = {"receive": lambda ws: ws.receive()}
LOOP: dict[str, Call] = {"async for": next_message}
ITERATORS: dict[str, Callable[[Socket], AsyncIterator[Any]]] = {
    "async for": aiter,
    "iter_text": lambda ws: ws.iter_text(),
    "iter_bytes": lambda ws: ws.iter_bytes(),
    "iter_json": lambda ws: ws.iter_json(),
}
ANSWERS: dict[str, Call] = {"accept": lambda ws: ws.accept(), "refuse": deny}


def calls(table: dict[str, Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", table.values(), ids=table)


# The handshake


@each_shape
async def test_the_states_follow_a_connection_from_its_start_to_its_end(shape: Shape) -> None:
    server = FakeServer(shape)
    ws = socket_on(server)
    assert states(ws) == (CONNECTING, CONNECTING)
    assert await ws.receive() == {"type": "websocket.connect"}
    assert states(ws) == (CONNECTED, CONNECTING)
    await ws.accept()
    assert states(ws) == (CONNECTED, CONNECTED)
    await ws.close()
    assert states(ws) == (CONNECTED, DISCONNECTED)
    assert server.types == ["websocket.accept", "websocket.close"]


@each_shape
@pytest.mark.parametrize("read_first", [False, True])
async def test_accept_reads_the_handshake_if_nobody_did(shape: Shape, read_first: bool) -> None:
    server = FakeServer(shape)
    ws = socket_on(server)
    if read_first:
        await ws.receive()
    await ws.accept()
    server.say("a")
    assert await ws.receive_text() == "a"
    assert server.status == 101


@pytest.mark.parametrize("read_first", [False, True])
@calls(SENDS)
async def test_nothing_is_sent_before_accept(call: Call, read_first: bool) -> None:
    # P2
    server = FakeServer()
    ws = socket_on(server)
    if read_first:
        await ws.receive()
    before = states(ws)
    with pytest.raises(WebSocketStateError) as caught:
        await call(ws)
    assert str(caught.value) == "cannot send: this WebSocket is not accepted yet; call `await ws.accept()` first"
    assert states(ws) == before
    assert not server.sent
    await ws.accept()
    await call(ws)


@pytest.mark.parametrize("read_first", [False, True])
@calls(RECEIVES | LOOP)
async def test_no_message_is_read_before_accept(call: Call, read_first: bool) -> None:
    # T19
    server = FakeServer()
    ws = socket_on(server)
    server.say("1")
    if read_first:
        await ws.receive()
    with pytest.raises(WebSocketStateError) as caught:
        await call(ws)
    assert str(caught.value) == "cannot receive: this WebSocket is not accepted yet; call `await ws.accept()` first"
    await ws.accept()
    assert await ws.receive_text() == "1"


async def test_after_the_handshake_was_read_receive_waits_for_accept() -> None:
    server = FakeServer()
    ws = socket_on(server)
    await ws.receive()
    with pytest.raises(WebSocketStateError, match=r"^cannot receive: this WebSocket is not accepted yet"):
        await ws.receive()


@pytest.mark.parametrize(("call", "doing"), [(call, name) for name, call in ANSWERS.items()])
async def test_a_handshake_is_answered_once(call: Call, doing: str) -> None:
    ws, server = await opened()
    with pytest.raises(WebSocketStateError) as caught:
        await call(ws)
    assert str(caught.value) == f"cannot {doing}: this WebSocket is already accepted; close() ends it"
    assert server.types == ["websocket.accept"]
    assert states(ws) == (CONNECTED, CONNECTED)


@pytest.mark.parametrize("read_first", [False, True])
async def test_close_before_accept_refuses_the_handshake(read_first: bool) -> None:
    server = FakeServer()
    ws = socket_on(server)
    if read_first:
        await ws.receive()
    await ws.close(1008, "why")
    assert server.status == 403
    assert server.closed == (1008, "why")
    assert states(ws) == (CONNECTED, DISCONNECTED)


@each_shape
@calls(ANSWERS)
async def test_a_client_that_left_before_the_handshake_was_read_is_not_answered(shape: Shape, call: Call) -> None:
    # P3, T4
    server = FakeServer(shape)
    server.vanish()
    ws = socket_on(server)
    with pytest.raises(WebSocketDisconnect) as caught:
        await call(ws)
    assert caught.value.code == 1006
    assert states(ws) == (DISCONNECTED, CONNECTING)
    await ws.close()
    assert states(ws) == (DISCONNECTED, DISCONNECTED)
    with pytest.raises(WebSocketDisconnect):
        await ws.send_text("a")
    assert not server.sent
    assert server.calls_after_disconnect == 0


async def test_close_before_a_handshake_that_never_comes_sends_nothing() -> None:
    server = FakeServer()
    server.vanish()
    ws = socket_on(server)
    await ws.close()
    assert not server.sent
    assert states(ws) == (DISCONNECTED, DISCONNECTED)


async def test_receive_tells_of_a_client_that_left_before_the_handshake_was_read() -> None:
    # P3, T18: the raw event, as after accept.
    server = FakeServer()
    server.vanish()
    ws = socket_on(server)
    gone = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert await ws.receive() == gone
    assert await ws.receive() == gone
    assert server.calls_after_disconnect == 0


@pytest.mark.parametrize(
    "kind", ["websocket.receive", "websocket.send", "websocket.close", "websocket.new", "http.request"]
)
async def test_a_server_that_starts_with_anything_but_the_handshake_is_refused(kind: str) -> None:
    # P12
    server = FakeServer()
    server._inbox.clear()
    server.put({"type": kind, "text": "a"})
    ws = socket_on(server)
    with pytest.raises(ProtocolError) as caught:
        await ws.accept()
    assert str(caught.value) == f"the server sent {kind!r}, which ASGI does not allow while nothing has been read"
    assert not server.sent


@pytest.mark.parametrize(
    "kind", ["websocket.connect", "websocket.send", "websocket.close", "websocket.accept", "lifespan"]
)
@calls(RECEIVES | RAW | LOOP)
async def test_an_event_that_no_server_may_send_is_refused(call: Call, kind: str) -> None:
    # P12
    ws, server = await opened()
    server.put({"type": kind})
    with pytest.raises(ProtocolError) as caught:
        await call(ws)
    assert str(caught.value) == f"the server sent {kind!r}, which ASGI does not allow while accepted"
    assert states(ws) == (CONNECTED, CONNECTED)
    server.say("1")
    assert await ws.receive_text() == "1"


def test_the_scope_must_be_one_of_a_websocket() -> None:
    server = FakeServer()
    server.scope["type"] = "http"
    with pytest.raises(ProtocolError, match=r"^a WebSocket needs a scope of type 'websocket', got 'http'$"):
        socket_on(server)


# The application's end


@each_shape
@pytest.mark.parametrize("told", [False, True])
async def test_after_your_own_close_nothing_is_sent_or_read(shape: Shape, told: bool) -> None:
    # P24, and the text of section 7 of the design. Told: a receive() was pending that brought the disconnect.
    ws, server = await opened(shape)
    if told:
        async with waiting_reader(ws, server) as found:
            await ws.close()
            server.leave(1005)
        assert found == [WebSocketDisconnect]
    else:
        await ws.close()
    for call in SENDS.values():
        with pytest.raises(WebSocketStateError) as caught:
            await call(ws)
        assert str(caught.value) == "cannot send: this WebSocket is closed (you closed it with 1000)"
    for call in (RECEIVES | RAW).values():
        with pytest.raises(WebSocketStateError) as caught:
            await call(ws)
        assert str(caught.value) == "cannot receive: this WebSocket is closed (you closed it with 1000)"
    for doing, call in ANSWERS.items() if shape.denial else ():
        with pytest.raises(WebSocketStateError) as caught:
            await call(ws)
        assert str(caught.value) == f"cannot {doing}: this WebSocket is closed (you closed it with 1000)"
    assert server.types == ["websocket.accept", "websocket.close"]
    assert server.calls_after_disconnect == 0
    assert not server.choked


@asynccontextmanager
async def waiting_reader(ws: Socket, server: FakeServer, call: Call | None = None) -> AsyncIterator[list[Any]]:
    """A task that waits in `receive_text` (or `call`); what it got, or the type of what it raised, is in the list."""
    found: list[Any] = []

    async def read() -> None:
        try:
            found.append(await (call(ws) if call else ws.receive_text()))
        except Exception as error:
            found.append(type(error))

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await soon(lambda: server._receiving)
            yield found


@calls(SENDS | RECEIVES | RAW | LOOP | ANSWERS)
@pytest.mark.parametrize(
    ("refuse", "code"),
    [(lambda ws: ws.close(), 1000), (lambda ws: ws.close(4001, "why"), 4001), (deny, 401)],
    ids=["close", "close with a code", "denial"],
)
async def test_after_your_own_refusal_nothing_else_happens(call: Call, refuse: Call, code: int) -> None:
    # P8: receive() is not called after a denial, some servers would block for ever.
    server = FakeServer()
    ws = socket_on(server)
    await refuse(ws)
    sent = list(server.sent)
    with pytest.raises((WebSocketStateError, StopAsyncIteration)) as caught:
        await call(ws)
    if not isinstance(caught.value, StopAsyncIteration):
        assert str(caught.value).endswith(f": this WebSocket is refused (you refused it with {code})")
    await ws.close()
    assert server.sent == sent
    assert states(ws) == (CONNECTED, DISCONNECTED)


@each_shape
async def test_close_twice_sends_one_close(shape: Shape) -> None:
    # T17
    ws, server = await opened(shape)
    await ws.close(4000, "first")
    await ws.close(4001, "second")
    assert server.closed == (4000, "first")
    assert server.types.count("websocket.close") == 1
    with pytest.raises(WebSocketStateError, match="you closed it with 4000"):
        await ws.send_text("a")


@each_shape
@pytest.mark.parametrize("accepted", [False, True])
async def test_two_tasks_that_close_send_one_close(shape: Shape, accepted: bool) -> None:
    # T17
    server = FakeServer(shape)
    ws = socket_on(server)
    await ws.receive()
    if accepted:
        await ws.accept()
    server.hold = anyio.Event()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ws.close)
            await soon(lambda: server.sending)
            server.hold.set()
    assert server.types.count("websocket.close") == 1
    assert not server.choked


@each_shape
async def test_close_in_finally_after_the_client_left_sends_nothing(shape: Shape) -> None:
    # T17, P20
    ws, server = await opened(shape)
    server.leave(1001)

    async def handler() -> None:
        try:
            await ws.receive_text()
        finally:
            await ws.close()

    with pytest.raises(WebSocketDisconnect):
        await handler()
    await ws.close()
    assert server.types == ["websocket.accept"]
    assert states(ws) == (DISCONNECTED, DISCONNECTED)


GOOD_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 3008, 3999, 4000, 4999]
BAD_CODES: list[Any] = [
    -1, 0, 1, 999, 1004, 1005, 1006, 1010, 1014, 1015, 1016, 1999, 2000, 2999, 5000, 65535, 65536, True, False, None,
    1000.0, "1000",
]  # fmt: skip


@each_shape
@pytest.mark.parametrize("accepted", [False, True])
async def test_close_sends_the_code_that_the_server_can_send(shape: Shape, accepted: bool) -> None:
    # P21; daphne sends 40xx in place of 10xx.
    for code in GOOD_CODES:
        server = FakeServer(shape)
        ws = socket_on(server)
        if accepted:
            await ws.accept()
        await ws.close(code)
        on_the_wire = code + 3000 if shape is DAPHNE and 1000 < code < 3000 else code
        assert server.closed == (on_the_wire, "")
        assert not server.choked
        with pytest.raises(WebSocketStateError, match=f"with {code}\\)$"):
            await ws.send_text("a")


@pytest.mark.parametrize("code", BAD_CODES)
async def test_a_code_that_must_not_be_sent_is_refused_and_changes_nothing(code: Any) -> None:
    # P21, T26
    ws, server = await opened()
    with pytest.raises(ProtocolError) as caught:
        await ws.close(code)
    assert str(caught.value) == (f"a close code is one of 1000-1003, 1007-1009, 1011-1013 or 3000-4999, got {code!r}")
    assert server.types == ["websocket.accept"]
    await ws.send_text("a")


@given(code=st.integers(min_value=-10, max_value=70_000))
async def test_whatever_the_code_the_server_never_chokes(code: int) -> None:
    for shape in (UVICORN, DAPHNE):
        ws, server = await opened(shape)
        try:
            await ws.close(code)
        except ProtocolError:
            assert code not in GOOD_CODES
        else:
            assert server.closed is not None
            assert server.closed[0] in {code, code + 3000}
        assert not server.choked


async def test_a_code_may_be_a_member_of_an_enum() -> None:
    class Code(enum.IntEnum):
        GONE = 4004

    ws, server = await opened()
    await ws.close(Code.GONE)
    assert server.closed == (4004, "")
    assert type(server.sent[-1]["code"]) is int


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        (None, ""),
        ("", ""),
        ("why", "why"),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 61, "é" * 61),
        ("é" * 62, "é" * 61),
        ("x" + "😀" * 31, "x" + "😀" * 30),
        ("a\ud800b", "a?b"),
    ],
)
async def test_a_reason_is_cut_between_two_characters(reason: str | None, sent: str) -> None:
    # P5, P22, T25
    ws, server = await opened()
    await ws.close(4000, reason)
    assert server.closed == (4000, sent)
    assert isinstance(server.sent[-1]["reason"], str)
    assert not server.choked


@given(reason=st.text(max_size=130))
async def test_any_reason_fits_into_a_close_frame(reason: str) -> None:
    ws, server = await opened()
    await ws.close(4000, reason)
    assert server.closed is not None
    sent = server.closed[1]
    assert len(sent.encode()) <= 123
    assert reason.startswith(sent)
    assert sent == reason or len(reason[: len(sent) + 1].encode()) > 123


@pytest.mark.parametrize("reason", [b"why", 42, ["why"], b"", 0], ids=repr)
async def test_a_reason_that_is_no_text_is_refused_and_changes_nothing(reason: Any) -> None:
    # T26
    ws, server = await opened()
    with pytest.raises(TypeError):
        await ws.close(4000, reason)
    assert server.types == ["websocket.accept"]
    await ws.send_text("a")


# The peer's end


class Code(enum.IntEnum):
    AWAY = 1001


@pytest.mark.parametrize(
    ("told", "code", "reason"),
    [
        ({}, 1005, ""),
        ({"code": None}, 1005, ""),
        ({"code": None, "reason": None}, 1005, ""),
        ({"code": 1005}, 1005, ""),
        ({"code": 1006, "reason": None}, 1006, ""),
        ({"code": 1012, "reason": "restart"}, 1012, "restart"),
        ({"code": Code.AWAY, "reason": "bye", "more": 1}, 1001, "bye"),
        ({"code": 4999, "reason": "é" * 61}, 4999, "é" * 61),
    ],
    ids=repr,
)
async def test_the_peers_code_is_an_int_and_its_reason_a_text(told: dict[str, Any], code: int, reason: str) -> None:
    # P5, P12, P23, T5
    ws, server = await opened()
    server.put({"type": "websocket.disconnect", **told})
    event = await ws.receive()
    assert event == {"type": "websocket.disconnect", "code": code, "reason": reason}
    assert type(event["code"]) is int
    json.dumps(dict(event))
    with pytest.raises(WebSocketDisconnect) as caught:
        await ws.receive_text()
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert type(caught.value.code) is int


@each_shape
@pytest.mark.parametrize("code", [1000, 1006, None])
async def test_the_disconnect_is_told_again_without_asking_the_server(shape: Shape, code: int | None) -> None:
    # T1, T6
    ws, server = await opened(shape)
    server.leave(code)
    with anyio.fail_after(DEADLINE):
        first = await ws.receive()
        assert first["type"] == "websocket.disconnect"
        assert isinstance(first["code"], int)
        assert await ws.receive() == first
        for call in (*RECEIVES.values(), *SENDS.values(), *ANSWERS.values()) if shape.denial else RECEIVES.values():
            with pytest.raises(WebSocketDisconnect) as caught:
                await call(ws)
            assert caught.value.code == first["code"]
        assert [message async for message in ws] == []
    assert server.calls_after_disconnect == 0
    assert server.types == ["websocket.accept"]
    assert states(ws) == (DISCONNECTED, CONNECTED)


@each_shape
@pytest.mark.parametrize("call", ITERATORS.values(), ids=ITERATORS)
async def test_what_the_client_said_before_it_left_is_still_read(
    shape: Shape, call: Callable[[Socket], AsyncIterator[Any]]
) -> None:
    # T7
    ws, server = await opened(shape)
    binary = call is ITERATORS["iter_bytes"]
    for text in ("1", "2"):
        server.say(text.encode() if binary else text)
    server.leave()
    assert [str(message, "ascii") if binary else str(message) async for message in call(ws)] == ["1", "2"]
    assert server.calls_after_disconnect == 0


@each_shape
@calls(SENDS)
async def test_a_send_to_a_client_that_left_has_one_meaning(shape: Shape, call: Call) -> None:
    # P6, T3: the server raises, or drops the message; both are allowed until the disconnect has been read.
    ws, server = await opened(shape)
    server.leave(1000)
    if shape.gone == "silent":
        await call(ws)
    else:
        with pytest.raises(WebSocketDisconnect) as caught:
            await call(ws)
        assert caught.value.code == 1006
        assert states(ws) == (DISCONNECTED, CONNECTED)
    with pytest.raises(WebSocketDisconnect):
        await ws.receive_text()
    with pytest.raises(WebSocketDisconnect):
        await call(ws)
    await ws.close()
    assert server.types == ["websocket.accept"]
    assert server.calls_after_disconnect == 0


async def test_what_the_client_said_is_still_read_after_a_send_found_it_gone() -> None:
    # T7: nothing that arrived is lost, however the end was noticed.
    ws, server = await opened(UVICORN)
    for text in ("a", "b"):
        server.say(text)
    server.leave(4000, "bye")
    found = []
    with anyio.fail_after(DEADLINE):
        async for text in ws.iter_text():
            found.append(text)
            with pytest.raises(WebSocketDisconnect):
                await ws.send_text(text)
    assert found == ["a", "b"]
    assert server.calls_after_disconnect == 0


@calls(RECEIVES | LOOP)
@pytest.mark.parametrize("shape", [UVICORN, STRICT], ids=lambda shape: shape.name)
async def test_a_waiting_reader_learns_of_the_end_that_a_send_noticed_first(shape: Shape, call: Call) -> None:
    ws, server = await opened(shape)
    async with waiting_reader(ws, server, call) as found:
        server._gone = True
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("a")
        server.leave(1001)
    assert found == [StopAsyncIteration if call is next_message else WebSocketDisconnect]
    assert states(ws) == (DISCONNECTED, CONNECTED)
    assert server.calls_after_disconnect == 0


async def test_a_waiting_reader_gets_a_message_although_a_send_noticed_the_end_first() -> None:
    ws, server = await opened()
    async with waiting_reader(ws, server) as found:
        server._gone = True
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("a")
        server.say("last")
    assert found == ["last"]


@calls(RECEIVES | LOOP)
async def test_a_waiting_reader_learns_of_the_end_after_a_close_that_could_not_be_sent(call: Call) -> None:
    ws, server = await opened()
    async with waiting_reader(ws, server, call) as found:
        server.fail = ClientDisconnectedError()
        await ws.close()
        server.leave(1001)
    assert found == [StopAsyncIteration if call is next_message else WebSocketDisconnect]
    assert states(ws) == (DISCONNECTED, DISCONNECTED)


async def test_a_waiting_reader_learns_of_the_end_after_a_send_noticed_it_and_close_was_called() -> None:
    ws, server = await opened()
    async with waiting_reader(ws, server) as found:
        server._gone = True
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("a")
        await ws.close()
        server.leave(1001)
    assert found == [WebSocketDisconnect]


@each_shape
async def test_a_waiting_reader_gets_what_comes_after_your_own_close(shape: Shape) -> None:
    ws, server = await opened(shape)
    async with waiting_reader(ws, server) as found:
        await ws.close(4003)
        server.say("last")
    # granian sends no close while its receive() is awaited, so who waits there is woken by the close.
    assert found == ([WebSocketDisconnect] if shape.cancel_eats else ["last"])
    with pytest.raises(WebSocketStateError, match="you closed it with 4003"):
        await ws.receive_text()


@each_shape
async def test_after_your_own_close_a_waiting_reader_is_told_your_own_code(shape: Shape) -> None:
    # Servers disagree here: 1000, 1005 or the code.
    ws, server = await opened(shape)

    async def read(ws: Socket) -> Any:
        return await ws.receive()

    async with waiting_reader(ws, server, read) as found:
        await ws.close(4003, "why")
        server.leave(1005)
    assert found == [{"type": "websocket.disconnect", "code": 4003, "reason": "why"}]
    assert states(ws) == (DISCONNECTED, DISCONNECTED)


# What the server raises

BROKEN: dict[str, Callable[[], Exception]] = {
    "OSError": lambda: ConnectionResetError("gone"),
    "ClientDisconnected": ClientDisconnectedError,
    "RuntimeError": lambda: RuntimeError("Unexpected ASGI message"),
}


async def failing(where: str, error: Exception) -> tuple[Socket, FakeServer, Call]:
    """A WebSocket whose server raises the error, and the call that meets it."""
    if where in ("send", "receive", "receive_text"):
        ws, server = await opened(path="/a\n\x1b[31m")
    else:
        server = FakeServer(path="/a\n\x1b[31m")
        ws = socket_on(server)
    if where == "connect":
        server._inbox.clear()
    if where in ("connect", "receive_text"):
        server.put(error)
    else:
        server.fail = error
    call = ({"connect": ANSWERS["accept"], "send": SENDS["send_text"]} | ANSWERS | RECEIVES)[where]
    return ws, server, call


@pytest.mark.parametrize("where", ["connect", "accept", "refuse", "send", "receive_text"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_an_error_of_the_connection_is_a_disconnect(
    where: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asgiws")
    error = BROKEN[kind]()
    ws, server, call = await failing(where, error)
    with pytest.raises(WebSocketDisconnect) as caught:
        await call(ws)
    assert (caught.value.code, caught.value.reason) == (1006, "")
    assert caught.value.__cause__ is error
    assert ws.client_state is DISCONNECTED
    sent = list(server.sent)
    server.fail = None
    server.leave(1006)
    with anyio.fail_after(DEADLINE):
        assert await ws.receive() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    with pytest.raises(WebSocketDisconnect):
        await ws.send_text("a")
    await ws.close()
    assert server.sent == sent
    # Only a RuntimeError might be a bug: it leaves a trace, which S20 keeps on one line.
    assert [record.levelname for record in caplog.records] == (["DEBUG"] if kind == "RuntimeError" else [])
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert ws.id in record.getMessage()


@pytest.mark.parametrize("where", ["connect", "accept", "refuse", "send", "receive_text"])
async def test_any_other_error_of_the_server_comes_out_unchanged(where: str) -> None:
    error = KeyError("a bug")
    ws, _, call = await failing(where, error)
    with pytest.raises(KeyError) as caught:
        await call(ws)
    assert caught.value is error
    assert ws.client_state is not DISCONNECTED


@calls(SENDS)
async def test_an_error_of_the_server_in_a_send_leaves_the_connection_open(call: Call) -> None:
    # T27
    ws, server = await opened()
    server.fail = ValueError("too big")
    with pytest.raises(ValueError, match="too big"):
        await call(ws)
    server.fail = None
    await ws.send_text("b")
    assert server.texts == ["b"]


@pytest.mark.parametrize("error", [*(make() for make in BROKEN.values()), KeyError("a bug")], ids=repr)
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_close_that_cannot_be_sent_is_an_end_all_the_same(
    error: Exception, accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asgiws")
    server = FakeServer()
    ws = socket_on(server)
    await ws.receive()
    if accepted:
        await ws.accept()
    server.fail = error
    await ws.close()
    await ws.close()
    assert states(ws) == (DISCONNECTED, DISCONNECTED)
    assert "websocket.close" not in server.types
    assert not caplog.records


@pytest.mark.parametrize("error", [RuntimeError("closed"), ConnectionResetError()], ids=repr)
async def test_an_error_of_receive_after_your_own_close_is_no_news(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    # T2
    caplog.set_level(logging.DEBUG, "asgiws")
    ws, server = await opened()
    async with waiting_reader(ws, server) as found:
        await ws.close()
        server.put(error)
    assert found == [WebSocketDisconnect]
    assert states(ws) == (DISCONNECTED, DISCONNECTED)
    assert not caplog.records


# Many tasks


@each_shape
async def test_many_tasks_that_send_at_once_send_whole_messages_in_their_own_order(shape: Shape) -> None:
    # P15, T11
    ws, server = await opened(shape)

    async def talk(number: int) -> None:
        for count in range(5):
            kind = (number + count) % 3
            text = f"{number}:{count}"
            if kind == 0:
                await ws.send_text(text)
            elif kind == 1:
                await ws.send_bytes(text.encode())
            else:
                await ws.send_json(text)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(talk, number)
    messages = [
        (event.get("text") or event["bytes"].decode()).strip('"').split(":")
        for event in server.sent
        if event["type"] == "websocket.send"
    ]
    assert len(messages) == 500
    for number in range(100):
        assert [count for name, count in messages if name == str(number)] == list("01234")
    assert server.most_sending == 1
    assert not server.choked


async def test_sends_go_out_in_the_order_in_which_they_were_called() -> None:
    ws, server = await opened()
    async with held(ws, server) as start:
        for text in "abcde":
            await start(ws.send_text, text)
    assert server.texts == list("abcde")


@asynccontextmanager
async def held(ws: Socket, server: FakeServer) -> AsyncIterator[Callable[..., Awaitable[anyio.CancelScope]]]:
    """A server whose client does not read until the end of the block.

    It gives a function that starts a call in a task of its own, and returns when that waits, with its cancel scope.
    """
    hold = server.hold = anyio.Event()

    async def run(scope: anyio.CancelScope, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with scope:
            await call(*args)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:

            async def start(call: Callable[..., Awaitable[Any]], *args: Any) -> anyio.CancelScope:
                scope = anyio.CancelScope()
                group.start_soon(run, scope, call, *args)
                before = server.sending + len(ws._queue or ())
                await soon(lambda: server.sending + len(ws._queue or ()) > before)
                return scope

            yield start
            hold.set()
            server.hold = None


@given(
    shape=st.sampled_from(SHAPES),
    cancelled=st.lists(st.booleans(), min_size=1, max_size=8),
)
async def test_a_cancelled_send_is_sent_whole_or_not_at_all_and_the_queue_goes_on(
    shape: Shape, cancelled: list[bool]
) -> None:
    # P17, with each way in which servers treat a send that is cancelled while it is blocked.
    ws, server = await opened(shape)
    async with held(ws, server) as start:
        scopes = [await start(ws.send_text, str(number)) for number in range(len(cancelled))]
        for scope, cancel in zip(scopes, cancelled, strict=True):
            if cancel:
                scope.cancel()
    expected = [str(number) for number, cancel in enumerate(cancelled) if not cancel or (number == 0 and shape.late)]
    assert server.texts == expected
    with anyio.fail_after(DEADLINE):
        await ws.send_text("next")
    assert server.texts == [*expected, "next"]
    assert server.most_sending == 1
    assert not server.choked


@each_shape
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_send_that_was_under_way_when_the_end_was_read_fails_as_that_end(shape: Shape, kind: str) -> None:
    ws, server = await opened(shape)
    caught: list[WebSocketDisconnect] = []

    async def send() -> None:
        try:
            await ws.send_text("a")
        except WebSocketDisconnect as error:
            caught.append(error)

    async with waiting_reader(ws, server) as found, held(ws, server) as start:
        await start(send)
        server.leave(1006)
        await soon(lambda: found)
        server.fail = BROKEN[kind]()
    assert found == [WebSocketDisconnect]
    assert [error.code for error in caught] == [1006]
    assert states(ws) == (DISCONNECTED, CONNECTED)
    assert server.calls_after_disconnect == 0


async def test_nothing_follows_a_close_that_waits_for_its_turn() -> None:
    ws, server = await opened()
    refused: list[str] = []

    async def send(text: str) -> None:
        try:
            await ws.send_text(text)
        except WebSocketStateError:
            refused.append(text)

    async with held(ws, server) as start:
        for text in "ab":
            await start(send, text)
        await start(ws.close)
        await start(send, "c")
    assert server.types[-1] == "websocket.close"
    assert server.texts[0] == "a"
    assert sorted(server.texts + refused) == ["a", "b", "c"]
    assert "c" in refused
    assert not server.choked


async def test_what_was_sent_before_a_close_goes_out_before_it() -> None:
    # First come, first served: the close takes its turn behind the messages.
    ws, server = await opened()
    async with held(ws, server) as start:
        for text in "ab":
            await start(ws.send_text, text)
        await start(ws.close)
    assert server.texts == ["a", "b"]
    assert server.types[-1] == "websocket.close"


async def test_two_closes_that_wait_for_their_turn_send_one() -> None:
    # T17
    ws, server = await opened()
    called = anyio.Event()

    async def close_again() -> None:
        called.set()
        await ws.close(4001)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group, held(ws, server) as start:
            await start(ws.send_text, "a")
            await start(ws.close, 4000)
            group.start_soon(close_again)
            await called.wait()
    assert server.types == ["websocket.accept", "websocket.send", "websocket.close"]
    assert server.closed == (4000, "")
    assert not server.choked


async def test_a_close_that_is_cancelled_while_it_waits_has_not_happened() -> None:
    ws, server = await opened()
    async with held(ws, server) as start:
        await start(ws.send_text, "a")
        (await start(ws.close)).cancel()
    await ws.send_text("b")
    await ws.close()
    assert server.texts == ["a", "b"]
    assert server.closed == (1000, "")
    assert not server.choked


@each_shape
async def test_close_after_the_client_left_is_the_end_although_a_send_still_waits(shape: Shape) -> None:
    # The table: LEFT and `websocket.close` lead to ENDED.
    ws, server = await opened(shape)
    async with waiting_reader(ws, server) as found, held(ws, server) as start:
        first = await start(ws.send_text, "a")
        server.leave(1001)
        await soon(lambda: found)
        await ws.close()
        assert states(ws) == (DISCONNECTED, DISCONNECTED)
        first.cancel()
    assert "websocket.close" not in server.types


@each_shape
async def test_a_cancelled_close_does_not_undo_the_end_that_came_meanwhile(shape: Shape) -> None:
    ws, server = await opened(shape)
    async with waiting_reader(ws, server) as found, held(ws, server) as start:
        first = await start(ws.send_text, "a")
        closing = await start(ws.close)
        server.leave(1001)
        await soon(lambda: found)
        closing.cancel()
        first.cancel()
    with anyio.fail_after(DEADLINE):
        with pytest.raises((WebSocketDisconnect, WebSocketStateError)):
            await ws.receive_text()
    assert ws.client_state is DISCONNECTED
    assert server.calls_after_disconnect == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_send_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    # A plain asyncio task can be cancelled between the call of its turn and its next step.
    ws, server = await opened()

    async def first() -> None:
        await ws.send_text("a")
        second.cancel()

    server.hold = anyio.Event()
    tasks = [asyncio.create_task(first())]
    await soon(lambda: server.sending)
    second = asyncio.create_task(ws.send_text("b"))
    await soon(lambda: ws._queue)
    tasks += [second, asyncio.create_task(ws.send_text("c"))]
    await soon(lambda: ws._queue and len(ws._queue) == 2)
    server.hold.set()
    with anyio.fail_after(DEADLINE):
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await ws.send_text("d")
    assert isinstance(results[1], asyncio.CancelledError)
    assert server.texts == ["a", "c", "d"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("answer", ["accept", "send"])
async def test_a_close_that_is_cancelled_as_its_turn_comes_leaves_the_state_as_it_is(answer: str) -> None:
    server = FakeServer()
    ws = socket_on(server)
    await ws.receive()
    if answer == "send":
        await ws.accept()

    async def first() -> None:
        await (ws.accept() if answer == "accept" else ws.send_text("a"))
        closing.cancel()

    server.hold = anyio.Event()
    opening = asyncio.create_task(first())
    await soon(lambda: server.sending)
    closing = asyncio.create_task(ws.close())
    await soon(lambda: ws._queue)
    server.hold.set()
    with anyio.fail_after(DEADLINE):
        await asyncio.gather(opening, closing, return_exceptions=True)
        with pytest.raises(WebSocketStateError):
            await ws.accept()
        await ws.send_text("b")
        await ws.close()
    assert server.texts[-1] == "b"
    assert server.closed == (1000, "")
    assert not server.choked


async def test_a_second_reader_is_refused_and_the_first_goes_on() -> None:
    # P15
    ws, server = await opened()
    async with waiting_reader(ws, server) as found:
        for call in (RECEIVES | RAW | LOOP).values():
            with pytest.raises(WebSocketStateError) as caught:
                await call(ws)
            assert str(caught.value) == "cannot receive: another task is already receiving on this WebSocket"
        server.say("a")
    assert found == ["a"]
    server.say("b")
    assert await ws.receive_text() == "b"
    assert not server.choked


async def test_a_second_reader_of_the_handshake_is_refused() -> None:
    server = FakeServer()
    connect = server._inbox.popleft()
    ws = socket_on(server)
    async with waiting_reader(ws, server, lambda ws: ws.receive()) as found:
        for call in (ANSWERS | RAW).values():
            with pytest.raises(WebSocketStateError, match="another task is already receiving"):
                await call(ws)
        server.put(connect)
    assert found == [{"type": "websocket.connect"}]
    assert not server.choked
    await ws.accept()


async def test_two_tasks_that_answer_send_one_answer() -> None:
    server = FakeServer()
    ws = socket_on(server)
    await ws.receive()
    refused: list[str] = []

    async def answer(call: Call) -> None:
        try:
            await call(ws)
        except WebSocketStateError as error:
            refused.append(str(error))

    async with held(ws, server) as start:
        await start(answer, ANSWERS["accept"])
        await start(answer, ANSWERS["accept"])
        await start(answer, ANSWERS["refuse"])
    assert server.types == ["websocket.accept"]
    assert len(refused) == 2
    assert all(text.endswith("already accepted; close() ends it") for text in refused)


# Cancellation


async def cancelled(call: Awaitable[Any]) -> bool:
    """Whether the call was cut by a cancel scope."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call
    return scope.cancelled_caught


@each_shape
@calls(ANSWERS | {"close": lambda ws: ws.close()})
async def test_a_cancelled_answer_is_not_sent_a_second_time(shape: Shape, call: Call) -> None:
    # It may have gone out already.
    server = FakeServer(shape)
    ws = socket_on(server)
    await ws.receive()
    server.hold = anyio.Event()
    assert await cancelled(call(ws))
    server.hold = None
    for again in ANSWERS.values() if shape.denial else [ANSWERS["accept"]]:
        with pytest.raises(WebSocketStateError):
            await again(ws)
    assert not server.choked


@each_shape
async def test_a_cancelled_reading_of_the_handshake_changes_nothing(shape: Shape) -> None:
    server = FakeServer(shape)
    connect = server._inbox.popleft()
    ws = socket_on(server)
    for call in (ws.accept(), ws.close(), ws.receive()):
        assert await cancelled(call)
        assert states(ws) == (CONNECTING, CONNECTING)
    server.put(connect)
    await ws.accept()
    assert server.status == 101


@each_shape
async def test_a_cancelled_close_is_not_sent_a_second_time(shape: Shape) -> None:
    # P20
    ws, server = await opened(shape)
    server.hold = anyio.Event()
    assert await cancelled(ws.close())
    server.hold = None
    await ws.close()
    assert server.types.count("websocket.close") <= 1
    assert not server.choked
    with pytest.raises(WebSocketStateError, match="you closed it with 1000"):
        await ws.send_text("a")


@each_shape
async def test_a_cancelled_send_leaves_the_connection_open(shape: Shape) -> None:
    ws, server = await opened(shape)
    server.hold = anyio.Event()
    assert await cancelled(ws.send_text("a"))
    server.hold = None
    await ws.send_text("b")
    assert server.texts == (["a", "b"] if shape.late else ["b"])
    await ws.close()
    assert server.closed == (1000, "")


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape is not GRANIAN], ids=lambda shape: shape.name)
async def test_a_cancelled_receive_loses_nothing(shape: Shape) -> None:
    # T8; granian loses a message then, whoever calls it.
    ws, server = await opened(shape)
    for number in range(200):
        if number % 2:
            server.say(str(number))
        assert await cancelled(ws.receive_text())
        if not number % 2:
            server.say(str(number))
    server.leave()
    assert sorted([int(text) async for text in ws.iter_text()]) == list(range(200))


# What is seen of it


@pytest.mark.parametrize("phase", ["OPENING", "OPEN", "CLOSED"])
async def test_the_repr_has_path_and_state_and_never_the_query_string(phase: str) -> None:
    # S20
    server = FakeServer(path="/a\n\x1b[31m'é", query="token=secret")
    ws = socket_on(server)
    if phase != "OPENING":
        await ws.accept()
    if phase == "CLOSED":
        await ws.close()
    assert repr(ws) == f"<WebSocket {server.scope['path']!r} {phase}>"
    assert repr(ws).isprintable()
    assert "secret" not in repr(ws)


async def test_a_failed_close_is_told_on_one_line_to_who_debugs(caplog: pytest.LogCaptureFixture) -> None:
    # S20
    caplog.set_level(logging.DEBUG, "asgiws")
    ws, server = await opened(path="/a\n\x1b[31m")
    server.fail = RuntimeError("two\nlines")
    await ws.close()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert caplog.messages[0].isprintable()


def test_no_text_calls_a_message_delivered_when_send_returns() -> None:
    # P14
    assert "says nothing of its arrival" in " ".join((WebSocket.send_text.__doc__ or "").split())
    for call in (WebSocket.send, WebSocket.send_text, WebSocket.send_bytes, WebSocket.send_json, WebSocket.close):
        assert "deliver" not in (call.__doc__ or "").lower()


LEGACY_AND_SILENT = (UVICORN_LEGACY, HYPERCORN)


@pytest.mark.parametrize("shape", LEGACY_AND_SILENT, ids=lambda shape: shape.name)
async def test_a_connection_has_one_end_whatever_its_handler_does(shape: Shape) -> None:
    # P20
    ends: list[Callable[[Socket], Awaitable[Any]]] = [
        lambda ws: ws.close(1011),
        lambda ws: ws.close(4000, "why"),
        lambda ws: ws.receive_text(),
        lambda ws: ws.send_text("a"),
    ]
    for first in ends:
        for second in ends:
            ws, server = await opened(shape)
            server.leave()
            for call in (first, second):
                with suppress(WebSocketDisconnect, WebSocketStateError):
                    await call(ws)
            await ws.close()
            assert server.types.count("websocket.close") <= 1
            assert ws.application_state is DISCONNECTED
            assert not server.choked
            assert server.calls_after_disconnect == 0
