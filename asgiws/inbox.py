"""Messages that are read ahead of a handler that does not read."""

import collections
from typing import Any

import anyio

from .background import spawn
from .types import Message, Receive


class Inbox:
    """What a reader has read of one connection, up to a number of messages and bytes.

    The server's `receive()` is awaited by a task of its own, and cancelled by nothing but the end of the connection:
    some servers lose a message otherwise. When the handler is waiting for a message and takes it at once, the reader
    ends and the handler reads directly again.

    Args:
        session: The Session whose it is; it is told of what is read.
        receive: The server's.
        messages: How many messages it holds.
        size: How many bytes of messages.
        stays: The handler never reads directly. The reader reads when it is asked, as the handler would, or ahead when
            it is told to.

    Attributes:
        closes: The reader itself closes the connection, and must not be stopped for that.
        connect: It has read the `websocket.connect`, which nobody asked for.
        done: Nobody is reading ahead.
        heard: Something came; whoever looks may reset it.
        full: It takes no more.
    """

    __slots__ = (
        "_arrival", "_asked", "_ended", "_events", "_failure", "_held", "_lazy", "_left", "_messages", "_receive",
        "_scope", "_session", "_size", "_space", "_stays", "closes", "connect", "done", "heard",
    )  # fmt: skip

    def __init__(self, session: Any, receive: Receive, messages: int, size: int, *, stays: bool) -> None:
        self._session = session
        self._receive = receive
        self._messages = messages
        self._size = size
        self._stays = stays
        self._events: collections.deque[Message] = collections.deque()
        self._held = 0
        self._lazy = stays
        self._arrival: anyio.Event | None = None
        self._asked: anyio.Event | None = None
        self._space: anyio.Event | None = None
        self._failure: Exception | None = None
        self._left = False
        self._ended: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None
        self.closes = False
        self.connect = False
        self.done = True
        self.heard = True

    def start(self) -> None:
        """Have a reader, unless there is one or the client has left."""
        if self.done and not self._left:
            self.done = False
            spawn(self._read)

    def go_ahead(self) -> None:
        """Read ahead of the handler, until it waits for a message again."""
        self._lazy = False
        self._ask()
        self.start()

    def _ask(self) -> None:
        if self._asked is not None:
            self._asked.set()

    def stop(self) -> None:
        """Let the reader go, at the end of the connection."""
        self._left = True
        if self._scope is not None:
            self._scope.cancel()
        self._arrived()

    async def let_close(self) -> None:
        """Make way for a close: granian does not send one while its `receive()` is awaited."""
        if self._stays and not self.done and not self.closes and self._scope is not None:
            self._ended = anyio.Event()  # who waits for a message is told by `stop`, when the close is out
            self._scope.cancel()
            await self._ended.wait()

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return len(self._events) >= self._messages or self._held >= self._size

    async def get(self) -> Message:
        """The next event, as the server's `receive()` would give it; who is cancelled here loses none."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._left:
                raise OSError("the connection was closed")
            if self.done:
                self._session.read_directly(self._receive)
                return await self._receive()
            self._arrival = anyio.Event()
            self._ask()
            try:
                await self._arrival.wait()
            finally:
                self._arrival = None
        event = self._events.popleft()
        self._held -= size_of(event)
        if self._space is not None and not self.full:
            self._space.set()
        if self.done and not self._events and not self._left:
            self._session.read_directly(self._receive)
        return event

    async def _read(self) -> None:
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                if not self._left:
                    await self._fill()
        except Exception as error:  # noqa: BLE001 - what the server's receive() raises is for who receives
            self._failure = error
            self._left = True
            self._session.peer_left(1006, "")
        finally:
            self._scope = None
            self.done = True
            if self._ended is not None:
                self._ended.set()
            else:
                self._arrived()

    async def _fill(self) -> None:
        while True:
            while self._lazy and not self._awaited:
                self._asked = anyio.Event()
                await self._asked.wait()
            event = await self._receive()
            self.heard = True
            taken = self._awaited
            if event["type"] == "websocket.connect" and not taken:
                self.connect = True
                self._session.asked()
                continue
            self._events.append(event)
            self._held += size_of(event)
            self._arrived()
            if event["type"] == "websocket.disconnect":
                self._left = True
                code = event.get("code")
                self._session.peer_left(1005 if code is None else int(code), event.get("reason") or "")
                return
            if taken and not self._stays:
                return
            self._lazy = self._lazy or taken
            # A connection that is not known to be asked for must not be known to have ended.
            while self.full or (event["type"] == "websocket.connect" and self._events):
                self._space = anyio.Event()
                await self._space.wait()

    @property
    def _awaited(self) -> bool:
        return self._arrival is not None and not self._arrival.is_set()

    def _arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.set()


def size_of(event: Message) -> int:
    """How many bytes a message has, text as UTF-8."""
    content: Any = event.get("text") or event.get("bytes") or b""
    if isinstance(content, str) and not content.isascii():
        content = content.encode("utf-8", "surrogatepass")
    return len(content)
