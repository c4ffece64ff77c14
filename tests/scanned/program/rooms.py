"""A controller of the program."""

from asgiws import WebSocket, controller, websocket


@controller("/rooms")
class Rooms:
    """A controller."""

    @websocket("/<room>")
    async def join(self, ws: WebSocket, room: str) -> None:
        """Tell the room."""
        await ws.accept()
        await ws.send_text(room)
