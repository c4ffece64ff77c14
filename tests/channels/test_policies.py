"""What members ask for, and what they are told."""

from typing import Any

import msgspec
import pytest

from asgiws.channels import ChannelsError, Joined, Lost, Position, Publication, TopicOptions, latest
from asgiws.channels.policies import Policy, same
from asgiws.channels.publication import payload_of


def made(message: Any, key: str | None = None) -> Publication:
    return Publication("topic", None, *payload_of(message), key)


@pytest.mark.parametrize("name", ["close", "drop_oldest", "drop_newest"])
def test_policies_by_name(name: str) -> None:
    policy = Policy(name)
    assert (policy.name, policy.latest) == (name, None)


def test_the_latest_of_a_key() -> None:
    by_name = Policy("latest")
    assert by_name.name == "latest"
    assert by_name.latest is not None
    assert by_name.latest.key_of(made("a", "k")) == "k"
    assert by_name.latest.key_of(made("a")) == ""
    own = latest(lambda message: message["id"])
    by_function = Policy(own)
    assert (by_function.name, by_function.latest) == ("latest", own)
    assert own.key_of(made({"id": 3}, "k")) == 3


@pytest.mark.parametrize("overflow", ["", "Close", "drop", None, 1, latest, ["close"], {}, lambda _: 1])
def test_there_is_no_other_policy(overflow: Any) -> None:
    with pytest.raises(ChannelsError, match="overflow is 'close'"):
        Policy(overflow)


def test_what_a_member_is_told() -> None:
    lost = Lost("room", 3, "overflow")
    assert same(lost) is lost
    assert msgspec.json.encode(lost) == b'{"type":"lost","topic":"room","count":3,"reason":"overflow"}'
    assert msgspec.json.decode(b'{"type":"lost","topic":"r","count":null,"reason":"epoch"}', type=Lost).count is None


def test_what_a_membership_began_with() -> None:
    joined = Joined(Position("e", 1))
    assert (joined.recovered, joined.reason) == (None, None)


@pytest.mark.parametrize("history", [-1, 1.0, "1", None, True])
def test_histories_that_cannot_be(history: Any) -> None:
    with pytest.raises(ChannelsError, match="history"):
        TopicOptions(history=history)


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), "1", None, True, 1e9])
def test_lives_of_a_history_that_cannot_be(ttl: Any) -> None:
    with pytest.raises(ChannelsError, match="ttl"):
        TopicOptions(ttl=ttl)


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan"), "1", None, True, 1e9])
def test_graces_that_cannot_be(grace: Any) -> None:
    with pytest.raises(ChannelsError, match="grace"):
        TopicOptions(grace=grace)


def test_options_that_can_be() -> None:
    options = TopicOptions(history=0, ttl=0.001, presence=True, grace=0.5)
    assert (options.history, options.ttl, options.presence, options.grace) == (0, 0.001, True, 0.5)
