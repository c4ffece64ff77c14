"""A router that another one includes, and one with nothing in it."""

from asgiws import Router

child = Router(prefix="/child")
nothing = Router()


@child.get("/age")
async def age() -> int:
    """The age."""
    return 7
