"""Merge an adapter into its base and export what comes out, for boards that only answer.

optimum exports and quantizes; torch and optimum are needed here alone, not where it answers.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ffm_common.errors import ModelDigest, ModelUnsupported, PathUnwritable
from ffm_common.files import make_folder, sha256_file, write_atomic
from ffm_common.reading import with_own_digest
from ffm_common.task import Task
from ffm_common.tensors import Array, Tensors
from learning import adapter, base
from learning.onnx.folder import WEIGHTS
from learning.onnx.merged import CARD, MODEL, Format, Merged, is_merged
from learning.texts import tokens

_PEFT = "base_model.model."
_INLINE_BYTES = 4096
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def merge(
    folder: Path, out: Path, *, base_folder: Path | None = None, weights: Format = "int8"
) -> Merged:
    """Merge the adapter in `folder` into its base and export the sum into the new folder `out`.

    Parameters
    ----------
    folder
        A trained adapter.
    out
        Replaced if it is a merged model already.
    base_folder
        Its base, if that has moved since.
    weights
        ``int8``: matrices and word vectors in 8 bits, activations too while products are taken.
        ``fp32``: exact.

    Raises
    ------
    ModelUnsupported
        A soft prompt, which has no place in the weights; a task without labels; a base whose
        layers are not plain matrices.
    ModelDigest, ModelMissing, AdapterInvalid
        The base is not the one that the adapter was trained on, or one of them is none.
    PathUnwritable
        `out` cannot be written, or holds something else.
    """
    # Before seconds of work: where optimum is not installed, this says so.
    importlib.import_module("optimum.onnxruntime")
    card = adapter.read_card(folder)
    where = base_folder or Path(card.base)
    if base.verify(where).digest != card.base_digest:
        raise ModelDigest(f"{folder} was trained on another base than {where}")
    _check(card.task, where, out)
    model = _model(where, card.task, adapter.load_tensors(folder))
    make_folder(out.parent)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(part / "source")
        for name in tokens.FILES:
            shutil.copyfile(where / name, part / "source" / name)
        finished = part / "finished"
        finished.mkdir()
        _export(part / "source", finished, weights)
        for name in (*tokens.FILES, "config.json"):
            shutil.copyfile(part / "source" / name, finished / name)
        merged = Merged(
            digest="",
            base_digest=card.base_digest,
            version=card.version,
            weights=weights,
            task=card.task,
            files={path.name: sha256_file(path) for path in sorted(finished.iterdir())},
        )
        merged = with_own_digest(merged)
        write_atomic(finished / CARD, msgspec.json.format(msgspec.json.encode(merged)))
        shutil.rmtree(out, ignore_errors=True)
        finished.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return merged


def _check(task: Task, where: Path, out: Path) -> None:
    if out.exists() and not is_merged(out):
        raise PathUnwritable(f"{out} is there and is no merged model", remedy="name a new folder")
    if task.adapter.kind == "prompt":
        raise ModelUnsupported(
            "a soft prompt is no change of the weights and cannot be merged into them",
            remedy="answer with the adapter itself (ffm infer --adapter), or train LoRA",
        )
    if task.adapter.kind == "full":
        raise ModelUnsupported(
            "only LoRA is merged into an ONNX model",
            remedy="write the trained model as a folder of its own (ffm model export)",
        )
    if task.kind != "classification":
        raise ModelUnsupported(f"only classifiers answer with labels, not a {task.kind}")
    if missing := [name for name in tokens.FILES if not (where / name).is_file()]:
        raise ModelUnsupported(f"the tokenizer of {where} has no {missing[0]}")


def _model(where: Path, task: Task, tensors: Tensors) -> Any:
    """Give the fp32 network of the base, dequantized, with the adapter in its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(str(where), **base.NO_FOREIGN_CODE)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {label: number for number, label in enumerate(task.labels)}
    model = AutoModelForSequenceClassification.from_config(config)
    state = _state(where, list(model.state_dict()), model.base_model_prefix + ".", tensors)
    scale = np.float32(task.adapter.alpha / task.adapter.rank)
    for name, down in tensors.items():
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            product = tensors[layer + _UP] @ down
            state[layer.removeprefix(_PEFT) + ".weight"] += scale * product
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model.eval()


def _state(where: Path, names: list[str], prefix: str, tensors: Tensors) -> dict[str, Array]:
    """Give each of the network's tensors: trained whole, or the base's."""
    from learning.onnx.weights import BaseTensors

    held = BaseTensors(where)
    state = {}
    for name in names:
        trained = tensors.get(_PEFT + name)
        found = held.array(name.removeprefix(prefix)) if trained is None else trained
        state[name] = np.array(found)
    missing = {
        name
        for name in tensors
        if not name.endswith(_UP)
        and name.removesuffix(_DOWN) + (".weight" if name.endswith(_DOWN) else "")
        not in {_PEFT + known for known in state}
    }
    if missing:
        raise ModelUnsupported(f"the network has no place for {min(missing)}")
    return state


def _export(source: Path, out: Path, weights: Format) -> None:
    """Have optimum write the graph of the model in `source`, quantized or not, into `out`."""
    import onnx
    from optimum.exporters.onnx import main_export

    exported = source.parent / "exported"
    with warnings.catch_warnings():
        # What torch.onnx says of constants and of its own future tells a user nothing.
        warnings.simplefilter("ignore")
        main_export(
            model_name_or_path=str(source),
            output=str(exported),
            task="text-classification",
            do_validation=False,
        )
    if weights == "int8":
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        # A range for each output and a zero of its own: 99.4 instead of 98.3 % of the labels stay.
        # Unsigned: signed weights overflow in the 16-bit sums of x86 without VNNI.
        wanted = AutoQuantizationConfig.avx2(
            is_static=False, per_channel=True, use_symmetric_weights=False
        )
        ORTQuantizer.from_pretrained(exported, file_name=MODEL).quantize(
            save_dir=exported / "int8", file_suffix=None, quantization_config=wanted
        )
        exported /= "int8"
    # Weights of their own file are mapped, not read: 93 instead of 116 MB for an answer (MiniLM).
    onnx.save(
        onnx.load(exported / MODEL),
        out / MODEL,
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=_INLINE_BYTES,
    )
