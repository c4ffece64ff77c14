"""The raw events of a WebSocket, under the table of its states.

Four rules are not in the table:

- After a disconnect the server's `receive()` is never called again (some servers block for ever): what it told is kept
  and told again.
- One `receive()` and one `send()` of the server at a time: a second receiver is refused, a second sender waits.
- `_receive` and `_send` are the server's own, or the inbox's where somebody reads ahead, only while they may be called:
  else they are functions that raise, so that the hot path need not ask. While one task receives, `_receive` refuses the
  next; `_idle_receive` is what it will be when that one is done.
- An `OSError` from the server's `send()` or `receive()` is a disconnect with 1006. So is a `RuntimeError`, with which
  servers refuse an event that is out of order: as the table lets none of those through, it means that the server knows
  of an end that it has not told yet. Any other exception is somebody's bug, and let out.
"""

import collections
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Never

import anyio

from .codes import check_code, cut_reason
from .connection import Connection
from .errors import ProtocolError, WebSocketDisconnect, WebSocketStateError
from .inbox import Inbox
from .limits import DEFAULT_LIMITS, Limits
from .log import logger
from .messages import MessageDecoder
from .states import ASKED, CLOSED, ENDED, INCOMING, LOST, OPEN, OPENING, REFUSED, Phase, WebSocketState
from .types import Message, Receive, Scope, Send


class _NotOpenError(Exception):
    """The WebSocket is not open; it never leaves the session."""


class _SecondReceiverError(Exception):
    """Another task is receiving; it never leaves the session."""


SENDERS = frozenset({"send_text", "_deliver", "_answer", "end"})
"""The methods that call the server's `send()`."""


async def _no_receive() -> Message:
    raise _NotOpenError


async def _no_send(_: Message) -> None:
    raise _NotOpenError


async def busy_receive() -> Message:
    """What `_receive` is while a task receives."""
    raise _SecondReceiverError


async def quiet_receive() -> Message:
    """What `_receive` is while a task receives and the watchdog has seen that, and nothing has come since."""
    raise _SecondReceiverError


class Verdict:
    """Why the watchdog cancelled a handler.

    Attributes:
        error: By what the connection is to end.
        canceller: What it cancelled: a task or a scope.
    """

    __slots__ = ("canceller", "error")

    def __init__(self, error: Exception, canceller: Any) -> None:
        self.error = error
        self.canceller = canceller


class Session(Connection):
    """One WebSocket connection as ASGI sees it: what `WebSocket` stands on.

    Args:
        scope: The ASGI scope.
        receive: The server's.
        send: The server's.
        app: What serves it.
        path_params: The values from the path; left out, those in the scope.
        phase: How far it is already.
        limits: What it may cost.
        decoder: For the messages of a WebSocket that declares them.

    Attributes:
        canceller: What cancels its handler, a task or a scope. This and what follows is the watchdog's, set where
            there is one.
        cut: Takes the cancellation back by which the watchdog has cut a send.
        due: When the watchdog has to check its times again.
        opened: When it came.
        since: When the client was last known to be alive.
        was_open: Whether it was accepted; noted where a hook wants to know.
        watch: The watchdog.
        where: Its route.

    Raises:
        ProtocolError: The scope is none of a WebSocket.
    """

    __slots__ = (
        "_bad_messages",
        "_closing",
        "_decoder",
        "_idle_receive",
        "_inbox",
        "_limits",
        "_phase",
        "_queue",
        "_receive",
        "_send",
        "_sending",
        "_server_receive",
        "_server_send",
        "canceller",
        "cut",
        "due",
        "opened",
        "since",
        "was_open",
        "watch",
        "where",
    )

    canceller: Any
    cut: "Callable[[], bool] | None"
    due: float
    opened: float
    since: float
    was_open: bool
    watch: Any
    where: str

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        app: Any = None,
        path_params: dict[str, Any] | None = None,
        phase: Phase = OPENING,
        limits: Limits = DEFAULT_LIMITS,
        decoder: MessageDecoder | None = None,
    ) -> None:
        if scope["type"] != "websocket":
            raise ProtocolError(f"a WebSocket needs a scope of type 'websocket', got {scope['type']!r}")
        Connection.__init__(self, scope, app, path_params)  # super() takes as long as this call
        self._server_receive = receive
        self._server_send = send
        self._receive: Receive = _no_receive
        if phase is OPENING:
            self._phase = phase
            self._send: Send = _no_send
            self._idle_receive: Receive = _no_receive
        else:
            self._enter(phase)
        # True, or the time since when the watchdog has seen it.
        self._sending: bool | float = False
        self._queue: collections.deque[anyio.Event] | None = None
        # How it ended: by whom ("you", "the peer" or "asgiws"), with which code and reason.
        self._closing: tuple[str, int, str] | None = None
        self._inbox: Inbox | None = None
        self._limits = limits
        self._decoder = decoder
        self._bad_messages = 0

    @property
    def client_state(self) -> WebSocketState:
        """How far the client is."""
        return self._phase.client

    @property
    def application_state(self) -> WebSocketState:
        """How far the application is."""
        return self._phase.application

    @property
    def close_code(self) -> int | None:
        """The code with which the connection ended, by either side; None while it has not.

        A handshake that was refused with an HTTP status ended with 4000 + status.
        """
        if self._closing is None:
            return None
        code = self._closing[1]
        return code if code >= 1000 else 4000 + code  # noqa: PLR2004 - below are HTTP statuses

    @property
    def close_reason(self) -> str | None:
        """The reason with which the connection ended, by either side; None while it has not."""
        return self._closing[2] if self._closing is not None else None

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._send = self._server_send if phase is OPEN else _no_send
        self._idle_receive = self._server_receive if phase is OPEN or phase is LOST else _no_receive
        if self._receive is not busy_receive and self._receive is not quiet_receive:
            self._receive = self._idle_receive

    def __repr__(self) -> str:
        """Path and phase, never the query string: it may hold a token."""
        return f"<WebSocket {self.scope.get('path', '')!r} {self._phase.name}>"

    async def _answer(
        self,
        move: str,
        doing: str,
        *events: Message,
        closing: tuple[str, int, str] | None = None,
    ) -> None:
        """Answer the handshake; the client's `websocket.connect` is read first if it was not yet."""
        if self._phase is OPENING:
            await self._read_connect()
        if self._sending:
            await self._turn()
        self._sending = True
        try:
            after = self._phase.moves.get(move)
            if after is None:
                self._refuse(doing)
            try:
                for event in events:
                    await self._server_send(event)
                if closing is not None:  # also if the server has told of its end meanwhile
                    self._closing = closing
                    if self._phase is not ASKED:
                        self._enter(self._phase.moves["websocket.close"])
            except BaseException as error:
                self._send_failed(error)
                raise
            finally:
                # A cancelled answer may have been sent: only a second one would be wrong for certain.
                if self._phase is ASKED:
                    self._closing = self._closing or closing
                    self._enter(after)
        finally:
            self._pass_turn()

    async def _read_connect(self) -> None:
        if self._receive is busy_receive or self._receive is quiet_receive:
            raise _second_receiver()
        self._receive = busy_receive
        try:
            event = await self._server_receive()
        except BaseException as error:
            self._receive_failed(error)
            raise
        self._receive = self._idle_receive
        if event["type"] == "websocket.connect" and self._phase is OPENING:
            self._enter(ASKED)
        else:
            self._arrived(event)

    def when_answered(self, notify: Callable[[], None]) -> None:
        """Have a function called once, when the handshake has been answered."""
        send = self._server_send

        async def answering(event: Message) -> None:
            whole = event["type"] != "websocket.http.response.start"
            try:
                await send(event)
            except BaseException:
                whole = True
                raise
            finally:
                if whole:
                    if self._server_send is answering:  # a hook below it may have put things back already
                        self._server_send = send
                    notify()

        answering.inner = send  # type: ignore[attr-defined]
        self._server_send = answering

    # Receiving

    async def _next(self, pick: Callable[[Message], Any] | None = None) -> Any:
        """The next `websocket.receive` event, or what `pick` makes of it."""
        receive = self._receive
        self._receive = busy_receive
        try:
            event = await receive()
        except BaseException as error:
            self._receive_failed(error)
            raise
        self._receive = self._idle_receive
        if event["type"] != "websocket.receive":
            self._arrived(event)
        if self._is_too_big(event):
            await self._end_too_big()
        return event if pick is None else pick(event)

    def _is_too_big(self, event: Message) -> bool:
        limit = self._limits.message_bytes
        content: Any = event.get("text")
        if content is None:
            content = event.get("bytes") or b""
        elif limit // 4 < len(content) <= limit:
            content = content.encode("utf-8", "surrogatepass")
        return len(content) > limit

    async def _end_too_big(self) -> Never:
        """End the connection with 1009 (RFC 6455, 7.4.1), and raise WebSocketDisconnect."""
        reason = f"a message has at most {self._limits.message_bytes} bytes"
        await self.end("asgiws", 1009, reason)
        raise WebSocketDisconnect(1009, reason)

    def _arrived(self, event: Message) -> None:
        """Move on by an event of the server's that is no message; raise if it is the disconnect."""
        kind = event["type"]
        after = self._phase.moves.get(kind)
        if after is None or kind not in INCOMING:
            raise ProtocolError(f"the server sent {kind!r}, which ASGI does not allow while {self._phase.text}")
        self._enter(after)
        if kind == "websocket.disconnect":
            if self._closing is None or self._closing[0] == "the peer":
                code = event.get("code")
                self._closing = ("the peer", 1005 if code is None else int(code), event.get("reason") or "")
            raise WebSocketDisconnect(*self._closing[1:])

    def _receive_failed(self, error: BaseException) -> None:
        """Make way for the next receiver; raise what the exception means, if it is more than itself."""
        if isinstance(error, _SecondReceiverError):
            raise _second_receiver() from None
        self._receive = self._idle_receive
        if isinstance(error, _NotOpenError):
            self._refuse("receive")
        if isinstance(error, OSError | RuntimeError):
            raise self._lost(error, "websocket.disconnect") from error

    # Reading ahead

    def read_ahead(self) -> None:
        """Have messages read into an inbox, from which they are received; nobody may be receiving just now."""
        self.have_reader().go_ahead()

    def have_reader(self) -> Inbox:
        """Have messages received by way of an inbox."""
        if self._inbox is not None:
            return self._inbox
        limits = self._limits
        stays = limits.reader == "always" or self.server_eats
        inbox = Inbox(self, self._server_receive, limits.inbox_messages, limits.inbox_bytes, stays=stays)
        self._inbox = inbox
        self._server_receive = inbox.get
        self._enter(self._phase)
        inbox.start()
        return inbox

    def read_directly(self, receive: Receive) -> None:
        """Receive from the server again. Called by the inbox when it is empty."""
        self._inbox = None
        self._server_receive = receive
        self._enter(self._phase)

    def asked(self) -> None:
        """Take note that the reader has read the `websocket.connect`."""
        if self._phase is OPENING:
            self._enter(ASKED)

    def peer_left(self, code: int, reason: str) -> None:
        """Take note that the reader has read the disconnect: what came before it is still to be received."""
        after = self._phase.moves.get("websocket.disconnect" if self._phase is OPENING else "send failed")
        if after is not None:
            self._closing = self._closing or ("the peer", code, reason)
            self._enter(after)

    def again(self) -> Awaitable[Message]:
        """The server's `receive()`, as what `_receive` is since the watchdog has seen that nobody receives."""
        return self._server_receive()

    def give_up(self, code: int, reason: str) -> None:
        """Take the connection for ended without another word: nothing can be sent any more."""
        self._closing = self._closing or ("asgiws", code, reason)
        self._enter(ENDED)
        # Who waits for a turn or comes later is told at once, also where the send that is stuck cannot be cut.
        while self._queue:
            self._queue.popleft().set()
        self._sending = False
        if self._inbox is not None:
            self._inbox.stop()

    @property
    def server_eats(self) -> bool:
        """Whether the server loses a message when its `receive()` is cancelled: granian, whose ports are strings."""
        client = self.scope.get("client") or ("", 0)
        return isinstance(client[1], str)

    async def _next_within(self, seconds: float, pick: Callable[[Message], Any] | None = None) -> Any:
        """As `_next`, which is given up after so long; the server's `receive()` is not cancelled."""
        if self._inbox is None and self._idle_receive is not _no_receive and not self.is_receiving:
            self.read_ahead()
        with anyio.fail_after(seconds):
            return await self._next(pick)

    @property
    def is_receiving(self) -> bool:
        """Whether a task is receiving."""
        return self._receive is busy_receive or self._receive is quiet_receive

    @property
    def is_sending(self) -> bool:
        """Whether a send is under way."""
        return self._sending is not False

    # Sending

    def close(self, code: int = 1000, reason: str | None = None) -> Coroutine[Any, Any, None]:
        """Close the connection, or refuse the handshake (the client then sees a 403). After the end it does nothing.

        Args:
            code: 1000-1003, 1007-1009, 1011-1013 or 3000-4999. Where the server sends only 1000 and 3000-4999 (daphne),
                10xx becomes 40xx.
            reason: Cut at 123 bytes.

        Raises:
            ProtocolError: The code is none that an application may send.
        """
        problem = check_code(code) if code.__class__ is not int or code != 1000 else None  # noqa: PLR2004
        if problem:
            raise ProtocolError(problem)
        return self.end("you", code, cut_reason(reason) if reason is not None else "")

    async def end(self, by: str, code: int, reason: str) -> None:
        """Close the connection in somebody's name: "you" or "asgiws"."""
        if self._phase is OPENING:
            with contextlib.suppress(WebSocketDisconnect):
                await self._read_connect()
        if self._phase is not OPEN and self._phase is not ASKED:
            self._enter(self._phase.moves["websocket.close"])
            return
        if self._sending:
            await self._turn()
        self._sending = True
        try:
            before = self._phase
            self._enter(before.moves["websocket.close"])
            if before is OPEN or before is ASKED:
                self._closing = (by, int(code), reason)
                code = 1000 if code == 1000 else self._code_for_server(int(code))  # noqa: PLR2004 - a call less
                event = {"type": "websocket.close", "code": code, "reason": reason}
                if self._inbox is not None:
                    await self._inbox.let_close()
                await self._server_send(event)
        except BaseException as error:  # a close that cannot be sent is an end all the same
            if not isinstance(error, Exception) and not self._was_cut():
                raise
            logger().debug("%s %r: the close could not be sent: %r", self.id, self.scope.get("path"), error)
            self._enter(ENDED)
        finally:
            self._pass_turn()
            if self._inbox is not None:
                self._inbox.stop()

    async def until_closed(self) -> None:
        """Wait until a close that is under way is out: some servers cut a connection whose application is done."""
        if self._phase is CLOSED or self._phase is REFUSED:
            await self._turn()
            self._pass_turn()

    async def _deliver(self, event: Message) -> None:
        """Send a `websocket.send` event."""
        if self._sending:
            await self._turn()
        self._sending = True
        send = self._send  # as in `WebSocket.send_text`
        try:
            await send(event)
        except BaseException as error:
            self._send_failed(error)
            raise
        finally:
            self._pass_turn()

    async def _turn(self) -> None:
        """Wait until the sends before this one are done, first come first served."""
        turn = anyio.Event()
        if self._queue is None:
            self._queue = collections.deque()
        self._queue.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._pass_turn()
            else:
                self._queue.remove(turn)
            raise

    def _pass_turn(self) -> None:
        if self._queue:
            self._sending = True
            self._queue.popleft().set()
        else:
            self._sending = False

    def _send_failed(self, error: BaseException) -> None:
        """Raise what an exception from `_send` means, if it is more than itself."""
        if not isinstance(error, Exception):
            if self._was_cut():
                self._refuse("send")
            return
        if isinstance(error, _NotOpenError):
            self._refuse("send")
        if isinstance(error, OSError | RuntimeError):
            raise self._lost(error, "send failed") from error

    def _was_cut(self) -> bool:
        """Whether a cancellation of the sender was the watchdog's alone, which is taken back."""
        cut = getattr(self, "cut", None)
        self.cut = None
        return cut is not None and cut()

    # The end

    def _check(self, move: str, doing: str) -> Phase:
        """The phase after a move; raises and changes nothing if the table has none."""
        after = self._phase.moves.get(move)
        if after is None:
            self._refuse(doing)
        return after

    def _refuse(self, doing: str) -> Never:
        """Raise what a call that the table does not allow deserves."""
        if self._closing is not None:
            by, code, reason = self._closing
            if by != "you":
                raise WebSocketDisconnect(code, reason) from None
            how = "refused" if self._phase is REFUSED or code < 1000 else "closed"  # noqa: PLR2004 - an HTTP status
            raise WebSocketStateError(f"cannot {doing}: this WebSocket is {how} (you {how} it with {code})") from None
        if self._phase is OPEN:
            raise WebSocketStateError(f"cannot {doing}: this WebSocket is already accepted; close() ends it")
        raise WebSocketStateError(
            f"cannot {doing}: this WebSocket is not accepted yet; call `await ws.accept()` first",
        ) from None

    def _lost(self, error: Exception, move: str) -> WebSocketDisconnect:
        """Note that the connection broke."""
        if self._closing is None and not isinstance(error, OSError):
            logger().debug(
                "%s %r: the server says that the connection is over: %r", self.id, self.scope.get("path"), error
            )
        self._enter(self._phase.moves.get(move, self._phase))
        self._closing = self._closing or ("the peer", 1006, "")
        return WebSocketDisconnect(*self._closing[1:])

    def _code_for_server(self, code: int) -> int:
        """The code as this server can send it. daphne, known by its scope, raises on 1001 to 2999."""
        if code == 1000 or code >= 3000:  # noqa: PLR2004
            return code
        scope = self.scope
        unannounced = "spec_version" not in (scope.get("asgi") or {"spec_version": ""})
        bare = not any(key in scope for key in ("scheme", "http_version", "extensions"))  # a state may have been added
        address = scope.get("client", ())  # a list, or None on a Unix socket
        return code + 3000 if unannounced and bare and not isinstance(address, tuple) else code


def _second_receiver() -> WebSocketStateError:
    return WebSocketStateError("cannot receive: another task is already receiving on this WebSocket")
