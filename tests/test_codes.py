"""Which close codes may be sent, and how a reason is cut to size."""

import enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws.codes import REASON_BYTES, check_code, cut_reason

SENDABLE = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, *range(3000, 5000)})
"""Section 4 of the design, spelt out: the test does not lean on the table that it tests."""


class Code(enum.IntEnum):
    GOING_AWAY = 1001
    ABNORMAL = 1006


# P21, T26: codes


def test_exactly_the_codes_of_the_contract_may_be_sent() -> None:
    assert {code for code in range(-1, 70_000) if check_code(code) is None} == SENDABLE


@pytest.mark.parametrize(
    "code",
    [
        0, 999, 1004, 1005, 1006, 1010, 1014, 1015, 1016, 2999, 5000, 65536, -1000, 10**30,
        True, False, None, "1000", b"1000", 1000.0, Code.ABNORMAL, [], object,
    ],
    ids=repr,
)  # fmt: skip
def test_any_other_code_is_refused_with_what_is_allowed(code: Any) -> None:
    problem = check_code(code)
    assert problem == f"a close code is one of 1000-1003, 1007-1009, 1011-1013 or 3000-4999, got {code!r}"


def test_a_member_of_an_int_enum_is_a_code() -> None:
    assert check_code(Code.GOING_AWAY) is None


@given(st.one_of(st.integers(), st.none(), st.booleans(), st.floats(), st.text(), st.binary()))
def test_whatever_is_asked_gets_an_answer(code: Any) -> None:
    fits = type(code) is int and code in SENDABLE
    assert (check_code(code) is None) is fits


# P22, T25: reasons


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("", ""),
        ("bye", "bye"),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 61, "é" * 61),  # 122 bytes
        ("é" * 62, "é" * 61),  # 124 bytes: the last one would be cut in its middle
        ("x" + "é" * 61, "x" + "é" * 61),  # 123 bytes
        ("€" * 42, "€" * 41),  # 126 bytes
        ("\U0001f600" * 31, "\U0001f600" * 30),  # 124 bytes
        ("x" * 122 + "\U0001f600", "x" * 122),
        ("x" * 123 + "\x00", "x" * 123),
        ("half of a pair: \ud83d", "half of a pair: ?"),
    ],
)
def test_a_reason_is_cut_between_two_characters(reason: str, kept: str) -> None:
    assert cut_reason(reason) == kept


@given(st.text(max_size=200) | st.text("é€\U0001f600x", max_size=200))
def test_a_cut_reason_is_the_longest_prefix_that_fits(reason: str) -> None:
    kept = cut_reason(reason)
    assert reason.startswith(kept)
    assert len(kept.encode()) <= REASON_BYTES
    if kept != reason:
        assert len(reason[: len(kept) + 1].encode()) > REASON_BYTES


@given(st.text(st.characters(), max_size=200) | st.text("xé\ud800\udfff", max_size=200))
def test_a_cut_reason_is_always_utf_8_and_fits(reason: str) -> None:
    kept = cut_reason(reason)
    assert len(kept.encode("utf-8", "strict")) <= REASON_BYTES
    assert cut_reason(kept) == kept


# T26
@pytest.mark.parametrize("reason", [5, b"bye", ["bye"], 1.5], ids=repr)
def test_a_reason_that_is_no_str_is_refused_by_name(reason: Any) -> None:
    with pytest.raises(TypeError, match="reason"):
        cut_reason(reason)
