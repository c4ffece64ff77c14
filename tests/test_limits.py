"""Limits: working defaults, and settings that cannot work refused by name."""

import inspect
from typing import Any

import pytest

from asgiws import ConfigurationError, Limits
from asgiws.limits import DEFAULT_LIMITS

NAMES = tuple(inspect.signature(Limits).parameters)


def test_every_limit_has_a_working_default() -> None:
    assert DEFAULT_LIMITS.bad_messages == 10
    assert DEFAULT_LIMITS.body_bytes == 1024 * 1024
    assert all(getattr(Limits(), name) == getattr(DEFAULT_LIMITS, name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1, 2, 10**12])
def test_a_limit_is_what_was_given(name: str, value: int) -> None:
    limits = Limits(**{name: value})
    assert getattr(limits, name) == value
    others = [other for other in NAMES if other != name]
    assert all(getattr(limits, other) == getattr(DEFAULT_LIMITS, other) for other in others)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, True, False, None, 1.0, float("inf"), "10", b"10", []], ids=repr)
def test_a_limit_that_cannot_work_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Limits(**{name: value})
    assert str(caught.value) == f"Limits({name}=...) takes a whole number of at least 1, got {value!r}"


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
