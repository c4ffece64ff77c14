"""Chanx, as its documentation writes it: pydantic messages and `ws_handler` on a FastAPI application."""

import logging
from typing import Literal

import structlog
from chanx.core.decorators import channel, ws_handler
from chanx.fast_channels.websocket import AsyncJsonWebsocketConsumer
from chanx.messages.base import BaseMessage
from fastapi import FastAPI
from starlette.routing import WebSocketRoute

from benchmarks.peers import ASGI, JSON

TITLE = "chanx"
DISTRIBUTION = "chanx"
IMPORTS = (
    "from chanx.core.decorators import channel, ws_handler; "
    "from chanx.fast_channels.websocket import AsyncJsonWebsocketConsumer; "
    "from chanx.messages.base import BaseMessage; from fastapi import FastAPI"
)
TYPED = {"pydantic": "/typed"}
MESSAGE = JSON.replace('"type"', '"action"')
LACKS = {
    "echo": "it has only typed messages",
    "json": "it has only typed messages",
    "connect": "parameters are FastAPI's or Django's affair",
    "depends": "it has no dependencies",
    "match": "it routes with FastAPI or Django",
    "server": "it has only typed messages",
    "instructions": "it has only typed messages",
}


structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


class Say(BaseMessage):
    """The message, both ways; its field `action` names the type."""

    action: Literal["say"] = "say"
    room: str
    text: str
    id: int
    tags: list[str]


@channel(name="benchmark")
class Typed(AsyncJsonWebsocketConsumer):
    """Echo a declared model."""

    send_completion = False
    log_websocket_message = False

    @ws_handler(output_type=Say)
    async def handle_say(self, message: Say) -> Say:
        """One message."""
        return message


app = FastAPI(
    openapi_url=None,
    routes=[WebSocketRoute("/typed", Typed.as_asgi()), WebSocketRoute("/echo", Typed.as_asgi())],
)


def routes(kind: str, count: int) -> ASGI:
    """It has none of its own."""
    raise NotImplementedError(kind, count)
