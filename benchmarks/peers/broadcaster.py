"""broadcaster, which has a part in the fan-out only: it is no framework."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import broadcaster
import msgspec
from broadcaster import BroadcastBackend

from benchmarks.peers import ASGI, Publish

TITLE = "broadcaster"
DISTRIBUTION = "broadcaster"
IMPORTS = "from broadcaster import Broadcast"
TYPED: dict[str, str] = {}
NO_FRAMEWORK = "it is a publisher for other frameworks"
LACKS = dict.fromkeys(
    ("echo", "json", "typed", "connect", "depends", "match", "memory", "server", "rss", "instructions"), NO_FRAMEWORK
)

FAN = FAN_STALLED = ("",)
FAN_REDIS = ("Pub/Sub",)

Broadcast = broadcaster.Broadcast


def redis_backend(url: str) -> BroadcastBackend:
    """Its backend with no time limit for a socket, which is what it was written for.

    With the one that redis-py has by itself since version 8, its listener ends before the first channel is subscribed.
    """
    from broadcaster._backends.redis import RedisBackend  # noqa: PLC0415 - only here
    from redis.asyncio import Redis  # noqa: PLC0415

    backend = RedisBackend(url)
    backend._conn = Redis.from_url(url, socket_timeout=None)  # noqa: SLF001 - there is no other way
    backend._pubsub = backend._conn.pubsub()  # noqa: SLF001
    return backend


def fan(_kind: str, url: str) -> tuple[ASGI, Publish]:
    """Everybody at `/general`, in Starlette, is told what is published."""
    from starlette.applications import Starlette  # noqa: PLC0415 - only here
    from starlette.routing import WebSocketRoute  # noqa: PLC0415
    from starlette.websockets import WebSocket  # noqa: PLC0415

    broadcast = Broadcast(backend=redis_backend(url)) if url else Broadcast("memory://")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with broadcast:
            yield

    async def pass_on(websocket: WebSocket) -> None:
        async with broadcast.subscribe(channel="general") as subscriber:
            async for event in subscriber:
                await websocket.send_text(event.message)

    async def general(websocket: WebSocket) -> None:
        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on, websocket)
            async for _ in websocket.iter_text():
                pass
            tasks.cancel_scope.cancel()

    async def publish(message: object) -> None:
        await broadcast.publish("general", msgspec.json.encode(message).decode())

    return Starlette(routes=[WebSocketRoute("/general", general)], lifespan=lifespan), publish
