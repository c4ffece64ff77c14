"""The states of a WebSocket: one table.

Theory of operation. A WebSocket is at any time in one phase. Events move it to another: those that the server hands in
(`websocket.connect`, `receive`, `disconnect`) and those that the application sends (`websocket.accept`, `send`,
`close`, and `websocket.http.response` for a denial as a whole). "send failed" is of a third kind: the server could not
send because the client has gone. `TRANSITIONS` holds every legal move; whatever has none in it is refused and changes
nothing.
"""

import enum
from collections.abc import Mapping


class WebSocketState(enum.Enum):
    """How far one side of the connection is."""

    CONNECTING = 0
    CONNECTED = 1
    DISCONNECTED = 3


CONNECTING, CONNECTED, DISCONNECTED = WebSocketState


class Phase:
    """How far both sides are: a row of the table. No enum: to make one costs as many calls as to import a module.

    Attributes:
        name: Its name.
        text: What it is, for errors.
        client: How far the client is.
        application: How far the application is.
        moves: The events that lead on from here, and where to.
    """

    __slots__ = ("application", "client", "moves", "name", "text")

    def __init__(self, name: str, text: str, client: WebSocketState, application: WebSocketState) -> None:
        self.name = name
        self.text = text
        self.client = client
        self.application = application
        self.moves: Mapping[str, Phase] = {}

    def __repr__(self) -> str:
        return f"<Phase {self.name}>"


OPENING = Phase("OPENING", "nothing has been read", CONNECTING, CONNECTING)
ASKED = Phase("ASKED", "the handshake waits for its answer", CONNECTED, CONNECTING)
OPEN = Phase("OPEN", "accepted", CONNECTED, CONNECTED)
REFUSED = Phase("REFUSED", "the application refused the handshake", CONNECTED, DISCONNECTED)
CLOSED = Phase("CLOSED", "the application closed", CONNECTED, DISCONNECTED)
LOST = Phase("LOST", "a send found the client gone", DISCONNECTED, CONNECTED)
LEFT_EARLY = Phase("LEFT_EARLY", "the client left before the answer", DISCONNECTED, CONNECTING)
LEFT = Phase("LEFT", "the client left", DISCONNECTED, CONNECTED)
ENDED = Phase("ENDED", "both sides are done", DISCONNECTED, DISCONNECTED)

TRANSITIONS: Mapping[Phase, Mapping[str, Phase]] = {
    OPENING: {
        "websocket.connect": ASKED,
        "websocket.disconnect": LEFT_EARLY,
    },
    ASKED: {
        "websocket.accept": OPEN,
        "websocket.close": REFUSED,
        "websocket.http.response": REFUSED,
        "websocket.disconnect": LEFT_EARLY,
        "send failed": LEFT_EARLY,
    },
    OPEN: {
        "websocket.receive": OPEN,
        "websocket.send": OPEN,
        "websocket.close": CLOSED,
        "websocket.disconnect": LEFT,
        "send failed": LOST,
    },
    # A receive() that was pending when the application closed may still bring a message, then the disconnect.
    REFUSED: {"websocket.close": REFUSED, "websocket.disconnect": ENDED},
    CLOSED: {
        "websocket.receive": CLOSED,
        "websocket.close": CLOSED,
        "websocket.disconnect": ENDED,
    },
    # What the client said before it left is still to be read, up to the disconnect.
    LOST: {"websocket.receive": LOST, "websocket.close": ENDED, "websocket.disconnect": LEFT},
    # close() after the end is a no-op, on the wire and here. A receive() that was pending may still bring something.
    LEFT_EARLY: {"websocket.close": ENDED, "websocket.disconnect": LEFT_EARLY},
    LEFT: {"websocket.close": ENDED},
    ENDED: {"websocket.receive": ENDED, "websocket.close": ENDED, "websocket.disconnect": ENDED},
}

for _phase, _moves in TRANSITIONS.items():
    _phase.moves = _moves

INCOMING = frozenset({"websocket.connect", "websocket.receive", "websocket.disconnect"})
"""The events that a server may hand in."""
