"""A controller far below."""

from asgiws import controller


@controller("/lobby")
class Lobby:
    """Hooks alone."""

    async def on_message(self, message: str) -> str:
        """The same in capital letters."""
        return message.upper()
