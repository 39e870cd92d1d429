"""Hostile input for every parser: spoilt files and messages, in processes that may die of them."""
