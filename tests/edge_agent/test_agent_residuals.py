from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.residuals import Residuals
from ffm_common.errors import PathUnwritable

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def residuals(tmp_path: Path) -> Residuals:
    return Residuals(tmp_path / "residuals")


def made(folder: Path, content: bytes) -> Path:
    path = folder / "made.safetensors"
    path.write_bytes(content)
    return path


def test_before_the_first_update_there_is_none(residuals: Residuals) -> None:
    assert not residuals.of("").exists()


def test_a_new_residual_leaves_the_old_one_until_it_counts(
    residuals: Residuals, tmp_path: Path
) -> None:
    residuals.put(ONE, made(tmp_path, b"one"))
    residuals.put(TWO, made(tmp_path, b"two"))
    assert not (tmp_path / "made.safetensors").exists()
    again = Residuals(tmp_path / "residuals")  # as after a kill before the journal was written
    assert again.of(ONE).read_bytes() == b"one"
    again.put(TWO, made(tmp_path, b"two, made again"))
    again.keep_only(TWO)
    assert again.of(TWO).read_bytes() == b"two, made again"
    assert not again.of(ONE).exists()


def test_a_codec_that_needs_none_leaves_none(residuals: Residuals, tmp_path: Path) -> None:
    residuals.put(ONE, made(tmp_path, b"one"))
    residuals.keep_only(TWO)
    assert list((tmp_path / "residuals").iterdir()) == []


def test_a_residual_that_is_not_there_is_an_error(residuals: Residuals, tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable):
        residuals.put(ONE, tmp_path / "none")
