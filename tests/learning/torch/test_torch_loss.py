from __future__ import annotations

from typing import Any

import pytest

ROWS = {"few": 40, "many": 5000}


def case(vocabulary: int, *, bias: bool) -> tuple[Any, Any, Any]:
    """Give hidden states, an output layer, and targets at both ends of the vocabulary."""
    import torch

    torch.manual_seed(0)
    hidden = torch.randn(300, 24, requires_grad=True)
    head = torch.nn.Linear(24, vocabulary, bias=bias).requires_grad_(requires_grad=False)
    head.weight *= 20  # scores far apart: sums must be scaled anew
    targets = torch.randint(0, vocabulary, (300,))
    targets[:2] = torch.tensor([0, vocabulary - 1])
    return hidden, head, targets


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_loss_and_gradient_are_those_of_torch(rows: str, *, bias: bool) -> None:
    import torch

    from learning.torch.loss import chunked_cross_entropy, chunked_score

    hidden, head, targets = case(ROWS[rows], bias=bias)
    scores = head(hidden)
    wanted = torch.nn.functional.cross_entropy(scores, targets)
    (wanted_gradient,) = torch.autograd.grad(3 * wanted, hidden)
    found = chunked_cross_entropy(hidden, head, targets, torch.float32)
    (gradient,) = torch.autograd.grad(3 * found, hidden)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)
    score = chunked_score(hidden.detach(), head, targets, torch.float32)
    assert score.loss / score.scored == pytest.approx(wanted.item(), rel=1e-5)
    assert score.right == int((scores.argmax(dim=1) == targets).sum())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_an_output_matrix_that_is_trained_gets_the_gradients_of_torch(
    rows: str, *, bias: bool
) -> None:
    import torch

    from learning.torch.loss import chunked_cross_entropy

    hidden, head, targets = case(ROWS[rows], bias=bias)
    head.requires_grad_(requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(head(hidden), targets)
    parts = [hidden, *head.parameters()]
    gradients = torch.autograd.grad(3 * wanted, parts)
    found = chunked_cross_entropy(hidden, head, targets, torch.float32)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(3 * found, parts), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_number_gives_no_number() -> None:
    import torch

    from learning.torch.loss import chunked_cross_entropy

    hidden, head, targets = case(5000, bias=False)
    with torch.no_grad():
        hidden[5, 3] = torch.nan
    assert torch.isnan(chunked_cross_entropy(hidden, head, targets, torch.float32))


def test_an_output_matrix_in_8_bits_is_multiplied_as_what_it_stands_for() -> None:
    import torch

    from learning.torch.loss import chunked_cross_entropy
    from quantization.weights_frozen import FrozenLinear, rows
    from quantization.weights_int8 import int8_rows

    hidden, head, targets = case(5000, bias=True)
    packed = int8_rows(head.weight.numpy())
    frozen = FrozenLinear(
        torch.from_numpy(packed.codes), torch.from_numpy(packed.scales), head.bias
    )
    head.weight.copy_(rows(frozen, slice(None)))
    wanted = torch.nn.functional.cross_entropy(head(hidden), targets)
    found = chunked_cross_entropy(hidden, frozen, targets, torch.float32)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
