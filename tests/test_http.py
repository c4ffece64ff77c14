"""HTTP: requests, responses, and how an app answers: results, bodies, statuses, errors."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
import starlette.responses
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from asgiws import (
    App,
    Body,
    Connection,
    HTMLResponse,
    HTTPException,
    JSONResponse,
    Limits,
    ParameterError,
    PlainTextResponse,
    ProtocolError,
    Query,
    Request,
    Response,
    SignatureError,
    WebSocket,
)
from asgiws.http import ClientDisconnectError, collect_response, to_response
from tests.fakes import DAPHNE, GRANIAN, UVICORN, FakeServer, HTTPAnswer, Shape, converse, request

pytestmark = pytest.mark.anyio


class Item(Struct):
    name: str
    price: float = 0.0
    tags: list[str] = []


class Cat(Struct, tag="cat"):
    lives: int


class Dog(Struct, tag="dog"):
    name: str


@dataclasses.dataclass
class Point:
    x: int
    y: int


def answering(result: Any) -> App:
    """An app whose handler of `GET /` returns this."""
    app = App()

    @app.get("/")
    async def handler() -> Any:
        return result

    return app


def failing(error: Exception, **options: Any) -> App:
    """An app whose handler of `GET /` raises this."""
    app = App(**options)

    @app.get("/")
    async def handler() -> None:
        raise error

    return app


def detail(answer: HTTPAnswer) -> Any:
    """What the JSON of an error tells."""
    assert answer.header("content-type") == "application/json"
    return json.loads(answer.body)["detail"]


# What a handler returns


@pytest.mark.parametrize(
    ("result", "status", "kind", "body"),
    [
        (None, 204, None, b""),
        ("hé", 200, "text/plain; charset=utf-8", "hé".encode()),
        ("", 200, "text/plain; charset=utf-8", b""),
        (b"\x00\xff", 200, "application/octet-stream", b"\x00\xff"),
        (bytearray(b"ab"), 200, "application/octet-stream", b"ab"),
        (memoryview(b"ab"), 200, "application/octet-stream", b"ab"),
        ({"a": [1, None, "é"]}, 200, "application/json", '{"a":[1,null,"é"]}'.encode()),
        ([], 200, "application/json", b"[]"),
        (0, 200, "application/json", b"0"),
        (False, 200, "application/json", b"false"),
        (Item("pen"), 200, "application/json", b'{"name":"pen","price":0.0,"tags":[]}'),
        ([Cat(9), Dog("rex")], 200, "application/json", b'[{"type":"cat","lives":9},{"type":"dog","name":"rex"}]'),
        (Point(1, 2), 200, "application/json", b'{"x":1,"y":2}'),
        (Response("ok", 201), 201, None, b"ok"),
        (Response("ok", media_type="text/csv"), 200, "text/csv; charset=utf-8", b"ok"),
        (PlainTextResponse("ok"), 200, "text/plain; charset=utf-8", b"ok"),
        (HTMLResponse("<p>é"), 200, "text/html; charset=utf-8", "<p>é".encode()),
        (JSONResponse({"a": 1}, 202), 202, "application/json", b'{"a":1}'),
        (JSONResponse(None), 200, "application/json", b"null"),
        (starlette.responses.JSONResponse({"a": 1}, 202), 202, "application/json", b'{"a":1}'),
        (starlette.responses.PlainTextResponse("ok"), 200, "text/plain; charset=utf-8", b"ok"),
    ],
)
async def test_what_a_handler_returns_becomes_the_answer(
    result: Any, status: int, kind: str | None, body: bytes
) -> None:
    answer = await request(answering(result), "GET", "/")
    assert (answer.status, answer.header("content-type"), answer.body) == (status, kind, body)
    assert answer.header("content-length") == (None if status == 204 else str(len(body)))


async def test_a_streaming_response_of_starlette_passes_through() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in (b"a", b"b", b"c"):
            yield chunk

    # From 2.4 on Starlette does not listen for the disconnect, which the client of these tests tells at once.
    modern = {"version": "3.0", "spec_version": "2.4"}
    answer = await request(answering(starlette.responses.StreamingResponse(chunks())), "GET", "/", asgi=modern)
    assert (answer.status, answer.body) == (200, b"abc")


async def test_any_asgi_application_is_a_response() -> None:
    async def teapot(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    answer = await request(answering(teapot), "GET", "/")
    assert (answer.status, answer.body) == (418, b"/")


async def test_a_result_that_cannot_be_encoded_is_an_error_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    answer = await request(answering({"a": object()}), "GET", "/", raises=TypeError)
    assert (answer.status, detail(answer)) == (500, "Internal Server Error")
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


@pytest.mark.parametrize("result", [len, lambda: None, Item], ids=["builtin", "lambda", "class"])
async def test_a_result_that_only_looks_like_a_response_is_an_error_of_the_handler(
    result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await request(answering(result), "GET", "/", raises=Exception)
    assert (answer.status, detail(answer)) == (500, "Internal Server Error")
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


# Responses by themselves


def pairs(response: Response) -> dict[str, str]:
    """The headers of a response."""
    names = [name for name, _ in response.raw_headers]
    assert len(set(names)) == len(names)
    return {name.decode(): value.decode("latin-1") for name, value in response.raw_headers}


def test_a_response_has_the_headers_that_it_is_given() -> None:
    response = Response("ok", headers={"X-One": "1", "x-two": " 2\t"})
    assert pairs(response) == {"x-one": "1", "x-two": "2", "content-length": "2"}
    given_twice = Response(headers=[("Set-Cookie", "a=1"), ("set-cookie", "b=2")])
    assert given_twice.raw_headers[:2] == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


def test_a_header_of_the_user_beats_what_the_response_would_set() -> None:
    response = JSONResponse({"a": 1}, headers={"Content-Type": "application/problem+json", "Content-Length": "7"})
    assert pairs(response) == {"content-type": "application/problem+json", "content-length": "7"}
    assert (
        pairs(HTMLResponse("", media_type="text/html; charset=latin-1"))["content-type"] == "text/html; charset=latin-1"
    )


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_neither_body_nor_length(status: int) -> None:
    answer = await request(answering(Response("ignored", status)), "GET", "/")
    assert (answer.status, answer.body, answer.header("content-length")) == (status, b"", None)


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nset-cookie: evil=1"},
        {"x": "a\nb"},
        {"x": "a\0b"},
        {"x": "a\x7fb"},
        {"x": "☃"},
        {"x": 1},
        {"x y": "a"},
        {"x:": "a"},
        {"": "a"},
        {"é": "a"},
        {"x\r\ny": "a"},
        [(b"x\n", b"a")],
        [("x", None)],
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_where_it_is_set(headers: Any) -> None:
    # S19
    with pytest.raises(ProtocolError, match="header"):
        Response("ok", headers=headers)


def test_a_media_type_cannot_break_the_header_either() -> None:
    # S19
    with pytest.raises(ProtocolError, match="content-type"):
        Response("ok", media_type="text/html\r\nx: y")


@given(st.text(), st.text())
def test_no_header_raises_anything_but_its_own_error(name: str, value: str) -> None:
    try:
        response = Response(headers={name: value})
    except ProtocolError:
        return
    (found_name, found_value), *_ = response.raw_headers
    assert found_name == name.lower().encode()
    assert found_value == value.strip(" \t").encode("latin-1")
    assert not set(found_value) & {0, 10, 13}


async def test_a_response_collected_is_what_it_would_send() -> None:
    status, headers, body = await collect_response(JSONResponse([1], 201), {"type": "http", "method": "GET"})
    assert (status, dict(headers)[b"content-length"], body) == (201, b"3", b"[1]")


async def test_a_response_that_sends_no_status_is_refused() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        """Send nothing."""

    with pytest.raises(ProtocolError, match="must send a status, function sent none"):
        await collect_response(silent, {"type": "websocket"})


def test_to_response_leaves_what_is_one_already() -> None:
    response = Response()
    assert to_response(response) is response


# Methods


def rest_app() -> App:
    """An app with a handler for each method."""
    app = App()

    async def handler(asked: Request) -> str:
        return asked.method

    for register in (app.get, app.post, app.put, app.patch, app.delete):
        register("/all")(handler)
    app.route("/two", methods=["get", "OPTIONS"])(handler)
    app.get("/get")(handler)
    app.post("/post")(handler)
    app.route("/head", methods=["HEAD"])(handler)

    @app.websocket("/socket")
    async def socket(ws: WebSocket) -> None:
        await ws.accept()

    @app.websocket("/get")
    async def beside(ws: WebSocket) -> None:
        await ws.accept()

    return app


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_each_method_has_its_handler(method: str) -> None:
    answer = await request(rest_app(), method, "/all")
    assert (answer.status, answer.body) == (200, method.encode())


async def test_a_route_takes_any_methods_in_any_case() -> None:
    for method in ("GET", "OPTIONS"):
        assert (await request(rest_app(), method, "/two")).body == method.encode()


@pytest.mark.parametrize("path", ["/get", "/all", "/two"])
async def test_head_is_answered_as_get_without_a_body(path: str) -> None:
    answer = await request(rest_app(), "HEAD", path)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("content-length") == "4"
    assert answer.header("content-type") == "text/plain; charset=utf-8"


async def test_head_of_an_error_has_no_body() -> None:
    for path in ("/nothing", "/post"):
        answer = await request(rest_app(), "HEAD", path)
        assert answer.status in {404, 405}
        assert answer.body == b""


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/get", "GET, HEAD"),
        ("GET", "/post", "POST"),
        ("HEAD", "/post", "POST"),
        ("OPTIONS", "/get", "GET, HEAD"),
        ("OPTIONS", "/all", "DELETE, GET, HEAD, PATCH, POST, PUT"),
        ("DELETE", "/two", "GET, HEAD, OPTIONS"),
        ("GET", "/head", "HEAD"),
        ("BREW", "/get", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_405_with_those_that_it_has(
    method: str, path: str, allow: str
) -> None:
    answer = await request(rest_app(), method, path)
    assert (answer.status, answer.header("allow")) == (405, allow)
    if method != "HEAD":
        assert detail(answer) == "Method Not Allowed"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/nothing", "/", "/get/", "/get/more", "//get", "/socket"])
async def test_a_path_without_a_route_is_404(method: str, path: str) -> None:
    # T31: a WebSocket's path is no path of HTTP.
    answer = await request(rest_app(), method, path)
    assert (answer.status, detail(answer), answer.header("allow")) == (404, "Not Found", None)


async def test_a_path_of_http_alone_is_404_to_a_websocket() -> None:
    # T31
    server = await converse(rest_app(), FakeServer(path="/post"), leave=-1)
    assert (server.status, json.loads(server.body)) == (404, {"detail": "Not Found"})


async def test_http_and_websockets_live_on_one_path() -> None:
    app = rest_app()
    assert (await request(app, "GET", "/get")).status == 200
    assert (await converse(app, FakeServer(path="/get"), leave=-1)).status == 101


# The body


def shop() -> App:
    """An app whose handlers take a body in every way."""
    app = App(limits=Limits(body_bytes=100))

    @app.post("/struct")
    async def struct(item: Item) -> Item:
        return item

    @app.put("/marked")
    async def marked(item: Annotated[Item, Body()]) -> Item:
        return item

    @app.patch("/default-marker")
    async def default_marker(item: Item = Body()) -> Item:  # noqa: B008
        return item

    @app.post("/union")
    async def union(pet: Annotated[Cat | Dog, Body()]) -> Any:
        return pet

    @app.post("/list")
    async def many(numbers: Annotated[list[int], Body(min_length=1)]) -> Any:
        return numbers

    @app.post("/dict")
    async def mapping(table: Annotated[dict[str, int], Body(description="a table")]) -> Any:
        return table

    @app.post("/anything")
    async def anything(data: Annotated[Any, Body()]) -> Any:
        return JSONResponse(data)

    @app.post("/optional")
    async def optional(item: Annotated[Item | None, Body()] = None) -> Any:
        return JSONResponse(item)

    @app.post("/default")
    async def default(numbers: Annotated[list[int], Body()] = [1]) -> Any:  # noqa: B006
        numbers.append(2)
        return numbers

    @app.post("/factory")
    async def factory(numbers: list[int] = Body(default_factory=lambda: [3])) -> Any:  # noqa: B008
        return numbers

    @app.post("/mixed/<shelf:int>")
    async def mixed(asked: Request, shelf: int, item: Item, count: Annotated[int, Query(ge=1)] = 1) -> Any:
        return [shelf, item.name, count, len(await asked.body())]

    @app.post("/raw")
    async def raw(asked: Request) -> bytes:
        return await asked.body() + await asked.body()

    @app.route("/both", methods=["GET", "POST"])
    async def both(item: Item = Item("none")) -> Item:  # noqa: B008
        return item

    @app.delete("/struct")
    async def delete(item: Item) -> Item:
        return item

    @app.post("/ignored")
    async def ignored() -> str:
        return "ok"

    return app


PEN = b'{"name":"pen"}'
FULL = b'{"name":"pen","price":0.0,"tags":[]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "wanted"),
    [
        ("POST", "/struct", PEN, FULL),
        ("POST", "/struct", [b'{"na', b"", b'me":"pen"}'], FULL),
        ("PUT", "/marked", PEN, FULL),
        ("PATCH", "/default-marker", PEN, FULL),
        ("DELETE", "/struct", PEN, FULL),
        ("POST", "/union", b'{"type":"dog","name":"rex"}', b'{"type":"dog","name":"rex"}'),
        ("POST", "/list", b"[1,2]", b"[1,2]"),
        ("POST", "/dict", b'{"a":1}', b'{"a":1}'),
        ("POST", "/anything", b"null", b"null"),
        ("POST", "/anything", b'"x"', b'"x"'),
        ("POST", "/optional", PEN, FULL),
        ("POST", "/optional", b"null", b"null"),
        ("POST", "/optional", b"", b"null"),
        ("POST", "/default", b"", b"[1,2]"),
        ("POST", "/default", b"[]", b"[2]"),
        ("POST", "/factory", b"", b"[3]"),
        ("POST", "/mixed/7", PEN, b'[7,"pen",1,14]'),
        ("POST", "/raw", b"ab", b"abab"),
        ("POST", "/raw", b"", b""),
        ("GET", "/both", b"", b'{"name":"none","price":0.0,"tags":[]}'),
        ("POST", "/both", PEN, FULL),
        ("POST", "/ignored", b"\xff", b"ok"),
    ],
)
async def test_a_body_is_decoded_into_its_annotation(
    method: str, path: str, body: bytes | list[bytes], wanted: bytes
) -> None:
    answer = await request(shop(), method, path, body=body)
    assert (answer.status, answer.body) == (200, wanted)


async def test_no_two_requests_share_the_default_of_a_body() -> None:
    # S23
    app = shop()
    assert [(await request(app, "POST", "/default")).body for _ in range(2)] == [b"[1,2]", b"[1,2]"]


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/struct", b"", {"loc": ["body"], "msg": "is missing"}),
        ("/struct", b"[]", {"loc": ["body"], "msg": "expected `object`, got `array`"}),
        ("/struct", b"{}", {"loc": ["body"], "msg": "object missing required field `name`"}),
        ("/struct", b'{"name":1}', {"loc": ["body", "$.name"], "msg": "expected `str`, got `int`"}),
        ("/struct", b'{"name":"\xff"}', {"loc": ["body"], "msg": "is not UTF-8"}),
        ("/struct", b"{", {"loc": ["body"], "msg": "is not JSON: input data was truncated"}),
        ("/list", b'[1,"x"]', {"loc": ["body", "$[1]"], "msg": "expected `int`, got `str`"}),
        ("/list", b"[]", {"loc": ["body"], "msg": "expected `array` of length >= 1"}),
        ("/optional", b"1", {"loc": ["body"], "msg": "expected `object | null`, got `int`"}),
        ("/anything", b"[" * 100, {"loc": ["body"], "msg": "is not JSON: input data was truncated"}),
        ("/union", b'{"type":"cat"}', {"loc": ["body"], "msg": "object missing required field `lives`"}),
    ],
)
async def test_a_body_that_does_not_fit_is_422_with_its_place(path: str, body: bytes, problem: dict[str, Any]) -> None:
    answer = await request(shop(), "POST", path, body=body)
    assert answer.status == 422
    assert detail(answer) == [problem]


async def test_a_body_and_other_values_are_told_together() -> None:
    answer = await request(shop(), "POST", "/mixed/7", query="count=0", body=b'{"name":1}')
    assert answer.status == 422
    assert detail(answer) == [
        {"loc": ["body", "$.name"], "msg": "expected `str`, got `int`"},
        {"loc": ["query", "count"], "msg": "expected `int` >= 1"},
    ]


class Paint(Struct):
    colour: Literal["red", "blue"]


@pytest.mark.parametrize("body", [b'{"colour":"s3cret"}', b'{"colour":["s3cret"]}', b'"s3cret"', b'{"colour":"s3cret'])
@pytest.mark.parametrize("path", ["/paint", "/pet"])
async def test_no_value_of_a_body_stands_in_the_text_of_its_error(path: str, body: bytes) -> None:
    app = App()

    @app.post("/paint")
    async def paint(wanted: Paint) -> None:
        raise AssertionError

    @app.post("/pet")
    async def pet(wanted: Annotated[Cat | Dog, Body()]) -> None:
        raise AssertionError

    answer = await request(app, "POST", path, body=body.replace(b"colour", b"type" if path == "/pet" else b"colour"))
    assert answer.status == 422
    assert b"s3cret" not in answer.body


LARGE = b'"' + b"x" * 99 + b'"'
"""One byte more than the limit."""


@pytest.mark.parametrize("path", ["/anything", "/raw"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (LARGE, {}),
        (LARGE, {"content-length": "101"}),
        (b"", {"content-length": "101"}),
        (b"", {"Content-Length": "9" * 20}),
        (LARGE, {"content-length": "9" * 5000}),
        ([LARGE[:50], LARGE[50:]], {}),
        ([LARGE, b"", b""], {}),
        (LARGE, {"content-length": "1"}),
        (LARGE, {"content-length": "x"}),
        (LARGE, {"content-length": "-1"}),
    ],
)
async def test_a_body_over_the_limit_is_413(path: str, body: bytes | list[bytes], headers: dict[str, str]) -> None:
    answer = await request(shop(), "POST", path, body=body, headers=headers)
    assert (answer.status, detail(answer)) == (413, "a body has at most 100 bytes")


@pytest.mark.parametrize("headers", [{}, {"content-length": "100"}, {"content-length": "x"}])
async def test_a_body_of_just_the_limit_is_taken(headers: dict[str, str]) -> None:
    body = b'"' + b"x" * 98 + b'"'
    answer = await request(shop(), "POST", "/anything", body=[body[:50], body[50:]], headers=headers)
    assert (answer.status, answer.body) == (200, body)


async def test_an_announced_body_that_is_too_large_is_refused_unread() -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"101")]}
    with pytest.raises(HTTPException) as caught:
        await Request(scope, receive, limits=Limits(body_bytes=100)).body()
    assert caught.value.status_code == 413


async def test_no_more_of_a_large_body_is_read_than_the_limit_takes() -> None:
    reads = 0

    async def receive() -> Any:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(HTTPException):
        await Request(scope, receive, limits=Limits(body_bytes=100)).body()
    assert reads == 2


# A client that leaves


@pytest.mark.parametrize("path", ["/anything", "/raw"])
@pytest.mark.parametrize("chunks", [0, 1])
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_not_answered(
    path: str, chunks: int, caplog: pytest.LogCaptureFixture
) -> None:
    events = [{"type": "http.request", "body": b"{", "more_body": True}] * chunks + [{"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return events.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    await shop()({"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}, receive, send)
    assert (sent, events) == ([], [])
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_a_request_by_itself_tells_that_its_client_left() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnectError):
        await Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive).body()


async def test_a_request_needs_the_scope_of_one() -> None:
    async def receive() -> Any:
        raise AssertionError

    with pytest.raises(ProtocolError, match="a Request needs a scope of type 'http', got 'websocket'"):
        Request({"type": "websocket", "path": "/"}, receive)
    asked = Request({"type": "http", "method": "GET", "path": "/x"}, receive)
    assert isinstance(asked, Connection)
    assert asked.loaded_body == b""


# Errors


@pytest.mark.parametrize(
    ("error", "status", "wanted"),
    [
        (HTTPException(404), 404, "Not Found"),
        (HTTPException(403, "not yours"), 403, "not yours"),
        (HTTPException(409, {"why": ["busy"]}), 409, {"why": ["busy"]}),
        (HTTPException(418), 418, "I'm a Teapot"),
        (HTTPException(499), 499, "Error"),
        (HTTPException(503, ""), 503, ""),
        (HTTPException(200, "fine"), 200, "fine"),
    ],
)
async def test_an_http_exception_is_the_answer(
    error: HTTPException, status: int, wanted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await request(failing(error), "GET", "/")
    assert (answer.status, detail(answer)) == (status, wanted)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_the_headers_of_an_http_exception_are_sent() -> None:
    answer = await request(failing(HTTPException(401, headers={"WWW-Authenticate": "Bearer"})), "GET", "/")
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")


@pytest.mark.parametrize("status", [204, 304])
async def test_an_http_exception_of_a_status_without_body_has_none(status: int) -> None:
    answer = await request(failing(HTTPException(status, headers={"x-why": "none"})), "GET", "/")
    assert (answer.status, answer.body, answer.header("x-why")) == (status, b"", "none")


@pytest.mark.parametrize("status", [0, 99, 100, 199, 600, -1, "404", None, 4.04])
def test_a_status_that_is_none_is_refused_where_it_is_raised(status: Any) -> None:
    with pytest.raises(ProtocolError, match="an HTTP status is a number from 200 to 599, got "):
        HTTPException(status)


SECRET = "s3cret-detail"


async def test_any_other_exception_is_500_without_its_text_logged_once_and_raised_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # S24
    answer = await request(failing(RuntimeError(SECRET)), "GET", "/", query=f"token={SECRET}", raises=RuntimeError)
    assert answer.status == 500
    told = json.loads(answer.body)
    assert told.keys() == {"detail", "id"}
    assert told["detail"] == "Internal Server Error"
    assert SECRET.encode() not in answer.body
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told["id"] in record.getMessage()
    assert "GET /" in record.getMessage()
    assert "test_http.failing.handler, " in record.getMessage()
    assert "test_http.py:" in record.getMessage()
    assert SECRET not in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


@pytest.mark.parametrize(
    "error",
    [OSError(SECRET), KeyError(SECRET), ExceptionGroup(SECRET, [ValueError(SECRET), KeyError(SECRET)])],
    ids=["OSError", "KeyError", "group"],
)
async def test_whatever_is_raised_its_text_stays_with_the_server(error: Exception) -> None:
    answer = await request(failing(error), "GET", "/", raises=type(error))
    assert answer.status == 500
    assert SECRET.encode() not in answer.body


async def test_an_http_exception_inside_a_group_is_still_the_answer() -> None:
    # T40
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [HTTPException(409, "busy")])])
    answer = await request(failing(group), "GET", "/")
    assert (answer.status, detail(answer)) == (409, "busy")


async def test_an_exception_in_the_values_is_told_as_a_parameter_error() -> None:
    app = App()

    @app.get("/")
    async def handler(n: int) -> None:
        raise AssertionError

    answer = await request(app, "GET", "/", query="n=x")
    assert (answer.status, detail(answer)) == (422, [{"loc": ["query", "n"], "msg": "expected `int`"}])
    assert answer.header("content-type") == "application/json"


UNSENDABLE = pytest.mark.parametrize(
    "error",
    [
        HTTPException(401, headers={"www-authenticate": "a\r\nset-cookie: evil=1"}),
        HTTPException(401, headers={"bad name": "a"}),
        HTTPException(400, detail=object()),
    ],
    ids=["value", "name", "detail"],
)


@UNSENDABLE
async def test_an_http_exception_that_cannot_be_sent_is_500_and_logged(
    error: HTTPException, caplog: pytest.LogCaptureFixture
) -> None:
    # S19
    answer = await request(failing(error), "GET", "/", raises=Exception)
    assert (answer.status, detail(answer)) == (500, "Internal Server Error")
    assert answer.header("set-cookie") is None
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


@UNSENDABLE
@pytest.mark.parametrize("shape", [UVICORN, DAPHNE, GRANIAN], ids=lambda shape: shape.name)
async def test_a_denial_that_cannot_be_sent_is_500_and_logged(
    error: HTTPException, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    # S19; P20: an end is always sent, whatever happens.
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        raise error

    server = FakeServer(shape)
    with contextlib.suppress(ProtocolError, TypeError):
        await converse(app, server, leave=-1)
    assert server.status == (500 if shape.denial else 403)
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE, GRANIAN], ids=lambda shape: shape.name)
async def test_a_detail_that_cannot_be_sent_after_accept_closes_all_the_same(shape: Shape) -> None:
    # P20
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        raise HTTPException(400, detail=object())

    server = FakeServer(shape)
    with contextlib.suppress(TypeError):
        await converse(app, server, leave=-1)
    assert server.types == ["websocket.accept", "websocket.close"]


@pytest.mark.parametrize("key", [KeyError, LookupError, Exception])
async def test_an_exception_handler_takes_the_place_of_the_answer(
    key: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def own(asked: Request, error: Exception) -> Any:
        return JSONResponse({"path": asked.scope["path"], "error": type(error).__name__}, 410)

    answer = await request(failing(KeyError("x"), exception_handlers={key: own}), "GET", "/")
    assert (answer.status, answer.body) == (410, b'{"path":"/","error":"KeyError"}')
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.parametrize("result", [{"a": 1}, None, "text", Response("x", 202)])
async def test_an_exception_handler_may_return_what_a_handler_may(result: Any) -> None:
    async def own(asked: Request, error: Exception) -> Any:
        return result

    expected = await request(answering(result), "GET", "/")
    assert await request(failing(KeyError("x"), exception_handlers={KeyError: own}), "GET", "/") == expected


@pytest.mark.parametrize("error", [HTTPException(404), ParameterError([])], ids=["status", "parameters"])
async def test_an_exception_handler_by_status_or_class_overrides_the_errors_of_asgiws(error: Exception) -> None:
    async def own(asked: Request, error: Exception) -> Any:
        return Response("mine", 299)

    app = failing(error, exception_handlers={404: own, ParameterError: own})
    assert (await request(app, "GET", "/")).status == 299
    assert (await request(app, "GET", "/nothing")).status == 299


async def test_an_exception_handler_that_fails_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def own(asked: Request, error: Exception) -> Any:
        raise ValueError(SECRET)

    app = failing(KeyError("x"), exception_handlers={KeyError: own})
    answer = await request(app, "GET", "/", raises=Exception)
    assert (answer.status, detail(answer)) == (500, "Internal Server Error")
    assert SECRET.encode() not in answer.body
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


# Registration


def test_a_sync_handler_is_refused_for_every_method() -> None:
    app = App()

    def handler() -> str:
        return "x"

    for register in (app.get, app.post, app.put, app.patch, app.delete, app.route):
        with pytest.raises(
            SignatureError, match=r"a handler must be async, got a plain function \(.*test_http\.py:\d+"
        ):
            register("/")(handler)
    assert app.routes == []


# What a stranger may send


@given(st.binary(max_size=120), st.lists(st.binary(max_size=60), max_size=3), st.binary())
async def test_no_body_is_more_than_refused(body: bytes, chunks: list[bytes], length: bytes) -> None:
    for path in ("/struct", "/union", "/anything", "/list", "/optional"):
        answer = await request(SHOP, "POST", path, body=[body, *chunks], headers=[(b"content-length", length)])
        assert answer.status in {200, 413, 422}
        if answer.status == 422:
            assert [set(problem) for problem in detail(answer)] == [{"loc", "msg"}]


@given(st.text(st.characters(max_codepoint=127)), st.text())
async def test_no_method_or_path_is_more_than_refused(method: str, path: str) -> None:
    path = "/" + path.encode("utf-8", "replace").decode()
    answer = await request(SHOP, method, path)
    assert answer.status in {200, 204, 404, 405, 422}


SHOP = shop()


def test_msgspec_is_what_encodes() -> None:
    assert JSONResponse({1: msgspec.Raw(b"[1]")}).body == b'{"1":[1]}'
