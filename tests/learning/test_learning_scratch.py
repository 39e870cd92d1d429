"""A base of random weights: the same bits from the same words, and what they must fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ffm
from ffm_common.errors import ConfigInvalid, ModelMissing, ModelUnsupported, PathUnwritable
from ffm_common.seeds import derive
from learning import base, scratch
from learning.base import Base
from learning.bench import shapes
from quantization.updates.drawn import draw

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    shapes.tokenizer().save_pretrained(folder)
    return folder


def make(out: Path, words: Path, seed: int = 0, **more: Any) -> Base:
    return scratch.new(out, {**LLAMA, **more}, tokenizer=words, seed=seed)


def test_the_same_configuration_and_seed_give_the_same_digest(tmp_path: Path, words: Path) -> None:
    import torch

    first = make(tmp_path / "one", words)
    torch.manual_seed(99)  # nobody else's draws have a part in it
    assert make(tmp_path / "two", words).digest == first.digest
    assert make(tmp_path / "three", words, seed=1).digest != first.digest
    assert make(tmp_path / "four", words, hidden_size=48).digest != first.digest
    assert base.verify(tmp_path / "one") == first


def test_weights_are_drawn_without_any_library(tmp_path: Path, words: Path) -> None:
    make(tmp_path / "base", words, seed=7)
    found = load_file(tmp_path / "base" / base.WEIGHTS_FILE)["layers.1.mlp.up_proj.weight"]
    values = draw(derive(7, "weights", "layers.1.mlp.up_proj.weight"), found.size)
    np.testing.assert_array_equal(found.ravel(), np.float32(3**0.5 * 0.05) * values)
    assert found.std() == pytest.approx(0.05, rel=0.05)


def test_norms_start_at_one_and_the_size_of_the_vocabulary_is_the_tokenizers(
    tmp_path: Path, words: Path
) -> None:
    make(tmp_path / "base", words)
    found = load_file(tmp_path / "base" / base.WEIGHTS_FILE)
    assert (found["norm.weight"] == 1).all()
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["vocab_size"] == len(found["embed_tokens.weight"]) == 6
    assert config["pad_token_id"] == 0


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path: Path, words: Path) -> None:
    with pytest.raises(ConfigInvalid, match="the tokenizer knows 6 tokens"):
        make(tmp_path / "base", words, vocab_size=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"model_type": "no such"}, {"hidden_act": "no such"}])
def test_what_transformers_cannot_make_is_refused(
    tmp_path: Path, words: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ModelUnsupported):
        make(tmp_path / "base", words, **wrong)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelMissing, match="holds no tokenizer"):
        make(tmp_path / "base", tmp_path / "empty")


def test_files_of_somebody_are_never_replaced(tmp_path: Path, words: Path) -> None:
    (tmp_path / "diary").write_text("dear diary")
    with pytest.raises(PathUnwritable):
        make(tmp_path, words)


@pytest.mark.parametrize("name", scratch.SHAPES)
def test_every_shape_has_heads_that_fit(name: str) -> None:
    shape = scratch.SHAPES[name]
    assert shape["hidden_size"] % shape["num_attention_heads"] == 0


def test_a_person_makes_one_by_name_or_from_a_file(
    tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    common = ["--tokenizer", str(words), "--seed", "3"]
    config = ["--config", str(tmp_path / "config.json")]
    assert ffm.main(["model", "new", str(tmp_path / "a"), *config, *common]) == 0
    assert base.describe(tmp_path / "a").digest in capsys.readouterr().out
    assert base.describe(tmp_path / "a").digest == make(tmp_path / "b", words, seed=3).digest
    named = ["--shape", "bert-tiny", "--weights", "bf16"]
    assert ffm.main(["model", "new", str(tmp_path / "c"), *named, *common]) == 0
    assert base.describe(tmp_path / "c").weights == "bf16"
    wrong = ["--shape", "llama-giant"]
    assert ffm.main(["model", "new", str(tmp_path / "d"), *wrong, *common]) == 2
    assert "llama-tiny" in capsys.readouterr().err
