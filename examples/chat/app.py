"""A chat: rooms with a history, who is here, who comes and who goes; in one process or in many.

    python -m examples.chat
    python -m examples.chat --redis redis://localhost:6379

The second line runs two processes on one port, which share their rooms on a Redis or Valkey server. Open the address in
two tabs, kill the program, write on, start it again. What to look at, from the bottom of this file to its top:

- `chat` is the whole conversation. It joins the room, and from then on the member gets what is published there: first
  what was missed, or the last messages for who is new, then what comes.
- `since` is the last position that the page has seen. The page keeps it and connects again by `client.js`, a module
  that asgiws brings along, and that you can use as it is.
- What somebody says comes back to the page that sent it, with the id that it gave it. What has not come back when the
  connection is lost is sent again, and who gets an id twice shows it once.
- Who is here is known by name: two tabs with one name are one member.
- Who types is told on a topic of its own, without a history. A member who reads slowly gets the last word of each only.
- One member who does not read holds up nobody: the connection is closed, and the page comes back to where it was.
- `user_name` is a dependency. A page can send no headers with a WebSocket: it sends a token among the subprotocols.
  Other programs may send a cookie. A wrong name or room refuses the handshake.
- The messages are Structs. What comes in is decoded and validated, and what does not validate is answered with an
  error frame.
- A page of another site cannot join: same-origin is the default of `App`.

How it is tested: `tests/test_examples.py`.
"""

import datetime as dt
import os
import pathlib
from typing import Annotated, TypeAlias
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Struct

from asgiws import App, Cookie, Depends, HTMLResponse, HTTPException, Limits, Response, WebSocket
from asgiws.channels import Channels, Member, TopicOptions, client_module
from asgiws.security import SubprotocolToken

UserName: TypeAlias = Annotated[str, Meta(max_length=24, pattern=r"^\S(.*\S)?\Z")]
RoomName: TypeAlias = Annotated[str, Meta(max_length=24, pattern=r"^[\w-]+\Z")]


# From the page


class Say(Struct, tag="say"):
    """A member says something: at most 1,000 characters, not all of them white space. The id is the page's own."""

    text: Annotated[str, Meta(max_length=1000, pattern=r"\S")]
    id: Annotated[str, Meta(max_length=36)] = ""


class Typing(Struct, tag="typing"):
    """A member is typing."""


# To the page


class Here(Struct, tag="here"):
    """Who is in the room, sent once the member is."""

    users: list[str]


class Said(Struct, tag="said"):
    """Somebody said something."""

    user: str
    text: str
    id: str
    at: dt.datetime


class IsTyping(Struct, tag="typing"):
    """Somebody is typing."""

    user: str


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

TOPICS = {"room:*": TopicOptions(history=500, ttl=24 * 3600, presence=True)}

app = App(
    channels=Channels(os.environ.get("CHAT_REDIS"), topics=TOPICS),  # no URL: the memory of this process
    # Who comes back gets at once what was missed, as long as it is no more than half of what may wait for the socket.
    limits=Limits(outbox_messages=1000, outbox_bytes=8_388_608),
)


@app.websocket("/rooms/<room>")
async def chat(
    ws: WebSocket[Say | Typing, Here],
    room: RoomName,
    name: Annotated[str, Depends(user_name)],
    channels: Channels,
    since: str | None = None,
) -> None:
    topic, typing = f"room:{room}", f"typing:{room}"
    # A page that offers subprotocols gives up if none of them is accepted.
    await ws.accept("chat" if "chat" in ws.subprotocols else None)
    async with (
        channels.join(ws, topic, since=since, history=100, envelope=True, presence=Member(name)),
        channels.join(ws, typing, overflow="latest"),
    ):
        await ws.send_json(Here([member.key for member in await channels.presence(topic)]))
        async for message in ws:
            match message:
                case Say(text, id):
                    await channels.publish(topic, Said(name, text, id, dt.datetime.now(dt.UTC)))
                case Typing():
                    await channels.publish(typing, IsTyping(name), key=name, exclude=ws)


# The page, and the files that it loads

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


app.get("/client.js")(client_module)
