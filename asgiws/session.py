"""The raw events of a WebSocket, under the table of its states.

Four rules are not in the table:

- After a disconnect the server's `receive()` is never called again (some servers block for ever): what it told is kept
  and told again.
- One `receive()` and one `send()` of the server at a time: a second receiver is refused, a second sender waits.
- `_receive` and `_send` are the server's own only while they may be called: else they are functions that raise, so
  that the hot path need not ask. While one task receives, `_receive` refuses the next; `_idle_receive` is what it will
  be when that one is done.
- An `OSError` from the server's `send()` or `receive()` is a disconnect with 1006. So is a `RuntimeError`, with which
  servers refuse an event that is out of order: as the table lets none of those through, it means that the server knows
  of an end that it has not told yet. Any other exception is somebody's bug, and let out.
"""

import collections
import contextlib
from collections.abc import Callable
from typing import Any, Never

import anyio

from .codes import check_code, cut_reason
from .connection import Connection
from .errors import ProtocolError, WebSocketDisconnect, WebSocketStateError
from .log import logger
from .states import ASKED, ENDED, INCOMING, LOST, OPEN, OPENING, REFUSED, Phase, WebSocketState
from .types import Message, Receive, Scope, Send


class _NotOpenError(Exception):
    """The WebSocket is not open; it never leaves the session."""


class _SecondReceiverError(Exception):
    """Another task is receiving; it never leaves the session."""


async def _no_receive() -> Message:
    raise _NotOpenError


async def _no_send(_: Message) -> None:
    raise _NotOpenError


async def busy_receive() -> Message:
    """What `_receive` is while a task receives."""
    raise _SecondReceiverError


class Session(Connection):
    """One WebSocket connection as ASGI sees it: what `WebSocket` stands on.

    Args:
        scope: The ASGI scope.
        receive: The server's.
        send: The server's.
        app: What serves it.
        path_params: The values from the path; left out, those in the scope.
        phase: How far it is already.

    Raises:
        ProtocolError: The scope is none of a WebSocket.
    """

    __slots__ = (
        "_closing",
        "_idle_receive",
        "_phase",
        "_queue",
        "_receive",
        "_send",
        "_sending",
        "_server_receive",
        "_server_send",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        app: Any = None,
        path_params: dict[str, Any] | None = None,
        phase: Phase = OPENING,
    ) -> None:
        if scope["type"] != "websocket":
            raise ProtocolError(f"a WebSocket needs a scope of type 'websocket', got {scope['type']!r}")
        super().__init__(scope, app, path_params)
        self._server_receive = receive
        self._server_send = send
        self._receive: Receive = _no_receive
        self._enter(phase)
        self._sending = False
        self._queue: collections.deque[anyio.Event] | None = None
        # How it ended: by whom ("you" or "the peer"), with which code and reason.
        self._closing: tuple[str, int, str] | None = None

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
        if self._receive is not busy_receive:
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
            after = self._check(move, doing)
            try:
                for event in events:
                    await self._server_send(event)
            except Exception as error:
                self._send_failed(error)
                raise
            finally:
                # A cancelled answer may have been sent: only a second one would be wrong for certain.
                if self._phase is ASKED:
                    self._closing = closing
                    self._enter(after)
        finally:
            self._pass_turn()

    async def _read_connect(self) -> None:
        if self._receive is busy_receive:
            raise _second_receiver()
        self._receive = busy_receive
        try:
            event = await self._server_receive()
        except BaseException as error:
            self._receive_failed(error)
            raise
        self._receive = self._idle_receive
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
                    self._server_send = send
                    notify()

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
        return event if pick is None else pick(event)

    def _arrived(self, event: Message) -> None:
        """Move on by an event of the server's that is no message; raise if it is the disconnect."""
        kind = event["type"]
        after = self._phase.moves.get(kind)
        if after is None or kind not in INCOMING:
            raise ProtocolError(f"the server sent {kind!r}, which ASGI does not allow while {self._phase.text}")
        self._enter(after)
        if kind == "websocket.disconnect":
            if self._closing is None or self._closing[0] != "you":
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

    # Sending

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
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
        reason = cut_reason(reason) if reason is not None else ""
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
                self._closing = ("you", int(code), reason)
                event = {"type": "websocket.close", "code": self._code_for_server(int(code)), "reason": reason}
                await self._server_send(event)
        except Exception as error:  # noqa: BLE001 - a close that cannot be sent is an end all the same
            logger().debug("%s %r: the close could not be sent: %r", self.id, self.scope.get("path"), error)
            self._enter(ENDED)
        finally:
            self._pass_turn()

    async def _deliver(self, event: Message) -> None:
        """Send a `websocket.send` event."""
        if self._sending:
            await self._turn()
        self._sending = True
        try:
            await self._send(event)
        except Exception as error:
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
            self._queue.popleft().set()
        else:
            self._sending = False

    def _send_failed(self, error: Exception) -> None:
        """Raise what an exception from `_send` means, if it is more than itself."""
        if isinstance(error, _NotOpenError):
            self._refuse("send")
        if isinstance(error, OSError | RuntimeError):
            raise self._lost(error, "send failed") from error

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
            how = "refused" if self._phase is REFUSED else "closed"
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
