"""Endpoints beyond the table: what may be a handler, HTTP, and ends that take too long."""

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from asgiws import (
    App,
    Body,
    HTTPException,
    PlainTextResponse,
    Query,
    Request,
    Response,
    SignatureError,
    WebSocket,
    WebSocketException,
    endpoints,
    streams,
)
from tests.fakes import DEADLINE, FakeServer, converse, request

pytestmark = pytest.mark.anyio


# What may be a handler


async def plain(ws: WebSocket, n: int = 1) -> None:
    """An async function."""
    await ws.accept()
    await ws.send_text(str(n))


async def stream(n: int = 1) -> AsyncIterator[str]:
    """An async generator function."""
    yield str(n)


class Callback:
    """An object with an async __call__."""

    async def __call__(self, ws: WebSocket, n: int = 1) -> None:
        await plain(ws, n)

    async def method(self, ws: WebSocket, n: int = 1) -> None:
        """A bound method."""
        await plain(ws, n)


class Streamer:
    """An object whose __call__ is an async generator."""

    async def __call__(self, n: int = 1) -> AsyncIterator[str]:
        yield str(n)


def logged(handler: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """An async decorator that keeps the signature of what it wraps."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await handler(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "handler",
    [
        plain, stream, Callback(), Callback().method, Streamer(), logged(plain), functools.partial(plain, n=7),
        functools.partial(stream, n=7),
    ],
    ids=["function", "generator", "object", "method", "generator object", "decorated", "partial", "partial generator"],
)  # fmt: skip
async def test_every_kind_of_async_callable_is_a_handler(handler: Callable[..., Any]) -> None:
    app = App()
    app.websocket("/")(handler)
    server = await converse(app, FakeServer(query="n=7"), leave=-1)
    assert server.texts == ["7"]
    assert server.closed == (1000, "")


@pytest.mark.parametrize(
    ("handler", "problem", "hint"),
    [
        (lambda ws: None, "must be async, got a plain function", "async def"),
        (print, "must be async", "async def"),
        (Callback, "got the class Callback", ""),
        (42, "is an async function, got 42", ""),
        (None, "is an async function, got None", ""),
    ],
    ids=["lambda", "builtin", "class", "number", "None"],
)
@pytest.mark.parametrize("kind", ["websocket", "get"])
def test_what_is_no_async_callable_is_refused_at_registration(handler: Any, problem: str, hint: str, kind: str) -> None:
    app = App()
    with pytest.raises(SignatureError) as error:
        getattr(app, kind)("/")(handler)
    assert problem in str(error.value)
    assert hint in str(error.value)
    assert app.routes == []


def test_a_generator_is_no_handler_of_http() -> None:
    with pytest.raises(SignatureError, match=r"a handler of HTTP cannot be a generator .*stream.*Return the whole"):
        App().get("/")(stream)


# HTTP


class Note(msgspec.Struct):
    """A body."""

    text: str


class NotFoundError(Exception):
    """A domain's own error."""


def http_app() -> App:
    """One route for each end of a request."""
    app = App()

    @app.get("/raise/<what>")
    async def raising(what: str) -> None:
        raise {
            "http": HTTPException(401, "who are you", {"www-authenticate": "Basic"}),
            "no-content": HTTPException(204),
            "group": ExceptionGroup("one", [HTTPException(401, "who are you", {"www-authenticate": "Basic"})]),
            "value": ValueError("a secret"),
            "websocket": WebSocketException(4000, "a secret"),
            "several": ExceptionGroup("two", [ValueError("a secret"), HTTPException(401)]),
            "detail": HTTPException(400, object()),
            "header": HTTPException(401, "x", {"x-header": "two\r\nlines"}),
        }[what]

    @app.get("/add")
    async def add(a: int, b: Annotated[int, Query(le=9)]) -> int:
        return a + b

    @app.post("/notes")
    async def notes(note: Annotated[Note, Body()]) -> Note:
        return note

    @app.get("/unencodable")
    async def unencodable() -> object:
        return object()

    return app


@pytest.mark.parametrize("what", ["http", "group"])
async def test_an_http_exception_answers_a_request(what: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = await request(http_app(), "GET", f"/raise/{what}")
    assert (answer.status, answer.body) == (401, b'{"detail":"who are you"}')
    assert answer.header("www-authenticate") == "Basic"
    assert caplog.records == []


async def test_an_answer_without_content_has_no_body() -> None:
    answer = await request(http_app(), "GET", "/raise/no-content")
    assert (answer.status, answer.body, answer.header("content-length")) == (204, b"", None)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/raise/value", ValueError),
        ("/raise/websocket", WebSocketException),
        ("/raise/several", ExceptionGroup),
        ("/unencodable", TypeError),
    ],
)
async def test_any_other_exception_is_a_500_that_tells_no_more_than_its_name_in_the_log(
    path: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    # S24
    answer = await request(http_app(), "GET", path, raises=error)
    told = msgspec.json.decode(answer.body)
    assert answer.status == 500
    assert told == {"detail": "Internal Server Error", "id": told["id"]}
    [record] = caplog.records
    assert (record.name, record.levelno) == ("asgiws", logging.ERROR)
    assert f"connection {told['id']} failed" in record.getMessage()
    assert "GET /" in record.getMessage()
    assert b"secret" not in answer.body


@pytest.mark.parametrize("what", ["detail", "header"])
async def test_an_http_exception_that_cannot_be_sent_is_a_500(what: str, caplog: pytest.LogCaptureFixture) -> None:
    # S19: the server would have to make an answer of its own
    answer = await request(http_app(), "GET", f"/raise/{what}", raises=Exception)
    assert answer.status == 500
    assert len(caplog.records) == 1


async def test_parameters_that_do_not_validate_are_a_422_with_each_of_them() -> None:
    answer = await request(http_app(), "GET", "/add", query="b=10")
    assert answer.status == 422
    assert msgspec.json.decode(answer.body) == {
        "detail": [
            {"loc": ["query", "a"], "msg": "is missing"},
            {"loc": ["query", "b"], "msg": "expected `int` <= 9"},
        ],
    }


async def test_a_client_that_leaves_before_its_body_is_complete_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    events: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"te', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "method": "POST", "path": "/notes", "headers": []}
    await http_app()(scope, receive, send)
    assert sent == []
    assert caplog.records == []


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        (PlainTextResponse("no", 404), 404, b"no"),
        ({"error": "no"}, 200, b'{"error":"no"}'),
        ("no", 200, b"no"),
        (None, 204, b""),
    ],
    ids=["response", "dict", "str", "None"],
)
async def test_what_an_exception_handler_returns_answers_a_request(
    result: Any, status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = http_app()

    @app.exception_handler(ValueError)
    async def own(request: Request, error: Exception) -> Any:
        return result

    answer = await request(app, "GET", "/raise/value")
    assert (answer.status, answer.body) == (status, body)
    assert caplog.records == []


async def test_an_exception_handler_of_http_that_fails_is_a_500_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    app = http_app()

    @app.exception_handler(ValueError)
    async def failing(request: Request, error: Exception) -> Response:
        raise LookupError("in the handler")

    answer = await request(app, "GET", "/raise/value", raises=ValueError)
    assert answer.status == 500
    assert len(caplog.records) == 1
    assert "in the handler" in caplog.text


async def test_a_request_is_cancelled_without_an_answer() -> None:
    app = App()
    ended: list[bool] = []
    waiting = anyio.Event()
    sent: list[Any] = []

    @app.get("/")
    async def slow() -> None:
        try:
            waiting.set()
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    async with anyio.create_task_group() as group:
        group.start_soon(app, {"type": "http", "method": "GET", "path": "/"}, receive, send)
        await waiting.wait()
        group.cancel_scope.cancel()
    assert (ended, sent) == ([True], [])


# Ends that take too long


async def test_the_goodbye_of_a_cancelled_handler_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "GOODBYE", 0.01)
    app = App()

    @app.websocket("/")
    async def waiting(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            await server.until(lambda server: server.types == ["websocket.accept"])
            server.hold = anyio.Event()  # the client reads nothing, so the close cannot go out
            group.cancel_scope.cancel()
    assert server.closed is None


async def test_the_clean_up_of_a_stream_has_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38
    monkeypatch.setattr(streams, "CLEAN_UP", 0.01)
    app = App()

    @app.websocket("/")
    async def sticky(ws: WebSocket) -> Any:
        try:
            while True:
                yield await ws.receive_text()
        finally:
            await anyio.sleep_forever()

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, server.scope, server.receive, server.send)
            server.say("a")
            await server.until(lambda server: server.texts == ["a"])
            server.hold = anyio.Event()
            server.say("b")  # the generator stands at its second yield while its item is being sent
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            server.hold.set()
    assert "the clean-up" in caplog.text


async def test_the_clean_up_of_a_stream_may_await() -> None:
    # T38, T39
    app = App()
    ended: list[str] = []

    @app.websocket("/")
    async def tidy(ws: WebSocket) -> Any:
        try:
            while True:
                yield "x"
        finally:
            await anyio.lowlevel.checkpoint()
            ended.append("tidy")

    server = FakeServer()
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await server.until(lambda server: len(server.texts) > 3)
        server.hold = anyio.Event()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        server.hold.set()
    assert ended == ["tidy"]


async def test_a_stream_drops_what_its_client_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app = App()
    go_on = anyio.Event()

    @app.websocket("/")
    async def deaf() -> Any:
        yield "first"
        await go_on.wait()
        yield "second"

    server = FakeServer()
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await server.until(lambda server: server.texts == ["first"])
        server.say("hello?")
        server.say(b"hello?")
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert server.texts == ["first", "second"]
    assert server.closed == (1000, "")
    assert [record.levelno for record in caplog.records] == [logging.DEBUG, logging.DEBUG]
    assert "hello" not in caplog.text


@pytest.mark.parametrize(
    ("item", "event"),
    [
        ("text", {"text": "text"}),
        ("", {"text": ""}),
        (b"data", {"bytes": b"data"}),
        (bytearray(b"data"), {"bytes": b"data"}),
        (memoryview(b""), {"bytes": b""}),
        ({"a": [1]}, {"text": '{"a":[1]}'}),
        (None, {"text": "null"}),
        (Note("x"), {"text": '{"text":"x"}'}),
    ],
    ids=lambda value: repr(value).split(" at ")[0],
)
async def test_the_items_of_a_stream_go_as_what_they_are(item: Any, event: dict[str, Any]) -> None:
    # T22
    app = App()

    @app.websocket("/")
    async def one() -> Any:
        yield item

    server = await converse(app, FakeServer(), leave=-1)
    assert server.sent[1] == {"type": "websocket.send", **event}
