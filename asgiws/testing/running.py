"""One call of the application, in a task of its own that can be ended whatever the application does."""

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio

from ..background import chain, spawn
from .errors import ClientDisconnectedError
from .waiting import Place, waits_at

_AWAKE = 0.05  # seconds in which a task that is awake has run

_given_up: list[Any] = []


class _LetGoError(BaseException):
    """Wakes up the task of an application that is given up; it never leaves this module."""


class Running:
    """A call of the application.

    Args:
        call: Calls it.
        on_end: Called when it has ended.

    Attributes:
        error: What it raised; None if it returned or was cancelled by `cancel`.
        cancelled: It was told to end.
        ended: It has ended.
    """

    def __init__(self, call: Callable[[], Awaitable[Any]], on_end: Callable[[], None] = lambda: None) -> None:
        self.error: BaseException | None = None
        self.cancelled = False
        self.ended = False
        self._driver = _Driver(call)
        self._on_end = on_end
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self._task: Any = None

    @property
    def waits_at(self) -> Place | None:
        """The line at which the application waits."""
        return None if self.ended else waits_at(self._driver.coroutine)

    def start(self) -> None:
        """Start the task."""
        spawn(self._run)

    async def _run(self) -> None:
        self._task = _current_task()
        try:
            with self._scope:
                await self._driver
        except BaseException as error:  # noqa: BLE001 - also what pytest.fail() raises: all of it is for the test
            self.error = self._meaning(error)
        self.ended = True
        self._done.set()
        self._on_end()

    def _meaning(self, error: BaseException) -> BaseException | None:
        """What the test is to know of an exception that ended the application."""
        if self._driver.let_go or isinstance(error, ClientDisconnectedError):
            return None
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            return error
        unasked = RuntimeError("the application ended with a cancellation that no server asked for")
        unasked.__cause__ = error
        return unasked

    async def ends_within(self, seconds: float) -> bool:
        """Wait until the application has ended; False if it did not in time."""
        with anyio.move_on_after(seconds):
            await self._done.wait()
        return self.ended

    def cancel(self) -> None:
        """Tell the application to end, as a stopping server does."""
        self.cancelled = True
        self._scope.cancel()

    async def stop(self, grace: float) -> bool:
        """Make the application end.

        Args:
            grace: Seconds that its clean-up may take.

        Returns:
            False if it had to be given up: it did not end when it was cancelled.
        """
        self.cancel()
        if await self.ends_within(grace):
            return True
        self._driver.let_go = True
        # One that catches its cancellation over and over is awake; one that shields itself sleeps on.
        if not await self.ends_within(_AWAKE):
            _wake(self._task, self._driver.trap)
            await self.ends_within(grace)
        return False


class _Driver:
    """Calls the application, and awaits it for as long as it is wanted.

    Attributes:
        coroutine: The application's own; None until it is called.
        trap: What it last asked of the event loop.
        let_go: It is not wanted any more: when its task is next woken up, the coroutine is closed.
    """

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        self.trap: Any = None
        self.let_go = False
        self._call = call

    def __await__(self) -> Generator[Any, Any, None]:
        coroutine = self.coroutine = _coroutine(self._call())
        step = functools.partial(coroutine.send, None)
        while True:
            try:
                self.trap = step()
            except StopIteration:
                return
            try:
                value = yield self.trap
                self._check_wanted()
            except BaseException as error:
                if self.let_go or isinstance(error, GeneratorExit):
                    _close(coroutine)
                    raise
                step = functools.partial(coroutine.throw, error)
            else:
                step = functools.partial(coroutine.send, value)

    def _check_wanted(self) -> None:
        if self.let_go:  # trio sends what is to be raised as a value
            raise _LetGoError


def _coroutine(awaitable: Any) -> Coroutine[Any, Any, Any]:
    if inspect.iscoroutine(awaitable):
        return awaitable
    if inspect.isawaitable(awaitable):
        return _awaits(awaitable)
    raise TypeError(
        "an ASGI application is an async function of scope, receive and send, "
        f"but calling this one gave {type(awaitable).__name__}"
    )


async def _awaits(awaitable: Awaitable[Any]) -> None:
    await awaitable


def _close(coroutine: Coroutine[Any, Any, Any]) -> None:
    awaited = chain(coroutine)
    try:
        coroutine.close()
    except RuntimeError:  # it awaits again instead: the garbage collector would only try once more, and complain
        _given_up.extend(awaited)


def _current_task() -> Any:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_task()
    return sys.modules["asyncio"].current_task()


def _wake(task: Any, trap: Any) -> None:
    """Wake up a task that shields itself from cancellation."""
    trio = sys.modules.get("trio")
    if trio is None or not trio.lowlevel.in_trio_run():
        task.cancel()
    elif hasattr(trap, "abort_func") and trap.abort_func(_raise) is trio.lowlevel.Abort.SUCCEEDED:
        trio.lowlevel.reschedule(task, sys.modules["outcome"].Error(_LetGoError()))


def _raise() -> None:
    raise _LetGoError
