"""A chat: rooms, typed messages in both directions, who is here, who comes and who goes.

    python -m examples.chat

Open the address that it prints in two tabs. What to look at, from the bottom of this file to its top:

- `Chat` is a controller: each WebSocket gets an object of it. `on_connect` accepts, the methods below `@on` take the
  messages, each those of its type, and `on_disconnect` is called once, however the connection ended.
- `room` comes from the path, and `name` from a dependency. Where one of them is wrong the handshake is refused, and
  there is no `Chat`. A name that is taken is an HTTPException after `accept`: the page sees close code 4409, with the
  reason.
- `user_name` is that dependency. A page can send no headers with a WebSocket: it sends a token among the subprotocols.
  Other programs may send a cookie.
- `Rooms` is a component: there is one of it, opened and closed with the app, for all who have it in their signature.
- One member who does not read cannot hold up the others: see `broadcast` and what it calls.
- The messages are Structs. What comes in is decoded and validated, and what does not validate is answered with an
  error frame.
- A page of another site cannot join: same-origin is the default of `App`.

How it is tested: `tests/test_examples.py`.
"""

import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Annotated, TypeAlias
from urllib.parse import unquote

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Meta, Struct

from asgiws import (
    App,
    Cookie,
    Depends,
    HTMLResponse,
    HTTPException,
    Response,
    WebSocket,
    WebSocketDisconnect,
    WebSocketStateError,
    component,
    controller,
    on,
)
from asgiws.security import SubprotocolToken

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


Out: TypeAlias = Welcome | Joined | Left | Said | IsTyping


# The rooms


class Rooms:
    """Who is in which room, each under a name of its own."""

    def __init__(self, background: TaskGroup) -> None:
        self._rooms: dict[str, dict[str, WebSocket]] = {}
        self._background = background

    async def join(self, room: str, name: str, ws: WebSocket) -> None:
        """Take a member in, and let everybody know."""
        members = self._rooms.setdefault(room, {})
        if name in members:
            raise HTTPException(409, f"{name} is here already, choose another name")
        members[name] = ws
        await self._deliver(room, name, ws, Welcome(sorted(members)))
        await self.broadcast(room, Joined(name))

    async def leave(self, room: str, name: str, ws: WebSocket) -> None:
        """Take a member out, and let the others know. Who is no member, or not any more, leaves nothing."""
        members = self._rooms.get(room, {})
        if members.get(name) is not ws:
            return
        del members[name]
        if not members:
            del self._rooms[room]
        await self.broadcast(room, Left(name))

    async def broadcast(self, room: str, message: Out) -> None:
        """Send to all members at once. Who does not take the message in time is dropped, so nobody waits for long."""
        async with anyio.create_task_group() as group:
            for name, ws in self._rooms.get(room, {}).items():
                group.start_soon(self._deliver, room, name, ws, message)

    async def _deliver(self, room: str, name: str, ws: WebSocket, message: Out) -> None:
        """Send to one member, whose connection may be slow or at its end."""
        gone = contextlib.suppress(WebSocketDisconnect, WebSocketStateError)  # its own `on_disconnect` is to come
        with gone, anyio.move_on_after(PATIENCE) as patience:
            await ws.send_json(message)
        if patience.cancelled_caught:
            self._background.start_soon(self._drop, room, name, ws)

    async def _drop(self, room: str, name: str, ws: WebSocket) -> None:
        """Take a member out and close its connection. The close waits behind all that the member has not read yet."""
        await self.leave(room, name, ws)
        await ws.close(1013, "you read too slowly")


@component
async def rooms() -> AsyncIterator[Rooms]:
    """The rooms, opened with the app and closed with it, and the tasks that nobody waits for."""
    async with anyio.create_task_group() as background:
        yield Rooms(background)
        background.cancel_scope.cancel()


# Who is it?


async def user_name(
    token: Annotated[str | None, Depends(SubprotocolToken(auto_error=False))],
    cookie: Annotated[str, Cookie(alias="name")] = "",
) -> str:
    """The name of a new member: from the token that a page sends, else from a cookie, percent-encoded."""
    # This chat has no accounts: the token is the name itself, and whoever comes is believed. A real service gives out a
    # signed token at login, checks the signature and the age here, and takes the name out of it.
    name = token or unquote(cookie)
    if not name:
        raise HTTPException(401, "send your name, as a token or in a cookie", {"www-authenticate": "Bearer"})
    try:
        return msgspec.convert(name, UserName)
    except msgspec.ValidationError:
        raise HTTPException(422, "a name is one line of up to 24 characters, with no space at its ends") from None


# The conversation


@controller("/rooms/<room>")
class Chat:
    """One connection: a member of a room."""

    def __init__(self, rooms: Rooms, room: RoomName, name: Annotated[str, Depends(user_name)]) -> None:
        self.rooms, self.room, self.name = rooms, room, name

    async def on_connect(self, ws: WebSocket) -> None:
        """Let the member in. A page that offers subprotocols gives up if none of them is accepted."""
        await ws.accept("chat" if "chat" in ws.subprotocols else None)
        await self.rooms.join(self.room, self.name, ws)

    @on(Say)
    async def say(self, message: Say) -> None:
        """Pass on what the member says."""
        await self.rooms.broadcast(self.room, Said(self.name, message.text))

    @on(Typing)
    async def typing(self) -> None:
        """Pass on that the member is typing."""
        await self.rooms.broadcast(self.room, IsTyping(self.name))

    async def on_disconnect(self, ws: WebSocket) -> None:
        """Take the member out, if the name was free and it came in."""
        await self.rooms.leave(self.room, self.name, ws)


app = App()
app.include(Chat)


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
