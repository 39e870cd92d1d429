"""The torch engine as an `Engine`: loss, gradients and scores of the adapter on its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid
from ffm_common.files import make_folder
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, Tensors, spec_digest
from learning import base
from learning.engine import IGNORED, Batch, Score, score_of

_PROMPT = "prompt_encoder.default.embedding.weight"


class TorchEngine:
    """A base with a fresh adapter; the same seed gives the same start.

    Parameters
    ----------
    folder
        The prepared base.
    task
        Its kind, labels, adapter and seed matter here.
    checkpointing
        Keep one hidden state per layer and compute the rest again in the backward pass.

    Raises
    ------
    AdapterInvalid
        The base has no layer of a name that the adapter asks for.
    """

    def __init__(self, folder: Path, task: Task, *, checkpointing: bool = False) -> None:
        self._folder = folder
        self._task = task
        self.model = _attach(base.load_model(folder, task), task)
        self.set_checkpointing(on=checkpointing)
        self._parameters: Mapping[str, Any] = {
            _state_name(name): parameter
            for name, parameter in sorted(self.model.named_parameters())
            if parameter.requires_grad
        }

    @property
    def vocabulary(self) -> int:
        """How many tokens the base knows."""
        return int(self.model.get_base_model().config.vocab_size)

    def set_checkpointing(self, *, on: bool) -> None:
        """Choose whether activations are computed again in the backward pass."""
        inner = self.model.get_base_model()
        if on:
            inner.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            inner.gradient_checkpointing_disable()

    def read(self) -> dict[str, Array]:
        """Copy the adapter's tensors out, in canonical order."""
        return {
            name: self._parameters[name].detach().numpy().copy()
            for name in sorted(self._parameters)
        }

    def write(self, tensors: Tensors) -> None:
        """Put tensors in; AdapterInvalid if names or shapes differ."""
        import torch

        if spec_digest(tensors) != spec_digest(self.read()):
            raise AdapterInvalid("the tensors do not fit this base and adapter")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Give the batch's mean cross-entropy and its gradient by tensor."""
        import torch

        self.model.train()
        self.model.zero_grad(set_to_none=True)
        targets = torch.from_numpy(batch.targets)
        loss: Any
        if self._task.kind == "classification":
            loss = torch.nn.functional.cross_entropy(self._scores(batch.ids, batch.mask), targets)
        else:
            loss = self._language_loss(batch)
        loss.backward()
        return float(loss.item()), {
            name: parameter.grad.numpy() for name, parameter in self._parameters.items()
        }

    def score(self, batch: Batch) -> Score:
        """Measure the adapter on a batch, in inference mode."""
        import torch

        if self._task.kind == "classification":
            return score_of(self.logits(batch.ids, batch.mask), batch.targets)
        from learning.torch.loss import chunked_score

        self.model.eval()
        with torch.inference_mode():
            return chunked_score(*self._scored(batch))

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give a classifier's scores of each label, shape (batch, labels), in inference mode."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            scores: Array = self._scores(ids, mask).numpy()
        return scores

    def save_config(self, folder: Path) -> None:
        """Write ``adapter_config.json`` as PEFT does."""
        config = self.model.peft_config["default"]
        config.base_model_name_or_path = str(self._folder.resolve())
        config.inference_mode = True
        config.save_pretrained(str(make_folder(folder)))

    def _scores(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Any:
        import torch

        return self.model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        ).logits

    def _language_loss(self, batch: Batch) -> Any:
        from learning.torch.loss import chunked_cross_entropy

        return chunked_cross_entropy(*self._scored(batch))

    def _scored(self, batch: Batch) -> tuple[Any, Any, Any]:
        """Give hidden states (targets, hidden) of scored positions, the output matrix, targets."""
        import torch

        hidden = self._hidden(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
        targets = torch.from_numpy(batch.targets)
        wanted = targets != IGNORED
        head = self.model.get_base_model().get_output_embeddings()
        return hidden[wanted], head.weight, targets[wanted]

    def _hidden(self, ids: Any, mask: Any) -> Any:
        """Run the transformer without its head; a soft prompt goes before the embedded tokens."""
        import torch

        inner = self.model.get_base_model()
        if self._task.adapter.kind == "lora":
            return inner.model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        prompt = self.model.get_prompt(batch_size=len(ids))
        embedded = torch.cat([prompt, inner.get_input_embeddings()(ids)], dim=1)
        ones = torch.ones(len(ids), prompt.shape[1], dtype=mask.dtype)
        hidden = inner.model(
            inputs_embeds=embedded, attention_mask=torch.cat([ones, mask], dim=1), use_cache=False
        )[0]
        return hidden[:, prompt.shape[1] :]


def use_threads(count: int) -> None:
    """Have torch compute with `count` threads in this process."""
    import torch

    torch.set_num_threads(count)


def _attach(model: Any, task: Task) -> Any:
    import peft
    import torch

    torch.manual_seed(task.seed)
    if task.kind == "classification":
        # The head too starts from the seed, not from whatever was drawn while loading.
        model.classifier.reset_parameters()
    try:
        return peft.get_peft_model(model, _peft_config(task.kind, task.adapter))
    except ValueError as error:
        raise AdapterInvalid(
            f"no {task.adapter.kind} on {', '.join(task.adapter.targets)} of this base: {error}",
            remedy="name linear layers of this base in `targets` of [adapter]",
        ) from error


def _peft_config(kind: str, adapter: Adapter) -> Any:
    import peft

    type_ = peft.TaskType.SEQ_CLS if kind == "classification" else peft.TaskType.CAUSAL_LM
    if adapter.kind == "lora":
        return peft.LoraConfig(
            task_type=type_,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=0.0,
            target_modules=list(adapter.targets),
        )
    return peft.PromptTuningConfig(task_type=type_, num_virtual_tokens=adapter.prompt_tokens)


def _state_name(parameter: str) -> str:
    """Give the name that PEFT saves a parameter under."""
    if parameter == _PROMPT:
        return "prompt_embeddings"
    return parameter.replace(".modules_to_save.default.", ".").replace(".default.", ".")
