"""When to train on public data and when to listen to the federation: policies compared."""
