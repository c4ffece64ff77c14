"""FastAPI, as its documentation writes it: parameters and `Depends` by signature, pydantic for declared types."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, WebSocket
from pydantic import BaseModel

from benchmarks.peers import ASGI, templates

TITLE = "FastAPI"
DISTRIBUTION = "fastapi"
IMPORTS = "from fastapi import FastAPI, WebSocket"
TYPED = {"pydantic": "/typed"}
LACKS: dict[str, str] = {}

app = FastAPI(openapi_url=None)


class Say(BaseModel):
    """The message."""

    type: Literal["say"]
    room: str
    text: str
    id: int
    tags: list[str]


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    """Echo text."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket("/json")
async def json(websocket: WebSocket) -> None:
    """Echo JSON."""
    await websocket.accept()
    async for message in websocket.iter_json():
        await websocket.send_json(message)


@app.websocket("/typed")
async def typed(websocket: WebSocket) -> None:
    """Echo a declared model; pydantic's own JSON is faster than the standard library's and a model after it."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(Say.model_validate_json(text).model_dump_json())


@app.websocket("/connect/{room}/{number}")
async def connect(websocket: WebSocket, room: str, number: int, lang: str, page: int = 1) -> None:
    """Two path and two query parameters."""
    await websocket.accept()
    await websocket.send_text(f"{room} {number} {lang} {page}")
    await websocket.close()


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
async def depends(websocket: WebSocket, user: Annotated[str, Depends(user)]) -> None:
    """Three dependencies, one of which cleans up."""
    await websocket.accept()
    await websocket.send_text(user)
    await websocket.close()


async def nothing(websocket: WebSocket) -> None:
    """Accept and close."""
    await websocket.accept()
    await websocket.close()


async def nothing_room(websocket: WebSocket, room: str, number: int) -> None:
    """Accept and close, with parameters."""
    await websocket.accept()
    await websocket.close(reason=f"{room} {number}")


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    many = FastAPI(openapi_url=None)
    for template in templates(kind, count, "{room}", "{number}"):
        many.websocket(template)(nothing if kind == "static" else nothing_room)
    return many
