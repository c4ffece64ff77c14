"""A package in which there is nothing to find."""
