"""The servers that the test clients can be like, and the bad peers that they can play.

What is expected here was measured on the real servers. Every test of the `client_of` fixture runs with both clients,
each on asyncio and trio.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asgiws import App, WebSocket, WebSocketDisconnect
from asgiws.errors import WebSocketStateError
from asgiws.testing import SHAPES, ServerChokedError, Shape, StuckError, TestClient, WebSocketDenied
from asgiws.testing.shapes import DAPHNE, GRANIAN, HYPERCORN, STRICT, UVICORN, UVICORN_LEGACY, UVICORN_WSPROTO
from tests.clients import MakeClient, make_client
from tests.fakes import DEADLINE

pytestmark = pytest.mark.anyio

every_server = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
LEG, SIO, WSP = UVICORN_LEGACY, UVICORN, UVICORN_WSPROTO


@pytest.fixture(params=["async", "plain"])
def client_of(request: pytest.FixtureRequest, anyio_backend: str) -> MakeClient:
    return make_client(request.param, anyio_backend)


class Recorder:
    """A raw application that writes down what it receives and what its `send` raises.

    Args:
        script: What it sends, each after `receive` was called so often before: ("receive", event, ...).
    """

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.scope: dict[str, Any] = {}
        self.seen: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        self.scope = scope
        for step in self.script:
            if step == "receive":
                self.seen.append(await receive())
            else:
                try:
                    await send(step)
                except OSError as error:
                    self.seen.append(type(error).__name__)


ACCEPT: dict[str, Any] = {"type": "websocket.accept"}
TEXT: dict[str, Any] = {"type": "websocket.send", "text": "a"}
CLOSE: dict[str, Any] = {"type": "websocket.close", "code": 4003, "reason": "why"}


# The scope


@every_server
async def test_the_scope_is_shaped_as_the_servers(client_of: MakeClient, shape: Shape) -> None:
    app = Recorder("receive", ACCEPT, "receive")
    headers = [("x-one", "1"), ("x-one", "2"), ("x_two", "3")]
    client = client_of(app, server=shape, root_path="/api/")
    async with client.websocket_connect("/a%2Fb?c=1", headers=headers, subprotocols=["chat", "v2"]) as ws:
        scope = ws.scope
    assert app.scope is scope
    uvicorn = shape in (LEG, SIO, WSP)
    assert scope["type"] == "websocket"
    assert scope["path"] == ("/api/a/b" if uvicorn else "/a/b")
    assert scope["raw_path"] == (b"/api/a%2Fb" if uvicorn else b"/a%2Fb")
    assert scope["root_path"] == "/api"
    assert scope["query_string"] == b"c=1"
    assert scope["subprotocols"] == ["chat", "v2"]
    assert scope["asgi"].get("spec_version") == shape.spec_version
    assert scope["client"] == {"daphne": ["testclient", 50000], "granian": ("testclient", "50000")}.get(
        shape.name, ("testclient", 50000)
    )
    assert scope["server"] == (["testserver", 80] if shape is DAPHNE else ("testserver", 80))
    assert [key in scope for key in ("scheme", "http_version", "extensions", "state")] == [shape is not DAPHNE] * 4
    assert ("websocket.http.response" in scope.get("extensions", {})) is (shape is not DAPHNE)
    pairs = scope["headers"]
    expected = [(b"x-one", b"1,2")] if shape is DAPHNE else [(b"x-one", b"1"), (b"x-one", b"2"), (b"x_two", b"3")]
    assert [pair for pair in pairs if pair[0].startswith(b"x")] == expected
    assert (b"sec-websocket-protocol" in dict(pairs)) is (shape is not WSP)
    assert (b"host", b"testserver") in pairs


@every_server
async def test_the_scope_of_a_request_is_shaped_as_the_servers(client_of: MakeClient, shape: Shape) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scopes.append(scope)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    scopes: list[Any] = []
    async with client_of(app, server=shape, root_path="/api") as client:
        await client.get("/x?a=1")
    (scope,) = scopes
    assert scope["path"] == ("/api/x" if shape in (LEG, SIO, WSP) else "/x")
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert ("state" in scope) is (shape is not DAPHNE)
    assert scope["query_string"] == b"a=1"


async def test_the_name_uvicorn_means_what_uvicorn_picks_itself(client_of: MakeClient) -> None:
    seen = []
    for server in ("uvicorn", "uvicorn-websockets-sansio"):
        app = Recorder("receive", ACCEPT, "receive")
        async with client_of(app, server=server).websocket_connect("/") as ws:
            await ws.abort()
        seen.append(app.seen)
    assert seen[0] == seen[1]


async def test_a_server_may_be_a_shape_of_ones_own(client_of: MakeClient) -> None:
    app = Recorder("receive", ACCEPT, "receive")
    own = dataclasses.replace(UVICORN, name="own", abort_code=1001)
    async with client_of(app, server=own).websocket_connect("/") as ws:
        await ws.abort()
    assert app.seen[-1]["code"] == 1001


# The end


@every_server
@pytest.mark.parametrize("code", [4000, None])
async def test_what_the_application_is_told_of_the_clients_close(
    client_of: MakeClient, shape: Shape, code: int | None
) -> None:
    app = Recorder("receive", ACCEPT, "receive")
    async with client_of(app, server=shape).websocket_connect("/") as ws:
        await ws.close(code, "bye")
    told = {k: v for k, v in app.seen[-1].items() if k != "type"}
    if shape is HYPERCORN:
        assert told == {"code": 1006}
    elif shape is DAPHNE:
        assert told == {"code": code}
    elif shape is GRANIAN:
        assert told == {"code": code or 1005}
    else:
        assert told == {"code": code or 1005, "reason": "bye"}


@pytest.mark.parametrize(
    ("shape", "code"),
    [(LEG, 1006), (SIO, 1005), (WSP, 1005), (HYPERCORN, 1006), (DAPHNE, 1006), (GRANIAN, 1005), (STRICT, 1006)],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_what_the_application_is_told_of_a_broken_connection(
    client_of: MakeClient, shape: Shape, code: int
) -> None:
    app = Recorder("receive", ACCEPT, "receive")
    async with client_of(app, server=shape).websocket_connect("/") as ws:
        await ws.abort()
        with pytest.raises(WebSocketStateError, match=r"this session is over \(you aborted it\)"):
            await ws.receive()
    assert app.seen[-1] == {"type": "websocket.disconnect", "code": code}


@pytest.mark.parametrize(
    ("shape", "code"),
    [(LEG, 1005), (SIO, 4003), (WSP, 4003), (HYPERCORN, 1000), (DAPHNE, 4003), (GRANIAN, 1005), (STRICT, 4003)],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_what_the_application_is_told_after_its_own_close(client_of: MakeClient, shape: Shape, code: int) -> None:
    app = Recorder("receive", ACCEPT, CLOSE, "receive")
    async with client_of(app, server=shape).websocket_connect("/") as ws:
        await ws.expect_close(4003, reason="why")
    assert app.seen[-1]["type"] == "websocket.disconnect"
    assert app.seen[-1]["code"] == code


@pytest.mark.parametrize(
    ("shape", "code"),
    [(LEG, 1006), (SIO, 1006), (WSP, 1006), (HYPERCORN, None), (DAPHNE, 1006), (GRANIAN, 1005)],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_what_the_application_is_told_after_its_refusal(
    client_of: MakeClient, shape: Shape, code: int | None
) -> None:
    app = Recorder("receive", CLOSE, "receive")
    error = WebSocketDenied if code else StuckError  # on hypercorn receive() never returns
    with pytest.raises(error):
        await client_of(app, server=shape, timeout=0.05 if code is None else 5).websocket_connect("/").__aenter__()
    assert [event.get("code") for event in app.seen[1:]] == ([code] if code else [])


@every_server
async def test_a_receive_after_the_disconnect_tells_it_again_or_never_returns(
    client_of: MakeClient, shape: Shape
) -> None:
    app = Recorder("receive", ACCEPT, "receive", "receive")
    again = shape in (LEG, GRANIAN)
    with (
        contextlib.nullcontext()
        if again
        else pytest.raises(StuckError, match=r"receive\(\) again after the disconnect")
    ):
        async with client_of(app, server=shape, timeout=5 if again else 0.05).websocket_connect("/"):
            pass
    assert [event["code"] for event in app.seen[2:]] == ([1005] if again else [])


async def raises_at_once(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError


async def raises_after_accept(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(ACCEPT)
    raise KeyError


@pytest.mark.parametrize(
    ("shape", "raised", "returned"),
    [
        (LEG, (500, 1006), (500, 1006)),
        (SIO, (500, 1006), (500, 1006)),
        (WSP, (500, 1006), (500, 1006)),
        (HYPERCORN, (500, 1011), (500, 1011)),
        (DAPHNE, (500, 1011), (None, None)),
        (GRANIAN, (403, 1005), (403, 1005)),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_what_a_client_sees_of_an_application_that_raises_or_returns(
    client_of: MakeClient, shape: Shape, raised: Any, returned: Any
) -> None:
    async def status(app: Any) -> int | None:
        try:
            await client_of(app, server=shape, raise_server_exceptions=False).websocket_connect("/").__aenter__()
        except WebSocketDenied as denied:
            return denied.status_code
        except WebSocketDisconnect:  # the connection broke
            return None
        return 101

    async def code(app: Any) -> int | None:
        async with client_of(app, server=shape, raise_server_exceptions=False).websocket_connect("/") as ws:
            try:
                return int((await ws.expect_close(timeout=0.05))[0])
            except StuckError:
                return None

    assert (await status(raises_at_once), await code(raises_after_accept)) == raised
    assert (await status(Recorder()), await code(Recorder("receive", ACCEPT))) == returned


# What reaches the other side


@every_server
async def test_a_message_to_the_application_has_one_key_or_both(client_of: MakeClient, shape: Shape) -> None:
    app = Recorder("receive", ACCEPT, "receive", "receive", "receive")
    async with client_of(app, server=shape).websocket_connect("/") as ws:
        await ws.send_text("")
        await ws.send_bytes(b"")
    if shape is HYPERCORN:
        assert app.seen[1] == {"type": "websocket.receive", "text": "", "bytes": None}
        assert app.seen[2] == {"type": "websocket.receive", "text": None, "bytes": b""}
    else:
        assert app.seen[1:3] == [{"type": "websocket.receive", "text": ""}, {"type": "websocket.receive", "bytes": b""}]


@every_server
async def test_headers_of_accept_and_empty_messages_reach_the_client_where_the_server_sends_them(
    client_of: MakeClient, shape: Shape
) -> None:
    accept = {**ACCEPT, "headers": [(b"x-room", b"1"), (b"set-cookie", b"a=1")]}
    app = Recorder(
        "receive", accept, {**TEXT, "text": ""}, {"type": "websocket.send", "bytes": b""}, TEXT, {**CLOSE, "code": 4000}
    )
    client = client_of(app, server=shape)
    async with client.websocket_connect("/") as ws:
        assert ws.response_headers.get("x-room") == (None if shape in (DAPHNE, GRANIAN) else "1")
        assert [message async for message in ws] == (["a"] if shape is DAPHNE else ["", b"", "a"])
    assert dict(client.cookies) == ({} if shape in (DAPHNE, GRANIAN) else {"a": "1"})


@pytest.mark.parametrize(
    ("shape", "event"),
    [
        (DAPHNE, {**CLOSE, "code": 1011}),
        (DAPHNE, {"type": "websocket.send", "bytes": bytearray(b"a")}),
        (UVICORN, {**CLOSE, "code": 1005}),
        (UVICORN, {**CLOSE, "reason": "x" * 124}),
        (UVICORN, ACCEPT),
        (GRANIAN, {**CLOSE, "code": 999}),
        (STRICT, {"type": "websocket.send", "bytes": memoryview(b"a")}),
        (STRICT, {**CLOSE, "code": 1014}),
    ],
)
async def test_what_the_server_cannot_take_fails_the_test(client_of: MakeClient, shape: Shape, event: Any) -> None:
    with pytest.raises(ServerChokedError, match=f"^{shape.name} chokes on: "):
        async with client_of(Recorder("receive", ACCEPT, event), server=shape).websocket_connect("/") as ws:
            await ws.receive()


@pytest.mark.parametrize(
    "event", [{**CLOSE, "code": 1014}, {"type": "websocket.send", "bytes": bytearray(b"a")}], ids=["code", "bytearray"]
)
async def test_what_only_another_server_cannot_take_is_taken(client_of: MakeClient, event: Any) -> None:
    for shape in (LEG, SIO, WSP, HYPERCORN, GRANIAN):
        accept = {**ACCEPT, "headers": [(b"X-Room", b" 1 ")]}
        async with client_of(Recorder("receive", accept, event), server=shape).websocket_connect("/") as ws:
            assert ws.accepted_subprotocol is None


START: dict[str, Any] = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x", b"1")]}
BODY: dict[str, Any] = {"type": "websocket.http.response.body", "body": b"no"}


@every_server
async def test_a_denial_reaches_the_client_where_the_server_knows_it(client_of: MakeClient, shape: Shape) -> None:
    length = (b"content-length", b"2")
    one = Recorder("receive", {**START, "headers": [length]}, BODY)
    two = Recorder("receive", START, {**BODY, "body": b"n", "more_body": True}, {**BODY, "body": b"o"})
    for app, takes in ((one, shape is not DAPHNE), (two, shape not in (DAPHNE, GRANIAN, STRICT))):
        with pytest.raises(WebSocketDenied if takes else ServerChokedError) as caught:
            await client_of(app, server=shape).websocket_connect("/").__aenter__()
        if isinstance(caught.value, WebSocketDenied):
            assert (caught.value.status_code, caught.value.body) == (401, b"no")


async def test_a_denial_that_never_ends_is_a_broken_connection(client_of: MakeClient) -> None:
    app = Recorder("receive", START, {**BODY, "more_body": True})
    with pytest.raises(WebSocketDisconnect) as caught:
        await client_of(app).websocket_connect("/").__aenter__()
    assert caught.value.code == 1006
    assert "instead of an answer" in caught.value.reason


async def test_two_receives_at_once_are_taken_where_the_server_takes_them(client_of: MakeClient) -> None:
    async def both(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(receive)
        await send(CLOSE)

    for shape, takes in ((SIO, True), (HYPERCORN, True), (LEG, False), (STRICT, False)):
        with contextlib.nullcontext() if takes else pytest.raises(ExceptionGroup):
            async with client_of(both, server=shape).websocket_connect("/") as ws:
                await ws.send_text("a")
                await ws.send_text("b")
                await ws.expect_close(4003)


# A peer that reads nothing


class Talker:
    """A raw application that sends messages until it cannot, and tells how many went out."""

    def __init__(self, size: int) -> None:
        self.text = "x" * size
        self.sent = 0
        self.ended = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await receive()
        try:
            for _ in range(1000):
                await send({"type": "websocket.send", "text": self.text})
                self.sent += 1
            await send({"type": "websocket.close"})
        finally:
            self.ended = True


async def until(condition: Callable[[], object]) -> None:
    """Wait for something in an application, which may run in another thread."""
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 - an event belongs to one event loop
            await anyio.sleep(0.001)


@every_server
async def test_sending_to_a_stalled_client_blocks_where_it_does_on_the_real_server(
    client_of: MakeClient, shape: Shape
) -> None:
    app = Talker(1000)
    async with client_of(app, server=shape).websocket_connect("/") as ws:
        await ws.stall(buffer=10_000)
        await ws.send_text("go")
        await until(lambda: app.ended if shape is DAPHNE else app.sent == 10)
        await anyio.sleep(0.02)
        assert app.sent == (1000 if shape is DAPHNE else 10)
        with pytest.raises(WebSocketStateError, match=r"stalled; call resume\(\) first"):
            await ws.receive()
        await ws.resume()
        assert len([message async for message in ws]) == 1000
    assert app.sent == 1000


async def test_a_client_that_does_not_read_holds_up_a_lot_without_being_told_to(client_of: MakeClient) -> None:
    app = Talker(100_000)
    async with client_of(app).websocket_connect("/") as ws:
        await ws.send_text("go")
        await until(lambda: app.sent == 42)
        await anyio.sleep(0.02)
        assert app.sent == 42  # 4 MiB, as on the real servers
        await ws.receive()
        await until(lambda: app.sent == 43)


@pytest.mark.parametrize("leave", ["close", "abort", "leave"])
async def test_a_stalled_client_that_leaves_frees_the_application(client_of: MakeClient, leave: str) -> None:
    app = Talker(1000)
    async with client_of(app).websocket_connect("/") as ws:
        await ws.stall()
        await ws.send_text("go")
        await anyio.sleep(0.02)
        if leave != "leave":
            await getattr(ws, leave)()
    assert app.ended
    assert app.sent < 1000


async def test_a_stalled_client_answers_the_close_when_it_reads_again(client_of: MakeClient) -> None:
    app = Recorder("receive", ACCEPT, "receive", CLOSE, "receive")
    async with client_of(app).websocket_connect("/") as ws:
        await ws.stall()
        await ws.send_text("go")
        await anyio.sleep(0.02)
        assert len(app.seen) == 2
        await ws.resume()
        await ws.expect_close(4003)
    assert app.seen[-1] == {"type": "websocket.disconnect", "code": 4003, "reason": "why"}


# A peer that leaves


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        (SIO, "ClientDisconnectedError"),
        (LEG, "ClientDisconnectedError"),
        (HYPERCORN, None),
        (DAPHNE, None),
        (GRANIAN, None),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_sending_to_a_client_that_has_gone_raises_or_is_dropped(
    client_of: MakeClient, shape: Shape, error: str | None
) -> None:
    app = Recorder("receive", ACCEPT, "receive", TEXT)
    async with client_of(app, server=shape).websocket_connect("/") as ws:
        await ws.abort()
    assert app.seen[2:] == ([error] if error else [])


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        (LEG, ["receive", "ClientDisconnectedError"]),  # accept passes, the next send raises
        (SIO, ["receive", "ClientDisconnectedError"]),
        (HYPERCORN, ["receive"]),
        (DAPHNE, ["receive"]),
        (GRANIAN, ["receive"]),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_a_client_that_left_before_the_answer_is_noticed_as_on_the_real_server(
    client_of: MakeClient, shape: Shape, seen: list[str]
) -> None:
    app = Recorder("receive", *([ACCEPT] if shape is not LEG else [ACCEPT, TEXT]))
    async with client_of(app, server=shape) as client:
        await client.websocket_vanish("/?a=1", headers={"x": "1"})
    assert [one if isinstance(one, str) else "receive" for one in app.seen] == seen
    assert app.scope["query_string"] == b"a=1"
    waits = Recorder("receive", "receive")
    untold = shape is GRANIAN
    with pytest.raises(StuckError) if untold else contextlib.nullcontext():
        await client_of(waits, server=shape, timeout=0.05 if untold else 5).websocket_vanish("/")
    assert waits.seen[1:] == ([] if untold else [{"type": "websocket.disconnect", "code": 1006}])


async def test_an_application_that_fails_because_the_client_left_early_fails_the_test(client_of: MakeClient) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "websocket.receive"

    with pytest.raises(AssertionError, match=r"websocket\.disconnect"):
        await client_of(app).websocket_vanish("/")


@every_server
async def test_a_handler_of_asgiws_bears_every_bad_peer_on_every_server(client_of: MakeClient, shape: Shape) -> None:
    ended: list[str] = []
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        try:
            await ws.accept()
            async for text in ws.iter_text():
                await ws.send_text(text)
        finally:
            ended.append("handler")

    async with client_of(app, server=shape) as client:
        await client.websocket_vanish("/")
        for leave in ("abort", "close", "stall"):
            async with client.websocket_connect("/") as ws:
                await ws.send_text("a")
                assert await ws.receive_text() == "a"
                await getattr(ws, leave)()
    assert len(ended) == 4


# A server that stops


@pytest.mark.parametrize(
    ("shape", "told", "code"),
    [
        (LEG, 1012, 1012),
        (SIO, 1012, 1012),
        (HYPERCORN, "cancelled", 1011),
        (DAPHNE, "cancelled", 1006),
        (GRANIAN, 1005, 1006),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
async def test_a_stop_of_the_server_is_told_as_the_real_one_tells_it(
    client_of: MakeClient, shape: Shape, told: Any, code: int
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        try:
            seen.append((await receive())["code"])
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise

    async with client_of(app, server=shape) as client, client.websocket_connect("/") as ws:
        await client.stop_server()
        await ws.expect_close(code)
        await client.stop_server()
    assert seen == [told]


@pytest.mark.parametrize("server", ["hypercorn", "daphne"])
async def test_a_handler_that_the_stopping_server_cancels_can_say_goodbye(client_of: MakeClient, server: str) -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()

    async with client_of(app, server=server) as client, client.websocket_connect("/") as ws:
        await client.stop_server()
        await ws.expect_close(1012 if server == "hypercorn" else 4012)


async def test_sending_after_the_server_was_told_to_stop_raises_on_uvicorn(client_of: MakeClient) -> None:
    app = Recorder("receive", ACCEPT, "receive", TEXT)
    async with client_of(app) as client, client.websocket_connect("/") as ws:
        await client.stop_server()
        await ws.expect_close(1012)
    assert app.seen[-1] == "ClientDisconnectedError"


async def test_a_connection_that_is_over_does_not_notice_the_stop(client_of: MakeClient) -> None:
    app = Recorder("receive", ACCEPT, CLOSE, "receive", "receive")
    async with client_of(app, server="granian") as client, client.websocket_connect("/") as ws:
        await ws.expect_close(4003)
        await client.stop_server()
    assert [event.get("code") for event in app.seen[1:]] == [1005, 1005]


def test_a_client_that_was_not_entered_has_no_server_to_stop() -> None:
    with pytest.raises(RuntimeError, match="enter it with `with TestClient"):
        TestClient(Recorder()).stop_server()
