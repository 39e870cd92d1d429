"""A small Llama trained from nothing by real processes: a hub's public texts, two boards' own."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ffm
from fleet.layout import to_toml
from learning import base, scratch
from tests.e2e.conftest import FEDERATION

if TYPE_CHECKING:
    from tests.e2e.conftest import Town

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
ANIMALS = ("cat", "dog", "horse", "cow", "owl", "hen")


def words(folder: Path) -> Path:
    """Write a tokenizer that knows the words of all tales."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    known = ("[UNK]", "[END]", *ANIMALS, "the", "sees", "and", "they", "play", ".")
    ids = {word: number for number, word in enumerate(known)}
    found = Tokenizer(WordLevel(ids, unk_token="[UNK]"))  # noqa: S106
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=found,
        unk_token="[UNK]",  # noqa: S106
        eos_token="[END]",  # noqa: S106
    ).save_pretrained(folder)
    return folder


def tales(path: Path, first: int, count: int) -> None:
    """Write texts in which a word tells the next."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "<|endoftext|>".join(
            f"the {ANIMALS[n % 6]} sees the {ANIMALS[(n // 6) % 6]} and they play."
            for n in range(first, first + count)
        )
    )


def write_all(town: Town) -> None:
    scratch.new(town.folder / "base", LLAMA, tokenizer=words(town.folder / "words"), seed=1)
    tales(town.folder / "hub" / "public.txt", 0, 60)
    tales(town.folder / "hub" / "test.txt", 200, 20)
    training = {"local_steps": 8, "batch_size": 8, "max_length": 32, "learning_rate": 5e-3}
    hub = {
        "federation": FEDERATION,
        "base": "../base",
        "task": "causal-lm",
        "broker": {"port": town.port},
        "public": {"train": "public.txt", "evaluation": "test.txt", "warmup_steps": 0},
        "adapter": {"kind": "full"},
        "training": training,
        "codec_up": "eden2",
        "keyframe_every": 2,
        "versions": {"buffer": 2, "grace_s": 5.0},
    }
    (town.folder / "hub" / "hub.toml").write_text(to_toml(hub))
    for at, name in enumerate(("one", "two")):
        tales(town.folder / name / "own.txt", 60 * (at + 1), 60)
        agent = {
            "id": name,
            "federation": FEDERATION,
            "base": "../base",
            "broker": {"port": town.port},
            "data": {"path": "own.txt"},
            "meter": {"root": "board"},
        }
        (town.folder / name / "agent.toml").write_text(to_toml(agent))


@pytest.mark.long
def test_hub_and_boards_train_a_model_from_nothing(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(town)
    hub = town.start_hub()
    agents = [town.start_agent(name) for name in ("one", "two")]
    rows = town.until(lambda: found if len(found := town.versions()) > 2 else None, "version 2")
    for started in (*agents, hub):
        started.send(signal.SIGTERM)
    assert [started.wait() for started in (*agents, hub)] == [0, 0, 0]
    losses = [row.loss for row in rows[:3]]
    assert losses[0] == pytest.approx(math.log(14), rel=0.05)
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < losses[0] - 0.3
    assert rows[0].size < 1000  # nobody has learned anything: next to nothing travels
    assert rows[2].size > 20_000  # a keyframe of 8 bits a number
    adapter = town.folder / "hub" / "state" / "versions" / "2"
    test = town.folder / "hub" / "test.txt"
    assert ffm.main(["evaluate", str(test), "--adapter", str(adapter), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["loss"] == pytest.approx(rows[2].loss, rel=1e-4)


def test_a_hub_refuses_a_base_that_cannot_be_trained(town: Town) -> None:
    write_all(town)
    base.prepare(town.folder / "base", town.folder / "small", "int8")
    config = town.folder / "hub" / "hub.toml"
    config.write_text(config.read_text().replace("../base", "../small"))
    hub = town.start_hub()
    assert hub.wait() != 0
    assert "model-unsupported" in hub.said()
    assert "--weights bf16" in hub.said()
