"""Where a handler's arguments come from: the order of the sources, the connection, the app, and all errors at once."""

import json
import logging
import urllib.parse
from typing import Annotated, Any, Literal

import anyio
import anyio.lowlevel
import pydantic
import pytest
import starlette.requests
import starlette.websockets
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from asgiws import (
    App,
    Body,
    Connection,
    Cookie,
    Header,
    Path,
    Query,
    Request,
    Router,
    SignatureError,
    WebSocket,
)
from tests.fakes import DEADLINE, SHAPES, FakeServer, Shape, converse, request

pytestmark = pytest.mark.anyio

Seen = list[Any]


class Say(Struct, tag="say"):
    text: str


class Move(Struct, tag="move"):
    x: int


class Filters(Struct):
    a: int = 1


class Item(Struct):
    a: int


class Other(Struct):
    b: int


class Unknown:
    pass


class Model(pydantic.BaseModel):
    a: int


async def connect(app: App, path: str = "/", query: str = "", headers: Any = ()) -> FakeServer:
    """A whole connection on which the client says nothing and does not leave."""
    return await converse(app, FakeServer(path=path, query=query, headers=headers), leave=-1)


# The example of the design


async def test_path_and_query_come_by_name_and_annotation() -> None:
    app = App()

    @app.websocket("/echo/<room>/<count:int>")
    async def echo(ws: WebSocket, room: str, count: int, lang: str = "en") -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(f"{room}/{lang}: {text * count}")

    server = FakeServer(path="/echo/lobby/2", query="lang=fr")
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        server.say("ab")
        await server.until(lambda _: server.texts)
        server.leave()
    assert server.texts == ["lobby/fr: abab"]


# The order of the sources


async def test_each_source_beats_those_that_come_after_it() -> None:
    app = App()
    seen: Seen = []

    @app.websocket("/<ws>/<marked>/<plain>")
    async def handler(
        ws: WebSocket,
        marked: Annotated[str, Query()],
        plain: str,
        app: App,
        rest: str,
        header: Annotated[str, Header()],
        cookie: str = Cookie(),
    ) -> None:
        seen.append((ws.path_params["ws"], marked, plain, type(app), rest, header, cookie))
        await ws.accept()

    names = ("ws", "marked", "plain", "app", "rest", "header", "cookie")
    query = urllib.parse.urlencode(dict.fromkeys(names, "query"))
    headers = {**dict.fromkeys(names, "header"), "cookie": "; ".join(f"{name}=cookie" for name in names)}
    await connect(app, "/path/path/path", query, headers)
    assert seen == [("path", "query", "path", App, "query", "header", "cookie")]


async def test_a_value_of_the_path_is_never_taken_from_the_query() -> None:
    app = App()
    seen: Seen = []

    @app.websocket("/<room>")
    async def handler(ws: WebSocket, room: Annotated[str, Path()], name: Annotated[str, Path(alias="room")]) -> None:
        seen.append((room, name))
        await ws.accept()

    await connect(app, "/lobby", "room=other&name=other")
    assert seen == [("lobby", "lobby")]


async def test_a_parameter_of_the_template_that_the_handler_does_not_name_is_left_alone() -> None:
    app = App()

    @app.websocket("/<room>/<n:int>")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json(ws.path_params)

    assert (await connect(app, "/lobby/3")).texts == ['{"room":"lobby","n":3}']


# The connection itself


async def _by_annotation(room: str, *, socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(room)


async def _by_annotation_with_messages(room: str, socket: WebSocket[Say | Move, Say]) -> None:
    await socket.accept()
    await socket.send_text(room)


async def _by_bare_name(ws, room):  # type: ignore[no-untyped-def]
    await ws.accept()
    await ws.send_text(room)


async def _by_any_bare_name(room, anything):  # type: ignore[no-untyped-def]
    await anything.accept()
    await anything.send_text(room)


async def _by_bare_keyword(lang: str = "en", *, room: str, ws) -> None:  # type: ignore[no-untyped-def]
    await ws.accept()
    await ws.send_text(room)


async def _bare_beside_a_default(lang="en", *, ws, room: str) -> None:  # type: ignore[no-untyped-def]
    assert lang == "en"
    await ws.accept()
    await ws.send_text(room)


async def _bare_beside_a_connection(ws, room: str, connection: Connection) -> None:  # type: ignore[no-untyped-def]
    assert connection.path_params == {"room": room}
    await ws.accept()
    await ws.send_text(room)


async def _twice(room: str, one: WebSocket, two: WebSocket) -> None:
    assert one is two
    await one.accept()
    await two.send_text(room)


@pytest.mark.parametrize(
    "handler",
    [
        _by_annotation,
        _by_annotation_with_messages,
        _by_bare_name,
        _by_any_bare_name,
        _by_bare_keyword,
        _bare_beside_a_default,
        _bare_beside_a_connection,
        _twice,
    ],
    ids=lambda handler: handler.__name__,
)
async def test_the_websocket_is_found_by_annotation_or_in_the_first_bare_parameter(handler: Any) -> None:
    app = App()
    app.websocket("/<room>")(handler)
    assert (await connect(app, "/lobby")).texts == ["lobby"]


async def test_only_the_first_bare_parameter_is_the_websocket() -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws, name, page=1) -> None:  # type: ignore[no-untyped-def]
        await ws.accept()
        await ws.send_json([name, page])

    assert (await connect(app, query="name=ann")).texts == ['["ann",1]']
    assert (await connect(app)).closed == (1008, "query 'name': is missing")


async def test_a_bare_parameter_is_a_value_where_the_websocket_is_annotated() -> None:
    app = App()

    @app.websocket("/")
    async def handler(name, ws: WebSocket) -> None:  # type: ignore[no-untyped-def]
        await ws.accept()
        await ws.send_json(name)

    assert (await connect(app, query="name=ann")).texts == ['"ann"']


async def test_a_connection_is_what_both_kinds_of_handlers_may_ask_for() -> None:
    app = App()
    seen: Seen = []

    @app.websocket("/<room>")
    async def socket(ws: WebSocket, connection: Connection) -> None:
        seen.append((type(connection), connection.path_params, connection.query_params["a"]))
        await ws.accept()

    @app.get("/<room>")
    async def page(connection: Connection) -> None:
        seen.append((type(connection), connection.path_params, connection.query_params["a"]))

    await connect(app, "/lobby", "a=1")
    await request(app, "GET", "/lobby", query="a=1")
    assert [values[1:] for values in seen] == [({"room": "lobby"}, "1")] * 2
    assert all(issubclass(values[0], Connection) for values in seen)


async def test_a_request_is_found_by_annotation_or_in_the_first_bare_parameter() -> None:
    app = App()

    @app.get("/a/<room>")
    async def annotated(room: str, asked: Request) -> list[str]:
        return [asked.method, room]

    @app.get("/b/<room>")
    async def bare(room, asked):  # type: ignore[no-untyped-def]
        return [asked.method, room]

    for path in ("/a/lobby", "/b/lobby"):
        assert json.loads((await request(app, "GET", path)).body) == ["GET", "lobby"]


async def test_the_metadata_of_an_annotation_does_not_hide_its_type() -> None:
    app = App()
    note = Meta(description="a note")

    @app.websocket("/")
    async def socket(
        ws: Annotated[WebSocket, "a note"], app: Annotated[App, "a note"], all_: Annotated[Filters, note, Query()]
    ) -> None:
        await ws.accept()
        await ws.send_json([all_, type(app).__name__])

    @app.post("/")
    async def page(item: Annotated[Item, note]) -> Item:
        return item

    assert (await connect(app, query="a=2")).texts == ['[{"a":2},"App"]']
    assert (await request(app, "POST", "/", body=b'{"a":1}')).body == b'{"a":1}'


# The app


async def test_the_app_is_found_by_its_annotation() -> None:
    class Own(App):
        """An app with something of its own."""

    app = Own()
    seen: Seen = []

    @app.websocket("/<room>")
    async def socket(ws: WebSocket, server: Own, room: str) -> None:
        seen.append((server, ws.app, room))
        await ws.accept()

    @app.get("/<room>")
    async def page(server: App, room: str) -> None:
        seen.append((server, server, room))

    await connect(app, "/lobby", "server=client")
    await request(app, "GET", "/lobby", query="server=client")
    assert seen == [(app, app, "lobby")] * 2


async def test_a_handler_of_a_router_gets_the_app_that_includes_it() -> None:
    router, app, seen = Router(), App(), list[Any]()

    @router.websocket("/x")
    async def socket(ws: WebSocket, server: App) -> None:
        seen.append(server)
        await ws.accept()

    app.include_router(router, "/deep")
    await connect(app, "/deep/x")
    assert seen == [app]


async def test_a_handler_of_a_mounted_app_gets_its_own_app() -> None:
    parent, child, seen = App(), App(), list[Any]()

    @child.websocket("/x")
    async def socket(ws: WebSocket, server: App) -> None:
        seen.append(server)
        await ws.accept()

    parent.mount("/child", child)
    await connect(parent, "/child/x")
    assert seen == [child]


# All errors at once


def picky_app() -> App:
    """An app whose handler has a parameter of each place."""
    app = App()

    @app.websocket("/<n>")
    async def handler(
        ws: WebSocket,
        n: int,
        page: Annotated[int, Query(ge=1)],
        kind: Literal["a", "b"] = "a",
        x_id: Annotated[int | None, Header()] = None,
        session: Annotated[str, Cookie(min_length=3)] = "none",
    ) -> None:
        await ws.accept()

    @app.get("/<n>")
    async def page_(
        n: int,
        page: Annotated[int, Query(ge=1)],
        all_: Annotated[Filters, Query()],
        x_id: Annotated[int | None, Header()] = None,
        session: Annotated[str, Cookie(min_length=3)] = "none",
    ) -> None:
        raise AssertionError

    return app


@pytest.mark.parametrize(
    ("path", "query", "headers", "problems"),
    [
        ("/1", "page=x", {}, ["query 'page': expected `int`"]),
        ("/x", "page=1", {}, ["path 'n': expected `int`"]),
        ("/x", "", {}, ["path 'n': expected `int`", "query 'page': is missing"]),
        ("/x", "page=1&kind=c", {}, ["path 'n': expected `int`", "query 'kind': expected one of 'a', 'b'"]),
        ("/1", "", {"x-id": "x"}, ["query 'page': is missing", "header 'x-id': expected `int | null`"]),
        ("/1", "page=1", {"cookie": "session=a"}, ["cookie 'session': expected `str` of length >= 3"]),
    ],
)  # fmt: skip
async def test_every_wrong_value_is_told_in_one_close(
    path: str, query: str, headers: dict[str, str], problems: list[str]
) -> None:
    server = await connect(picky_app(), path, query, headers)
    assert server.closed == (1008, "; ".join(problems))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_what_is_too_much_for_a_reason_is_cut_on_every_server(shape: Shape) -> None:
    wrong = FakeServer(shape, "/x", query="kind=c", headers={"x-id": "x", "cookie": "session=a"})
    server = await converse(picky_app(), wrong, leave=-1)
    assert (server.types, server.status) == (["websocket.close"], 403)
    assert server.closed is not None
    code, reason = server.closed
    assert code == (4008 if shape.own_codes_only else 1008)
    start = "path 'n': expected `int`; query 'page': is missing; query 'kind': expected one of 'a', 'b'; header 'x-id'"
    assert reason.startswith(start)
    assert len(reason) == 123


async def test_over_http_every_wrong_value_is_listed() -> None:
    answer = await request(picky_app(), "GET", "/x", query="a=x", headers={"x-id": "x", "cookie": "session=a"})
    assert answer.status == 422
    assert answer.header("content-type") == "application/json"
    assert json.loads(answer.body) == {
        "detail": [
            {"loc": ["path", "n"], "msg": "expected `int`"},
            {"loc": ["query", "page"], "msg": "is missing"},
            {"loc": ["query", "a"], "msg": "expected `int`"},
            {"loc": ["header", "x-id"], "msg": "expected `int | null`"},
            {"loc": ["cookie", "session"], "msg": "expected `str` of length >= 3"},
        ]
    }


async def test_a_wrong_value_is_in_no_answer_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    # S8
    with caplog.at_level(logging.DEBUG):
        secret = {"x-id": "s3cret", "cookie": "session=s3; a=s3cret"}
        server = await connect(picky_app(), "/s3cret", "page=s3cret&kind=s3cret", secret)
        answer = await request(picky_app(), "GET", "/s3cret", query="page=s3cret&a=s3cret", headers=secret)
    assert server.closed is not None
    assert "s3cret" not in server.closed[1]
    assert b"s3cret" not in answer.body
    assert all("page=" not in record.getMessage() for record in caplog.records)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_handler_is_not_called_with_wrong_values_whatever_it_is() -> None:
    app = App()
    called: Seen = []

    @app.websocket("/stream")
    async def stream(n: int) -> Any:
        called.append(n)
        yield n

    server = await connect(app, "/stream", "n=x")
    assert (server.closed, called) == ((1008, "query 'n': expected `int`"), [])


# Each connection has its own values


async def test_two_hundred_connections_at_once_each_get_their_own() -> None:
    # S23
    app = App()

    @app.websocket("/<n:int>")
    async def handler(
        ws: WebSocket,
        n: int,
        q: int,
        filters: Annotated[Filters, Query()],
        x: Annotated[int, Header()],
        bag: list[int] = Query([]),  # noqa: B008
    ) -> None:
        bag.append(n)
        ws.state.n = n
        await ws.accept()
        await anyio.lowlevel.checkpoint()
        await ws.send_json([n, q, filters.a, x, bag, ws.state.n])

    servers = [FakeServer(path=f"/{n}", query=f"q={n}&a={n}", headers={"x": f"{n}"}) for n in range(200)]
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            for server in servers:
                group.start_soon(app, server.scope, server.receive, server.send)
    assert [json.loads(server.texts[0]) for server in servers] == [[n, n, n, n, [n], n] for n in range(200)]


# What is refused at registration


def refusal(kind: str, annotation: Any, default: Any = ..., template: str = "/") -> str:
    """The error for a handler with one parameter, `value`, of this annotation."""

    async def handler(value: Any = None) -> None: ...

    handler.__annotations__["value"] = annotation
    handler.__defaults__ = None if default is ... else (default,)
    app = App()
    with pytest.raises(SignatureError) as caught:
        getattr(app, kind)(template)(handler)
    text = str(caught.value)
    where = f"(test_injection.refusal.handler, {caught.value.where.rpartition(', ')[2]})"
    assert where in text
    assert f"test_injection.py:{handler.__code__.co_firstlineno})" in where
    assert app.routes == []
    return text.replace(f" {where}", "")


STRUCT_HINT = "Mark it as Annotated[Item, Query()] to fill it from the query string."
NO_BODY = (
    "parameter 'value' is marked as Body(), but nothing here has a body. "
    "Use Query(), Header() or Cookie(); on a WebSocket declare messages as WebSocket[In, Out]."
)


@pytest.mark.parametrize(
    ("kind", "annotation", "text"),
    [
        (
            "websocket",
            starlette.websockets.WebSocket,
            (
                "parameter 'value' is annotated with the WebSocket of starlette.websockets. "
                "Import it from asgiws: from asgiws import WebSocket."
            ),
        ),
        (
            "get",
            starlette.requests.Request,
            (
                "parameter 'value' is annotated with the Request of starlette.requests. "
                "Import it from asgiws: from asgiws import Request."
            ),
        ),
        # T35
        (
            "websocket",
            Request,
            (
                "parameter 'value' asks for a Request, but this serves a WebSocket. "
                "Annotate it with WebSocket or Connection."
            ),
        ),
        (
            "get",
            WebSocket,
            (
                "parameter 'value' asks for a WebSocket, but this serves HTTP requests. "
                "Annotate it with Request or Connection."
            ),
        ),
        ("websocket", Item, f"parameter 'value' is a Struct, but nothing here has a body. {STRUCT_HINT}"),
        ("get", Item, f"parameter 'value' is a Struct, but nothing here has a body. {STRUCT_HINT}"),
        ("websocket", Annotated[Item, Body()], NO_BODY),
        ("websocket", Annotated[int, Body()], NO_BODY),
        ("get", Annotated[Item, Body()], NO_BODY),
        (
            "websocket",
            Annotated[int, Path()],
            "parameter 'value' is marked as Path(), but the template has no 'value'. Its parameters: none.",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_parameter_that_nothing_can_fill_is_refused_with_the_way_out(kind: str, annotation: Any, text: str) -> None:
    assert refusal(kind, annotation) == text


@pytest.mark.parametrize("kind", ["websocket", "get", "post"])
@pytest.mark.parametrize("annotation", [dict, dict[str, Any], Unknown, Model, list[Model]], ids=str)
def test_a_parameter_of_a_type_that_no_text_makes_is_refused(kind: str, annotation: Any) -> None:
    text = refusal(kind, annotation)
    assert text.startswith("parameter 'value' of type ")
    assert "cannot be made from text. A value is a str, int, float, bool, Enum" in text


def test_a_path_marker_tells_what_the_template_has() -> None:
    text = refusal("websocket", Annotated[int, Path()], template="/<valeu:int>/<other>")
    assert text.endswith("but the template has no 'value'. Its parameters: valeu, other.")
    text = refusal("websocket", Annotated[int, Path(alias="room")], template="/<value:int>")
    assert text == "parameter 'value' is marked as Path(), but the template has no 'room'. Its parameters: value."


def test_two_bodies_are_refused() -> None:
    app = App()

    async def two(one: Item, two: Other) -> None: ...

    async def marked(one: Annotated[int, Body()], two: Other) -> None: ...

    for handler in (two, marked):
        with pytest.raises(SignatureError) as caught:
            app.post("/")(handler)
        assert str(caught.value).startswith("parameter 'two' is a second body (test_injection.test_two_bodies")
        assert str(caught.value).endswith("A request has one body: make one Struct of what it holds.")


@pytest.mark.parametrize(
    ("annotation", "start", "hint"),
    [
        (WebSocket[Model, Any], "declares messages of type 'Model', which msgspec does not know", "msgspec.Struct"),
        (WebSocket[Unknown, Any], "declares messages of type 'Unknown', which msgspec does not know", "msgspec.Struct"),
        (WebSocket[list[Model], Any], "declares messages", "msgspec.Struct"),
        (WebSocket[dict[str, Unknown], Any], "declares messages", "msgspec.Struct"),
        (WebSocket[Say | Model, Any], "declares messages that cannot be decoded", "custom type"),
        (WebSocket[Item | Other, Any], "declares messages that cannot be decoded", "must be tagged"),
        (WebSocket[Say | Item, Any], "declares messages that cannot be decoded", "must be tagged"),
    ],
    ids=lambda value: str(value).replace("tests.test_injection.", "") if "WebSocket[" in str(value) else "",
)
def test_messages_that_msgspec_cannot_decode_are_refused(annotation: Any, start: str, hint: str) -> None:
    text = refusal("websocket", annotation)
    assert text.startswith(f"parameter 'value' {start}")
    assert hint in text


@pytest.mark.parametrize("annotation", [Model, Unknown, list[Model], Item | Other], ids=str)
def test_a_body_that_msgspec_cannot_decode_is_refused(annotation: Any) -> None:
    assert refusal("post", Annotated[annotation, Body()]).startswith("parameter 'value' ")


async def test_a_refused_handler_leaves_nothing_behind() -> None:
    app = App()

    async def wrong(ws: WebSocket, value: Unknown) -> None: ...

    async def right(ws: WebSocket) -> None:
        await ws.accept()

    with pytest.raises(SignatureError):
        app.websocket("/")(wrong)
    assert (await connect(app)).status == 404
    app.websocket("/")(right)
    assert (await connect(app)).status == 101


# What a stranger may send


def wide_app() -> App:
    """An app that takes something from everywhere."""
    app = App()

    @app.websocket("/<room>/<n:int>/<rest:path>")
    async def deep(
        ws: WebSocket,
        room: str,
        n: Annotated[int, Path(ge=0)],
        rest: str,
        a: list[int] = Query([]),  # noqa: B008
        b: Annotated[float | None, Query(ge=0)] = None,
        filters: Filters = Query(),  # noqa: B008
        user_agent: str | None = Header(None),
        c: Annotated[bool, Cookie()] = False,
    ) -> None:
        await ws.accept()

    @app.websocket("/<room>")
    async def flat(ws: WebSocket, room: Literal["a", "b"], c: Annotated[set[str], Cookie()], a: int = 1) -> None:
        await ws.accept()

    @app.post("/<room>")
    async def page(room: str, item: Item, a: int = 1, x: Annotated[int | None, Header()] = None) -> None: ...

    return app


APP = wide_app()

_key = st.sampled_from(["a", "b", "c", "x", "user-agent", "cookie", "%61", "a[]", ""])
_value = st.one_of(st.integers().map(str), st.floats().map(repr), st.sampled_from(["", "true", "null", "%", "+"]))
_queries = st.one_of(
    st.lists(st.tuples(_key, _value | st.text()).map("=".join))
    .map("&".join)
    .map(lambda text: text.encode("utf-8", "replace")),
    st.binary(),
)
_headers = st.lists(st.tuples(_key.map(str.encode) | st.binary(), _value.map(str.encode) | st.binary()))
_segments = st.one_of(st.sampled_from(["", "a", "b", "..", ".", "1", "-1", "9" * 5000, "0x1", "١"]), st.text())
_paths = st.lists(_segments, max_size=5).map(lambda segments: "/" + "/".join(segments))


def without_surrogates(text: str) -> str:
    """The text as a server would decode it."""
    return text.encode("utf-8", "replace").decode()


@given(path=_paths, query=_queries, headers=_headers)
async def test_no_handshake_is_more_than_refused(path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers = [(name, value) for name, value in headers if name.lower() != b"origin"]
    server = FakeServer(path=without_surrogates(path), query=query, headers=headers)
    await converse(APP, server, leave=-1)
    if server.closed is not None and server.status == 403:
        assert server.closed[0] == 1008
    else:
        assert server.status in {101, 404}


@given(path=_paths, query=_queries, headers=_headers, body=st.binary() | st.just(b'{"a":1}'))
async def test_no_request_is_more_than_refused(
    path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    answer = await request(
        APP, "POST", without_surrogates(path), headers=headers, body=body, query_string=query,
    )  # fmt: skip
    assert answer.status in {204, 404, 413, 422}
    if answer.status == 422:
        assert all(problem.keys() == {"loc", "msg"} for problem in json.loads(answer.body)["detail"])
