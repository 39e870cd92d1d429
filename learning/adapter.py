"""The adapter: PEFT modules on the base, seen from outside as `Tensors` and kept in PEFT's format.

The names are PEFT's own (those in ``adapter_model.safetensors``), so what travels, what is
aggregated and what `PeftModel.from_pretrained` opens are the same thing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.files import make_folder, write_atomic
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, Tensors, spec_digest

_CARD = "ffm.json"
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What ``ffm.json`` adds to PEFT's files: which base, which version, what the outputs mean."""

    base: str
    base_digest: str
    version: int
    task: Task


def attach(model: Any, adapter: Adapter, seed: int) -> Any:
    """Put a fresh adapter on a classifier; the same seed gives the same start.

    Returns
    -------
    peft.PeftModel
        With only the adapter and the classifier head trainable.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    # The head too starts from the seed, not from whatever was drawn while loading.
    model.classifier.reset_parameters()
    if adapter.kind == "lora":
        config: Any = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=0.0,
            target_modules=list(adapter.targets),
        )
    else:
        config = peft.PromptTuningConfig(
            task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=adapter.prompt_tokens
        )
    return peft.get_peft_model(model, config)


def read(model: Any) -> dict[str, Array]:
    """Copy the adapter's tensors out of a PEFT model, in canonical order."""
    import peft

    state = peft.get_peft_model_state_dict(model)
    return {name: state[name].detach().float().cpu().numpy().copy() for name in sorted(state)}


def write(model: Any, tensors: Tensors) -> None:
    """Put tensors into a PEFT model; AdapterInvalid if names or shapes differ."""
    import peft
    import torch

    if spec_digest(tensors) != spec_digest(read(model)):
        raise AdapterInvalid("the tensors do not fit this base and adapter")
    state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    peft.set_peft_model_state_dict(model, state)


def save_config(folder: Path, model: Any, base_folder: Path) -> None:
    """Write ``adapter_config.json`` as PEFT does; the weights come by `save_tensors`."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = str(base_folder.resolve())
    config.inference_mode = True
    config.save_pretrained(str(make_folder(folder)))


def save_tensors(folder: Path, tensors: Tensors, card: Card) -> None:
    """Write weights and card; needs no torch, so the hub's own process does it."""
    shape.save(folder / _WEIGHTS, tensors)
    write_atomic(folder / _CARD, msgspec.json.format(msgspec.json.encode(card)))


def copy_config(source: Path, folder: Path) -> None:
    """Copy ``adapter_config.json`` from one adapter folder to another."""
    write_atomic(make_folder(folder) / _CONFIG, (source / _CONFIG).read_bytes())


def read_card(folder: Path) -> Card:
    """Read ``ffm.json``; AdapterInvalid if the folder is no adapter of ours."""
    try:
        return msgspec.json.decode((folder / _CARD).read_bytes(), type=Card)
    except OSError as error:
        raise AdapterInvalid(f"{folder} is no adapter folder: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise AdapterInvalid(f"{folder / _CARD}: {error}") from error


def load_tensors(folder: Path) -> dict[str, Array]:
    """Read the weights of an adapter folder."""
    return shape.load(folder / _WEIGHTS)
