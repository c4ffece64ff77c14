"""Whatever a stranger sends: no unhandled exception, nothing that a server chokes on, and every connection ends."""

import datetime as dt
import decimal
import enum
import json
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiws import (
    App,
    Body,
    Cookie,
    Header,
    HTTPException,
    Limits,
    MessageError,
    ProtocolError,
    Query,
    Request,
    WebSocket,
)
from tests.fakes import DEADLINE, SHAPES, FakeServer, Shape, request

pytestmark = pytest.mark.anyio


class Colour(enum.Enum):
    """A value from a list."""

    RED = "red"
    BLUE = "blue"


class Page(msgspec.Struct):
    """A whole query string."""

    number: Annotated[int, msgspec.Meta(ge=1)] = 1
    size: int = 10
    tags: list[str] = []


class Say(msgspec.Struct, tag="say"):
    """A message."""

    text: str


class Move(msgspec.Struct, tag="move"):
    """Another message."""

    x: int
    to: Say | None = None


app = App(
    limits=Limits(bad_messages=3, body_bytes=64), allowed_origins=["https://good.example", "https://*.example.org"]
)


@app.websocket("/echo/<room>/<count:int>")
async def echo(ws: WebSocket, room: str, count: int, lang: str = "en") -> None:
    """Say in text what came as text."""
    await ws.accept(ws.subprotocols[0] if ws.subprotocols else None)
    async for text in ws.iter_text():
        await ws.send_text(f"{room} {lang} {text}"[: abs(count)])


@app.websocket("/raw/<rest:path>")
async def raw(ws: WebSocket, rest: str) -> None:
    """Send back what comes, and close with a reason that the client chose."""
    await ws.accept()
    async for message in ws:
        await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))
        await ws.send_json([rest, message if isinstance(message, str) else len(message)])
        if len(message) > 10:
            await ws.close(4000, message if isinstance(message, str) else message.decode("latin-1"))


@app.websocket("/typed")
async def typed(ws: WebSocket[Say | Move, Any]) -> None:
    """Take typed messages."""
    await ws.accept()
    async for message in ws:
        await ws.send_json(message)


@app.websocket("/receive")
async def receive(ws: WebSocket) -> None:
    """Take one message after another by hand."""
    await ws.accept()
    await ws.send_json(await ws.receive_json(mode="text"))
    await ws.send_json(await ws.receive_json(type=dict[str, list[float]]))
    await ws.send_bytes(await ws.receive_bytes())


@app.websocket("/caught")
async def caught(ws: WebSocket) -> None:
    """Tell the client what was wrong."""
    await ws.accept()
    while True:
        try:
            await ws.send_json(await ws.receive_json(type=int))
        except MessageError as error:
            await ws.send_text(str(error))


@app.websocket("/values/<id:uuid>/<size:float>/<name>")
async def values(
    ws: WebSocket,
    id: uuid.UUID,
    size: float,
    name: str,
    colour: Colour = Colour.RED,
    way: Literal["in", "out", 3] = "in",
    at: dt.datetime | None = None,
    day: dt.date | None = None,
    price: decimal.Decimal = decimal.Decimal(1),
    flag: bool = False,
    many: Annotated[list[int], Query()] = [],  # noqa: B006 - each connection gets its own
    agent: Annotated[str, Header(alias="user-agent")] = "",
    x_number: Annotated[int, Header()] = 0,
    session: Annotated[str, Cookie(max_length=8)] = "",
) -> None:
    """Take values of every type."""
    await ws.accept()
    await ws.send_json([
        id, size, name, colour, way, at, day, price, flag, many, agent, x_number, session, str(ws.url), ws.client,
        ws.cookies, ws.query_params.multi_items(), list(ws.headers), repr(ws), repr(ws.query_params),
    ])  # fmt: skip


@app.websocket("/page")
async def page(ws: WebSocket, page: Annotated[Page, Query()]) -> None:
    """Take a whole query string."""
    await ws.accept()
    await ws.send_json(page)


@app.websocket("/stream")
async def stream(text: str = "x", count: int = 2) -> AsyncIterator[Any]:
    """Send what the query string says."""
    for number in range(min(count, 5)):
        yield [number, text]
        yield text


@app.websocket("/refuse/<reason:path>")
async def refuse(ws: WebSocket, reason: str) -> None:
    """Refuse with what the client said."""
    raise HTTPException(403, reason)


@app.websocket("/close/<reason:path>")
async def close(ws: WebSocket, reason: str) -> None:
    """Close with what the client said."""
    await ws.accept()
    raise HTTPException(400, reason)


@app.get("/http/<name>/<n:int>")
async def get(request: Request, name: str, n: int, many: Annotated[list[float], Query()] = []) -> Any:  # noqa: B006
    """Answer a request."""
    return [name, n, many, str(request.url), request.cookies, repr(request)]


@app.post("/http/<name>")
async def post(name: str, message: Annotated[Say | Move, Body()]) -> Any:
    """Take a body."""
    return message


inner = App()
inner.websocket("/<rest:path>")(raw)
app.mount("/mounted/<tenant>", inner)


# What a stranger sends. A server hands text on as str, with U+FFFD for what was no UTF-8: never a lone surrogate.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
word = text | st.sampled_from(
    ["", "1", "-1", "1.5", "1e999", "nan", "٣", "true", "red", "a b", "%", "\x00", "\r\n", "..", "é" * 99]
)
number = st.integers().map(str) | st.floats().map(str)
identifier = st.uuids().map(str) | word
path = st.one_of(
    st.tuples(st.just("/echo"), word, number | word).map("/".join),
    st.tuples(st.just("/values"), identifier, number | word, word).map("/".join),
    st.tuples(st.sampled_from(["/raw", "/refuse", "/close", "/mounted", "/http", "/http/a"]), word, word).map("/".join),
    st.sampled_from(["/typed", "/receive", "/caught", "/page", "/stream", "", "/", "//", "*", "/echo//1"]),
    st.lists(word, max_size=5).map(lambda parts: "/" + "/".join(parts)),
)
key = st.sampled_from(
    ["lang", "colour", "way", "at", "day", "price", "flag", "many", "number", "size", "tags", "text", "count"]
)
pair = st.tuples(key | word, number | word | st.datetimes().map(str) | st.dates().map(str)).map("=".join)
query = st.binary(max_size=40) | st.lists(pair, max_size=6).map(lambda pairs: "&".join(pairs).encode())
header_name = st.sampled_from(
    [b"origin", b"host", b"cookie", b"user-agent", b"x-number", b"content-length", b"Origin", b"COOKIE", b"x"]
)
header_value = st.binary(max_size=30) | st.sampled_from(
    [b"https://good.example", b"https://a.example.org", b"null", b"https://evil.example", b"session=abc; a=b",
     b"testserver", b"testserver:99999", b"[::1]:80", b"1, 2", b"99999999999999999999999"]
)  # fmt: skip
headers = st.lists(st.tuples(header_name, header_value), max_size=5)
subprotocols = st.lists(word | st.sampled_from(["chat", "v1.json"]), max_size=4)
json_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(text, inside, max_size=3),
    max_leaves=6,
)
near = st.fixed_dictionaries(
    {"type": st.sampled_from(["say", "move", "go", 1, None])},
    optional={"text": json_value, "x": st.integers(-5, 5) | json_value, "to": json_value},
)
as_json = (json_value | near).map(json.dumps)
message = st.one_of(
    text,
    st.binary(max_size=30),
    as_json,
    as_json.map(str.encode),
    st.sampled_from(["", b"", "1", b"1", "[" * 2000, '{"type":"say"' * 3, "9" * 500, "NaN", b"\xff", "é" * 200]),
)
ending = st.none() | st.sampled_from([1000, 1001, 1005, 1006, 1012, 4000]) | st.integers(0, 65535)


class Stranger(FakeServer):
    """A client that says what it has to say and leaves when the application asks for more."""

    ending: int | None = None

    async def receive(self) -> dict[str, Any]:
        """The server's `receive()`."""
        if not self._inbox and not self._gone:
            self.leave(self.ending)
        return await super().receive()


async def meet(server: FakeServer) -> None:
    """Run a connection to its end, and look at what became of it."""
    with anyio.fail_after(DEADLINE):
        await app(server.scope, server.receive, server.send)
    assert server.choked == []
    assert server.most_sending <= 1
    assert server.calls_after_disconnect == 0
    assert server.status != 500
    assert server.closed is None or server.closed[0] not in (1011, 4011)
    assert server._gone or server._state == "closed", "the client was there, and the connection has no end"


@settings(max_examples=150)
@given(
    shape=st.sampled_from(SHAPES),
    path=path,
    query=query,
    headers=headers,
    subprotocols=subprotocols,
    root_path=st.sampled_from(["", "/api", "/", "/echo", "x"]) | word,
    messages=st.lists(message, max_size=8),
    leaves=st.sampled_from(["at once", "before", "in the end"]),
    ending=ending,
    missing=st.sets(
        st.sampled_from(["raw_path", "query_string", "root_path", "client", "server", "subprotocols", "state"])
    ),
)
async def test_a_websocket_of_a_stranger(
    shape: Shape,
    path: str,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    subprotocols: list[str],
    root_path: str,
    messages: list[str | bytes],
    leaves: str,
    ending: int | None,
    missing: set[str],
) -> None:
    server = Stranger(shape, path, query=query, headers=headers, subprotocols=subprotocols, root_path=root_path)
    server.ending = ending
    for name in missing:
        server.scope.pop(name, None)
    for one in messages:
        server.say(one)
    if leaves == "at once":
        server.leave(ending)
    elif leaves == "before":
        server.vanish()
    await meet(server)


@given(
    shape=st.sampled_from(SHAPES),
    events=st.lists(
        st.fixed_dictionaries(
            {"type": st.just("websocket.receive")},
            optional={"text": st.none() | text, "bytes": st.none() | st.binary(max_size=9), "extra": st.integers()},
        ),
        max_size=5,
    ),
    path=st.sampled_from(["/echo/a/1", "/raw/x", "/typed", "/receive", "/caught"]),
)
async def test_odd_events_of_a_server(shape: Shape, events: list[dict[str, Any]], path: str) -> None:
    # P4, P12: what has not just one of text and bytes is the server's fault, and raised; anything else is a message
    server = Stranger(shape, path)
    for event in events:
        server.put(event)
    wrong = [event for event in events if (event.get("text") is None) is (event.get("bytes") is None)]
    if not wrong:
        await meet(server)
        return
    try:
        with anyio.fail_after(DEADLINE):
            await app(server.scope, server.receive, server.send)
    except ProtocolError:
        assert server.closed is not None
        assert server.closed[0] in (1011, 4011)
    assert server.choked == []


@given(shape=st.sampled_from(SHAPES), subprotocols=subprotocols, header=st.tuples(word, word), reason=word)
async def test_what_a_handler_passes_on_unchecked_never_reaches_the_server(
    shape: Shape, subprotocols: list[str], header: tuple[str, str], reason: str
) -> None:
    # S10, S19: the handler gets an error of its own, before anything is sent
    careless = App()

    @careless.websocket("/")
    async def accept(ws: WebSocket) -> None:
        offered = ws.scope["subprotocols"]
        try:
            await ws.accept(offered[0] if offered else None, [header])
        except ProtocolError:
            assert server.sent == []
            await ws.accept()
        await ws.close(4000, reason)

    server = FakeServer(shape, subprotocols=subprotocols)
    with anyio.fail_after(DEADLINE):
        await careless(server.scope, server.receive, server.send)
    assert server.choked == []
    assert server.types == ["websocket.accept", "websocket.close"]


@settings(max_examples=150)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS", "websocket", "PROPFIND"]),
    path=path,
    query=query,
    headers=headers,
    body=st.lists(st.binary(max_size=50) | as_json.map(str.encode), min_size=1, max_size=3),
)
async def test_a_request_of_a_stranger(
    method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: list[bytes]
) -> None:
    answer = await request(app, method, path, headers=headers, body=body, query_string=query)
    assert answer.status in (200, 404, 405, 413, 422)
    assert method != "HEAD" or answer.body == b""
