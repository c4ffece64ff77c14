"""What waits to be sent to one socket, beside what its handler sends itself.

There is one line for everything: the session's queue of those who wait for their turn to send, in which a handler's
send stands as an event and a publication as a frame. So nothing overlaps, and what was sent first goes out first.

A publisher takes the first step of a send itself, where that is safe: mostly it is the only one, and costs no task.
What has to wait for the client is carried on by a task, while the line fills up to its limits.
"""

# ruff: noqa: SLF001 - the line is a part of the session
import collections
import contextlib
import functools
import types
from collections.abc import Callable, Generator, Iterable
from typing import Any, Self

import anyio

from ..background import on_trio, spawn, spawn_cut
from ..errors import WebSocketDisconnect, WebSocketStateError
from ..log import logger
from ..session import Session
from ..states import OPEN
from ..types import Message
from ..watch import end

TASKLESS = {"asgiws.testing", "daphne", "hypercorn", "uvicorn"}
"""Packages whose `send()` does not mind in which task of asyncio it goes on after its first step. A `send()` of anybody
else may have entered a scope or a timeout in the first one, which is bound to the task."""


class Frame:
    """A message in the line. When its turn comes, the session calls `set()`, as with any other one who waits.

    Args:
        outbox: The line.
        owner: For whom it stands there: what makes room again drops frames of the same owner only.
        kind: "text" or "bytes".
        data: The content.
        size: Its bytes.
        key: What it is the latest of.

    Attributes:
        missing: How many messages it stands for that were dropped; such a frame has no content yet.
    """

    __slots__ = ("data", "key", "kind", "missing", "outbox", "owner", "size")

    def __init__(self, outbox: "Outbox", owner: Any, kind: str, data: Any, size: int, key: Any = None) -> None:
        self.outbox = outbox
        self.owner = owner
        self.kind = kind
        self.data = data
        self.size = size
        self.key = key
        self.missing = 0

    def set(self) -> None:
        """Go on with it."""
        self.outbox.proceed(self)

    def event(self) -> Message:
        """What is sent."""
        if self.missing:
            self.kind, self.data = self.owner.dropped(self.missing)
        return {"type": "websocket.send", self.kind: self.data}


class Outbox(collections.deque[Any]):
    """The line of one socket that is a member of a topic.

    Args:
        ws: The socket.
        waiting: Who waits already.

    Attributes:
        at_end: Functions that are called when the connection has ended, by what they are for.
        eager: Publishers take the first step of a send.
        frames: How many frames wait.
        size: How many bytes they have.
    """

    __slots__ = ("_closing", "_cut", "_progress", "_ws", "at_end", "eager", "frames", "size")

    def __init__(self, ws: Session, waiting: Iterable[Any] = ()) -> None:
        super().__init__(waiting)
        self._ws = ws
        self._cut: Callable[[], Any] | None = None
        self._closing = False
        self._progress: anyio.Event | None = None
        self.at_end: dict[Any, Callable[[], None]] = {}
        self.eager = not on_trio() and is_taskless(ws._server_send)
        self.frames = 0
        self.size = 0

    @classmethod
    def of(cls, ws: Session) -> Self:
        """The line of a socket, which gets one if it had none."""
        line = ws._queue
        if not isinstance(line, cls):
            line = ws._queue = cls(ws, line or ())
        return line

    def send(self, owner: Any, kind: str, data: Any, size: int, key: Any = None, *, always: bool = False) -> bool:
        """Send a message, or put it in the line; whether it went out at once.

        Args:
            owner: As `Frame` has it.
            kind: Same.
            data: Same.
            size: Same.
            key: Same.
            always: Put it in the line though there be no room.
        """
        ws = self._ws
        if ws._sending or not self.eager:
            if self._closing:
                return True
            frame = Frame(self, owner, kind, data, size, key)
            if always:
                self.put(frame)
            else:
                self._stand_in_line(frame)
            return False
        sending: Any = ws._send({"type": "websocket.send", kind: data})
        try:
            yielded = sending.send(None)
        except StopIteration:
            return True
        except Exception as error:  # noqa: BLE001 - the handler is told of the end of its connection, not a publisher
            self._failed(error)
            return True
        self._carry_on(functools.partial(_resumed, sending, yielded))
        return True

    def _stand_in_line(self, frame: Frame) -> None:
        if frame.key is not None or not self.fits(frame.size):
            frame.owner.make_room(frame)
            return
        self.put(frame)

    def put(self, frame: Frame) -> None:
        """Put a frame at the end of the line."""
        if self._ws._phase is not OPEN or self._closing:
            return
        self.frames += 1
        self.size += frame.size
        if self._ws._sending:
            self.append(frame)
        else:
            self._ws._sending = True
            self.proceed(frame)

    def fits(self, size: int, messages: int = 1) -> bool:
        """Whether there is room for so many bytes in so many messages; for a single one there always is."""
        if not self.frames and messages == 1:
            return True
        limits = self._ws._limits
        return self.frames + messages <= limits.outbox_messages and self.size + size <= limits.outbox_bytes

    def of_owner(self, owner: Any) -> list[Frame]:
        """The frames of an owner that wait, the first first."""
        return [one for one in self if one.__class__ is Frame and one.owner is owner]

    def swap(self, frame: Frame, kind: str, data: Any, size: int) -> None:
        """Give a frame that waits another content."""
        self.size += size - frame.size
        frame.kind, frame.data, frame.size = kind, data, size

    def drop(self, frame: Frame) -> None:
        """Take a frame out of the line."""
        self.remove(frame)
        self._left(frame)

    def _left(self, frame: Frame) -> None:
        self.frames -= 1
        self.size -= frame.size
        if self._progress is not None:
            self._progress.set()

    async def room_for(self, size: int, messages: int) -> None:
        """Wait until there is room for so many bytes in so many messages, or nothing is sent any more."""
        while self.frames and not self.fits(size, messages) and self._ws._phase is OPEN and not self._closing:
            self._progress = anyio.Event()
            await self._progress.wait()

    def proceed(self, frame: Frame) -> None:
        """Send a frame that has the turn, and those behind it, until one has to wait or another sender is the next."""
        ws = self._ws
        if ws._phase is not OPEN:
            self._left(frame)
            self.empty()
            ws._pass_turn()
            return
        while self.eager:
            self._left(frame)
            sending: Any = ws._send(frame.event())
            try:
                yielded = sending.send(None)
            except StopIteration:
                pass
            except Exception as error:  # noqa: BLE001 - see `send`
                self._failed(error)
            else:
                self._carry_on(functools.partial(_resumed, sending, yielded))
                return
            if not self or self[0].__class__ is not Frame:
                ws._pass_turn()
                return
            frame = self.popleft()
        self._left(frame)
        event = frame.event()
        self._carry_on(lambda: ws._send(event))  # the socket may have ended by then

    def _carry_on(self, sending: Callable[[], Any]) -> None:
        self._ws._sending = True
        self._cut = spawn_cut(functools.partial(self._carry, sending))

    async def _carry(self, sending: Callable[[], Any]) -> None:
        """Send, or go on with it, and send the frames behind it; has the turn."""
        ws = self._ws
        try:
            await sending()
            while self and self[0].__class__ is Frame:
                frame = self.popleft()
                self._left(frame)
                ws._sending = True
                await ws._send(frame.event())
        except Exception as error:  # noqa: BLE001 - nobody waits for this task
            self._failed(error)
        finally:
            self._cut = None
            if ws._phase is not OPEN:
                self.empty()
            ws._pass_turn()

    def _failed(self, error: Exception) -> None:
        self.empty()
        try:
            with contextlib.suppress(WebSocketDisconnect, WebSocketStateError):
                self._ws._send_failed(error)
                raise error  # noqa: TRY301 - somebody's bug
        except Exception:  # noqa: BLE001 - it must not touch the publisher
            logger().exception("connection %s: a publication could not be sent", self._ws.id)
            self.close(1011, "internal error")

    def empty(self) -> None:
        """Drop all frames that wait."""
        for frame in [one for one in self if one.__class__ is Frame]:
            self.drop(frame)

    def close(self, code: int, reason: str) -> None:
        """Close the connection without sending what waits."""
        if not self._closing and self._ws._phase is OPEN:
            self._closing = True
            self.eager = False  # nothing overtakes the close
            self.empty()
            if self._progress is not None:
                self._progress.set()
            spawn(functools.partial(end, self._ws, code, reason))

    def cut(self) -> None:
        """Give up the send that is carried on."""
        if self._cut is not None:
            self._cut()

    def release(self) -> None:
        """The connection has ended."""
        self.cut()
        self.empty()
        if self._progress is not None:
            self._progress.set()
        for function in list(self.at_end.values()):
            function()


@types.coroutine
def _resumed(sending: Any, yielded: Any) -> Generator[Any, Any, None]:
    """A coroutine from where it stands, in another task than the one that has begun it."""
    while True:
        try:
            answer = yield yielded
        except BaseException as error:  # noqa: BLE001 - it is the coroutine's
            step = functools.partial(sending.throw, error)
        else:
            step = functools.partial(sending.send, answer)
        try:
            yielded = step()
        except StopIteration:
            return


def is_taskless(send: Any) -> bool:
    """Whether a `send()` may go on in another task than the one that took its first step."""
    while True:
        if isinstance(send, functools.partial):
            send = send.func
        elif hasattr(send, "inner") and _module_of(send).startswith("asgiws."):
            send = send.inner
        else:
            break
    module = _module_of(send)
    return any(module == one or module.startswith(f"{one}.") for one in TASKLESS)


def _module_of(send: Any) -> str:
    """Where its code stands; `functools.wraps` makes `__module__` tell another one."""
    names = getattr(getattr(send, "__func__", send), "__globals__", None)
    return str(names["__name__"] if names is not None else type(send).__module__)
