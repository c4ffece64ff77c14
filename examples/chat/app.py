"""A chat: rooms, typed messages in both directions, who is here, who comes and who goes.

    python -m examples.chat

Open the address that it prints in two tabs. What to look at:

- The messages are Structs. `WebSocket[In, Out]` says which of them come in and which go out: what comes in is decoded
  and validated, and what does not validate is answered with an error frame.
- `room` comes from the path and `name` from the query string; one that breaks its constraints is refused before
  `chat` is called.
- A name that is taken is an HTTPException after `accept`: the page sees close code 4409, with the reason.
- One member who does not read cannot hold up the others: see `broadcast` and `deliver`.
- A page of another site cannot join: same-origin is the default of `App`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import Annotated, TypeAlias

import anyio
from msgspec import Meta, Struct

from asgiws import (
    App,
    HTMLResponse,
    HTTPException,
    Response,
    WebSocket,
    WebSocketDisconnect,
    WebSocketStateError,
)

PATIENCE = 1.0
"""Seconds that a member may take to receive a message."""

UserName: TypeAlias = Annotated[str, Meta(max_length=24, pattern=r"^\S(.*\S)?\Z")]
RoomName: TypeAlias = Annotated[str, Meta(max_length=24, pattern=r"^[\w-]+\Z")]


# From the page


class Say(Struct, tag="say"):
    """A member says something: at most 1,000 characters, not all of them white space."""

    text: Annotated[str, Meta(max_length=1000, pattern=r"\S")]


class Typing(Struct, tag="typing"):
    """A member is typing."""


# To the page


class Welcome(Struct, tag="welcome"):
    """The first message: who is here, the new member included."""

    users: list[str]


class Joined(Struct, tag="joined"):
    """Somebody came."""

    user: str


class Left(Struct, tag="left"):
    """Somebody went."""

    user: str


class Said(Struct, tag="said"):
    """Somebody said something."""

    user: str
    text: str


class IsTyping(Struct, tag="typing"):
    """Somebody is typing."""

    user: str


In: TypeAlias = Say | Typing
Out: TypeAlias = Welcome | Joined | Left | Said | IsTyping


@dataclasses.dataclass
class Member:
    """One connection in a room."""

    ws: WebSocket[In, Out]
    stay: anyio.CancelScope = dataclasses.field(default_factory=anyio.CancelScope)


Members: TypeAlias = dict[str, Member]
"""Who is in a room, each under a name of its own."""

rooms: dict[str, Members] = {}

app = App()


@app.websocket("/rooms/<room>")
async def chat(ws: WebSocket[In, Out], room: RoomName, name: UserName) -> None:
    await ws.accept()
    async with join(room, name, ws) as members:
        async for message in ws:
            match message:
                case Say(text):
                    await broadcast(members, Said(name, text))
                case Typing():
                    await broadcast(members, IsTyping(name))


@contextlib.asynccontextmanager
async def join(room: str, name: str, ws: WebSocket[In, Out]) -> AsyncIterator[Members]:
    """Be a member of the room for as long as the context lasts, and let the others know."""
    members = rooms.setdefault(room, {})
    if name in members:
        raise HTTPException(409, f"{name} is here already, choose another name")
    member = members[name] = Member(ws)
    try:
        with member.stay:
            await ws.send_json(Welcome(sorted(members)))
            await broadcast(members, Joined(name))
            yield members
    finally:
        del members[name]
        if not members:
            del rooms[room]
        await broadcast(members, Left(name))
    if member.stay.cancelled_caught:
        with anyio.move_on_after(PATIENCE):  # a close waits for its turn, behind what the member does not read
            await ws.close(1013, "you read too slowly")


async def broadcast(members: Members, message: Out) -> None:
    """Send to all members at once. Who does not take the message in time is dropped, so that nobody waits for long."""
    async with anyio.create_task_group() as group:
        for member in members.values():
            group.start_soon(deliver, member, message)


async def deliver(member: Member, message: Out) -> None:
    """Send to one member, whose connection may be slow or at its end."""
    gone = contextlib.suppress(WebSocketDisconnect, WebSocketStateError)  # its own `chat` notices and ends
    with gone, anyio.move_on_after(PATIENCE) as patience:
        await member.ws.send_json(message)
    if patience.cancelled_caught:
        member.stay.cancel()


# The page, and the two files that it loads

HERE = pathlib.Path(__file__).parent
PAGE, STYLE, SCRIPT = [(HERE / file).read_bytes() for file in ("chat.html", "chat.css", "chat.js")]
HEADERS = {
    # Only what comes from this server is loaded and run, so that no text can become a program on the page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE, headers=HEADERS)


@app.get("/chat.css")
async def style() -> Response:
    return Response(STYLE, headers=HEADERS, media_type="text/css")


@app.get("/chat.js")
async def script() -> Response:
    return Response(SCRIPT, headers=HEADERS, media_type="text/javascript")
