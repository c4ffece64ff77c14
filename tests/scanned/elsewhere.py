"""What stands outside of a scanned package, though its modules import it."""

from asgiws import Router, WebSocket, controller, websocket


@controller("/outside")
class Outside:
    """A controller that no scan of another package may take."""

    @websocket("/")
    async def outside(self, ws: WebSocket) -> None:
        """Accept."""
        await ws.accept()


shared = Router(prefix="/shared")


@shared.websocket("/")
async def handler(ws: WebSocket) -> None:
    """Accept."""
    await ws.accept()
