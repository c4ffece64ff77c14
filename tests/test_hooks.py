"""The hooks of a controller: on_connect, on_message and @on, on_disconnect."""

import collections
import contextlib
import dataclasses
import enum
import functools
import json
import logging
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar

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
    JSONResponse,
    Limits,
    MessageError,
    Query,
    Request,
    RouteError,
    SignatureError,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    WebSocketStateError,
    cleanup,
    component,
    controller,
    endpoints,
    get,
    on,
    websocket,
)
from tests.fakes import DAPHNE, DEADLINE, SHAPES, UVICORN, FakeServer, Shape, soon
from tests.test_controllers import Client, Live, app_of, serving, talk

pytestmark = pytest.mark.anyio

T = TypeVar("T")
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

    async def on_message(self: Any, ws: WebSocket, message: declared) -> str:  # type: ignore[valid-type]
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

    async def message(self, message) -> str:  # type: ignore[no-untyped-def]
        return self.tell(message)

    async def anything(self, anything) -> str:  # type: ignore[no-untyped-def]
        return self.tell(anything)

    async def ws_message(self, ws, message) -> str:  # type: ignore[no-untyped-def]
        return self.tell(message, ws)

    async def conn_data(self, conn, data) -> str:  # type: ignore[no-untyped-def]
        return self.tell(data, conn)

    async def any_two(self, one, two) -> str:  # type: ignore[no-untyped-def]
        return self.tell(two, one)

    async def swapped(self, message, ws) -> str:  # type: ignore[no-untyped-def]
        return self.tell(message, ws)

    async def swapped_data(self, data, websocket) -> str:  # type: ignore[no-untyped-def]
        return self.tell(data, websocket)

    async def typed_first(self, message: str, ws) -> str:  # type: ignore[no-untyped-def]
        return self.tell(message, ws)

    async def typed_last(self, ws, said: str) -> str:  # type: ignore[no-untyped-def]
        return self.tell(said, ws)

    async def typed_beside(self, client, said: str) -> str:  # type: ignore[no-untyped-def]
        return self.tell(said, client)

    async def both_typed(self, said: str, this: WebSocket) -> str:
        return self.tell(said, this)

    async def only_ws(self, this: WebSocket, said) -> str:  # type: ignore[no-untyped-def]
        return self.tell(said, this)

    async def keywords(self, *, message: str, ws: WebSocket) -> str:
        return self.tell(message, ws)

    async def connection(self, connection: Connection, text) -> str:  # type: ignore[no-untyped-def]
        return self.tell(text, connection)

    def tell(self, message: Any, ws: Any = None) -> str:
        """What came where."""
        return f"{message} {ws is None or isinstance(ws, WebSocket)}"


@pytest.mark.parametrize("name", [name for name in vars(Parameters) if not name.startswith("_") and name != "tell"])
async def test_the_message_is_found_whatever_its_parameter_is_called(name: str) -> None:
    cls = hook("on_message", vars(Parameters)[name], tell=Parameters.tell)
    assert (await talk(app_of(cls), "/", "hello")).texts == ["hello True"]


async def test_a_struct_is_the_message_and_what_stands_beside_it_a_parameter() -> None:
    async def on_message(self: Any, lang: str, said: Say) -> str:
        return f"{lang} {said.text}"

    client = await talk(app_of(hook("on_message", on_message)), "/", SAY, query="lang=fr")
    assert client.texts == ["fr hi"]


async def test_the_websocket_declares_the_messages_of_an_on_message_without_annotation() -> None:
    async def on_message(self: Any, ws: WebSocket[Say | Move, str], message) -> str:  # type: ignore[no-untyped-def]
        return shown(message)

    client = await talk(app_of(hook("on_message", on_message)), "/", SAY, "no json", MOVE)
    assert [client.texts[0], client.texts[2]] == ["Say Say(text='hi')", "Move Move(x=1, y=0)"]
    assert json.loads(client.texts[1])["type"] == "error"


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


@pytest.mark.parametrize("how", ["raises", "cancelled", "what cannot be sent"])
async def test_a_generator_that_replies_is_closed_however_it_ends(how: str) -> None:
    log: Log = []

    @controller("/")
    class Fails:
        async def on_message(self, message: str) -> AsyncIterator[Any]:
            try:
                yield "first"
                if how == "raises":
                    raise LookupError
                if how == "cancelled":
                    await anyio.sleep_forever()
                yield object()
            finally:
                log.append("closed")

    client = Client()
    client.say("go")
    error: BaseException | None = None
    with anyio.fail_after(DEADLINE):
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(app_of(Fails), client.scope, client.receive, client.send)
                await client.until(lambda server: server.texts)
                await soon(lambda: how != "cancelled" or client.sending == 0)
                if how == "cancelled":
                    group.cancel_scope.cancel()
        except* (LookupError, TypeError) as group_error:
            error = group_error.exceptions[0]
    assert log == ["closed"]
    assert client.closed == ((1012, "the server stops") if how == "cancelled" else (1011, "internal error"))
    assert type(error) is {"raises": LookupError, "cancelled": type(None), "what cannot be sent": TypeError}[how]


# on_message: bad messages


@every_shape
async def test_a_bad_message_is_answered_with_an_error_frame_and_the_connection_goes_on(shape: Shape) -> None:
    async def on_message(self: Any, message: Say | Move) -> str:
        return shown(message)

    bad: list[str | bytes] = ["no json", '{"type":"say","text":1}', '{"type":"go"}', "[]", b"\xff", '{"type":"say"}']
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


# What stands beside the message


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
        if message:
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


@pytest.mark.parametrize("use_cache", [True, False])
async def test_a_dependency_with_the_scope_of_the_connection_is_asked_once(use_cache: bool) -> None:
    log: Log = []
    pool = opening(log, "pool")

    def session(pool: Annotated[str, Depends(pool, scope="connection", use_cache=use_cache)]) -> Iterator[str]:
        log.append("+session")
        yield pool
        log.append("-session")

    @controller("/")
    class Worker:
        async def on_message(self, message: str, session: Annotated[str, Depends(session)]) -> str:
            return session

    client = await talk(app_of(Worker), "/", "one", "two")
    assert client.texts == ["pool"] * 2
    assert log == ["+pool", "+session", "-session", "+session", "-session", "-pool"]


@pytest.mark.parametrize("use_cache", [True, False])
async def test_a_dependency_of_the_connection_in_on_message_itself_is_asked_once(use_cache: bool) -> None:
    log: Log = []
    pool = opening(log, "pool")

    @controller("/")
    class Worker:
        async def on_message(
            self, message: str, pool: Annotated[str, Depends(pool, scope="connection", use_cache=use_cache)]
        ) -> str:
            return pool

    client = await talk(app_of(Worker), "/", "one", "two")
    assert client.texts == ["pool"] * 2
    assert log == ["+pool", "-pool"]


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
    assert client.texts[:2] == ["both Say Say(text='hi')", "both Move Move(x=1, y=0)"]
    assert client.texts[2:] == ["other Stop Stop()", "other Said Said(user='a', text='b')"]


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


async def test_with_on_the_message_is_the_parameter_of_that_type() -> None:
    @on(Say)
    async def say(self: Any, lang: str, said: Say) -> str:
        return f"{lang} {said.text}"

    assert (await talk(app_of(hook("say", say)), "/", SAY, query="lang=fr")).texts == ["fr hi"]


async def test_with_on_a_parameter_beside_no_message_is_a_parameter() -> None:
    @on(Say)
    async def say(self: Any, lang: str) -> str:
        return lang

    assert (await talk(app_of(hook("say", say)), "/", SAY, query="lang=fr")).texts == ["fr"]


async def test_a_union_in_on_is_its_members() -> None:
    @controller("/")
    class Mixed:
        @on(Say | Move)
        async def both(self, message: Say | Move) -> str:
            return f"both {shown(message)}"

        @on(Stop)
        async def stop(self) -> str:
            return "stop"

    assert (await talk(app_of(Mixed), "/", SAY, STOP)).texts == ["both Say Say(text='hi')", "stop"]


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


async def test_plain_json_is_told_apart_by_its_type() -> None:
    @controller("/")
    class Kinds:
        @on(int)
        async def number(self, message: int) -> str:
            return f"number {message}"

        @on(str)
        async def text(self, message: str) -> str:
            return f"text {message}"

        @on(dict)
        async def mapping(self, message: dict[str, Any]) -> str:
            return f"mapping {message}"

    client = await talk(app_of(Kinds), "/", "1", '"a"', '{"a": 1}', "[]")
    assert client.texts[:3] == ["number 1", "text a", "mapping {'a': 1}"]
    assert json.loads(client.texts[3])["type"] == "error"


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [(Point, int, '{"x": 1}'), (Mapping, int, '{"x": 1}'), (collections.abc.Sequence, int, "[1]")],
)
async def test_types_that_are_decoded_to_another_one_reach_their_method_or_are_refused(
    one: Any, two: Any, message: str
) -> None:
    @controller("/")
    class Kinds:
        @on(one)
        async def first(self) -> str:
            return "first"

        @on(two)
        async def second(self) -> str:
            return "second"

    try:
        app = app_of(Kinds)
    except SignatureError:
        return
    assert (await talk(app, "/", message, "1")).texts == ["first", "second"]


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


@settings(max_examples=100)
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
    """Hooks with any of the parameters, in any order; each notes what it got."""

    def nothing(self) -> None:
        self.note()

    def ws(self, ws) -> None:  # type: ignore[no-untyped-def]
        self.note(ws)

    def whatever(self, whatever) -> None:  # type: ignore[no-untyped-def]
        self.note(whatever)

    def annotated(self, this: WebSocket) -> None:
        self.note(this)

    def with_types(self, this: WebSocket[Say, Any]) -> None:
        self.note(this)

    def connection(self, this: Connection) -> None:
        self.note(this)

    def code(self, code) -> None:  # type: ignore[no-untyped-def]
        self.note(code)

    def reason(self, reason: str) -> None:
        self.note(reason)

    def ws_code(self, websocket, code: int) -> None:  # type: ignore[no-untyped-def]
        self.note(websocket, code)

    def code_ws(self, code: int, conn) -> None:  # type: ignore[no-untyped-def]
        self.note(conn, code)

    def all_bare(self, ws, code, reason) -> None:  # type: ignore[no-untyped-def]
        self.note(ws, code, reason)

    def all_turned(self, reason: str, code: int, ws: WebSocket) -> None:
        self.note(ws, code, reason)

    def keywords(self, *, reason: str, code: int, ws: WebSocket) -> None:
        self.note(ws, code, reason)

    def defaults(self, ws: WebSocket, code: int = 1, reason: str = "") -> None:
        self.note(ws, code, reason)

    def optional(self, code: int | None = None, reason: str | None = None) -> None:
        self.note(code, reason)

    def note(self, *values: Any) -> None:
        """Replaced by the test."""


def as_async(function: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
    """The same hook, async."""

    @functools.wraps(function)
    async def hook(*args: Any, **kwargs: Any) -> None:
        await anyio.lowlevel.checkpoint()
        function(*args, **kwargs)

    return hook


async def silent(self: Any, message: str) -> None:
    """Takes messages and says nothing."""


@pytest.mark.parametrize("style", ["async", "plain"])
@pytest.mark.parametrize("name", [name for name in vars(Farewells) if not name.startswith("_") and name != "note"])
async def test_on_disconnect_takes_any_of_its_parameters_in_any_order(name: str, style: str) -> None:
    noted: Log = []
    function = vars(Farewells)[name]
    names = {"nothing": (), "code": (4321,), "reason": ("tired",), "optional": (4321, "tired")}
    rest = {"ws_code": (4321,), "code_ws": (4321,)} | dict.fromkeys(
        ["all_bare", "all_turned", "keywords", "defaults"], (4321, "tired")
    )
    cls = hook(
        "on_disconnect", as_async(function) if style == "async" else function,
        on_message=silent, note=lambda self, *values: noted.append(values),
    )  # fmt: skip
    await talk(app_of(cls), "/", ending=(4321, "tired"))
    [values] = noted
    if name in names:
        assert values == names[name]
    else:
        assert isinstance(values[0], WebSocket)
        assert values[1:] == rest.get(name, ())


WRONG_FAREWELLS: dict[str, Callable[..., None]] = {
    "close_code": lambda self, ws, close_code: None,
    "exit_code": lambda self, exit_code=1: None,
    "room": lambda self, ws, code, room: None,
}


def _typed(self: Any, ws: WebSocket, close_code: int) -> None:
    pass


def _depends(self: Any, ws: WebSocket, user: Annotated[str, Depends(silent)]) -> None:
    pass


def _component(self: Any, names: Names) -> None:
    pass


def _request(self: Any, request: Request) -> None:
    pass


def _query(self: Any, code: Annotated[int, Query()]) -> None:
    pass


WRONG_FAREWELLS |= {
    "close_code: int": _typed, "user": _depends, "names": _component, "request": _request, "code": _query,
}  # fmt: skip


# Starlette's own hook is on_disconnect(self, websocket, close_code).
@pytest.mark.parametrize("name", WRONG_FAREWELLS)
def test_an_on_disconnect_with_a_parameter_that_it_does_not_have_is_refused(name: str) -> None:
    text = refused(hook("on_disconnect", WRONG_FAREWELLS[name], on_message=silent))
    assert repr(name.partition(":")[0]) in text
    assert "It takes the WebSocket, code and reason" in text


# on_disconnect: when it is called


async def _returns(ws: WebSocket) -> None:
    await ws.accept()


async def _returns_early(ws: WebSocket) -> None:
    pass


async def _closes(ws: WebSocket) -> None:
    await ws.accept()
    await ws.close(4001, "enough")


async def _closes_early(ws: WebSocket) -> None:
    await ws.close(4001, "enough")


async def _denies(ws: WebSocket) -> None:
    await ws.send_denial_response(JSONResponse({}, 418))


async def _waits(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_text()


async def _loops(ws: WebSocket) -> None:
    await ws.accept()
    async for _ in ws:
        pass


async def _leaves_in_a_group(ws: WebSocket) -> None:
    await ws.accept()
    async with anyio.create_task_group() as group:
        group.start_soon(ws.receive_text)
        group.start_soon(anyio.sleep_forever)


async def _fails_in_a_group(ws: WebSocket) -> None:
    await ws.accept()

    async def fail() -> None:
        raise HTTPException(409, "in a group")

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        group.start_soon(fail)


def _raises(error: Exception, *, early: bool = False) -> Callable[[WebSocket], Awaitable[None]]:
    async def handler(ws: WebSocket) -> None:
        if not early:
            await ws.accept()
        raise error

    return handler


async def _wrong_kind(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_bytes()


Ending = tuple[Callable[[WebSocket], Awaitable[None]], tuple[int, str], type[Exception] | None]
ENDINGS: dict[str, Ending] = {
    "returns": (_returns, (1000, ""), None),
    "returns before accept": (_returns_early, (4403, ""), None),
    "closes": (_closes, (4001, "enough"), None),
    "closes before accept": (_closes_early, (4001, "enough"), None),
    "denies": (_denies, (4418, ""), None),
    "raises": (_raises(LookupError("its text")), (1011, "internal error"), LookupError),
    "raises before accept": (_raises(LookupError("its text"), early=True), (4500, ""), LookupError),
    "HTTPException": (_raises(HTTPException(401, "who?")), (4401, "who?"), None),
    "HTTPException before accept": (_raises(HTTPException(401, "who?"), early=True), (4401, ""), None),
    "WebSocketException": (_raises(WebSocketException(4002, "no")), (4002, "no"), None),
    "WebSocketException before accept": (_raises(WebSocketException(4002, "no"), early=True), (4002, "no"), None),
    "HTTPException in a group": (_fails_in_a_group, (4409, "in a group"), None),
    "a message of the wrong kind": (_wrong_kind, (1003, "expected a binary message, got a text one"), None),
    "a disconnect of another": (_raises(WebSocketDisconnect(4009)), (1000, ""), None),
    "the client leaves": (_waits, (4321, "tired"), None),
    "the client leaves a loop": (_loops, (4321, "tired"), None),
    "the client leaves a group": (_leaves_in_a_group, (4321, "tired"), None),
}


def method_of(handler: Callable[[WebSocket], Awaitable[None]]) -> Any:
    """A method that does what a function does."""

    @websocket("/")
    async def method(self: Any, ws: WebSocket) -> None:
        await handler(ws)

    return method


def noting_farewell(log: Log) -> Any:
    """An on_disconnect that takes its time, and then notes what it was told."""

    async def on_disconnect(self: Any, ws: WebSocket, code: int, reason: str) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        assert (ws.close_code, ws.close_reason) == (code, reason)
        log.append((code, reason))

    return on_disconnect


@pytest.mark.parametrize("scope", ["websocket", "singleton"])
@pytest.mark.parametrize("name", ENDINGS)
async def test_a_farewell_is_said_once_however_the_connection_ends(
    name: str, scope: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler, told, raises = ENDINGS[name]
    messages = ["a text"] if "wrong kind" in name else []
    log: Log = []

    class Hooked:
        method = method_of(handler)
        on_disconnect = noting_farewell(log)

    class Plain:
        method = method_of(handler)

    app = app_of(controller("/", scope=scope)(Hooked))
    client = await talk(app, "/", *messages, raises=raises, ending=(4321, "tired"))
    assert log == [told]
    lines = [record.getMessage().replace("Hooked", "Plain") for record in caplog.records]
    plain = await talk(
        app_of(controller("/", scope=scope)(Plain)), "/", *messages, raises=raises, ending=(4321, "tired")
    )
    without_id = [{**event, "body": b""} if "body" in event else event for event in client.sent]
    assert [(one["type"], one.get("code"), one.get("status")) for one in without_id] == [
        (one["type"], one.get("code"), one.get("status")) for one in plain.sent
    ]
    assert client.closed == plain.closed
    assert len(lines) == len(caplog.records) - len(lines) == (1 if raises else 0)


@every_shape
async def test_a_farewell_tells_how_the_client_left(shape: Shape) -> None:
    log: Log = []
    app = app_of(hook("on_disconnect", noting_farewell(log), on_message=silent))
    for ending in [(4321, "tired"), (1000, ""), (1001, "away"), (None, "")]:
        await talk(app, "/", "hello", ending=ending, shape=shape)
    codes = {
        "all": [(4321, "tired"), (1000, ""), (1001, "away"), (1005, "")],
        "1006": [(1006, "")] * 4,
        "no reason": [(4321, ""), (1000, ""), (1001, ""), (1005, "")],
        "none is None": [(4321, ""), (1000, ""), (1001, ""), (1005, "")],
    }
    assert log == codes[shape.codes]


@every_shape
async def test_a_farewell_is_said_when_the_connection_breaks(shape: Shape) -> None:
    log: Log = []
    client = Live(shape)
    async with serving(app_of(hook("on_disconnect", noting_farewell(log), on_message=silent)), client):
        await client.until(lambda server: server.types == ["websocket.accept"])
        client.abort()
    assert log == [(shape.abort_code, "")]


@every_shape
async def test_a_farewell_is_said_when_a_send_finds_the_client_gone(shape: Shape) -> None:
    log: Log = []

    async def on_message(self: Any, message: str) -> str:
        return message

    client = Client(shape)
    client.say("one")
    client.leave(4321, "tired")
    app = app_of(hook("on_disconnect", noting_farewell(log), on_message=on_message))
    with anyio.fail_after(DEADLINE):
        await app(client.scope, client.receive, client.send)
    assert len(log) == 1
    # A server that raises says no more than that; the others tell the code when it is read.
    assert log[0][0] in (1006, 4321)


@every_shape
@pytest.mark.parametrize("name", ["returns", "closes", "HTTPException"])
async def test_a_farewell_tells_how_the_handler_ended_it_on_every_server(name: str, shape: Shape) -> None:
    handler, told, _ = ENDINGS[name]
    log: Log = []
    client = await talk(
        app_of(hook("on_disconnect", noting_farewell(log), method=method_of(handler))), "/", shape=shape
    )
    assert log == [told]
    assert client.closed == told


@every_shape
@pytest.mark.parametrize("hooks", [True, False], ids=["on_connect", "framework"])
async def test_a_farewell_is_said_to_a_client_that_left_before_it_was_accepted(shape: Shape, hooks: bool) -> None:
    log: Log = []

    async def on_connect(self: Any, ws: WebSocket) -> None:
        await ws.accept()

    others = {"on_connect": on_connect} if hooks else {}
    app = app_of(hook("on_disconnect", noting_farewell(log), on_message=silent, **others))
    client = FakeServer(shape)
    client.vanish()
    with anyio.fail_after(DEADLINE):
        await app(client.scope, client.receive, client.send)
    assert client.sent == []
    assert log == [(1006, "")]


@every_shape
@pytest.mark.parametrize("where", ["on_connect", "waiting", "on_message", "method", "before accept"])
async def test_a_farewell_is_said_when_the_server_stops(where: str, shape: Shape) -> None:
    log: Log = []
    reached = anyio.Event()

    async def on_connect(self: Any, ws: WebSocket) -> None:
        await ws.accept()
        if where == "on_connect":
            reached.set()
            await anyio.sleep_forever()

    async def on_message(self: Any, message: str) -> None:
        if where == "on_message":
            reached.set()
            await anyio.sleep_forever()

    @websocket("/")
    async def method(self: Any, ws: WebSocket) -> None:
        if where == "method":
            await ws.accept()
        reached.set()
        await anyio.sleep_forever()

    others: dict[str, Any] = {"on_connect": on_connect, "on_message": on_message}
    if where in ("method", "before accept"):
        others = {"method": method}
    app = app_of(hook("on_disconnect", noting_farewell(log), **others))
    client = FakeServer(shape)
    client.say("hello")
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, client.scope, client.receive, client.send)
            if where == "waiting":
                await client.until(lambda server: server.status == 101)
                await soon(lambda: not client._inbox)
            else:
                await reached.wait()
            group.cancel_scope.cancel()
    assert log == [(1012, "the server stops")]
    assert client.closed is not None
    assert client.closed[0] in (1012, 4012)


async def test_a_farewell_is_said_when_a_later_dependency_refuses() -> None:
    # T29
    log: Log = []

    def refuse() -> None:
        raise HTTPException(403)

    @controller("/")
    class Guarded:
        on_disconnect = noting_farewell(log)

        @websocket("/")
        async def method(self, ws: WebSocket, _: Annotated[None, Depends(refuse)]) -> None:
            log.append("never")

    assert (await talk(app_of(Guarded), "/")).status == 403
    assert log == [(4403, "")]


async def test_a_farewell_is_said_when_a_dependency_of_a_method_closes() -> None:
    log: Log = []

    async def refuse(ws: WebSocket) -> None:
        await ws.close(4002, "not you")

    @controller("/")
    class Guarded:
        on_disconnect = noting_farewell(log)

        @websocket("/")
        async def method(self, ws: WebSocket, _: Annotated[None, Depends(refuse)]) -> None:
            log.append("never")

    await talk(app_of(Guarded), "/")
    assert log == [(4002, "not you")]


async def test_no_farewell_is_said_when_no_object_was_made() -> None:
    log: Log = []

    def refuse() -> None:
        raise HTTPException(403)

    @controller("/")
    class Guarded:
        on_disconnect = noting_farewell(log)

        def __init__(self, _: Annotated[None, Depends(refuse)]) -> None:
            log.append("never")

        async def on_message(self, message: str) -> None:
            log.append("never")

    @controller("/message")
    class Needy:
        on_disconnect = noting_farewell(log)

        async def on_message(self, message: str, _: Annotated[None, Depends(refuse, scope="connection")]) -> None:
            log.append("never")

    app = app_of(Guarded, Needy)
    assert (await talk(app, "/")).status == 403
    assert (await talk(app, "/message")).status == 403
    assert (await talk(app, "/other")).status == 404
    assert log == []


async def test_an_origin_that_is_refused_reaches_no_object() -> None:
    log: Log = []
    app = app_of(hook("on_disconnect", noting_farewell(log), on_message=silent))
    assert (await talk(app, "/", headers={"origin": "https://evil.example"})).status == 403
    assert log == []


# on_disconnect: what else ends, and in which order


async def test_the_farewell_is_said_before_anything_is_cleaned_up() -> None:
    log: Log = []

    @controller("/", dependencies=[Depends(opening(log, "controller"))])
    class Ordered:
        def __init__(self, db: Annotated[str, Depends(opening(log, "constructor"))]) -> None:
            self.db = db

        @websocket("/")
        async def method(self, ws: WebSocket) -> None:
            await ws.accept()
            log.append("handler")

        async def on_disconnect(self) -> None:
            await anyio.lowlevel.checkpoint()
            log.append(f"farewell with {self.db}")

    await talk(app_of(Ordered, dependencies=[Depends(opening(log, "app"))]), "/")
    assert log == [
        "+app", "+controller", "+constructor", "handler", "farewell with constructor", "-constructor", "-controller",
        "-app",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["method", "on_connect"])
async def test_what_a_method_or_hook_depends_on_is_open_when_the_farewell_is_said(where: str) -> None:
    log: Log = []
    db = opening(log, "db")

    class Ordered:
        db = ""

        async def on_disconnect(self) -> None:
            log.append(f"farewell with {self.db}")

    class Method(Ordered):
        @websocket("/")
        async def method(self, ws: WebSocket, db: Annotated[str, Depends(db)]) -> None:
            self.db = db
            await ws.accept()

    class Hooked(Ordered):
        async def on_connect(self, ws: WebSocket, db: Annotated[str, Depends(db)]) -> None:
            self.db = db
            await ws.accept()

    await talk(app_of(controller("/")(Method if where == "method" else Hooked)), "/")
    assert log == ["+db", "farewell with db", "-db"]


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_the_close_is_sent_before_the_farewell_is_said(ending: str) -> None:
    log: Log = []
    client = Client()

    @controller("/")
    class Ordered:
        method = method_of(ENDINGS[ending][0])

        async def on_disconnect(self, ws: WebSocket) -> None:
            log.append(client.types)
            await ws.close(4999)

    app = app_of(Ordered)
    with anyio.fail_after(DEADLINE), contextlib.suppress(LookupError):
        await app(client.scope, client.receive, client.send)
    assert log == [["websocket.accept", "websocket.close"]]
    assert client.types == ["websocket.accept", "websocket.close"]


async def test_all_of_a_controller_runs_in_one_task() -> None:
    # T36
    tasks: Log = []

    def note() -> None:
        tasks.append(anyio.get_current_task().id)

    @controller("/")
    class One:
        def __init__(self) -> None:
            note()

        async def on_connect(self, ws: WebSocket) -> None:
            note()
            await ws.accept()

        async def on_message(self, message: str) -> None:
            note()

        async def on_disconnect(self) -> None:
            note()

    await talk(app_of(One), "/", "hello")
    assert len(tasks) == 4
    assert len(set(tasks)) == 1


@pytest.mark.parametrize("style", ["async", "plain"])
@pytest.mark.parametrize("name", ENDINGS)
async def test_an_error_in_on_disconnect_is_logged_once_and_hides_nothing(
    name: str, style: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler, _, raises = ENDINGS[name]
    messages = ["a text"] if "wrong kind" in name else []
    log: Log = []

    def on_disconnect(self: Any) -> None:
        raise KeyError("in the farewell")

    app = app_of(
        hook(
            "on_disconnect", as_async(on_disconnect) if style == "async" else on_disconnect, method=method_of(handler)
        ),
        dependencies=[Depends(opening(log, "app"))],
    )
    client = await talk(app, "/", *messages, raises=raises, ending=(4321, "tired"))
    plain = await talk(
        app_of(hook("method", method_of(handler))), "/", *messages, raises=raises, ending=(4321, "tired")
    )
    assert (client.status, client.closed) == (plain.status, plain.closed)
    assert log[-1] == "-app"
    assert "KeyError" not in str(log)
    failed = [record for record in caplog.records if "on_disconnect" in record.getMessage()]
    assert len(failed) == 1
    assert failed[0].levelname == "ERROR"
    assert re.match(
        r"websocket / \(.*test_hooks\.py:\d+\): on_disconnect of connection \w+ failed", failed[0].getMessage()
    )
    assert failed[0].exc_info is not None
    assert isinstance(failed[0].exc_info[1], KeyError)


async def test_an_on_disconnect_that_hangs_is_cut_and_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.5)  # the close has half of it
    log: Log = []

    async def on_disconnect(self: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cut")

    for name in ("returns", "raises"):
        handler, told, raises = ENDINGS[name]
        app = app_of(hook("on_disconnect", on_disconnect, method=method_of(handler)))
        assert (await talk(app, "/", raises=raises)).closed == told
    assert log == ["cut"] * 2
    assert sum("the clean-up took over 0.5 s and was cut" in record.getMessage() for record in caplog.records) == 2


async def test_an_on_disconnect_that_hangs_when_the_server_stops_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.5)  # the close has half of it
    log: Log = []

    async def on_disconnect(self: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cut")

    client = FakeServer()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(
                app_of(hook("on_disconnect", on_disconnect, on_message=silent)),
                client.scope,
                client.receive,
                client.send,
            )
            await client.until(lambda server: server.status == 101)
            group.cancel_scope.cancel()
    assert log == ["cut"]
    assert client.closed == (1012, "the server stops")


async def test_a_client_that_does_not_read_leaves_time_for_the_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    # T12: the close that cannot be sent takes none of the time of on_disconnect
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.5)
    monkeypatch.setattr(endpoints, "GOODBYE", 0.02)
    log: Log = []

    async def on_disconnect(self: Any) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        log.append("done")

    client = FakeServer()

    async def stalls(ws: WebSocket) -> None:
        await ws.accept()
        client.hold = anyio.Event()

    app = app_of(hook("on_disconnect", on_disconnect, method=method_of(stalls)))
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(app, client.scope, client.receive, client.send)
            await soon(lambda: log)
            group.cancel_scope.cancel()
    assert log == ["done"]


async def test_a_server_that_stops_during_the_farewell_does_not_cut_it() -> None:
    log: Log = []
    begun = anyio.Event()

    async def on_disconnect(self: Any, code: int) -> None:
        begun.set()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        log.append(code)

    client = FakeServer()
    client.leave(4321)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(
                app_of(hook("on_disconnect", on_disconnect, on_message=silent)),
                client.scope,
                client.receive,
                client.send,
            )
            await begun.wait()
            group.cancel_scope.cancel()
    assert log == [4321]


async def test_an_exception_handler_of_the_app_is_asked_once_and_its_close_is_told() -> None:
    log: Log = []

    async def handle(ws: WebSocket, error: Exception) -> None:
        log.append(type(error).__name__)
        await ws.close(4123, "handled")

    app = app_of(
        hook("on_disconnect", noting_farewell(log), method=method_of(ENDINGS["raises"][0])),
        exception_handlers={LookupError: handle},
    )
    client = await talk(app, "/")
    assert client.closed == (4123, "handled")
    assert log == ["LookupError", (4123, "handled")]


async def test_clean_up_sees_the_exception_after_the_farewell(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []

    @controller("/")
    class Fails:
        def __init__(self, db: Annotated[str, Depends(opening(log, "db"))]) -> None:
            pass

        method = method_of(ENDINGS["raises"][0])
        on_disconnect = noting_farewell(log)

    await talk(app_of(Fails), "/", raises=LookupError)
    assert log == ["+db", (1011, "internal error"), "db: LookupError", "-db"]
    assert len(caplog.records) == 1


async def test_a_dependency_that_swallows_the_exception_ends_it_after_the_farewell() -> None:
    log: Log = []

    async def swallows() -> AsyncIterator[None]:
        with contextlib.suppress(LookupError):
            yield

    @controller("/", dependencies=[Depends(swallows)])
    class Fails:
        method = method_of(ENDINGS["raises"][0])
        on_disconnect = noting_farewell(log)

    client = await talk(app_of(Fails), "/")
    assert client.closed == (1011, "internal error")
    assert log == [(1011, "internal error")]


async def test_clean_up_that_fails_after_the_farewell_is_logged_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []

    async def commit() -> AsyncIterator[None]:
        yield
        raise KeyError("cannot commit")

    @controller("/", dependencies=[Depends(commit)])
    class Fails:
        method = method_of(ENDINGS["returns"][0])
        on_disconnect = noting_farewell(log)

    client = await talk(app_of(Fails), "/", raises=KeyError)
    assert client.closed == (1000, "")
    assert log == [(1000, "")]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# The code and reason of a WebSocket's end


async def test_a_websocket_knows_how_it_ended() -> None:
    server = FakeServer()
    ws: WebSocket[Any, Any] = WebSocket(server.scope, server.receive, server.send)
    assert (ws.close_code, ws.close_reason) == (None, None)
    await ws.accept()
    assert (ws.close_code, ws.close_reason) == (None, None)
    server.leave(4321, "tired")
    with pytest.raises(WebSocketDisconnect):
        await ws.receive_text()
    assert (ws.close_code, ws.close_reason) == (4321, "tired")
    await ws.close(4000, "mine")
    assert (ws.close_code, ws.close_reason) == (4321, "tired")


async def test_a_websocket_knows_how_it_was_closed() -> None:
    server = FakeServer(DAPHNE)
    ws: WebSocket[Any, Any] = WebSocket(server.scope, server.receive, server.send)
    await ws.accept()
    await ws.close(1012, "later")
    assert (ws.close_code, ws.close_reason) == (1012, "later")
    assert server.closed == (4012, "later")


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE], ids=lambda shape: shape.name)
async def test_a_handshake_that_was_refused_with_a_status_ended_with_that_in_the_four_thousands(shape: Shape) -> None:
    server = FakeServer(shape)
    ws: WebSocket[Any, Any] = WebSocket(server.scope, server.receive, server.send)
    await ws.send_denial_response(JSONResponse({}, 418))
    assert ws.close_code == 4418


# Scenarios


async def test_the_safe_loop_answers_bad_json_and_bad_fields_and_goes_on() -> None:
    @controller("/hooks")
    class Hooks:
        async def on_message(self, message: Say) -> str:
            return message.text

    @controller("/loop")
    class Loop:
        @websocket("/for")
        async def declared(self, ws: WebSocket[Say, str]) -> None:
            await ws.accept()
            async for message in ws:
                await ws.send_text(message.text)

        @websocket("/by-hand")
        async def by_hand(self, ws: WebSocket) -> None:
            await ws.accept()
            with contextlib.suppress(WebSocketDisconnect):
                while True:
                    try:
                        message = await ws.receive_json(type=Say)
                    except MessageError as error:
                        await ws.send_json({"type": "error", "detail": error.detail, "path": error.path})
                    else:
                        await ws.send_text(message.text)

    app = app_of(Hooks, Loop)
    for path in ("/hooks", "/loop/for", "/loop/by-hand"):
        client = await talk(app, path, "{", '{"type":"say","text":[]}', '{"type":"say"}', SAY)
        *errors, last = client.texts
        assert last == "hi"
        frames = [json.loads(error) for error in errors]
        assert [frame["type"] for frame in frames] == ["error"] * 3
        assert "not JSON" in frames[0]["detail"]
        assert frames[1]["path"] == "$.text"
        assert "`text`" in frames[2]["detail"]
        assert client.closed is None


@every_shape
@pytest.mark.parametrize("how", ["close", "raise", "returned to"])
async def test_the_client_sees_a_custom_close_code(shape: Shape, how: str) -> None:
    @controller("/")
    class Custom:
        async def on_connect(self, ws: WebSocket) -> None:
            await ws.accept()

        async def on_message(self, ws: WebSocket, message: Say) -> str | None:
            if how == "raise":
                raise WebSocketException(4007, "a code of ours")
            if how == "close":
                await ws.close(4007, "a code of ours")
            return None

        async def on_disconnect(self, code: int) -> None:
            log.append(code)

    log: Log = []
    client = await talk(app_of(Custom), "/", SAY, ending=(4008, ""), shape=shape)
    if how == "returned to":
        assert client.closed is None
        assert log == [1006 if shape.codes == "1006" else 4008]
    else:
        assert client.closed == (4007, "a code of ours")
        assert log == [4007]


@pytest.mark.parametrize("how", ["leaves", "raises", "stops", "refused"])
async def test_a_session_is_taken_out_of_its_set_however_it_ends(how: str) -> None:
    # T52
    @component
    class Sessions:
        def __init__(self) -> None:
            self.open: set[Any] = set()

    seen: list[Sessions] = []

    @controller("/", scope="websocket")
    class Session:
        def __init__(self, sessions: Sessions) -> None:
            self.sessions = sessions
            seen.append(sessions)

        @websocket("/")
        async def serve(self, ws: WebSocket) -> None:
            self.sessions.open.add(self)
            if how == "refused":
                raise HTTPException(403)
            await ws.accept()
            async for text in ws.iter_text():
                if text == "raises":
                    raise LookupError(text)

        async def on_disconnect(self, ws: WebSocket) -> None:
            await anyio.lowlevel.checkpoint()
            self.sessions.open.discard(self)

    client = Client() if how == "raises" else FakeServer()
    with anyio.fail_after(DEADLINE), contextlib.suppress(LookupError):
        async with anyio.create_task_group() as group:

            async def serve() -> None:
                with contextlib.suppress(LookupError):
                    await app_of(Session)(client.scope, client.receive, client.send)

            group.start_soon(serve)
            await soon(lambda: seen and (seen[0].open or client.status == 403))
            if how == "leaves":
                client.leave()
            elif how == "raises":
                client.say("raises")
            elif how == "stops":
                group.cancel_scope.cancel()
    assert len(seen) == 1
    assert seen[0].open == set()


# What is refused


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("on_mesage", "on_message"), ("on_messages", "on_message"), ("on_conect", "on_connect"),
        ("on_disconect", "on_disconnect"), ("on_disconnected", "on_disconnect"),
    ],
)  # fmt: skip
def test_a_hook_with_a_typing_error_is_refused(wrong: str, meant: str) -> None:
    async def helper(self: Any, ws: WebSocket) -> None:
        pass

    text = refused(
        hook(wrong, helper, on_message=silent) if meant != "on_message" else hook(wrong, helper, on_connect=helper)
    )
    assert repr(wrong) in text
    assert f"Did you mean {meant!r}?" in text
    assert "Known: on_connect, on_message, on_disconnect" in text


async def test_a_method_whose_name_is_near_a_hook_may_say_what_it_is_for() -> None:
    @controller("/")
    class Near:
        @on(Say)
        async def on_messages(self) -> str:
            return "fine"

        def on_board(self) -> None:
            pass

    assert (await talk(app_of(Near), "/", SAY)).texts == ["fine"]


@pytest.mark.parametrize("name", ["on_connect", "on_message", "on_disconnect"])
@pytest.mark.parametrize("kind", [staticmethod, classmethod, property])
def test_a_hook_that_is_no_method_is_refused(name: str, kind: Any) -> None:
    def function(self: Any) -> None:
        pass

    others = {"on_message": silent} if name != "on_message" else {"on_connect": plainly}
    text = refused(hook(name, kind(function), **others))
    assert repr(name) in text
    assert f"is no method, but a {kind.__name__}" in text


@pytest.mark.parametrize("name", ["on_connect", "on_message", "on_disconnect"])
def test_a_hook_without_self_is_refused(name: str) -> None:
    async def function() -> None:
        pass

    async def socket(ws: WebSocket) -> None:
        pass

    for one in (function, socket):
        others = {"on_message": silent} if name != "on_message" else {"on_connect": plainly}
        text = refused(hook(name, one, **others))
        assert "takes the controller first" in text
        assert "async def name(self, ...)" in text


def test_an_on_message_without_a_message_is_refused() -> None:
    async def on_message(self: Any, ws: WebSocket) -> None:
        pass

    text = refused(hook("on_message", on_message))
    assert "on_message has no parameter for the message" in text
    assert "`message: Say`" in text


def test_an_on_message_that_is_a_plain_generator_is_refused() -> None:
    def on_message(self: Any, message: str) -> Iterator[str]:
        yield message

    text = refused(hook("on_message", on_message))
    assert "a plain generator cannot reply" in text
    assert "`async def`" in text


def test_a_message_that_cannot_be_decoded_is_refused() -> None:
    class Opaque:
        pass

    async def on_message(self: Any, message: Opaque) -> None:
        pass

    text = refused(hook("on_message", on_message))
    assert "Opaque" in text
    assert "msgspec" in text


def test_two_methods_for_one_type_are_refused() -> None:
    @controller("/")
    class Twice:
        @on(Say, Move)
        async def one(self) -> None:
            pass

        @on(Stop, Say)
        async def two(self) -> None:
            pass

    text = refused(Twice)
    assert "two methods take Say: one and two" in text


def test_a_type_of_on_that_on_message_takes_too_is_refused() -> None:
    @controller("/")
    class Twice:
        @on(Say)
        async def one(self) -> None:
            pass

        async def on_message(self, message: Say | Move) -> None:
            pass

    assert "two methods take Say: one and on_message" in refused(Twice)


class SameTag(msgspec.Struct, tag="say"):
    """Another message of the tag."""


class OtherField(msgspec.Struct, tag="other", tag_field="kind"):
    """A message whose tag stands elsewhere."""


class Generic1(msgspec.Struct, Generic[T], tag="box"):
    """A message of any content."""

    content: T


@pytest.mark.parametrize("other", [Untagged, SameTag, OtherField, dict], ids=lambda one: one.__name__)
def test_types_that_cannot_be_told_apart_are_refused(other: Any) -> None:
    @controller("/")
    class Alike:
        @on(Say)
        async def one(self) -> None:
            pass

        @on(other)
        async def two(self) -> None:
            pass

    text = refused(Alike)
    assert "cannot be decoded" in text
    assert other.__name__ in text or "Say" in text


@pytest.mark.parametrize("declared", [None, Any])
def test_an_on_message_for_anything_beside_on_is_refused(declared: Any) -> None:
    async def unannotated(self: Any, message) -> None:  # type: ignore[no-untyped-def]
        pass

    async def anything(self: Any, message: Any) -> None:
        pass

    @on(Say)
    async def say(self: Any) -> None:
        pass

    function = {None: unannotated, Any: anything}[declared]
    text = refused(hook("on_message", function, say=say))
    assert f"{function.__name__} takes messages of any type beside methods with @on" in text
    assert "Annotate" in text


def test_an_annotation_that_is_not_the_type_of_on_is_refused() -> None:
    @controller("/")
    class Wrong:
        @on(Say)
        async def say(self, message: Move) -> None:
            pass

    text = refused(Wrong)
    assert "'message' is annotated with Move, but the method is @on(Say)" in text
    assert "Annotate it with Say" in text


def test_an_on_without_types_is_refused() -> None:
    for types in ((), (silent,)):
        with pytest.raises(SignatureError, match=r"@on names no type of messages.*@on\(Say\)"):
            on(*types)


@pytest.mark.parametrize("wrong", ["say", Say("an object"), 7], ids=repr)
def test_an_on_with_something_else_than_types_is_refused(wrong: Any) -> None:
    async def say(self: Any) -> None:
        pass

    with pytest.raises(SignatureError):
        app_of(hook("say", on(wrong)(say)))


def test_a_method_with_both_a_path_and_on_is_refused() -> None:
    @controller("/")
    class Both:
        @websocket("/")
        @on(Say)
        async def say(self, ws: WebSocket) -> None:
            pass

    text = refused(Both)
    assert "say" in text
    assert "Receive them in the @websocket method" in text


def test_a_struct_that_is_no_message_is_explained_as_a_parameter_of_the_hook() -> None:
    async def on_connect(self: Any, ws: WebSocket, note: Untagged) -> None:
        pass

    text = refused(hook("on_connect", on_connect))
    assert "parameter 'note' is a Struct" in text
    assert "Query()" in text


async def test_reading_in_on_message_itself_is_allowed() -> None:
    async def on_message(self: Any, ws: WebSocket, message: str) -> str:
        return message + await ws.receive_text()

    assert (await talk(app_of(hook("on_message", on_message)), "/", "a", "b", "c", "d")).texts == ["ab", "cd"]


async def test_a_reply_after_your_own_close_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def on_message(self: Any, ws: WebSocket, message: str) -> str:
        await ws.close(4001)
        return message

    client = await talk(app_of(hook("on_message", on_message)), "/", "a", raises=WebSocketStateError)
    assert client.closed == (4001, "")
    assert len(caplog.records) == 1
