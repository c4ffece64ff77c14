"""Litestar, as its documentation writes it: `websocket` for a conversation, `websocket_listener` for declared types."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Litestar, WebSocket, websocket, websocket_listener
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.base import ChannelsBackend
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery

from benchmarks.peers import ASGI, Publish, templates

TITLE = "Litestar"
DISTRIBUTION = "litestar"
IMPORTS = "from litestar import Litestar, WebSocket, websocket"
TYPED = {"msgspec": "/typed/msgspec", "dataclass": "/typed/dataclass"}
LACKS: dict[str, str] = {}
FAN = FAN_STALLED = ("",)
FAN_REDIS = ("Pub/Sub", "Streams")


class Say(msgspec.Struct, tag="say"):
    """The message as a struct."""

    room: str
    text: str
    id: int
    tags: list[str]


@dataclass
class SayData:
    """The message as a dataclass."""

    type: str
    room: str
    text: str
    id: int
    tags: list[str]


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    """Echo text."""
    await socket.accept()
    async for text in socket.iter_data("text"):
        await socket.send_text(text)


@websocket("/json")
async def json(socket: WebSocket) -> None:
    """Echo JSON."""
    await socket.accept()
    async for message in socket.iter_json():
        await socket.send_json(message)


@websocket_listener("/typed/msgspec")
async def typed(data: Say) -> Say:
    """Echo a declared struct."""
    return data


@websocket_listener("/typed/dataclass")
async def typed_dataclass(data: SayData) -> SayData:
    """Echo a declared dataclass."""
    return data


@websocket("/connect/{room:str}/{number:int}")
async def connect(
    socket: WebSocket, room: FromPath[str], number: FromPath[int], lang: FromQuery[str], page: FromQuery[int] = 1
) -> None:
    """Two path and two query parameters."""
    await socket.accept()
    await socket.send_text(f"{room} {number} {lang} {page}")
    await socket.close()


async def settings() -> str:
    """What every connection needs."""
    return "settings"


async def database(settings: NamedDependency[str]) -> AsyncGenerator[str, None]:
    """Something that is given back."""
    yield f"{settings} database"


async def user(database: NamedDependency[str], token: FromQuery[str]) -> str:
    """Who asks."""
    return f"{database} {token}"


@websocket(
    "/depends",
    dependencies={"settings": Provide(settings), "database": Provide(database), "user": Provide(user)},
)
async def depends(socket: WebSocket, user: NamedDependency[str]) -> None:
    """Three dependencies, one of which cleans up."""
    await socket.accept()
    await socket.send_text(user)
    await socket.close()


app = Litestar([echo, json, typed, typed_dataclass, connect, depends], openapi_config=None)


async def nothing(socket: WebSocket) -> None:
    """Accept and close."""
    await socket.accept()
    await socket.close()


async def nothing_room(socket: WebSocket, room: FromPath[str], number: FromPath[int]) -> None:
    """Accept and close, with parameters."""
    await socket.accept()
    await socket.close(reason=f"{room} {number}")


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    handler = nothing if kind == "static" else nothing_room
    every = templates(kind, count, "{room:str}", "{number:int}")
    return Litestar([websocket(template)(handler) for template in every], openapi_config=None)


def fan(kind: str, url: str) -> tuple[ASGI, Publish]:
    """Everybody at `/general`, a handler that the plugin makes, is told what is published."""
    backend: ChannelsBackend = MemoryChannelsBackend()
    if url:
        from litestar.channels.backends import redis as backends  # noqa: PLC0415 - only here
        from redis.asyncio import Redis  # noqa: PLC0415

        broker = Redis.from_url(url)
        backend = (
            backends.RedisChannelsPubSubBackend(redis=broker)
            if kind == "Pub/Sub"
            # With a shorter stream a worker that is behind loses what is cut off.
            else backends.RedisChannelsStreamBackend(history=10_000, redis=broker)
        )
    channels = ChannelsPlugin(backend, channels=["general"], create_ws_route_handlers=True)

    async def publish(message: Any) -> None:
        await channels.wait_published(message, "general")

    return Litestar([], plugins=[channels], openapi_config=None), publish
