"""Limits: working defaults, and settings that cannot work refused by name."""

import inspect
from typing import Any

import pytest

from asgiws import ConfigurationError, Limits
from asgiws.limits import DEFAULT_LIMITS

NAMES = tuple(inspect.signature(Limits).parameters)


WHOLE = (
    "message_bytes", "burst", "bad_messages", "connections", "connections_per_client", "inbox_messages", "inbox_bytes",
    "outbox_messages", "outbox_bytes", "body_bytes", "header_bytes", "query_bytes",
)  # fmt: skip
SECONDS = ("accept_timeout", "idle_timeout", "heartbeat", "lifetime", "send_timeout", "inbox_timeout", "linger")
OPTIONAL = (
    "messages_per_second", "connections", "connections_per_client", "client_key", "accept_timeout", "idle_timeout",
    "heartbeat", "lifetime", "header_bytes", "query_bytes",
)  # fmt: skip
ODD = [0, -1, True, False, float("inf"), float("nan"), "10", b"10", [], 1j]


def only(name: str, value: Any) -> Limits:
    """Limits with one that is not the default."""
    options: dict[str, Any] = {name: value}
    return Limits(**options)


def test_every_limit_has_a_working_default() -> None:
    assert DEFAULT_LIMITS.bad_messages == 10
    assert DEFAULT_LIMITS.body_bytes == 1024 * 1024
    assert DEFAULT_LIMITS.message_bytes == 1024 * 1024
    assert DEFAULT_LIMITS.linger == 5
    assert Limits() == DEFAULT_LIMITS
    assert {*WHOLE, *SECONDS, "messages_per_second", "client_key", "reader"} == set(NAMES)


@pytest.mark.parametrize("name", [*WHOLE, *SECONDS, "messages_per_second"])
@pytest.mark.parametrize("value", [1, 2, 10**12])
def test_a_limit_is_what_was_given(name: str, value: int) -> None:
    limits = only(name, value)
    assert getattr(limits, name) == value
    others = [other for other in NAMES if other != name]
    assert all(getattr(limits, other) == getattr(DEFAULT_LIMITS, other) for other in others)


def refused(name: str, value: Any) -> str:
    """What is said of a limit that cannot work, but for the value."""
    with pytest.raises(ConfigurationError) as caught:
        only(name, value)
    text = str(caught.value)
    assert text.startswith(f"Limits({name}=...) takes ")
    assert text.endswith(f", got {value!r}")
    return text[len(f"Limits({name}=...) takes ") : -len(f", got {value!r}")]


def tail(name: str) -> str:
    """How the text of a limit ends that may be switched off."""
    return ", or None" if name in OPTIONAL else ""


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [*ODD, 1.0], ids=repr)
def test_a_number_that_cannot_work_is_refused_by_name(name: str, value: Any) -> None:
    assert refused(name, value) == "a whole number of at least 1" + tail(name)


@pytest.mark.parametrize("name", [*SECONDS, "messages_per_second"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_time_or_rate_that_cannot_work_is_refused_by_name(name: str, value: Any) -> None:
    if name == "linger" and value == 0 and value is not False:
        assert Limits(linger=value).linger == 0
        return
    what = "a number of messages above 0" if name == "messages_per_second" else "a number of seconds above 0"
    assert refused(name, value) == ("a number of seconds of at least 0" if name == "linger" else what + tail(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OPTIONAL])
def test_what_cannot_be_switched_off_is_refused_as_none(name: str) -> None:
    assert not refused(name, None).endswith("None")


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_can_be_switched_off_is(name: str) -> None:
    assert getattr(only(name, None), name) is None


@pytest.mark.parametrize("value", ["never", True, 1], ids=repr)
def test_a_reader_that_there_is_not_is_refused(value: Any) -> None:
    assert refused("reader", value) == "'auto' or 'always'"


@pytest.mark.parametrize("value", ["address", 1], ids=repr)
def test_a_key_that_is_no_function_is_refused(value: Any) -> None:
    assert refused("client_key", value) == "a function of the connection, or None"


def test_a_limit_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="bad_mesages"):
        Limits(bad_mesages=3)  # type: ignore[call-arg]


def test_limits_are_given_by_name_only() -> None:
    with pytest.raises(TypeError):
        Limits(3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", NAMES)
def test_limits_never_change(name: str) -> None:
    limits = Limits()
    with pytest.raises(AttributeError):
        setattr(limits, name, 5)
    assert getattr(limits, name) == getattr(DEFAULT_LIMITS, name)
