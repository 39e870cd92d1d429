from __future__ import annotations

import numpy as np
import pytest

from ffm_common.tensors import Array
from learning.adam import _AT_ONCE, Adam


def draws(seed: int, scale: float = 1.0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    shapes = {"a": (4, 3), "b": (5,), "c": ()}
    return {
        name: np.array(scale * draw.standard_normal(shape), np.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_five_steps_are_those_of_torch(scale: float) -> None:
    import torch

    rates = {"a": 2e-3, "b": 0.05, "c": 1e-5}
    ours = draws(0)
    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in draws(0).items()}
    adam = Adam(ours, rates)
    groups = [{"params": [theirs[name]], "lr": rate} for name, rate in rates.items()]
    reference = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(1, 6):
        gradients = draws(step, scale)
        adam.step(ours, gradients)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        reference.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-6, atol=1e-7)
    assert adam.count == 5


def test_steps_are_made_in_place_and_in_float32() -> None:
    tensors = draws(0)
    held = dict(tensors)
    Adam(tensors, dict.fromkeys(tensors, 0.1)).step(tensors, draws(1))
    assert all(tensors[name].dtype == np.float32 for name in tensors)
    assert tensors["a"] is held["a"]


def test_where_there_is_no_gradient_nothing_moves() -> None:
    tensors = draws(0)
    zero = {name: np.zeros_like(array) for name, array in tensors.items()}
    Adam(tensors, dict.fromkeys(tensors, 0.1)).step(tensors, zero)
    for name, array in draws(0).items():
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize("packed", [False, True])
def test_a_tensor_of_many_values_is_moved_as_many_small_ones_are(*, packed: bool) -> None:
    size = 3 * _AT_ONCE - 7
    draw = np.random.default_rng(0)
    whole = {"a": draw.standard_normal(size).astype(np.float32)}
    small = {f"a{at}": whole["a"][at : at + _AT_ONCE].copy() for at in range(0, size, _AT_ONCE)}
    ours = Adam(whole, {"a": 0.01}, packed=packed)
    theirs = Adam(small, dict.fromkeys(small, 0.01), packed=packed)
    for _ in range(2):
        gradient = draw.standard_normal(size).astype(np.float32)
        ours.step(whole, {"a": gradient})
        theirs.step(small, {n: gradient[int(n[1:]) :][: len(a)] for n, a in small.items()})
    np.testing.assert_array_equal(whole["a"], np.concatenate(list(small.values())))
