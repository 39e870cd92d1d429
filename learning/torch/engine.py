"""The torch engine as an `Engine`: loss, gradients and scores of the adapter on its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid
from ffm_common.files import make_folder
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array, Tensors, spec_digest
from learning import base
from learning.engine import IGNORED, Batch, Border, Score, score_of
from learning.products import fastest, torch_dtype
from learning.torch.memory import Trimmer
from profiles.calibration import Products

if TYPE_CHECKING:  # it imports torch
    from learning.torch.cut import Cut
    from learning.torch.full import Differences
    from learning.torch.pixels import Pixels

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
    products
        Dtype of the products with frozen matrices; ``auto`` times one and takes bfloat16 where it
        is clearly faster. bfloat16 rounds each product to 8 bits, relative to its own size and
        without bias: far less than NF4 has rounded the weights, and than one batch differs from the
        next. Norms, the residual stream, the adapter, its gradients and its steps stay float32.
        Where all is trained, all is float32.

    Raises
    ------
    AdapterInvalid
        The base has no layer of a name that the adapter asks for.
    ConfigInvalid
        The task's texts are longer than the base can take.
    ModelUnsupported
        The base cannot do the task, or keeps no weights that can be trained.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        checkpointing: bool = False,
        products: Literal["fp32", "bf16", "auto"] = "fp32",
    ) -> None:
        from learning.torch import lean
        from quantization.weights import use_products

        self._folder = folder
        self._task = task
        self._trimmer = Trimmer()
        full = task.adapter.kind == "full"
        if full:
            products = "fp32"
        self.products: Products = fastest() if products == "auto" else products
        self._dtype = torch_dtype(self.products)
        model = base.load_model(folder, task)
        self._cut = _cut(model, task.adapter.top_layers)
        use_products(model, self._dtype, keep=[*base.UNQUANTIZED, base.MASKED_HEAD])
        _start_head(model, task)
        self._differences = _differences(model, self._cut) if full else None
        self.model = model if full else _attach(model, folder, task, self._cut)
        # What transformers knows: PEFT's own module has that inside.
        self._network = model if full else self.model.get_base_model()
        lean.make_lean(self.model)
        if task.kind == "classification":  # of text, which BERT's pooler reads
            lean.pool_early(model.base_model)
        if self.products == "bf16":
            lean.narrow_between(self.model, self._dtype)
        self.model.train()  # below PEFT's own module, what was loaded is in inference mode
        self.set_checkpointing(on=checkpointing)
        self._parameters: Mapping[str, Any] = (
            {
                _state_name(name): parameter
                for name, parameter in sorted(self.model.named_parameters())
                if parameter.requires_grad
            }
            if self._differences is None
            else self._differences.parameters
        )
        self._spec = spec_digest(self._parameters)
        self._pictures = _pictures(folder, task)

    @property
    def vocabulary(self) -> int:
        """How many tokens the base knows."""
        return int(self._network.config.vocab_size)

    @property
    def border(self) -> Border | None:
        """Where the adapter begins; None if it is on all layers, or below it are pictures."""
        if self._cut is None or self._pictures is not None:
            return None
        width = int(self._network.config.hidden_size)
        return Border(base.describe(self._folder).digest, self._cut.layers, width)

    def set_checkpointing(self, *, on: bool) -> None:
        """Choose whether activations are computed again in the backward pass."""
        inner = self._network
        if on:
            inner.gradient_checkpointing_enable({"use_reentrant": False})
            if self._cut is not None:
                self._cut.never_checkpoint_below()
        else:
            inner.gradient_checkpointing_disable()

    def read(self) -> dict[str, Array]:
        """Copy the adapter's tensors out, in canonical order."""
        if self._differences is not None:
            return {name: array.copy() for name, array in self._differences.held.items()}
        return {
            name: self._parameters[name].detach().numpy().copy()
            for name in sorted(self._parameters)
        }

    def write(self, tensors: Tensors) -> None:
        """Put tensors in; AdapterInvalid if names or shapes differ."""
        import torch

        if spec_digest(tensors) != self._spec:
            raise AdapterInvalid("the tensors do not fit this base and adapter")
        if self._differences is not None:
            self._differences.write(tensors)
            return
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """Give the batch's mean cross-entropy and its gradient by tensor."""
        import torch

        self._set_training(on=True)
        targets = torch.from_numpy(batch.targets)
        loss: Any
        if self._task.classifies:
            loss = torch.nn.functional.cross_entropy(self._scores(batch), targets)
        else:
            loss = self._language_loss(batch)
        loss.backward()
        self._trimmer.after_batch()
        found = {name: parameter.grad.numpy() for name, parameter in self._parameters.items()}
        self.model.zero_grad(set_to_none=True)
        return float(loss.item()), found

    def score(self, batch: Batch) -> Score:
        """Measure the adapter on a batch, in inference mode."""
        import torch

        if self._task.classifies:
            return score_of(self._answers(batch), batch.targets)
        from learning.torch.loss import chunked_score

        self._set_training(on=False)
        with torch.inference_mode():
            return chunked_score(*self._scored(batch), self._dtype)

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give a classifier's scores of each label, shape (batch, labels), in inference mode."""
        return self._answers(Batch(ids, mask, np.zeros(len(ids), dtype=np.int64)))

    def prefix(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        """Give the hidden states at the border, float32, shape (batch, length, hidden).

        They do not depend on the adapter, and a `Batch` that brings them is computed from there.
        """
        import torch

        if self._cut is None:
            raise ValueError("this adapter leaves no layer below it")
        self._set_training(on=False)
        with torch.inference_mode():
            hidden: Array = self._cut.hidden_below(
                torch.from_numpy(ids), torch.from_numpy(mask)
            ).numpy()
        return hidden

    def _set_training(self, *, on: bool) -> None:
        """Change the mode only where it is another: the walk over all modules takes 2 ms."""
        if self.model.training is not on:
            self.model.train(on)

    def save_config(self, folder: Path) -> None:
        """Write ``adapter_config.json`` as PEFT does; a full adapter is none of PEFT's kinds."""
        if self._differences is not None:
            make_folder(folder)
            return
        config = self.model.peft_config["default"]
        config.base_model_name_or_path = str(self._folder.resolve())
        config.inference_mode = True
        config.save_pretrained(str(make_folder(folder)))

    def _answers(self, batch: Batch) -> Array:
        import torch

        self._set_training(on=False)
        with torch.inference_mode():
            scores: Array = self._scores(batch).numpy()
        return scores

    def _scores(self, batch: Batch) -> Any:
        with self._entering(batch) as inputs:
            return self.model(**inputs).logits

    @contextmanager
    def _entering(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """Give what the network is to be called with: at its bottom, or at the border."""
        import torch

        if self._pictures is not None:
            yield {"pixel_values": self._pictures.values(batch.ids)}
            return
        mask = torch.from_numpy(batch.mask)
        if batch.hidden is None:
            yield {"input_ids": torch.from_numpy(batch.ids), "attention_mask": mask}
        elif self._cut is None:
            raise ValueError("this adapter leaves no layer below it")
        else:
            with self._cut.above():
                yield {"inputs_embeds": torch.from_numpy(batch.hidden), "attention_mask": mask}

    def _language_loss(self, batch: Batch) -> Any:
        from learning.torch.loss import chunked_cross_entropy

        return chunked_cross_entropy(*self._scored(batch), self._dtype)

    def _scored(self, batch: Batch) -> tuple[Any, Any, Any]:
        """Give hidden states (targets, hidden) of scored positions, the output layer, targets."""
        import torch

        hidden = self._hidden(batch)
        targets = torch.from_numpy(batch.targets)
        wanted = targets != IGNORED
        inner = self._network
        hidden = hidden[wanted]
        if self._task.kind == "masked-lm":
            hidden = inner.cls.predictions.transform(hidden)
        return hidden, inner.get_output_embeddings(), targets[wanted]

    def _hidden(self, batch: Batch) -> Any:
        """Run the transformer without its head; a soft prompt goes before the embedded tokens."""
        import torch

        inner = self._network
        if self._task.adapter.kind != "prompt":
            with self._entering(batch) as inputs:
                return inner.base_model(**inputs, use_cache=False)[0]
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
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


def _cut(model: Any, top_layers: int) -> Cut | None:
    """Cut the base below the adapter, if that leaves anything there."""
    from learning.torch.cut import Cut

    below = int(model.config.num_hidden_layers) - top_layers
    return Cut(model.base_model, below) if top_layers and below > 0 else None


def _start_head(model: Any, task: Task) -> None:
    """Set a head that the base lacks; all that is drawn after it follows the seed, too."""
    import torch

    torch.manual_seed(task.seed)
    if task.classifies and task.adapter.kind == "full":
        # Not random: it is the same everywhere, so that differences to it mean the same.
        for parameter in model.classifier.parameters():
            torch.nn.init.zeros_(parameter)
    elif task.classifies:
        # The head too starts from the seed, not from whatever was drawn while loading.
        model.classifier.reset_parameters()
    elif task.kind == "masked-lm":
        # As it is: a random matrix would first have to find the way back to the words' vectors.
        torch.nn.init.eye_(model.cls.predictions.transform.dense.weight)
        torch.nn.init.zeros_(model.cls.predictions.transform.dense.bias)


def _pictures(folder: Path, task: Task) -> Pixels | None:
    if task.kind != "image-classification":
        return None
    from learning.torch.pixels import Pixels

    return Pixels(folder)


def _differences(model: Any, cut: Cut | None) -> Differences:
    from learning.torch.full import Differences

    return Differences(model, cut)


def _attach(model: Any, folder: Path, task: Task, cut: Cut | None) -> Any:
    import peft

    from learning.torch import prompt

    try:
        found = peft.get_peft_model(model, _peft_config(task.kind, task.adapter, cut))
    except ValueError as error:
        raise AdapterInvalid(
            f"no {task.adapter.kind} on {', '.join(task.adapter.targets)} of this base: {error}",
            remedy="name linear layers of this base in `targets` of [adapter]",
        ) from error
    if task.adapter.kind == "prompt":
        weight = found.prompt_encoder["default"].embedding.weight
        words = model.get_input_embeddings()
        weight.data.copy_(prompt.start(folder, words, len(weight), task.seed))
    return found


def _peft_config(kind: str, adapter: Adapter, cut: Cut | None) -> Any:
    import peft

    # PEFT has no name for masked language models and for pictures, and needs none but their heads'.
    heads = {"masked-lm": ["transform"], "image-classification": ["classifier"]}
    types = {"classification": peft.TaskType.SEQ_CLS, "causal-lm": peft.TaskType.CAUSAL_LM}
    type_ = types.get(kind)
    if adapter.kind == "lora":
        return peft.LoraConfig(
            task_type=type_,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=0.0,
            target_modules=list(adapter.targets),
            exclude_modules=cut.below() if cut is not None else None,
            modules_to_save=heads.get(kind),
        )
    return peft.PromptTuningConfig(task_type=type_, num_virtual_tokens=adapter.prompt_tokens)


def _state_name(parameter: str) -> str:
    """Give the name that PEFT saves a parameter under."""
    if parameter == _PROMPT:
        return "prompt_embeddings"
    return parameter.replace(".modules_to_save.default.", ".").replace(".default.", ".")
