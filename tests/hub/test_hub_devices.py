from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.versions.devices import Personal, describe, summary
from hub.versions.ledger import VoteRow


def vote(agent: str, loss: float, accuracy: float | None, examples: int) -> VoteRow:
    return VoteRow(
        agent=agent, version=3, loss=loss, accuracy=accuracy, examples=examples, received=1e9
    )


def test_a_version_that_is_bad_for_one_device_of_three_says_so() -> None:
    votes = [vote("a", 0.5, 0.9, 100), vote("b", 0.7, 0.8, 100), vote("c", 3.0, 0.1, 10)]
    found = summary(votes)
    assert (found.devices, found.examples) == (3, 210)
    assert found.accuracy is not None
    assert found.loss is not None
    assert found.accuracy.mean == pytest.approx(0.6)
    assert found.accuracy.weighted == pytest.approx((90 + 80 + 1) / 210)
    assert found.accuracy.tenth == pytest.approx(0.1 + 0.2 * 0.7)
    assert (found.accuracy.worst, found.loss.worst) == (0.1, 3.0)
    assert found.loss.tenth == pytest.approx(3.0 - 0.2 * 2.3)
    assert describe(found) == (
        "3 devices, 210 examples; accuracy 0.600 (weighted 0.814, tenth percentile 0.240, "
        "worst 0.100); loss 1.400 (weighted 0.714, tenth percentile 2.540, worst 3.000)"
    )


def test_where_nobody_has_measured_there_is_nothing_to_say() -> None:
    assert summary([]) == Personal(devices=0, examples=0)
    assert describe(summary([])) == "0 devices, 0 examples"


def test_devices_that_give_no_accuracy_count_for_the_loss_alone() -> None:
    found = summary([vote("a", 1.0, None, 5), vote("b", 2.0, 0.5, 5)])
    assert found.accuracy is not None
    assert found.loss is not None
    assert (found.accuracy.mean, found.accuracy.worst, found.loss.mean) == (0.5, 0.5, 1.5)
    assert summary([vote("a", 1.0, None, 5)]).accuracy is None


VOTES = st.lists(
    st.tuples(st.floats(0, 1e6), st.floats(0, 1), st.integers(1, 2**40)), min_size=1, max_size=40
)


@given(VOTES, st.randoms(use_true_random=False))
def test_it_is_what_numpy_says_in_any_order(
    found: list[tuple[float, float, int]], random: object
) -> None:
    votes = [vote(f"agent-{n:02}", *each) for n, each in enumerate(found)]
    whole = summary(votes)
    random.shuffle(votes)  # type: ignore[attr-defined]
    assert summary(votes) == whole
    losses, accuracies, weights = map(np.array, zip(*found, strict=True))
    assert whole.loss is not None
    assert whole.accuracy is not None
    for spread, values, percentile in ((whole.loss, losses, 90), (whole.accuracy, accuracies, 10)):
        assert spread.mean == pytest.approx(values.mean())
        assert spread.weighted == pytest.approx(np.average(values, weights=weights))
        assert spread.tenth == pytest.approx(np.percentile(values, percentile))
    assert whole.loss.worst == losses.max()
    assert whole.accuracy.worst == accuracies.min()
