"""A module that fails when it is imported."""

raise LookupError("the module is wrong")
