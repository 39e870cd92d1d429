"""Server optimizers: how far a version goes towards, or beyond, what its agents hold on average.

The mean less the version is a pseudo-gradient (Reddi et al., "Adaptive federated optimization",
2021). Moments are kept element by element, so aggregation leaves factors where they were as far as
it can (`hub.aggregation.products.split`). They belong to the version that they led to and are kept
beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.tensors import Array, Tensors, add, subtract
from hub.config import OptimizerName, Server

log = logging.getLogger("ffm.hub")

_FILE = "optimizer.safetensors"
_VELOCITY, _MEAN, _SQUARE = "velocity", "mean", "square"
_KINDS: Mapping[OptimizerName, tuple[str, ...]] = {
    "fedavg": (),
    "nesterov": (_VELOCITY,),
    "fedadam": (_MEAN, _SQUARE),
    "fedyogi": (_MEAN, _SQUARE),
}

Moments = dict[str, dict[str, Array]]


def step(
    server: Server, version: Tensors, mean: Tensors, moments: Moments
) -> tuple[dict[str, Array], Moments]:
    """Give the next version and its moments.

    Parameters
    ----------
    version
        What the agents started from.
    mean
        What aggregation made of what they hold now.
    moments
        Of `version`: `load_moments`.

    Notes
    -----
    With d = mean - version: Nesterov's outer momentum (DiLoCo, Douillard et al. 2023) is
    ``v = m v + d; w += rate (d + m v)``; FedAdam and FedYogi, without correction of bias as in
    their paper, are ``m = b1 m + (1 - b1) d; w += rate m / (sqrt(s) + tau)`` with
    ``s = b2 s + (1 - b2) d^2`` and ``s -= (1 - b2) d^2 sign(s - d^2)``.
    """
    if server.optimizer == "fedavg":
        return dict(mean), {}
    change = subtract(mean, version)
    rate = np.float32(server.rate)
    momentum = np.float32(server.momentum)
    if server.optimizer == "nesterov":
        velocity = {
            name: momentum * array + change[name] for name, array in moments[_VELOCITY].items()
        }
        steps = {name: rate * (change[name] + momentum * velocity[name]) for name in change}
        return add(version, steps), {_VELOCITY: velocity}
    made, means, squares = dict(version), {}, {}
    for name, array in change.items():
        first = _blend(moments[_MEAN][name], array, server.beta_1)
        square, energy = moments[_SQUARE][name], array * array
        if server.optimizer == "fedadam":
            square = _blend(square, energy, server.beta_2)
        else:
            square = square - np.float32(1 - server.beta_2) * energy * np.sign(square - energy)
        root: Array = np.sqrt(square)
        root += np.float32(server.tau)
        made[name] = version[name] + rate * first / root
        means[name], squares[name] = first, square
    return made, {_MEAN: means, _SQUARE: squares}


def load_moments(folder: Path | None, server: Server, version: Tensors) -> Moments:
    """Read the moments that a version left in a folder, or give the first ones.

    A file that is broken is no reason to stop: momentum is an improvement, and grows anew.
    """
    moments = _first_moments(server, version)
    if not moments or folder is None or not (path := folder / _FILE).exists():
        return moments
    try:
        found = shape.load(path)
    except AdapterInvalid as error:
        log.warning("the server optimizer starts anew: %s", error.message)
        return moments
    if shape.spec_digest(found) != shape.spec_digest(_flat(moments)):
        log.info("the server optimizer starts anew: what is kept is of another one")
        return moments
    return {
        kind: {name: found[f"{kind}/{name}"] for name in tensors}
        for kind, tensors in moments.items()
    }


def save_moments(folder: Path, moments: Moments) -> None:
    """Write the moments into a new version's folder.

    Raises
    ------
    PathUnwritable
        The disk does not take them.
    """
    if moments:
        shape.save(folder / _FILE, _flat(moments))


def _blend(old: Array, new: Array, keep: float) -> Array:
    """Give ``keep * old + (1 - keep) * new``."""
    return np.float32(keep) * old + np.float32(1 - keep) * new


def _first_moments(server: Server, version: Tensors) -> Moments:
    """Give the moments before the first step: zero, squares ``tau**2`` (Reddi et al. 2021)."""
    first = {_SQUARE: server.tau**2}
    return {
        kind: {
            name: np.full_like(array, first.get(kind, 0.0), np.float32)
            for name, array in version.items()
        }
        for kind in _KINDS[server.optimizer]
    }


def _flat(moments: Moments) -> dict[str, Array]:
    return {
        f"{kind}/{name}": array
        for kind, tensors in moments.items()
        for name, array in tensors.items()
    }
