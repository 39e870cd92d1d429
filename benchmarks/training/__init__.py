"""Training on small machines, beside the stock loop: `python -m benchmarks.training`."""
