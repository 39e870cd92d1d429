"""Updates without training: what an agent sends is a pure function of (agent, version, content).

So whoever knows a version can say what each agent's update to it must have been, byte for byte.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from ffm_common.files import make_folder, sha256_bytes, write_atomic
from ffm_common.seeds import derive
from ffm_common.task import Task
from ffm_common.tensors import Array, Tensors
from quantization.updates.container import pack

EXAMPLES = 100
_PAIRS = 9
_WIDTH = 1024
_RANK = 8
_HIDDEN = 64


def task(seed: int) -> Task:
    """Give a task of the default adapter, which is never trained."""
    return Task(labels=("negative", "positive"), seed=seed)


def fresh(seed: int) -> dict[str, Array]:
    """Give the first adapter: nine pairs of LoRA factors of rank 8, 1024 wide, and a head.

    590 kB in float32, which is ten chunks.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for place in range(_PAIRS):
        name = f"base_model.model.layer.{place}.dense"
        made[f"{name}.lora_A.weight"] = _normal(rng, (_RANK, _WIDTH), 0.05)
        made[f"{name}.lora_B.weight"] = _normal(rng, (_WIDTH, _RANK), 0.05)
    made["base_model.model.classifier.weight"] = _normal(rng, (2, _HIDDEN), 0.1)
    return {name: made[name] for name in sorted(made)}


def update(start: Tensors, *, base: str, version: int, codec: str, seed: int) -> bytes:
    """Give the container of the update that the agent of a seed makes from a version."""
    rng = np.random.default_rng(seed)
    # The draw says whose it is, the pull to zero what it was made from.
    delta = {
        name: _normal(rng, array.shape, 0.01) - np.float32(0.05) * array
        for name, array in start.items()
    }
    return pack(delta, kind="update", version=version, base=base, codec=codec, seed=seed)


def seed_of(seed: int, agent: str, version: int) -> int:
    """Give the seed that the agent's supervisor hands to its worker."""
    return derive(seed, agent, version)


def write_base(folder: Path) -> None:
    """Write a base folder that names a model's shape and holds no weights to speak of."""
    make_folder(folder)
    config = {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_attention_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 128,
    }
    contents = {"config.json": json.dumps(config).encode(), "model.safetensors": bytes(1 << 16)}
    files = {}
    for name, content in contents.items():
        write_atomic(folder / name, content)
        files[name] = sha256_bytes(content)
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    manifest = {
        "digest": sha256_bytes(lines.encode()),
        "weights": "fp32",
        "source": "none",
        "files": files,
    }
    write_atomic(folder / "base.json", json.dumps(manifest).encode())


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Array:
    return np.float32(scale) * rng.standard_normal(math.prod(shape), np.float32).reshape(shape)
