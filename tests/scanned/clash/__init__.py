"""Two controllers that can never be told apart."""

from asgiws import WebSocket, controller, websocket


@controller("/same")
class One:
    """The first."""

    @websocket("/<a>")
    async def one(self, ws: WebSocket, a: str) -> None:
        """Nothing."""


@controller("/same")
class Two:
    """The second."""

    @websocket("/<b>")
    async def two(self, ws: WebSocket, b: str) -> None:
        """Nothing."""
