"""Routers: one that takes another in, which is left out."""

from asgiws import Router
from tests.scanned.whole.child import child

router = Router(prefix="/api")


@router.get("/health")
async def health() -> str:
    """Health."""
    return "ok"


router.include_router(child)
