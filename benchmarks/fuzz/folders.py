"""The files of model and adapter folders, each spoilt where the others are as they should be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks.chaos import fixed
from benchmarks.fuzz.subject import Subject
from benchmarks.fuzz.wire import TASK
from ffm_common.files import make_folder, sha256_bytes
from ffm_common.reading import with_own_digest
from ffm_common.task import Task
from learning import adapter, base, engines, planning
from learning.adapter import Card
from learning.images.geometry import Geometry
from learning.onnx import folder as steps
from learning.onnx import merged
from learning.onnx.folder import Exported, Lookup
from learning.texts.tokens import Tokenizer

_DIGEST: Final = "ab" * 32
_WORDS: Final = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "cat", "the", "##s")


def _of_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path.parent)

    return parse


def adapter_card(work: Path) -> Subject:
    """ffm.json."""
    card = Card(base="base", base_digest=_DIGEST, version=3, task=TASK)
    parse = _of_file(work / "ffm.json", adapter.read_card)
    return Subject(parse, {"lora": msgspec.json.encode(card)}, "json")


def base_manifest(work: Path) -> Subject:
    """base.json, in a folder whose files are those of the seed."""
    fixed.write_base(work)

    def mend(data: bytes, draw: random.Random) -> bytes:
        """Have the digest fit, as whoever means harm does."""
        try:
            found = json.loads(data)
            files = {str(name): str(digest) for name, digest in found["files"].items()}
            lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
            found["digest"] = sha256_bytes(lines.encode())
            return json.dumps(found).encode() if draw.random() < 0.7 else data
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return data

    parse = _of_file(work / "base.json", engines.verify)
    return Subject(parse, {"two": (work / "base.json").read_bytes()}, "json", mend)


def model_config(work: Path) -> Subject:
    """config.json, as a plan is made from it."""
    fixed.write_base(work)
    text = (work / "config.json").read_bytes()
    vit = json.loads(text) | {"model_type": "vit", "image_size": 28, "patch_size": 7}
    llama = json.loads(text) | {"model_type": "llama", "num_key_value_heads": 1}
    pictures = Task(kind="image-classification", labels=("no", "yes"))

    def read(folder: Path) -> object:
        task = pictures if base.sees(folder) else TASK
        found = planning.demand(folder, task, update_bits=1.0, down_bits=2.0)
        assert found.shape.linear_parameters() > 0
        return Geometry.of(folder).places if task is pictures else found.shape.largest_matrix()

    seeds = {
        "bert": text,
        "vit": json.dumps(vit | {"num_channels": 1}).encode(),
        "llama": json.dumps(llama).encode(),
    }
    return Subject(_of_file(work / "config.json", read), seeds, "json")


def weights_head(work: Path) -> Subject:
    """The head of model.safetensors, which says how much a full adapter trains."""
    fixed.write_base(work)
    head = {
        "__metadata__": {"format": "pt"},
        "encoder.layer.0.dense.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
        "embeddings.word.weight": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]},
    }
    raw = json.dumps(head).encode()

    def read(folder: Path) -> object:
        found = planning.shapes_in(folder / base.WEIGHTS_FILE)
        assert all(size >= 0 for sizes in found.values() for size in sizes)
        return found

    def mend(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.7 and len(data) > 72:
            return (len(data) - 72).to_bytes(8, "little") + data[8:]
        return data

    seed = len(raw).to_bytes(8, "little") + raw + bytes(64)
    return Subject(_of_file(work / base.WEIGHTS_FILE, read), {"two": seed}, mend=mend)


def picture_processor(work: Path) -> Subject:
    """preprocessor_config.json."""
    from learning.torch.pixels import PROCESSOR, Pixels

    seed = {"image_mean": [0.5], "image_std": [0.25], "do_resize": True}
    parse = _of_file(work / PROCESSOR, Pixels)
    return Subject(parse, {"one": json.dumps(seed).encode()}, "json")


def tokenizer(work: Path) -> Subject:
    """tokenizer.json, and what is done with it."""
    (work / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')

    def read(folder: Path) -> object:
        return Tokenizer(folder)(["the cats", "é" * 50], truncation=True, max_length=8)

    return Subject(_of_file(work / "tokenizer.json", read), {"words": _tokenizer()}, "json")


def tokenizer_config(work: Path) -> Subject:
    """tokenizer_config.json."""
    (work / "tokenizer.json").write_bytes(_tokenizer())

    def read(folder: Path) -> object:
        found = Tokenizer(folder)
        return found.pad_token_id, found.eos_token_id

    seeds = {
        "text": b'{"pad_token": "[PAD]", "eos_token": "[SEP]"}',
        "object": b'{"pad_token": {"content": "[PAD]", "lstrip": false}, "model_max_length": 512}',
    }
    return Subject(_of_file(work / "tokenizer_config.json", read), seeds, "json")


def _tokenizer() -> bytes:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    words = {word: number for number, word in enumerate(_WORDS)}
    made = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[SEP]"])
    text: str = made.to_str()
    return text.encode()


def exported_step(work: Path) -> Subject:
    """onnx.json of an exported step, its digest mostly made to fit; and the words that it finds."""
    from learning.onnx.engine import Embedding

    rows, width = 8, 4
    weights = np.arange(rows * width, dtype=np.float32).tobytes()
    (work / steps.WEIGHTS).write_bytes(weights)
    found = Exported(
        digest="",
        base_digest=_DIGEST,
        weights="fp32",
        task=TASK,
        embedding=Lookup(offset=0, rows=rows, width=width, scales=None),
        files={steps.WEIGHTS: sha256_bytes(weights)},
    )
    # Rows of int8 with a scale for each, from the same bytes.
    short = msgspec.structs.replace(
        found, weights="int8", embedding=Lookup(offset=0, rows=rows, width=width, scales=64)
    )

    def read(folder: Path) -> object:
        checked = steps.verify(folder)
        vectors, _ = Embedding(folder / steps.WEIGHTS, checked.embedding).rows(np.arange(2))
        assert vectors.shape == (2, checked.embedding.width)
        return checked

    def mend(data: bytes, draw: random.Random) -> bytes:
        try:
            said = msgspec.json.decode(data, type=Exported)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return data
        if draw.random() < 0.9:
            said = with_own_digest(said)
        return msgspec.json.encode(said)

    seeds = {
        name: mend(msgspec.json.encode(each), random.Random(1))
        for name, each in (("fp32", found), ("int8", short))
    }
    return Subject(_of_file(work / steps.MANIFEST, read), seeds, "json", mend)


def merged_model(work: Path) -> Subject:
    """answer.json of a merged model."""
    (work / merged.MODEL).write_bytes(b"graph")
    files = {merged.MODEL: sha256_bytes(b"graph")}
    said = merged.Merged(
        digest="", base_digest=_DIGEST, version=3, weights="int8", task=TASK, files=files
    )
    said = with_own_digest(said)

    def mend(data: bytes, draw: random.Random) -> bytes:
        try:
            found = msgspec.json.decode(data, type=merged.Merged)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return data
        if draw.random() < 0.9:
            found = with_own_digest(found)
        return msgspec.json.encode(found)

    parse = _of_file(work / merged.CARD, merged.verify)
    return Subject(parse, {"int8": msgspec.json.encode(said)}, "json", mend)


def graph(work: Path) -> Subject:
    """A graph of ONNX, which onnxruntime opens."""
    import onnx
    from onnx import TensorProto, helper

    from learning.onnx.runtime import Session

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 2], [1.0, 2.0])
    node = helper.make_node("Add", ["x", "w"], ["y"])
    made = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inner = onnx.load_from_string(model.SerializeToString())
    outside = inner.graph.initializer[0]
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    make_folder(work / "graph")
    (work / "graph" / "weights.bin").write_bytes(np.ones(2, np.float32).tobytes())
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "8")):
        entry = outside.external_data.add()
        entry.key, entry.value = key, value

    def read(folder: Path) -> object:
        return Session(folder / "model.onnx", 1).inputs

    seeds = {"inside": model.SerializeToString(), "outside": inner.SerializeToString()}
    return Subject(_of_file(work / "graph" / "model.onnx", read), seeds)
