"""Transfers over emulated links: how much of a line they use, and what a cut makes come twice."""
