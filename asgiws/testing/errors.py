"""What a test client raises when the application, the server or the test itself went wrong."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ..connection import Headers
from ..errors import AsgiwsError, WebSocketDisconnect


class ServerChokedError(AssertionError):
    """The application sent something that this server cannot take.

    It is raised into the application, and again in the test if the application swallowed it.
    """


class ClientDisconnectedError(OSError):
    """What the `send()` of uvicorn raises when the client has gone. Out of the application it is no error."""


class StuckError(TimeoutError):
    """What the client waited for did not come in time; the text says where the application stands."""


class UnexpectedMessageError(AssertionError):
    """Something else came than the test expected; the text shows what."""


class LifespanError(AsgiwsError):
    """The application said that its start or its shutdown failed, and raised nothing that would tell more."""


class WebSocketDenied(WebSocketDisconnect):
    """The server refused the handshake.

    Attributes:
        status_code: The HTTP status that the client saw.
        headers: Those of the answer.
        raw_headers: The same as bytes, as the application sent them.
        body: That of the answer.
        code: The code of the close that refused the handshake; 1006 where it was refused in another way.
        reason: The reason of that close, or "".
    """

    def __init__(
        self,
        status_code: int,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        code: int = 1006,
        reason: str | None = None,
    ) -> None:
        super().__init__(code, reason)
        self.status_code = status_code
        self.raw_headers = list(headers)
        self.headers = Headers(self.raw_headers)
        self.body = body

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body, decoded from JSON.

        Raises:
            msgspec.DecodeError: It is none.
        """
        return msgspec.json.decode(self.body)

    def __str__(self) -> str:
        told = f": {cut(self.text)}" if self.body else ""
        closed = f" (closed with {self.code}{f' {self.reason!r}' if self.reason else ''})" if self.code != 1006 else ""  # noqa: PLR2004
        return f"the handshake was refused with {self.status_code}{closed}{told}"


def tell(problem: BaseException, failure: BaseException | None) -> None:
    """Raise a problem; if the test has failed already, let its failure tell of it."""
    if failure is None or isinstance(problem, KeyboardInterrupt):
        raise problem
    attach(failure, problem)


def attach(failure: BaseException, problem: BaseException) -> None:
    """Let the failure of a test tell of a second problem, which must not be lost."""
    if any(one is problem for one in _chain(failure)):
        return
    failure.add_note(f"Besides: {type(problem).__name__}: {problem}")
    for one in _chain(problem):
        if one.__context__ is failure:  # only because it was raised while the `with` of the test was left
            one.__context__ = None
    if failure.__context__ is None:
        failure.__context__ = problem


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def cut(text: str) -> str:
    """A text for an error, cut to 200 characters."""
    return text if len(text) <= 200 else f"{text[:197]}..."  # noqa: PLR2004
