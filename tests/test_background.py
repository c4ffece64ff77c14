"""A task that no connection owns."""

import gc

import anyio
import anyio.lowlevel
import pytest

from asgiws.background import spawn
from tests.fakes import DEADLINE

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


async def test_a_task_is_not_lost_to_the_garbage_collector() -> None:
    # T41
    started, go_on, done = anyio.Event(), anyio.Event(), anyio.Event()

    async def work() -> None:
        started.set()
        await go_on.wait()
        done.set()

    spawn(work)
    await started.wait()
    gc.collect()
    go_on.set()
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
