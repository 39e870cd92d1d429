"""On the board: a small supervisor that never imports torch, and a worker process that trains."""
