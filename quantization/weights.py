"""Base weights in few bits, whatever the format; all of them are read through memory-mapped files.

NF4 is bitsandbytes' (QLoRA, Dettmers et al. 2023): blocks of 64 values share a scale, and the
scales are quantized again (double quantization). int8 and bf16 are in `quantization.weights_frozen`
and keep the table of words in few bits too, which in a small model is half of all. The products of
any format run in a dtype of their own: `use_products`.
"""

from __future__ import annotations

from typing import Any


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without torch's compiler.

    It has four functions compiled as it is imported, and takes them as they are where that fails,
    as on a board without a C++ compiler. Loading torch's costs a second and 40 MB that a worker
    would keep, and nothing of NF4 on a processor runs through these four.
    """
    import torch

    compiler = torch.compile
    torch.compile = _refuse
    try:
        import bitsandbytes
    finally:
        torch.compile = compiler
    return bitsandbytes


def _refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("nothing is compiled here")


def nf4_config(keep: list[str]) -> Any:
    """Give the transformers quantization config for NF4, leaving modules named in `keep` alone."""
    import torch
    from transformers import BitsAndBytesConfig

    import_bitsandbytes()  # or transformers does, its way
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=keep,
    )


def keep_training_layout(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit layers for inference on CPUs with AVX512-BF16.

    bitsandbytes 0.49 to 0.50.2 repacks every ``Linear4bit`` at the first forward pass in eval mode
    and never goes back; LoRA gradients of later training steps are then silently wrong (median
    cosine 0.1 with the right ones). The flag below is what its forward pass looks at.
    """
    bnb = import_bitsandbytes()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def shrink(model: Any, weights: str, keep: list[str]) -> None:
    """Put the matrices of a model into ``int8`` or ``bf16``, but for modules named in `keep`."""
    from quantization import weights_frozen

    weights_frozen.shrink(model, "int8" if weights == "int8" else "bf16", keep)


def loading_options(weights: str) -> dict[str, Any]:
    """Give what ``from_pretrained`` asks for with this format, and have it know the format."""
    if weights == "nf4":
        import_bitsandbytes()  # or transformers does, its way
        return {"device_map": {"": "cpu"}}
    if weights in {"int8", "bf16"}:
        from quantization import weights_frozen

        weights_frozen.register()
    return {}


def leave_alone(config: dict[str, Any], module: str) -> None:
    """Say in a quantized base's configuration that it holds no quantized module of this name."""
    config["llm_int8_skip_modules" if "llm_int8_skip_modules" in config else "keep"].append(module)


def use_products(model: Any, products: Any, keep: list[str]) -> None:
    """Have products of frozen matrices run in the torch dtype `products`.

    Matrices that are kept in float32 are rounded for each product, but for modules named in `keep`.
    """
    from quantization.weights_frozen import set_products

    bnb = import_bitsandbytes()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.compute_dtype = products
    set_products(model, products, keep)
