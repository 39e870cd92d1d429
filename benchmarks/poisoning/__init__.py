"""Attacks on a federation that learns: what they cost in accuracy."""
