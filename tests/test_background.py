"""Tasks that no connection owns, and what asyncio and trio do not have in common."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgiws.background import ScopedSend, current_task, on_trio, spawn, tasks_inside, uncancel
from asgiws.types import Message
from tests.fakes import DEADLINE, soon

pytestmark = pytest.mark.anyio


async def test_a_task_outlives_the_one_that_started_it() -> None:
    go_on, done = anyio.Event(), anyio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()

    async def start() -> None:
        spawn(work)

    async with anyio.create_task_group() as group:
        group.start_soon(start)
    go_on.set()
    with anyio.fail_after(DEADLINE):
        await done.wait()


async def test_a_task_survives_the_cancellation_of_the_one_that_started_it() -> None:
    go_on, done = anyio.Event(), anyio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()

    with anyio.CancelScope() as scope:
        spawn(work)
        await anyio.lowlevel.checkpoint()
        scope.cancel()
        await anyio.sleep_forever()
    go_on.set()
    with anyio.fail_after(DEADLINE):
        await done.wait()


class Bell:
    """An event that can be referred to weakly on both event loops."""

    def __init__(self) -> None:
        self.rung = anyio.Event()


async def test_a_task_is_not_lost_to_the_garbage_collector() -> None:
    # T41: nobody but the task itself holds what it waits for
    started, done = anyio.Event(), anyio.Event()
    bells: list[weakref.ref[Bell]] = []

    async def work() -> None:
        bell = Bell()
        bells.append(weakref.ref(bell))
        started.set()
        await bell.rung.wait()
        done.set()

    spawn(work)
    await started.wait()
    for _ in range(3):  # until the event loop itself has forgotten that it has run
        await anyio.lowlevel.checkpoint()
    gc.collect()
    bell = bells[0]()
    assert bell is not None
    bell.rung.set()
    with anyio.fail_after(DEADLINE):
        await done.wait()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_ends_with_its_event_loop(backend: str) -> None:
    ended: list[bool] = []

    async def forever() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def main() -> None:
        spawn(forever)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

    for _ in range(2):
        ended.clear()
        anyio.run(main, backend=backend)
        assert ended == [True]


# Which event loop


async def test_the_event_loop_is_known(anyio_backend: str) -> None:
    assert on_trio() is (anyio_backend == "trio")


async def test_a_thread_has_no_event_loop_of_trio() -> None:
    assert await anyio.to_thread.run_sync(on_trio) is False


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_task_is_the_one_that_asks(anyio_backend: str) -> None:
    find = current_task()
    found: dict[str, Any] = {}

    async def ask(name: str) -> None:
        found[name] = find()

    tasks = {name: asyncio.create_task(ask(name)) for name in ("a", "b")}
    await asyncio.gather(*tasks.values())
    assert found == tasks
    assert find() is asyncio.current_task()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_has_no_task_to_be_cancelled(anyio_backend: str) -> None:
    assert current_task()() is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_cancellation_is_taken_back_at_a_time(anyio_backend: str) -> None:
    left: list[bool] = []

    async def work(times: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            left.extend(uncancel(task) for _ in range(times))

    for times in (1, 2):
        left.clear()
        task = asyncio.create_task(work(times))
        await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
        await task
        assert left == [False] * (times - 1) + [True]


# Who waits inside of what


class Place:
    """Something whose methods wait."""

    def __init__(self) -> None:
        self.waiting = False

    async def wait(self) -> None:
        self.waiting = True
        await self._wait()

    async def _wait(self) -> None:
        await anyio.sleep_forever()

    async def items(self) -> AsyncIterator[int]:
        yield 1
        await self.wait()


@contextlib.asynccontextmanager
async def running(*works: Any) -> AsyncIterator[list[Any]]:
    """Tasks that are ended at the end."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def waiting_in(places: Collection[Place]) -> dict[Place, Any]:
    """The tasks that wait in these places, and not only for their turn."""
    return tasks_inside(places, {"wait"}, "turn")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_waits_for_its_turn_is_not_found(anyio_backend: str) -> None:
    class Queue(Place):
        async def turn(self) -> None:
            self.waiting = True
            await anyio.sleep_forever()

        async def wait(self) -> None:
            await self.turn()

    place = Queue()
    async with running(place.wait()):
        await soon(lambda: place.waiting)
        assert waiting_in([place]) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_tasks_that_wait_inside_of_objects_are_found(anyio_backend: str) -> None:
    first, second = Place(), Place()

    async def handler(place: Place) -> None:
        await asyncio.sleep(0)
        await place.wait()

    async with running(handler(first), second.wait(), asyncio.sleep(DEADLINE * 10)) as tasks:
        await soon(lambda: first.waiting and second.waiting)
        assert waiting_in([first]) == {first: tasks[0]}
        assert waiting_in({first, second}) == {first: tasks[0], second: tasks[1]}
        assert waiting_in([Place()]) == {}
        assert waiting_in([]) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_only_knows_the_object_or_is_done_with_it_is_not_found(anyio_backend: str) -> None:
    place = Place()
    done = anyio.Event()

    async def handler(it: Place) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await it.wait()
        done.set()
        await anyio.sleep_forever()

    async with running(handler(place)):
        await soon(done.is_set)
        assert waiting_in([place]) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_is_found_that_waits_inside_by_way_of_another_objects_method(anyio_backend: str) -> None:
    place = Place()

    class Controller:
        async def on_message(self) -> None:
            await place.wait()

    async with running(Controller().on_message()) as tasks:
        await soon(lambda: place.waiting)
        assert waiting_in([place]) == {place: tasks[0]}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_is_found_that_waits_inside_by_way_of_a_generator(anyio_backend: str) -> None:
    place = Place()

    async def helper() -> AsyncIterator[int]:
        yield 1
        await place.wait()

    async def handler() -> None:
        async for _ in helper():
            pass

    async with running(handler()) as tasks:
        await soon(lambda: place.waiting)
        assert waiting_in([place]) == {place: tasks[0]}


# A send that can be cut


async def test_a_send_passes_what_it_is_given_and_what_is_raised() -> None:
    sent: list[Message] = []

    async def send(event: Message) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append(event)
        if event["type"] == "x":
            raise ValueError("x")

    scoped = ScopedSend(send)
    await scoped({"type": "a"})
    with pytest.raises(ValueError, match="x"):
        await scoped({"type": "x"})
    await scoped({"type": "b"})
    assert sent == [{"type": "a"}, {"type": "x"}, {"type": "b"}]


async def cut_while_it_sends(scoped: ScopedSend, started: Callable[[], object]) -> list[Exception]:
    raised: list[Exception] = []

    async def work() -> None:
        try:
            await scoped({"type": "slow"})
        except OSError as error:
            raised.append(error)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await soon(started)
            scoped.cut()
    return raised


async def test_a_send_that_is_cut_is_broken_for_who_sends() -> None:
    under_way: list[Message] = []

    async def send(event: Message) -> None:
        under_way.append(event)
        if event["type"] == "slow":
            await anyio.sleep_forever()

    scoped = ScopedSend(send)
    scoped.cut()  # nothing is under way
    await scoped({"type": "a"})
    scoped.cut()  # no more
    await scoped({"type": "b"})
    assert len(await cut_while_it_sends(scoped, lambda: len(under_way) == 3)) == 1
    await scoped({"type": "c"})
    assert [event["type"] for event in under_way] == ["a", "b", "slow", "c"]


async def test_a_send_that_got_through_all_the_same_is_none_that_was_cut() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def send(event: Message) -> None:
        begun.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()

    scoped = ScopedSend(send)
    raised: list[Exception] = []

    async def work() -> None:
        try:
            await scoped({"type": "slow"})
        except OSError as error:
            raised.append(error)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await begun.wait()
            scoped.cut()
            go_on.set()
    assert raised == []


async def test_a_sender_that_is_cancelled_itself_is_cancelled() -> None:
    begun = anyio.Event()

    async def send(event: Message) -> None:
        begun.set()
        await anyio.sleep_forever()

    scoped = ScopedSend(send)
    after: list[str] = []
    with anyio.fail_after(DEADLINE), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def work() -> None:
                try:
                    await scoped({"type": "slow"})
                finally:
                    after.append("over")
                after.append("went on")

            group.start_soon(work)
            await begun.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert after == ["over"]
