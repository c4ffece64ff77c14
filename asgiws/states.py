"""The states of a WebSocket: one table.

Theory of operation. A WebSocket is at any time in one phase. Events move it to another: those that the server hands in
(`websocket.connect`, `receive`, `disconnect`) and those that the application sends (`websocket.accept`, `send`,
`close`, and `websocket.http.response` for a denial as a whole). `TRANSITIONS` holds every legal move; whatever has no
move in it is refused and changes nothing.
"""

import enum
from collections.abc import Mapping


class WebSocketState(enum.Enum):
    """How far one side of the connection is."""

    CONNECTING = 0
    CONNECTED = 1
    DISCONNECTED = 3


_CONNECTING, _CONNECTED, _DISCONNECTED = WebSocketState


class Phase(enum.Enum):
    """How far both sides are: the rows of the table."""

    OPENING = ("nothing has been read", _CONNECTING, _CONNECTING)
    ASKED = ("the handshake waits for its answer", _CONNECTED, _CONNECTING)
    OPEN = ("accepted", _CONNECTED, _CONNECTED)
    REFUSED = ("the application refused the handshake", _CONNECTED, _DISCONNECTED)
    CLOSED = ("the application closed", _CONNECTED, _DISCONNECTED)
    LEFT_EARLY = ("the client left before the answer", _DISCONNECTED, _CONNECTING)
    LEFT = ("the client left", _DISCONNECTED, _CONNECTED)
    ENDED = ("both sides are done", _DISCONNECTED, _DISCONNECTED)

    def __init__(self, _: str, client: WebSocketState, application: WebSocketState) -> None:
        self.client = client
        self.application = application


TRANSITIONS: Mapping[Phase, Mapping[str, Phase]] = {
    Phase.OPENING: {
        "websocket.connect": Phase.ASKED,
        "websocket.disconnect": Phase.LEFT_EARLY,
    },
    Phase.ASKED: {
        "websocket.accept": Phase.OPEN,
        "websocket.close": Phase.REFUSED,
        "websocket.http.response": Phase.REFUSED,
        "websocket.disconnect": Phase.LEFT_EARLY,
    },
    Phase.OPEN: {
        "websocket.receive": Phase.OPEN,
        "websocket.send": Phase.OPEN,
        "websocket.close": Phase.CLOSED,
        "websocket.disconnect": Phase.LEFT,
    },
    # A receive() that was pending when the application closed may still bring a message, then the disconnect.
    Phase.REFUSED: {"websocket.close": Phase.REFUSED, "websocket.disconnect": Phase.ENDED},
    Phase.CLOSED: {
        "websocket.receive": Phase.CLOSED,
        "websocket.close": Phase.CLOSED,
        "websocket.disconnect": Phase.ENDED,
    },
    # close() after the end is a no-op, on the wire and here.
    Phase.LEFT_EARLY: {"websocket.close": Phase.ENDED},
    Phase.LEFT: {"websocket.close": Phase.ENDED},
    Phase.ENDED: {"websocket.close": Phase.ENDED},
}

INCOMING = frozenset({"websocket.connect", "websocket.receive", "websocket.disconnect"})
"""The events that a server may hand in."""
