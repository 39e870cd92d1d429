"""Whom the hub lets in: its authority, its members, its door, what the broker allows."""
