"""Handlers whose annotations are strings, as `from __future__ import annotations` makes them all."""

from __future__ import annotations

import enum
import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from msgspec import Struct

from asgiws import App, Body, Header, Path, Query, Request, WebSocket


class Colour(enum.Enum):
    """A type of this module."""

    RED = "red"
    BLUE = "blue"


class Say(Struct, tag="say"):
    """A message."""

    text: str


class Move(Struct, tag="move"):
    """Another message."""

    x: int


class Filters(Struct):
    """What a whole query string is made into."""

    colour: Colour = Colour.RED
    near: list[int] = []


def of_the_module(seen: list[Any]) -> App:
    """An app whose handlers name types of this module, and one that is defined after them."""
    app = App()

    @app.websocket("/values/<room>/<count:int>")
    async def values(
        socket: WebSocket,
        room: str,
        count: Annotated[int, Path(ge=1)],
        colour: Colour,
        ident: uuid.UUID | None = None,
        near: list[int] = Query([]),  # noqa: B008
        x_trace: str = Header("none"),
        kind: Literal["a", "b"] = "a",
    ) -> None:
        seen.append((room, count, colour, ident, near, x_trace, kind))
        await socket.accept()

    @app.websocket("/struct")
    async def struct(socket: WebSocket, filters: Annotated[Filters, Query()]) -> None:
        seen.append(filters)
        await socket.accept()

    @app.websocket("/messages")
    async def messages(socket: WebSocket[Say | Move, Say]) -> None:
        await socket.accept()
        async for message in socket:
            seen.append(message)

    @app.websocket("/stream")
    async def stream(colour: Colour) -> AsyncIterator[Say]:
        yield Say(colour.value)

    @app.post("/body")
    async def body(asked: Request, later: Later, filters: Annotated[list[Colour], Query()]) -> list[Any]:
        return [asked.method, later.value, filters]

    @app.put("/body")
    async def marked(value: Annotated[Later | None, Body()] = None) -> Any:
        return value

    return app


class Later(Struct):
    """A type that stands below the handlers that name it."""

    value: int


def of_a_function(seen: list[Any]) -> App:
    """An app whose handlers name types that only this function knows."""
    app = App()

    class Kind(enum.Enum):
        ONE = "1"

    class Message(Struct):
        n: int

    alias = Annotated[int, Query(alias="page-no", ge=1)]

    @app.websocket("/plain/<kind>")
    async def plain(socket: WebSocket[Message], kind: Kind, page: alias = 1) -> None:
        seen.append((kind.name, page))
        await socket.accept()
        async for message in socket:
            seen.append(message.n)

    def noting(handler: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        @functools.wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> None:
            seen.append("wrapped")
            await handler(*args, **kwargs)

        return wrapper

    @app.websocket("/wrapped/<kind>")
    @noting
    async def wrapped(socket: WebSocket, kind: Kind) -> None:
        seen.append(kind.name)
        await socket.accept()

    class Controller:
        async def method(self, socket: WebSocket, kind: Kind) -> None:
            seen.append(kind.name)
            await socket.accept()

        async def __call__(self, socket: WebSocket, kind: Kind) -> None:
            seen.append(kind.name)
            await socket.accept()

    app.websocket("/method/<kind>")(Controller().method)
    app.websocket("/object/<kind>")(Controller())
    app.websocket("/partial/<kind>")(functools.partial(Controller().method))

    def deeper() -> None:
        class Deep(enum.Enum):
            TWO = "2"

        @app.websocket("/deeper/<kind>")
        async def handler(socket: WebSocket, kind: Deep) -> None:
            seen.append(kind.name)
            await socket.accept()

    deeper()
    return app


async def unknown_name(socket: WebSocket, value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    """An annotation that nothing defines."""


async def unknown_attribute(socket: WebSocket, value: enum.Enumeration) -> None:  # type: ignore[name-defined]
    """An annotation that its module does not have."""


async def no_type(socket: WebSocket, value: int | 3) -> None:  # type: ignore[valid-type]
    """An annotation that fails when it is evaluated."""


def unknown_field() -> Any:
    """Messages with a field whose type msgspec cannot find: only this function knew it."""

    class Inner(Struct):
        n: int

    class Outer(Struct):
        inner: Inner

    return Outer
