"""A package with a controller of its own, modules, and packages below."""

from asgiws import controller, get


@controller("/top")
class Top:
    """In the package itself."""

    @get("/")
    async def top(self) -> str:
        """The name of the class."""
        return type(self).__name__
