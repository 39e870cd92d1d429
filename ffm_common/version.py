"""Which ffm-edge this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Give the version that is installed."""
    try:
        return metadata.version("ffm-edge")
    except metadata.PackageNotFoundError:
        return "unknown"
