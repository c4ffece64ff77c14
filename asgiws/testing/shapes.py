"""How the servers differ, as it was measured on the real ones."""

import dataclasses
from typing import Any, Literal

from ..errors import ConfigurationError, did_you_mean
from ..types import RawHeaders


@dataclasses.dataclass(frozen=True)
class Shape:
    """How one server behaves.

    Attributes:
        name: The server.
        spec_version: In `scope["asgi"]`; None where the key is missing.
        denial: It has the extension `websocket.http.response`.
        optional_keys: Its scope has `scheme`, `http_version`, `extensions` and `state`.
        both_keys: `websocket.receive` has both `text` and `bytes`, one of them None.
        list_address: `client` and `server` are lists.
        str_port: The client's port is a str.
        merges_headers: Headers of one name are one, joined by a comma; names with an underscore are dropped.
        hides: Headers of the handshake that are not in the scope.
        prepends_root: The root path stands before the path.
        lifespan: It runs the lifespan.
        clears_state: The lifespan's state is emptied before the shutdown.
        one_receiver: A second `receive()` at once raises.
        again: What `receive()` does after the disconnect: tell it again (1005), or block for ever.
        gone: What `send()` does when the client has gone and the application has not read it yet.
        codes: Which close codes of the client reach the application.
        abort_code: What the application is told when the connection broke without a close.
        after_close: What it is told after its own close.
        after_refusal: What it is told after it refused the handshake; None: nothing, for ever.
        early: What `accept` does when the client left before: raise, pass but let the next send raise, or pass. With
            "untold" it passes, and only then `receive()` tells.
        own_codes_only: Close codes of the application other than 1000 and 3000-4999 raise.
        cancel_eats: A cancelled `receive()` loses an event.
        one_body: A denial with `more_body` raises.
        only_bytes: A bytearray or memoryview raises.
        accept_headers: The headers of accept reach the client.
        sends_empty: Empty messages reach the client.
        late: An event whose `send()` was cancelled while it was blocked goes out all the same.
        blocks: `send()` waits while the client does not read; else the server buffers without a bound.
        raised: What the client sees of an exception: the status before accept, the close code after it.
        returned: The same for an application that returns without an end of its own; None: the status is a broken
            connection, the code is none at all: the socket stays open.
        stop: What the application sees of SIGTERM: `websocket.disconnect` with a code, or a cancellation.
        stop_code: The close code that the client sees of it, where the application sent none.
    """

    name: str
    spec_version: str | None = "2.4"
    denial: bool = True
    optional_keys: bool = True
    both_keys: bool = False
    list_address: bool = False
    str_port: bool = False
    merges_headers: bool = False
    hides: tuple[bytes, ...] = ()
    prepends_root: bool = False
    lifespan: bool = True
    clears_state: bool = False
    one_receiver: bool = False
    again: Literal["again", "block"] = "block"
    gone: Literal["oserror", "runtimeerror", "silent"] = "oserror"
    codes: Literal["all", "1006", "no reason", "none is None"] = "all"
    abort_code: int = 1006
    after_close: Literal["own", 1000, 1005] = "own"
    after_refusal: int | None = 1006
    early: Literal["raise", "send raises", "silent", "untold"] = "raise"
    own_codes_only: bool = False
    cancel_eats: bool = False
    one_body: bool = False
    only_bytes: bool = False
    accept_headers: bool = True
    sends_empty: bool = True
    late: bool = False
    blocks: bool = True
    raised: tuple[int, int] = (500, 1006)
    returned: tuple[int | None, int | None] = (500, 1006)
    stop: Literal["cancel", 1005, 1012] = 1012
    stop_code: int = 1012


UVICORN_LEGACY = Shape(
    "uvicorn-websockets", prepends_root=True, one_receiver=True, again="again", late=True, after_close=1005,
    early="send raises",
)  # fmt: skip
UVICORN = Shape("uvicorn-websockets-sansio", prepends_root=True, abort_code=1005)
UVICORN_WSPROTO = Shape(
    "uvicorn-wsproto", prepends_root=True, abort_code=1005, hides=(b"sec-websocket-protocol",),
)  # fmt: skip
HYPERCORN = Shape(
    "hypercorn", spec_version="2.3", both_keys=True, gone="silent", codes="1006", late=True, after_close=1000,
    after_refusal=None, early="silent", raised=(500, 1011), returned=(500, 1011), stop="cancel", stop_code=1011,
)  # fmt: skip
DAPHNE = Shape(
    "daphne", spec_version=None, denial=False, optional_keys=False, list_address=True, merges_headers=True,
    lifespan=False, gone="silent", codes="none is None", early="silent", own_codes_only=True, only_bytes=True,
    accept_headers=False, sends_empty=False, blocks=False, raised=(500, 1011), returned=(None, None), stop="cancel",
    stop_code=1006,
)  # fmt: skip
GRANIAN = Shape(
    "granian", spec_version="2.3", str_port=True, clears_state=True, again="again", gone="silent", codes="no reason",
    abort_code=1005, after_close=1005, after_refusal=1005, early="untold", cancel_eats=True, one_body=True,
    accept_headers=False, raised=(403, 1005), returned=(403, 1005), stop=1005, stop_code=1006,
)  # fmt: skip
STRICT = Shape("strict", gone="runtimeerror", one_receiver=True, only_bytes=True)
"""No server of today, but allowed by the specification: it refuses with RuntimeError."""

SHAPES = (UVICORN_LEGACY, UVICORN, UVICORN_WSPROTO, HYPERCORN, DAPHNE, GRANIAN, STRICT)

_NAMES = {shape.name: shape for shape in SHAPES} | {"uvicorn": UVICORN}


def shape_of(server: str | Shape) -> Shape:
    """The shape of a server, by its name.

    Raises:
        ConfigurationError: There is none of this name.
    """
    if isinstance(server, Shape):
        return server
    if server not in _NAMES:
        raise ConfigurationError(
            f"no server is called {server!r}. Known: {', '.join(sorted(_NAMES))}, or a Shape of your own."
            f"{did_you_mean(str(server), _NAMES)}"
        )
    return _NAMES[server]


def make_scope(
    shape: Shape,
    kind: Literal["http", "websocket"],
    *,
    path: str,
    raw_path: bytes,
    query_string: bytes,
    root_path: str,
    headers: RawHeaders,
    client: tuple[str, int] = ("127.0.0.1", 51578),
    server: tuple[str, int] = ("127.0.0.1", 8000),
    scheme: str = "ws",
) -> dict[str, Any]:
    """The scope of a connection on a server, without what only one kind of them has."""
    address: Any = list if shape.list_address else tuple
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "path": path,
        "raw_path": raw_path,
        "root_path": root_path,
        "query_string": query_string,
        "headers": headers,
        "client": address((client[0], str(client[1]) if shape.str_port else client[1])),
        "server": address(server),
    }
    if shape.spec_version is not None:
        scope["asgi"]["spec_version"] = shape.spec_version
    if shape.optional_keys:
        scope |= {"scheme": scheme, "http_version": "1.1", "extensions": {}, "state": {}}
        if shape.denial and kind == "websocket":
            scope["extensions"]["websocket.http.response"] = {}
    return scope


def seen_headers(shape: Shape, headers: RawHeaders) -> RawHeaders:
    """The headers of a request as a server shows them to the application."""
    shown = [(name, value) for name, value in headers if name not in shape.hides]
    if not shape.merges_headers:
        return shown
    merged: dict[bytes, bytes] = {}
    for name, value in shown:
        if b"_" not in name:
            merged[name] = merged[name] + b"," + value if name in merged else value
    return list(merged.items())
