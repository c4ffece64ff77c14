"""Converters: what a parameter of a path template matches, and the value that it becomes."""

import decimal
import math
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Converter(Generic[T]):
    """Turns one segment of a path into a value and back. Write a subclass for a converter of your own.

    `convert` raises ValueError for text that is not its own: the router then tries the next route. A class attribute
    `regex`, where there is one, must match the whole segment before `convert` is asked. `produces` is the type that
    `convert` gives, where it should be checked against the handler's annotation at registration.
    """

    regex: str | None = None
    produces: Any = None

    def convert(self, value: str) -> T:
        """The value of the text. Raises ValueError to decline."""
        raise NotImplementedError

    def to_string(self, value: T) -> str:
        """The text of the value, for `url_path_for`. Raises ValueError if it has none."""
        return str(value)


class StrConverter(Converter[str]):
    """A segment as it is: no slash, not empty."""

    produces = str

    def convert(self, value: str) -> str:
        """The text itself; declines the empty one."""
        if not value:
            raise ValueError("empty")
        return value

    def to_string(self, value: str) -> str:
        """The text itself."""
        if not isinstance(value, str) or not value or "/" in value:
            raise ValueError("expected text that is not empty and has no slash (use the converter 'path' for slashes)")
        return value


class PathConverter(Converter[str]):
    """The rest of the path, slashes included; it may be empty."""

    produces = str

    def convert(self, value: str) -> str:
        """The text itself."""
        return value

    def to_string(self, value: str) -> str:
        """The text itself."""
        if not isinstance(value, str):
            raise ValueError("expected text")  # noqa: TRY004 - the protocol of converters is ValueError
        return value


_DIGITS_AT_MOST = 4300  # what int() of every supported Python takes


class IntConverter(Converter[int]):
    """A whole number in ASCII digits, with or without a minus."""

    produces = int

    def convert(self, value: str) -> int:
        """The number; declines what int() would take beyond digits (spaces, underscores, other scripts)."""
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_AT_MOST):
            raise ValueError("not a whole number")
        return int(value)

    def to_string(self, value: int) -> str:
        """The number in digits."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("expected an int")  # noqa: TRY004
        return int.__repr__(value)


class FloatConverter(Converter[float]):
    """A number in plain decimal notation: `3`, `-0.25`; no exponent, no `nan`, no `inf`."""

    produces = float
    _form = r"-?[0-9]+(\.[0-9]+)?"

    def convert(self, value: str) -> float:
        """The number."""
        if not re.fullmatch(self._form, value):
            raise ValueError("not a number")
        number = float(value)
        if not math.isfinite(number):
            raise ValueError("out of range")
        return number

    def to_string(self, value: float) -> str:
        """The number without an exponent, such that `convert` gives it back."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("expected a finite float")  # noqa: TRY004 - the protocol of converters is ValueError
        exact = decimal.Decimal(int(value) if isinstance(value, int) else float.__repr__(value))
        try:
            self.convert(text := format(exact, "f"))
        except ValueError:
            raise ValueError("expected a finite float") from None
        return text


class UUIDConverter(Converter[uuid.UUID]):
    """A UUID in hex digits, with its hyphens or without (RFC 9562, 4)."""

    produces = uuid.UUID
    _form = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{32}"

    def convert(self, value: str) -> uuid.UUID:
        """The UUID."""
        if not re.fullmatch(self._form, value):
            raise ValueError("not a UUID")
        return uuid.UUID(value)

    def to_string(self, value: uuid.UUID) -> str:
        """The UUID with hyphens."""
        if not isinstance(value, uuid.UUID):
            raise ValueError("expected a UUID")  # noqa: TRY004
        return str(value)


STR, PATH, INT, FLOAT = StrConverter(), PathConverter(), IntConverter(), FloatConverter()
CONVERTERS: Mapping[str, Converter[Any]] = {
    "float": FLOAT,
    "int": INT,
    "path": PATH,
    "str": STR,
    "uuid": UUIDConverter(),
}
"""The converters that every router knows."""


def guarded(converter: Converter[Any]) -> Callable[[str], Any]:
    """A converter's `convert`, behind its `regex` where it has one."""
    convert = converter.convert
    if getattr(converter, "regex", None) is None:
        return convert
    form = re.compile(str(converter.regex))

    def checked(value: str) -> Any:
        if not form.fullmatch(value):
            raise ValueError("does not match")
        return convert(value)

    return checked
