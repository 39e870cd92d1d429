"""`ffm profile ...` tells a person and a program the same."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffm_common.errors import ConfigInvalid, ProfileUnknown
from profiles.cli import add_commands
from profiles.profile import names

TREES = Path(__file__).parent / "trees"


def call(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    arguments = parser.parse_args(["profile", *argv])
    status: int = arguments.run(arguments)
    return status


def test_list_names_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *names()]
    assert call("list", "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == names()


def test_show_gives_each_figure_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "rpi4-2gb") == 0
    text = capsys.readouterr().out
    assert "sci-pi.org.uk" in next(line for line in text.splitlines() if "bandwidth" in line)
    assert "always" in next(line for line in text.splitlines() if line.startswith("hours"))
    assert call("show", "rpi4-2gb", "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory_mb"] == 1200


def test_show_refuses_an_unknown_name() -> None:
    with pytest.raises(ProfileUnknown):
        call("show", "rpi7")


def test_detect_reads_a_recorded_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("detect", "--root", str(TREES / "pi5")) == 0
    assert "profile  rpi5-8gb" in capsys.readouterr().out
    assert call("detect", "--root", str(TREES / "laptop"), "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["matched"], found["profile"]["name"]) == (False, "detected")


def test_detect_shows_the_whole_of_a_derived_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("detect", "--root", str(TREES / "laptop")) == 0
    assert "found on this machine" in capsys.readouterr().out


def test_check_tries_the_limits_for_real(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "rpi4-2gb"\nmemory_mb = 150\n')
    assert call("check", str(path)) == 0
    text = capsys.readouterr().out
    assert "mine is valid" in text
    assert "150 MB" in text
    assert "hit its memory limit 64 MB" in text
    assert call("check", str(path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] is True
    assert found["holds"] is True
    assert found["enforcement"][0]["enforced"] is True


def test_check_of_this_machine_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check") == 0
    assert "memory" in capsys.readouterr().out


def test_check_refuses_an_invalid_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "rpi4-2gb"\nniceness = 99\n')
    with pytest.raises(ConfigInvalid, match="niceness"):
        call("check", str(path))


def test_profiles_import_nothing_heavy() -> None:
    code = (
        "import sys, profiles.cli, profiles.worker, profiles.gate, profiles.detect\n"
        "import profiles.ledger, profiles.trial\n"
        "heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
