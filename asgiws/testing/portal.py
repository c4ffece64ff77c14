"""An event loop in a thread of its own, for tests that are not async.

It is what anyio calls a blocking portal, but none of its calls waits without a limit: an application may block its
event loop.
"""

import concurrent.futures
import functools
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Self

import anyio

from ..background import spawn
from .errors import StuckError
from .waiting import runs_at

_PULSE = 1.0  # seconds in which an event loop that is alive has answered, and one with nothing left to do has ended

Outcome = tuple[Any, BaseException | None]


class LoopThread:
    """An event loop in a thread.

    An application that blocks the event loop fails the test, and its thread is left behind.

    Args:
        backend: "asyncio" or "trio".
        options: As `anyio.run` takes them.
        timeout: Seconds after which a call asks whether the event loop is still alive.
    """

    def __init__(self, backend: Literal["asyncio", "trio"], options: Mapping[str, Any] | None, timeout: float) -> None:
        self._backend = backend
        self._options = dict(options or {})
        self._timeout = timeout
        self._started: concurrent.futures.Future[Callable[..., Any]] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="asgiws test client", daemon=True)
        self._stop: anyio.Event | None = None
        self._blocked: str | None = None

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        self._started.result()
        return self

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend=self._backend, backend_options=self._options)
        except BaseException as error:  # noqa: BLE001 - for whoever waits; else there is nobody to be told
            if not self._started.done():
                self._started.set_exception(error)

    async def _main(self) -> None:
        self._stop = anyio.Event()
        self._started.set_result(_soon())
        await self._stop.wait()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the event loop, and give what it returns or raise what it raises.

        Args:
            function: Async or not; it must end by itself.
            args: For the function.

        Raises:
            StuckError: The event loop is blocked.
            RuntimeError: It has ended.
        """
        if self._blocked is not None:
            raise StuckError(self._blocked)
        if not self._thread.is_alive():
            raise RuntimeError("the event loop of this test client has ended: its `with` was left")
        future: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        self._started.result()(spawn, functools.partial(_answer, future, function, args))
        while not concurrent.futures.wait([future], self._timeout).done:
            self._check_alive()
        value, error = future.result()
        if error is not None:
            raise error
        return value

    def _check_alive(self) -> None:
        pulse: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._started.result()(pulse.set_result, None)
        if not concurrent.futures.wait([pulse], _PULSE).done:
            self._blocked = f"the application blocks the event loop, for over {_PULSE:g} s{self._place()}"
            raise StuckError(self._blocked)

    def _place(self) -> str:
        place = runs_at(self._thread.ident)
        return f", at {place}" if place else ""

    def stop(self) -> None:
        """End the event loop and its thread.

        Raises:
            StuckError: It is blocked, and left behind.
        """
        if self._stop is None or not self._thread.is_alive():
            return
        self._started.result()(self._stop.set)
        self._thread.join(_PULSE if self._blocked is None else 0)
        if self._thread.is_alive():
            raise StuckError(f"the event loop does not end{self._place()}; its thread is left behind")


def _soon() -> Callable[..., Any]:
    """What has a function called in this event loop, from any thread, and does not wait for it."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        found: Callable[..., Any] = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        found = sys.modules["asyncio"].get_running_loop().call_soon_threadsafe
    return found


async def _answer(
    future: "concurrent.futures.Future[Outcome]", function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Put what a function returns or raises into a future; all of it is raised again in the thread of the test."""
    try:
        found = function(*args)
        value = await found if isinstance(found, Awaitable) else found
    except BaseException as error:  # noqa: BLE001
        future.set_result((None, error))
    else:
        future.set_result((value, None))
