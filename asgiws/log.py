"""The log of asgiws."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


def logger() -> "logging.Logger":
    """The logger named "asgiws". `logging` is slow to import, so that is done when there is something to say."""
    import logging  # noqa: PLC0415

    return logging.getLogger("asgiws")
