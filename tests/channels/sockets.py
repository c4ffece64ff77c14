"""Sockets for the tests of channels: one for each way in which a server's `send()` can be driven."""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import anyio

from asgiws import Limits, WebSocket
from asgiws.channels.outbox import Outbox
from tests.fakes import DEADLINE, GRANIAN, FakeServer, soon

Socket: TypeAlias = WebSocket[Any, Any]


def in_module(function: Any, module: str) -> Any:
    """A function as if it stood in another module."""
    names = {**function.__globals__, "__name__": module}
    moved = types.FunctionType(function.__code__, names, function.__name__, None, function.__closure__)
    moved.__module__ = module
    return moved


class InstantServer(FakeServer):
    """A server whose `send()` does not wait unless the client does not read; taken for one that is known."""

    async def send(self, event: Mapping[str, Any]) -> None:
        """The server's `send()`."""
        self.sending += 1
        self.most_sending = max(self.most_sending, self.sending)
        try:
            await self._held_up()
            self._take(dict(event))
        finally:
            self.sending -= 1

    send = in_module(send, "uvicorn.protocols")


def scoped(server: FakeServer) -> Any:
    """The `send()` of a middleware that gives each send a deadline of its own."""

    async def send(event: Any) -> None:
        with anyio.fail_after(60):
            await server.send(event)

    return send


def foreign(server: FakeServer) -> Any:
    """A `send()` of nobody known."""

    async def send(event: Any) -> None:
        await server.send(event)

    return send


WAYS: dict[str, tuple[Callable[..., FakeServer], Callable[[FakeServer], Any]]] = {
    "instant": (InstantServer, lambda server: server.send),
    "yielding": (FakeServer, lambda server: server.send),
    "scoped": (FakeServer, scoped),
    "granian": (lambda *args, **kwargs: FakeServer(GRANIAN, *args, **kwargs), foreign),
}
"""Servers, and what the session gets as their `send()`."""


async def accepted(way: str = "yielding", **limits: Any) -> tuple[Socket, FakeServer]:
    """An open WebSocket without an app, and its server, from which the accept is removed."""
    make, send_of = WAYS[way]
    server = make()
    ws: Socket = WebSocket(server.scope, server.receive, send_of(server), limits=Limits(**limits))
    await ws.accept()
    server.sent.clear()
    return ws, server


async def lost_client(server: FakeServer, ws: Socket) -> None:
    """Let the client go and have the handler read that."""
    server.leave()
    with contextlib.suppress(Exception):
        await ws.receive()


def stall(server: FakeServer) -> Callable[[], None]:
    """Have a client not read, until the function is called that this gives."""
    hold = server.hold = anyio.Event()

    def resume() -> None:
        server.hold = None
        hold.set()

    return resume


def line_of(ws: Socket) -> Outbox:
    """The line of a socket."""
    return Outbox.of(ws)


async def quiet(ws: Socket) -> None:
    """Wait until nothing is sent and nothing waits."""
    await soon(lambda: not ws._sending and not ws._queue)


def _all_coroutines() -> Iterator[Any]:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        todo = [trio.lowlevel.current_root_task()]
        while todo:
            task = todo.pop()
            yield task.coro
            for nursery in task.child_nurseries:
                todo += nursery.child_tasks
        return
    for task in sys.modules["asyncio"].all_tasks():
        yield task.get_coro()


def running(*names: str) -> list[str]:
    """The tasks that run one of these coroutine functions."""
    found = [getattr(one, "__qualname__", "") for one in _all_coroutines()]
    return [name for name in (_WRAPPED.get(name, name) for name in found) if name in names]


# What can be cut, and what ends when channels are closed, runs inside of a scope of its own.
_WRAPPED = {"spawn_cut.<locals>.run": "Outbox._carry", "Hub._beside.<locals>.run": "Hub._renew"}


def carriers() -> list[str]:
    """The tasks that carry on a send, or close a connection."""
    return running("Outbox._carry", "end", "_resumed")


async def nothing_left(ws: Socket) -> None:
    """Wait until no task works for sockets, and see that the line is empty."""
    with anyio.fail_after(DEADLINE):
        await soon(lambda: not carriers() and not ws._sending)
    line = line_of(ws)
    assert (len(line), line.frames, line.size, ws._sending) == (0, 0, 0, False)
