"""The WebSocket by itself, without an App: what it tells, what it takes and gives, on servers of every shape."""

import gc
import logging
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette import responses as starlette

from asgiws import (
    HTMLResponse,
    JSONResponse,
    Limits,
    MessageError,
    ProtocolError,
    Response,
    WebSocket,
    WebSocketDisconnect,
    WebSocketState,
    WebSocketStateError,
)
from asgiws.messages import decoder_for
from tests.fakes import DAPHNE, DEADLINE, HYPERCORN, SHAPES, UVICORN, FakeServer, Shape, soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

Socket = WebSocket[Any, Any]
Call = Callable[[Socket], Awaitable[Any]]
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


class Say(msgspec.Struct, tag="say"):
    text: str


class Move(msgspec.Struct, tag="move"):
    x: int
    y: int = 0


def socket_on(server: FakeServer, **options: Any) -> Socket:
    return WebSocket(server.scope, server.receive, server.send, **options)


async def opened(shape: Shape = UVICORN, **options: Any) -> tuple[Socket, FakeServer]:
    server = FakeServer(shape)
    ws = socket_on(server, **options)
    await ws.accept()
    return ws, server


async def typed(shape: Shape = UVICORN, bad_messages: int = 10) -> tuple[WebSocket[Say | Move, Any], FakeServer]:
    return await opened(shape, decoder=decoder_for(Say | Move), limits=Limits(bad_messages=bad_messages))


def messages_sent(server: FakeServer) -> list[dict[str, Any]]:
    return [event for event in server.sent if event["type"] == "websocket.send"]


# What is known of it


@each_shape
async def test_what_is_known_of_a_connection_is_the_same_on_every_server(shape: Shape) -> None:
    server = FakeServer(
        shape,
        "/a b/é",
        query="k=1&k=%C3%A9&token=secret",
        headers=[
            ("Host", "Example.org:8443"),
            (b"x-name", b"\xe9"),
            ("X-Two", "1"),
            ("x-two", "2"),
            ("cookie", "a=1; b=2"),
        ],
        subprotocols=["chat", "a b", "", "v2.chat"],
    )
    ws = socket_on(server)
    assert (ws.url.scheme, ws.url.hostname, ws.url.port, ws.url.path) == ("ws", "example.org", 8443, "/a b/é")
    assert ws.url.query == "k=1&k=%C3%A9&token=secret"
    assert str(ws.url) == "ws://example.org:8443/a%20b/%C3%A9?k=1&k=%C3%A9&token=secret"
    assert "secret" not in repr(ws.url)
    assert ws.client is not None
    assert (ws.client.host, ws.client.port) == ("127.0.0.1", 51578)
    assert ws.headers["X-Name"] == "é"  # T33
    assert ws.headers.getlist("x-two") == ["1", "2"]
    assert ws.query_params.getlist("k") == ["1", "é"]
    assert ws.cookies == {"a": "1", "b": "2"}
    assert ws.subprotocols == ["chat", "v2.chat"]
    assert ws.path_params == {}
    assert ws.app is None
    assert ws.scope is server.scope


@each_shape
async def test_each_connection_has_its_own_state(shape: Shape) -> None:
    first, second = socket_on(FakeServer(shape)), socket_on(FakeServer(shape))
    first.state.user = "ann"
    assert first.state.user == "ann"
    assert first.scope["state"] == {"user": "ann"}
    assert not hasattr(second.state, "user")


def test_the_id_is_random_and_stays() -> None:
    ws, other = socket_on(FakeServer()), socket_on(FakeServer())
    assert re.fullmatch("[0-9a-f]{16}", ws.id)
    assert ws.id == ws.id != other.id


def test_app_and_path_parameters_are_those_given_else_those_of_the_scope() -> None:
    server = FakeServer(app="outer", path_params={"room": "1"})
    ws = socket_on(server)
    assert (ws.app, ws.path_params) == ("outer", {"room": "1"})
    ws = socket_on(server, app="inner", path_params={})
    assert (ws.app, ws.path_params) == ("inner", {})


def test_the_types_of_the_messages_stand_in_the_annotation() -> None:
    assert typing.get_origin(WebSocket[Say | Move, int]) is WebSocket
    assert typing.get_args(WebSocket[Say | Move, int]) == (Say | Move, int)
    three: Any = (int, str, bytes)
    with pytest.raises(TypeError, match=r"^WebSocket\[In, Out\] takes two types, got 3$"):
        WebSocket[three]


def test_the_type_of_the_messages_out_may_be_left_out() -> None:
    assert typing.get_args(WebSocket[int]) == (int, Any)


# Accept


@each_shape
async def test_accept_sends_subprotocol_and_headers(shape: Shape) -> None:
    # P7, T33: names in small letters, values as they are, one line each.
    server = FakeServer(shape, subprotocols=["v1", "chat"])
    ws = socket_on(server)
    await ws.accept("chat", [("Set-Cookie", "a=B"), (b"Set-Cookie", b"c=\xe9"), ("x", " padded\t")])
    assert server.sent == [
        {
            "type": "websocket.accept",
            "subprotocol": "chat",
            "headers": [(b"set-cookie", b"a=B"), (b"set-cookie", b"c=\xe9"), (b"x", b"padded")],
        }
    ]


async def test_accept_takes_headers_as_a_mapping() -> None:
    server = FakeServer()
    await socket_on(server).accept(headers={"X-Name": "é"})
    assert server.sent[0]["headers"] == [(b"x-name", b"\xe9")]


@pytest.mark.parametrize("subprotocol", ["other", "CHAT", "a b", "", "chat\r\n", "chaté", b"chat", 1], ids=repr)
@pytest.mark.parametrize("offered", [["chat", "a b", "", "chat\r\n", "chaté", b"chat"], [], None], ids=repr)
async def test_a_subprotocol_that_was_not_offered_or_is_no_token_is_refused(subprotocol: Any, offered: Any) -> None:
    # S10
    server = FakeServer(subprotocols=offered or [])
    if offered is None:
        del server.scope["subprotocols"]
    ws = socket_on(server)
    with pytest.raises(ProtocolError) as caught:
        await ws.accept(subprotocol)
    names = "'chat'" if offered else "none"
    assert str(caught.value) == f"accept a subprotocol that the client offered ({names}) or None, got {subprotocol!r}"
    assert not server.sent
    await ws.accept()
    assert server.status == 101


@given(
    offered=st.lists(
        st.one_of(st.text(max_size=5), st.binary(max_size=5), st.sampled_from(["chat", "a\r\nb"])), max_size=4
    ),
    more=st.text(max_size=5),
)
async def test_whatever_is_offered_only_a_token_is_answered(offered: list[Any], more: str) -> None:
    # S10
    for candidate in [*offered, more]:
        server = FakeServer(subprotocols=offered)
        ws = socket_on(server)
        good = isinstance(candidate, str) and TOKEN.fullmatch(candidate) and candidate in offered
        if good:
            await ws.accept(candidate)
            assert server.sent[0]["subprotocol"] == candidate
        else:
            with pytest.raises(ProtocolError):
                await ws.accept(candidate)
            assert not server.sent
        assert not server.choked


BAD_HEADERS: list[tuple[Any, Any, str]] = [
    ("na me", "a", "a header's name is letters, digits and hyphens, got 'na me'"),
    ("", "a", "a header's name is letters, digits and hyphens, got ''"),
    ("é", "a", "a header's name is letters, digits and hyphens, got 'é'"),
    (b"x:", b"a", "a header's name is letters, digits and hyphens, got b'x:'"),
    (1, "a", "a header's name is letters, digits and hyphens, got 1"),
    ("x", "a\r\nset-cookie: b", "the value of header 'x' has a line break or another control character"),
    ("x", b"a\x00", "the value of header 'x' has a line break or another control character"),
    ("x", "a\n", "the value of header 'x' has a line break or another control character"),
    ("x", "€", "the value of header 'x' is not latin-1 text: str"),
    ("x", 1, "the value of header 'x' is not latin-1 text: int"),
    ("x", None, "the value of header 'x' is not latin-1 text: NoneType"),
    (
        "Sec-WebSocket-Protocol",
        "a",
        "the header 'sec-websocket-protocol' is the server's: pass accept(subprotocol=...)",
    ),
]


@pytest.mark.parametrize(("name", "value", "text"), BAD_HEADERS)
async def test_a_header_that_cannot_be_sent_is_refused(name: Any, value: Any, text: str) -> None:
    # P7, S19
    server = FakeServer()
    ws = socket_on(server)
    with pytest.raises(ProtocolError) as caught:
        await ws.accept(headers=[(name, value)])
    assert str(caught.value) == text
    assert not server.sent
    await ws.accept()


@given(
    headers=st.lists(
        st.tuples(
            st.one_of(
                st.text(max_size=8), st.binary(max_size=8), st.sampled_from(["Set-Cookie", "sec-websocket-protocol"])
            ),
            st.one_of(st.text(max_size=12), st.binary(max_size=12), st.sampled_from(["a\r\nb: c", "\x85", " \t "])),
        ),
        max_size=3,
    )
)
async def test_whatever_the_headers_the_server_never_chokes(headers: list[tuple[Any, Any]]) -> None:
    # S19
    for accepting in (True, False):
        server = FakeServer()
        ws = socket_on(server)
        try:
            if accepting:
                await ws.accept(headers=headers)
            else:
                await ws.send_denial_response(Response("no", 403, headers))
        except ProtocolError:
            assert not server.sent
        assert not server.choked


# Messages in

KINDS: list[tuple[dict[str, Any], str | bytes]] = [
    ({"text": ""}, ""),
    ({"text": "é😀"}, "é😀"),
    ({"text": "", "bytes": None}, ""),
    ({"bytes": None, "text": "a"}, "a"),
    ({"bytes": b""}, b""),
    ({"bytes": b"\xff"}, b"\xff"),
    ({"bytes": b"", "text": None}, b""),
    ({"text": None, "bytes": b"a", "more": 1}, b"a"),
    ({"text": "a", "more": 1}, "a"),
]


@pytest.mark.parametrize(("keys", "message"), KINDS)
async def test_a_message_is_what_the_server_gave(keys: dict[str, Any], message: str | bytes) -> None:
    # P4, P12, T21: "" is a message; other keys do not matter.
    ws, server = await opened()
    event = {"type": "websocket.receive", **keys}
    reads: list[Call] = [lambda ws: anext(aiter(ws))]
    if isinstance(message, str):
        reads += [lambda ws: ws.receive_text(), lambda ws: anext(ws.iter_text())]
    else:
        reads += [lambda ws: ws.receive_bytes(), lambda ws: anext(ws.iter_bytes())]
    for read in reads:
        server.put(event)
        assert await read(ws) == message
    server.put(event)
    assert await ws.receive() == event


READS: dict[str, Call] = {
    "receive_text": lambda ws: ws.receive_text(),
    "receive_bytes": lambda ws: ws.receive_bytes(),
    "receive_json": lambda ws: ws.receive_json(),
    "receive_json text": lambda ws: ws.receive_json(mode="text"),
    "receive_json binary": lambda ws: ws.receive_json(mode="binary"),
    "iter_text": lambda ws: anext(ws.iter_text()),
    "iter_bytes": lambda ws: anext(ws.iter_bytes()),
    "iter_json": lambda ws: anext(ws.iter_json()),
    "iter_json text": lambda ws: anext(ws.iter_json(mode="text")),
    "iter_json binary": lambda ws: anext(ws.iter_json(mode="binary")),
    "async for": lambda ws: anext(aiter(ws)),
}


@pytest.mark.parametrize("keys", [{}, {"text": None, "bytes": None}, {"text": "1", "bytes": b"1"}], ids=repr)
@pytest.mark.parametrize("decoder", [None, decoder_for(int)], ids=["plain", "typed"])
async def test_an_event_with_not_just_one_of_text_and_bytes_is_the_servers_fault(
    keys: dict[str, Any], decoder: Any
) -> None:
    # P4, T21: raised, and not told to the client as a fault of its own.
    told: dict[str, str] = {}
    for name, read in READS.items():
        ws, server = await opened(decoder=decoder)
        server.put({"type": "websocket.receive", **keys})
        server.leave()
        try:
            await read(ws)
        except ProtocolError as error:
            told[name] = str(error)
        except (MessageError, StopAsyncIteration) as error:
            told[name] = repr(error)
        assert not messages_sent(server)
    text = "the server sent a websocket.receive that has not just one of 'text' and 'bytes'"
    # iter_text, the hottest path, does not look for bytes beside a text.
    looking = [name for name in READS if name != "iter_text" or keys.get("text") is None]
    assert told == dict.fromkeys(looking, text)


@each_shape
@pytest.mark.parametrize("read", [*READS.values()][:10], ids=[*READS][:10])
async def test_a_message_of_the_other_kind_is_an_error_and_the_next_one_is_read(shape: Shape, read: Call) -> None:
    name = next(name for name in READS if READS[name] is read)
    wanted = "binary" if "b" in name.split("_")[1] else "text"
    ws, server = await opened(shape)
    server.say("1" if wanted == "binary" else b"1")
    server.say(b"2" if wanted == "binary" else "2")
    if name in ("receive_json", "iter_json"):  # these take both kinds
        assert [await read(ws), await read(ws)] == [1, 2]
        return
    found = "text" if wanted == "binary" else "binary"
    with pytest.raises(MessageError) as caught:
        await read(ws)
    assert str(caught.value) == f"expected a {wanted} message, got a {found} one"
    assert caught.value.code == 1003
    assert await read(ws) in ("2", b"2", 2)


@each_shape
async def test_the_messages_come_as_text_bytes_or_json(shape: Shape) -> None:
    ws, server = await opened(shape)
    for message in ("a", b"b", '{"c": [1, null]}', b"1.5", '"d"'):
        server.say(message)
    assert await ws.receive_text() == "a"
    assert await ws.receive_bytes() == b"b"
    assert await ws.receive_json() == {"c": [1, None]}
    assert await ws.receive_json(mode="binary") == 1.5
    assert await ws.receive_json(str, mode="text") == "d"


NO_JSON: list[str | bytes] = ["", "{", "nul", "[1,]", b"\xff", b'"\xc3"', "\ud800", "[" * 100_000]


@pytest.mark.parametrize("message", NO_JSON, ids=lambda message: repr(message[:8]))
@pytest.mark.parametrize("read", ["receive_json", "iter_json"])
async def test_what_is_no_json_is_a_message_error(message: str | bytes, read: str) -> None:
    # T23
    ws, server = await opened()
    server.say(message)
    server.say("1")
    with pytest.raises(MessageError) as caught:
        await READS[read](ws)
    assert caught.value.code == 1007
    assert caught.value.path is None
    assert str(caught.value).startswith("the message is not") or "nested too deeply" in str(caught.value)
    assert await READS[read](ws) == 1


WRONG: list[tuple[str | bytes, str, str | None, Any]] = [
    ('{"type":"move","x":"1"}', "expected `int`, got `str`", "$.x", "move"),
    (b'{"type":"move","x":1,"y":null}', "expected `int`, got `null`", "$.y", "move"),
    ('{"type":"say"}', "object missing required field `text`", None, "say"),
    ('{"type":"shout"}', "unknown type 'shout', expected one of 'move', 'say'", "$.type", None),
    ("{}", "object missing required field `type`; expected one of 'move', 'say' in `type`", None, None),
    ("[]", "expected `object`, got `array`; expected one of 'move', 'say' in `type`", None, None),
    ("1", "expected `object`, got `int`; expected one of 'move', 'say' in `type`", None, None),
    ('"x"', "expected `object`, got `str`; expected one of 'move', 'say' in `type`", None, None),
    ("null", "expected `object`, got `null`; expected one of 'move', 'say' in `type`", None, None),
]


@pytest.mark.parametrize(("message", "detail", "path", "tag"), WRONG)
async def test_valid_json_of_the_wrong_shape_tells_what_was_expected(
    message: str | bytes, detail: str, path: str | None, tag: Any
) -> None:
    # T24
    ws, server = await typed()
    for call in (
        ws.receive_json(),
        ws.receive_json(Say | Move),
        anext(ws.iter_json()),
        anext(ws.iter_json(Say | Move)),
    ):
        server.say(message)
        with pytest.raises(MessageError) as caught:
            await call
        error = caught.value
        tags_sorted = re.sub(r"'say', 'move'", "'move', 'say'", error.detail)
        assert (tags_sorted, error.path, error.tag, error.code) == (detail, path, tag, 1007)
    assert not messages_sent(server)


async def test_the_text_of_a_message_error_is_that_of_the_design() -> None:
    ws, server = await typed()
    server.say('{"type":"move","x":"1"}')
    with pytest.raises(MessageError) as caught:
        await ws.receive_json()
    assert str(caught.value) == "expected `int`, got `str` - at `$.x` in message 'move'"


@pytest.mark.parametrize("decoder", [None, decoder_for(Say | Move)], ids=["plain", "typed"])
async def test_a_type_asked_for_goes_before_the_declared_one(decoder: Any) -> None:
    ws, server = await opened(decoder=decoder)
    for _ in range(3):
        server.say('{"type":"say","text":"a"}')
    assert await ws.receive_json() == (Say("a") if decoder else {"type": "say", "text": "a"})
    assert await ws.receive_json(dict[str, str]) == {"type": "say", "text": "a"}
    async for message in ws.iter_json(Say):
        assert message == Say("a")
        break


async def test_a_type_that_cannot_be_decoded_is_refused_before_a_message_is_read() -> None:
    ws, server = await opened()
    server.say("1")
    for read in (ws.receive_json, ws.iter_json):
        with pytest.raises(TypeError):
            read(lambda: None)
    assert await ws.receive_json() == 1


@pytest.mark.parametrize("mode", ["bytes", "TEXT", ""])
async def test_a_mode_that_does_not_exist_is_refused(mode: Any) -> None:
    ws, server = await opened()
    server.say("1")
    with pytest.raises(ValueError, match="mode"):
        await ws.receive_json(mode=mode)
    with pytest.raises(ValueError, match="mode"):
        await anext(ws.iter_json(mode=mode))
    with pytest.raises(ValueError, match="mode"):
        await ws.send_json(1, mode=mode)
    assert await ws.receive_json() == 1
    assert not messages_sent(server)


# Iterators

ITERATORS: dict[str, tuple[Callable[[Socket], AsyncIterator[Any]], list[str | bytes], list[Any]]] = {
    "iter_text": (lambda ws: ws.iter_text(), ["", "a"], ["", "a"]),
    "iter_bytes": (lambda ws: ws.iter_bytes(), [b"", b"a"], [b"", b"a"]),
    "iter_json": (lambda ws: ws.iter_json(), ["1", b"[2]"], [1, [2]]),
    "iter_json text": (lambda ws: ws.iter_json(mode="text"), ["1", "[2]"], [1, [2]]),
    "iter_json binary": (lambda ws: ws.iter_json(int, mode="binary"), [b"1", b"2"], [1, 2]),
    "async for": (aiter, ["", b"", "a"], ["", b"", "a"]),
}
each_iterator = pytest.mark.parametrize(("make", "said", "found"), ITERATORS.values(), ids=ITERATORS)


@each_shape
@each_iterator
async def test_an_iterator_gives_every_message_and_ends_with_the_connection(
    shape: Shape, make: Callable[[Socket], AsyncIterator[Any]], said: list[str | bytes], found: list[Any]
) -> None:
    # T1: and then never asks the server again.
    ws, server = await opened(shape)
    for message in said:
        server.say(message)
    server.leave()
    with anyio.fail_after(DEADLINE):
        assert [message async for message in make(ws)] == found
        assert [message async for message in make(ws)] == []
    assert server.calls_after_disconnect == 0
    assert ws.client_state is WebSocketState.DISCONNECTED


@each_iterator
async def test_an_iterator_that_is_left_early_leaves_nothing_behind(
    make: Callable[[Socket], AsyncIterator[Any]], said: list[str | bytes], found: list[Any]
) -> None:
    # A generator would have to be closed: on trio that is a ResourceWarning, which is an error here.
    ws, server = await opened()
    for message in said:
        server.say(message)
    async for message in make(ws):
        assert message == found[0]
        break
    gc.collect()
    server.leave()
    assert [message async for message in make(ws)] == found[1:]


@each_iterator
async def test_an_iterator_ends_with_your_own_close(
    make: Callable[[Socket], AsyncIterator[Any]], said: list[str | bytes], found: list[Any]
) -> None:
    ws, server = await opened()
    ended: list[Any] = []

    async def read() -> None:
        ended.append([message async for message in make(ws)])

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await soon(lambda: server._receiving)
            await ws.close()
            server.say(said[0])  # it was under way
            server.leave(1005)
        assert [message async for message in make(ws)] == []
    assert ended == [found[:1]]


@each_iterator
async def test_close_inside_a_loop_ends_it(
    make: Callable[[Socket], AsyncIterator[Any]], said: list[str | bytes], found: list[Any]
) -> None:
    ws, server = await opened()
    for message in said:
        server.say(message)
    seen = []
    async for message in make(ws):
        seen.append(message)
        await ws.close()
    assert seen == found[:1]
    assert server.types == ["websocket.accept", "websocket.close"]


@each_iterator
@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("over")], ids=repr)
async def test_a_broken_connection_ends_an_iterator(
    make: Callable[[Socket], AsyncIterator[Any]], said: list[str | bytes], found: list[Any], error: Exception
) -> None:
    ws, server = await opened()
    for message in said:
        server.say(message)
    server.put(error)
    assert [message async for message in make(ws)] == found
    with pytest.raises(WebSocketDisconnect) as caught:
        await ws.receive_text()
    assert caught.value.code == 1006


@each_iterator
async def test_a_bug_of_the_server_comes_out_of_an_iterator(
    make: Callable[[Socket], AsyncIterator[Any]], said: list[str | bytes], found: list[Any]
) -> None:
    ws, server = await opened()
    error = KeyError("a bug")
    server.put(error)
    server.say(said[0])
    iterator = make(ws)
    with pytest.raises(KeyError) as caught:
        await anext(iterator)
    assert caught.value is error
    assert await anext(iterator) == found[0]


# Typed messages: the forgiving loop

GOOD: list[tuple[str | bytes, Say | Move]] = [
    ('{"type":"say","text":""}', Say("")),
    (b'{"type":"move","x":1}', Move(1)),
    ('{"y":2,"type":"move","x":1,"more":[]}', Move(1, 2)),
]
BAD: list[str | bytes] = [*NO_JSON, *(row[0] for row in WRONG)]


@each_shape
async def test_a_typed_loop_gives_decoded_messages_of_both_kinds(shape: Shape) -> None:
    ws, server = await typed(shape)
    for said, _ in GOOD:
        server.say(said)
    server.leave()
    assert [message async for message in ws] == [message for _, message in GOOD]
    assert not messages_sent(server)


@each_shape
async def test_a_bad_message_is_answered_and_skipped(shape: Shape) -> None:
    ws, server = await typed(shape)
    for bad in BAD:
        server.sent.clear()
        server.say(bad)
        server.say('{"type":"say","text":"a"}')
        with anyio.fail_after(DEADLINE):
            assert await anext(aiter(ws)) == Say("a")
        [event] = messages_sent(server)
        frame = msgspec.json.decode(event["text"])
        assert frame.pop("type") == "error"
        assert isinstance(frame.pop("detail"), str)
        assert set(frame) <= {"path"}
    assert not server.choked


@pytest.mark.parametrize(
    ("bad", "frame"),
    [
        ('{"type":"move","x":"1"}', {"detail": "expected `int`, got `str` in 'move'", "path": "$.x"}),
        ("{", {"detail": "the message is not JSON: input data was truncated"}),
        (b"\xff", {"detail": "the message is not JSON: JSON is malformed: invalid character (byte 0)"}),
    ],
)
async def test_the_error_frame_tells_what_is_wrong_and_where(bad: str | bytes, frame: dict[str, str]) -> None:
    ws, server = await typed()
    server.say(bad)
    server.say(GOOD[0][0])
    await anext(aiter(ws))
    assert msgspec.json.decode(server.texts[0]) == {"type": "error", **frame}


async def test_an_unknown_tag_is_answered_with_the_tags_that_are_known() -> None:
    ws, server = await typed()
    server.say('{"type":"shout"}')
    server.say(GOOD[0][0])
    await anext(aiter(ws))
    frame = msgspec.json.decode(server.texts[0])
    assert "'shout'" in frame["detail"]
    assert "'say'" in frame["detail"]
    assert "'move'" in frame["detail"]
    assert frame["path"] == "$.type"


@each_shape
@pytest.mark.parametrize("limit", [1, 3])
async def test_too_many_bad_messages_in_a_row_close_with_1007(shape: Shape, limit: int) -> None:
    ws, server = await typed(shape, limit)
    for _ in range(limit + 2):
        server.say('{"type":"move","x":"1"}')
    with pytest.raises(MessageError) as caught:
        await anext(aiter(ws))
    assert len(messages_sent(server)) == limit
    code = 4007 if shape is DAPHNE else 1007
    assert server.closed == (code, "expected `int`, got `str` - at `$.x` in message 'move'")
    assert caught.value.code == 1007
    with pytest.raises(WebSocketStateError, match="you closed it with 1007"):
        await ws.send_text("a")
    assert not server.choked


@each_shape
@pytest.mark.parametrize("good", GOOD, ids=repr)
async def test_a_good_message_forgives_the_bad_ones_before_it(shape: Shape, good: tuple[str | bytes, Any]) -> None:
    ws, server = await typed(shape, 3)
    for _ in range(4):
        for message in ("{", b"{", good[0]):
            server.say(message)
    server.leave(1005)
    server._gone = False  # the close frame is still under way while the messages are answered
    assert [message async for message in ws] == [good[1]] * 4
    assert len(messages_sent(server)) == 8
    assert server.closed is None


async def test_the_count_of_bad_messages_goes_on_in_the_next_loop() -> None:
    ws, server = await typed(bad_messages=3)
    for message in ("{", "{", GOOD[0][0], "{", "{", "{"):
        server.say(message)
    async for _ in ws:
        break
    with pytest.raises(MessageError):
        await anext(aiter(ws))
    assert len(messages_sent(server)) == 5


async def test_a_good_message_forgives_a_bad_one_after_which_the_reader_was_cancelled() -> None:
    ws, server = await typed(bad_messages=2)
    server.say("{")

    async def read() -> None:
        await anext(aiter(ws))

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await server.until(messages_sent)
            await soon(lambda: server._receiving)
            group.cancel_scope.cancel()
    for message in (GOOD[0][0], "{", GOOD[0][0]):
        server.say(message)
    async for _ in ws:
        if not server._inbox:
            break
    assert len(messages_sent(server)) == 2
    assert server.closed is None


@each_shape
async def test_a_client_that_left_after_a_bad_message_ends_the_loop(shape: Shape) -> None:
    # T3: whatever the server makes of the error frame.
    ws, server = await typed(shape)
    server.say("{")
    server.leave()
    with anyio.fail_after(DEADLINE):
        assert [message async for message in ws] == []
    assert server.calls_after_disconnect == 0
    assert not server.choked


async def test_a_close_by_another_task_while_an_error_frame_waits_ends_the_loop() -> None:
    ws, server = await typed()
    server.say("{")
    found: list[Any] = []

    async def read() -> None:
        found.append([message async for message in ws])

    server.hold = anyio.Event()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(ws.send_text, "first")
            await soon(lambda: server.sending)
            group.start_soon(ws.close)
            await soon(lambda: ws._queue)
            group.start_soon(read)
            await soon(lambda: len(ws._queue or ()) == 2 or found)
            server.hold.set()
    assert found == [[]]
    assert server.texts == ["first"]
    assert server.types[-1] == "websocket.close"


async def test_a_second_reader_that_comes_while_an_error_frame_waits_ends_the_loop_with_an_error() -> None:
    ws, server = await typed()
    server.say("{")
    found: list[Any] = []

    async def loop() -> None:
        with pytest.raises(WebSocketStateError, match="another task is already receiving"):
            await anext(aiter(ws))
        server.say("a")

    async def read() -> None:
        found.append(await ws.receive_text())

    server.hold = anyio.Event()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            await soon(lambda: server.sending)
            group.start_soon(read)
            await soon(lambda: server._receiving)
            server.hold.set()
    assert found == ["a"]


@given(messages=st.lists(st.one_of(st.text(max_size=20), st.binary(max_size=20), st.sampled_from(BAD)), max_size=6))
@example(messages=['{"type":1e400}', '{"type":true}', '{"type":{"type":"say"}}', '{"type":"say","type":"move"}'])
async def test_whatever_a_client_says_the_answer_is_an_error_frame_or_a_message(messages: list[str | bytes]) -> None:
    for shape in (UVICORN, HYPERCORN):
        ws, server = await typed(shape, 1000)
        for said in (*messages, GOOD[0][0]):
            server.say(said)
        found = []
        async for message in ws:
            found.append(message)
            if len(found) + len(messages_sent(server)) > len(messages):
                break
        assert found[-1] == GOOD[0][1]
        for text in server.texts:
            assert msgspec.json.decode(text)["type"] == "error"
        assert not server.choked


# Messages out


@each_shape
async def test_messages_go_out_as_text_or_bytes(shape: Shape) -> None:
    # T22: "" and b"" are messages.
    ws, server = await opened(shape)
    await ws.send_text("")
    await ws.send_text("é😀")
    await ws.send_bytes(b"")
    await ws.send_bytes(bytearray(b"a"))
    await ws.send_bytes(memoryview(b"abcd")[::2])
    await ws.send_json({"a": [1, None]})
    await ws.send_json(Move(1, 2), mode="binary")
    await ws.send_json("")
    assert messages_sent(server) == [
        {"type": "websocket.send", "text": ""},
        {"type": "websocket.send", "text": "é😀"},
        {"type": "websocket.send", "bytes": b""},
        {"type": "websocket.send", "bytes": b"a"},
        {"type": "websocket.send", "bytes": b"ac"},
        {"type": "websocket.send", "text": '{"a":[1,null]}'},
        {"type": "websocket.send", "bytes": b'{"type":"move","x":1,"y":2}'},
        {"type": "websocket.send", "text": '""'},
    ]
    assert not server.choked


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda ws: ws.send_text("a\ud800"),
            ProtocolError,
            "a text message must be UTF-8, but at 1 stands half a surrogate pair",
        ),
        (
            lambda ws: ws.send_text(b"a"),
            TypeError,
            "a text message is a str, got bytes; use send_bytes() or send_json()",
        ),
        (
            lambda ws: ws.send_text(None),
            TypeError,
            "a text message is a str, got NoneType; use send_bytes() or send_json()",
        ),
        (lambda ws: ws.send_text({}), TypeError, "a text message is a str, got dict; use send_bytes() or send_json()"),
        (
            lambda ws: ws.send_bytes("a"),
            TypeError,
            "a binary message is bytes, got str; use send_text() or send_json()",
        ),
        (lambda ws: ws.send_bytes(3), TypeError, "a binary message is bytes, got int; use send_text() or send_json()"),
        (lambda ws: ws.send_json("\ud800"), ProtocolError, "surrogate"),
        (lambda ws: ws.send_json({"a": ["\udfff"]}, mode="binary"), ProtocolError, "surrogate"),
        (lambda ws: ws.send_json(object()), TypeError, "object"),
    ],
    ids=range(9),
)
async def test_what_no_frame_can_carry_is_refused_and_nothing_is_sent(call: Call, error: Any, text: str) -> None:
    # P25
    ws, server = await opened()
    with pytest.raises(error, match=re.escape(text)):
        await call(ws)
    assert not messages_sent(server)
    await ws.send_text("a")


@given(text=st.text())
async def test_any_text_arrives_as_it_is_or_is_refused(text: str) -> None:
    ws, server = await opened()
    try:
        await ws.send_text(text)
    except ProtocolError:
        assert any("\ud800" <= char <= "\udfff" for char in text)
        assert not server.texts
    else:
        assert server.texts == [text]
    assert not server.choked


UTF8 = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | UTF8,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UTF8, inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON, mode=st.sampled_from(["text", "binary"]))
async def test_json_that_goes_out_comes_in_again(value: Any, mode: Any) -> None:
    for shape in (UVICORN, HYPERCORN):
        ws, server = await opened(shape)
        await ws.send_json(value, mode=mode)
        [event] = messages_sent(server)
        server.say(event["text"] if mode == "text" else event["bytes"])
        assert await ws.receive_json(mode=mode) == value


# Raw events


async def test_raw_events_go_the_same_way() -> None:
    server = FakeServer(subprotocols=["chat"])
    ws = socket_on(server)
    await ws.send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"X", b"1")]})
    await ws.send({"type": "websocket.send", "text": "", "bytes": None})
    await ws.send({"type": "websocket.send", "bytes": bytearray(b"a")})
    await ws.send({"type": "websocket.close", "code": 4000, "reason": "é" * 62})
    assert server.sent == [
        {"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x", b"1")]},
        {"type": "websocket.send", "text": ""},
        {"type": "websocket.send", "bytes": b"a"},
        {"type": "websocket.close", "code": 4000, "reason": "é" * 61},
    ]
    server = FakeServer()
    ws = socket_on(server)
    await ws.send({"type": "websocket.accept"})
    await ws.send({"type": "websocket.close"})
    assert server.closed == (1000, "")


@pytest.mark.parametrize(
    ("event", "error", "text"),
    [
        ({"type": "websocket.send"}, ProtocolError, "websocket.send carries either 'text' or 'bytes'"),
        ({"type": "websocket.send", "text": None, "bytes": None}, ProtocolError, "either 'text' or 'bytes'"),
        ({"type": "websocket.send", "text": "", "bytes": b""}, ProtocolError, "either 'text' or 'bytes'"),
        ({"type": "websocket.send", "text": b"a"}, TypeError, "a text message is a str, got bytes"),
        ({"type": "websocket.send", "text": "\ud800"}, ProtocolError, "half a surrogate pair"),
        ({"type": "websocket.send", "bytes": "a"}, TypeError, "a binary message is bytes, got str"),
        ({"type": "websocket.close", "code": 1006}, ProtocolError, "got 1006"),
        ({"type": "websocket.close", "code": None}, ProtocolError, "got None"),
        ({"type": "websocket.accept"}, WebSocketStateError, "already accepted"),
        ({}, ProtocolError, "got None"),
        ({"type": "websocket.receive"}, ProtocolError, "got 'websocket.receive'"),
        ({"type": "http.response.start", "status": 403}, ProtocolError, "use send_denial_response()"),
        ({"type": "websocket.http.response.start", "status": 403}, ProtocolError, "use send_denial_response()"),
    ],
    ids=repr,
)
async def test_a_raw_event_that_cannot_be_sent_is_refused(event: dict[str, Any], error: Any, text: str) -> None:
    # P2, P4, T30
    ws, server = await opened()
    with pytest.raises(error, match=re.escape(text)):
        await ws.send(event)
    assert server.types == ["websocket.accept"]
    await ws.send_text("a")


# Denial


async def stream() -> AsyncIterator[bytes]:
    for part in (b"a", b"", b"bc"):
        yield part


def answering(*events: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)

    return app


DENIALS: dict[str, tuple[Callable[[], Any], int, bytes, list[tuple[bytes, bytes]]]] = {
    "plain": (lambda: Response("é", 401, {"X-Name": "A"}), 401, "é".encode(), [(b"x-name", b"A")]),
    "empty": (lambda: Response(status_code=403), 403, b"", []),
    "no content": (lambda: Response("a", 204), 204, b"", []),
    "json": (lambda: JSONResponse({"a": 1}, 418), 418, b'{"a":1}', [(b"content-type", b"application/json")]),
    "html": (lambda: HTMLResponse("a", 503), 503, b"a", [(b"content-type", b"text/html; charset=utf-8")]),
    "cookies": (
        lambda: Response("a", 403, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]),
        403,
        b"a",
        [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
    ),
    "chunked": (
        lambda: Response("a", 403, [("Transfer-Encoding", "chunked"), ("Content-Length", "99")]),
        403,
        b"a",
        [],
    ),
    "starlette": (
        lambda: starlette.PlainTextResponse("no", 401),
        401,
        b"no",
        [(b"content-type", b"text/plain; charset=utf-8")],
    ),
    "starlette json": (
        lambda: starlette.JSONResponse({"a": 1}, 403),
        403,
        b'{"a":1}',
        [(b"content-type", b"application/json")],
    ),
    "starlette stream": (lambda: starlette.StreamingResponse(stream(), 403), 403, b"abc", []),
    "http app": (
        lambda: answering(
            {"type": "http.response.start", "status": 404, "headers": [[b"X", b"1"]]},
            {"type": "http.response.body", "body": b"a", "more_body": True},
            {"type": "http.response.body"},
        ),
        404,
        b"a",
        [(b"x", b"1")],
    ),
    "no body": (lambda: answering({"type": "websocket.http.response.start", "status": 403}), 403, b"", []),
}
each_denial = pytest.mark.parametrize(("make", "status", "body", "headers"), DENIALS.values(), ids=DENIALS)


@each_shape
@each_denial
async def test_a_denial_is_one_start_and_one_body_with_its_length(
    shape: Shape, make: Callable[[], Any], status: int, body: bytes, headers: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # P8, T28, T30; where the server lacks the extension, a close and a line in the log.
    caplog.set_level(logging.INFO, "asgiws")
    server = FakeServer(shape, "/a\nb", query="token=secret")
    ws = socket_on(server)
    with anyio.fail_after(DEADLINE):
        await ws.send_denial_response(make())
    assert not server.choked
    assert ws.application_state is WebSocketState.DISCONNECTED
    if shape.denial:
        assert server.types == ["websocket.http.response.start", "websocket.http.response.body"]
        assert (server.status, server.body) == (status, body)
        assert server.sent[0]["headers"] == [*headers, (b"content-length", b"%d" % len(body))]
        assert not server.sent[1].get("more_body")
        assert not caplog.records
    else:
        assert server.status == 403
        assert server.closed == (4000 + status, f"HTTP {status}")
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert caplog.messages == [
            f"{ws.id} '/a\\nb' is refused with {status}, but the server cannot send it: the client sees a plain 403"
        ]


@pytest.mark.parametrize("extensions", [None, {}, {"tls": {}}, "absent"], ids=repr)
async def test_without_the_extension_a_denial_is_a_close(extensions: Any) -> None:
    # P8, T28
    server = FakeServer()
    server.scope["extensions"] = extensions
    if extensions == "absent":
        del server.scope["extensions"]
    await socket_on(server).send_denial_response(Response("no", 401))
    assert server.types == ["websocket.close"]
    assert server.status == 403


@each_shape
async def test_a_denial_after_accept_is_refused_and_the_connection_stays_open(shape: Shape) -> None:
    ws, server = await opened(shape)
    with pytest.raises(WebSocketStateError) as caught:
        await ws.send_denial_response(Response("no", 401))
    assert str(caught.value) == "cannot refuse: this WebSocket is already accepted; close() ends it"
    await ws.send_text("a")
    assert server.texts == ["a"]


async def test_a_denial_is_an_answer_also_if_the_server_tells_of_the_end_before_its_send_returns() -> None:
    # hypercorn does, and the watchdog may be reading.
    over = anyio.Event()
    events = [{"type": "websocket.connect"}]
    sent = []

    async def receive() -> Any:
        if events:
            return events.pop()
        await over.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(event: Any) -> None:
        sent.append(event["type"])
        if event["type"] == "websocket.http.response.body":
            over.set()
            await soon(lambda: ws.client_state is WebSocketState.DISCONNECTED)

    ws: WebSocket[Any, Any] = WebSocket(FakeServer().scope, receive, send)
    await ws.receive()
    ws.read_ahead()
    await ws.send_denial_response(Response("no", 401))
    assert ws.application_state is WebSocketState.DISCONNECTED
    assert ws.close_code == 4401
    with pytest.raises(WebSocketStateError, match=r"^cannot refuse: this WebSocket is refused"):
        await ws.send_denial_response(Response("no", 402))
    await ws.close()
    assert sent == ["websocket.http.response.start", "websocket.http.response.body"]


@each_shape
async def test_a_handshake_is_refused_once(shape: Shape) -> None:
    server = FakeServer(shape)
    ws = socket_on(server)
    await ws.send_denial_response(Response("no", 401))
    sent = list(server.sent)
    with pytest.raises(WebSocketStateError, match=r"^cannot accept: this WebSocket is refused"):
        await ws.accept()
    with pytest.raises(WebSocketStateError, match=r"^cannot refuse: this WebSocket is refused"):
        await ws.send_denial_response(Response("no", 402))
    await ws.close()
    assert server.sent == sent


@each_shape
async def test_a_response_that_sends_nothing_is_refused_and_the_handshake_can_still_be_answered(shape: Shape) -> None:
    server = FakeServer(shape)
    ws = socket_on(server)
    silent = answering()
    with pytest.raises(ProtocolError) as caught:
        await ws.send_denial_response(silent)
    assert str(caught.value) == "a denial response must send a status, function sent none"
    assert not server.sent
    await ws.accept()
    assert server.status == 101


@each_shape
async def test_what_a_response_raises_comes_out_and_the_handshake_can_still_be_answered(shape: Shape) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise KeyError("a bug")

    server = FakeServer(shape)
    ws = socket_on(server)
    with pytest.raises(KeyError):
        await ws.send_denial_response(broken)
    assert not server.sent
    await ws.accept()


@pytest.mark.parametrize("shape", [UVICORN, DAPHNE], ids=lambda shape: shape.name)
@pytest.mark.parametrize("status", [99, 101, 600, 1000])
async def test_a_status_that_no_server_can_send_is_refused(shape: Shape, status: int) -> None:
    server = FakeServer(shape)
    ws = socket_on(server)
    with pytest.raises(ProtocolError):
        await ws.send_denial_response(Response("no", status))
    assert not server.sent
    assert not server.choked
    await ws.accept()


async def test_a_response_may_wait_for_the_client_to_leave_while_it_sends() -> None:
    # Some responses listen for a disconnect beside what they send; nothing is read from the server for them.
    async def careful(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await send({"type": "http.response.start", "status": 403})
            await send({"type": "http.response.body", "body": b"no"})
            group.cancel_scope.cancel()

    server = FakeServer()
    with anyio.fail_after(DEADLINE):
        await socket_on(server).send_denial_response(careful)
    assert (server.status, server.body) == (403, b"no")


async def test_the_declared_messages_are_decoded_without_an_app_too() -> None:
    server = FakeServer()
    ws = WebSocket[Say | Move, Any](server.scope, server.receive, server.send)
    await ws.accept()
    server.say('{"type":"say","text":"hi"}')
    server.leave()
    assert [message async for message in ws] == [Say("hi")]
