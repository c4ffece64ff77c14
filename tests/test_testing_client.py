"""The test clients: what a test says, hears and sees, and the life of the application around it.

Every test of the `client_of` fixture runs with both clients, each on asyncio and trio.
"""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import fastapi
import litestar
import litestar.exceptions
import msgspec
import pytest
import starlette.applications
import starlette.responses
import starlette.routing
import starlette.websockets
import trio
import trio.testing

import asgiws
import asgiws.testing
from asgiws import App, Depends, HTTPException, Request, WebSocket, WebSocketDisconnect
from asgiws.errors import ConfigurationError, ProtocolError, WebSocketStateError
from asgiws.testing import (
    AsyncTestClient,
    LifespanError,
    StuckError,
    TestClient,
    UnexpectedMessageError,
    WebSocketDenied,
)
from tests.clients import MakeClient, line_of, make_client
from tests.fakes import DEADLINE

pytestmark = pytest.mark.anyio

Raw = Callable[[Any, Any, Any], Any]


@pytest.fixture(params=["async", "plain"])
def client_of(request: pytest.FixtureRequest, anyio_backend: str) -> MakeClient:
    return make_client(request.param, anyio_backend)


class Say(msgspec.Struct, tag="say"):
    text: str


class Move(msgspec.Struct, tag="move"):
    x: int


class Said(msgspec.Struct, tag="said"):
    text: str


app = App()


@app.websocket("/echo/<room>")
async def echo(ws: WebSocket, room: str, lang: str = "en") -> None:
    await ws.accept()
    async for message in ws:
        if isinstance(message, bytes):
            await ws.send_bytes(message)
        else:
            await ws.send_text(f"{room}/{lang}: {message}")


@app.websocket("/say")
async def say(ws: WebSocket[Say | Move, Said]) -> None:
    await ws.accept()
    async for message in ws:
        await ws.send_json(Said(message.text if isinstance(message, Say) else str(message.x)))


@app.websocket("/protocols")
async def protocols(ws: WebSocket) -> None:
    chosen = ws.subprotocols[-1] if ws.subprotocols else None
    await ws.accept(chosen, headers=[("X-Room", "1"), ("set-cookie", "kept=yes; Path=/"), ("set-cookie", "b=2")])
    await ws.send_json({"offered": ws.subprotocols, "cookies": ws.cookies, "headers": dict(ws.headers)})
    await ws.close()


@app.websocket("/close/<code:int>")
async def close(ws: WebSocket, code: int, reason: str = "", first: str | None = None) -> None:
    await ws.accept()
    if first is not None:
        await ws.send_text(first)
    await ws.close(code, reason)


@app.websocket("/refuse")
async def refuse(ws: WebSocket) -> None:
    raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer", "set-cookie": "refused=1"})


@app.websocket("/refuse/close")
async def refuse_by_close(ws: WebSocket) -> None:
    await ws.close(4403, "not you")


@app.websocket("/binary")
async def binary(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_bytes(await ws.receive_bytes())
    await ws.close()


# What a test says and hears


async def test_a_session_says_and_hears_text_bytes_and_json(client_of: MakeClient) -> None:
    async with client_of(app) as client, client.websocket_connect("/echo/a?lang=fr") as ws:
        await ws.send_text("hi")
        assert await ws.receive_text() == "a/fr: hi"
        await ws.send_bytes(b"\x00\xff")
        assert await ws.receive_bytes() == b"\x00\xff"
        await ws.send_json({"a": [1]})
        assert await ws.receive() == 'a/fr: {"a":[1]}'
        await ws.send_json({"a": [1]}, mode="binary")
        assert await ws.receive_json() == {"a": [1]}
        await ws.send_json([1], mode="binary")
        assert await ws.receive_json(mode="binary") == [1]
        await ws.send_bytes(bytearray(b"b"))
        assert await ws.receive() == b"b"
        await ws.send_text("")
        assert await ws.receive() == "a/fr: "
        await ws.send_bytes(b"")
        assert await ws.receive() == b""


async def test_a_message_is_decoded_and_validated_into_the_type_that_is_asked_for(client_of: MakeClient) -> None:
    async with client_of(app) as client, client.websocket_connect("/say") as ws:
        await ws.send_json(Say("hi"))
        assert await ws.receive(Said) == Said("hi")
        await ws.send_json(Move(1))
        assert await ws.receive(Said | Say) == Said("1")
        await ws.send_json(Say("hi"))
        assert await ws.receive_json(Said) == Said("hi")
        await ws.send_json(Say("hi"))
        assert await ws.receive_json(type=dict[str, str], timeout=1) == {"type": "said", "text": "hi"}


async def typed(client: TestClient, other: AsyncTestClient) -> None:
    """What mypy knows of a session; never called."""
    with client.websocket_connect("/") as ws:
        one: Said = ws.receive(Said)
        two: str | bytes = ws.receive()
        three: Said = ws.receive_json(Said)
        four = ws.receive(Say | Move)
        _ = one, two, three, four
    async with other.websocket_connect("/") as session:
        said: Said = await session.receive(Said, timeout=1)
        either: str | bytes = await session.receive(timeout=1)
        other_said: Said = await session.receive_json(Said)
        _ = said, either, other_said


@pytest.mark.parametrize(
    ("sent", "ask", "text"),
    [
        (
            b"\x01",
            lambda ws: ws.receive_text(),
            r"expected a text message, got a binary one; .* sent the bytes b'\\x01'$",
        ),
        ("x", lambda ws: ws.receive_bytes(), "expected a binary message, got a text one; .* sent the text 'r/en: x'"),
        ("x", lambda ws: ws.receive_json(), "the message is not JSON: .*; the application sent the text 'r/en: x'"),
        (b"1", lambda ws: ws.receive_json(mode="text"), "expected a text message, got a binary one"),
        (
            b'{"type":"said","text":1}',
            lambda ws: ws.receive(Said),
            r"expected `str`, got `int` - at `\$.text` in message 'said'; ",
        ),
        (b'{"type":"error"}', lambda ws: ws.receive(Said), "unknown type 'error', expected 'said'.*the bytes b'{\"ty"),
        (b"x" * 1000, lambda ws: ws.receive_text(), r"b'x{190,197}\.\.\.$"),
    ],
    ids=range(7),
)
async def test_a_message_of_another_kind_or_type_fails_with_what_came(
    client_of: MakeClient, sent: str | bytes, ask: Callable[[Any], Any], text: str
) -> None:
    async with client_of(app) as client, client.websocket_connect("/echo/r") as ws:
        await (ws.send_text(sent) if isinstance(sent, str) else ws.send_bytes(sent))
        with pytest.raises(UnexpectedMessageError, match=text):
            await ask(ws)
    assert issubclass(UnexpectedMessageError, AssertionError)


async def test_what_cannot_be_sent_is_refused_before_it_is_sent(client_of: MakeClient) -> None:
    async with client_of(app) as client, client.websocket_connect("/echo/r") as ws:
        with pytest.raises(TypeError, match="use send_bytes"):
            await ws.send_text(b"x")
        with pytest.raises(TypeError, match="use send_text"):
            await ws.send_bytes("x")
        with pytest.raises(ProtocolError):
            await ws.send_text("\ud800")
        with pytest.raises(ValueError, match="'text' or 'binary', got 'both'"):
            await ws.send_json(1, mode="both")


async def test_a_session_gives_its_messages_until_the_close(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        async with client.websocket_connect("/close/4000?first=a") as ws:
            assert [message async for message in ws] == ["a"]
            assert [message async for message in ws] == []
            with pytest.raises(WebSocketDisconnect):
                await ws.receive()
        async with client.websocket_connect("/echo/r") as ws:
            await ws.send_text("a")
            await ws.send_text("b")
            async for message in ws:
                assert message == "r/en: a"
                break
            async for message in ws:
                assert message == "r/en: b"
                await ws.close()


async def test_a_receive_after_the_applications_close_raises_the_disconnect(client_of: MakeClient) -> None:
    async with client_of(app) as client, client.websocket_connect("/close/4001?reason=bye&first=a") as ws:
        assert await ws.receive_text() == "a"
        for receive in (ws.receive_text, ws.receive_bytes, ws.receive_json, ws.receive):
            with pytest.raises(WebSocketDisconnect) as caught:
                await receive()
            assert (caught.value.code, caught.value.reason) == (4001, "bye")
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("too late")


async def test_what_a_test_sends_before_it_was_told_of_the_close_goes_nowhere(client_of: MakeClient) -> None:
    async with client_of(app) as client, client.websocket_connect("/close/4001") as ws:
        await anyio.sleep(0.01)
        await ws.send_text("a")
        await ws.expect_close(4001)


# T20
async def test_a_big_last_message_and_the_close_after_it_both_arrive(client_of: MakeClient) -> None:
    big = "x" * 5_000_000

    async def last(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": big})
        await send({"type": "websocket.close", "code": 1000})

    async with client_of(last).websocket_connect("/") as ws:
        assert await ws.receive_text() == big
        assert await ws.expect_close() == (1000, "")


async def test_the_expected_close_gives_code_and_reason(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        async with client.websocket_connect("/close/4001?reason=bye") as ws:
            assert await ws.expect_close(4001, reason="bye", timeout=1) == (4001, "bye")
            assert await ws.expect_close() == (4001, "bye")  # told again
        async with client.websocket_connect("/close/1000") as ws:
            assert await ws.expect_close() == (1000, "")


async def test_another_close_than_expected_fails_with_what_came(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        async with client.websocket_connect("/close/4001?reason=bye") as ws:
            with pytest.raises(UnexpectedMessageError, match=r"^expected the close 4002, got 4001 'bye'$"):
                await ws.expect_close(4002)
            with pytest.raises(UnexpectedMessageError, match=r"^expected the close with any code 'x', got 4001 'bye'$"):
                await ws.expect_close(reason="x")
        async with client.websocket_connect("/echo/r") as ws:
            await ws.send_text("a")
            await ws.send_bytes(b"b")
            await anyio.sleep(0.02)
            with pytest.raises(
                UnexpectedMessageError, match=r"^expected the close, got the text 'r/en: a', then the bytes b'b'$"
            ):
                await ws.expect_close()


async def test_silence_is_expected_and_what_breaks_it_is_shown(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        async with client.websocket_connect("/echo/r") as ws:
            before = time.monotonic()
            await ws.expect_no_message(within=0.05)
            assert time.monotonic() - before >= 0.05
            await ws.send_text("a")
            with pytest.raises(
                UnexpectedMessageError, match=r"^expected no message within 2 s, got the text 'r/en: a'$"
            ):
                await ws.expect_no_message(within=2)
        async with client.websocket_connect("/close/4001") as ws:
            with pytest.raises(UnexpectedMessageError, match=r"within 2 s, got the close 4001 ''$"):
                await ws.expect_no_message(within=2)
            with pytest.raises(WebSocketDisconnect):
                await ws.receive()


# The handshake


async def test_the_application_chooses_a_subprotocol_and_sends_headers(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        async with client.websocket_connect("/protocols", subprotocols=["chat", "v2.chat"]) as ws:
            assert ws.accepted_subprotocol == "v2.chat"
            assert ws.response_headers["x-room"] == "1"
            assert ws.response_headers.getlist("set-cookie") == ["kept=yes; Path=/", "b=2"]
            assert (await ws.receive_json())["offered"] == ["chat", "v2.chat"]
            assert ws.scope["subprotocols"] == ["chat", "v2.chat"]
        async with client.websocket_connect("/protocols") as ws:
            assert ws.accepted_subprotocol is None


async def test_headers_cookies_and_origin_of_client_and_call_are_put_together(client_of: MakeClient) -> None:
    kept = {"a": "1"}
    client = client_of(app, headers={"X-One": "1", "X-Two": "2"}, cookies=kept, base_url="http://shop.example:8080")
    async with client:
        async with client.websocket_connect(
            "/protocols",
            headers={"x-two": "mine", "cookie": "c=3"},
            cookies={"b": "2"},
            origin="http://shop.example:8080",
        ) as ws:
            told = await ws.receive_json()
        assert told["headers"]["x-one"] == "1"
        assert told["headers"]["x-two"] == "mine"
        assert told["headers"]["origin"] == "http://shop.example:8080"
        assert told["headers"]["host"] == "shop.example:8080"
        assert told["headers"]["sec-websocket-version"] == "13"
        assert told["cookies"] == {"a": "1", "b": "2", "c": "3"}
        assert [name for name, _ in ws.scope["headers"]].count(b"cookie") == 1
        with pytest.raises(WebSocketDenied) as caught:
            await client.websocket_connect("/protocols", origin="http://evil.example").__aenter__()
        assert caught.value.status_code == 403
        client.headers["x-one"] = "changed"
        async with client.websocket_connect("/protocols", headers=[("host", "other")], origin="http://other") as ws:
            told = await ws.receive_json()
        assert told["headers"]["x-one"] == "changed"
        assert told["headers"]["host"] == "other"
    assert kept == {"a": "1"}


async def test_cookies_of_handshakes_and_http_answers_are_kept_and_sent(client_of: MakeClient) -> None:
    jar = App()

    @jar.get("/set")
    async def set_cookie() -> Any:
        return asgiws.Response(
            b"", headers=[("set-cookie", "http=1; Path=/"), ("set-cookie", "other=1; Domain=else.example")]
        )

    @jar.get("/cookies")
    async def cookies(request: Request) -> dict[str, str]:
        return request.cookies

    jar.websocket("/protocols")(protocols)
    jar.websocket("/refuse")(refuse)
    async with client_of(jar) as client:
        assert (await client.get("/cookies")).json() == {}
        await client.get("/set")
        async with client.websocket_connect("/protocols") as ws:
            assert (await ws.receive_json())["cookies"] == {"http": "1"}
        assert (await client.get("/cookies")).json() == {"http": "1", "kept": "yes", "b": "2"}
        with pytest.raises(WebSocketDenied):
            await client.websocket_connect("/refuse").__aenter__()
        assert dict(client.cookies) == {"http": "1", "kept": "yes", "b": "2", "refused": "1"}
        assert (await client.get("/cookies", cookies={"http": "mine"})).json()["http"] == "mine"
        client.cookies.clear()
        assert (await client.get("/cookies")).json() == {}


async def test_a_url_is_a_path_with_a_query_or_a_whole_url(client_of: MakeClient) -> None:
    async def tell(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        keys = ("path", "raw_path", "query_string", "scheme", "server", "client", "root_path")
        await send({"type": "websocket.send", "text": repr([scope[key] for key in keys])})
        await send({"type": "websocket.close"})

    async def told(client: Any, url: str, **options: Any) -> Any:
        async with client.websocket_connect(url, **options) as ws:
            return eval(await ws.receive_text())  # noqa: S307 - our own repr

    client = client_of(tell, base_url="https://shop.example/api", client=("1.2.3.4", 5))
    assert await told(client, "/a%20b/é%2Fx?q=%ff&é=1#part") == [
        "/api/a b/é/x", b"/api/a%20b/%C3%A9%2Fx", b"q=%ff&%C3%A9=1", "wss", ("shop.example", 443), ("1.2.3.4", 5), "",
    ]  # fmt: skip
    assert (await told(client, "ws://other:81/x"))[:5] == ["/x", b"/x", b"", "ws", ("other", 81)]
    assert (await told(client, "http://other"))[:4] == ["/", b"/", b"", "ws"]
    assert (await told(client, "?a=1"))[:3] == ["/api", b"/api", b"a=1"]
    assert (await told(client, "x"))[0] == "/api/x"
    assert (await told(client, "/x?a=1", params={"b": [1, True], "c": None, "d": "é &"}))[2] == (
        b"a=1&b=1&b=true&c=&d=%C3%A9+%26"
    )
    assert (await told(client, "/%ff"))[0] == "/api/\ufffd"


@pytest.mark.parametrize("url", ["ftp://host/", "ws://", "ws://host:x/", "ws://[", "mailto://"])
def test_what_is_no_url_of_a_websocket_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="a WebSocket needs a URL like"):
        TestClient(app).websocket_connect(url)


def test_what_no_client_could_send_is_refused_at_once() -> None:
    client = TestClient(app)
    with pytest.raises(ConfigurationError, match=r"a list of str, got 'chat'. Write \['chat'\]."):
        client.websocket_connect("/", subprotocols="chat")
    with pytest.raises(ConfigurationError, match="cannot offer the subprotocol 'a b'"):
        client.websocket_connect("/", subprotocols=["a b"])
    with pytest.raises(ProtocolError, match="'x y'"):
        client.websocket_connect("/", headers={"x y": "1"})
    with pytest.raises(ProtocolError, match="line break"):
        client.websocket_connect("/", origin="a\r\nb: c")
    with pytest.raises(ConfigurationError, match=r"no server is called 'univorn'.*Did you mean 'uvicorn'\?"):
        TestClient(app, server="univorn")
    with pytest.raises(ConfigurationError, match="a WebSocket needs a URL"):
        TestClient(app, base_url="testserver")


# A refusal


async def test_a_refusal_tells_status_headers_and_body(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        with pytest.raises(
            WebSocketDenied, match=r'^the handshake was refused with 401: {"detail":"who are you\?"}$'
        ) as caught:
            async with client.websocket_connect("/refuse"):
                pytest.fail("the handshake was refused")
        denied = caught.value
        assert denied.status_code == 401
        assert denied.headers["www-authenticate"] == "Bearer"
        assert (b"www-authenticate", b"Bearer") in denied.raw_headers
        assert denied.body == b'{"detail":"who are you?"}'
        assert denied.text == '{"detail":"who are you?"}'
        assert denied.json() == {"detail": "who are you?"}
        assert (denied.code, denied.reason) == (1006, "")
        assert isinstance(denied, WebSocketDisconnect)


async def test_a_close_before_accept_is_a_403_that_keeps_its_code(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        with pytest.raises(WebSocketDenied, match=r"refused with 403 \(closed with 4403 'not you'\)$") as caught:
            await client.websocket_connect("/refuse/close").__aenter__()
    assert (caught.value.status_code, caught.value.code, caught.value.reason) == (403, 4403, "not you")
    assert caught.value.body == b""


# T15
async def test_a_handler_that_returns_without_an_answer_has_refused(client_of: MakeClient) -> None:
    service = App()

    @service.websocket("/")
    async def nothing(ws: WebSocket) -> None:
        return

    async with client_of(service) as client:
        with pytest.raises(WebSocketDenied) as caught:
            await client.websocket_connect("/").__aenter__()
    assert caught.value.status_code == 403


# T28
async def test_where_the_server_cannot_send_a_denial_the_client_sees_a_403(client_of: MakeClient) -> None:
    async with client_of(app, server="daphne") as client:
        with pytest.raises(WebSocketDenied) as caught:
            await client.websocket_connect("/refuse").__aenter__()
    assert (caught.value.status_code, caught.value.code) == (403, 4401)


# T29
async def test_a_refusal_in_a_dependency_runs_nothing_after_it(client_of: MakeClient) -> None:
    ran: list[str] = []
    service = App()

    async def first() -> None:
        ran.append("first")
        raise HTTPException(401)

    async def second() -> None:
        ran.append("second")

    @service.websocket("/", dependencies=[Depends(first), Depends(second)])
    async def handler(ws: WebSocket) -> None:
        ran.append("handler")

    async with client_of(service) as client:
        with pytest.raises(WebSocketDenied):
            await client.websocket_connect("/").__aenter__()
    assert ran == ["first"]


# The life of the application


def life(events: list[Any], *, start: Exception | None = None, end: Exception | None = None) -> App:
    """A service that writes down what happens to it and on which event loop."""

    def loop() -> Any:
        return trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else asyncio.get_running_loop()

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
        events.append(("start", loop()))
        if start is not None:
            raise start
        yield {"shared": [], "own": 0}
        events.append(("end", loop()))
        if end is not None:
            raise end

    service = App(lifespan=lifespan)

    @service.websocket("/")
    async def handler(ws: WebSocket) -> None:
        events.append(("handler", loop()))
        await ws.accept()
        ws.state.shared.append(1)
        ws.state.own += 1
        await ws.send_json([ws.state.shared, ws.state.own])
        await ws.close()

    return service


# T53
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
async def test_the_lifespan_runs_once_in_the_loop_of_all_handlers_and_each_has_its_state(
    client_of: MakeClient, server: str
) -> None:
    events: list[Any] = []
    async with client_of(life(events), server=server) as client:
        assert [name for name, _ in events] == ["start"]
        for times in (1, 2):
            async with client.websocket_connect("/") as ws:
                assert await ws.receive_json() == [[1] * times, 1]
    assert [name for name, _ in events] == ["start", "handler", "handler", "end"]
    assert len({loop for _, loop in events}) == 1


# T53
async def test_a_server_without_a_lifespan_runs_none_and_has_no_state(client_of: MakeClient) -> None:
    events: list[Any] = []

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        events.append((scope["type"], "state" in scope))
        await receive()
        await send({"type": "websocket.close"})

    async with client_of(raw, server="daphne") as client:
        with pytest.raises(WebSocketDenied):
            await client.websocket_connect("/").__aenter__()
    assert events == [("websocket", False)]
    events.clear()
    async with client_of(life(events), server="daphne") as client:
        assert events == []
        for times in (1, 2):
            async with client.websocket_connect("/") as ws:
                assert await ws.receive_json() == [[1] * times, 1]
    assert [name for name, _ in events][:3] == ["start", "handler", "handler"]


async def test_without_with_a_call_has_no_lifespan(client_of: MakeClient) -> None:
    started: list[str] = []

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope["type"])
        assert scope["state"] == {}
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    client = client_of(raw)
    async with client.websocket_connect("/") as first, client.websocket_connect("/") as second:
        await first.close()
        await second.close()
    assert (await client_of(app).get("/nothing")).status_code == 404
    assert started == ["websocket", "websocket"]


@pytest.mark.parametrize("kind", ["asgiws", "starlette"])
async def test_what_fails_the_start_or_the_end_of_the_application_is_raised_in_the_test(
    client_of: MakeClient, kind: str
) -> None:
    def service(start: Exception | None, end: Exception | None) -> Any:
        @contextlib.asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            if start is not None:
                raise start
            yield
            if end is not None:
                raise end

        return App(lifespan=lifespan) if kind == "asgiws" else starlette.applications.Starlette(lifespan=lifespan)

    error = KeyError("start")
    with pytest.raises(KeyError) as caught:
        async with client_of(service(error, None)):
            pytest.fail("it did not start")
    assert caught.value is error
    assert "lifespan" in [entry.name for entry in caught.traceback]
    error = KeyError("end")
    reached = False
    with pytest.raises(KeyError) as caught:
        async with client_of(service(None, error)):
            reached = True
    assert caught.value is error
    assert reached


async def test_a_failure_of_the_test_wins_over_one_of_the_shutdown_and_tells_of_it(client_of: MakeClient) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with client_of(life([], end=KeyError("end"))):
            raise ZeroDivisionError
    assert caught.value.__notes__ == ["Besides: KeyError: 'end'"]
    assert isinstance(caught.value.__context__, KeyError)


async def test_a_lifespan_that_only_says_that_it_failed_fails_with_what_it_said(client_of: MakeClient) -> None:
    async def starts(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def ends(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed"})

    with pytest.raises(LifespanError, match=r"^the startup of the application failed: no database$"):
        await client_of(starts).__aenter__()
    with pytest.raises(LifespanError, match=r"^the shutdown of the application failed: $"):
        async with client_of(ends):
            pass


async def asks_first(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "websocket"
    await serve(receive, send)


async def takes_it_for_a_websocket(scope: Any, receive: Any, send: Any) -> None:
    await serve(receive, send)


async def returns(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        await serve(receive, send)


async def serve(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4000})


@pytest.mark.parametrize("raw", [asks_first, takes_it_for_a_websocket, returns])
async def test_an_application_that_knows_no_lifespan_works(
    client_of: MakeClient, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "asgiws"):
        async with client_of(raw) as client, client.websocket_connect("/") as ws:
            await ws.expect_close(4000)
    assert "the application does not take part in the lifespan" in caplog.text


async def test_an_application_that_ends_its_lifespan_early_is_no_failure_unless_it_raised(
    client_of: MakeClient,
) -> None:
    def early(error: Exception | None) -> Raw:
        async def raw(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            if error is not None:
                raise error

        return raw

    async with client_of(early(None)):
        pass
    with pytest.raises(KeyError):
        async with client_of(early(KeyError())):
            pass


async def test_a_lifespan_that_does_not_answer_or_end_fails_with_the_line_where_it_waits(client_of: MakeClient) -> None:
    cleaned: list[str] = []

    def stuck(at: str) -> Raw:
        async def raw(scope: Any, receive: Any, send: Any) -> None:
            try:
                while True:
                    event = await receive()
                    if event["type"] == at:
                        await anyio.sleep_forever()  # stuck in the lifespan
                    await send({"type": event["type"] + ".complete"})
                    if event["type"] == "lifespan.shutdown":
                        await anyio.sleep_forever()  # stuck after it
            finally:
                cleaned.append(at)

        return raw

    line, after = line_of(__file__, "stuck in the lifespan"), line_of(__file__, "stuck after it")
    with pytest.raises(
        StuckError, match=f"no answer to lifespan.startup within 0.05 s; .* at .*client.py:{line} in .*raw"
    ):
        await client_of(stuck("lifespan.startup"), timeout=0.05).__aenter__()
    with pytest.raises(StuckError, match=f"no answer to lifespan.shutdown within 0.05 s; .*client.py:{line} "):
        async with client_of(stuck("lifespan.shutdown"), timeout=0.05):
            pass
    with pytest.raises(
        StuckError, match=f"the shutdown is answered, but .*not ended within 0.05 s; .*client.py:{after} "
    ):
        async with client_of(stuck("nothing"), timeout=0.05):
            pass
    assert cleaned == ["lifespan.startup", "lifespan.shutdown", "nothing"]


async def test_the_state_of_the_lifespan_is_empty_at_the_shutdown_where_the_server_empties_it(
    client_of: MakeClient,
) -> None:
    for server, expected in (("granian", {}), ("uvicorn", {"pool": 1})):
        seen: list[Any] = []

        async def raw(scope: Any, receive: Any, send: Any, seen: list[Any] = seen) -> None:
            await receive()
            scope["state"]["pool"] = 1
            await send({"type": "lifespan.startup.complete"})
            await receive()
            seen.append(dict(scope["state"]))
            await send({"type": "lifespan.shutdown.complete"})

        async with client_of(raw, server=server):
            pass
        assert seen == [expected]


# Any application


def of_asgiws() -> Any:
    service = App()

    @service.websocket("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    return service


async def starlettes(websocket: starlette.websockets.WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(starlette.websockets.WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())


def of_starlette() -> Any:
    return starlette.applications.Starlette(routes=[starlette.routing.WebSocketRoute("/echo", starlettes)])


def of_fastapi() -> Any:
    service = fastapi.FastAPI()

    @service.websocket("/echo")
    async def echo(websocket: fastapi.WebSocket) -> None:
        await starlettes(websocket)

    return service


def of_litestar() -> Any:
    @litestar.websocket("/echo")
    async def echo(socket: litestar.WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        with contextlib.suppress(litestar.exceptions.WebSocketDisconnect):
            while True:
                await socket.send_text(await socket.receive_text())

    return litestar.Litestar([echo])


def of_nothing() -> Any:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})

    return echo


@pytest.mark.parametrize("server", ["uvicorn", "uvicorn-websockets", "hypercorn", "daphne", "granian"])
@pytest.mark.parametrize("make", [of_asgiws, of_starlette, of_fastapi, of_litestar, of_nothing])
async def test_any_application_can_be_tested_as_on_any_server(
    client_of: MakeClient, make: Callable[[], Any], server: str
) -> None:
    async with client_of(make(), server=server) as client, client.websocket_connect("/echo") as ws:
        await ws.send_text("a")
        assert await ws.receive_text() == "a"


async def test_what_is_no_asgi_application_is_told_so(client_of: MakeClient) -> None:
    def wsgi(environ: Any, start_response: Any, more: Any) -> list[bytes]:
        return [b""]

    with pytest.raises(TypeError, match="async function of scope, receive and send, but calling this one gave list"):
        await client_of(wsgi).websocket_connect("/").__aenter__()


# Several sessions at once


async def test_several_sessions_at_once_have_each_their_own(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        async with contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(client.websocket_connect(f"/echo/{n}")) for n in range(20)]
            for n, ws in enumerate(sessions):
                await ws.send_text(str(n))
            for n, ws in reversed(list(enumerate(sessions))):
                assert await ws.receive_text() == f"{n}/en: {n}"
        assert len({id(ws.scope["state"]) for ws in sessions}) == 20


async def test_sessions_may_be_left_in_any_order(client_of: MakeClient) -> None:
    async with client_of(app) as client:
        first, second = client.websocket_connect("/echo/1"), client.websocket_connect("/echo/2")
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        await second.send_text("a")
        assert await second.receive_text() == "2/en: a"
        await second.__aexit__(None, None, None)


async def test_a_session_that_was_not_left_is_ended_with_its_client(client_of: MakeClient) -> None:
    ended: list[int] = []
    service = App()

    @service.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as gone:
            ended.append(gone.code)
            raise

    async with client_of(service) as client:
        await client.websocket_connect("/").__aenter__()
    assert ended == [1000]


def test_the_sessions_of_a_client_can_be_used_from_several_threads() -> None:
    with TestClient(app) as client, client.websocket_connect("/echo/shared") as shared:
        found: list[str] = []

        def work(name: str) -> None:
            with client.websocket_connect(f"/echo/{name}") as ws:
                for n in range(20):
                    ws.send_text(str(n))
                    assert ws.receive_text() == f"{name}/en: {n}"
            shared.send_text(name)
            found.append(shared.receive_text(timeout=DEADLINE))

        threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(found) == [f"shared/en: {n}" for n in range(4)]


async def test_a_session_that_was_not_entered_says_so(client_of: MakeClient) -> None:
    ws = client_of(app).websocket_connect("/echo/a")
    with pytest.raises(WebSocketStateError, match=r"not open: enter it with `with client.websocket_connect\(\.\.\.\)`"):
        await ws.send_text("a")


async def test_after_its_own_close_a_session_is_over(client_of: MakeClient) -> None:
    async with client_of(app) as client, client.websocket_connect("/echo/a") as ws:
        await ws.send_text("a")
        await anyio.sleep(0.02)
        await ws.close(4000, "bye")
        await ws.close()
        assert await ws.receive_text() == "a/en: a"  # it was there before
        with pytest.raises(WebSocketStateError, match=r"cannot send: this session is over \(you closed it\)"):
            await ws.send_text("b")
        with pytest.raises(WebSocketStateError, match=r"cannot receive: this session is over \(you closed it\)"):
            await ws.receive()
        assert [message async for message in ws] == []


# What is left behind, and what it costs


def test_nothing_is_left_behind() -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with TestClient(app) as client, client.websocket_connect("/echo/a") as ws:
            ws.send_text("a")
        with pytest.raises(WebSocketDenied):
            TestClient(app).websocket_connect("/refuse").__enter__()
        TestClient(app).get("/")
        with TestClient(app).stream("GET", "/"):
            pass
    assert set(threading.enumerate()) == before


async def test_no_task_of_a_client_lives_longer_than_it(anyio_backend: str) -> None:
    if anyio_backend == "asyncio":
        tasks = asyncio.all_tasks()
        async with AsyncTestClient(app) as client, client.websocket_connect("/echo/a") as ws:
            await ws.send_text("a")
            assert len(asyncio.all_tasks()) == len(tasks) + 3  # the service, the connection, the watchdog
        assert asyncio.all_tasks() == tasks
    else:
        tasks_living = trio.lowlevel.current_statistics().tasks_living
        async with AsyncTestClient(app) as client, client.websocket_connect("/echo/a") as ws:
            await ws.send_text("a")
            assert trio.lowlevel.current_statistics().tasks_living == tasks_living + 3
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks_living


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_and_a_session_cost_a_few_milliseconds(backend: Any) -> None:
    def once() -> float:
        before = time.perf_counter()
        with TestClient(app, backend=backend) as client, client.websocket_connect("/echo/a") as ws:
            ws.send_text("a")
            ws.receive_text()
        return time.perf_counter() - before

    assert min(once() for _ in range(10)) < 0.05


def test_both_clients_and_both_sessions_have_the_same_methods() -> None:
    def public(cls: type) -> dict[str, Any]:
        found = {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}
        return {
            name: [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]
            for name, method in found.items()
            if callable(method)
        }

    assert public(TestClient) == public(AsyncTestClient)
    assert public(asgiws.testing.WebSocketSession) == public(asgiws.testing.AsyncWebSocketSession)
    plain = inspect.signature(TestClient).parameters
    other = inspect.signature(AsyncTestClient).parameters
    assert {name: one.default for name, one in plain.items() if not name.startswith("backend")} == {
        name: one.default for name, one in other.items()
    }


def test_pytest_does_not_take_the_clients_for_tests() -> None:
    assert not TestClient.__test__
    assert not AsyncTestClient.__test__


def test_the_options_of_the_event_loop_are_passed_on() -> None:
    asked: list[bool] = []

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        asked.append(asyncio.get_running_loop().get_debug())
        await receive()
        await send({"type": "websocket.close"})

    with pytest.raises(WebSocketDenied):
        TestClient(raw, backend_options={"debug": True}).websocket_connect("/").__enter__()
    assert asked == [True]
    with pytest.raises(LookupError):
        TestClient(raw, backend="gevent").__enter__()  # type: ignore[arg-type]


def test_what_is_exported_is_there() -> None:
    assert set(asgiws.testing.__all__) <= set(dir(asgiws.testing))
