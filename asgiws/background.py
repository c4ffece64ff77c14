"""What belongs to no connection's own task, on whichever event loop runs.

anyio has no task without an opener that outlives it, and no way to cancel a task from outside without a scope that was
opened before. This is the one place that knows asyncio from trio. It imports neither: what runs has been imported.
"""

import functools
import gc
import inspect
import sys
import types
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

import anyio

from .types import Message, Send

_tasks: set[Any] = set()  # asyncio itself keeps none of its tasks alive


def spawn(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start a task that ends by itself or with the event loop. It must not raise."""
    if on_trio():
        sys.modules["trio"].lowlevel.spawn_system_task(function)
        return
    _started(function)


def _started(function: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    task = sys.modules["asyncio"].create_task(function(), context=sys.modules["contextvars"].Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


def spawn_cut(function: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Any]:
    """As `spawn`; gives what cuts the task. One that is cut before it has begun does not begin."""
    if on_trio():
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await function()

        spawn(run)
        return scope.cancel
    task = _started(function)
    return functools.partial(task.cancel)


def loop_token() -> Any:
    """What stands for the event loop that runs, for `call_in_loop`."""
    if on_trio():
        return sys.modules["trio"].lowlevel.current_trio_token()
    return sys.modules["asyncio"].get_running_loop()


def call_in_loop(token: Any, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run an async function in an event loop, from another thread, and wait for what it returns or raises."""
    trio = sys.modules.get("trio")
    if trio is not None and isinstance(token, trio.lowlevel.TrioToken):
        return trio.from_thread.run(function, trio_token=token)
    return sys.modules["asyncio"].run_coroutine_threadsafe(function(), token).result()


def on_trio() -> bool:
    """Whether trio runs."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


def current_task() -> Callable[[], Any]:
    """What gives the task of asyncio that runs in this event loop; on trio, where there is none, None."""
    if on_trio():
        return _none
    asyncio = sys.modules["asyncio"]
    return functools.partial(asyncio.current_task, asyncio.get_running_loop())


def _none() -> None:
    """No task."""


def uncancel(task: Any) -> bool:
    """Take back one cancellation of a task of asyncio; whether none is left."""
    return bool(task.uncancel() == 0)


def tasks_inside(owners: Collection[Any], methods: Collection[str], waiting_in: str) -> dict[Any, Any]:
    """The tasks of asyncio that wait inside of one of these methods of one of these objects, by object.

    Args:
        owners: The objects.
        methods: The names of the methods.
        waiting_in: The name of a method in which a task waits for its turn: it does not count.
    """
    found: dict[Any, Any] = {}
    for task in sys.modules["asyncio"].all_tasks():
        inside: Any = None
        for frame in frames(task.get_coro()):
            owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
            if any(owner is one for one in owners):
                name = frame.f_code.co_name
                inside = None if name == waiting_in else owner if name in methods else inside
        if inside is not None:
            found[inside] = task
    return found


def chain(awaitable: Any) -> list[Any]:
    """An awaitable, what it awaits, what that awaits in its turn, and so on."""
    found: list[Any] = []
    while awaitable is not None and not any(awaitable is one for one in found):
        found.append(awaitable)
        awaitable = _awaited_by(awaitable)
    return found


def frames(awaitable: Any) -> Iterator[types.FrameType]:
    """The frames along such a chain, the outermost first."""
    for one in chain(awaitable):
        for name in ("cr_frame", "gi_frame", "ag_frame"):
            frame = getattr(one, name, None)
            if frame is not None:
                yield frame


def _awaited_by(awaitable: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        inner = getattr(awaitable, name, None)
        if inner is not None:
            return inner
    if inspect.iscoroutine(awaitable) or inspect.isasyncgen(awaitable):
        return None
    # What steps through an async generator, through the `__await__` of a coroutine, or drives one by hand does not say
    # what it belongs to; the garbage collector knows.
    kinds = (inspect.iscoroutine, inspect.isasyncgen, inspect.isgenerator)
    return next((one for one in gc.get_referents(awaitable) if any(is_kind(one) for is_kind in kinds)), None)


def scoped_send_of(send: Any) -> "ScopedSend | None":
    """The ScopedSend below a `send()` and its wrappers, each of which knows what it sends by as its `inner`."""
    while send is not None and not isinstance(send, ScopedSend):
        send = getattr(send, "inner", None)
    return send


class ScopedSend:
    """A server's `send()` that can be cut from outside: on trio, where no task can be cancelled.

    Args:
        send: The server's.

    Attributes:
        inner: What it sends by.
    """

    __slots__ = ("_scope", "inner")

    def __init__(self, send: Send) -> None:
        self.inner = send
        self._scope: anyio.CancelScope | None = None

    async def __call__(self, event: Message) -> None:
        """Send; raises OSError if it is cut."""
        with anyio.CancelScope() as scope:
            self._scope = scope
            await self.inner(event)
        if scope.cancelled_caught:
            raise OSError("the send took too long")

    def cut(self) -> None:
        """Give the send up that is under way."""
        if self._scope is not None:
            self._scope.cancel()
