"""`ffm hub versions | show | diff | export | rollback` on real ledgers, beside who writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ffm
from federation.trust import bundle
from ffm_common.task import Task
from hub.trust.authority import Authority
from hub.versions.ledger import LeftOut
from learning.adapter import WEIGHTS, Card, load_tensors, save_tensors
from tests.hub.home import BASE, Home, tensors

HUB = """
federation = "town"
base = "base"
[public]
train = "public.jsonl"
evaluation = "test.jsonl"
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Give a running hub: its ledger is open, with four versions, one of them taken back."""
    (tmp_path / "hub.toml").write_text(HUB)
    (tmp_path / "state").mkdir()
    found = Home(tmp_path / "state")
    found.commit(0)
    found.vote(0, 0.7)
    found.update("ann", 0, counted_for=0)
    found.update("eve", 0, counted_for=0)
    found.commit(1, left_out=(LeftOut("eve", "it would have been worse with it"),))
    found.update("bob", 1, counted_for=1)
    found.commit(2)
    found.commit(1, parent=1)
    yield found
    found.close()


def run(home: Home, command: str, *more: str) -> int:
    path = home.folder.parent / "hub.toml"
    return ffm.main(["hub", command, *more, "--config", str(path)])


def told(home: Home, capsys: pytest.CaptureFixture[str], command: str, *more: str) -> Any:
    assert run(home, command, *more, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_versions_are_listed_with_what_became_of_them(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(home, capsys, "versions")
    assert [line["version"] for line in found] == [0, 1, 2, 3]
    assert [line["parent"] for line in found] == [None, 0, 1, 1]
    assert [line["taken_back"] for line in found] == [False, False, True, False]
    assert [line["left_out"] for line in found] == [0, 1, 0, 0]
    assert found[0]["devices"]["devices"] == 5
    assert found[0]["devices"]["loss"]["worst"] == pytest.approx(1.1)
    assert run(home, "versions") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[:3] == ["version", "parent", "kind"]
    assert "taken back" in lines[3]


def test_one_version_is_told_with_its_updates_and_its_lineage(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(home, capsys, "show", "1")
    assert found["lineage"] == [1, 0]
    assert [one["agent"] for one in found["contributions"]] == ["ann", "eve"]
    assert found["contributions"][0]["judgement"]["weight"] == 0.5
    assert found["contributions"][1]["left_out"] == "it would have been worse with it"
    assert Path(found["adapter"]).name == "1"
    assert told(home, capsys, "show")["line"]["version"] == 3
    assert run(home, "show", "1") == 0
    text = capsys.readouterr().out
    assert "ann, made from version 0, 10 examples" in text
    assert "norm 5.20, standing 0.00, have a look at it: it is more than twice as long as" in text
    assert "left out: it would have been worse with it" in text


def test_two_versions_are_compared_module_by_module(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(home, capsys, "diff", "0", "2")
    assert not found["same"]
    assert {gap["name"] for gap in found["modules"]} == {"layer", "bias"}
    assert found["products"]["distance"] == pytest.approx(found["modules"][0]["distance"])
    assert found["loss"] == [1.0, 3.0]
    assert found["contributors"] == ["ann", "bob"]
    same = told(home, capsys, "diff", "1", "3")
    assert same["same"]
    assert same["products"]["distance"] == 0
    assert same["contributors"] == []
    assert run(home, "diff", "1", "3") == 0
    assert "the same content" in capsys.readouterr().out


def test_a_version_is_exported_whole_and_never_over_something(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "adapter"
    assert run(home, "export", "0", str(out)) == 0
    assert {key: array.tolist() for key, array in load_tensors(out).items()} == {
        key: array.tolist() for key, array in tensors(0).items()
    }
    assert run(home, "export", str(out)) == 2
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(home, "export", str(tmp_path / "empty")) == 0
    assert load_tensors(tmp_path / "empty")["bias"].tolist() == tensors(1)["bias"].tolist()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]
    weights = home.folder / "versions" / "0" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(home, "export", "0", str(tmp_path / "spoiled")) == 1
    assert "adapter-invalid" in capsys.readouterr().err
    assert not (tmp_path / "spoiled").exists()


def test_a_rollback_is_asked_for_while_the_hub_runs(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, "rollback", "0", "--why", "a customer has complained") == 0
    assert "the content of version 0" in capsys.readouterr().out
    row = home.ledger.versions()[-1]
    assert home.rollbacks.reason(row, None, now=0.0) == "rollback to 0"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("show", "9"), "there is no version 9; there are 0 to 3"),
        (("diff", "0", "9"), "there is no version 9"),
        (("rollback", "9"), "there is no version 9"),
        (("rollback", "1"), "has that content already"),
        (("rollback", "0"), "kept no more"),
        (("export", "0", "out"), "kept no more"),
    ],
)
def test_what_is_not_there_is_said_in_a_line_and_nothing_changes(
    home: Home, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], why: str
) -> None:
    for path in (home.folder / "versions" / "0").iterdir():
        path.unlink()
    (home.folder / "versions" / "0").rmdir()
    assert run(home, *command) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.startswith("ffm: error [version-unknown]: ")
    assert home.ledger.pinned("rollback") is None


def test_before_the_first_version_all_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(HUB)
    for command in (["versions"], ["show"], ["rollback", "0"], ["export", "out"]):
        assert ffm.main(["hub", *command, "--config", str(tmp_path / "hub.toml")]) == 2
        assert "there is no version yet" in capsys.readouterr().err
    (tmp_path / "state").mkdir()
    found = Home(tmp_path / "state")
    assert ffm.main(["hub", "show", "--config", str(tmp_path / "hub.toml")]) == 2
    found.close()


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, ffm\n"
    code += "try: ffm.main(['hub', 'versions', '--help'])\n"
    code += "except SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('numpy', 'sqlite3', 'torch')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_hub_with_members_signs_what_it_exports(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(f'trust = "enrolled"\n{HUB}')
    identity = tmp_path / "state" / "identity"
    authority = Authority(identity, "town")
    card = Card(base="base", base_digest=BASE, version=1, task=Task(labels=("a", "b")))
    save_tensors(home.registry.folder_of(1), tensors(1), card)
    out = tmp_path / "given away"
    assert run(home, "export", "1", str(out)) == 0
    assert "signed" in capsys.readouterr().out
    found = bundle.check(out)
    assert found is not None
    assert (found.federation, found.version, found.base) == ("town", 1, BASE)
    assert found.hub == authority.anchor.signs
    assert ffm.main(["version", "--verify", str(out), "--identity", str(identity)]) == 0
    load_tensors(out)
