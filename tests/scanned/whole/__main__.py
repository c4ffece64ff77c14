"""What `python -m` runs, and a scan must not."""

raise SystemExit("a scan has run the program")
