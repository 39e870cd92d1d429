"""Shared by all tests: how libraries wait and where they look, one real base, a few real texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from ffm_common.task import Task, Training
from learning.texts.data import Example, write_jsonl

if TYPE_CHECKING:
    from tests.hub.trust.house import House

# Before anything imports torch: OpenMP threads that spin cost 3x on a machine that does more.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# A slow moment of a busy machine is no failure.
settings.register_profile("ffm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ffm")

ANIMALS = ["a cat sleeps", "the dog barks at night", "horses run", "a small grey mouse", "two owls"]
TOOLS = ["a hammer", "the saw cuts wood well", "screws and nails", "a rusty old file", "one drill"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Have torch use as many threads as ever after a test: one may open an engine with others.

    Sums of other threads differ in the last bit, and some tests compare bits with another process.
    """
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(2)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the real all-MiniLM-L6-v2, quantized to NF4; read it, never change it."""
    from learning import base
    from learning.torch.engine import use_threads

    use_threads(2)
    folder = tmp_path_factory.mktemp("bases") / "minilm"
    base.prepare(base.bundled_minilm(), folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file of ten short texts, unlike in length, of the labels animal and tool."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    pairs = [(text, "animal") for text in ANIMALS] + [(text, "tool") for text in TOOLS]
    write_jsonl(path, [Example(text=text, label=label) for text, label in pairs])
    return path


@pytest.fixture(scope="session")
def task() -> Task:
    """Give the task that `texts` are for; a dozen of its steps learn them by heart."""
    return Task(
        labels=("animal", "tool"),
        training=Training(local_steps=13, batch_size=4, max_length=16),
        seed=3,
    )


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Give a hub's open door, with its authority and members behind it."""
    from tests.hub.trust.house import House

    house = House(tmp_path / "identity")
    yield house
    house.close()
