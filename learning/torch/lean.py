"""What transformers and peft compute, with less kept for the backward pass.

Only the forward methods of single modules are replaced; names, parameters and results stay.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import silu
from transformers.activations import ACT2FN


class _Factors(torch.autograd.Function):
    """``frozen + scale * x @ down.T @ up.T``: keeps x as it is, and r numbers per token."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: Any, frozen: Any, down: Any, up: Any, scale: float
    ) -> Any:
        inner = x @ down.to(x.dtype).T
        ctx.save_for_backward(x, inner, down, up)
        ctx.scale = scale
        flat = torch.addmm(
            frozen.flatten(0, -2), inner.flatten(0, -2), up.to(x.dtype).T, alpha=scale
        )
        return flat.view(frozen.shape)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        x, inner, down, up = ctx.saved_tensors
        grad = outer[0]
        flat = grad.flatten(0, -2)
        inward = (flat @ up.to(grad.dtype)).mul_(ctx.scale)
        up_grad = (flat.T @ inner.flatten(0, -2)).float().mul_(ctx.scale)
        down_grad = (inward.T @ x.flatten(0, -2)).float()
        x_grad = (inward @ down.to(grad.dtype)).view(x.shape) if ctx.needs_input_grad[0] else None
        return x_grad, grad, down_grad, up_grad, None


class _Gated(torch.autograd.Function):
    """``silu(gate) * up``: keeps its two inputs and not the third tensor between them."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        gate, up = ctx.saved_tensors
        (grad,) = outer
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


def make_lean(model: Any) -> None:
    """Replace the forward methods of LoRA layers and gated feed-forward blocks in a PEFT model."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.forward = partial(_adapted, module)
        elif hasattr(module, "gate_proj") and type(module.act_fn) is type(ACT2FN["silu"]):
            module.forward = partial(_gated, module)


def pool_early(network: Any) -> None:
    """Have BERT's last layer compute the first place alone: a classifier's pooler sees no other."""
    last = network.encoder.layer[-1]
    last.forward = partial(_first_place, last)


def narrow_between(model: Any, dtype: Any) -> None:
    """Have the layers of a Llama compute in `dtype` between the norms and the residual stream.

    The stream and the norms stay float32: sums of many layers lose nothing.
    """
    for module in model.modules():
        for name in ("input_layernorm", "post_attention_layernorm"):
            if hasattr(module, name):
                getattr(module, name).register_forward_hook(lambda _, __, out: out.to(dtype))
        if hasattr(module, "rotary_emb"):
            module.rotary_emb.register_forward_hook(
                lambda _, __, out: tuple(part.to(dtype) for part in out)
            )


def _adapted(layer: Any, x: Any) -> Any:
    (name,) = layer.active_adapters
    return _Factors.apply(  # type: ignore[no-untyped-call]
        x,
        layer.base_layer(x),
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )


def _first_place(layer: Any, x: Any, mask: Any = None, *_: Any, **__: Any) -> Any:
    first = x[:, :1]
    mask = None if mask is None else mask[:, :, :1]
    mixed = layer.attention.self(first, attention_mask=mask, encoder_hidden_states=x)[0]
    return (layer.feed_forward_chunk(layer.attention.output(mixed, first)),)


def _gated(block: Any, x: Any) -> Any:
    return block.down_proj(
        _Gated.apply(block.gate_proj(x), block.up_proj(x))  # type: ignore[no-untyped-call]
    )
