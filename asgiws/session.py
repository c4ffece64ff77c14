"""The raw events of a WebSocket, under the table of its states.

Three rules are not in the table:

- After a disconnect the server's `receive()` is never called again (some servers block for ever): what it told is kept
  and told again.
- One `receive()` and one `send()` of the server at a time: a second receiver is refused, a second sender waits.
- An `OSError` from the server's `send()` or `receive()` is a disconnect with 1006. So is a `RuntimeError`, with which
  servers refuse an event that is out of order: as the table lets none of those through, it means that the server knows
  of an end that it has not told yet. Any other exception is somebody's bug, and let out.
"""

import collections
import contextlib
import logging
from typing import Any, Never

import anyio

from .codes import check_code, cut_reason
from .connection import Connection
from .errors import ProtocolError, WebSocketDisconnect, WebSocketStateError
from .states import INCOMING, TRANSITIONS, Phase, WebSocketState
from .types import Message, Receive, Scope, Send

OPEN = Phase.OPEN
logger = logging.getLogger("asgiws")


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

    __slots__ = ("_closing", "_phase", "_queue", "_reading", "_receive", "_send", "_sending")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        app: Any = None,
        path_params: dict[str, Any] | None = None,
        phase: Phase = Phase.OPENING,
    ) -> None:
        if scope["type"] != "websocket":
            raise ProtocolError(f"a WebSocket needs a scope of type 'websocket', got {scope['type']!r}")
        super().__init__(scope, app, path_params)
        self._receive = receive
        self._send = send
        self._phase = phase
        self._reading = False
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

    def __repr__(self) -> str:
        """Path and phase, never the query string: it may hold a token."""
        return f"<WebSocket {self.scope.get('path', '')!r} {self._phase.name}>"

    async def _answer(self, move: str, doing: str, *events: Message) -> None:
        """Answer the handshake; the client's `websocket.connect` is read first if it was not yet."""
        await self._read_connect()
        if self._sending:
            await self._turn()
        self._sending = True
        try:
            after = self._check(move, doing)
            try:
                for event in events:
                    await self._send(event)
            except Exception as error:
                self._send_failed(error)
                raise
            finally:
                # A cancelled answer may have been sent: only a second one would be wrong for certain.
                if self._phase is Phase.ASKED:
                    self._phase = after
        finally:
            self._pass_turn()

    async def _read_connect(self) -> None:
        if self._phase is not Phase.OPENING:
            return
        self._start_reading("connect")
        try:
            event = await self._receive()
        except OSError as error:
            raise self._lost(error) from error
        finally:
            self._reading = False
        self._arrived(event)

    # Receiving

    async def _take(self) -> Message:
        """The next `websocket.receive` event."""
        self._start_reading("receive")
        try:
            event = await self._receive()
        except Exception as error:
            self._receive_failed(error)
            raise
        finally:
            self._reading = False
        if event["type"] != "websocket.receive":
            self._arrived(event)
        return event

    def _start_reading(self, doing: str) -> None:
        if self._reading:
            raise WebSocketStateError(f"cannot {doing}: another task is already receiving on this WebSocket")
        self._check("websocket.connect" if doing == "connect" else "websocket.receive", doing)
        if self._phase is Phase.CLOSED:
            self._refuse(doing)
        self._reading = True

    def _arrived(self, event: Message) -> None:
        """Move on by an event of the server's that is no message; raise if it is the disconnect."""
        kind = event["type"]
        after = TRANSITIONS[self._phase].get(kind)
        if after is None or kind not in INCOMING:
            raise ProtocolError(f"the server sent {kind!r}, which ASGI does not allow while {self._phase.value[0]}")
        self._phase = after
        if kind == "websocket.disconnect":
            code = event.get("code")
            self._closing = self._closing or (
                "the peer",
                1005 if code is None else int(code),
                event.get("reason") or "",
            )
            raise WebSocketDisconnect(*self._closing[1:])

    def _receive_failed(self, error: Exception) -> None:
        """Raise WebSocketDisconnect if that is what the server's exception means."""
        if isinstance(error, OSError | RuntimeError):
            raise self._lost(error) from error

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
        problem = check_code(code)
        if problem:
            raise ProtocolError(problem)
        reason = cut_reason(reason or "")
        with contextlib.suppress(WebSocketDisconnect):
            await self._read_connect()
        before = self._phase
        self._phase = TRANSITIONS[before]["websocket.close"]
        if before not in (Phase.ASKED, OPEN):
            return
        kept, self._closing = self._closing, ("you", int(code), reason)
        if self._sending:
            try:
                await self._turn()
            except BaseException:
                self._phase, self._closing = before, kept
                raise
        self._sending = True
        try:
            await self._send({"type": "websocket.close", "code": self._code_for_server(int(code)), "reason": reason})
        except Exception as error:  # noqa: BLE001 - a close that cannot be sent is an end all the same
            logger.debug("%s %r: the close could not be sent: %r", self.id, self.scope.get("path"), error)
            self._phase = Phase.ENDED
        finally:
            self._pass_turn()

    async def _deliver(self, event: Message) -> None:
        """Send a `websocket.send` event."""
        if self._phase is not OPEN or self._sending:
            await self._may_send()
        self._sending = True
        try:
            await self._send(event)
        except Exception as error:
            self._send_failed(error)
            raise
        finally:
            self._pass_turn()

    async def _may_send(self) -> None:
        self._check("websocket.send", "send")
        if self._sending:
            await self._turn()
            try:
                self._check("websocket.send", "send")
            except BaseException:
                self._pass_turn()
                raise

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
        """Raise WebSocketDisconnect if that is what the server's exception means."""
        if isinstance(error, OSError | RuntimeError):
            raise self._lost(error) from error

    # The end

    def _check(self, move: str, doing: str) -> Phase:
        """The phase after a move; raises and changes nothing if the table has none."""
        after = TRANSITIONS[self._phase].get(move)
        if after is None:
            self._refuse(doing)
        return after

    def _refuse(self, doing: str) -> Never:
        """Raise what a call that the table does not allow deserves."""
        if self._closing is not None:
            by, code, reason = self._closing
            if by != "you":
                raise WebSocketDisconnect(code, reason)
            how = "closed" if self._phase is not Phase.REFUSED else "refused"
            raise WebSocketStateError(f"cannot {doing}: this WebSocket is {how} (you {how} it with {code})")
        if self._phase in (Phase.OPENING, Phase.ASKED):
            raise WebSocketStateError(f"cannot {doing}: this WebSocket is not accepted yet; call accept() first")
        raise WebSocketStateError(f"cannot {doing}: this WebSocket is already accepted; close() ends it")

    def _lost(self, error: Exception) -> WebSocketDisconnect:
        """Note that the connection broke."""
        if self._closing is None and not isinstance(error, OSError):
            logger.info(
                "%s %r: the server says that the connection is over: %r", self.id, self.scope.get("path"), error
            )
        self._phase = TRANSITIONS[self._phase].get("websocket.disconnect", self._phase)
        self._closing = self._closing or ("the peer", 1006, "")
        return WebSocketDisconnect(*self._closing[1:])

    def _code_for_server(self, code: int) -> int:
        """The code as this server can send it. daphne, known by its scope, raises on 1001 to 2999."""
        scope = self.scope
        asgi = scope.get("asgi")
        if asgi and "spec_version" not in asgi and "extensions" not in scope and isinstance(scope.get("client"), list):
            return code if code == 1000 or code >= 3000 else code + 3000  # noqa: PLR2004
        return code
