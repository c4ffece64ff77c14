"""What may go on the wire: no header, subprotocol or message that a server would choke on ever reaches one."""

import re
from typing import Any

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgiws import ProtocolError, Response, WebSocket
from asgiws.wire import header_pairs, is_token, sendable_bytes, sendable_text
from tests.fakes import DEADLINE, SHAPES, FakeServer, Shape

TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""RFC 9110, 5.6.2, spelt out."""

texts = st.text(st.characters(), max_size=12)
wire_texts = st.text(TOKEN_CHARACTERS + ' \t\r\n\0,;:="\x7fé\u20ac\ud800', max_size=8)
names = st.one_of(texts, wire_texts, st.binary(max_size=8), st.integers(), st.none(), st.just(bytearray(b"x-a")))
values = st.one_of(texts, wire_texts, st.binary(max_size=12), st.integers(), st.none(), st.just(bytearray(b"v")))
pairs_of_anything = st.lists(st.tuples(names, values), max_size=4)

few = settings(max_examples=30)
"""For what runs once for every shape and event loop."""
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


# Tokens


@pytest.mark.parametrize("text", ["a", "chat", "v1.json", "graphql-transport-ws", TOKEN_CHARACTERS])
def test_a_token_is_a_token(text: str) -> None:
    assert is_token(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "a,b", "a\n", "\na", "a\r\nb", "a\0", "é", "\u0661", "a/b", "a:b", '"a"', "(a)", "a;b",
        b"a", 1, None,
    ],
)  # fmt: skip
def test_anything_else_is_none(text: object) -> None:
    assert not is_token(text)


@given(texts | wire_texts)
def test_a_token_has_only_the_characters_of_the_rfc(text: str) -> None:
    assert is_token(text) is (text != "" and set(text) <= set(TOKEN_CHARACTERS))


# Headers


def test_no_headers_are_none() -> None:
    assert header_pairs(None) == header_pairs({}) == header_pairs([]) == []


def test_headers_come_as_a_mapping_or_as_pairs_of_str_or_bytes() -> None:
    wanted = [(b"x-a", b"1"), (b"x-b", b"2")]
    assert header_pairs({"x-a": "1", "x-b": "2"}) == wanted
    assert header_pairs([("x-a", b"1"), (b"x-b", "2")]) == wanted
    assert header_pairs(iter([("x-a", bytearray(b"1")), ("x-b", memoryview(b"2"))])) == wanted


# T33, P7
def test_a_name_becomes_small_and_a_value_stays_as_it_is() -> None:
    assert header_pairs({"X-Trace-ID": "Ab Cd\té"}) == [(b"x-trace-id", b"Ab Cd\t\xe9")]


def test_a_name_may_come_twice_and_the_order_is_kept() -> None:
    cookies = [("set-cookie", "a=1"), ("vary", "*"), ("set-cookie", "b=2")]
    assert header_pairs(cookies) == [(b"set-cookie", b"a=1"), (b"vary", b"*"), (b"set-cookie", b"b=2")]


def test_white_space_around_a_value_is_no_part_of_it() -> None:
    assert header_pairs({"a": " \t x y\t "}) == [(b"a", b"x y")]


# S19
@pytest.mark.parametrize("break_", ["\r\n", "\n", "\r", "\0", "\x1b", "\x7f", "\x0b"], ids=repr)
@pytest.mark.parametrize("place", ["{}evil: 1", "a{}evil: 1", "a{}"])
def test_a_value_with_a_line_break_is_refused_without_being_shown(break_: str, place: str) -> None:
    for value in (place.format(break_), place.format(break_).encode()):
        with pytest.raises(ProtocolError) as caught:
            header_pairs([("x-a", value)])
        assert str(caught.value) == "the value of header 'x-a' has a line break or another control character"


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "é", b"", b"a\n", b"\xff", 5, None], ids=repr)
def test_a_name_that_is_no_token_is_refused(name: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        header_pairs([(name, "v")])
    assert str(caught.value) == f"a header's name is letters, digits and hyphens, got {name!r}"


@pytest.mark.parametrize(
    ("value", "kind"), [("secret \u20ac", "str"), ("\ud800", "str"), (5, "int"), (None, "NoneType"), (["x"], "list")]
)
def test_a_value_that_is_no_latin_1_text_is_refused_by_its_kind(value: Any, kind: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        header_pairs({"x-a": value})
    assert str(caught.value) == f"the value of header 'x-a' is not latin-1 text: {kind}"


def test_what_was_refused_is_never_in_the_traceback() -> None:
    with pytest.raises(ProtocolError) as caught:
        header_pairs({"authorization": "s3cret\u20ac"})
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)


@given(pairs_of_anything)
@example([("a", "\x00")])
@example([("a", "\x85")])
def test_headers_come_out_sendable_or_not_at_all(pairs: list[tuple[Any, Any]]) -> None:
    try:
        found = header_pairs(pairs)
    except ProtocolError:
        return
    assert len(found) == len(pairs)
    for name, value in found:
        assert type(name) is type(value) is bytes
        assert is_token(name.decode())
        assert name == name.lower()
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)
        assert value == value.strip(b" \t")


@given(st.text(TOKEN_CHARACTERS, min_size=1), st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_every_header_that_can_be_sent_is_let_through(name: str, value: str) -> None:
    assert header_pairs({name: value}) == [(name.lower().encode(), value.strip(" ").encode())]


# Messages


@pytest.mark.parametrize("text", ["", "x", "é\u20ac\U0001f600", "\0", "a\r\nb"])
def test_a_text_that_utf_8_can_express_is_sendable(text: str) -> None:
    assert sendable_text(text) is text


# P25
@pytest.mark.parametrize(("text", "at"), [("\ud800", 0), ("ab\udfff", 2), ("\U0001f600\ud83d", 1)])
def test_half_a_surrogate_pair_is_refused_with_its_place(text: str, at: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        sendable_text(text)
    assert str(caught.value) == f"a text message must be UTF-8, but at {at} stands half a surrogate pair"


@pytest.mark.parametrize("text", [b"x", 5, None, {"a": 1}, bytearray(b"x")], ids=repr)
def test_a_text_that_is_no_str_is_refused_with_what_to_call(text: Any) -> None:
    with pytest.raises(TypeError) as caught:
        sendable_text(text)
    kind = type(text).__name__
    assert str(caught.value) == f"a text message is a str, got {kind}; use send_bytes() or send_json()"


@given(texts | wire_texts)
def test_a_text_is_sendable_if_and_only_if_it_encodes(text: str) -> None:
    halves = any("\ud800" <= character <= "\udfff" for character in text)
    try:
        assert sendable_text(text) == text
    except ProtocolError:
        assert halves
    else:
        assert not halves


@given(st.binary())
def test_binary_data_becomes_bytes_of_its_own(data: bytes) -> None:
    for given_ in (data, bytearray(data), memoryview(data)):
        found = sendable_bytes(given_)
        assert type(found) is bytes
        assert found == data


def test_data_that_changes_later_was_sent_as_it_was() -> None:
    data = bytearray(b"before")
    found = sendable_bytes(data)
    data[:] = b"after"
    assert found == b"before"


@pytest.mark.parametrize("data", ["x", 5, None, [1, 2], {"a": 1}], ids=repr)
def test_data_that_is_no_bytes_is_refused_with_what_to_call(data: Any) -> None:
    with pytest.raises(TypeError) as caught:
        sendable_bytes(data)
    kind = type(data).__name__
    assert str(caught.value) == f"a binary message is bytes, got {kind}; use send_text() or send_json()"


# On the wire: a fake server chokes on what a real one chokes on


def asked(shape: Shape, **server: Any) -> tuple[FakeServer, WebSocket]:
    fake = FakeServer(shape, **server)
    return fake, WebSocket(fake.scope, fake.receive, fake.send)


# S10
@pytest.mark.anyio
@each_shape
@few
@given(offered=st.lists(texts | wire_texts | st.sampled_from(["chat", "v2"]), max_size=4), chosen=texts | wire_texts)
@example(offered=["a b"], chosen="a b")
@example(offered=[""], chosen="")
@example(offered=["chat"], chosen="chat")
@example(offered=["chat"], chosen="CHAT")
@example(offered=[], chosen="chat")
@example(offered=["a\r\nx: 1"], chosen="a\r\nx: 1")
async def test_a_subprotocol_is_answered_only_if_it_is_a_token_that_was_offered(
    shape: Shape, offered: list[str], chosen: str
) -> None:
    with anyio.fail_after(DEADLINE):
        for answer in (chosen, *offered):
            server, ws = asked(shape, subprotocols=offered)
            assert all(is_token(name) for name in ws.subprotocols)
            try:
                await ws.accept(answer)
            except ProtocolError:
                assert answer not in offered or not is_token(answer)
                assert server.sent == []
                await ws.accept()
                assert server.sent[0].get("subprotocol") is None
            else:
                assert server.sent == [{"type": "websocket.accept", "subprotocol": answer}]
            assert not server.choked


@pytest.mark.anyio
@pytest.mark.parametrize("chosen", [b"chat", 5, ["chat"], True], ids=repr)
async def test_a_subprotocol_that_is_no_str_is_refused(chosen: Any) -> None:
    server, ws = asked(SHAPES[0], subprotocols=["chat"])
    with pytest.raises(ProtocolError) as caught:
        await ws.accept(chosen)
    assert str(caught.value) == f"accept a subprotocol that the client offered ('chat') or None, got {chosen!r}"
    assert server.sent == []


# P7, S19
@pytest.mark.anyio
@each_shape
@few
@given(pairs=pairs_of_anything)
async def test_no_header_of_accept_or_denial_ever_chokes_a_server(shape: Shape, pairs: list[tuple[Any, Any]]) -> None:
    with anyio.fail_after(DEADLINE):
        server, ws = asked(shape)
        try:
            await ws.accept(headers=pairs)
        except ProtocolError:
            assert server.sent == []
        server, ws = asked(shape)
        try:
            await ws.send_denial_response(Response("no", 401, headers=pairs))
        except ProtocolError:
            assert server.sent == []
        assert not server.choked


# P7
@pytest.mark.anyio
@pytest.mark.parametrize("name", ["sec-websocket-protocol", "Sec-WebSocket-Protocol", b"SEC-WEBSOCKET-PROTOCOL"])
async def test_the_subprotocol_never_goes_as_a_header(name: Any) -> None:
    server, ws = asked(SHAPES[0], subprotocols=["chat"])
    with pytest.raises(ProtocolError) as caught:
        await ws.accept(headers=[("x-a", "1"), (name, "chat")])
    assert str(caught.value) == "the header 'sec-websocket-protocol' is the server's: pass accept(subprotocol=...)"
    assert server.sent == []
    await ws.accept("chat")


# P25, T22
@pytest.mark.anyio
@each_shape
@few
@given(messages=st.lists(texts | wire_texts | st.binary(max_size=8), max_size=5))
@example(messages=["", b""])
@example(messages=["\ud800", "after"])
async def test_every_message_arrives_whole_or_is_refused_before_the_server(
    shape: Shape, messages: list[str | bytes]
) -> None:
    with anyio.fail_after(DEADLINE):
        server, ws = asked(shape)
        await ws.accept()
        wanted: list[str | bytes] = []
        for message in messages:
            try:
                await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))
            except ProtocolError:
                assert isinstance(message, str)
            else:
                wanted.append(message)
        sent = [event["text"] if "text" in event else event["bytes"] for event in server.sent[1:]]
        assert sent == wanted
        assert not server.choked
