"""A task that belongs to no connection, on whichever event loop runs.

anyio has no task without an opener that outlives it. Where a server sends no lifespan events there is none: so this is
the one place that knows asyncio from trio. It imports neither: what runs has been imported.
"""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

_tasks: set[Any] = set()  # asyncio itself keeps none of its tasks alive


def spawn(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start a task that ends by itself or with the event loop. It must not raise."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        trio.lowlevel.spawn_system_task(function)
        return
    task = sys.modules["asyncio"].create_task(function())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
