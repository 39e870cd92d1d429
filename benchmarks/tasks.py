"""What is learned, by name: whose examples, on which model, trained how."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from msgspec.structs import replace

from benchmarks.models import DATA, LINEARS, stories260k
from ffm_common.seeds import derive
from ffm_common.task import PROMPT_RATE, Adapter, Task, TaskKind, Training
from learning import base, scratch
from learning.texts.data import Example, read_labelled, require_labels

TaskName: TypeAlias = Literal["sst2", "banking77", "mrpc", "qnli", "mnli", "shakespeare", "mnist"]
Model: TypeAlias = Literal["minilm", "stories260k", "vit-mnist"]
Examples: TypeAlias = tuple[list[Example], list[Example]]
"""To train on, and to test on."""

LORA = Adapter()
UPPER = Adapter(top_layers=2)
"""LoRA on the two upper layers: half the time of a step, and most of what there is to learn."""
LLAMA = Adapter(targets=LINEARS)
"""LoRA on every linear layer of a Llama."""

# Longer pairs are left out: they cost most.
_MOST_WORDS = 40
# Where a source has no test set of its own.
_TESTED = 1000
_SENTENCE = Training(max_length=32)
# All pairs in one place, the default step falls into one answer to everything; federations do not.
_PAIR = Training(max_length=64, learning_rate=5e-4)
_TRAINING: dict[TaskName, Training] = {
    "sst2": _SENTENCE,
    # A fresh head of many labels has far to go in few steps.
    "banking77": replace(_SENTENCE, head_learning_rate=2e-2),
    "mrpc": _PAIR,
    "qnli": _PAIR,
    "mnli": _PAIR,
    "shakespeare": Training(),
    "mnist": Training(),
}
_MODELS: dict[TaskName, Model] = {"shakespeare": "stories260k", "mnist": "vit-mnist"}
_KINDS: dict[Model, TaskKind] = {
    "minilm": "classification",
    "stories260k": "causal-lm",
    "vit-mnist": "image-classification",
}


def model_of(name: TaskName) -> Model:
    """Tell which model learns a task: MiniLM all that is not named otherwise."""
    return _MODELS.get(name, "minilm")


def base_folder(work: Path, model: Model = "minilm") -> Path:
    """Give where the prepared base is."""
    return work / ("base" if model == "minilm" else f"base-{model}")


def prepare_base(work: Path, model: Model = "minilm") -> Path:
    """Prepare a model unless it is there: MiniLM in NF4, stories260K, or a ViT that knows nothing.

    Gives the base's folder.
    """
    folder = base_folder(work, model)
    if folder.exists():
        return folder
    if model == "minilm":
        base.prepare(base.bundled_minilm(), folder)
    elif model == "stories260k":
        with tempfile.TemporaryDirectory() as made:
            base.prepare(stories260k(Path(made) / model), folder, "fp32")
    else:
        scratch.new(folder, scratch.SHAPES[model])
    return folder


def task_of(name: TaskName, adapter: Adapter = LORA) -> Task:
    """Give the learning task: LoRA of rank 8 on query, key, value and dense layers by default."""
    kind, training = _KINDS[model_of(name)], _TRAINING[name]
    if adapter.kind == "prompt":
        training = replace(training, learning_rate=PROMPT_RATE)
    labels = () if kind == "causal-lm" else tuple(require_labels(training_set(name)))
    return Task(kind=kind, labels=labels, adapter=adapter, training=training)


def training_set(name: TaskName) -> list[Example]:
    """Read a task's training data.

    A label of a language model's text says whose it is. The text of a picture is its place in
    `digits`.
    """
    return list(_read(name)[0])


def evaluation_set(name: TaskName) -> list[Example]:
    """Read what a task is tested on."""
    return list(_read(name)[1])


@cache
def digits() -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Read MNIST's pictures, those to train on first: uint8, shape (30000, 28, 28)."""
    with np.load(DATA / "mnist" / "mnist.npz") as found:
        return np.concatenate([found["x_train"], found["x_test"]])


@cache
def _read(name: TaskName) -> Examples:
    return _READERS[name]()


def _files(train: str, test: str) -> Examples:
    return read_labelled(DATA / train), read_labelled(DATA / test)


def _mrpc() -> Examples:
    def read(file: str) -> list[Example]:
        rows = _tsv(DATA / "mrpc" / f"msr_paraphrase_{file}.txt")
        return _pairs((first, second, label) for label, _, _, first, second in rows)

    return read("train"), read("test")


def _qnli() -> Examples:
    rows = _tsv(DATA / "qnli" / "dev.tsv")
    return _parted("qnli", _pairs((first, second, label) for _, first, second, label in rows))


def _mnli() -> Examples:
    rows = map(json.loads, _lines(DATA / "mnli" / "mnli_dev_matched.jsonl"))
    return _parted(
        "mnli", _pairs((row["premise"], row["hypothesis"], row["label"]) for row in rows)
    )


def _shakespeare() -> Examples:
    roles = map(json.loads, _lines(DATA / "shakespeare_roles" / "by_role.jsonl"))
    found = [Example(text, role["role"]) for role in roles for text in role["blocks"]]
    return _parted("shakespeare", list({each.text: each for each in found}.values()))


def _mnist() -> Examples:
    with np.load(DATA / "mnist" / "mnist.npz") as found:
        labels = np.concatenate([found["y_train"], found["y_test"]]).tolist()
        trained = len(found["y_train"])
    examples = [Example(f"{place}", f"{label}") for place, label in enumerate(labels)]
    return examples[:trained], examples[trained:]


_READERS: dict[TaskName, Callable[[], Examples]] = {
    "sst2": partial(_files, "sst2/sentences_train.tsv", "sst2/sentences_test.tsv"),
    "banking77": partial(_files, "banking77/train.csv", "banking77/test.csv"),
    "mrpc": _mrpc,
    "qnli": _qnli,
    "mnli": _mnli,
    "shakespeare": _shakespeare,
    "mnist": _mnist,
}


def _tsv(path: Path) -> list[list[str]]:
    """Read rows without the header; quotation marks in them mean nothing."""
    return [line.split("\t") for line in _lines(path)[1:]]


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig") as file:
        return [line.rstrip("\n") for line in file]


def _pairs(rows: Iterable[tuple[str, str, str]]) -> list[Example]:
    """Join pairs of sentences as BERT reads them."""
    found = [Example(f"{first} [SEP] {second}", label) for first, second, label in rows]
    return [each for each in found if len(each.text.split()) <= _MOST_WORDS]


def _parted(name: TaskName, examples: list[Example]) -> Examples:
    """Take a test set off, the same always."""
    order = np.random.default_rng(derive(0, "test set", name)).permutation(len(examples))
    shuffled = [examples[place] for place in order]
    return shuffled[_TESTED:], shuffled[:_TESTED]
