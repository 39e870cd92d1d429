"""Error feedback: nothing is lost that can still be sent, and no old error does harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ffm_common.errors import PathUnwritable
from ffm_common.tensors import Array, save
from quantization.updates.codec import by_name
from quantization.updates.feedback import CAP, DECAY, ErrorFeedback


def one(*values: float) -> dict[str, Array]:
    return {"a": np.array(values, np.float32)}


@pytest.fixture
def feedback(tmp_path: Path) -> ErrorFeedback:
    return ErrorFeedback(tmp_path / "residual.safetensors")


def test_the_first_update_is_sent_as_it_is(feedback: ErrorFeedback) -> None:
    assert np.array_equal(feedback.compensate(one(1, 2), 0)["a"], [1, 2])


def test_what_was_not_sent_is_added_to_the_next_update(feedback: ErrorFeedback) -> None:
    feedback.keep(one(1, 2), one(1, 0.5), 3)
    assert np.array_equal(feedback.compensate(one(10, 10), 4)["a"], [10, 11.5])


def test_it_fades_with_each_version_that_was_missed(feedback: ErrorFeedback) -> None:
    feedback.keep(one(1, 2), one(0, 0), 3)
    missed_two = feedback.compensate(one(10, 10), 6)["a"]
    assert missed_two == pytest.approx([10 + DECAY**2, 10 + 2 * DECAY**2])


def test_it_is_never_longer_than_a_multiple_of_the_new_update(feedback: ErrorFeedback) -> None:
    feedback.keep({"a": np.full(4, 100, np.float32), "b": np.ones(1, np.float32)}, zeros(), 3)
    sent = feedback.compensate(
        {"a": np.array([1, 0, 0, 0], np.float32), "b": np.ones(1, np.float32)}, 4
    )
    assert np.linalg.norm(sent["a"] - [1, 0, 0, 0]) == pytest.approx(CAP)
    assert sent["b"] == 2, "each tensor by itself"


def zeros() -> dict[str, Array]:
    return {"a": np.zeros(4, np.float32), "b": np.zeros(1, np.float32)}


def test_a_version_trained_again_does_not_count_its_own_residual(feedback: ErrorFeedback) -> None:
    feedback.keep(one(1, 2), one(1, 0.5), 3)
    assert np.array_equal(feedback.compensate(one(10, 10), 3)["a"], [10, 10])


def test_it_outlives_the_process(tmp_path: Path) -> None:
    ErrorFeedback(tmp_path / "r").keep(one(1), one(0.25), 1)
    assert ErrorFeedback(tmp_path / "r").compensate(one(1), 2)["a"] == 1.75


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100])
def test_a_broken_file_is_left_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r"
    path.write_bytes(content)
    assert ErrorFeedback(path).compensate(one(1), 2)["a"] == 1


def test_a_file_without_a_version_is_left_out(tmp_path: Path) -> None:
    from ffm_common.tensors import save

    save(tmp_path / "r", one(5))
    assert ErrorFeedback(tmp_path / "r").compensate(one(1), 2)["a"] == 1


def test_a_residual_of_another_adapter_is_left_out(feedback: ErrorFeedback) -> None:
    feedback.keep(one(1, 2), one(0, 0), 1)
    assert np.array_equal(feedback.compensate(one(1, 1, 1), 2)["a"], [1, 1, 1])


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable):
        ErrorFeedback(tmp_path / "nowhere" / "r").keep(one(1), one(0), 1)


@pytest.mark.parametrize(("rate", "most"), [(1.0, 0.01), (0.5, 0.03), (0.25, 0.12)])
def test_below_one_bit_updates_arrive_late_and_not_never(
    feedback: ErrorFeedback, rate: float, most: float
) -> None:
    rng = np.random.default_rng(0)
    codec, common = by_name(f"ecsq{rate:g}"), rng.standard_normal(20_000)
    wanted, with_feedback, without = (np.zeros(20_000) for _ in range(3))
    for version in range(40):
        update = {"a": (common + 2 * rng.standard_normal(20_000)).astype(np.float32)}
        target = feedback.compensate(update, version)
        sent = codec.decode(codec.encode(target["a"], (20_000,), 0), (20_000,), 0)
        feedback.keep(target, {"a": sent}, version)
        wanted += update["a"]
        with_feedback += sent
        without += codec.decode(codec.encode(update["a"], (20_000,), 0), (20_000,), 0)
    energy = np.square(wanted).sum()
    lost = np.square(wanted - with_feedback).sum() / energy
    assert lost < most
    assert lost < 0.3 * np.square(wanted - without).sum() / energy


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_residual_that_is_no_number_any_more_is_lost_and_stops_nothing(
    tmp_path: Path, number: float
) -> None:
    path = tmp_path / "residual.safetensors"
    save(path, one(1, number), metadata={"version": "3"})
    assert np.array_equal(ErrorFeedback(path).compensate(one(1, 2), 4)["a"], [1, 2])
