"""Bases, exported steps and texts for the training benchmark, made once in its work folder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from benchmarks.models import DATA, llama, qwen2, stories260k
from ffm_common.files import make_folder, sha256_bytes
from ffm_common.task import Adapter, Task, Training
from learning import base
from learning.texts.data import (
    END_OF_TEXT,
    Example,
    label_names,
    read_labelled,
    read_texts,
    write_jsonl,
)

Model: TypeAlias = Literal["minilm", "stories260k", "llama135m", "qwen05"]
Weights: TypeAlias = Literal["nf4", "int8", "fp32"]

BANKING = DATA / "banking77"
STORIES = DATA / "tinystories_sample" / "tinystories_sample.txt"
_STORIES = 400
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


class Materials:
    """What is trained and on what; everything is a pure function of its name."""

    def __init__(self, work: Path) -> None:
        self._work = make_folder(work)
        self.labels = tuple(label_names(read_labelled(BANKING / "train.csv")))

    def base(self, model: Model, weights: Literal["nf4", "fp32"] = "nf4") -> Path:
        """Give a prepared base."""
        folder = self._work / "bases" / f"{model}-{weights}"
        if not folder.exists():
            base.prepare(self._source(model), folder, weights)
        return folder

    def exported(
        self, model: Model, task: Task, weights: Weights = "nf4", *, artifacts: bool = False
    ) -> Path:
        """Give the exported step of a task on a base."""
        from learning.onnx.export import export

        digest = sha256_bytes(msgspec.json.encode(task))[:8]
        kind = "-artifacts" if artifacts else ""
        folder = self._work / "steps" / f"{model}-{weights}-{digest}{kind}"
        if not folder.exists():
            source = self.base(model, "fp32" if weights == "int8" else "nf4")
            export(source, task, folder, weights=weights, artifacts=artifacts)
        return folder

    def banking(self, split: Literal["train", "test"], count: int) -> str:
        """Give `count` questions of banking77, drawn from all of them (the file is sorted)."""
        path = self._work / f"banking-{split}-{count}.jsonl"
        if not path.exists():
            rows = read_labelled(BANKING / f"{split}.csv")
            write_jsonl(path, random.Random(0).sample(rows, min(count, len(rows))))
        return str(path)

    def stories(self) -> str:
        """Give a few hundred stories: enough for twenty steps of any batch here."""
        path = self._work / "stories.txt"
        if not path.exists():
            path.write_text(f"\n{END_OF_TEXT}\n".join(read_texts(STORIES)[:_STORIES]))
        return str(path)

    def long_texts(self) -> str:
        """Give labelled texts of which each fills any length."""
        path = self._work / "long.jsonl"
        if not path.exists():
            rows = read_labelled(BANKING / "train.csv")
            joined = [
                Example(" ".join(row.text for row in rows[at : at + 40]), rows[at].label)
                for at in range(0, len(rows) - 40, 20)
            ]
            write_jsonl(path, joined)
        return str(path)

    def classification(self, *, batch: int, length: int, top_layers: int = 0) -> Task:
        """Give the task of telling the questions of banking77 apart.

        Not balanced: both loops draw the same examples, and the stock one knows only plain draws.
        """
        return Task(
            labels=self.labels,
            adapter=Adapter(top_layers=top_layers),
            training=Training(batch_size=batch, max_length=length, balanced=False),
        )

    @staticmethod
    def language(*, batch: int, length: int, targets: tuple[str, ...]) -> Task:
        """Give the task of modelling stories."""
        return Task(
            kind="causal-lm",
            adapter=Adapter(targets=targets),
            training=Training(batch_size=batch, max_length=length),
        )

    def _source(self, model: Model) -> Path:
        """Give the model folder, in Hugging Face format."""
        if model == "minilm":
            return base.bundled_minilm()
        folder = self._work / "sources" / model
        if folder.exists():
            return folder
        if model == "stories260k":
            return stories260k(folder)
        build = llama if model == "llama135m" else qwen2
        return build(folder, tokenizer=self._source("stories260k"))
