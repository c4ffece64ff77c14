"""The programs that are measured, one file each, so that those who know a peer best can check what it is given to do.

A file holds the program in the way of its own documentation, and there the fastest one. It defines what it can do, and
in `LACKS` why it has no part in a job. Names that the jobs look for:

- `TITLE`: how the tables name it. `DISTRIBUTION`: what is installed; its version stands in the results.
- `IMPORTS`: the statement that a service with a WebSocket endpoint begins with.
- `app`: the ASGI application, which echoes text at `/echo` and JSON at `/json`, answers `/connect/<room>/<number>`
  with `?lang=…&page=…` and `/depends?token=…`, and echoes a declared type at each path of `TYPED`.
- `TYPED`: kind of declaration (`"msgspec"`, `"pydantic"`, `"dataclass"`) to the path of its echo.
- `routes(kind, count)`: an application with so many routes; every handler accepts and closes.
- `fan(kind, url)`: an application that tells everybody at `/general` what is published, and the function that publishes
  there, through Redis if there is a URL. `FAN`, `FAN_STALLED` and `FAN_REDIS`: of which kinds, for each of these jobs.
- `LACKS`: the name of a job to the reason why this peer is left out of it.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, cast

Message = MutableMapping[str, Any]
ASGI = Callable[[Any, Any, Any], Awaitable[None]]
Publish = Callable[[Any], Awaitable[None]]

NAMES = (
    "raw",
    "asgiws",
    "starlette",
    "fastapi",
    "litestar",
    "blacksheep",
    "falcon",
    "sanic",
    "quart",
    "channels",
    "chanx",
    "broadcaster",
    "picows",
)
ALWAYS = ("raw", "asgiws")

JSON = '{"type":"say","room":"general","text":"hello, everybody","id":12345,"tags":["a","b"]}'
"""The message of both JSON jobs: with a declared type its fields have these types."""

KINDS = {
    "static": "/AREA/things/all",
    "parameters": "/AREA/<room>/<number>",
    "deep": "/api/v1/tenants/<room>/projects/main/AREA/things/<number>/live",
}
"""Templates of the routes that are looked up; `<room>` is a text, `<number>` an integer, `AREA` differs."""


class Peer(Protocol):
    """What a file in this directory defines; `app` and what depends on it only if the peer serves ASGI."""

    TITLE: str
    DISTRIBUTION: str
    IMPORTS: str
    TYPED: dict[str, str]
    LACKS: dict[str, str]
    app: ASGI

    def routes(self, kind: str, count: int) -> ASGI:
        """An application with so many routes."""

    def fan(self, kind: str, url: str) -> tuple[ASGI, Publish]:
        """An application that tells everybody what is published, and the function that publishes."""


def load(name: str) -> Peer:
    """The peer of that name, imported.

    Raises:
        ImportError: It is not installed.
    """
    return cast("Peer", importlib.import_module(f"{__name__}.{name}"))


def missing(name: str) -> str:
    """Why a peer cannot be imported here; an empty string if it can be."""
    try:
        load(name)
    except ImportError as error:
        return f"not installed ({error.name or error})"
    except Exception as error:  # noqa: BLE001 - an installed one that does not fit is no error of ours
        return f"does not import ({type(error).__name__}: {error})"
    return ""


def version(peer: Peer) -> str:
    """Which version of a peer is installed."""
    return importlib.metadata.version(peer.DISTRIBUTION) if peer.DISTRIBUTION else ""


def templates(kind: str, count: int, room: str, number: str) -> list[str]:
    """So many route templates with the parameters in a peer's own spelling."""
    template = KINDS[kind].replace("<room>", room).replace("<number>", number)
    return [template.replace("AREA", f"area{index}") for index in range(count)]


def paths(kind: str, count: int, visits: int, start: int) -> list[str]:
    """Paths that no one has asked for before, spread evenly over so many routes."""
    found = []
    for visit in range(visits):
        template = KINDS[kind].replace("AREA", f"area{(2 * visit + 1) * count // (2 * visits)}")
        found.append(template.replace("<room>", f"room{start + visit}").replace("<number>", str(start + visit)))
    return found
