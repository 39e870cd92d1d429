"""What is claimed, measured; `python -m benchmarks.NAME --json`."""
