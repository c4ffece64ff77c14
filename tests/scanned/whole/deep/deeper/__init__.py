"""A package below that."""
