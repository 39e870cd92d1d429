"""The torch engine: a quantized base by transformers and bitsandbytes, an adapter by peft."""

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
from learning.engine import Batch

_PROMPT = "prompt_encoder.default.embedding.weight"


class TorchEngine:
    """A sequence classifier with a fresh adapter; the same seed gives the same start.

    Parameters
    ----------
    folder
        The prepared base.
    task
        Its labels, adapter and seed matter here.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder = folder
        self.model = _attach(base.load_classifier(folder, len(task.labels)), task)
        self._parameters: Mapping[str, Any] = {
            _state_name(name): parameter
            for name, parameter in sorted(self.model.named_parameters())
            if parameter.requires_grad
        }

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
        loss = self.model(
            input_ids=torch.from_numpy(batch.ids),
            attention_mask=torch.from_numpy(batch.mask),
            labels=torch.from_numpy(batch.targets),
        ).loss
        loss.backward()
        return float(loss.item()), {
            name: parameter.grad.numpy() for name, parameter in self._parameters.items()
        }

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give the scores of each label, shape (batch, labels), in inference mode."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            scores: Array = self.model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            ).logits.numpy()
        return scores

    def save_config(self, folder: Path) -> None:
        """Write ``adapter_config.json`` as PEFT does."""
        config = self.model.peft_config["default"]
        config.base_model_name_or_path = str(self._folder.resolve())
        config.inference_mode = True
        config.save_pretrained(str(make_folder(folder)))


def _attach(model: Any, task: Task) -> Any:
    import peft
    import torch

    torch.manual_seed(task.seed)
    # The head too starts from the seed, not from whatever was drawn while loading.
    model.classifier.reset_parameters()
    return peft.get_peft_model(model, _peft_config(task.adapter))


def _peft_config(adapter: Adapter) -> Any:
    import peft

    if adapter.kind == "lora":
        return peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=0.0,
            target_modules=list(adapter.targets),
        )
    return peft.PromptTuningConfig(
        task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=adapter.prompt_tokens
    )


def _state_name(parameter: str) -> str:
    """Give the name that PEFT saves a parameter under."""
    if parameter == _PROMPT:
        return "prompt_embeddings"
    return parameter.replace(".modules_to_save.default.", ".").replace(".default.", ".")
