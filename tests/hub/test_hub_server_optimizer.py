from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.tensors import Array, content_digest
from hub.aggregation.server_optimizer import load_moments, save_moments, step
from hub.config import OptimizerName, Server

NAMES: tuple[OptimizerName, ...] = ("fedavg", "nesterov", "fedadam", "fedyogi")


def tensors(seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        "a": draw.standard_normal((4, 6)).astype(np.float32),
        "b": draw.standard_normal(5).astype(np.float32),
    }


def run(server: Server, means: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Give the versions that some means lead to, from zero."""
    version = {name: np.zeros_like(array) for name, array in means[0].items()}
    moments = load_moments(None, server, version)
    versions = []
    for mean in means:
        version, moments = step(server, version, mean, moments)
        versions.append(version)
    return versions


def test_fedavg_makes_the_mean_the_next_version_to_the_last_bit() -> None:
    mean = tensors(1)
    made, moments = step(Server(optimizer="fedavg"), tensors(0), mean, {})
    assert content_digest(made) == content_digest(mean)
    assert moments == {}


def nesterov(version: float, mean: float, moments: list[float], server: Server) -> float:
    """Step by the formula of torch's SGD with nesterov=True, the gradient being w - mean."""
    gradient = version - mean
    moments[0] = server.momentum * moments[0] + gradient
    return version - server.rate * (gradient + server.momentum * moments[0])


def fedadam(version: float, mean: float, moments: list[float], server: Server) -> float:
    change = mean - version
    moments[0] = server.beta_1 * moments[0] + (1 - server.beta_1) * change
    moments[1] = server.beta_2 * moments[1] + (1 - server.beta_2) * change**2
    return version + server.rate * moments[0] / (math.sqrt(moments[1]) + server.tau)


def fedyogi(version: float, mean: float, moments: list[float], server: Server) -> float:
    change = mean - version
    moments[0] = server.beta_1 * moments[0] + (1 - server.beta_1) * change
    sign = float(np.sign(moments[1] - change**2))
    moments[1] -= (1 - server.beta_2) * change**2 * sign
    return version + server.rate * moments[0] / (math.sqrt(moments[1]) + server.tau)


@pytest.mark.parametrize(
    ("server", "formula"),
    [
        (Server(optimizer="nesterov", learning_rate=0.7, momentum=0.9), nesterov),
        (Server(optimizer="nesterov"), nesterov),
        (Server(optimizer="fedadam", learning_rate=0.05, beta_1=0.8, beta_2=0.9), fedadam),
        (Server(optimizer="fedadam"), fedadam),
        (Server(optimizer="fedyogi", tau=0.1, beta_2=0.9), fedyogi),
        (Server(optimizer="fedyogi"), fedyogi),
    ],
)
def test_an_optimizer_follows_its_formula_over_several_versions(
    server: Server, formula: Callable[[float, float, list[float], Server], float]
) -> None:
    means = [tensors(seed) for seed in range(6)]
    found = run(server, means)
    for name, array in means[0].items():
        for place in np.ndindex(array.shape):
            version, moments = 0.0, [0.0, server.tau**2]
            for mean, made in zip(means, found, strict=True):
                version = formula(version, float(mean[name][place]), moments, server)
                assert made[name][place] == pytest.approx(version, rel=1e-3, abs=1e-4)


@given(st.floats(-3, 3, width=32), st.sampled_from(NAMES))
def test_a_version_that_all_agree_with_stays_as_it_is(value: float, name: OptimizerName) -> None:
    version = {"a": np.full((2, 2), value, np.float32)}
    server = Server(optimizer=name)
    made, _ = step(server, version, version, load_moments(None, server, version))
    np.testing.assert_array_equal(made["a"], version["a"])


def test_nesterov_without_momentum_at_rate_one_is_fedavg() -> None:
    means = [tensors(seed) for seed in range(3)]
    for found, mean in zip(
        run(Server(optimizer="nesterov", momentum=0.0, learning_rate=1.0), means),
        means,
        strict=True,
    ):
        np.testing.assert_allclose(found["a"], mean["a"], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_moments_survive_a_restart_to_the_last_bit(name: OptimizerName, tmp_path: Path) -> None:
    server, version = Server(optimizer=name), tensors(0)
    one, moments = step(server, version, tensors(1), load_moments(None, server, version))
    save_moments(tmp_path, moments)
    assert bool(list(tmp_path.iterdir())) == (name != "fedavg")
    here, _ = step(server, one, tensors(2), moments)
    there, _ = step(server, one, tensors(2), load_moments(tmp_path, server, one))
    assert content_digest(here) == content_digest(there)


def test_moments_that_are_broken_or_of_another_optimizer_grow_anew(tmp_path: Path) -> None:
    server, version = Server(optimizer="nesterov"), tensors(0)
    _, moments = step(server, version, tensors(1), load_moments(None, server, version))
    save_moments(tmp_path, moments)
    adam = Server(optimizer="fedadam")
    fresh = load_moments(None, adam, version)
    other = load_moments(tmp_path, adam, version)
    assert {kind: content_digest(found) for kind, found in other.items()} == {
        kind: content_digest(found) for kind, found in fresh.items()
    }
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-7])
    anew = load_moments(tmp_path, server, version)
    assert not any(array.any() for array in anew["velocity"].values())
