"""A program: an app that scans the package in which it stands itself."""
