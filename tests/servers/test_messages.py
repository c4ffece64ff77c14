"""Messages of every size and kind, on every server."""

import contextlib
import itertools
import pathlib
import re
import struct
import zlib
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from tests.servers import DEADLINE, ServerProcess, every_server, on_each, running
from tests.servers.clients import Server, abort, answer, closed_with, closing, handshake, says
from tests.servers.differences import DIFFERENCES


def test_text_and_bytes_come_back_as_they_went(server: Server) -> None:
    with server.connect("/raw") as ws:
        for message in ("hello", b"\x00\xff", "é€😀", "\x00", "x" * 100_000, b"x" * 100_000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 1_048_576])
def test_sizes_at_the_borders_of_the_frames(server: Server, size: int) -> None:
    # the largest is what Limits.message_bytes lets through, and daphne
    message = bytes(itertools.islice(itertools.cycle(range(251)), size))
    with server.connect("/raw", max_size=None) as ws:
        ws.send(message)
        assert ws.recv(DEADLINE) == message


def test_empty_messages_come_back_too(server: Server) -> None:
    # T21, T22
    with server.connect("/raw") as ws:
        for message in ("", b"", "end"):
            ws.send(message)
        got = [ws.recv(DEADLINE) for _ in range(3 if server.can.empty_messages else 1)]
    assert got == (["", b"", "end"] if server.can.empty_messages else ["end"])


def test_a_text_in_fragments_comes_back_whole(server: Server) -> None:
    # P25
    with server.connect("/raw") as ws:
        ws.send(["h", "é", "😀"])
        assert ws.recv(DEADLINE) == "hé😀"


def test_many_messages_stay_in_order(server: Server) -> None:
    messages = [str(number) for number in range(500)]
    with server.connect("/raw") as ws:
        for message in messages:
            ws.send(message)
        assert [ws.recv(DEADLINE) for _ in messages] == messages


def test_messages_from_before_the_clients_close_reach_the_handler(server: Server) -> None:
    # T7
    with server.connect("/told") as ws:
        for message in ("a", "b", "c"):
            ws.send(message)
    server.wait_for("told: a, b, c")


def test_a_message_above_the_limit_of_the_application(server: Server) -> None:
    with server.connect("/raw", max_size=None) as ws, contextlib.suppress(ConnectionClosed):
        ws.send("x" * 1_048_577)
        if server.can.largest > 1_048_576:
            assert closing(ws)[0] == server.code(1009)
        else:
            ws.recv(DEADLINE)  # the server breaks the connection
            raise AssertionError


@pytest.mark.parametrize("broken", ["in a frame", "in a message", "in a close"])
def test_a_connection_that_breaks_in_the_middle(server: Server, broken: str) -> None:
    raw = handshake(server.process, "/echo/cut/1")
    assert " 101 " in answer(raw)
    if broken == "in a frame":
        raw.sendall(b"\x81\xfe\x03\xe8\0\0\0\0half")
    elif broken == "in a message":
        says(raw, b"half", fin=False)
    else:
        raw.sendall(b"\x88\x82\0\0\0\0\x03")
    abort(raw)
    server.wait_for("echo cut ended")
    assert "Traceback" not in server.log


COMMANDS = every_server("tests.servers.apps:app")


@pytest.fixture(scope="module")
def unlimited() -> Iterator[dict[str, ServerProcess]]:
    """All servers with an application that sets no limit of its own to a message."""
    with running(**COMMANDS) as servers:
        yield servers


BOMB = 128 * 2**20
"""Bytes of the message that a bomb becomes."""


def peak(process: ServerProcess) -> int:
    """The most memory that a server has had, in bytes: that of its largest process."""
    main = pathlib.Path(f"/proc/{process.process.pid}")
    children = (main / "task" / main.name / "children").read_text("utf-8").split()
    texts = [(main.parent / name / "status").read_text("utf-8") for name in (main.name, *children)]
    return 1024 * max(int(found[1]) for text in texts if (found := re.search(r"VmHWM:\s+(\d+) kB", text)))


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="tells the memory of a process")
def test_what_a_small_bomb_makes_of_each_server(unlimited: dict[str, ServerProcess]) -> None:
    # S14
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (deflate.compress(bytes(BOMB)) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
    assert len(bomb) < BOMB / 900

    def drop(name: str, process: ServerProcess) -> bool:
        before = peak(process)
        with handshake(process, "/unlimited", "Sec-WebSocket-Extensions: permessage-deflate") as raw:
            assert "permessage-deflate" in answer(raw)
            raw.sendall(b"\xc2\xff" + struct.pack(">Q", len(bomb)) + bytes(4) + bomb)
            assert closed_with(raw) == 1009
        return peak(process) - before < BOMB / 2

    chosen = {name: unlimited[name] for name, can in DIFFERENCES.items() if can.compression}
    bounded = {name: can.bounded_inflation for name, can in DIFFERENCES.items() if can.compression}
    assert on_each(chosen, drop, COMMANDS) == bounded


def test_the_largest_message_of_each_server(unlimited: dict[str, ServerProcess]) -> None:
    def send(name: str, process: ServerProcess) -> int | None:
        server = Server(name, process)
        largest = server.can.largest
        with server.connect("/unlimited", max_size=None, compression=None) as ws:
            ws.send(b"x" * largest)
            assert ws.recv(DEADLINE) == str(largest)
        with contextlib.closing(handshake(process, "/unlimited")) as raw:
            assert " 101 " in answer(raw)
            raw.sendall(b"\x82\xff" + struct.pack(">Q", largest + 1) + bytes(4))
            if name.startswith(("hypercorn", "uvicorn-wsproto")):  # wsproto counts what is there, not what is announced
                raw.sendall(bytes(largest + 1))
            code = closed_with(raw)
        server.wait_for("unlimited: ended", times=2)
        return code

    assert on_each(unlimited, send, COMMANDS) == {name: can.too_big for name, can in DIFFERENCES.items()}
