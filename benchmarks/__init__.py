"""Measurements of asgiws: `python -m benchmarks.in_process`."""
