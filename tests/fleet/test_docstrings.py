"""The docstrings of this machine's Python as a classification task."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from ffm_common.errors import ConfigInvalid, DataScarce
from fleet import docstrings
from fleet.docstrings import AREAS, LONGEST, SHORTEST, collect
from learning.texts.data import Example, label_names

_ELSEWHERE = """
import hashlib, sys
from fleet.docstrings import collect
examples = collect(120, 3)
assert not {"torch", "networkx", "matplotlib", "tkinter", "turtle", "peft"} & set(sys.modules)
print(hashlib.sha256(repr(examples).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return collect(120, 3, tmp_path_factory.mktemp("cache"))


def test_areas_are_even_and_texts_short_and_distinct(examples: list[Example]) -> None:
    sizes = Counter(example.label for example in examples)
    assert set(sizes) <= set(AREAS)
    assert len(sizes) >= 8
    assert max(sizes.values()) == 120
    assert all(SHORTEST <= len(example.text) <= LONGEST for example in examples)
    assert len({example.text for example in examples}) == len(examples)


def test_no_name_gives_the_area_away(examples: list[Example]) -> None:
    telling = re.compile(r"\b(?:torch|numpy|np|networkx|matplotlib|pytest)\b", re.IGNORECASE)
    assert [example.text for example in examples if telling.search(example.text)] == []
    assert [example.text for example in examples if ">>>" in example.text] == []


def test_another_process_collects_the_same_and_imports_nothing(examples: list[Example]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(repr(examples).encode()).hexdigest()


def test_the_standard_library_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [sysconfig.get_path("stdlib")])
    alone = collect(60, 0)
    assert "networking" in label_names(alone)
    assert "deep learning" not in label_names(alone)
    assert set(Counter(example.label for example in alone).values()) == {60}


def test_the_cache_gives_the_same_and_is_made_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"code": "ast dis inspect typing", "nets": "ftplib imaplib smtplib ssl"}
    monkeypatch.setattr(docstrings, "AREAS", few)
    fresh = collect(60, 1)
    assert collect(60, 1, tmp_path / "cache") == fresh
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    assert collect(60, 1, tmp_path / "cache") == fresh
    kept.write_bytes(whole[: len(whole) // 2])
    assert collect(60, 1, tmp_path / "cache") == fresh
    assert kept.read_bytes() == whole
    collect(60, 2, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_python_without_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "AREAS", {"nothing": "no_such_module", "maths": "numbers"})
    with pytest.raises(DataScarce, match="too few docstrings"):
        collect(60, 0)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        collect(0, 0)


def test_a_text_is_the_prose_at_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somepackage"
    (package / "tests").mkdir(parents=True)
    (package / "broken.py").write_text("def (:\n")
    (package / "latin.py").write_bytes(b"# caf\xe9\n")
    (package / "tests" / "hidden.py").write_text(
        'def f():\n    """' + "Hidden words. " * 9 + '"""\n'
    )
    (package / "part.py").write_text(
        'def f():\n    """f(x) -> y\n\n    Open the :class:`~somepackage.Door` of a house\n'
        "    with somepackage.key, gently and ``slowly``.\n\n"
        "    Parameters\n    ----------\n    x : int\n        Not prose at all.\n"
        '    """\n\ndef g():\n    """Too short."""\n'
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = [
        text
        for file in docstrings._sources("somepackage")
        for text in docstrings._texts(file, "somepackage")
    ]
    assert found == ["Open the X of a house with X, gently and slowly."]
