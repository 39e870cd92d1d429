"""Faults on purpose: real processes, killed, cut off and starved, and nothing lost by it."""
