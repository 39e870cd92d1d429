from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

import ffm
from edge_agent.update.checking import check
from ffm_common.errors import LedgerBroken, ProfileUnknown, ReleaseUnsuited

AGENT = 'id = "pi"\nfederation = "home"\nbase = "base"\n[data]\npath = "a.csv"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(AGENT)
    (tmp_path / "state").mkdir()
    return path


def test_a_board_that_can_run_this_passes_and_nothing_is_written(file: Path) -> None:
    assert ffm.main(["agent", "check", "--config", str(file)]) == 0
    assert sorted(path.name for path in file.parent.rglob("*")) == ["agent.toml", "state"]


def test_what_it_would_stumble_over_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = file.parent / "state/journal.json"
    journal.write_text("{")
    with pytest.raises(LedgerBroken):
        check(file)
    journal.unlink()
    file.write_text('profile = "none-such"\n' + AGENT)
    with pytest.raises(ProfileUnknown):
        check(file)
    file.write_text("new_key = 1\n" + AGENT)
    assert ffm.main(["agent", "check", "--config", str(file)]) == 2
    assert "[config-invalid]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ("msgspec>=99", "msgspec>=99, here is "),
        ("msgspec<0.1,>=0.0.1", "msgspec<0.1, here is "),
        ("nothing-of-that-name", "nothing-of-that-name, which is not here"),
    ],
)
def test_a_package_that_is_missing_or_too_old_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, needs: str, said: str
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: [needs])
    with pytest.raises(ReleaseUnsuited, match=said):
        check(file)


def test_what_an_extra_needs_is_not_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has = metadata.version("msgspec")
    needed = ['nothing-of-that-name>=3 ; extra == "train"', f"msgspec>={has}", "msgspec<99"]
    monkeypatch.setattr(metadata, "requires", lambda _: needed)
    check(file)
