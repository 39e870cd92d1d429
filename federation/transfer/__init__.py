"""Blobs on their way: chunks, uploads, downloads, and the outbox."""
