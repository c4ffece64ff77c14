"""Messages: what decodes, and the one error with which everything else is told."""

import datetime as dt
import decimal
import enum
import json
import logging
import math
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from asgiws import App, Limits, MessageError, ProtocolError, WebSocket
from asgiws.messages import MessageDecoder, bytes_of, decoder_for, either_of, encode, split_path, text_of
from tests.fakes import SHAPES, FakeServer, Shape, converse


class Say(Struct, tag="say"):
    text: str


class Move(Struct, tag="move"):
    x: int
    y: int


Chat = Say | Move
Titled = Annotated[Chat, Meta(title="What the chat says")]


class One(Struct, tag=1):
    a: int


class Two(Struct, tag=2):
    b: str = ""


class Join(Struct, tag="join", tag_field="op"):
    room: str


class Leave(Struct, tag="leave", tag_field="op"):
    room: str


class Point(Struct, tag="point", array_like=True):
    x: int


class Line(Struct, tag="line", array_like=True):
    x: int


class Colour(enum.Enum):
    RED = "red"


class Outer(Struct, tag="outer"):
    inner: Chat
    colour: Colour = Colour.RED


class Strict(Struct, forbid_unknown_fields=True):
    a: int = 1


class Positive(Struct):
    a: Annotated[int, Meta(ge=1)]

    def __post_init__(self) -> None:
        if self.a == 13:
            raise ValueError("not thirteen")


class Tree(Struct, tag="tree"):
    children: list["Tree"] = []


class Moment(Struct):
    at: dt.datetime | None = None
    every: dt.timedelta = dt.timedelta(0)
    price: decimal.Decimal = decimal.Decimal(0)


def decode(declared: Any, data: str | bytes, mode: str | None = None) -> Any:
    """The message that a text or binary event makes."""
    event: dict[str, Any] = {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
    return MessageDecoder(declared)(event, mode)


def error_of(declared: Any, data: str | bytes, mode: str | None = None) -> MessageError:
    """The error that it makes."""
    with pytest.raises(MessageError) as caught:
        decode(declared, data, mode)
    return caught.value


# What decodes


@pytest.mark.parametrize(
    ("declared", "data", "wanted"),
    [
        (Chat, '{"type":"say","text":"hi"}', Say("hi")),
        (Chat, b'{"type":"move","x":1,"y":2}', Move(1, 2)),
        (Chat, ' {"y":2, "x":1,\n"type":"move"} ', Move(1, 2)),
        (Chat, '{"type":"say","text":"hi","more":1}', Say("hi")),
        (Chat, '{"type":"move","x":1,"x":2,"y":3}', Move(2, 3)),
        (Say, '{"type":"say","text":"hi"}', Say("hi")),
        (One | Two, '{"type":2,"b":"x"}', Two("x")),
        (Join | Leave, '{"op":"leave","room":"x"}', Leave("x")),
        (Point | Line, '["line",3]', Line(3)),
        (Chat | None, "null", None),
        (list[Chat], '[{"type":"say","text":"hi"}]', [Say("hi")]),
        (Outer, '{"type":"outer","inner":{"type":"say","text":"x"}}', Outer(Say("x"))),
        (Any, '{"a":[1,2.5,null,true,"x"]}', {"a": [1, 2.5, None, True, "x"]}),
        (int, "99999999999999999999", 99999999999999999999),
        (str, '""', ""),
        (str, '"\\u00e9\\ud83d\\ude00"', "é😀"),
        (str, '"é😀"'.encode(), "é😀"),
        (dict[str, int], '{"a":1}', {"a": 1}),
        (Literal["a"], '"a"', "a"),
        (bytes, '"AQI="', b"\x01\x02"),
        (uuid.UUID, f'"{uuid.UUID(int=1)}"', uuid.UUID(int=1)),
    ],
    ids=str,
)
def test_text_and_binary_both_decode_into_the_declared_type(declared: Any, data: str | bytes, wanted: Any) -> None:
    assert decode(declared, data) == wanted
    other = data.encode() if isinstance(data, str) else data.decode()
    assert decode(declared, other) == wanted


@pytest.mark.parametrize("both", [{"text": "1", "bytes": None}, {"text": None, "bytes": b"1"}])
def test_a_server_that_sends_both_keys_is_understood(both: dict[str, Any]) -> None:
    # P4
    assert MessageDecoder(int)({"type": "websocket.receive", **both}) == 1


# What does not, and the words for it


@pytest.mark.parametrize(
    ("declared", "data", "text", "path", "tag"),
    [
        # Not the declared type (T24)
        (Chat, '{"type":"move","x":"1","y":2}', "expected `int`, got `str`", "$.x", "move"),
        (Chat, '{"type":"say"}', "object missing required field `text`", None, "say"),
        (Chat, '{"type":"say","text":null}', "expected `str`, got `null`", "$.text", "say"),
        (Chat, '{"type":"move","x":1.5,"y":2}', "expected `int`, got `float`", "$.x", "move"),
        (Outer, '{"type":"outer","inner":[]}', "expected `object`, got `array`", "$.inner", "outer"),
        (Strict, '{"a":1,"b":2}', "object contains unknown field `b`", None, None),
        (Positive, '{"a":0}', "expected `int` >= 1", "$.a", None),
        (Positive, '{"a":13}', "not thirteen", None, None),
        (list[int], '[1,"x"]', "expected `int`, got `str`", "$[1]", None),
        (int, "[]", "expected `int`, got `array`", None, None),
        (int, '"x"', "expected `int`, got `str`", None, None),
        (int, "null", "expected `int`, got `null`", None, None),
        (int, "1.5", "expected `int`, got `float`", None, None),
        (int, "true", "expected `int`, got `bool`", None, None),
        (str, "1", "expected `str`, got `int`", None, None),
        (Literal["a"], '"b"', "invalid enum value 'b'", None, None),
        (uuid.UUID, '"x"', "invalid UUID", None, None),
        (Moment, '{"at":"2024-02-30T00:00:00Z"}', "invalid RFC3339 encoded datetime", "$.at", None),
        # Of another tag
        (Chat, '{"type":"nope"}', "unknown type 'nope', expected one of 'say', 'move'", "$.type", None),
        (Chat, '{"type":5}', "unknown type 5, expected one of 'say', 'move'", "$.type", None),
        (Chat, '{"type":""}', "unknown type '', expected one of 'say', 'move'", "$.type", None),
        (Say, '{"type":"nope"}', "unknown type 'nope', expected 'say'", "$.type", None),
        (One | Two, '{"type":3}', "unknown type 3, expected one of 1, 2", "$.type", None),
        (One | Two, '{"type":"1"}', "unknown type '1', expected one of 1, 2", "$.type", None),
        (Join | Leave, '{"op":"kick"}', "unknown op 'kick', expected one of 'join', 'leave'", "$.op", None),
        (Chat | None, '{"type":"nope"}', "unknown type 'nope', expected one of 'say', 'move'", "$.type", None),
        (Titled, '{"type":"x"}', "unknown type 'x', expected one of 'say', 'move'", "$.type", None),
        (list[Chat], '[{"type":"nope"}]', "invalid value 'nope'", "$[0].type", None),
        (Outer, '{"type":"outer","inner":{"type":"nope"}}', "invalid value 'nope'", "$.inner.type", "outer"),
        (Point | Line, '["nope",3]', "invalid value 'nope'", "$[0]", None),
        # Of no tag, or no object at all
        (Chat, "{}", "object missing required field `type`; expected one of 'say', 'move' in `type`", None, None),
        (Chat, "[]", "expected `object`, got `array`; expected one of 'say', 'move' in `type`", None, None),
        (Chat, "1", "expected `object`, got `int`; expected one of 'say', 'move' in `type`", None, None),
        (Chat, '"say"', "expected `object`, got `str`; expected one of 'say', 'move' in `type`", None, None),
        (Chat, "null", "expected `object`, got `null`; expected one of 'say', 'move' in `type`", None, None),
        (Chat, '{"type":null}', "expected `str`; expected one of 'say', 'move' in `type`", "$.type", None),
        (Join, '{"type":1,"op":5}', "unknown op 5, expected 'join'", "$.op", None),
        # Numbers that fit into nothing
        (int, "9" * 5000, "integer value out of range", None, None),
        (Any, "9" * 5000, "integer value out of range", None, None),
        (float, "1e999", "number out of range", None, None),
        (Moment, '{"every":"P9999999999999D"}', "duration is out of range", "$.every", None),
        (Moment, '{"price":"1e9999999999999999999"}', "invalid decimal string", "$.price", None),
    ],
)  # fmt: skip
def test_a_message_of_another_type_is_told_with_its_place(
    declared: Any, data: str, text: str, path: str | None, tag: Any
) -> None:
    # P28
    for form in (data, data.encode()):
        error = error_of(declared, form)
        assert (error.detail, error.path, error.tag, error.code) == (text, path, tag, 1007)


NO_JSON = [
    "", " ", "{", "}", "{'type':'say'}", '{"type":"say",}', "nul", "NaN", "Infinity", "-", "01", "1 2", '"a', '"\n"',
    "\ufeff1", "\0", "undefined", "// 1",
]  # fmt: skip


@pytest.mark.parametrize("data", NO_JSON)
def test_what_is_no_json_is_told_so(data: str) -> None:
    # P28
    for form in (data, data.encode()):
        error = error_of(Any, form)
        assert error.detail.startswith("the message is not JSON: ")
        assert (error.path, error.tag, error.code) == (None, None, 1007)
        for declared in (Chat, int, dict[str, int]):
            assert error_of(declared, form).code == 1007


def test_the_name_of_json_keeps_its_capital() -> None:
    assert "jSON" not in error_of(Any, "nope").detail


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_know_is_refused_inside_of_a_message(number: str) -> None:
    assert error_of(Chat, f'{{"type":"move","x":{number},"y":1}}').detail.startswith("the message is not JSON: ")


@pytest.mark.parametrize("data", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'{"type":"say","text":"a\xff"}'])
def test_binary_that_is_not_utf_8_is_told_so(data: bytes) -> None:
    # T23
    assert error_of(Any, data).detail == "the message is not UTF-8"
    for declared in (str, Chat, Any):
        assert error_of(declared, data).code == 1007


@pytest.mark.parametrize("declared", [Any, Chat, list[Any], dict[str, Any]], ids=str)
def test_no_depth_of_nesting_is_more_than_refused(declared: Any) -> None:
    # P28
    depth = 200_000
    for data in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, '{"type":"x","a":' + "[" * depth):
        assert error_of(declared, data).code == 1007
    if declared is Any:
        assert error_of(declared, "[" * depth + "]" * depth).detail == "the message is nested too deeply"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ('{"type":"move","x":' + "9" * 5000 + ',"y":1}', "$.x"),
        ('{"type":"move","x":"1","y":' + "9" * 5000 + "}", "$.x"),
        ('{"type":"move","x":"1","y":1e999}', "$.x"),
    ],
)
def test_a_valid_tag_is_not_blamed_for_another_field(data: str, path: str) -> None:
    error = error_of(Chat, data)
    assert error.path == path
    assert error.tag == "move"
    assert "expected one of" not in error.detail


def test_what_comes_after_an_unknown_tag_does_not_matter() -> None:
    for rest in ("", "}", ',"a":', ',"a":' + "9" * 5000 + "}", ',"a":' + "[" * 100_000, ',"a":"\ud83d'):
        data = ('{"type":"nope"' + rest).encode("utf-8", "surrogatepass")
        error = error_of(Chat, data)
        assert "'nope'" in error.detail
        assert "'say', 'move'" in error.detail


def test_a_path_through_the_key_of_a_mapping_can_be_read() -> None:
    error = error_of(dict[int, int], '{"x":1}')
    assert str(error).startswith("expected `int`, got `str`")
    assert "key" in str(error)
    assert error.path is None or "`" not in error.path


def test_the_text_of_an_error_says_where_and_in_which_message() -> None:
    assert str(error_of(Chat, '{"type":"move","x":"1","y":2}')) == (
        "expected `int`, got `str` - at `$.x` in message 'move'"
    )
    assert str(error_of(int, "[]")) == "expected `int`, got `array`"


# Text where binary was wanted, and the other way round


@pytest.mark.parametrize(
    ("data", "mode", "text"),
    [
        ("1", "binary", "expected a binary message, got a text one"),
        (b"1", "text", "expected a text message, got a binary one"),
    ],
)
def test_the_wrong_kind_of_a_message_is_1003(data: str | bytes, mode: str, text: str) -> None:
    error = error_of(int, data, mode)
    assert (error.detail, error.code, error.path) == (text, 1003, None)


def test_each_mode_takes_its_own_kind() -> None:
    assert decode(int, "1", "text") == 1
    assert decode(int, b"1", "binary") == 1


@pytest.mark.parametrize("text", ["", "a", "\0"])
def test_text_and_bytes_are_taken_as_they_are(text: str) -> None:
    # T21: nothing is a message too.
    for event in ({"text": text}, {"text": text, "bytes": None}):
        assert text_of(event) == either_of(event) == text
        with pytest.raises(MessageError, match="expected a binary message, got a text one"):
            bytes_of(event)
    for event in ({"bytes": text.encode()}, {"text": None, "bytes": text.encode()}):  # type: ignore[assignment]
        assert bytes_of(event) == either_of(event) == text.encode()
        with pytest.raises(MessageError, match="expected a text message, got a binary one"):
            text_of(event)


@pytest.mark.parametrize("event", [{}, {"text": None, "bytes": None}, {"text": None}, {"text": "", "bytes": b""}])
@pytest.mark.parametrize(
    "pick", [text_of, bytes_of, either_of, MessageDecoder(Any)], ids=["text", "bytes", "either", "decoder"]
)
def test_an_event_with_neither_text_nor_bytes_or_with_both_is_the_servers_error(pick: Any, event: Any) -> None:
    # P4
    with pytest.raises(ProtocolError, match="not just one of 'text' and 'bytes'"):
        pick({"type": "websocket.receive", **event})


# Decoders


@pytest.mark.parametrize("declared", [int, Chat, list[Chat], Any, dict[str, int], int | None], ids=str)
def test_a_type_has_one_decoder(declared: Any) -> None:
    assert decoder_for(declared) is decoder_for(declared)


def test_a_type_that_cannot_be_hashed_has_a_decoder_too() -> None:
    odd: Any = Annotated[int, ["a note"]]
    with pytest.raises(TypeError):
        hash(odd)
    assert decoder_for(odd)({"text": "1"}) == 1


@pytest.mark.parametrize("declared", [Strict | Positive, list[Strict | Positive], 3, Say | Strict])
def test_a_type_that_msgspec_refuses_is_a_type_error(declared: Any) -> None:
    with pytest.raises(TypeError, match=r"tagged|not supported"):
        decoder_for(declared)


@pytest.mark.parametrize(
    ("declared", "field", "tags"),
    [
        (Chat, "type", ("say", "move")),
        (Say, "type", ("say",)),
        (Join | Leave, "op", ("join", "leave")),
        (One | Two, "type", (1, 2)),
        (Point | Line, None, ()),
        (Strict, None, ()),
        (int, None, ()),
        (Any, None, ()),
        (Say | int | None, "type", ("say",)),
    ],
    ids=str,
)
def test_a_decoder_knows_its_tags(declared: Any, field: str | None, tags: tuple[Any, ...]) -> None:
    decoder = MessageDecoder(declared)
    assert decoder.tag_field == field
    assert sorted(decoder.tags, key=str) == sorted(tags, key=str)


def test_a_path_is_split_off_the_text_of_msgspec() -> None:
    assert split_path("Expected `int`, got `str` - at `$.x`") == ("expected `int`, got `str`", "$.x")
    assert split_path("Expected `int`, got `str`") == ("expected `int`, got `str`", None)
    assert split_path("") == ("", None)


# What a stranger may send

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["say", "move", "type"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "text", "x", "op"]) | st.text(), inner),
    max_leaves=8,
)
_broken = st.builds(
    lambda data, at, junk: data[:at] + junk, _json.map(json.dumps).map(str.encode), st.integers(0, 60), st.binary()
)
TYPES: list[Any] = [
    Any, Chat, Say, One | Two, Join | Leave, Point | Line, list[Chat], Outer, Strict, Positive, Moment, int, str, bytes,
    decimal.Decimal, uuid.UUID, dict[int, Chat], Chat | None, Literal[1, "a"], Colour, tuple[int, str], float,
]  # fmt: skip
ALL = [MessageDecoder(declared) for declared in TYPES]


@settings(max_examples=80)
@given(st.binary() | _json.map(json.dumps).map(str.encode) | _broken)
def test_no_bytes_raise_anything_but_a_message_error(data: bytes) -> None:
    # P28, T23, T24
    for decoder in ALL:
        _must_be_told(decoder, {"bytes": data})


@settings(max_examples=80)
@given(st.text(st.characters(exclude_categories=["Cs"])) | _json.map(json.dumps))
def test_no_text_raises_anything_but_a_message_error(data: str) -> None:
    for decoder in ALL:
        _must_be_told(decoder, {"text": data})


def _must_be_told(decoder: MessageDecoder, event: dict[str, Any]) -> None:
    found: MessageError | None = None
    try:
        decoder(event)
    except MessageError as error:
        found = error
    if found is not None:
        assert found.code == 1007
        assert found.detail
        encode([found.detail, found.path, str(found)])


_int64 = st.integers(-(2**63), 2**64 - 1)
_text = st.text(st.characters(exclude_categories=["Cs"]))
_messages = st.one_of(
    st.builds(Say, _text),
    st.builds(Move, _int64, _int64),
    st.builds(Outer, st.builds(Say, _text) | st.builds(Move, _int64, _int64)),
)


@given(_messages)
def test_what_is_encoded_decodes_to_the_same(message: Say | Move | Outer) -> None:
    decoder = decoder_for(Say | Move | Outer)
    data = encode(message)
    assert decoder({"bytes": data}) == decoder({"text": data.decode()}) == message
    assert type(decoder({"bytes": data})) is type(message)


@settings(max_examples=50)
@given(_json)
def test_what_is_json_decodes_to_what_it_was(value: Any) -> None:
    if _finite(value):
        data = json.dumps(value)
        assert decode(Any, data) == json.loads(data)


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values())) and not any(map(_surrogate, value))
    if isinstance(value, list):
        return all(map(_finite, value))
    if isinstance(value, str):
        return not _surrogate(value)
    return not isinstance(value, float) or math.isfinite(value)


def _surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


# Through a connection


def chat_app(seen: list[Any], **options: Any) -> App:
    """An app that collects the messages of `WebSocket[Say | Move, Say]` and answers each."""
    app = App(limits=Limits(**options))

    @app.websocket("/")
    async def chat(ws: WebSocket[Say | Move, Say]) -> None:
        await ws.accept()
        async for message in ws:
            seen.append(message)

    @app.websocket("/once")
    async def once(ws: WebSocket) -> None:
        await ws.accept()
        seen.append(await ws.receive_json(type=Say | Move))

    return app


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_messages_arrive_decoded_from_text_and_from_binary(shape: Shape) -> None:
    seen: list[Any] = []
    await converse(chat_app(seen), FakeServer(shape), '{"type":"say","text":""}', b'{"type":"move","x":1,"y":2}')
    assert seen == [Say(""), Move(1, 2)]


@pytest.mark.anyio
async def test_messages_may_hold_messages_of_their_own_type() -> None:
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(ws: WebSocket[Tree | Say]) -> None:
        await ws.accept()
        async for message in ws:
            seen.append(message)

    await converse(app, FakeServer(), '{"type":"tree","children":[{"type":"tree"},{"type":"tree"}]}')
    assert seen == [Tree([Tree(), Tree()])]


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("data", "frame"),
    [
        ("{", {"detail": "the message is not JSON: input data was truncated"}),
        (b"\xff\xfe", {}),
        ("[]", {"detail": "expected `object`, got `array`; expected one of 'say', 'move' in `type`"}),
        ('{"type":"nope"}', {"detail": "unknown type 'nope', expected one of 'say', 'move'", "path": "$.type"}),
        ('{"type":"move","x":"1","y":2}', {"detail": "expected `int`, got `str` in 'move'", "path": "$.x"}),
    ],
)
async def test_a_bad_message_is_answered_and_the_next_one_is_read(
    shape: Shape, data: str | bytes, frame: dict[str, str]
) -> None:
    # T23, T24, S24
    seen: list[Any] = []
    app = App()

    @app.websocket("/")
    async def until_the_first(ws: WebSocket[Say | Move, Say]) -> None:
        await ws.accept()
        async for message in ws:
            seen.append(message)
            break

    server = FakeServer(shape)
    server.say(data)
    server.say('{"type":"say","text":"still here"}')
    await converse(app, server, leave=-1)
    assert seen == [Say("still here")]
    (answer,) = [json.loads(text) for text in server.texts]
    assert answer["type"] == "error"
    assert answer.items() >= frame.items()
    assert answer.keys() <= {"type", "detail", "path"}
    assert server.closed == (1000, "")


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_too_many_bad_messages_in_a_row_close_with_1007(shape: Shape, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    app = chat_app(seen, bad_messages=3)
    server = FakeServer(shape)
    for message in ("1", "2", '{"type":"say","text":"good"}', "3", "4", "5", '{"type":"say","text":"late"}'):
        server.say(message)
    await converse(app, server, leave=-1)
    assert seen == [Say("good")]
    assert len(server.texts) == 5
    assert server.closed is not None
    assert server.closed[0] == (4007 if shape.own_codes_only else 1007)
    assert "expected `object`, got `int`" in server.closed[1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.anyio
@pytest.mark.parametrize("data", ["{", "[]", '{"type":"nope"}', b"\xff"])
async def test_a_bad_message_of_receive_json_closes_with_1007_if_nobody_catches_it(data: str | bytes) -> None:
    server = FakeServer(path="/once")
    server.say(data)
    await converse(chat_app([]), server, leave=-1)
    assert server.texts == []
    assert server.closed is not None
    assert server.closed[0] == 1007
    assert server.closed[1]
    assert "Traceback" not in server.closed[1]


@pytest.mark.anyio
@settings(max_examples=50)
@given(st.lists(st.binary() | _text | _json.map(json.dumps), max_size=5))
async def test_nothing_that_a_client_says_is_an_unhandled_error(messages: list[str | bytes]) -> None:
    seen: list[Any] = []
    app = chat_app(seen)
    for path in ("/", "/once"):
        server = FakeServer(path=path)
        for message in messages:
            server.say(message)
        await converse(app, server)
    assert all(isinstance(message, Say | Move) for message in seen)


def test_a_message_error_carries_no_traceback_of_msgspec() -> None:
    # S24
    error = error_of(Chat, "{")
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert isinstance(error, Exception)
    assert not isinstance(error, msgspec.MsgspecError)
