"""The versions: ledger, registry, how each came about, and the way back."""
