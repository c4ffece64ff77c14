"""Packages that the tests of `scan` look into."""
