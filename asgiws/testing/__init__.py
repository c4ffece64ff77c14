"""A client for tests without a server, for any ASGI application.

`TestClient` serves plain tests, `AsyncTestClient` async ones on asyncio and trio. It is never imported by the rest of
asgiws.

To read it: `shapes` says how the servers differ, `servers` is a connection on one of them, `line` that with a client at
its other end; `running` runs the application in a task, `waiting` finds the line where it waits; `conversation` puts
these together, in one event loop. The rest is what a test holds in its hands.
"""

from .client import AsyncTestClient
from .errors import LifespanError, ServerChokedError, StuckError, UnexpectedMessageError, WebSocketDenied
from .servers import FakeServer
from .session import AsyncWebSocketSession
from .shapes import SHAPES, Shape
from .sync import TestClient
from .sync_session import WebSocketSession

__all__ = [
    "SHAPES",
    "AsyncTestClient",
    "AsyncWebSocketSession",
    "FakeServer",
    "LifespanError",
    "ServerChokedError",
    "Shape",
    "StuckError",
    "TestClient",
    "UnexpectedMessageError",
    "WebSocketDenied",
    "WebSocketSession",
]
