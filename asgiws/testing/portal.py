"""An event loop in a thread of its own, for tests that are not async."""

import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Self

import anyio
import anyio.from_thread

from .errors import StuckError
from .waiting import runs_at

_ENDING = 1.0  # seconds for an event loop with nothing left to do


class LoopThread:
    """An event loop in a thread.

    No call takes longer than it says: an application that blocks the event loop fails the test, and its thread is left
    behind.

    Args:
        backend: "asyncio" or "trio".
        options: As `anyio.run` takes them.
    """

    def __init__(self, backend: Literal["asyncio", "trio"], options: Mapping[str, Any] | None) -> None:
        self._backend = backend
        self._options = dict(options or {})
        self._started: concurrent.futures.Future[anyio.from_thread.BlockingPortal] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="asgiws test client", daemon=True)
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
        async with anyio.from_thread.BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()

    def call(self, patience: float, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the event loop, and give what it returns or raise what it raises.

        Args:
            patience: Seconds after which the event loop must have done so.
            function: Async or not.
            args: For the function.

        Raises:
            StuckError: The event loop is blocked.
        """
        if self._blocked is not None:
            raise StuckError(self._blocked)
        future = self._started.result().start_task_soon(_outcome, function, args)
        try:
            concurrent.futures.wait([future], patience)
        finally:
            blocked = not future.done() and future.cancel()
        if blocked:
            self._blocked = self._report(patience)
            raise StuckError(self._blocked)
        value, error = future.result()
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """End the event loop and its thread.

        Raises:
            StuckError: It is blocked, and left behind.
        """
        if self._blocked is None:
            portal = self._started.result()
            portal.start_task_soon(portal.stop)
            self._thread.join(_ENDING)
            if self._thread.is_alive():
                self._blocked = self._report(_ENDING)
        if self._blocked is not None and self._thread.is_alive():
            raise StuckError(f"{self._blocked}; its thread is left behind")

    def _report(self, seconds: float) -> str:
        place = runs_at(self._thread.ident)
        return f"the application has blocked the event loop for {seconds:g} s" + (f" at {place}" if place else "")


async def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """What a function returns or raises. An exception that is no Exception would end the portal."""
    try:
        found = function(*args)
        return (await found if isinstance(found, Awaitable) else found), None
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
        return None, error
