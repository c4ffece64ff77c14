"""A package with a module that imports what there is not."""
