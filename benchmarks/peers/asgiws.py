"""asgiws, as its README writes it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import msgspec

from asgiws import App, Channels, Depends, WebSocket
from asgiws.channels.outbox import TASKLESS
from benchmarks.peers import ASGI, Publish, templates

TITLE = "asgiws"
DISTRIBUTION = "asgiws"
IMPORTS = "from asgiws import App, WebSocket"
TYPED = {"msgspec": "/typed/msgspec", "dataclass": "/typed/dataclass"}
LACKS: dict[str, str] = {}
FOREIGN = "behind a foreign middleware"
FAN = ("", FOREIGN)
FAN_STALLED = ("closes them", "drops the oldest")
FAN_REDIS = ("no history", "history of 100")

app = App()


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


@app.websocket("/echo")
async def echo(ws: WebSocket) -> None:
    """Echo text."""
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


@app.websocket("/json")
async def json(ws: WebSocket) -> None:
    """Echo JSON."""
    await ws.accept()
    async for message in ws.iter_json():
        await ws.send_json(message)


@app.websocket("/typed/msgspec")
async def typed(ws: WebSocket[Say, Say]) -> None:
    """Echo a declared struct."""
    await ws.accept()
    async for message in ws:
        await ws.send_json(message)


@app.websocket("/typed/dataclass")
async def typed_dataclass(ws: WebSocket[SayData, SayData]) -> None:
    """Echo a declared dataclass."""
    await ws.accept()
    async for message in ws:
        await ws.send_json(message)


@app.websocket("/connect/<room>/<number:int>")
async def connect(ws: WebSocket, room: str, number: int, lang: str, page: int = 1) -> None:
    """Two path and two query parameters."""
    await ws.accept()
    await ws.send_text(f"{room} {number} {lang} {page}")
    await ws.close()


async def settings() -> str:
    """What every connection needs."""
    return "settings"


async def database(settings: Annotated[str, Depends(settings)]) -> AsyncIterator[str]:
    """Something that is given back."""
    yield f"{settings} database"


async def user(database: Annotated[str, Depends(database)], token: str) -> str:
    """Who asks."""
    return f"{database} {token}"


@app.websocket("/depends")
async def depends(ws: WebSocket, user: Annotated[str, Depends(user)]) -> None:
    """Three dependencies, one of which cleans up."""
    await ws.accept()
    await ws.send_text(user)
    await ws.close()


async def nothing(ws: WebSocket) -> None:
    """Accept and close."""
    await ws.accept()
    await ws.close()


async def nothing_room(ws: WebSocket, room: str, number: int) -> None:
    """Accept and close, with parameters."""
    await ws.accept()
    await ws.close(reason=f"{room} {number}")


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    many = App()
    for template in templates(kind, count, "<room>", "<number:int>"):
        many.websocket(template)(nothing if kind == "static" else nothing_room)
    return many


def fan(kind: str, url: str) -> tuple[ASGI, Publish]:
    """Everybody at `/general` is told what is published."""
    if kind != FOREIGN:
        # The sockets of the benchmark stand for those of a server such as uvicorn, whose `send()` may go on in any
        # task; so a publisher takes the first step of a send itself. Behind a `send()` of which that is not known,
        # each one gets a task.
        TASKLESS.add("benchmarks")
    channels = Channels(url or None, history=100 if kind == "history of 100" else 0)
    fans = App(channels=channels)

    @fans.websocket("/general")
    async def general(ws: WebSocket, channels: Channels) -> None:
        await ws.accept()
        async with channels.join(ws, "general", overflow="drop_oldest" if kind == "drops the oldest" else "close"):
            async for _ in ws.iter_text():
                pass

    async def publish(message: object) -> None:
        await channels.publish("general", message)

    return fans, publish
