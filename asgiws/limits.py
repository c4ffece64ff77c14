"""What one connection may cost."""

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from .errors import ConfigurationError

OFF = None
"""A limit that is not enforced."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of an app or a route; every one has a working default, and None switches off those that take it.

    Times are in seconds, sizes in bytes. The times are looked at four times a second, so each may be a quarter of a
    second more or less.

    Attributes:
        message_bytes: The largest message from a client, text as UTF-8; a larger one closes with 1009. Servers have a
            limit of their own, mostly 16 MiB.
        messages_per_second: How many messages a client may send in the long run; one more closes with 1008. Every
            message is counted then, which is the one limit with a price per message.
        burst: How many messages it may send at once, where `messages_per_second` is set.
        bad_messages: How many messages in a row may fail to decode before the WebSocket is closed with 1007.
        connections: How many WebSockets the app may have open; one more is refused with 503.
        connections_per_client: How many of them one key may have; one more is refused with 429.
        client_key: Gives the key of a connection; left out, it is the client's address. Behind a proxy that is the
            proxy's, unless the server is told to trust its headers.
        accept_timeout: How long a handshake may wait for its answer; it is refused with 503 then.
        idle_timeout: How long a client may send nothing; closed with 1001 then.
        heartbeat: A client that sends nothing for so long is sent `{"type": "ping"}`; if it sends nothing for as long
            again, it is taken for gone and closed with 1001. For servers that send no pings of their own.
        lifetime: How long a connection may last; closed with 1001 then, some a tenth earlier, not all at once.
        send_timeout: How long one send may take. The connection of a client that reads no faster is given up with
            1013: nothing more is sent to it.
        inbox_messages: How many messages are read ahead of a handler that does not read.
        inbox_bytes: How many bytes of messages.
        inbox_timeout: How long the inbox may be full; closed with 1008 then.
        outbox_messages: How many publications may wait to be sent to a socket that is a member of topics.
        outbox_bytes: How many bytes of publications. What happens to one more says `Channels.join(overflow=)`.
        linger: How long a handler may go on without its client before it is cancelled; 0 is allowed.
        reader: "always" reads ahead from the start. "auto" does so only where a server loses a message when a
            `receive()` is cancelled (granian), and else when the handler does not read.
        body_bytes: The largest body of an HTTP request; a larger one is answered with 413.
        header_bytes: The largest sum of all headers of a handshake; a larger one is refused with 431. Left out, the
            limit is the server's, mostly 64 KiB.
        query_bytes: The longest query string of a handshake; a longer one is refused with 414. Left out, the limit is
            the server's.

    Raises:
        ConfigurationError: A limit cannot work.
    """

    message_bytes: int = 1_048_576
    messages_per_second: float | None = OFF
    burst: int = 100
    bad_messages: int = 10
    connections: int | None = OFF
    connections_per_client: int | None = OFF
    client_key: Callable[[Any], Any] | None = None
    accept_timeout: float | None = 30.0
    idle_timeout: float | None = OFF
    heartbeat: float | None = OFF
    lifetime: float | None = OFF
    send_timeout: float = 30.0
    inbox_messages: int = 64
    inbox_bytes: int = 1_048_576
    inbox_timeout: float = 15.0
    outbox_messages: int = 256
    outbox_bytes: int = 1_048_576
    linger: float = 5.0
    reader: Literal["auto", "always"] = "auto"
    body_bytes: int = 1_048_576
    header_bytes: int | None = OFF
    query_bytes: int | None = OFF

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            allowed = _allowed(name, value)
            if allowed and not (value is OFF and name in _OPTIONAL):
                tail = ", or None" if name in _OPTIONAL else ""
                raise ConfigurationError(f"Limits({name}=...) takes {allowed}{tail}, got {value!r}")


_OPTIONAL = frozenset(
    {
        "messages_per_second", "connections", "connections_per_client", "client_key", "accept_timeout", "idle_timeout",
        "heartbeat", "lifetime", "header_bytes", "query_bytes",
    }
)  # fmt: skip
_WHOLE = frozenset(
    {
        "message_bytes", "burst", "bad_messages", "connections", "connections_per_client", "inbox_messages",
        "inbox_bytes", "outbox_messages", "outbox_bytes", "body_bytes", "header_bytes", "query_bytes",
    }
)  # fmt: skip


def _allowed(name: str, value: Any) -> str:
    """What a limit may be, if the value is not that."""
    if name == "reader":
        return "" if value in ("auto", "always") else "'auto' or 'always'"
    if name == "client_key":
        return "" if callable(value) else "a function of the connection"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _WHOLE:
        return "" if isinstance(value, int) and number and value >= 1 else "a whole number of at least 1"
    if name == "linger":
        return "" if number and value >= 0 else "a number of seconds of at least 0"
    what = "of messages" if name == "messages_per_second" else "of seconds"
    return "" if number and value > 0 else f"a number {what} above 0"


DEFAULT_LIMITS = Limits()
"""The limits of what is used without an `App`."""
