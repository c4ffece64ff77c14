"""Class and table side by side: random lives of a connection, on servers of every shape.

The model is `asgiws.states.TRANSITIONS`, the list of what the server still has to hand in, and the list of what must be
on the wire. Each rule does a thing with the class, works out by the model what must come of it, and compares. The rules
are sync, as hypothesis wants them: the event loop runs in a thread of its own, and `_run` goes there and back.
"""

import collections
import dataclasses
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

import anyio
import anyio.from_thread
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asgiws import (
    AsgiwsError,
    MessageError,
    ProtocolError,
    Response,
    WebSocket,
    WebSocketDisconnect,
    WebSocketStateError,
    states,
)
from asgiws.states import TRANSITIONS
from tests.fakes import DEADLINE, SHAPES, FakeServer, Shape, soon

Socket = WebSocket[Any, Any]
Outcome: TypeAlias = tuple[Any, ...]
"""What came of a call, or must come of it: ("value", it), or a word for an exception and what matters of it."""

READS: dict[str, Callable[[Socket], Awaitable[Any]]] = {
    "receive": lambda ws: ws.receive(),
    "receive_text": lambda ws: ws.receive_text(),
    "receive_bytes": lambda ws: ws.receive_bytes(),
    "receive_json": lambda ws: ws.receive_json(),
    "async for": lambda ws: anext(aiter(ws)),
    "iter_text": lambda ws: anext(ws.iter_text()),
}
LOOPS = ("async for", "iter_text")
NOTHING: Outcome = ("value", None)
# On the others a cancelled read leaves a reader behind: `tests/test_inbox.py` has a model of that.
READ_DIRECTLY = [shape for shape in SHAPES if not shape.cancel_eats]
READABLE = (states.OPEN, states.LOST)
"""Where a receive() may begin; one that is pending already goes on through any move."""

messages = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=3),
    st.binary(max_size=3),
    st.sampled_from(["", b"", "1", b"[2]", "{"]),
)
STARTS = ("new", "vanished", "asked", "open", "reading", "reading, closed", "reading, lost", "reading, lost, closed")
"""What has happened before the rules come into play: some places are hard to reach by chance."""
HALF_A_PAIR = "\ud800"
outgoing = st.one_of(messages, messages, st.just(HALF_A_PAIR))
ways = st.sampled_from(list(READS))
BAD_CODES = (0, 1005, 1010, 2000)
codes = st.sampled_from([1000, 1001, 1011, 3000, 4999, *BAD_CODES])
reasons = st.sampled_from([None, "", "why", "é" * 70])


class Bug(Exception):
    """What a server raises that means nothing to the WebSocket."""


FAILURES: dict[str, Callable[[], Exception]] = {
    "OSError": lambda: ConnectionResetError("gone"),
    "RuntimeError": lambda: RuntimeError("over"),
    "Bug": Bug,
}


def outcome_of(error: Exception) -> Outcome:
    match error:
        case WebSocketDisconnect():
            found: Outcome = ("disconnect", error.code, error.reason)
        case WebSocketStateError():
            found = ("state error", str(error))
        case MessageError():
            found = ("message error", error.code)
        case ProtocolError():
            found = ("protocol error",)
        case _:
            found = ("stop",) if isinstance(error, StopAsyncIteration) else ("bug",)
    return found


def decoded(message: str | bytes) -> Outcome:
    """What `receive_json` makes of a message."""
    try:
        return "value", msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeError):
        return "message error", 1007


@dataclasses.dataclass
class Incoming:
    """What the server hands in next: an event of this kind, or one of the `FAILURES`."""

    kind: str
    message: Any = None
    code: int = 1005
    reason: str = ""


class Machine(RuleBasedStateMachine):
    """One connection."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, start: str) -> None:
        super().__init__()
        self.portal = portal
        self.start = start
        self.phase = states.OPENING
        self.ended: tuple[str, int, str] | None = None
        self.inbox: collections.deque[Incoming] = collections.deque()
        self.wire: list[dict[str, Any]] = []
        self.failure: str | None = None
        self.left = False
        self.reader: tuple[str, Future[Outcome]] | None = None
        self.patience = 0  # for how many steps the application does not close: else most lives would be short

    @initialize(shape=st.sampled_from(READ_DIRECTLY), how=ways, patience=st.integers(0, 12))
    def connect(self, shape: Shape, how: str, patience: int) -> None:
        start = self.start
        self.shape = shape
        self.patience = patience
        self.server = FakeServer(shape, subprotocols=["chat"])
        self.ws: Socket = WebSocket(self.server.scope, self.server.receive, self.server.send)
        self.inbox.append(Incoming("websocket.connect"))
        if start == "vanished":
            self.portal.call(self.server.vanish)
            self.inbox[0] = Incoming("websocket.disconnect", code=1006)
            self.left = True
        if start == "asked":
            self.read("receive")
        if start == "open" or "reading" in start:
            self.accept(None)
        if "reading" in start:
            self.read(how)
        if "lost" in start:
            self.send_starts_to_fail_or_recovers("OSError")
            self.send("a", "send")
            self.send_starts_to_fail_or_recovers(None)
        if "closed" in start:
            self.close(1000, None, raw=False)

    # What the class does

    async def _run(self, call: Callable[[Socket], Awaitable[Any]]) -> Outcome:
        try:
            with anyio.fail_after(DEADLINE):
                value = await call(self.ws)
        except (AsgiwsError, StopAsyncIteration, Bug) as error:
            return outcome_of(error)
        return "value", {key: item for key, item in value.items() if item is not None} if type(value) is dict else value

    def check(self, call: Callable[[Socket], Awaitable[Any]], expected: Outcome) -> None:
        assert self.portal.call(self._run, call) == expected

    # What the table says

    def move(self, event: str) -> None:
        self.phase = TRANSITIONS[self.phase][event]

    def allows(self, event: str) -> bool:
        return event in TRANSITIONS[self.phase]

    def read_handshake(self) -> None:
        """What every answer does first, if nobody did it before."""
        if self.phase is states.OPENING:
            first = self.inbox.popleft()
            self.move(first.kind)
            if first.kind == "websocket.disconnect":
                self.ended = ("peer", first.code, first.reason)

    def refused(self, doing: str) -> Outcome:
        """What comes of a call that the table does not allow."""
        if self.ended is not None:
            by, code, reason = self.ended
            if by == "peer":
                return "disconnect", code, reason
            how = "refused" if self.phase is states.REFUSED else "closed"
            return "state error", f"cannot {doing}: this WebSocket is {how} (you {how} it with {code})"
        if self.phase is states.OPEN:
            return "state error", f"cannot {doing}: this WebSocket is already accepted; close() ends it"
        return "state error", f"cannot {doing}: this WebSocket is not accepted yet; call `await ws.accept()` first"

    def broken(self, move: str) -> Outcome:
        """What comes of an error that means the end of the connection."""
        self.phase = TRANSITIONS[self.phase].get(move, self.phase)
        self.ended = self.ended or ("peer", 1006, "")
        return "disconnect", *self.ended[1:]

    def sending_fails(self) -> Outcome | None:
        """What comes of it when the server's `send` does not take a message; None if it does."""
        failure = self.failure
        if failure is None and self.left:
            failure = {"oserror": "OSError", "runtimeerror": "RuntimeError", "silent": "silent"}[self.shape.gone]
        if failure is None:
            return None
        return {"silent": NOTHING, "Bug": ("bug",)}.get(failure) or self.broken("send failed")

    # The handshake

    @rule(how=st.sampled_from([None, "chat", "other", 401, 503]))
    @precondition(lambda self: self.failure != "Bug" and (self.phase is not states.OPEN or self.patience <= 0))
    def answer(self, how: Any) -> None:
        if isinstance(how, int):
            self.deny(how)
        else:
            self.accept(how)

    def accept(self, subprotocol: str | None) -> None:
        if subprotocol == "other":
            self.check(lambda ws: ws.accept(subprotocol), ("protocol error",))
            return
        event = {"type": "websocket.accept"} | ({"subprotocol": subprotocol} if subprotocol else {})
        self.check(lambda ws: ws.accept(subprotocol), self.answered("websocket.accept", "accept", event))

    def deny(self, status: int) -> None:
        headers = [(b"content-length", b"2")]
        events: list[dict[str, Any]] = [
            {"type": "websocket.http.response.start", "status": status, "headers": headers},
            {"type": "websocket.http.response.body", "body": b"no"},
        ]
        expected: Outcome = NOTHING
        if self.shape.denial:
            expected = self.answered("websocket.http.response", "refuse", *events)
            if expected == NOTHING:
                self.ended = ("you", status, "")
        else:
            self.read_handshake()
            expected = NOTHING if self.allows("websocket.http.response") else self.refused("refuse")
            if expected == NOTHING:
                self.closed(4000 + status, f"HTTP {status}")
        self.check(lambda ws: ws.send_denial_response(Response("no", status)), expected)

    def answered(self, move: str, doing: str, *events: dict[str, Any]) -> Outcome:
        self.read_handshake()
        if not self.allows(move):
            return self.refused(doing)
        if self.failure is not None:
            return self.broken("send failed")
        self.move(move)
        self.wire += events
        return NOTHING

    # Messages out

    @rule(
        message=outgoing,
        how=st.sampled_from(["send", "send_text or send_bytes", "send_json", "send_json binary", "cancelled"]),
    )
    def send(self, message: str | bytes, how: str) -> None:
        if how.startswith("send_json"):
            mode: Any = "binary" if how == "send_json binary" else "text"
            self.check(
                lambda ws: ws.send_json([1, None], mode=mode), self.sent("[1,null]" if mode == "text" else b"[1,null]")
            )
        elif how == "cancelled" and self.phase is states.OPEN and self.failure is None and not self.left:
            if self.shape.late:
                self.wire.append({"type": "websocket.send", "text": "cancelled"})
            self.check(self.cancelled, ("value", True))
        elif how == "send":
            event = {"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message}
            self.check(lambda ws: ws.send(event), self.sent(message))
        elif isinstance(message, str):
            self.check(lambda ws: ws.send_text(message), self.sent(message))
        else:
            self.check(lambda ws: ws.send_bytes(message), self.sent(message))

    def sent(self, message: str | bytes) -> Outcome:
        if message == HALF_A_PAIR:
            return ("protocol error",)
        if not self.allows("websocket.send"):
            return self.refused("send")
        failed = self.sending_fails()
        if failed is not None:
            return failed
        self.move("websocket.send")
        self.wire.append({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
        return NOTHING

    async def cancelled(self, ws: Socket) -> bool:
        """Send a message and cancel it while the server holds it up; whether it was cut there."""
        self.server.hold = anyio.Event()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ws.send_text("cancelled")
        self.server.hold = None
        return scope.cancelled_caught

    # Messages in

    @rule(how=ways)
    @precondition(lambda self: self.reader is None)
    def read(self, how: str) -> None:
        if self.phase in READABLE and not self.inbox:
            self.reader = how, self.portal.start_task_soon(self._run, READS[how])
            self.portal.call(soon, lambda: self.server._receiving)
            return
        if self.phase is states.OPENING and how == "receive":
            self.read_handshake()
            expected: Outcome = self.told() if self.ended else ("value", {"type": "websocket.connect"})
        elif self.phase in READABLE:
            expected = self.arrived(self.inbox.popleft(), how)
        else:
            expected = self.unread(how)
        self.check(READS[how], expected)

    @rule(how=ways)
    @precondition(lambda self: self.reader is not None)
    def read_beside_another_reader(self, how: str) -> None:
        text = "cannot receive: another task is already receiving on this WebSocket"
        over = how in LOOPS and self.ended is not None
        self.check(READS[how], ("stop",) if over else ("state error", text))

    @rule()
    @precondition(lambda self: self.reader is not None)
    def cancel_the_reader(self) -> None:
        assert self.reader is not None
        self.reader[1].cancel()
        self.portal.call(soon, lambda: not self.server._receiving)
        self.reader = None

    def arrived(self, incoming: Incoming, how: str) -> Outcome:
        """What a reader must get of what the server hands in."""
        match incoming.kind:
            case "websocket.receive":
                self.move("websocket.receive")
                found = self.read_as(how, incoming.message)
            case "websocket.disconnect":
                self.move("websocket.disconnect")
                if self.ended is None or self.ended[0] == "peer":
                    self.ended = ("peer", incoming.code, incoming.reason)
                found = self.gone(how)
            case "Bug":
                found = ("bug",)
            case "OSError" | "RuntimeError":
                self.broken("websocket.disconnect")
                found = self.gone(how)
            case _:
                found = ("protocol error",)
        return found

    def read_as(self, how: str, message: str | bytes) -> Outcome:
        if how == "receive":
            return "value", {"type": "websocket.receive", "text" if isinstance(message, str) else "bytes": message}
        if how == "receive_json":
            return decoded(message)
        wanted = {"receive_text": str, "iter_text": str, "receive_bytes": bytes}.get(how)
        return ("value", message) if wanted is None or isinstance(message, wanted) else ("message error", 1003)

    def gone(self, how: str) -> Outcome:
        """What a reader gets at the end."""
        assert self.ended is not None
        if how in LOOPS:
            return ("stop",)
        return self.told() if how == "receive" else ("disconnect", *self.ended[1:])

    def told(self) -> Outcome:
        assert self.ended is not None
        return "value", {"type": "websocket.disconnect", "code": self.ended[1], "reason": self.ended[2]}

    def unread(self, how: str) -> Outcome:
        """What a reader gets where nothing may be read."""
        if self.ended is not None and (how in LOOPS or self.ended[0] == "peer"):
            return self.gone(how)
        return self.refused("receive")

    def hand_in(self, incoming: Incoming, put: Callable[[], None]) -> None:
        """Let the server hand something in; a reader that waits must get it at once."""
        self.portal.call(put)
        if self.reader is None:
            self.inbox.append(incoming)
            return
        how, result = self.reader
        self.reader = None
        assert result.result(DEADLINE) == self.arrived(incoming, how)

    @rule(message=messages)
    @precondition(lambda self: not self.left and len(self.inbox) < 3)
    def client_says(self, message: str | bytes) -> None:
        self.hand_in(Incoming("websocket.receive", message), lambda: self.server.say(message))

    @rule(code=st.sampled_from([1000, 4000, None]), reason=st.sampled_from(["", "bye"]))
    @precondition(lambda self: not self.left)
    def client_leaves(self, code: int | None, reason: str) -> None:
        known = 1006 if self.shape.codes == "1006" else 1005 if code is None else code
        incoming = Incoming("websocket.disconnect", None, known, reason if self.shape.codes == "all" else "")
        self.left = True
        self.hand_in(incoming, lambda: self.server.leave(code, reason))

    @rule(kind=st.sampled_from(["websocket.connect", "websocket.send", "websocket.new", *FAILURES]))
    @precondition(lambda self: not self.left and len(self.inbox) < 3)
    def server_fails_or_talks_nonsense(self, kind: str) -> None:
        event = FAILURES[kind]() if kind in FAILURES else {"type": kind}
        self.hand_in(Incoming(kind), lambda: self.server.put(event))

    @rule(failure=st.sampled_from([None, *FAILURES]))
    def send_starts_to_fail_or_recovers(self, failure: str | None) -> None:
        self.failure = failure
        self.server.fail = FAILURES[failure]() if failure else None

    # The end

    @rule(code=codes, reason=reasons, raw=st.booleans())
    @precondition(lambda self: self.patience <= 0)
    def close(self, code: int, reason: str | None, raw: bool) -> None:
        event = {"type": "websocket.close", "code": code, "reason": reason}
        self.check(
            lambda ws: ws.send(event) if raw else ws.close(code, reason), self.ended_by_close(code, reason or "")
        )

    def ended_by_close(self, code: int, reason: str) -> Outcome:
        if code in BAD_CODES:
            return ("protocol error",)
        self.read_handshake()
        if self.phase in (states.ASKED, states.OPEN):
            self.closed(code, reason)
        else:
            self.move("websocket.close")
        return NOTHING

    def closed(self, code: int, reason: str) -> None:
        """A close that is no no-op; one that cannot be sent is an end all the same."""
        reason = reason.encode()[:123].decode(errors="ignore")
        self.move("websocket.close")
        self.ended = ("you", code, reason)
        if self.failure is None:
            code = code + 3000 if self.shape.own_codes_only and 1000 < code < 3000 else code
            self.wire.append({"type": "websocket.close", "code": code, "reason": reason})
        else:
            self.phase = states.ENDED

    # What holds after every step

    @invariant()
    def the_states_are_those_of_the_table(self) -> None:
        self.patience -= 1
        assert (self.ws.client_state, self.ws.application_state) == (self.phase.client, self.phase.application)
        assert self.ws._phase is self.phase

    @invariant()
    def the_wire_has_what_was_sent_whole_once_and_in_order(self) -> None:
        assert self.server.sent == self.wire
        assert self.server.most_sending <= 1

    @invariant()
    def the_server_never_chokes_and_is_not_asked_after_the_end(self) -> None:
        assert not self.server.choked
        assert self.server.calls_after_disconnect == 0

    def teardown(self) -> None:
        if self.reader is not None:
            self.cancel_the_reader()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_class_and_table_agree(backend: str, start: str) -> None:
    with anyio.from_thread.start_blocking_portal(backend) as portal:

        class OnThisLoop(Machine):
            def __init__(self) -> None:
                super().__init__(portal, start)

        run_state_machine_as_test(OnThisLoop, settings=settings(max_examples=30, stateful_step_count=20))
