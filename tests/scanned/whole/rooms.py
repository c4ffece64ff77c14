"""Controllers, and what only looks like one."""

from asgiws import App, WebSocket, controller, on, websocket
from tests.scanned.elsewhere import Outside
from tests.scanned.whole import Top

__all__ = ["Again", "Chat", "Outside", "Rooms", "Top", "app", "instance"]


class Base:
    """No controller itself."""

    @websocket("/inherited")
    async def inherited(self, ws: WebSocket) -> None:
        """Tell who it is."""
        await ws.accept()
        await ws.send_text(type(self).__name__)


@controller("/rooms")
class Rooms(Base):
    """A controller."""

    @websocket("/<room>/seats")
    async def seats(self, ws: WebSocket, room: str) -> None:
        """Tell the room."""
        await ws.accept()
        await ws.send_text(room)


class Later(Rooms):
    """Below a controller, but none itself."""


Again = Rooms
instance = Rooms()


@controller("/chat")
class Chat:
    """Hooks alone."""

    @on(str)
    async def say(self, message: str) -> str:
        """The same."""
        return message


app = App()


@app.websocket("/of-the-app")
async def of_the_app(ws: WebSocket) -> None:
    """A route of another app."""
    await ws.accept()
