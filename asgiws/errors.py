"""Every exception of asgiws, and the text each of them builds for itself.

    AsgiwsError
    |- RegistrationError (ValueError)       refused before anything serves
    |  |- RouteError                        a template, a name or a mount that cannot work
    |  `- SignatureError                    a handler whose parameters cannot be filled
    |- ConfigurationError (ValueError)      a setting of App or Limits that cannot work
    |- ProtocolError (ValueError)           what no server could put on the wire: a close code, a header, a subprotocol
    |- WebSocketStateError (RuntimeError)   a call that the state of the WebSocket does not allow
    |- ParameterError                       path, query, header, cookie or body values that do not validate
    |- MessageError                         an incoming message of the wrong kind or type
    |- ChannelsError (RuntimeError)         something that channels cannot do
    |  |- BrokerError                       the broker behind them cannot be reached, or refuses
    |  |- GapError                          a subscription that has missed something
    |  `- SlowSubscriberError               a subscription that does not read
    |- WebSocketDisconnect                  the peer has gone
    |- WebSocketException                   raise it to close with a code of your own
    `- HTTPException                        raise it to refuse a handshake, or to answer a request

A text says what was found, where, what is allowed and how to mend it.
"""

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .codes import check_code, cut_reason


class AsgiwsError(Exception):
    """The root of all that asgiws raises."""


class RegistrationError(AsgiwsError, ValueError):
    """A route or handler that cannot work, found while the program is being put together.

    Args:
        problem: What was found.
        hint: What is allowed and how to mend it, as whole sentences.
        where: The handler and its place in the source, as `whereabouts` gives it; added by whoever knows it.
    """

    def __init__(self, problem: str, hint: str = "", where: str = "") -> None:
        super().__init__(problem, hint, where)
        self.problem = problem
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        return f"{self.problem}{where}. {self.hint}".rstrip() if self.hint else f"{self.problem}{where}"


class RouteError(RegistrationError):
    """A path template, a route's name or a mount that cannot work."""


class SignatureError(RegistrationError):
    """A handler whose parameters asgiws could never fill."""


class ConfigurationError(AsgiwsError, ValueError):
    """A setting of `App` or `Limits` that cannot work."""


class ProtocolError(AsgiwsError, ValueError):
    """Something that must not reach the server because no server could send it."""


class WebSocketStateError(AsgiwsError, RuntimeError):
    """A call that the state of the WebSocket does not allow; the state is unchanged."""


class ChannelsError(AsgiwsError, RuntimeError):
    """Something that channels cannot do."""


class BrokerError(ChannelsError):
    """The broker behind channels could not be reached, or refused. Whether a publish came through is not known."""


class GapError(ChannelsError):
    """A subscription was ended, since publications are missing that the topic's history should have kept."""


class SlowSubscriberError(ChannelsError):
    """A subscription was ended, since more was waiting for it than it may hold."""


class ParameterProblem:
    """One value of a connection that did not validate.

    Attributes:
        place: `path`, `query`, `header`, `cookie` or `body`.
        name: The name under which the client sends it; empty for the body as a whole.
        message: What was expected. Never the value itself, which may be a secret.
    """

    __slots__ = ("message", "name", "place")

    def __init__(self, place: str, name: str, message: str) -> None:
        self.place = place
        self.name = name
        self.message = message

    def __str__(self) -> str:
        return f"{self.place} {self.name!r}: {self.message}" if self.name else f"{self.place}: {self.message}"

    def __repr__(self) -> str:
        return f"ParameterProblem({self.place!r}, {self.name!r}, {self.message!r})"

    def as_dict(self) -> dict[str, Any]:
        """The problem as FastAPI's clients know it: `loc` and `msg`."""
        return {"loc": [self.place, self.name] if self.name else [self.place], "msg": self.message}


class ParameterError(AsgiwsError):
    """Values of one connection that did not validate; `errors` holds every one of them."""

    def __init__(self, errors: Iterable[ParameterProblem]) -> None:
        self.errors = list(errors)
        super().__init__("; ".join(map(str, self.errors)))


class MessageError(AsgiwsError):
    """An incoming message of the wrong kind (text or binary) or not of the declared type.

    Attributes:
        detail: What was expected and found.
        path: Where in the message, as `$.x`; None if it concerns the whole message.
        tag: The tag of the message, where it had one.
        code: The close code if the error leaves the handler: 1003 for the kind, 1007 for the content (RFC 6455, 7.4.1).
    """

    def __init__(self, detail: str, *, path: str | None = None, tag: Any = None, code: int = 1007) -> None:
        self.detail = detail
        self.path = path
        self.tag = tag
        self.code = code
        super().__init__(detail)

    def __str__(self) -> str:
        at = f" - at `{self.path}`" if self.path else ""
        of = f" in message {self.tag!r}" if self.tag is not None else ""
        return f"{self.detail}{at}{of}"


class WebSocketDisconnect(AsgiwsError):  # noqa: N818 - the name that Starlette's users know
    """The peer has gone, however that was noticed.

    Attributes:
        code: The peer's close code; 1005 where it gave none, 1006 where the connection broke (RFC 6455, 7.4.1).
        reason: The peer's reason, or "".
    """

    def __init__(self, code: int = 1005, reason: str | None = None) -> None:
        self.code = int(code)
        self.reason = reason or ""
        super().__init__(self.code, self.reason)

    def __str__(self) -> str:
        return f"the peer has gone with {self.code}" + (f" {self.reason!r}" if self.reason else "")


class WebSocketException(AsgiwsError):  # noqa: N818 - the name that Starlette's users know
    """Raise it to close the WebSocket with a code and reason of your own.

    Raises:
        ProtocolError: The code is none that an application may send.
    """

    def __init__(self, code: int, reason: str | None = None) -> None:
        problem = check_code(code)
        if problem:
            raise ProtocolError(problem)
        self.code = int(code)
        self.reason = cut_reason(reason or "")
        super().__init__(self.code, self.reason)

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}" if self.reason else str(self.code)


class HTTPException(AsgiwsError):  # noqa: N818 - the name that Starlette's users know
    """Raise it to refuse a handshake with an HTTP status, or to answer a request with an error.

    After accept a WebSocket is closed with 4000 + `status_code` and `detail` as the reason.

    Args:
        status_code: From 200 to 599.
        detail: What the client is told, as `{"detail": ...}`; the phrase of the status if left out.
        headers: Sent with the answer.

    Raises:
        ProtocolError: The status is no final HTTP status.
    """

    def __init__(self, status_code: int, detail: Any = None, headers: Mapping[str, str] | None = None) -> None:
        if not isinstance(status_code, int) or not 200 <= status_code <= 599:  # noqa: PLR2004 - RFC 9110, 15
            raise ProtocolError(f"an HTTP status is a number from 200 to 599, got {status_code!r}")
        self.status_code = int(status_code)
        self.detail = status_phrase(self.status_code) if detail is None else detail
        self.headers = headers
        super().__init__(self.status_code, self.detail)

    def __str__(self) -> str:
        return f"{self.status_code}: {self.detail}"


def status_phrase(status: int) -> str:
    """The phrase of an HTTP status, "Error" for one that has none."""
    from http import HTTPStatus  # noqa: PLC0415 - only needed for an error

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def shown(value: Any) -> str:
    """A value for an error text: its repr, if it has one, cut to 80 characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr is anybody's code, and int's own refuses above 4,300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004


def whereabouts(handler: Any) -> str:
    """A handler's name and its place in the source: `rooms.join, app/rooms.py:31`."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    target = inspect.unwrap(handler)
    name = getattr(target, "__qualname__", type(target).__qualname__).replace(".<locals>", "")
    module = getattr(target, "__module__", "") or ""
    label = f"{module.rpartition('.')[2]}.{name}" if module else name
    file, line = _place_of(target)
    if not file:
        return label
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118 - pathlib is slow to import
    return f"{label}, {file.removeprefix(here)}:{line}" if line else f"{label}, {file.removeprefix(here)}"


@contextlib.contextmanager
def told_with(handler: Any) -> Iterator[None]:
    """Add a handler and its place to what a RegistrationError tells."""
    try:
        yield
    except RegistrationError as error:
        error.where = " -> ".join(filter(None, (whereabouts(handler), error.where)))
        raise


def _place_of(target: Any) -> tuple[str, int | None]:
    """File and line of a function, of what an object is called with, of a class or its first method."""
    if inspect.isclass(target):
        return _place_of_class(target)
    call = getattr(type(target), "__call__", None)  # noqa: B004 - its code is wanted
    code = getattr(target, "__code__", None) or getattr(call, "__code__", None)
    return ("", None) if code is None else (code.co_filename, code.co_firstlineno)


def _place_of_class(target: type) -> tuple[str, int | None]:
    file = getattr(sys.modules.get(target.__module__), "__file__", None) or ""
    own = (getattr(one, "__code__", None) for one in vars(target).values())
    # Not that of methods which a decorator wrote, such as dataclass.
    lines = (code.co_firstlineno for code in own if code is not None and file in ("", code.co_filename))
    line = next(lines, None)
    if line is None and file:
        with contextlib.suppress(OSError, TypeError):
            line = inspect.getsourcelines(target)[1]
    return file, line


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'int'?` for a word that is near a known one, else nothing."""
    import difflib  # noqa: PLC0415 - only needed for an error

    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
