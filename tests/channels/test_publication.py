"""What is published: positions, payloads, and the frames that clients get."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws import MessageError, ProtocolError
from asgiws.channels import ChannelsError, Position, Publication
from asgiws.channels.publication import (
    MOST_BYTES_OF_A_NAME,
    checked_name,
    checked_topic,
    envelope_of,
    payload_of,
    size_of,
    user_topic,
)

sendable = st.text(st.characters(codec="utf-8"))


def made(message: Any, position: Position | None = None) -> Publication:
    return Publication("topic", position, *payload_of(message))


# Positions


@given(epoch=sendable, offset=st.integers(0, 10**19 - 1))
def test_a_position_comes_back_from_its_text(epoch: str, offset: int) -> None:
    position = Position(epoch, offset)
    assert Position.parse(str(position)) == position


@given(st.text())
def test_any_text_is_some_position(text: str) -> None:
    position = Position.parse(text)
    assert position == Position("", 0) or str(position).rpartition("-")[0] == text.rpartition("-")[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "e",
        "e-",
        "e-x",
        "e--",
        "e-1.5",
        "e-٣",
        "e-²",
        "e- 1",
        "e-+1",
        "e-" + "9" * 20,
        "e-1\n",
        "e-0x1",
        "\ud800",
    ],
)
def test_a_text_that_is_no_position_is_nowhere(text: str) -> None:
    assert Position.parse(text) == Position("", 0)


def test_the_longest_offset_is_one_of_64_bits() -> None:
    assert Position.parse(f"e-{2**63 - 1}").offset == 2**63 - 1
    assert Position.parse("a-b-7") == Position("a-b", 7)


def test_a_position_is_a_value() -> None:
    assert {Position("e", 1): 1}[Position("e", 1)] == 1
    with pytest.raises(AttributeError):
        Position("e", 1).offset = 2  # type: ignore[misc]


# Payloads


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", ("text", "")), ("é", ("text", "é")), (b"", ("bytes", b"")), (bytearray(b"a"), ("bytes", b"a")),
        (memoryview(b"ab"), ("bytes", b"ab")), (None, ("json", "null")), (1, ("json", "1")),
        ({"a": "é"}, ("json", '{"a":"é"}')), ([True], ("json", "[true]")),
        (Position("e", 1), ("json", '{"epoch":"e","offset":1}')),
    ],
)  # fmt: skip
def test_how_a_message_is_published(message: Any, expected: tuple[str, Any]) -> None:
    kind, data = payload_of(message)
    assert (kind, data) == expected
    assert type(data) in (str, bytes)


def test_what_is_published_does_not_change_with_what_was_given() -> None:
    buffer = bytearray(b"before")
    _, data = payload_of(buffer)
    buffer[:] = b"after!"
    assert data == b"before"


@pytest.mark.parametrize("message", ["\ud800", "a\udfff"])
def test_half_a_surrogate_pair_is_refused(message: str) -> None:
    with pytest.raises(ProtocolError):
        payload_of(message)


@pytest.mark.parametrize("message", [object(), {1: object()}, lambda: 1])
def test_what_cannot_be_encoded_is_refused(message: Any) -> None:
    with pytest.raises(TypeError):
        payload_of(message)


@given(sendable | st.binary())
def test_the_size_is_that_of_utf_8(data: str | bytes) -> None:
    assert size_of(data) == len(data.encode() if isinstance(data, str) else data)
    assert made(data).size == size_of(data)


# Publications


def test_the_message_is_decoded_once() -> None:
    one = made({"a": [1]})
    assert one.message == {"a": [1]}
    assert one.message is one.message
    assert made("text").message == "text"
    assert made(b"bytes").message == b"bytes"


def test_what_is_no_json_is_told() -> None:
    with pytest.raises(MessageError):
        Publication("topic", None, "json", "{").message  # noqa: B018


@given(message=sendable | st.binary() | st.recursive(st.none() | st.integers(-5, 5) | sendable, st.lists))
def test_a_client_finds_the_payload_in_the_envelope(message: Any) -> None:
    one = made(message, Position("e", 3))
    frame = json.loads(one.envelope)
    data = frame.pop("data")
    expected = {"type": "message", "topic": "topic", "position": "e-3"}
    if isinstance(message, bytes):
        expected["encoding"] = "base64"
        data = base64.b64decode(data)
    assert (frame, data) == (expected, message)
    assert one.envelope is one.envelope


def test_an_envelope_without_a_position_and_with_another_payload() -> None:
    assert json.loads(made("a").envelope) == {"type": "message", "topic": "topic", "data": "a"}
    assert json.loads(envelope_of(made("a"), "json", "[1]")) == {"type": "message", "topic": "topic", "data": [1]}
    assert json.loads(envelope_of(made("a"), "bytes", b"\xff"))["encoding"] == "base64"


def test_the_name_of_a_topic_is_data_in_the_envelope() -> None:
    one = Publication('"},{"\n', None, "text", "a")
    assert json.loads(one.envelope)["topic"] == '"},{"\n'


def test_a_repr_shows_no_payload() -> None:
    text = repr(made("secret", Position("e", 1)))
    assert "secret" not in text
    assert "topic" in text
    assert "e-1" in text


# Names


@pytest.mark.parametrize("name", ["a", "room:1", "*", "a\0b", "é" * 127, "x" * MOST_BYTES_OF_A_NAME, " ", "\n"])
def test_names_that_can_be_a_topics(name: str) -> None:
    assert checked_topic(name) == name


@pytest.mark.parametrize(
    "name", ["", "é" * 128, "x" * (MOST_BYTES_OF_A_NAME + 1), None, 1, b"room", ["a"], "\ud800", "\0user", "\0"]
)
def test_names_that_cannot(name: Any) -> None:
    with pytest.raises(ChannelsError):
        checked_topic(name)


def test_who_is_meant_stands_in_the_error() -> None:
    with pytest.raises(ChannelsError, match=r"^the key of a user is a str of 1 to 255 bytes, got 7$"):
        user_topic(7)
    with pytest.raises(ChannelsError, match=r"^a topic has at most 255 bytes, .* has 300$"):
        checked_name("x" * 300)


def test_no_topic_of_an_application_is_that_of_a_user() -> None:
    assert user_topic("anna") == "\0anna"
    assert user_topic("\0anna") == "\0\0anna"
    with pytest.raises(ChannelsError):
        checked_topic(user_topic("anna"))


def test_positions_are_json_for_msgspec() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Position("e", 1)), type=Position) == Position("e", 1)
