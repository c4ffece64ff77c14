"""The fake servers themselves: a test can only fail on them if they choke where the real ones do."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest

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
    HTTPAnswer,
    ServerChokedError,
    Shape,
    converse,
    request,
    soon,
)

pytestmark = pytest.mark.anyio

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

ACCEPT: dict[str, Any] = {"type": "websocket.accept"}
TEXT: dict[str, Any] = {"type": "websocket.send", "text": "a"}
CLOSE: dict[str, Any] = {"type": "websocket.close"}
START: dict[str, Any] = {
    "type": "websocket.http.response.start",
    "status": 401,
    "headers": [(b"content-length", b"2")],
}
BODY: dict[str, Any] = {"type": "websocket.http.response.body", "body": b"no"}


async def opened(shape: Shape = UVICORN, **options: Any) -> FakeServer:
    server = FakeServer(shape, **options)
    assert await server.receive() == {"type": "websocket.connect"}
    await server.send(ACCEPT)
    return server


ORDERS: list[tuple[str, list[dict[str, Any]]]] = [
    ("a message before accept", [TEXT]),
    ("a second accept", [ACCEPT, ACCEPT]),
    ("a message after close", [ACCEPT, CLOSE, TEXT]),
    ("a second close", [ACCEPT, CLOSE, CLOSE]),
    ("a denial after accept", [ACCEPT, START]),
    ("a body without its start", [BODY]),
    ("a message after a denial", [START, TEXT]),
    ("a close after a denial", [START, BODY, CLOSE]),
    ("an accept after a refusal", [CLOSE, ACCEPT]),
    ("an event of HTTP", [{"type": "http.response.start", "status": 403, "headers": []}]),
    ("an event without a type", [{}]),
]


@pytest.mark.parametrize(("name", "events"), ORDERS, ids=[name for name, _ in ORDERS])
async def test_a_server_chokes_on_the_wrong_order(name: str, events: list[dict[str, Any]]) -> None:
    server = FakeServer()
    for event in events[:-1]:
        await server.send(event)
    with pytest.raises(ServerChokedError):
        await server.send(events[-1])
    assert len(server.choked) == 1
    assert server.sent == events[:-1]


CONTENTS: list[dict[str, Any]] = [
    {"type": "websocket.send"},
    {"type": "websocket.send", "text": None, "bytes": None},
    {"type": "websocket.send", "text": "a", "bytes": b"a"},
    {"type": "websocket.send", "text": b"a"},
    {"type": "websocket.send", "text": "\ud800"},
    {"type": "websocket.send", "bytes": bytearray(b"a")},
    {"type": "websocket.send", "bytes": memoryview(b"a")},
    {"type": "websocket.close", "code": 999},
    {"type": "websocket.close", "code": 1005},
    {"type": "websocket.close", "code": 1006},
    {"type": "websocket.close", "code": 1010},
    {"type": "websocket.close", "code": 1015},
    {"type": "websocket.close", "code": 2999},
    {"type": "websocket.close", "code": 5000},
    {"type": "websocket.close", "code": None},
    {"type": "websocket.close", "code": True},
    {"type": "websocket.close", "code": 1000, "reason": "x" * 124},
    {"type": "websocket.close", "code": 1000, "reason": "é" * 62},
]


@pytest.mark.parametrize("event", CONTENTS, ids=lambda event: str(list(event.values())[1:]).split(" at ")[0])
async def test_a_server_chokes_on_an_event_that_no_wire_carries(event: dict[str, Any]) -> None:
    server = await opened()
    with pytest.raises(ServerChokedError):
        await server.send(event)
    assert server.choked
    assert server.sent == [ACCEPT]


@pytest.mark.parametrize(
    "answer",
    [
        {"subprotocol": "not.offered"},
        {"subprotocol": "a b"},
        {"subprotocol": ""},
        {"subprotocol": b"chat"},
        {"headers": [("name", b"value")]},
        {"headers": [(b"name", "value")]},
        {"headers": [(b"Name", b"value")]},
        {"headers": [(b"na me", b"value")]},
        {"headers": [(b"name", b"a\r\nb: c")]},
        {"headers": [(b"name", b"a\x00")]},
        {"headers": [(b"name", b" a ")]},
        {"headers": [(b"sec-websocket-protocol", b"chat")]},
    ],
    ids=repr,
)
async def test_a_server_chokes_on_a_bad_accept(answer: dict[str, Any]) -> None:
    server = FakeServer(subprotocols=["chat", "a b", ""])
    with pytest.raises(ServerChokedError):
        await server.send(ACCEPT | answer)
    assert server.status is None


@pytest.mark.parametrize(
    ("start", "body"),
    [
        (START | {"status": 101}, None),
        (START | {"status": 600}, None),
        (START | {"status": "401"}, None),
        (START | {"headers": []}, None),
        (START | {"headers": [(b"content-length", b"2")] * 2}, None),
        ({"type": "websocket.http.response.start", "status": 401}, None),
        (START, BODY | {"body": b"too long"}),
        (START, {"type": "websocket.http.response.body"}),
    ],
    ids=repr,
)
async def test_a_server_chokes_on_a_bad_denial(start: dict[str, Any], body: dict[str, Any] | None) -> None:
    server = FakeServer()
    if body is not None:
        await server.send(start)
    with pytest.raises(ServerChokedError):
        await server.send(start if body is None else body)
    assert server.choked


async def test_daphne_has_no_denial_and_granian_takes_one_body() -> None:
    with pytest.raises(ServerChokedError):
        await FakeServer(DAPHNE).send(START)
    server = FakeServer(GRANIAN)
    await server.send(START)
    with pytest.raises(ServerChokedError):
        await server.send(BODY | {"more_body": True})


async def test_daphne_closes_with_own_codes_only_once_the_handshake_is_accepted() -> None:
    refused = FakeServer(DAPHNE)
    await refused.send(CLOSE | {"code": 1008})
    assert refused.status == 403
    server = await opened(DAPHNE)
    with pytest.raises(ServerChokedError):
        await server.send(CLOSE | {"code": 1011})
    await server.send(CLOSE | {"code": 4011, "reason": "why"})
    assert server.closed == (4011, "why")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_what_a_server_takes_is_what_the_client_sees(shape: Shape) -> None:
    server = FakeServer(shape, "/room", query="a=1", headers={"x": "é"}, subprotocols=["chat"], root_path="/api")
    assert server.status is None
    assert server.closed is None
    await server.send(ACCEPT | {"subprotocol": "chat", "headers": [(b"x", b"y")]})
    await server.send(TEXT | {"bytes": None})
    await server.send({"type": "websocket.send", "bytes": b""})
    await server.send(CLOSE)
    assert server.status == 101
    assert server.texts == ["a"]
    assert server.types == ["websocket.accept", "websocket.send", "websocket.send", "websocket.close"]
    assert server.closed == (1000, "")
    assert not server.choked


async def test_a_refused_client_sees_the_denial_or_a_403() -> None:
    server = FakeServer()
    await server.send(START)
    await server.send(BODY)
    assert (server.status, server.body) == (401, b"no")
    server = FakeServer()
    await server.send(CLOSE)
    assert (server.status, server.body) == (403, b"")


def test_the_scopes_differ_as_those_of_the_servers_do() -> None:
    scopes = {shape.name: FakeServer(shape, headers=[("host", "a"), (b"x", "1")]).scope for shape in SHAPES}
    assert scopes["uvicorn-websockets"]["asgi"]["spec_version"] == "2.4"
    assert scopes["hypercorn"]["asgi"]["spec_version"] == "2.3"
    assert scopes["daphne"]["asgi"] == {"version": "3.0"}
    assert not {"scheme", "http_version", "extensions", "state"} & set(scopes["daphne"])
    assert scopes["daphne"]["client"] == ["127.0.0.1", 51578]
    assert scopes["granian"]["client"] == ("127.0.0.1", "51578")
    assert all(scope["headers"] == [(b"host", b"a"), (b"x", b"1")] for scope in scopes.values())
    assert FakeServer(query=b"\xff", state={"k": 1}).scope["query_string"] == b"\xff"
    assert FakeServer(state={"k": 1}).scope["state"] == {"k": 1}


async def test_the_client_speaks_with_one_key_or_both() -> None:
    server = await opened(UVICORN)
    server.say("")
    server.say(b"")
    assert await server.receive() == {"type": "websocket.receive", "text": ""}
    assert await server.receive() == {"type": "websocket.receive", "bytes": b""}
    server = await opened(HYPERCORN)
    server.say("")
    assert await server.receive() == {"type": "websocket.receive", "text": "", "bytes": None}


@pytest.mark.parametrize(
    ("shape", "code", "told"),
    [
        (UVICORN, 4000, {"code": 4000, "reason": "bye"}),
        (UVICORN, None, {"code": 1005, "reason": "bye"}),
        (HYPERCORN, 4000, {"code": 1006}),
        (GRANIAN, 4000, {"code": 4000}),
        (GRANIAN, None, {"code": 1005}),
        (DAPHNE, 4000, {"code": 4000}),
        (DAPHNE, None, {"code": None}),
    ],
)
async def test_what_is_told_of_the_clients_close(shape: Shape, code: int | None, told: dict[str, Any]) -> None:
    server = await opened(shape)
    server.leave(code, "bye")
    assert await server.receive() == {"type": "websocket.disconnect"} | told


async def test_receive_after_the_disconnect_is_counted_and_blocks_or_tells_it_again() -> None:
    server = await opened(UVICORN_LEGACY)
    server.leave()
    await server.receive()
    assert await server.receive() == {"type": "websocket.disconnect", "code": 1005}
    assert server.calls_after_disconnect == 1
    server = await opened(UVICORN)
    server.leave()
    await server.receive()
    with anyio.move_on_after(0.01) as scope:
        await server.receive()
    assert scope.cancelled_caught
    assert server.calls_after_disconnect == 1


async def test_send_after_the_client_left_raises_or_is_dropped() -> None:
    for shape, error in ((UVICORN, ClientDisconnectedError), (STRICT, RuntimeError)):
        server = await opened(shape)
        server.leave()
        with pytest.raises(error):
            await server.send(TEXT)
        assert server.sent == [ACCEPT]
    server = await opened(HYPERCORN)
    server.leave()
    await server.send(TEXT)
    assert server.sent == [ACCEPT]


async def test_a_client_that_vanished_is_told_first() -> None:
    server = FakeServer()
    server.vanish()
    assert (await server.receive())["type"] == "websocket.disconnect"


async def test_send_and_receive_raise_what_a_test_wants() -> None:
    server = await opened()
    server.fail = ConnectionResetError("gone")
    with pytest.raises(ConnectionResetError):
        await server.send(TEXT)
    with pytest.raises(ServerChokedError):
        await server.send(TEXT | {"bytes": b""})
    server.fail = None
    await server.send(TEXT)
    server.say("a")
    server.put(ConnectionResetError("gone"))
    assert (await server.receive())["text"] == "a"
    with pytest.raises(ConnectionResetError):
        await server.receive()


async def test_a_cancelled_receive_loses_an_event_where_it_does_on_the_real_server() -> None:
    for shape, kept in ((UVICORN, ["a", "b"]), (GRANIAN, ["b"])):
        server = await opened(shape)
        server.say("a")
        server.say("b")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server.receive()
        server.leave()
        found = []
        while (event := await server.receive())["type"] == "websocket.receive":
            found.append(event["text"])
        assert found == kept


async def test_a_cancelled_send_is_late_where_it_is_on_the_real_server() -> None:
    for shape, sent in ((UVICORN, []), (UVICORN_LEGACY, ["a"])):
        server = await opened(shape)
        server.hold = anyio.Event()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server.send(TEXT)
        assert server.texts == sent
        assert server.sending == 0


async def test_two_receives_at_once_choke_and_two_sends_are_counted() -> None:
    server = await opened()
    server.hold = anyio.Event()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(server.receive)
            group.start_soon(server.send, TEXT)
            group.start_soon(server.send, TEXT)
            await soon(lambda: server.sending == 2 and server._receiving)
            with pytest.raises(ServerChokedError):
                await server.receive()
            server.hold.set()
            await server.until(lambda it: len(it.texts) == 2)
            server.leave()
    assert server.most_sending == 2
    assert server.sending == 0


async def test_waiting_for_what_never_comes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.DEADLINE", 0.01)
    with pytest.raises(TimeoutError):
        await FakeServer().until(lambda it: it.texts, timeout=0.01)
    with pytest.raises(TimeoutError):
        await soon(lambda: False)


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send(ACCEPT)
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


async def test_a_conversation_is_run_to_its_end() -> None:
    server = await converse(echo, FakeServer(HYPERCORN), "a", "b")
    assert server.types == ["websocket.accept"]
    with pytest.raises(ClientDisconnectedError):
        await converse(echo, FakeServer(UVICORN), "a")


async def test_a_conversation_that_never_ends_or_chokes_the_server_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def careless(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        with pytest.raises(ServerChokedError):
            await send(TEXT)

    with pytest.raises(AssertionError):
        await converse(careless, FakeServer())
    monkeypatch.setattr("tests.fakes.DEADLINE", 0.01)
    with pytest.raises(TimeoutError):
        await converse(echo, FakeServer(), leave=-1)


def answering(*events: dict[str, Any], error: Exception | None = None) -> Callable[..., Awaitable[None]]:
    """An application that reads the whole body, sends these events and raises."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
        for answer in events:
            await send({**answer, "body": body} if answer.get("body") == "echo" else answer)
        if error is not None:
            raise error

    return app


OK: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"x", b"1"), (b"y", b"2"), (b"y", b"3")],
}


async def test_a_request_gives_the_answer() -> None:
    app = answering(OK, {"type": "http.response.body", "body": "echo"})
    answer = await request(app, "POST", "/", query="a=1", headers={"x": "1"}, body=[b"a", b"b"])
    assert answer == HTTPAnswer(200, OK["headers"], b"ab")
    assert answer.header("x") == "1"
    assert answer.header("z") is None
    with pytest.raises(AssertionError):
        answer.header("y")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"type": "http.response.body"}],
        [OK],
        [OK, OK],
        [OK, {"type": "http.response.body", "more_body": True}],
        [OK, {"type": "http.response.body"}, {"type": "http.response.body"}],
    ],
    ids=repr,
)
async def test_an_answer_out_of_order_or_without_its_end_fails(events: list[dict[str, Any]]) -> None:
    with pytest.raises(AssertionError):
        await request(answering(*events), "GET", "/")


async def test_what_the_application_raises_comes_out_unless_it_is_expected() -> None:
    end = {"type": "http.response.body"}
    with pytest.raises(KeyError):
        await request(answering(OK, end, error=KeyError()), "GET", "/")
    answer = await request(answering(OK, end, error=KeyError()), "GET", "/", raises=KeyError)
    assert answer.status == 200
    with pytest.raises(AssertionError):
        await request(answering(OK, end), "GET", "/", raises=KeyError)
