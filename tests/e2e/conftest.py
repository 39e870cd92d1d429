"""A federation in hand: real processes, started as a person starts them in terminals."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import psutil
import pytest

from federation.messages import AgentState
from ffm_common.errors import StorageError
from ffm_common.tied import tied
from fleet.layout import to_toml
from fleet.observer import Observer
from hub.versions.ledger import UpdateRow, VersionRow, read_versions
from learning.texts.data import Example, write_jsonl
from tests.brokers import free_port

# A shell's background job has it ignored, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

T = TypeVar("T")

FEDERATION = "town"
_MARK = "FFM_TEST_TOWN"
_WORDS = {
    "animals": ["cat", "dog", "horse", "cow", "pig", "sheep", "goat", "duck", "hen", "mouse"],
    "tools": [
        "hammer",
        "saw",
        "drill",
        "wrench",
        "nail",
        "screw",
        "file",
        "rope",
        "ladder",
        "plane",
    ],
    "weather": ["rain", "snow", "wind", "storm", "cloud", "sun", "fog", "ice", "hail", "thunder"],
}


def _examples(count: int, *, seed: int, notes: int = 1) -> list[Example]:
    """Write texts of some notes each, whose label a small model learns in some dozens of steps."""
    rng = random.Random(seed)
    labels = sorted(_WORDS)
    found = []
    for number in range(count):
        label = labels[number % len(labels)]
        text = f"number {number}: "
        for _ in range(notes):
            one, two = rng.sample(_WORDS[label], 2)
            other = rng.choice(_WORDS[rng.choice(labels)])
            text += f"the {one} and the {two} beside the {other}. "
        found.append(Example(text=text, label=label))
    return found


class Started:
    """A process that a test has started; what it says goes to `log`."""

    def __init__(self, command: Sequence[str], log: Path, *, town: Path) -> None:
        self._log = log
        self._output = log.with_suffix(".out")
        with log.open("ab") as sink, self._output.open("wb") as output:
            self._process = subprocess.Popen(
                tied(list(command)),  # ends even with a killed pytest
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=sink,
                cwd=town,
                env={**os.environ, _MARK: str(town)},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self, part_of_command: str) -> list[psutil.Process]:
        """Find the processes below this one whose command line holds a word."""
        found = []
        for child in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if part_of_command in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        """Give its exit status."""
        return self._process.wait(seconds)

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def output(self) -> str:
        return self._output.read_text()

    def end(self) -> None:
        if self.running():
            self._process.kill()
        self._process.wait()


class Town:
    """A hub and its agents on disk and, once started, as processes."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = base
        self.federation = FEDERATION
        self.port = free_port()
        self.ledger = folder / "hub" / "state" / "ledger.db"
        self.test = folder / "hub" / "test.jsonl"
        self._all: list[Started] = []
        self._observer: Observer | None = None

    def write_csv(self, name: str, count: int) -> Path:
        """Write a labelled CSV file as a person has it."""
        path = self.folder / name
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["subject", "note"])
            writer.writerows((one.label, one.text) for one in _examples(count, seed=3))
        return path

    def write_hub(self, **more: object) -> Path:
        """Write hub.toml with its data; `more` are keys and tables of it."""
        folder = self.folder / "hub"
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / "public.jsonl", _examples(24, seed=1))
        write_jsonl(self.test, _examples(200, seed=2))
        config: dict[str, Any] = {
            "federation": FEDERATION,
            "base": str(self.base),
            "broker": {"port": self.port},
            "public": {"train": "public.jsonl", "evaluation": "test.jsonl", "steps": 2},
            **more,
        }
        path = folder / "hub.toml"
        path.write_text(to_toml(config))
        return path

    def write_agent(self, name: str, *, notes: int = 1, **more: object) -> Path:
        """Write agent.toml with data of `notes` notes a text; `more` are keys, None for none."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / "private.jsonl", _examples(90, seed=ord(name[0]), notes=notes))
        config = {
            "id": name,
            "federation": FEDERATION,
            "base": str(self.base),
            "broker": {"port": self.port},
            "data": {"path": "private.jsonl"},
            # A board without sensors: what else this machine does shall not pause a test.
            "meter": {"root": "board"},
            **more,
        }
        path = folder / "agent.toml"
        path.write_text(to_toml({key: one for key, one in config.items() if one is not None}))
        return path

    def start(self, *command: str, log: str, module: str = "ffm") -> Started:
        return self.start_program([sys.executable, "-m", module, *command], log=log)

    def start_program(self, command: Sequence[str], *, log: str) -> Started:
        """Start a program; its path is a full one."""
        started = Started(command, self.folder / f"{log}.log", town=self.folder)
        self._all.append(started)
        return started

    def mark(self) -> str:
        """Give the variable by which processes of this town are found, whoever is their parent."""
        return f"{_MARK}={self.folder}"

    def start_hub(self) -> Started:
        return self.start("hub", "run", "--config", "hub/hub.toml", log="hub")

    def start_agent(self, name: str) -> Started:
        return self.start("agent", "run", "--config", f"{name}/agent.toml", log=name)

    def versions(self) -> list[VersionRow]:
        try:
            return read_versions(self.ledger)
        except StorageError:
            return []

    def updates(self, version: int, ledger: Path | None = None) -> dict[str, UpdateRow]:
        """Read the counted updates of a version, without opening the ledger for writing."""
        address = f"file:{ledger or self.ledger}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
            db.row_factory = sqlite3.Row
            rows = db.execute("SELECT * FROM updates WHERE version = ?", (version,)).fetchall()
        return {row["agent"]: UpdateRow(**dict(row)) for row in rows}

    def watch(self) -> Observer:
        """Give what hub and agents say of themselves, as far as it has been heard."""
        if self._observer is None:
            self._observer = Observer("127.0.0.1", self.port, FEDERATION)
        self._observer.listen(0)
        return self._observer

    def state(self, agent: str) -> AgentState | None:
        return self.watch().agents.get(agent)

    def until(self, what: Callable[[], T | None], why: str, seconds: float = 120.0) -> T:
        """Wait for something that is not None or False, and give it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := what():
                return found
            time.sleep(0.02)
        logs = "".join(
            f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )
        pytest.fail(f"waited {seconds:.0f} s in vain: {why}{logs}")

    def left_over(self) -> list[str]:
        """List processes that were started here and still run, whoever is their parent now."""
        return [" ".join(process.cmdline()) for process in _marked(self.folder)]

    def close(self) -> None:
        if self._observer is not None:
            self._observer.close()
        for started in self._all:
            started.end()
        for process in _marked(self.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(5)


NewTown: TypeAlias = Callable[[], AbstractContextManager[Town]]


def _marked(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == str(folder) and process.status() != "zombie":
                found.append(process)
    return found


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a prepared NF4 base that is as real as MiniLM, but 64 wide, 2 layers, and untrained."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from learning import base

    folder = tmp_path_factory.mktemp("small")
    tokenizer = AutoTokenizer.from_pretrained(str(base.bundled_minilm()))
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=128,
        )
    )
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    base.prepare(folder / "plain", folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def new_town(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> NewTown:
    """Give a maker of towns; whatever was started in one is ended with it."""

    @contextlib.contextmanager
    def make() -> Iterator[Town]:
        town = Town(tmp_path_factory.mktemp("town"), small_base)
        try:
            yield town
        finally:
            town.close()
        assert town.left_over() == []

    return make


@pytest.fixture
def town(new_town: NewTown) -> Iterator[Town]:
    """Give a town of the test's own."""
    with new_town() as town:
        yield town
