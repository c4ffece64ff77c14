"""A package with a module that fails."""
