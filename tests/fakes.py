"""Fake servers that behave like the real ones, and choke on what the real ones choke on.

A `Shape` says how one server behaves (measured on the real ones); a `FakeServer` is one connection of it: the scope,
the server's `receive` and `send`, and the client at the other end. What an application sends is checked as it comes:
an event that the server could not take is noted in `choked` and raised as `ServerChokedError`, which a test must never
see.
"""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import anyio
import anyio.lowlevel

DEADLINE = 5.0
"""Seconds after which a test that waits for something has failed."""

Event: TypeAlias = dict[str, Any]
Application: TypeAlias = Callable[..., Awaitable[Any]]
Headers: TypeAlias = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class ServerChokedError(AssertionError):
    """The application sent something that this server cannot take."""


class ClientDisconnectedError(OSError):
    """What uvicorn's send() raises when the client has gone."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """How one server behaves.

    Attributes:
        name: The server.
        spec_version: In `scope["asgi"]`; None where the key is missing.
        denial: It has the extension `websocket.http.response`.
        optional_keys: Its scope has `scheme`, `http_version`, `extensions` and `state`.
        both_keys: `websocket.receive` has both `text` and `bytes`, one of them None.
        list_address: `client` and `server` are lists.
        str_port: The client's port is a str.
        again: What `receive()` does after the disconnect: tell it again (1005), or block for ever.
        gone: What `send()` does when the client has gone and the application has not read it yet.
        codes: Which close codes of the client reach the application.
        own_codes_only: Close codes of the application other than 1000 and 3000-4999 raise.
        cancel_eats: A cancelled `receive()` loses an event.
        one_body: A denial with `more_body` raises.
        late: An event whose `send()` was cancelled while it was blocked goes out all the same.
    """

    name: str
    spec_version: str | None = "2.4"
    denial: bool = True
    optional_keys: bool = True
    both_keys: bool = False
    list_address: bool = False
    str_port: bool = False
    again: Literal["again", "block"] = "block"
    gone: Literal["oserror", "runtimeerror", "silent"] = "oserror"
    codes: Literal["all", "1006", "no reason", "none is None"] = "all"
    own_codes_only: bool = False
    cancel_eats: bool = False
    one_body: bool = False
    late: bool = False


UVICORN_LEGACY = Shape("uvicorn-websockets", again="again", late=True)
UVICORN = Shape("uvicorn-websockets-sansio")
UVICORN_WSPROTO = Shape("uvicorn-wsproto")
HYPERCORN = Shape("hypercorn", spec_version="2.3", both_keys=True, gone="silent", codes="1006", late=True)
DAPHNE = Shape(
    "daphne", spec_version=None, denial=False, optional_keys=False, list_address=True, gone="silent",
    codes="none is None", own_codes_only=True,
)  # fmt: skip
GRANIAN = Shape(
    "granian", spec_version="2.3", str_port=True, again="again", gone="silent", codes="no reason", cancel_eats=True,
    one_body=True,
)  # fmt: skip
STRICT = Shape("strict", gone="runtimeerror")
"""No server of today, but allowed by the specification: it refuses with RuntimeError."""

SHAPES = (UVICORN_LEGACY, UVICORN, UVICORN_WSPROTO, HYPERCORN, DAPHNE, GRANIAN, STRICT)


class FakeServer:
    """One WebSocket connection on a server of a given shape.

    Give it to an application as `await app(server.scope, server.receive, server.send)`. `say` and `leave` are the
    client's; `sent` is what the application sent; `status` and `body` what a refused client sees.
    """

    def __init__(
        self,
        shape: Shape = UVICORN,
        path: str = "/",
        *,
        query: str | bytes = "",
        headers: Headers = (),
        subprotocols: Iterable[Any] = (),
        root_path: str = "",
        **extra: Any,
    ) -> None:
        self.shape = shape
        self.sent: list[Event] = []
        self.choked: list[str] = []
        self.calls_after_disconnect = 0
        self.sending = 0
        self.most_sending = 0
        self._inbox: collections.deque[Event | Exception] = collections.deque([{"type": "websocket.connect"}])
        self._news = anyio.Event()
        self._sent_news = anyio.Event()
        self._receiving = False
        self._gone = False
        self._told = False
        self._denial: Event | None = None
        self._state: Literal["new", "accepted", "refused", "closed"] = "new"
        self.hold: anyio.Event | None = None
        """While set, `send` blocks on it: a client that does not read."""
        self.fail: Exception | None = None
        """While set, `send` raises it."""
        self.scope = self._make_scope(path, query, _raw(headers), subprotocols, root_path) | extra

    def _make_scope(
        self,
        path: str,
        query: str | bytes,
        headers: RawHeaders,
        subprotocols: Iterable[Any],
        root_path: str,
    ) -> dict[str, Any]:
        shape = self.shape
        pairs = [] if any(name.lower() == b"host" for name, _ in headers) else [(b"host", b"testserver")]
        address: Callable[[tuple[Any, Any]], Any] = list if shape.list_address else tuple
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "path": path,
            "raw_path": path.encode(),
            "root_path": root_path,
            "query_string": query.encode() if isinstance(query, str) else query,
            "headers": pairs + headers,
            "subprotocols": list(subprotocols),
            "client": address(("127.0.0.1", "51578" if shape.str_port else 51578)),
            "server": address(("127.0.0.1", 8000)),
        }
        if shape.spec_version is not None:
            scope["asgi"]["spec_version"] = shape.spec_version
        if shape.optional_keys:
            scope |= {"scheme": "ws", "http_version": "1.1", "extensions": {}, "state": {}}
            if shape.denial:
                scope["extensions"]["websocket.http.response"] = {}
        return scope

    # The client

    def say(self, message: str | bytes) -> None:
        """Send a message, as the client."""
        event: Event = {"type": "websocket.receive"}
        if self.shape.both_keys:
            event |= {"text": None, "bytes": None}
        event["text" if isinstance(message, str) else "bytes"] = message
        self.put(event)

    def leave(self, code: int | None = 1000, reason: str = "") -> None:
        """Close, as the client; without a code as a browser's `close()` does."""
        event: Event = {"type": "websocket.disconnect"}
        match self.shape.codes:
            case "1006":
                event["code"] = 1006
            case "no reason":
                event["code"] = 1005 if code is None else code
            case "none is None":
                event["code"] = code
            case _:
                event |= {"code": 1005 if code is None else code, "reason": reason}
        self.put(event)
        self._gone = True

    def vanish(self) -> None:
        """Leave before the handshake was handed over: the first event is then the disconnect."""
        self._inbox.clear()
        self.leave(1006)

    def put(self, event: Event | Exception) -> None:
        """Hand an event to the application; an exception is what `receive` raises when its turn comes."""
        self._inbox.append(event)
        self._news.set()
        self._news = anyio.Event()

    @property
    def texts(self) -> list[str]:
        """The text messages that the application sent."""
        return [event["text"] for event in self.sent if event.get("text") is not None]

    @property
    def types(self) -> list[str]:
        """The types of the events that the application sent."""
        return [event["type"] for event in self.sent]

    @property
    def status(self) -> int | None:
        """The HTTP status that the client saw; 101 for an accepted handshake, None while it has no answer."""
        if self._state == "new":
            return None
        if "websocket.accept" in self.types:
            return 101
        return self._denial["status"] if self._denial is not None else 403

    @property
    def body(self) -> bytes:
        """The body of the denial."""
        return b"".join(event.get("body", b"") for event in self.sent if event["type"].endswith("response.body"))

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the application's close."""
        found = [event for event in self.sent if event["type"] == "websocket.close"]
        return (found[0].get("code", 1000), found[0].get("reason") or "") if found else None

    async def until(self, condition: Callable[["FakeServer"], object]) -> None:
        """Wait until the condition of this server holds; fails after the deadline."""
        with anyio.fail_after(DEADLINE):
            while not condition(self):
                await self._sent_news.wait()

    # The server

    async def receive(self) -> Event:
        """The server's `receive()`."""
        if self._receiving:
            raise self._choke("two receive() at once")
        self._receiving = True
        try:
            await anyio.lowlevel.checkpoint()
            if self._told:
                self.calls_after_disconnect += 1
                if self.shape.again == "block":
                    await anyio.sleep_forever()
                return {"type": "websocket.disconnect", "code": 1005}
            while not self._inbox:
                await self._news.wait()
            event = self._inbox.popleft()
            if isinstance(event, Exception):
                raise event
            self._told = event["type"] == "websocket.disconnect"
            return event
        except anyio.get_cancelled_exc_class():
            if self.shape.cancel_eats and self._inbox:
                self._inbox.popleft()
            raise
        finally:
            self._receiving = False

    async def send(self, event: Mapping[str, Any]) -> None:
        """The server's `send()`."""
        self.sending += 1
        self.most_sending = max(self.most_sending, self.sending)
        try:
            if self.hold is not None:
                await self.hold.wait()
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            if self.shape.late:
                with contextlib.suppress(OSError, RuntimeError):  # nobody is there any more to be told
                    self._take(dict(event))
            raise
        else:
            self._take(dict(event))
        finally:
            self.sending -= 1

    def _take(self, event: Event) -> None:
        kind = event.get("type")
        if self._state == "closed" or (self._state == "refused" and kind != "websocket.http.response.body"):
            raise self._choke(f"{kind} after the end")
        self._check(kind, event)
        if self.fail is not None:
            raise self.fail
        if self._gone and kind == "websocket.send":
            if self.shape.gone == "oserror":
                raise ClientDisconnectedError
            if self.shape.gone == "runtimeerror":
                raise RuntimeError("Cannot call send once the client has gone")
            return
        if kind == "websocket.accept":
            self._state = "accepted"
        elif kind == "websocket.close":
            self._state = "closed"
        elif kind == "websocket.http.response.start":
            self._state = "refused"
            self._denial = event
        elif kind == "websocket.http.response.body" and not event.get("more_body"):
            self._state = "closed"
        self.sent.append(event)
        self._sent_news.set()
        self._sent_news = anyio.Event()

    def _check(self, kind: Any, event: Event) -> None:
        expected: set[str] = {
            "new": {"websocket.accept", "websocket.close", "websocket.http.response.start"},
            "accepted": {"websocket.send", "websocket.close"},
            "refused": {"websocket.http.response.body"},
        }[self._state]
        if kind not in expected:
            raise self._choke(f"{kind} while {self._state}")
        checks: dict[str, Callable[[Event], None]] = {
            "websocket.accept": self._check_accept,
            "websocket.send": self._check_message,
            "websocket.close": self._check_close,
            "websocket.http.response.start": self._check_denial,
            "websocket.http.response.body": self._check_body,
        }
        checks[kind](event)

    def _check_accept(self, event: Event) -> None:
        subprotocol = event.get("subprotocol")
        if subprotocol is not None and (
            not isinstance(subprotocol, str)
            or not _TOKEN.fullmatch(subprotocol)
            or subprotocol not in self.scope["subprotocols"]
        ):
            raise self._choke(f"subprotocol {subprotocol!r}")
        self._check_headers(event.get("headers", []))
        if any(name == b"sec-websocket-protocol" for name, _ in event.get("headers", [])):
            raise self._choke("sec-websocket-protocol among the headers of accept")

    def _check_headers(self, headers: Iterable[tuple[Any, Any]]) -> None:
        for name, value in headers:
            if not isinstance(name, bytes) or not isinstance(value, bytes):
                raise self._choke(f"header {name!r}: {value!r} is not bytes")
            if name != name.lower() or not _TOKEN.fullmatch(name.decode("latin-1")):
                raise self._choke(f"header name {name!r}")
            if re.search(rb"[\x00\r\n]", value) or value != value.strip():
                raise self._choke(f"header value {value!r}")

    def _check_message(self, event: Event) -> None:
        text, data = event.get("text"), event.get("bytes")
        if (text is None) is (data is None):
            raise self._choke(f"not just one of text and bytes: {event!r}")
        if text is not None:
            if not isinstance(text, str):
                raise self._choke(f"text is {type(text)}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise self._choke("a lone surrogate") from None
        elif type(data) is not bytes:
            raise self._choke(f"bytes is {type(data)}")

    def _check_close(self, event: Event) -> None:
        code, reason = event.get("code", 1000), event.get("reason") or ""
        if type(code) is not int or not (
            code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013} or 3000 <= code <= 4999
        ):
            raise self._choke(f"close code {code!r}")
        if self.shape.own_codes_only and self._state == "accepted" and 1000 < code < 3000:
            raise self._choke(f"close code {code}, where only 1000 and 3000-4999 go")
        if len(reason.encode()) > 123:
            raise self._choke("a reason over 123 bytes")

    def _check_denial(self, event: Event) -> None:
        if not self.shape.denial:
            raise self._choke("a denial without the extension")
        if not isinstance(event.get("status"), int) or not 200 <= event["status"] <= 599:
            raise self._choke(f"status {event.get('status')!r}")
        self._check_headers(event.get("headers", []))
        if [name for name, _ in event.get("headers", [])].count(b"content-length") != 1:
            raise self._choke("a denial has just one content-length")

    def _check_body(self, event: Event) -> None:
        if event.get("more_body") and self.shape.one_body:
            raise self._choke("more_body")
        assert self._denial is not None
        length = dict(self._denial["headers"])[b"content-length"]
        if int(length) != len(event.get("body", b"")):
            raise self._choke("content-length is not the body's")

    def _choke(self, problem: str) -> ServerChokedError:
        self.choked.append(problem)
        return ServerChokedError(f"{self.shape.name} chokes on: {problem}")


async def soon(condition: Callable[[], object]) -> None:
    """Let the other tasks run until the condition holds.

    Raises:
        TimeoutError: It does not hold within the deadline.
    """
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.lowlevel.checkpoint()


def _raw(headers: Headers) -> RawHeaders:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [
        (name.encode() if isinstance(name, str) else name, value.encode() if isinstance(value, str) else value)
        for name, value in pairs
    ]


async def converse(
    app: Application, server: FakeServer, *messages: str | bytes, leave: int | None = 1000
) -> FakeServer:
    """Run a whole connection: the client says these messages and leaves. What the application raises comes out.

    Raises:
        TimeoutError: The application has not ended within the deadline.
    """
    for message in messages:
        server.say(message)
    if leave != -1:
        server.leave(leave)
    with anyio.fail_after(DEADLINE):
        await app(server.scope, server.receive, server.send)
    assert not server.choked
    return server


@dataclasses.dataclass
class HTTPAnswer:
    """What a client of HTTP got."""

    status: int
    headers: RawHeaders
    body: bytes

    def header(self, name: str) -> str | None:
        """The one header of this name."""
        found = [value.decode("latin-1") for key, value in self.headers if key == name.encode()]
        assert len(found) < 2, found
        return found[0] if found else None


async def request(
    app: Application,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Headers = (),
    body: bytes | list[bytes] = b"",
    raises: type[BaseException] | None = None,
    **extra: Any,
) -> HTTPAnswer:
    """One HTTP request to an application. With `raises`, the application must raise that after its answer."""
    chunks = list(body) if isinstance(body, list) else [body]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"testserver"), *_raw(headers)], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "extensions": {}, "state": {},
    } | extra  # fmt: skip
    sent: list[Event] = []

    async def receive() -> Event:
        await anyio.lowlevel.checkpoint()
        if chunks:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append(event)

    caught: BaseException | None = None
    with anyio.fail_after(DEADLINE):
        try:
            await app(scope, receive, send)
        except BaseException as error:
            if raises is None or not isinstance(error, raises):
                raise
            caught = error
    assert (raises is None) == (caught is None), f"expected {raises} to be raised"
    assert [event["type"] for event in sent[:1]] == ["http.response.start"], sent
    assert all(event["type"] == "http.response.body" for event in sent[1:])
    assert [bool(event.get("more_body")) for event in sent[1:]] == [True] * (len(sent) - 2) + [False], sent
    return HTTPAnswer(sent[0]["status"], list(sent[0]["headers"]), b"".join(e.get("body", b"") for e in sent[1:]))
