"""What each server can do, as the scenarios assert it and as docs/servers.md tells it."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a server can do with its default options.

    Attributes:
        denials: Whether a handshake can be refused with a status, headers and a body.
        accept_headers: Whether `accept(headers=...)` reaches the client.
        registered_codes: Whether close codes between 1000 and 3000 reach the client.
        reasons: Whether the reason of a close reaches the client.
        tells_code: Whether the application is told the client's close code.
        tells_reason: Whether it is told the client's reason.
        empty_messages: Whether empty messages reach the client.
        lifespan: Whether there are lifespan events.
        all_subprotocols: Whether it reads every `Sec-WebSocket-Protocol` line, and not the last one only.
        root_path_first: Whether it puts its root path before the path.
        sees_vanish: Whether the application is told of a client that leaves before the answer.
        ping_interval: Seconds between pings; None for none.
        pings: Whether it can send pings at all.
        largest: The largest message in bytes.
        too_big: The code with which a larger one is closed; None if the connection breaks.
        compression: Whether it agrees to permessage-deflate.
        bounded_inflation: Whether a small bomb is unpacked no further than the largest message.
    """

    denials: bool = True
    accept_headers: bool = True
    registered_codes: bool = True
    reasons: bool = True
    tells_code: bool = True
    tells_reason: bool = True
    empty_messages: bool = True
    lifespan: bool = True
    all_subprotocols: bool = True
    root_path_first: bool = False
    sees_vanish: bool = True
    ping_interval: float | None = 20
    pings: bool = True
    largest: int = 16 * 2**20
    too_big: int | None = 1009
    compression: bool = True
    bounded_inflation: bool = True


UVICORN = Abilities(root_path_first=True)
UVICORN_WSPROTO = dataclasses.replace(UVICORN, bounded_inflation=False)
HYPERCORN = Abilities(
    tells_code=False, tells_reason=False, all_subprotocols=False, ping_interval=None, bounded_inflation=False
)
DAPHNE = Abilities(
    denials=False, accept_headers=False, registered_codes=False, reasons=False, tells_reason=False,
    empty_messages=False, lifespan=False, largest=2**20, too_big=None, compression=False,
)  # fmt: skip
GRANIAN = Abilities(
    accept_headers=False, tells_reason=False, sees_vanish=False, ping_interval=None, pings=False, too_big=1005,
    compression=False,
)  # fmt: skip

DIFFERENCES = {
    "uvicorn": UVICORN,
    "uvicorn-uvloop": UVICORN,
    "uvicorn-wsproto": UVICORN_WSPROTO,
    "uvicorn-wsproto-uvloop": UVICORN_WSPROTO,
    "hypercorn": HYPERCORN,
    "hypercorn-trio": HYPERCORN,
    "daphne": DAPHNE,
    "granian": GRANIAN,
}
"""By the names of `every_server`."""

COLUMNS = {"uvicorn": UVICORN, "hypercorn": HYPERCORN, "daphne": DAPHNE, "granian": GRANIAN}
"""The columns of the table in docs/servers.md."""
