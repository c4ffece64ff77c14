"""What one connection may cost."""

import dataclasses

from .errors import ConfigurationError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of an app; every one has a working default.

    Attributes:
        bad_messages: How many messages in a row may fail to decode before the WebSocket is closed with 1007.
        body_bytes: The largest body of an HTTP request, in bytes; a larger one is answered with 413.

    Raises:
        ConfigurationError: A limit is no positive whole number.
    """

    bad_messages: int = 10
    body_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"Limits({field.name}=...) takes a whole number of at least 1, got {value!r}")


DEFAULT_LIMITS = Limits()
"""The limits of what is used without an `App`."""
