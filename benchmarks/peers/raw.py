"""What a careful author writes by hand, with no framework: the base of all ratios."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from benchmarks.peers import ASGI

TITLE = "raw ASGI app"
DISTRIBUTION = ""
IMPORTS = "import asyncio"
TYPED = {"msgspec": "/typed"}
LACKS = {"match": "it has no router"}

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Say(msgspec.Struct, tag="say"):
    """The message."""

    room: str
    text: str
    id: int
    tags: list[str]


_decode_say = msgspec.json.Decoder(Say).decode


async def echo(_: Event, receive: Receive, send: Send) -> None:
    """Echo text."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            break
        await send({"type": "websocket.send", "text": event["text"]})


async def json(_: Event, receive: Receive, send: Send) -> None:
    """Echo JSON, decoded and encoded."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            break
        await send({"type": "websocket.send", "text": _encode(_decode(event["text"])).decode()})


async def typed(_: Event, receive: Receive, send: Send) -> None:
    """Echo a declared message, decoded, validated and encoded."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            break
        await send({"type": "websocket.send", "text": _encode(_decode_say(event["text"])).decode()})


async def connect(scope: Event, receive: Receive, send: Send) -> None:
    """Accept with two path and two query parameters, send one message, close."""
    await receive()
    _, _, room, number = scope["path"].split("/")
    query = dict(parse_qsl(scope["query_string"].decode()))
    text = f"{room} {int(number)} {query['lang']} {int(query['page'])}"
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": text})
    await send({"type": "websocket.close", "code": 1000})


async def settings() -> str:
    """What every connection needs."""
    return "settings"


@asynccontextmanager
async def database(settings: str) -> AsyncIterator[str]:
    """Something that is given back."""
    yield f"{settings} database"


async def user(database: str, token: str) -> str:
    """Who asks."""
    return f"{database} {token}"


async def depends(scope: Event, receive: Receive, send: Send) -> None:
    """Accept with three dependencies, one of which cleans up, send one message, close."""
    await receive()
    query = dict(parse_qsl(scope["query_string"].decode()))
    async with database(await settings()) as db:
        text = await user(db, query["token"])
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.close", "code": 1000})


ENDPOINTS = {"/echo": echo, "/json": json, "/typed": typed, "/depends": depends, "/connect/general/7": connect}


async def nothing(_: Event, receive: Receive, send: Send) -> None:
    """Neither HTTP nor a lifespan."""


def app(scope: Event, receive: Receive, send: Send) -> Awaitable[None]:
    """Everything behind one door, with no coroutine of its own."""
    return ENDPOINTS.get(scope.get("path", ""), nothing)(scope, receive, send)


def routes(kind: str, count: int) -> ASGI:
    """It has none."""
    raise NotImplementedError(kind, count)
