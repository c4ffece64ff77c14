"""asgiws: a pure-ASGI, WebSocket-first microframework."""

from typing import TYPE_CHECKING, Any

from .app import App, Middleware
from .components import component
from .connection import Connection
from .controllers import controller, get, on, post, websocket
from .errors import (
    AsgiwsError,
    ConfigurationError,
    HTTPException,
    MessageError,
    ParameterError,
    ProtocolError,
    RouteError,
    SignatureError,
    WebSocketDisconnect,
    WebSocketException,
    WebSocketStateError,
)
from .http import HTMLResponse, JSONResponse, PlainTextResponse, Request, Response
from .limits import Limits
from .params import Body, Cookie, Depends, Header, Path, Query
from .routing import Router
from .states import WebSocketState
from .websocket import WebSocket

if TYPE_CHECKING:
    from .channels.channels import Channels

__version__ = "0.1.0"

__all__ = [
    "App",
    "AsgiwsError",
    "Body",
    "Channels",
    "ConfigurationError",
    "Connection",
    "Cookie",
    "Depends",
    "HTMLResponse",
    "HTTPException",
    "Header",
    "JSONResponse",
    "Limits",
    "MessageError",
    "Middleware",
    "ParameterError",
    "Path",
    "PlainTextResponse",
    "ProtocolError",
    "Query",
    "Request",
    "Response",
    "RouteError",
    "Router",
    "SignatureError",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketException",
    "WebSocketState",
    "WebSocketStateError",
    "component",
    "controller",
    "get",
    "on",
    "post",
    "websocket",
]


def __getattr__(name: str) -> Any:
    """`Channels`, which is only imported where it is used."""
    if name != "Channels":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .channels.channels import Channels  # noqa: PLC0415

    return Channels
