"""Texts that boards get, as files beside this one."""

from __future__ import annotations

from importlib import resources
from string import Template


def template(name: str, **values: str) -> str:
    """Give a text, with ``$name`` replaced where there are values for it."""
    text = (resources.files(__name__) / name).read_text(encoding="utf-8")
    return Template(text).substitute(values) if values else text
