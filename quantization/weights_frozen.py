"""Frozen layers whose matrix is kept in few bits and multiplied in a dtype of its own.

bitsandbytes has NF4; its int8 rounds the activations too, so int8 and bf16 are here. The matrix is
made anew for each product and dies with it; for the backward pass only what is there already is
kept. Rows of int8 are scaled after the product, not before: whole numbers up to 127 are exact in
bfloat16, so such products round the activations but never the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quantization.weights_int8 import int8_rows

Form = Literal["int8", "bf16"]
_METHOD = "ffm-frozen"
_DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16}


class _Product(torch.autograd.Function):
    """``x @ (codes * scales[:, None]).T``; the gradient of x is exact but for rounding."""

    @staticmethod
    def forward(ctx: Any, x: Any, codes: Any, scales: Any, products: Any) -> Any:
        ctx.save_for_backward(codes, scales)
        ctx.products = products
        found = x.to(products) @ codes.to(products).T
        if scales is not None:
            found *= scales
        return found.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        codes, scales = ctx.saved_tensors
        scaled = outer[0] if scales is None else outer[0] * scales
        found = scaled.to(ctx.products) @ codes.to(ctx.products)
        return found.to(outer[0].dtype), None, None, None


class FrozenLinear(torch.nn.Linear):
    """A linear layer that is never trained.

    Parameters
    ----------
    codes
        The matrix, shape (outputs, inputs), in any dtype.
    scales
        Float32, shape (outputs,): what each row is multiplied by; None where codes are values.
    bias
        Parameter of shape (outputs,), or None.
    """

    scales: Any

    def __init__(self, codes: Any, scales: Any, bias: Any) -> None:
        torch.nn.Module.__init__(self)  # Linear's own would allocate a float32 matrix
        self.out_features, self.in_features = codes.shape
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = bias
        self.products = torch.float32

    def forward(self, x: Any) -> Any:
        """Apply the layer; the result has the dtype of `x`."""
        found = _Product.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.scales, self.products
        )
        return found if self.bias is None else found + self.bias.to(found.dtype)


class FrozenEmbedding(torch.nn.Embedding):
    """A table of vectors that is never trained; it gives float32."""

    scales: Any

    def __init__(self, codes: Any, scales: Any, padding_idx: int | None) -> None:
        torch.nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = codes.shape
        self.padding_idx = padding_idx
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales)

    def forward(self, ids: Any) -> Any:
        """Give the vectors of `ids`."""
        found = self.weight[ids].float()
        return found if self.scales is None else found * self.scales[ids][..., None]


def rows(layer: Any, part: slice) -> Any:
    """Give some rows of any linear layer's matrix, float32."""
    found = layer.weight[part].float()
    scales = getattr(layer, "scales", None)
    return found if scales is None else found * scales[part, None]


def register() -> None:
    """Have transformers know the format."""
    if _METHOD not in AUTO_QUANTIZER_MAPPING:
        AUTO_QUANTIZATION_CONFIG_MAPPING[_METHOD] = FrozenConfig
        AUTO_QUANTIZER_MAPPING[_METHOD] = _Loader


def shrink(model: Any, form: Form, keep: list[str]) -> None:
    """Put every matrix of `model` into `form`, in place, but for modules named in `keep`."""
    config = FrozenConfig(form=form, keep=keep)
    for owner, name, layer in list(_layers(model, keep)):
        setattr(owner, name, _frozen(layer, *_coded(layer.weight.detach(), form)))
    model.config.quantization_config = config


def set_products(model: Any, products: Any, keep: list[str]) -> None:
    """Have frozen products run in the dtype `products`; it matters to layers not NF4.

    Matrices kept in float32 are rounded for each product, where `products` is less.
    """
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            module.products = products
    if products == torch.float32:
        return
    for owner, name, layer in list(_layers(model, keep)):
        if type(layer) is torch.nn.Linear:
            frozen = _frozen(layer, layer.weight.detach(), None)
            frozen.products = products
            setattr(owner, name, frozen)


class FrozenConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What ``config.json`` says of such a base."""

    def __init__(self, form: Form, keep: list[str], **_: Any) -> None:
        self.quant_method = _METHOD
        self.form = form
        self.keep = keep


class _Loader(HfQuantizer):  # type: ignore[misc]
    """Has ``from_pretrained`` read such a base: each tensor as the file has it, mapped."""

    def is_serializable(self, safe_serialization: Any = None) -> bool:  # noqa: ARG002
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def update_expected_keys(self, model: Any, expected_keys: Any, loaded_keys: Any) -> Any:  # noqa: ARG002
        # Else every floating tensor would be cast, which copies it into memory. Called just before.
        model.config._pre_quantization_dtype = None  # noqa: SLF001
        return expected_keys

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        form = self.quantization_config.form
        for owner, name, layer in list(_layers(model, self.quantization_config.keep)):
            codes = torch.empty(layer.weight.shape, dtype=_DTYPES[form], device="meta")
            scales = torch.empty(len(codes), device="meta") if form == "int8" else None
            setattr(owner, name, _frozen(layer, codes, scales))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is not None and head.weight is table.weight:
            model.set_output_embeddings(_frozen(head, table.weight, table.scales))
        return model


def _coded(weight: Any, form: Form) -> tuple[Any, Any]:
    if form == "bf16":
        return weight.to(torch.bfloat16), None
    found = int8_rows(weight.numpy())
    return torch.from_numpy(found.codes), torch.from_numpy(found.scales)


def _frozen(layer: Any, codes: Any, scales: Any) -> Any:
    if isinstance(layer, torch.nn.Embedding):
        return FrozenEmbedding(codes, scales, layer.padding_idx)
    return FrozenLinear(codes, scales, layer.bias)


def _layers(model: Any, keep: list[str]) -> Iterator[tuple[Any, str, Any]]:
    """Give (owner, name, layer) of every linear layer and of the table of words."""
    words = model.get_input_embeddings()
    if not isinstance(words, torch.nn.Embedding):
        words = None  # what cuts a picture into patches
    for path, owner in model.named_modules():
        if not set(path.split(".")) & set(keep):
            for name, layer in owner.named_children():
                linear = isinstance(layer, torch.nn.Linear) and name not in keep
                if layer is words or linear:
                    yield owner, name, layer
