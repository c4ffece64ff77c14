"""The open WebSockets of an app: who may come, what is known of them, and what they have come to."""

# ruff: noqa: SLF001 - who keeps the sessions looks into them
import collections
import time
from _thread import get_ident
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import msgspec

from .errors import ConfigurationError, HTTPException
from .log import logger
from .session import Session
from .signature import name_of
from .taps import Paced, Traffic, count_traffic
from .types import Message, Send
from .watch import Record, Watch
from .websocket import WebSocket


class Statistics(msgspec.Struct, frozen=True):
    """What an app's connections have come to.

    Attributes:
        open: How many there are now, handshakes included.
        opened: How many have come, refused ones not included.
        refused: How many the limits have refused, by cause: "connections", "client", "query", "headers", "draining".
        closed: How many have ended, by close code; 4000 + status for a handshake that was refused.
        taken_over: How often the watchdog has begun to read for a handler.
        cancelled: How many handlers were cancelled, since they went on without a client or took too long to accept.
        dropped: How many connections were given up because a send took too long.
        traffic: What went in and out; None unless `count_traffic()` was called.
    """

    open: int
    opened: int
    refused: Mapping[str, int]
    closed: Mapping[int, int]
    taken_over: int
    cancelled: int
    dropped: int
    traffic: Traffic | None = None


class Summary(msgspec.Struct, frozen=True):
    """One connection that has ended.

    Attributes:
        id: The connection's, as in the log.
        route: The path template of its route.
        path: Its path.
        accepted: Whether the handshake was accepted.
        code: The close code, or 4000 + status for a refused handshake.
        reason: The reason of the close.
        seconds: How long it lasted, to a quarter of a second.
        traffic: What went in and out; None unless `count_traffic()` was called.
    """

    id: str
    route: str
    path: str
    accepted: bool
    code: int
    reason: str
    seconds: float
    traffic: Traffic | None = None


OpenHook = Callable[[WebSocket[Any, Any]], Any]
CloseHook = Callable[[Summary], Any]


class Connections:
    """The open WebSockets of an app, and the watchdogs over them: one for each event loop, mostly one.

    Attributes:
        record: What the watchdogs note of them.
    """

    def __init__(self) -> None:
        self._watches: dict[int, Watch] = {}  # by thread
        self._refused: collections.Counter[str] = collections.Counter()
        self._closed: dict[int, int] = {}
        self._clients: collections.Counter[Any] = collections.Counter()
        self.record = Record()
        self._draining = False
        self._open_hooks: list[OpenHook] = []
        self._close_hooks: list[CloseHook] = []
        self._traffic: Traffic | None = None  # of all that have ended
        self._traffic_of: dict[Session, Traffic] = {}

    # Seen from outside

    def __len__(self) -> int:
        return sum(len(watch.open) for watch in self._watches.values())

    def __iter__(self) -> Iterator[Any]:
        """The open WebSockets."""
        return iter([ws for watch in list(self._watches.values()) for ws in list(watch.open)])

    def __repr__(self) -> str:
        return f"<{len(self)} connections>"

    def by_route(self) -> dict[str, int]:
        """How many are open, by the path template of their route."""
        return dict(collections.Counter(_route_of(ws) for ws in self))

    def statistics(self) -> Statistics:
        """What they have come to until now."""
        return Statistics(
            len(self), len(self) + sum(self._closed.values()), dict(self._refused),
            {_close_code(code): count for code, count in self._closed.items()}, self.record.taken_over,
            self.record.cancelled, self.record.dropped, self._whole_traffic(),
        )  # fmt: skip

    def _whole_traffic(self) -> Traffic | None:
        return self._traffic and self._traffic.plus(*self._traffic_of.values())

    def count_traffic(self) -> None:
        """Have the messages and bytes of every connection counted that comes from now on.

        It is off unless called, since it is the one thing in the statistics that has a price per message.
        """
        self._traffic = self._traffic or Traffic()

    def on_open(self, function: OpenHook) -> OpenHook:
        """Have a plain function called with each WebSocket that is accepted. It must not wait for anything."""
        self._open_hooks.append(checked_hook(function, "on_open"))
        return function

    def on_close(self, function: CloseHook) -> CloseHook:
        """Have a plain function called with the `Summary` of each connection that has ended."""
        self._close_hooks.append(checked_hook(function, "on_close"))
        return function

    # Come and go

    def enter(self, ws: Session, where: str, canceller: "anyio.CancelScope | None" = None) -> HTTPException | None:
        """Take a connection in, or tell why not.

        Args:
            ws: The connection.
            where: Its route.
            canceller: The scope that its handler runs in; None for the task that runs.
        """
        limits = ws._limits
        if (
            self._draining
            or limits.connections is not None
            or limits.connections_per_client is not None
            or limits.query_bytes is not None
            or limits.header_bytes is not None
        ):
            refusal = self._refusal(ws)
            if refusal is not None:
                return refusal
        watch = self._watches.get(get_ident())
        if watch is None:
            watch = self._watches[get_ident()] = Watch(self.record)
        elif not watch.looking:
            watch.start()
        canceller = canceller or watch.current_task()
        if canceller is None:  # it was of an event loop that was left without an end
            watch.start()
            canceller = watch.current_task()
        watch.open.add(ws)
        ws.watch = watch
        ws.where = where
        ws.canceller = canceller
        ws.opened = ws.since = ws.due = watch.now
        if self._traffic is not None:
            self._traffic_of[ws] = count_traffic(ws)
        if limits.messages_per_second is not None:
            ws._server_receive = Paced(ws, ws._server_receive, limits.messages_per_second, limits.burst)
        if self._open_hooks or self._close_hooks:
            ws._server_send = self._telling(ws, ws._server_send)
        return None

    def leave(self, ws: Session) -> None:
        """Let a connection go that has ended."""
        ws.watch.open.discard(ws)
        if ws._inbox is not None:
            ws._inbox.stop()
        if ws._queue is not None:
            release = getattr(ws._queue, "release", None)  # of a socket that is a member of topics
            if release is not None:
                release()
        closing = ws._closing
        code = 1006 if closing is None else closing[1]
        self._closed[code] = self._closed.get(code, 0) + 1
        if self.record.notes:
            self._forget(ws)
        traffic = None
        if self._traffic is not None:
            traffic = self._traffic_of.pop(ws, None)
            self._traffic = self._traffic.plus(traffic) if traffic is not None else self._traffic
        if self._close_hooks:
            self._has_closed(ws, traffic)

    def _forget(self, ws: Session) -> None:
        note = self.record.notes.pop(ws, None)
        if note is not None and note.counted:
            self._clients[note.key] -= 1
            if not self._clients[note.key]:
                del self._clients[note.key]

    def _refusal(self, ws: Session) -> HTTPException | None:
        limits = ws._limits
        if self._draining:
            return self._no("draining", HTTPException(503, "this service is going down", _retry_after(5)))
        if limits.connections is not None and len(self) >= limits.connections:
            return self._no("connections", HTTPException(503, "there are too many connections", _retry_after(5)))
        if limits.connections_per_client is not None:
            key = _client_of(ws)
            if self._clients[key] >= limits.connections_per_client:
                return self._no("client", HTTPException(429, "you have too many connections", _retry_after(5)))
        if limits.query_bytes is not None and len(ws.scope.get("query_string", b"")) > limits.query_bytes:
            return self._no("query", HTTPException(414, f"the query string has over {limits.query_bytes} bytes"))
        if limits.header_bytes is not None and _size_of_headers(ws) > limits.header_bytes:
            return self._no("headers", HTTPException(431, f"the headers have over {limits.header_bytes} bytes"))
        if limits.connections_per_client is not None:
            self._clients[key] += 1
            note = self.record.note(ws)
            note.key, note.counted = key, True
        return None

    def _no(self, cause: str, refusal: HTTPException) -> HTTPException:
        self._refused[cause] += 1
        return refusal

    def _telling(self, ws: Any, send: Send) -> Send:
        """The server's `send()`, until it has told the hooks of an accept."""

        async def tell(event: Message) -> None:
            await send(event)
            if event["type"] == "websocket.accept":
                ws._server_send = send
                ws.was_open = True
                for hook in self._open_hooks:
                    _call(hook, ws)

        tell.inner = send  # type: ignore[attr-defined]
        return tell

    def _has_closed(self, ws: Session, traffic: Traffic | None) -> None:
        code = ws.close_code or 1006
        summary = Summary(
            ws.id, _route_of(ws), ws.scope.get("path", ""), getattr(ws, "was_open", False), code, ws.close_reason or "",
            time.monotonic() - ws.opened, traffic,
        )  # fmt: skip
        for hook in self._close_hooks:
            _call(hook, summary)

    # The watchdogs

    def look(self) -> None:
        """Look over all open connections of this event loop once."""
        watch = self._watches.get(get_ident())
        if watch is not None:
            watch.look()

    async def shut(self) -> None:
        """Close what is open in this event loop with 1012, and wait for it, no longer than a handler may linger.

        Most servers end their connections before the lifespan, granian with it.
        """
        watch = self._watches.get(get_ident())
        if watch is not None:
            await watch.shut()
            await self.rest()

    async def rest(self) -> None:
        """End the watchdog of this event loop, unless there are connections; the next one starts it again."""
        watch = self._watches.get(get_ident())
        if watch is not None:
            await watch.rest()
            if not watch.open:
                del self._watches[get_ident()]

    # The end

    async def close_all(self, code: int = 1012, reason: str = "", window: float = 0.0) -> None:
        """Close all connections of this event loop and refuse new ones with 503, before a deployment.

        Args:
            code: As `WebSocket.close` takes it.
            reason: Same.
            window: Seconds over which the closes are spread, so that not all clients come back at once.
        """
        self._draining = True
        start = anyio.current_time()
        watch = self._watches.get(get_ident())
        waiting = [] if watch is None else list(watch.open)
        for at, ws in enumerate(waiting):
            await anyio.sleep_until(start + window * at / len(waiting))
            if ws in ws.watch.open:
                self.record.end(ws, code, reason)


def _route_of(ws: Session) -> str:
    return ws.where.partition(" (")[0].removeprefix("websocket ")


def _client_of(ws: Session) -> Any:
    if ws._limits.client_key is not None:
        return ws._limits.client_key(ws)
    client = ws.scope.get("client")
    return client[0] if client else None


def _size_of_headers(ws: Session) -> int:
    return sum(len(name) + len(value) for name, value in ws.scope.get("headers") or ())


def _retry_after(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}


def checked_hook(function: Any, name: str) -> Any:
    """A hook, which must be a plain function; raises ConfigurationError."""
    import inspect  # noqa: PLC0415 - only needed where there is a hook

    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{name} takes a plain function, got {name_of(function)}: it is called between two steps of the connection"
        )
    return function


def _call(hook: Any, what: Any) -> None:
    try:
        hook(what)
    except Exception:  # noqa: BLE001 - whatever the hook raises must not touch the connection
        logger().exception("the hook %s failed", name_of(hook))


def _close_code(code: int) -> int:
    return code if code >= 1000 else 4000 + code  # noqa: PLR2004 - below are HTTP statuses
