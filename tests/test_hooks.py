# ruff: noqa: ERA001, E501
# mypy: disable-error-code="no-untyped-def,unused-ignore,truthy-bool,arg-type,valid-type"
"""The hooks of a controller: on_connect, on_message and @on, on_disconnect."""

import collections
import dataclasses
import enum
import json
import logging
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, Literal, TypedDict

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiws import (
    App,
    Connection,
    Cookie,
    Depends,
    Header,
    HTTPException,
    Limits,
    Query,
    RouteError,
    SignatureError,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    component,
    controller,
    get,
    on,
    websocket,
)
from tests.fakes import DEADLINE, SHAPES, Shape
from tests.test_controllers import Client, Live, app_of, serving, talk

pytestmark = pytest.mark.anyio

Log = list[Any]
Dependency = Callable[..., Any]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


class Say(msgspec.Struct, tag="say"):
    """A message of a client."""

    text: str


class Move(msgspec.Struct, tag="move"):
    """Another."""

    x: int
    y: int = 0


class Stop(msgspec.Struct, tag="stop"):
    """Another."""


class Said(msgspec.Struct, tag="said"):
    """What others hear of it."""

    user: str
    text: str


class Untagged(msgspec.Struct):
    """A message that nothing tells from others."""

    text: str


SAY = '{"type": "say", "text": "hi"}'
MOVE = '{"type": "move", "x": 1}'
STOP = '{"type": "stop"}'


def opening(log: Log, name: str) -> Dependency:
    """A dependency that notes how it was opened, what failed, and that it was closed."""

    async def dependency() -> AsyncIterator[str]:
        log.append(f"+{name}")
        try:
            yield name
        except Exception as error:
            log.append(f"{name}: {type(error).__name__}")
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            log.append(f"-{name}")

    return dependency


def refused(cls: Any) -> str:
    """What is said of a controller that cannot work, which names its place."""
    with pytest.raises((SignatureError, RouteError)) as caught:
        app_of(cls)
    text = str(caught.value)
    assert re.search(r"tests/test_hooks\.py:\d+", text), f"no place is named: {text}"
    return text


def hook(name: str, function: Any, **others: Any) -> Any:
    """A controller at "/" with this hook."""
    return controller("/")(type("Hooked", (), {name: function, "__module__": __name__, **others}))


# on_connect


@component
class Names:
    """A service."""

    def full(self, name: str) -> str:
        """The full name."""
        return name.title()


async def test_on_connect_takes_whatever_a_handler_takes() -> None:
    def user(session: Annotated[str, Cookie()], names: Names) -> str:
        return names.full(session)

    @controller("/lobby/<room>")
    class Lobby:
        def __init__(self) -> None:
            self.told = ""

        async def on_connect(
            self,
            ws: WebSocket,
            room: str,
            user: Annotated[str, Depends(user)],
            names: Names,
            app: App,
            trace: Annotated[str, Header()],
            count: int = 1,
        ) -> None:
            self.told = f"{room} {user} {names.full(trace)} {count} {app is ws.app}"
            await ws.accept()

        async def on_message(self, message: str) -> str:
            return self.told

    client = await talk(
        app_of(Lobby), "/lobby/7", "?", query="count=3", headers={"cookie": "session=ann", "trace": "t"}
    )
    assert client.texts == ["7 Ann T 3 True"]


@pytest.mark.parametrize("name", ["ws", "websocket", "conn", "anything"])
async def test_on_connect_finds_the_websocket_whatever_it_is_called(name: str) -> None:
    space: dict[str, Any] = {}
    exec(f"async def on_connect(self, {name}): await {name}.accept('chat')", space)  # noqa: S102 - our own text
    client = await talk(app_of(hook("on_connect", space["on_connect"])), "/", subprotocols=["chat"])
    assert client.sent[0] == {"type": "websocket.accept", "subprotocol": "chat"}


async def test_without_on_connect_the_framework_accepts() -> None:
    async def on_message(self: Any, message: str) -> None:
        pass

    client = await talk(app_of(hook("on_message", on_message)), "/")
    assert client.types == ["websocket.accept"]


async def test_on_connect_alone_is_enough_and_what_the_client_says_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def on_connect(self: Any, ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("welcome")

    with caplog.at_level(logging.DEBUG):
        client = await talk(app_of(hook("on_connect", on_connect)), "/", "secret", b"secret")
    assert client.texts == ["welcome"]
    assert [record.levelname for record in caplog.records if "dropped a message" in record.getMessage()] == [
        "DEBUG"
    ] * 2
    assert "secret" not in caplog.text


@every_shape
async def test_an_on_connect_that_does_not_accept_refuses_and_one_line_says_why(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_connect(self: Any, ws: WebSocket) -> None:
        pass

    with caplog.at_level(logging.INFO):
        client = await talk(app_of(hook("on_connect", on_connect)), "/", shape=shape)
    assert client.status == 403
    lines = [record.getMessage() for record in caplog.records if "on_connect" in record.getMessage()]
    assert len(lines) == 1
    assert re.search(r"websocket / \(.*tests/test_hooks\.py:\d+\)", lines[0])
    assert "did not accept" in lines[0]
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert len(caplog.records) == 1 + (not shape.denial)  # a server that cannot send it, has a line of its own


def plainly(self: Any, ws: WebSocket) -> None:
    """A hook that is not async."""
    self.seen = ws.url.path


async def test_a_plain_on_connect_runs_before_a_method() -> None:
    @controller("/")
    class Plain:
        on_connect = plainly
        seen = ""

        @websocket("/<n:int>")
        async def method(self, ws: WebSocket, n: int) -> None:
            await ws.accept()
            await ws.send_text(f"{self.seen} {n}")

        @get("/")
        async def http(self) -> str:
            return f"{self.seen!r}"

    app = app_of(Plain)
    assert (await talk(app, "/7")).texts == ["/7 7"]


async def test_a_plain_on_connect_cannot_accept_and_so_refuses() -> None:
    client = await talk(app_of(hook("on_connect", plainly)), "/")
    assert client.status == 403


@pytest.mark.parametrize("kind", ["hooks", "method", "stream"])
async def test_on_connect_may_accept_for_any_kind_of_controller(kind: str) -> None:
    async def on_connect(self: Any, ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("welcome")

    async def on_message(self: Any, message: str) -> str:
        return message

    @websocket("/")
    async def method(self: Any, ws: WebSocket) -> None:
        async for text in ws.iter_text():
            await ws.send_text(text)

    @websocket("/")
    async def stream(self: Any, ws: WebSocket) -> AsyncIterator[str]:
        async for text in ws.iter_text():
            yield text

    others: dict[str, Any] = {"hooks": {"on_message": on_message}, "method": {"m": method}, "stream": {"s": stream}}
    client = await talk(app_of(hook("on_connect", on_connect, **others[kind])), "/", "hello")
    assert client.texts == ["welcome", "hello"]


REFUSALS: dict[str, tuple[Exception | None, int, tuple[int, str] | None, tuple[int, str]]] = {
    "HTTPException": (HTTPException(401, headers={"www-authenticate": "Bearer"}), 401, None, (4401, "")),
    "WebSocketException": (WebSocketException(4002, "no"), 403, (4002, "no"), (4002, "no")),
    "close": (None, 403, (4003, "full"), (4003, "full")),
}


@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("kind", ["hooks", "method"])
async def test_on_connect_refuses_and_the_farewell_knows_how(
    what: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # T28
    error, status, closed, told = REFUSALS[what]
    log: Log = []

    async def on_connect(self: Any, ws: WebSocket) -> None:
        if error is not None:
            raise error
        await ws.close(4003, "full")

    @websocket("/")
    async def method(self: Any, ws: WebSocket) -> None:
        log.append("method")

    async def on_message(self: Any, message: str) -> None:
        log.append("message")

    async def on_disconnect(self: Any, code: int, reason: str) -> None:
        log.append((code, reason))

    others: dict[str, Any] = {"method": method} if kind == "method" else {"on_message": on_message}
    app = app_of(hook("on_connect", on_connect, on_disconnect=on_disconnect, **others))
    with caplog.at_level(logging.INFO):
        client = await talk(app, "/", "hello")
    assert (client.status, client.closed) == (status, closed)
    assert log == [told]
    assert caplog.records == []


async def test_a_parameter_of_on_connect_that_does_not_validate_is_a_1008_and_the_farewell_is_said() -> None:
    log: Log = []

    async def on_connect(self: Any, ws: WebSocket, room: int) -> None:
        log.append("on_connect")

    def on_disconnect(self: Any, code: int) -> None:
        log.append(code)

    client = await talk(app_of(hook("on_connect", on_connect, on_disconnect=on_disconnect)), "/", query="room=x")
    assert client.closed is not None
    assert client.closed[0] == 1008
    assert "query 'room'" in client.closed[1]
    assert log == [1008]


async def test_an_exception_of_on_connect_ends_by_the_table_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def on_connect(self: Any, ws: WebSocket, early: bool) -> None:
        if not early:
            await ws.accept()
        raise LookupError("its text")

    app = app_of(hook("on_connect", on_connect))
    assert (await talk(app, "/", query="early=1", raises=LookupError)).status == 500
    client = await talk(app, "/", query="early=0", raises=LookupError)
    assert client.closed == (1011, "internal error")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert all("websocket / (" in record.getMessage() for record in caplog.records)


async def test_hooks_are_inherited_and_call_those_above() -> None:
    class Base:
        async def on_connect(self, ws: WebSocket, name: str) -> None:
            self.name = name
            await ws.accept()

        async def on_message(self, message: Say) -> str:
            return f"{self.name}: {message.text}"

    class Mixin:
        farewells: Log = []  # noqa: RUF012

        def on_disconnect(self, code: int) -> None:
            self.farewells.append(code)

    @controller("/derived")
    class Derived(Mixin, Base):
        async def on_message(self, message: Say) -> str:
            return (await super().on_message(message)).upper()

    client = await talk(app_of(Derived), "/derived", SAY, query="name=ann", ending=(4001, ""))
    assert client.texts == ["ANN: HI"]
    assert Derived.farewells == [4001]


@pytest.mark.parametrize("name", ["on_connect", "on_disconnect"])
@pytest.mark.parametrize("style", ["async", "plain"])
def test_a_hook_that_yields_to_nobody_is_refused(name: str, style: str) -> None:
    async def stream(self: Any) -> AsyncIterator[str]:
        yield "x"

    def plain(self: Any) -> Iterator[str]:
        yield "x"

    async def on_message(self: Any, message: str) -> None:
        pass

    text = refused(hook(name, stream if style == "async" else plain, on_message=on_message))
    assert f"{name} yields" in text


# on_message: what it takes


class Point(TypedDict):
    """A mapping with known keys."""

    x: int


@dataclasses.dataclass
class Pair:
    """A dataclass."""

    a: int
    b: str


class Colour(enum.Enum):
    """A value of a few."""

    RED = "red"


def shown(value: Any) -> str:
    """A message as a test tells it."""
    return f"{type(value).__name__} {value}"


TYPES: dict[str, tuple[Any, list[str | bytes], list[str]]] = {
    "Struct": (Say, [SAY, SAY.encode()], ["Say Say(text='hi')"] * 2),
    "union": (Say | Move, [SAY, MOVE], ["Say Say(text='hi')", "Move Move(x=1, y=0)"]),
    "Union": (typing.Union[Say, Move], [MOVE], ["Move Move(x=1, y=0)"]),  # noqa: UP007
    "optional": (Say | None, [SAY, "null"], ["Say Say(text='hi')", "NoneType None"]),
    "untagged": (Untagged, ['{"text": "a"}'], ["Untagged Untagged(text='a')"]),
    "str": (str, ["plain", '"quoted"', ""], ["str plain", 'str "quoted"', "str "]),
    "bytes": (bytes, [b"raw", b""], ["bytes b'raw'", "bytes b''"]),
    "str or bytes": (str | bytes, ["text", b"raw"], ["str text", "bytes b'raw'"]),
    "dict": (dict, ['{"a": 1}'], ["dict {'a': 1}"]),
    "dict of": (dict[str, int], ['{"a": 1}'], ["dict {'a': 1}"]),
    "list of": (list[int], ["[1, 2]"], ["list [1, 2]"]),
    "int": (int, ["7"], ["int 7"]),
    "Any": (Any, ["text", b"raw"], ["str text", "bytes b'raw'"]),
    "TypedDict": (Point, ['{"x": 1}'], ["dict {'x': 1}"]),
    "dataclass": (Pair, ['{"a": 1, "b": "c"}'], ["Pair Pair(a=1, b='c')"]),
    "Enum": (Colour, ['"red"'], ["Colour Colour.RED"]),
    "Literal": (Literal["go", "stop"], ['"go"'], ["str go"]),
    "constrained": (Annotated[int, msgspec.Meta(ge=1)], ["7"], ["int 7"]),
    "described": (Annotated[Say, "a note"], [SAY], ["Say Say(text='hi')"]),
}


@pytest.mark.parametrize("name", TYPES)
async def test_the_annotation_says_what_on_message_takes(name: str) -> None:
    declared, messages, expected = TYPES[name]

    async def on_message(self: Any, ws: WebSocket, message: declared) -> str:
        return shown(message)

    assert (await talk(app_of(hook("on_message", on_message)), "/", *messages)).texts == expected


@every_shape
async def test_typed_messages_on_every_server(shape: Shape) -> None:
    async def on_message(self: Any, message: Say | Move) -> str:
        return shown(message)

    client = await talk(app_of(hook("on_message", on_message)), "/", SAY, MOVE, shape=shape)
    assert client.texts == ["Say Say(text='hi')", "Move Move(x=1, y=0)"]


class Parameters:
    """Where the message goes, and where the WebSocket."""

    async def message(self, message):
        return self.tell(message)  # type: ignore[no-untyped-def]

    async def anything(self, anything):
        return self.tell(anything)  # type: ignore[no-untyped-def]

    async def ws_message(self, ws, message):
        return self.tell(message, ws)  # type: ignore[no-untyped-def]

    async def conn_data(self, conn, data):
        return self.tell(data, conn)  # type: ignore[no-untyped-def]

    async def any_two(self, one, two):
        return self.tell(two, one)  # type: ignore[no-untyped-def]

    async def swapped(self, message, ws):
        return self.tell(message, ws)  # type: ignore[no-untyped-def]

    async def swapped_data(self, data, websocket):
        return self.tell(data, websocket)  # type: ignore[no-untyped-def]

    async def typed_first(self, message: str, ws):
        return self.tell(message, ws)  # type: ignore[no-untyped-def]

    async def typed_last(self, ws, said: str):
        return self.tell(said, ws)  # type: ignore[no-untyped-def]

    async def typed_beside(self, client, said: str):
        return self.tell(said, client)  # type: ignore[no-untyped-def]

    async def both_typed(self, said: str, this: WebSocket):
        return self.tell(said, this)  # type: ignore[no-untyped-def]

    async def only_ws(self, this: WebSocket, said):
        return self.tell(said, this)  # type: ignore[no-untyped-def]

    async def keywords(self, *, message: str, ws: WebSocket):
        return self.tell(message, ws)  # type: ignore[no-untyped-def]

    async def connection(self, connection: Connection, text):
        return self.tell(text, connection)  # type: ignore[no-untyped-def]

    def tell(self, message: Any, ws: Any = None) -> str:
        """What came where."""
        return f"{message} {ws is None or isinstance(ws, WebSocket)}"


async def test_an_annotation_that_is_a_string_is_read() -> None:
    async def on_message(self: Any, message: "Say | Move") -> "str":
        return shown(message)

    assert (await talk(app_of(hook("on_message", on_message)), "/", MOVE)).texts == ["Move Move(x=1, y=0)"]


# on_message: the reply

REPLIES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "str": ("text", [{"text": "text"}]),
    "empty": ("", [{"text": ""}]),
    "bytes": (b"raw", [{"bytes": b"raw"}]),
    "bytearray": (bytearray(b"raw"), [{"bytes": b"raw"}]),
    "Struct": (Said("ann", "hi"), [{"text": '{"type":"said","user":"ann","text":"hi"}'}]),
    "dict": ({"a": [1, None]}, [{"text": '{"a":[1,null]}'}]),
    "list": ([], [{"text": "[]"}]),
    "int": (0, [{"text": "0"}]),
    "bool": (False, [{"text": "false"}]),
    "None": (None, []),
}


@pytest.mark.parametrize("style", ["async", "plain", "on", "generator"])
@pytest.mark.parametrize("name", REPLIES)
async def test_what_on_message_returns_is_the_reply(name: str, style: str) -> None:
    value, expected = REPLIES[name]

    async def on_message(self: Any, message: Say) -> Any:
        return value

    def plain(self: Any, message: Say) -> Any:
        return value

    async def stream(self: Any, message: Say) -> AsyncIterator[Any]:
        if value is not None:
            yield value

    @on(Say)
    async def say(self: Any) -> Any:
        return value

    functions = {"async": on_message, "plain": plain, "on": say, "generator": stream}
    client = await talk(app_of(hook("say" if style == "on" else "on_message", functions[style])), "/", SAY)
    assert client.sent == [{"type": "websocket.accept"}, *({"type": "websocket.send", **one} for one in expected)]


async def test_a_plain_on_message_may_return_an_awaitable() -> None:
    class Doubled:
        def on_message(self, message: str) -> Awaitable[str]:
            return self.double(message)

        async def double(self, message: str) -> str:
            await anyio.lowlevel.checkpoint()
            return message * 2

    assert (await talk(app_of(controller("/")(Doubled)), "/", "ab")).texts == ["abab"]


async def test_a_generator_replies_with_many_in_order() -> None:
    log: Log = []

    async def on_message(self: Any, message: Move) -> AsyncIterator[Any]:
        try:
            for at in range(message.x):
                yield at
            yield Said("end", str(message.y))
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("closed")

    client = await talk(
        app_of(hook("on_message", on_message)), "/", '{"type":"move","x":2}', '{"type":"move","x":0,"y":1}'
    )
    assert client.frames == [
        0,
        1,
        {"type": "said", "user": "end", "text": "0"},
        {"type": "said", "user": "end", "text": "1"},
    ]
    assert log == ["closed"] * 2


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.gone != "silent"], ids=lambda shape: shape.name)
async def test_a_generator_that_replies_is_closed_when_the_client_leaves(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    # T39
    log: Log = []

    @controller("/")
    class Endless:
        async def on_message(self, message: str) -> AsyncIterator[str]:
            try:
                while True:
                    yield "tick"
            finally:
                await anyio.lowlevel.checkpoint()
                log.append("closed")

        async def on_disconnect(self) -> None:
            log.append("farewell")

    client = Live(shape)
    async with serving(app_of(Endless), client):
        client.say("go")
        await client.until(lambda server: len(server.texts) > 3)
    assert log == ["closed", "farewell"]
    assert caplog.records == []


# on_message: bad messages


@every_shape
async def test_a_bad_message_is_answered_with_an_error_frame_and_the_connection_goes_on(shape: Shape) -> None:
    async def on_message(self: Any, message: Say | Move) -> str:
        return shown(message)

    bad = ["no json", '{"type":"say","text":1}', '{"type":"go"}', "[]", b"\xff", '{"type":"say"}']
    client = await talk(app_of(hook("on_message", on_message)), "/", *bad, MOVE, shape=shape)
    *frames, last = client.texts
    assert last == "Move Move(x=1, y=0)"
    errors = [json.loads(frame) for frame in frames]
    assert [frame["type"] for frame in errors] == ["error"] * len(bad)
    assert errors[1] == {"type": "error", "detail": "expected `str`, got `int` in 'say'", "path": "$.text"}
    assert "expected one of 'say', 'move'" in errors[2]["detail"].replace("'move', 'say'", "'say', 'move'")
    assert client.closed is None


async def test_too_many_bad_messages_in_a_row_close_with_1007() -> None:
    log: Log = []

    @controller("/")
    class Strict:
        async def on_message(self, message: Say) -> str:
            return message.text

        def on_disconnect(self, code: int) -> None:
            log.append(code)

    app = app_of(Strict, limits=Limits(bad_messages=3))
    client = await talk(app, "/", "1", "2", SAY, "3", "4", "5", SAY)
    assert client.closed is not None
    assert client.closed[0] == 1007
    assert [json.loads(text)["type"] if text != "hi" else "" for text in client.texts] == [
        "error", "error", "", "error", "error", "error",
    ]  # fmt: skip
    assert log == [1007]


@pytest.mark.parametrize(
    ("declared", "wrong", "wanted", "found"), [(str, b"raw", "text", "binary"), (bytes, "text", "binary", "text")]
)
async def test_a_message_of_the_wrong_kind_closes_with_1003(
    declared: Any, wrong: str | bytes, wanted: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_message(self: Any, message: declared) -> Any:
        return message

    client = await talk(app_of(hook("on_message", on_message)), "/", wrong, wrong)
    assert client.closed == (1003, f"expected a {wanted} message, got a {found} one")
    assert caplog.records == []


# on_message: parameters


async def test_on_message_takes_whatever_a_handler_takes() -> None:
    def user(user: str, names: Names) -> str:
        return names.full(user)

    @controller("/rooms/<room:int>")
    class Room:
        async def on_message(
            self,
            ws: WebSocket,
            message: Say,
            room: int,
            user: Annotated[str, Depends(user)],
            names: Names,
            app: App,
            trace: Annotated[str, Header()],
            lang: Annotated[str, Query(min_length=2)],
            count: int = 1,
        ) -> str:
            return f"{room + 1} {user} {names.full(message.text)} {trace} {lang} {count} {app is ws.app}"

    client = await talk(
        app_of(Room), "/rooms/7", SAY, SAY, query="user=ann&lang=fr&count=2", headers={"trace": "t"},
    )  # fmt: skip
    assert client.texts == ["8 Ann Hi t fr 2 True"] * 2


async def test_parameters_of_on_message_are_checked_at_the_handshake() -> None:
    log: Log = []

    @controller("/")
    class Checked:
        async def on_connect(self, ws: WebSocket) -> None:
            log.append("on_connect")
            await ws.accept()

        async def on_message(self, message: Say, page: int, size: int) -> None:
            log.append("message")

    client = await talk(app_of(Checked), "/", SAY, query="page=x")
    assert client.closed is not None
    assert client.closed[0] == 1008
    assert all(f"query {name!r}" in client.closed[1] for name in ("page", "size"))
    assert log == []


async def test_dependencies_of_on_message_are_asked_and_cleaned_up_for_each_message() -> None:
    log: Log = []
    db = opening(log, "db")

    def session(db: Annotated[str, Depends(db)]) -> str:
        return db

    @controller("/", dependencies=[Depends(opening(log, "app"))])
    class Worker:
        async def on_message(
            self, message: str, session: Annotated[str, Depends(session)], db: Annotated[str, Depends(db)]
        ) -> str:
            log.append(message)
            return session + db

        def on_disconnect(self) -> None:
            log.append("farewell")

    client = await talk(app_of(Worker), "/", "one", "two")
    assert client.texts == ["dbdb"] * 2
    assert log == ["+app", "+db", "one", "-db", "+db", "two", "-db", "farewell", "-app"]


FAILURES: dict[str, tuple[Exception, tuple[int, str], type[Exception] | None]] = {
    "HTTPException": (HTTPException(429, "slow down"), (4429, "slow down"), None),
    "WebSocketException": (WebSocketException(4002, "no"), (4002, "no"), None),
    "disconnect": (WebSocketDisconnect(4001), (1000, ""), None),
    "any": (LookupError("its text"), (1011, "internal error"), LookupError),
}


@pytest.mark.parametrize("style", ["async", "plain", "generator", "dependency"])
@pytest.mark.parametrize("name", FAILURES)
async def test_an_exception_of_on_message_ends_by_the_table_and_what_was_opened_is_cleaned_up(
    name: str, style: str, caplog: pytest.LogCaptureFixture
) -> None:
    error, closed, raises = FAILURES[name]
    log: Log = []
    Db = Annotated[str, Depends(opening(log, "db"))]

    async def on_message(self: Any, message: str, db: Db) -> None:
        raise error

    def plain(self: Any, message: str, db: Db) -> None:
        raise error

    async def stream(self: Any, message: str, db: Db) -> AsyncIterator[str]:
        if error:
            raise error
        yield message

    def fails(db: Db) -> None:
        raise error

    async def depends(self: Any, message: str, value: Annotated[None, Depends(fails)]) -> None:
        log.append("never")

    async def on_disconnect(self: Any, code: int, reason: str) -> None:
        log.append((code, reason))

    function = {"async": on_message, "plain": plain, "generator": stream, "dependency": depends}[style]
    app = app_of(hook("on_message", function, on_disconnect=on_disconnect))
    client = await talk(app, "/", "one", "two", raises=raises)
    assert client.closed == closed
    assert log == ["+db", f"db: {type(error).__name__}", "-db", closed]
    assert [record.levelname for record in caplog.records] == (["ERROR"] if raises else [])
    if raises:
        assert re.search(r"websocket / \(.*tests/test_hooks\.py:\d+\): connection", caplog.records[0].getMessage())


async def test_a_dependency_of_on_message_that_does_not_validate_is_a_1008() -> None:
    async def number(text: int) -> int:
        return text

    async def on_message(self: Any, message: str, number: Annotated[int, Depends(number)]) -> None:
        pass

    client = await talk(app_of(hook("on_message", on_message)), "/", "one", query="text=x")
    assert client.closed is not None
    assert client.closed[0] == 1008
    assert "query 'text'" in client.closed[1]


async def test_a_dependency_of_a_message_that_closes_ends_the_conversation(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []

    async def guard(ws: WebSocket) -> None:
        log.append("guard")
        await ws.close(4005, "enough")

    async def on_message(self: Any, message: str, _: Annotated[None, Depends(guard)]) -> None:
        log.append("never")

    client = await talk(app_of(hook("on_message", on_message)), "/", "one", "two")
    assert client.closed == (4005, "enough")
    assert log == ["guard"]
    assert caplog.records == []


async def test_a_connection_and_its_messages_share_what_lives_for_the_connection() -> None:
    log: Log = []
    user = opening(log, "user")
    User = Annotated[str, Depends(user, scope="connection")]

    @controller("/", dependencies=[Depends(user)])
    class Shared:
        def __init__(self, user: User) -> None:
            self.user = user

        async def on_connect(self, ws: WebSocket, user: User) -> None:
            await ws.accept()

        async def on_message(self, message: str, user: User, fresh: Annotated[str, Depends(user)]) -> bool:
            return user is self.user

    client = await talk(app_of(Shared), "/", "one", "two")
    assert client.frames == [True, True]
    assert log == ["+user", "+user", "-user", "+user", "-user", "-user"]


async def test_components_in_on_message_live_as_long_as_they_say() -> None:
    made: Log = []

    @component(scope="websocket")
    class Session:
        def __init__(self) -> None:
            made.append("session")

    @component(scope="prototype")
    class Scratch:
        def __init__(self) -> None:
            made.append("scratch")

    @component
    class Shared:
        def __init__(self) -> None:
            made.append("shared")

    @controller("/")
    class Worker:
        def __init__(self, session: Session) -> None:
            self.session = session

        async def on_message(self, message: str, session: Session, scratch: Scratch, shared: Shared) -> bool:
            return session is self.session

    app = app_of(Worker)
    for _ in range(2):
        assert (await talk(app, "/", "one", "two")).frames == [True, True]
    counts = collections.Counter(made)
    assert counts == {"session": 2, "scratch": 4, "shared": 1}


def test_a_dependency_of_on_message_with_the_scope_of_the_handshake_is_refused_with_the_chain() -> None:
    def early() -> None:
        pass

    def between(value: Annotated[None, Depends(early, scope="handshake")]) -> None:
        pass

    @controller("/")
    class Wrong:
        async def on_message(self, message: str, value: Annotated[None, Depends(early, scope="handshake")]) -> None:
            pass

    @controller("/")
    class Deeper:
        async def on_message(self, message: str, value: Annotated[None, Depends(between)]) -> None:
            pass

    text = refused(Wrong)
    assert "on_message" in text
    assert "early" in text
    assert "handshake" in text
    assert "between -> early" in refused(Deeper)


async def test_overrides_reach_the_messages() -> None:
    def real() -> str:
        return "real"

    async def on_message(self: Any, message: str, one: Annotated[str, Depends(real)], names: Names) -> str:
        return names.full(one)

    class Fake:
        def full(self, name: str) -> str:
            return f"<{name}>"

    app = app_of(hook("on_message", on_message))
    app.dependency_overrides |= {real: lambda: "fake", Names: Fake}
    assert (await talk(app, "/", "one")).texts == ["<fake>"]


async def test_a_handler_that_closes_ends_the_conversation(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []

    async def on_message(self: Any, ws: WebSocket, message: str) -> None:
        log.append(message)
        await ws.close(4010, "done")

    async def on_disconnect(self: Any, code: int, reason: str) -> None:
        log.append((code, reason))

    client = await talk(app_of(hook("on_message", on_message, on_disconnect=on_disconnect)), "/", "one", "two")
    assert client.closed == (4010, "done")
    assert log == ["one", (4010, "done")]
    assert caplog.records == []


async def test_a_message_is_handled_before_the_next_is_read() -> None:
    log: Log = []

    async def on_message(self: Any, message: str) -> str:
        log.append(f"+{message}")
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        log.append(f"-{message}")
        return message

    client = await talk(app_of(hook("on_message", on_message)), "/", "a", "b")
    assert client.texts == ["a", "b"]
    assert log == ["+a", "-a", "+b", "-b"]


async def test_messages_before_the_disconnect_are_handled() -> None:
    # T7
    log: Log = []

    async def on_message(self: Any, message: str) -> None:
        log.append(message)

    async def on_disconnect(self: Any, code: int) -> None:
        log.append(code)

    client = Client()
    for message in "abc":
        client.say(message)
    client.leave(4001)
    app = app_of(hook("on_message", on_message, on_disconnect=on_disconnect))
    with anyio.fail_after(DEADLINE):
        await app(client.scope, client.receive, client.send)
    assert log == ["a", "b", "c", 4001]


# @on


@controller("/game/<room>")
class Game:
    """Dispatch by the type of the message."""

    def __init__(self) -> None:
        self.moves = 0

    @on(Say)
    async def say(self, ws: WebSocket, message: Say, room: str) -> Said:
        """With the message, the WebSocket and a parameter of the path."""
        return Said(room, message.text)

    @on(Move)
    async def move(self, move) -> AsyncIterator[int]:  # type: ignore[no-untyped-def]
        """With the message, whatever it is called."""
        self.moves += 1
        yield move.x
        yield self.moves

    @on(Stop)
    async def stop(self, ws: WebSocket) -> None:
        """Without the message."""
        await ws.close(4000, "stopped")


async def test_each_message_goes_to_the_method_for_its_type() -> None:
    client = await talk(app_of(Game), "/game/7", SAY, MOVE, '{"type": "go"}', MOVE, STOP, SAY)
    assert client.frames[:3] == [{"type": "said", "user": "7", "text": "hi"}, 1, 1]
    assert client.frames[3]["type"] == "error"
    assert all(tag in client.frames[3]["detail"] for tag in ("'say'", "'move'", "'stop'"))
    assert client.frames[4:] == [1, 2]
    assert client.closed == (4000, "stopped")


async def test_one_method_takes_several_types_and_on_message_others() -> None:
    @controller("/")
    class Mixed:
        @on(Say, Move)
        async def both(self, message: Say | Move) -> str:
            return f"both {shown(message)}"

        async def on_message(self, message: Stop | Said) -> str:
            return f"other {shown(message)}"

    client = await talk(app_of(Mixed), "/", SAY, MOVE, STOP, '{"type":"said","user":"a","text":"b"}')
    assert client.texts == [
        "both Say Say(text='hi')", "both Move Move(x=1, y=0)", "other Stop Stop()", "other Said Said(user='a', text='b')",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["self alone", "ws", "annotated", "bare"])
async def test_the_message_is_no_must_with_on(name: str) -> None:
    @on(Say)
    async def alone(self: Any) -> str:
        return "ok"

    @on(Say)
    async def ws(self: Any, ws) -> str:  # type: ignore[no-untyped-def]
        return "ok" if isinstance(ws, WebSocket) else shown(ws)

    @on(Say)
    async def annotated(self: Any, whatever: WebSocket) -> str:
        return "ok" if isinstance(whatever, WebSocket) else shown(whatever)

    @on(Say)
    async def bare(self: Any, said) -> str:  # type: ignore[no-untyped-def]
        return "ok" if isinstance(said, Say) else shown(said)

    function = {"self alone": alone, "ws": ws, "annotated": annotated, "bare": bare}[name]
    assert (await talk(app_of(hook("say", function)), "/", SAY)).texts == ["ok"]


async def test_text_and_bytes_are_told_apart() -> None:
    @controller("/")
    class Kinds:
        @on(str)
        async def text(self, message: str) -> str:
            return f"text {message}"

        @on(bytes)
        async def data(self, message: bytes) -> bytes:
            return message * 2

    client = await talk(app_of(Kinds), "/", "plain", b"ab")
    assert client.texts == ["text plain"]
    assert client.sent[-1]["bytes"] == b"abab"


async def test_methods_with_on_are_inherited_and_overridden() -> None:
    class Base:
        @on(Say)
        async def say(self, message: Say) -> str:
            return f"base {message.text}"

        @on(Move)
        async def move(self) -> str:
            return "base move"

    @controller("/")
    class Derived(Base):
        async def say(self, message: Say) -> str:
            return f"derived: {await super().say(message)}"

        @on(Stop)
        async def move(self) -> str:
            return "stop"

    client = await talk(app_of(Derived), "/", SAY, STOP, MOVE)
    assert client.texts[:2] == ["derived: base hi", "stop"]
    assert json.loads(client.texts[2])["type"] == "error"


async def test_dependencies_of_methods_with_on_are_asked_for_their_messages_alone() -> None:
    log: Log = []

    @controller("/")
    class Apart:
        @on(Say)
        async def say(self, db: Annotated[str, Depends(opening(log, "say"))]) -> None:
            pass

        @on(Move)
        async def move(self, db: Annotated[str, Depends(opening(log, "move"))]) -> None:
            pass

    await talk(app_of(Apart), "/", SAY, MOVE, SAY)
    assert log == ["+say", "-say", "+move", "-move", "+say", "-say"]


# A model of the conversation

Step = tuple[str, str | bytes, Any]
"""What kind of message it is, what is sent, and what must come back; for a bad one the path in the error frame."""


def both_ways(value: Any) -> st.SearchStrategy[str | bytes]:
    """A message as text or binary."""
    text = json.dumps(value)
    return st.sampled_from([text, text.encode()])


says = st.text(st.characters(codec="utf-8"), max_size=5).flatmap(
    lambda text: both_ways({"type": "say", "text": text}).map(lambda sent: ("good", sent, [f"say {text}"]))
)
moves = st.integers(0, 3).flatmap(
    lambda x: both_ways({"type": "move", "x": x}).map(lambda sent: ("good", sent, [f"move {at}" for at in range(x)]))
)
others = st.just({"type": "stop"}).flatmap(both_ways).map(lambda sent: ("good", sent, ["other"]))
wrong_fields = st.sampled_from(
    [
        ({"type": "say", "text": 1}, "$.text"), ({"type": "say"}, None), ({"type": "move", "x": "1"}, "$.x"),
        ({"type": "go"}, "$.type"), ({"type": 1}, "$.type"), ({}, None), ([], None), (1, None), (None, None),
        ({"type": "said", "user": "a", "text": "b"}, "$.type"),
    ]
).flatmap(lambda pair: both_ways(pair[0]).map(lambda sent: ("bad", sent, pair[1])))  # fmt: skip
garbage = st.sampled_from(["", "no", "{", '{"type":"say"', b"", b"\xff\xfe", "[" * 3000, b"\x00"]).map(
    lambda sent: ("bad", sent, None)
)
leaving = st.sampled_from([(1000, ""), (None, ""), (1001, "away"), (4321, "tired")])


@settings(max_examples=200)
@given(
    shape=st.sampled_from(SHAPES),
    steps=st.lists(st.one_of(says, moves, others, wrong_fields, garbage), max_size=12),
    limit=st.integers(1, 4),
    ending=leaving,
)
async def test_any_conversation_goes_as_the_model_says(
    shape: Shape, steps: list[Step], limit: int, ending: tuple[int | None, str]
) -> None:
    log: Log = []

    @controller("/")
    class Modelled:
        @on(Say)
        async def say(self, message: Say) -> str:
            return f"say {message.text}"

        @on(Move)
        async def move(self, message: Move) -> AsyncIterator[str]:
            for at in range(message.x):
                yield f"move {at}"

        def on_message(self, message: Stop) -> str:
            return "other"

        async def on_disconnect(self, code: int) -> None:
            log.append(code)

    app = app_of(Modelled, limits=Limits(bad_messages=limit))
    client = await talk(app, "/", *(sent for _, sent, _ in steps), shape=shape, ending=ending)
    heard = iter(client.texts)
    bad = 0
    for kind, _, expected in steps:
        bad = bad + 1 if kind == "bad" else 0
        if kind == "good":
            assert [next(heard) for _ in expected] == expected
            continue
        frame = json.loads(next(heard))
        assert frame["type"] == "error"
        assert frame.get("path") in (expected, None)
        if bad == limit:
            break
    assert list(heard) == []
    if bad == limit:
        assert client.closed is not None
        assert client.closed[0] in (1007, 4007)
        assert log == [1007]
    else:
        assert client.closed is None
        code = 1006 if shape.codes == "1006" else ending[0] or 1005
        assert log == [code]


# on_disconnect: how it is called


class Farewells:
    """Hooks with any of the parameters, in any order; each gives what it got."""

    async def nothing(self) -> Any:
        return ()

    async def ws(self, ws) -> Any:
        return (ws,)  # type: ignore[no-untyped-def]

    async def annotated(self, this: WebSocket) -> Any:
        return (this,)

    async def with_types(self, this: WebSocket[Say, Any]) -> Any:
        return (this,)

    async def connection(self, this: Connection) -> Any:
        return (this,)

    async def code(self, code) -> Any:
        return (code,)  # type: ignore[no-untyped-def]

    async def reason(self, reason: str) -> Any:
        return (reason,)

    async def ws_code(self, websocket, code: int) -> Any:
        return (websocket, code)  # type: ignore[no-untyped-def]

    async def code_ws(self, code: int, conn) -> Any:
        return (conn, code)  # type: ignore[no-untyped-def]

    async def all_bare(self, ws, code, reason) -> Any:
        return (ws, code, reason)  # type: ignore[no-untyped-def]

    async def all_turned(self, reason: str, code: int, ws: WebSocket) -> Any:
        return (reason, code, ws)

    async def keywords(self, *, reason: str, code: int, ws: WebSocket) -> Any:
        return (reason, code, ws)

    async def defaults(self, ws: WebSocket, code: int = 1000, reason: str = "") -> Any:
        return (ws, code, reason)

    async def optional(self, code: int | None = None, reason: str | None = None) -> Any:
        return (code, reason)
