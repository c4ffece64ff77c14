"""The watchdog: one look over all open connections, four times a second, and what is known of them.

While a handler reads, it awaits the server's `receive()` itself, and a look only notes that. Who has not been reading
from one look to the next is read ahead for, so that its client's messages, pongs and end are not overlooked. Every
limit that has to do with time is enforced here, and costs nothing for a message.

Theory of operation. A look tells what happened since the last one from what stands in the session: a receiver puts
`busy_receive` into `_receive`, and the look puts `quiet_receive` there: if that still stands at the next look, nothing
has come. Where nobody receives, the look puts `again` there, which does the same as what it replaces: if it still
stands at the next look, the handler has not read. A sender puts True into `_sending`, and the look the time.
"""

# ruff: noqa: SLF001 - the watchdog looks into the sessions
import collections
import functools
import math
import time
from _thread import get_ident
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import msgspec

from .background import ScopedSend, current_task, spawn, tasks_inside, uncancel
from .errors import ConfigurationError, HTTPException, WebSocketDisconnect
from .log import logger
from .session import SENDERS, Session, Verdict, busy_receive, quiet_receive
from .signature import name_of
from .states import ASKED, OPEN, OPENING
from .types import Message, Send
from .websocket import WebSocket

TICK = 0.25
"""Seconds between two looks."""

GOODBYE = 2.0
"""Seconds that a close by the watchdog may take."""

_EMPTY_LOOKS = 8  # after so many looks at nothing the watchdog ends; the next connection starts it again


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
    """

    open: int
    opened: int
    refused: Mapping[str, int]
    closed: Mapping[int, int]
    taken_over: int
    cancelled: int
    dropped: int


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
    """

    id: str
    route: str
    path: str
    accepted: bool
    code: int
    reason: str
    seconds: float


OpenHook = Callable[[WebSocket[Any, Any]], Any]
CloseHook = Callable[[Summary], Any]


class _Note:
    """What is known of a connection that is not as usual.

    Attributes:
        gone: When the client was seen to be gone.
        full: Since when the inbox is full.
        pinged: When the client was asked for a sign of life.
        ending: The watchdog is closing it.
        key: Whose it is, where connections are counted by client.
        counted: Whether they are.
    """

    __slots__ = ("counted", "ending", "full", "gone", "key", "pinged")

    def __init__(self) -> None:
        self.gone: float | None = None
        self.full: float | None = None
        self.pinged: float | None = None
        self.ending = False
        self.key: Any = None
        self.counted = False


class Watch:
    """The watchdog of one event loop.

    Args:
        connections: Whose it is.

    Attributes:
        open: The connections that it looks at.
        looking: Whether it does.
        now: When it last did.
        current_task: Gives the task that runs; not on trio.
    """

    __slots__ = ("_all", "_ended", "_scope", "_to_cancel", "current_task", "looking", "now", "open")

    def __init__(self, connections: "Connections") -> None:
        self._all = connections
        self._to_cancel: dict[Session, Exception] = {}
        self._scope: anyio.CancelScope | None = None
        self._ended: anyio.Event | None = None
        self.open: set[Session] = set()
        self.looking = False
        self.now = 0.0
        self.start()

    def start(self) -> None:
        """Begin to look."""
        self.looking = True
        self.now = time.monotonic()
        self.current_task = current_task()
        spawn(self._run)

    async def _run(self) -> None:
        empty = 0
        self._scope = anyio.CancelScope()
        ended = self._ended = anyio.Event()
        try:
            with self._scope:
                while empty < _EMPTY_LOOKS:
                    await anyio.sleep(TICK)
                    empty = 0 if self.open else empty + 1
                    self._look_safely()
        finally:
            self.looking = False
            ended.set()
            if self.open and self._scope.cancel_called:  # who came while it was told to end
                self.start()

    def _look_safely(self) -> None:
        try:
            self.look()
        except Exception:  # noqa: BLE001 - a fault at one connection must not leave all others unwatched
            logger().exception("a look of the watchdog failed")

    async def rest(self) -> None:
        """End, unless there are connections; the next one starts it again."""
        if self.looking and not self.open and self._scope is not None and self._ended is not None:
            self._scope.cancel()
            await self._ended.wait()

    def look(self) -> None:
        """Look over all open connections once."""
        now = self.now = time.monotonic()
        stuck: set[Session] = set()
        for ws in list(self.open):
            receive = ws._receive
            if receive is busy_receive:
                ws._receive = quiet_receive
                ws.since = now
            elif receive is not quiet_receive and ws._phase is OPEN:
                self._not_reading(ws, receive, now)
            if ws._phase is not OPEN:
                self._not_open(ws, now)
            sending = ws._sending
            if sending:
                if sending is True:
                    ws._sending = now
                elif now - sending >= ws._limits.send_timeout:
                    stuck.add(ws)
            if ws.due <= now:
                self._check_times(ws, now)
        if self._to_cancel:
            self._cancel_all()
        if stuck:
            self._give_up(stuck)

    def _not_reading(self, ws: Session, receive: Any, now: float) -> None:
        if receive != ws.again:
            ws._receive = ws.again
            ws.since = now
            return
        inbox = ws._inbox
        if inbox is None or inbox.done:
            self._all.taken_over += inbox is None
            ws.since = now
        ws.read_ahead()
        inbox = ws._inbox
        if inbox is None:
            return
        if inbox.heard:
            inbox.heard = False
            ws.since = now
        note = self._all.notes.get(ws)
        if not inbox.full:
            if note is not None:
                note.full = None
            return
        note = note or self._all.note(ws)
        if note.full is None:
            note.full = now
        elif now - note.full >= ws._limits.inbox_timeout:
            self._all.end(ws, 1008, "you send more than this service can read")

    def _not_open(self, ws: Session, now: float) -> None:
        phase = ws._phase
        if phase is OPENING or phase is ASKED:
            # granian tells nothing before the answer.
            if ws._inbox is None and now - ws.opened >= 2 * TICK and not ws.is_receiving and not ws.server_eats:
                ws.read_ahead()
        elif ws._closing is not None and ws._closing[0] != "you":
            note = self._all.note(ws)
            if note.gone is None:
                note.gone = now
            if now - note.gone >= ws._limits.linger:
                self._to_cancel[ws] = WebSocketDisconnect(*ws._closing[1:])

    def _check_times(self, ws: Session, now: float) -> None:
        """End what has lasted too long, and note when to check again."""
        limits = ws._limits
        due = math.inf
        if ws._phase is OPENING or ws._phase is ASKED:
            due = now  # at the next look
            if limits.accept_timeout is not None and now - ws.opened >= limits.accept_timeout:
                self._to_cancel[ws] = HTTPException(503, "the handshake was not answered in time", _retry_after(5))
        elif ws._phase is OPEN:
            if limits.lifetime is not None:
                share = 1 - (id(ws) >> 4) % 1000 / 10_000
                due = min(due, self._end_at(ws, ws.opened + limits.lifetime * share, 1001, "connect again"))
            if limits.idle_timeout is not None:
                due = min(due, self._end_at(ws, ws.since + limits.idle_timeout, 1001, "you sent nothing"))
            if limits.heartbeat is not None:
                due = min(due, self._beat(ws, limits.heartbeat, now))
        ws.due = due

    def _end_at(self, ws: Session, moment: float, code: int, reason: str) -> float:
        if self.now >= moment:
            self._all.end(ws, code, reason)
        return moment

    def _beat(self, ws: Session, every: float, now: float) -> float:
        """Ask a client for a sign of life; when to look again."""
        note = self._all.note(ws)
        pinged = note.pinged
        if pinged is not None and ws.since < pinged:
            return self._end_at(ws, pinged + every, 1001, "no sign of life")
        if now - ws.since < every:
            note.pinged = None
            return ws.since + every
        note.pinged = now
        spawn(functools.partial(_ping, ws))
        return now + every

    def _cancel_all(self) -> None:
        """Cancel the handlers that are to be, but for those that are cleaning up or were cancelled before."""
        waiting = {ws: error for ws, error in self._to_cancel.items() if ws.canceller is not None}
        self._to_cancel.clear()
        for ws, error in waiting.items():
            canceller = ws.canceller
            if not isinstance(canceller, Verdict):
                self._all.cancelled += 1
                logger().debug("%s: the handler of connection %s is cancelled: %s", ws.where, ws.id, error)
                ws.canceller = Verdict(error, canceller)
                canceller.cancel()

    def _give_up(self, stuck: set[Session]) -> None:
        """Cut the sends that take too long. None is tried again: nobody knows how much of it went out."""
        inside: dict[Any, Any] | None = None
        for ws in stuck:
            self._all.dropped += 1
            logger().info("%s: connection %s is given up, a send took too long", ws.where, ws.id)
            ws.give_up(1013, "you read too slowly")
            ws._sending = math.inf  # it is not looked at again
            sender = ws._server_send
            if isinstance(sender, ScopedSend):
                sender.cut()
                continue
            inside = tasks_inside(stuck, SENDERS, "_turn") if inside is None else inside
            task = inside.get(ws)
            if task is not None:
                ws.cut = functools.partial(uncancel, task)
                task.cancel()


class Connections:
    """The open WebSockets of an app, and the watchdogs over them: one for each event loop, mostly one."""

    def __init__(self) -> None:
        self._watches: dict[int, Watch] = {}  # by thread
        self._refused: collections.Counter[str] = collections.Counter()
        self._closed: dict[int, int] = {}
        self._clients: collections.Counter[Any] = collections.Counter()
        self.taken_over = 0
        self.cancelled = 0
        self.dropped = 0
        self.notes: dict[Session, _Note] = {}  # of the few that are not as usual
        self._draining = False
        self._open_hooks: list[OpenHook] = []
        self._close_hooks: list[CloseHook] = []

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
            {_close_code(code): count for code, count in self._closed.items()}, self.taken_over, self.cancelled,
            self.dropped,
        )  # fmt: skip

    def on_open(self, function: OpenHook) -> OpenHook:
        """Have a plain function called with each WebSocket that is accepted. It must not wait for anything."""
        self._open_hooks.append(_checked_hook(function, "on_open"))
        return function

    def on_close(self, function: CloseHook) -> CloseHook:
        """Have a plain function called with the `Summary` of each connection that has ended."""
        self._close_hooks.append(_checked_hook(function, "on_close"))
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
            watch = self._watches[get_ident()] = Watch(self)
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
        if limits.messages_per_second is not None:
            ws._server_receive = _Paced(ws, ws._server_receive, limits.messages_per_second, limits.burst)
        if self._open_hooks or self._close_hooks:
            ws._server_send = self._telling(ws, ws._server_send)
        return None

    def leave(self, ws: Session) -> None:
        """Let a connection go that has ended."""
        ws.watch.open.discard(ws)
        if ws._inbox is not None:
            ws._inbox.stop()
        closing = ws._closing
        code = 1006 if closing is None else closing[1]
        self._closed[code] = self._closed.get(code, 0) + 1
        if self.notes:
            self._forget(ws)
        if self._close_hooks:
            self._has_closed(ws)

    def _forget(self, ws: Session) -> None:
        note = self.notes.pop(ws, None)
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
            note = self.note(ws)
            note.key, note.counted = key, True
        return None

    def note(self, ws: Session) -> "_Note":
        """What is known of a connection that is not as usual."""
        note = self.notes.get(ws)
        if note is None:
            note = self.notes[ws] = _Note()
        return note

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

        return tell

    def _has_closed(self, ws: Session) -> None:
        code = ws.close_code or 1006
        summary = Summary(
            ws.id, _route_of(ws), ws.scope.get("path", ""), getattr(ws, "was_open", False), code, ws.close_reason or "",
            time.monotonic() - ws.opened,
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
            linger = max((ws._limits.linger for ws in watch.open), default=0)
            for ws in list(watch.open):
                self.end(ws, 1012, "the server stops")
            with anyio.move_on_after(linger + GOODBYE):
                while watch.open:  # noqa: ASYNC110 - every one of them may be the last
                    await anyio.sleep(TICK / 5)
            await self.rest()

    async def rest(self) -> None:
        """End the watchdog of this event loop, unless there are connections; the next one starts it again."""
        watch = self._watches.get(get_ident())
        if watch is not None:
            await watch.rest()
            if not watch.open:
                del self._watches[get_ident()]

    # The end

    def end(self, ws: Session, code: int, reason: str) -> None:
        """Close a connection from outside; its handler sees a disconnect with this code."""
        note = self.note(ws)
        if not note.ending:
            note.ending = True
            spawn(functools.partial(_end, ws, code, reason))

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
                self.end(ws, code, reason)


class _Paced:
    """A server's `receive()` with a token bucket.

    Args:
        ws: Whose it is.
        receive: The server's.
        rate: Messages a second.
        burst: The size of the bucket.
    """

    __slots__ = ("_at", "_burst", "_left", "_rate", "_receive", "_ws")

    def __init__(self, ws: Session, receive: Any, rate: float, burst: int) -> None:
        self._ws = ws
        self._receive = receive
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = time.monotonic()

    async def __call__(self) -> Any:
        event = await self._receive()
        if event["type"] != "websocket.receive":
            return event
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - 1
        self._at = now
        if self._left >= 0:
            return event
        if self._ws._inbox is not None:
            self._ws._inbox.closes = True  # it is the reader that runs here
        await _end(self._ws, 1008, "you send too many messages")
        return {"type": "websocket.disconnect", "code": 1008, "reason": ""}


async def _end(ws: Session, code: int, reason: str) -> None:
    with anyio.move_on_after(GOODBYE) as scope:
        # The handler reads the `websocket.connect` just now, and nobody tells when it has.
        while ws._phase is OPENING and ws.is_receiving:  # noqa: ASYNC110
            await anyio.sleep(TICK)
        try:
            await ws.end("asgiws", code, reason)
        except Exception as error:  # noqa: BLE001 - nobody waits for this task
            logger().debug("connection %s could not be closed: %r", ws.id, error)
    if scope.cancelled_caught:
        ws.give_up(code, reason)


async def _ping(ws: Any) -> None:
    try:
        await ws.send_json({"type": "ping"})
    except Exception as error:  # noqa: BLE001 - it is the next look that tells
        logger().debug("connection %s: no ping could be sent: %r", ws.id, error)


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


def _checked_hook(function: Any, name: str) -> Any:
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
