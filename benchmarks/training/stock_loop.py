"""The peer: peft and bitsandbytes as everyone runs them, the loop of a stock Trainer.

Nothing of this project computes here. The model's own `labels=` gives the loss from the scores of
all positions, AdamW is torch's, batches are padded as a tokenizer pads them, and the process runs
with glibc's allocator. Gradients are not clipped and dropout is off, as in our loop, so that both
walk the same way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from benchmarks.training.loops import ADAPTER, LoopResult, memory_by_kind, read, tokens_of
from ffm_common import tensors as shape
from ffm_common.task import Task
from learning import process
from learning.bench.recorder import Recorder
from learning.texts.batches import Shard

_IGNORED = -100


class StockJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to train.

    Parameters
    ----------
    folder
        Model folder in Hugging Face format, quantized by bitsandbytes already.
    start
        The adapter's start, so that both loops begin at one place.
    padding
        Pad each batch to the longest of it, or every text to the task's `max_length`.
    checkpointing
        transformers' own gradient checkpointing.
    """

    folder: str
    task: Task
    texts: str
    steps: int
    threads: int
    start: str
    seed: int = 0
    padding: Literal["longest", "max_length"] = "max_length"
    checkpointing: bool = False


def train(job: StockJob, folder: Path, report: process.Report) -> LoopResult:
    """Do the job."""
    with Recorder() as recorder:
        import peft
        import torch
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        torch.set_num_threads(job.threads)
        model = peft.get_peft_model(_model(job), _lora(job.task))
        missing = peft.set_peft_model_state_dict(model, load_file(job.start)).unexpected_keys
        if missing:
            raise ValueError(f"the start does not fit: {missing}")
        if job.checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        texts = read(job.texts, job.task, AutoTokenizer.from_pretrained(job.folder))
        optimizer = torch.optim.AdamW(_groups(model, job.task), weight_decay=0.0)
        model.train()
        losses = []
        recorder.begin()
        for step in range(job.steps):
            chosen = texts.draw(job.task.training.batch_size, job.seed, step)
            loss = model(**_padded(texts, chosen, job)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.item()))
            del loss
            recorder.step()
            report(step + 1, job.steps, losses[-1])
        cost = recorder.cost()
    memory = memory_by_kind()
    found = peft.get_peft_model_state_dict(model)
    shape.save(folder / ADAPTER, {name: found[name].numpy() for name in sorted(found)})
    return LoopResult(
        losses=tuple(losses),
        tokens=tokens_of(texts, job.task, job.seed, job.steps),
        cost=cost,
        torch_loaded=True,
        memory=memory,
    )


def _model(job: StockJob) -> Any:
    """Load the quantized model, with dropout off."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    config = AutoConfig.from_pretrained(job.folder)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    kind: Any = AutoModelForCausalLM
    if job.task.kind == "classification":
        config.num_labels = len(job.task.labels)
        kind = AutoModelForSequenceClassification
    quantized = "quantization_config" in json.loads(Path(job.folder, "config.json").read_bytes())
    where = {"device_map": {"": "cpu"}} if quantized else {}
    return kind.from_pretrained(job.folder, config=config, dtype=torch.float32, **where)


def _lora(task: Task) -> Any:
    import peft

    classifies = task.kind == "classification"
    return peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS if classifies else peft.TaskType.CAUSAL_LM,
        r=task.adapter.rank,
        lora_alpha=task.adapter.alpha,
        lora_dropout=0.0,
        target_modules=list(task.adapter.targets),
    )


def _groups(model: Any, task: Task) -> list[dict[str, Any]]:
    """Give the trained parameters with their rates: a classifier's head has its own."""
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    training = task.training
    return [
        {
            "params": [each for name, each in trained if (".classifier." in name) == head],
            "lr": training.head_learning_rate if head else training.learning_rate,
        }
        for head in (False, True)
    ]


def _padded(texts: Shard, chosen: list[int], job: StockJob) -> dict[str, Any]:
    """Give a batch as a stock collator does."""
    import torch

    longest = max(len(texts.ids[place]) for place in chosen)
    length = longest if job.padding == "longest" else job.task.training.max_length
    ids = np.full((len(chosen), length), texts.pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, place in enumerate(chosen):
        ids[row, : len(texts.ids[place])] = texts.ids[place]
        mask[row, : len(texts.ids[place])] = 1
    if texts.targets is None:
        targets = np.where(mask == 1, ids, _IGNORED)
    else:
        targets = texts.targets[chosen].astype(np.int64)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(targets),
    }


if __name__ == "__main__":
    sys.exit(process.main(StockJob, train))
