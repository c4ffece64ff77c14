"""What a generator yields, as messages."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio

from .cleanup import CLEAN_UP
from .log import logger
from .states import CONNECTING
from .websocket import WebSocket


async def stream_items(ws: WebSocket[Any, Any], items: AsyncGenerator[Any, None], *, reads: bool) -> None:
    """Accept, send each item, and stop the generator when the client leaves.

    Args:
        ws: The WebSocket.
        items: The handler's generator.
        reads: The handler has the WebSocket and may read from it; two cannot.
    """
    async with closed_at_the_end(items):
        if ws.application_state is CONNECTING:  # a dependency may have accepted, to read a token
            await ws.accept()
        if reads:
            await _send_items(ws, items)
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                async for _ in ws:
                    logger().debug("connection %s: dropped a message, a stream takes none", ws.id)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                await _send_items(ws, items)
            except Exception as error:  # noqa: BLE001 - raised again outside, where no group wraps it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def _send_items(ws: WebSocket[Any, Any], items: AsyncIterator[Any]) -> None:
    async for item in items:
        await send_item(ws, item)


async def send_item(ws: WebSocket[Any, Any], item: Any) -> None:
    """Send what a handler yielded or returned: str as text, bytes as they are, anything else as JSON."""
    if isinstance(item, str):
        await ws.send_text(item)
    elif isinstance(item, bytes | bytearray | memoryview):
        await ws.send_bytes(item)
    else:
        await ws.send_json(item)


@contextlib.asynccontextmanager
async def closed_at_the_end(items: AsyncGenerator[Any, None]) -> AsyncIterator[None]:
    """Close the generator in this task whatever happens, with time for what its `finally` awaits."""
    try:
        yield
    finally:
        with anyio.move_on_after(CLEAN_UP, shield=True) as scope:
            await items.aclose()
        if scope.cancelled_caught:
            logger().warning("the clean-up of %r took over %s s and was cut", items, CLEAN_UP)
