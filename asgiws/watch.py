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
import functools
import math
import time
from typing import Any

import anyio

from .background import current_task, scoped_send_of, spawn, tasks_inside, uncancel
from .errors import HTTPException, WebSocketDisconnect
from .log import logger
from .session import SENDERS, Session, Verdict, busy_receive, quiet_receive
from .states import ASKED, OPEN, OPENING

TICK = 0.25
"""Seconds between two looks."""

GOODBYE = 2.0
"""Seconds that a close by the watchdog may take."""

_EMPTY_LOOKS = 8  # after so many looks at nothing the watchdog ends; the next connection starts it again


class Note:
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


class Record:
    """What the watchdogs of an app know of its connections.

    Attributes:
        taken_over: How often one has begun to read for a handler.
        cancelled: How many handlers were cancelled.
        dropped: How many connections were given up because a send took too long.
        notes: Of the few connections that are not as usual.
    """

    __slots__ = ("cancelled", "dropped", "notes", "taken_over")

    def __init__(self) -> None:
        self.taken_over = 0
        self.cancelled = 0
        self.dropped = 0
        self.notes: dict[Session, Note] = {}

    def note(self, ws: Session) -> Note:
        """What is known of a connection that is not as usual."""
        note = self.notes.get(ws)
        if note is None:
            note = self.notes[ws] = Note()
        return note

    def end(self, ws: Session, code: int, reason: str) -> None:
        """Close a connection from outside; its handler sees a disconnect with this code."""
        note = self.note(ws)
        if not note.ending:
            note.ending = True
            spawn(functools.partial(end, ws, code, reason))


class Watch:
    """The watchdog of one event loop.

    Args:
        record: Where it notes what it does.

    Attributes:
        open: The connections that it looks at.
        looking: Whether it does.
        now: When it last did.
        current_task: Gives the task that runs; not on trio.
    """

    __slots__ = ("_ended", "_record", "_scope", "_to_cancel", "current_task", "looking", "now", "open")

    def __init__(self, record: Record) -> None:
        self._record = record
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

    async def shut(self) -> None:
        """Close what is open with 1012, and wait for it, no longer than a handler may linger."""
        linger = max((ws._limits.linger for ws in self.open), default=0)
        for ws in list(self.open):
            self._record.end(ws, 1012, "the server stops")
        with anyio.move_on_after(linger + GOODBYE):
            while self.open:  # noqa: ASYNC110 - every one of them may be the last
                await anyio.sleep(TICK / 5)

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
            self._record.taken_over += inbox is None
            ws.since = now
        ws.read_ahead()
        inbox = ws._inbox
        if inbox is None:
            return
        if inbox.heard:
            inbox.heard = False
            ws.since = now
        note = self._record.notes.get(ws)
        if not inbox.full:
            if note is not None:
                note.full = None
            return
        note = note or self._record.note(ws)
        if note.full is None:
            note.full = now
        elif now - note.full >= ws._limits.inbox_timeout:
            self._record.end(ws, 1008, "you send more than this service can read")

    def _not_open(self, ws: Session, now: float) -> None:
        phase = ws._phase
        if phase is OPENING or phase is ASKED:
            # granian tells nothing before the answer.
            if ws._inbox is None and now - ws.opened >= 2 * TICK and not ws.is_receiving and not ws.server_eats:
                ws.read_ahead()
        elif ws._closing is not None and ws._closing[0] != "you":
            note = self._record.note(ws)
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
            within = math.inf if limits.accept_timeout is None or ws._sending else limits.accept_timeout
            if now - ws.opened >= within:
                self._to_cancel[ws] = HTTPException(503, "the handshake was not answered in time", {"retry-after": "5"})
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
            self._record.end(ws, code, reason)
        return moment

    def _beat(self, ws: Session, every: float, now: float) -> float:
        """Ask a client for a sign of life; when to look again."""
        note = self._record.note(ws)
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
                self._record.cancelled += 1
                logger().debug("%s: the handler of connection %s is cancelled: %s", ws.where, ws.id, error)
                ws.canceller = Verdict(error, canceller)
                canceller.cancel()

    def _give_up(self, stuck: set[Session]) -> None:
        """Cut the sends that take too long. None is tried again: nobody knows how much of it went out."""
        inside: dict[Any, Any] | None = None
        for ws in stuck:
            self._record.dropped += 1
            logger().info("%s: connection %s is given up, a send took too long", ws.where, ws.id)
            ws.give_up(1013, "you read too slowly")
            _cut_line(ws)
            scoped = scoped_send_of(ws._server_send)
            if scoped is not None:
                scoped.cut()
                continue
            inside = tasks_inside(stuck, SENDERS, "_turn") if inside is None else inside
            task = inside.get(ws)
            if task is not None:
                ws.cut = functools.partial(uncancel, task)
                task.cancel()


async def end(ws: Session, code: int, reason: str) -> None:
    """Close a connection, and give it up if that takes too long."""
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
        _cut_line(ws)


def _cut_line(ws: Session) -> None:
    """Give up what is being sent from the line of a socket that is a member of topics."""
    cut = getattr(ws._queue, "cut", None)
    if cut is not None:
        cut()


async def _ping(ws: Any) -> None:
    try:
        await ws.send_json({"type": "ping"})
    except Exception as error:  # noqa: BLE001 - it is the next look that tells
        logger().debug("connection %s: no ping could be sent: %r", ws.id, error)
