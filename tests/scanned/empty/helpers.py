"""No controller, no router."""

from tests.scanned.elsewhere import Outside

__all__ = ["Outside", "helper"]


def helper() -> None:
    """Help."""
