"""What is to be cleaned up, and when: at the end of a connection or message, or when the handshake is answered."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import anyio

from .connection import Connection
from .log import logger
from .session import Session

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

CLEAN_UP = 5.0
"""Seconds that the clean-up of one connection may take."""

BEGIN = 0.1
"""Seconds that a thread has for its clean-up though others have taken all the time."""

Manager = contextlib.AbstractAsyncContextManager[Any]


def is_cancellation(error: BaseException) -> bool:
    """Whether an exception is the event loop's way to stop a task."""
    return isinstance(error, anyio.get_cancelled_exc_class())


class CleanUp:
    """The clean-up of one connection: every generator's is shielded from cancellation, all have one deadline."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.deadline: float | None = None
        self.told = False

    @contextlib.asynccontextmanager
    async def after(self, generator: Manager, *, apart: bool = False) -> AsyncIterator[Any]:
        """What a generator yields, and then its clean-up.

        Args:
            generator: Its context manager.
            apart: It has a task of its own, which no cancellation from outside reaches once it has yielded.
        """
        failure: BaseException | None = None
        # Scopes must nest: the shield is outside of all that the generator enters, inside of all that came before.
        scope = anyio.CancelScope()
        try:
            with scope:
                value = await generator.__aenter__()
                scope.shield = apart
                try:
                    yield value
                except BaseException as error:
                    failure = error
                    self._shield(scope)
                    if not await generator.__aexit__(type(error), error, error.__traceback__):
                        raise
                else:
                    self._shield(scope)
                    await generator.__aexit__(None, None, None)
        finally:
            if scope.cancel_called and not self.told:
                self.told = True
                whose = f"connection {self.connection.id}" if self.connection.scope else "the app"
                logger().warning("%s: the clean-up took over %s s and was cut", whose, CLEAN_UP)
        # A cancellation is not raised again: it belongs to its scope, and comes by itself if that is further out.
        if failure is not None and scope.cancelled_caught and not is_cancellation(failure):
            raise failure

    def _shield(self, scope: Any) -> None:
        if self.deadline is None:
            self.deadline = anyio.current_time() + CLEAN_UP
        scope.shield = True
        scope.deadline = self.deadline


class Inline:
    """The context manager of a plain generator, as an async one.

    Args:
        manager: The generator's.
        watched: Gives a context manager to run its code in.
    """

    def __init__(
        self,
        manager: contextlib.AbstractContextManager[Any],
        watched: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._manager = manager
        self._watched = watched

    async def __aenter__(self) -> Any:
        with self._watched():
            return self._manager.__enter__()

    async def __aexit__(self, *raised: Any) -> bool | None:  # noqa: PYI036 - handed on
        with self._watched():
            return self._manager.__exit__(*raised)


class Threaded:
    """The context manager of a plain generator, run in worker threads."""

    def __init__(self, manager: contextlib.AbstractContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await in_thread(self._manager.__enter__)

    async def __aexit__(self, *raised: Any) -> Any:  # noqa: PYI036 - handed on
        # Others may have taken all the time: it is begun all the same. A thread cannot be stopped: it is left behind.
        deadline = max(anyio.current_effective_deadline(), anyio.current_time() + BEGIN)
        with anyio.CancelScope(deadline=deadline, shield=True):
            return await in_thread(functools.partial(self._manager.__exit__, *raised), abandon=True)


async def in_thread(function: Callable[[], Any], *, abandon: bool = False) -> Any:
    """Run a function in a worker thread.

    Args:
        function: It blocks.
        abandon: Whether a cancellation leaves the thread behind, rather than to wait for it.
    """
    from anyio import to_thread  # noqa: PLC0415 - only needed where something blocks

    # trio takes no coroutine out of a thread, which is for the event loop to await: it comes wrapped.
    (value,) = await to_thread.run_sync(lambda: (function(),), abandon_on_cancel=abandon)
    return value


class Handshake:
    """Keeps what lives until the handshake is answered, each generator in a task of its own.

    The handler answers when it likes, inside scopes of its own: a clean-up in its task would cross them. The last one
    entered is the first to be cleaned up.

    Args:
        connection: The WebSocket.
        group: Where the tasks run.
    """

    def __init__(self, connection: Session, group: "TaskGroup") -> None:
        self._group = group
        self._clean_up = CleanUp(connection)
        self._answered = anyio.Event()
        self._solved = anyio.Event()
        self._kept: list[anyio.Event] = []
        self._failure: BaseException | None = None
        self.problem: Exception | None = None
        connection.when_answered(self._answered.set)

    async def enter(self, manager: Manager) -> Any:
        """What a generator yields; raises what it raises."""
        value, error = await self._group.start(self._keep, manager)
        if error is not None:
            raise error
        return value

    async def _keep(self, manager: Manager, *, task_status: "TaskStatus[tuple[Any, Any]]") -> None:
        done, at = anyio.Event(), len(self._kept)
        self._kept.append(done)
        # What a dependency has answered cannot be waited for: who asks now needs it until all of them are done.
        end = self._solved if self._answered.is_set() else self._answered
        entered = False
        try:
            async with self._clean_up.after(manager, apart=True) as value:
                entered = True
                task_status.started((value, None))
                await end.wait()
                for later in self._kept[at + 1 :]:
                    await later.wait()
                thrown = self._failure
                self._raise_failure()
            if thrown is not None and not is_cancellation(thrown):  # it was swallowed
                self._failure = None
        except BaseException as error:
            if not entered and not is_cancellation(error):
                task_status.started((None, error))
            elif error is not self._failure:
                if is_cancellation(error) or not isinstance(error, Exception):
                    raise
                self._failed(error)
        finally:
            done.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _failed(self, error: Exception) -> None:
        """Note what a clean-up raised, for the next one if it is about the handler, else for the connection."""
        if self._failure is not None and error.__context__ is self._failure:
            self._failure = error
        elif self.problem is None:
            self.problem = error
            self._group.cancel_scope.cancel()
        else:
            self.tell(error)

    def tell(self, error: Exception) -> None:
        """Log what a clean-up raised beside another exception."""
        logger().error(
            "connection %s: the clean-up after the handshake failed", self._clean_up.connection.id, exc_info=error
        )

    def solved(self) -> None:
        """Note that all dependencies have been run."""
        self._solved.set()

    async def finish(self, kind: Any, error: BaseException | None, trace: Any) -> bool:  # noqa: ARG002 - of an exit
        """Clean up at the latest when the handler is done; each sees the exception that ended it."""
        answered = self._answered.is_set()
        if not answered:
            self._failure = error
        self._answered.set()
        self._solved.set()
        with anyio.CancelScope(shield=True):  # each has its deadline
            for done in self._kept:
                await done.wait()
        if answered or error is None:
            return False
        if self._failure is not None and self._failure is not error:
            raise self._failure
        return self._failure is None


@contextlib.asynccontextmanager
async def until_answered(connection: Session) -> AsyncIterator[Handshake]:
    """A place for what lives until the handshake is answered; a clean-up that fails ends the connection."""
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        kept = Handshake(connection, group)
        try:
            yield kept
        except Exception as error:  # noqa: BLE001 - raised again outside, where no group wraps it
            failure = error
    if failure is None:
        failure = kept.problem
    elif kept.problem is not None:
        kept.tell(kept.problem)
    if failure is not None:
        raise failure
