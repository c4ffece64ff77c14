"""A module that imports what there is not."""

import there_is_no_such_module  # type: ignore[import-not-found]

__all__ = ["there_is_no_such_module"]
