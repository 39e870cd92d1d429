"""Fewer bits: base weights (NF4, int8) and updates (the codecs)."""
