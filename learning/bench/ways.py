"""The ways to train that are compared: an engine with its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ffm_common.task import Task
from learning import engines
from profiles.calibration import Products

if TYPE_CHECKING:
    from learning.engine import Engine


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is set; which engine, the folder decides that it trains from.

    Parameters
    ----------
    checkpointing
        Compute activations again in the backward pass instead of keeping them.
    products
        Format that the torch engine multiplies matrices in.
    """

    checkpointing: bool = False
    products: Products = "fp32"

    def name(self, source: engines.Source) -> str:
        """Give a few words for a table."""
        products = f" {self.products} products," if source.engine == "torch" else ""
        kept = "recompute" if self.checkpointing else "keep"
        return f"{source.engine} {source.weights},{products} {kept}"


def open_engine(folder: Path, task: Task, way: Way, threads: int) -> Engine:
    """Open what `folder` holds, set as `way` says.

    Raises
    ------
    ModelMissing, ModelUnsupported, AdapterInvalid
        See `learning.engines.open_engine`.
    """
    return engines.open_engine(
        folder, task, checkpointing=way.checkpointing, threads=threads, products=way.products
    )
