"""An adapter on disk: a folder in PEFT's format, with a card that says what it is for.

The names of the tensors are PEFT's own, so what travels, what is aggregated and what
`PeftModel.from_pretrained` opens are the same thing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json
from ffm_common.task import Task
from ffm_common.tensors import Array, Tensors

_CARD = "ffm.json"
WEIGHTS = "adapter_model.safetensors"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What ``ffm.json`` adds to PEFT's files: which base, which version, what the outputs mean."""

    base: str
    base_digest: str
    version: int
    task: Task


def save_tensors(folder: Path, tensors: Tensors, card: Card) -> None:
    """Write weights and card beside the ``adapter_config.json`` that the engine writes."""
    shape.save(folder / WEIGHTS, tensors)
    write_atomic(folder / _CARD, msgspec.json.format(msgspec.json.encode(card)))


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder has an adapter's card."""
    return (folder / _CARD).is_file()


def read_card(folder: Path) -> Card:
    """Read ``ffm.json``; AdapterInvalid if the folder is no adapter of ours."""
    try:
        return read_json(folder / _CARD, Card)
    except OSError as error:
        raise AdapterInvalid(f"{folder} is no adapter folder: {error.strerror}") from error
    except Unreadable as error:
        raise AdapterInvalid(f"{folder / _CARD}: {error}") from error


def load_tensors(folder: Path, content: str = "") -> dict[str, Array]:
    """Read the weights of an adapter folder.

    Parameters
    ----------
    content
        The digest that they must have (`ffm_common.tensors.content_digest`); "" takes them as they
        are.

    Raises
    ------
    AdapterInvalid
        They cannot be read, or are others.
    """
    found = shape.load(folder / WEIGHTS)
    if content and shape.content_digest(found) != content:
        raise AdapterInvalid(f"{folder} is not what was kept there")
    return found
