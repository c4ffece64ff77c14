"""Programs to read, to run and to copy: `python -m examples.NAME`."""
