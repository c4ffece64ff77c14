"""What the scenarios do to a server: clients that are well-behaved, and sockets that are not."""

import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.servers import DEADLINE, ServerProcess
from tests.servers.differences import DIFFERENCES


class Server:
    """A running server and its clients, for one test.

    Attributes:
        name: Which one it is.
        process: Its process.
        can: What it can do.
        mark: How long its log was when the test began.
    """

    def __init__(self, name: str, process: ServerProcess) -> None:
        self.name = name
        self.process = process
        self.can = DIFFERENCES[name]
        self.mark = process.mark

    def connect(
        self,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        origin: str | None = None,
        subprotocols: Sequence[str] | None = None,
        **options: Any,
    ) -> ClientConnection:
        """A client of the server, for a with statement."""
        ws: ClientConnection = connect(
            f"ws://127.0.0.1:{self.process.port}{path}",
            additional_headers=headers,
            origin=Origin(origin) if origin else None,
            subprotocols=[Subprotocol(name) for name in subprotocols] if subprotocols else None,
            open_timeout=DEADLINE,
            proxy=None,
            **options,
        )
        return ws

    def refused(self, path: str, **options: Any) -> httpx.Response:
        """The answer to a handshake that is refused."""
        with pytest.raises(InvalidStatus) as refused, self.connect(path, **options):
            pass
        answer = refused.value.response
        return httpx.Response(answer.status_code, headers=list(answer.headers.raw_items()), content=bytes(answer.body))

    def get(self, path: str) -> httpx.Response:
        """The answer to a request."""
        return httpx.get(f"http://127.0.0.1:{self.process.port}{path}", trust_env=False, timeout=DEADLINE)

    @property
    def log(self) -> str:
        """What the server's process has written since the test began."""
        return self.process.log(self.mark)

    def wait_for(self, text: str, *, times: int = 1) -> None:
        """Wait until the server's process has written a text since the test began."""
        self.process.wait_for(text, self.mark, times=times)

    def status(self, status: int) -> int:
        """What a client sees of the status of a denial."""
        return status if self.can.denials else 403

    def code(self, code: int) -> int:
        """What a client sees of a close code."""
        return code if self.can.registered_codes or not 1000 < code < 3000 else code + 3000

    def reason(self, text: str) -> str:
        """What a client sees of the reason of a close."""
        return text if self.can.reasons else ""


def closing(ws: ClientConnection) -> tuple[int, str]:
    """Code and reason of the server's close, after the last message."""
    with pytest.raises(ConnectionClosed) as closed:
        ws.recv(DEADLINE)
    assert closed.value.rcvd is not None, "the connection broke"
    return closed.value.rcvd.code, closed.value.rcvd.reason


def handshake(process: ServerProcess, path: str, *lines: str) -> socket.socket:
    """A handshake whose answer nobody reads, with further header lines."""
    raw = socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE)
    request = (
        f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{process.port}", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", *lines, "", "",
    )  # fmt: skip
    raw.sendall("\r\n".join(request).encode())
    return raw


def answer(raw: socket.socket) -> str:
    """Status line and headers of the answer to a handshake; the first message may be among them."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = raw.recv(4096)
        assert more, got
        got += more
    return got.partition(b"\r\n\r\n")[0].decode().lower()


def status(raw: socket.socket) -> int | None:
    """The status of the answer to a handshake; None if there is none."""
    try:
        got = raw.recv(100)
    except ConnectionError:
        return None
    return int(got.split()[1]) if got else None


def says(raw: socket.socket, payload: bytes, *, opcode: int = 1, fin: bool = True) -> None:
    """Send one frame of at most 125 bytes."""
    raw.sendall(bytes([opcode | 0x80 * fin, 0x80 | len(payload), 0, 0, 0, 0]) + payload)


def closed_with(raw: socket.socket) -> int | None:
    """The code of the server's close, which is the next frame; None if the connection breaks without one."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while more := raw.recv(4096):
            got += more
            if len(got) >= 2 and len(got) >= 2 + got[1]:
                assert got[0] == 0x88, got
                return int.from_bytes(got[2:4]) if got[1] else 1005
    assert not got, got
    return None


def abort(raw: socket.socket) -> None:
    """Break a connection off: the peer gets a reset, and no close."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raw.close()
