"""The gate: which versions pass, and what becomes of those that do not."""
