"""One call of the application, in a task of its own that can be ended whatever the application does."""

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio

from ..background import spawn
from .errors import ClientDisconnectedError
from .waiting import Place, waits_at


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
        self._driver = _Driver(_called(call))
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
        except _LetGoError:
            pass
        except ClientDisconnectedError:
            pass
        except anyio.get_cancelled_exc_class() as error:
            self.error = RuntimeError("the application ended with a cancellation that no server asked for")
            self.error.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - also what pytest.fail() raises: all of it is for the test
            self.error = error
        self.ended = True
        self._done.set()
        self._on_end()

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
        _wake(self._task, self._driver.trap)
        await self.ends_within(grace)
        return False


async def _called(call: Callable[[], Awaitable[Any]]) -> None:
    found = call()
    if not inspect.isawaitable(found):
        raise TypeError(
            "an ASGI application is an async function of scope, receive and send, "
            f"but calling this one gave {type(found).__name__}"
        )
    await found


class _Driver:
    """Awaits a coroutine for as long as it is wanted.

    Attributes:
        coroutine: The coroutine.
        trap: What it last asked of the event loop.
        let_go: It is not wanted any more: when its task is next woken up, the coroutine is closed.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.coroutine = coroutine
        self.trap: Any = None
        self.let_go = False

    def __await__(self) -> Generator[Any, Any, None]:
        step = functools.partial(self.coroutine.send, None)
        while True:
            try:
                self.trap = step()
            except StopIteration:
                return
            try:
                value = yield self.trap
            except BaseException as error:
                if self.let_go or isinstance(error, GeneratorExit):
                    self.coroutine.close()
                    raise
                step = functools.partial(self.coroutine.throw, error)
            else:
                step = functools.partial(self.coroutine.send, value)


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
