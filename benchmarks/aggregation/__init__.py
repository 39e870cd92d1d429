"""Aggregation: how fast, in how much memory, and how good: `python -m benchmarks.aggregation`."""
