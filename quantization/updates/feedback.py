"""Error feedback: what a codec rounded away from one update is added to the next.

Seide et al. 2014; Karimireddy et al. 2019. It is what makes codecs below one bit lose time instead
of accuracy. The residual is the device's own and never travels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ffm_common.errors import AdapterInvalid
from ffm_common.tensors import Array, Tensors, add, load, save, spec_digest, subtract

log = logging.getLogger(__name__)

DECAY = 0.9
"""What is left of a residual for each version that the device missed: it points at old errors."""

CAP = 4.0
"""Largest norm of a tensor's residual, as a multiple of the norm of its new update.

A guard against stale residuals and shrinking updates, not a brake: where updates resemble each
other the residual settles at 2 to 3 times the update at 0.5 bit, and a cap of 1 loses a tenth or
more of what was to be sent, for good.
"""


class ErrorFeedback:
    """The residual in one safetensors file.

    Parameters
    ----------
    path
        Where it is kept; need not exist yet. A file that is broken or of another adapter counts as
        none: the residual is an improvement, never a reason to stop.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def compensate(self, update: Tensors, version: int) -> dict[str, Array]:
        """Give what should be sent: the update to `version` plus the residual of earlier ones.

        A residual of the same or a later version is left out: this update was sent before.
        """
        kept = self._load(update)
        if kept is None or kept[1] >= version:
            return dict(update)
        residual, since = kept
        fade = DECAY ** (version - since - 1)
        return add(update, {name: _faded(residual[name], update[name], fade) for name in update})

    def keep(self, wanted: Tensors, sent: Tensors, version: int) -> None:
        """Write down what `sent`, the decoded update, lacks of what `compensate` gave.

        Raises
        ------
        PathUnwritable
            The file cannot be written.
        """
        save(self._path, subtract(wanted, sent), metadata={"version": str(version)})

    def _load(self, update: Tensors) -> tuple[dict[str, Array], int] | None:
        from safetensors import SafetensorError, safe_open

        if not self._path.exists():
            return None
        try:
            residual = load(self._path)
            with safe_open(self._path, framework="numpy") as file:
                version = int(file.metadata()["version"])
        except (AdapterInvalid, OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            log.warning("residual of earlier updates is lost: %s", error)
            return None
        if not all(np.isfinite(array).all() for array in residual.values()):
            log.warning("residual of earlier updates is lost: it holds NaN or infinity")
            return None
        if spec_digest(residual) != spec_digest(update):
            log.info("residual of earlier updates is of another adapter and is left out")
            return None
        return residual, version


def _faded(residual: Array, update: Array, fade: float) -> Array:
    """Shrink a residual by age, and to no more than `CAP` times the update beside it."""
    norm = fade * float(np.linalg.norm(residual.astype(np.float64)))
    most = CAP * float(np.linalg.norm(update.astype(np.float64)))
    share = fade if norm <= most else fade * most / norm
    return residual * np.float32(share)
