"""What is in the images: for the right machine, nothing for CUDA, no more than was said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.arm64.images import used_mb

if TYPE_CHECKING:
    from tests.arm64.containers import Contain
    from tests.arm64.images import Builder

_AARCH64: Final = 183  # EM_AARCH64 of elf.h
# docs/boards.md states them; MB (10**6 bytes) of /opt/ffm, bytecode included.
_MOST_MB: Final = {"agent-lite": 150, "agent": 1000, "hub": 1050}

targets = pytest.mark.parametrize("target", list(_MOST_MB))


def machines(folder: Path) -> Iterator[tuple[Path, int]]:
    """Give each library and program below a folder, and for which machine it is."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                head = file.read(20)
            if head.startswith(b"\x7fELF"):
                yield path, int.from_bytes(head[18:20], "little")


@targets
def test_an_image_has_what_its_machine_runs_and_no_more(builder: Builder, target: str) -> None:
    image = builder.image(target)
    packages = image.root / "opt" / "ffm"
    found = dict(machines(packages))
    assert len(found) > 20
    assert set(found.values()) == {_AARCH64}
    assert not [path.name for path in found if "cuda" in path.name or "nvidia" in str(path)]
    # Nothing can be written there later, so what is not compiled is compiled at each start.
    for path in (packages / "lib/python3.11/site-packages/edge_agent").rglob("*.py"):
        assert list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc")), path
    assert used_mb(packages) <= _MOST_MB[target]


@targets
def test_an_image_s_commands_run_as_nobody_special(
    builder: Builder, contain: Contain, tmp_path: Path, target: str
) -> None:
    volume = tmp_path / "volume"
    image = builder.image(target)
    assert image.ids() == (1000, 1000)
    container = contain(image, volume, sees={})
    for command in (("ffm", "--version"), ("ffm-launch", "--help"), ("ffm", "profile", "list")):
        asked = container.start(*command[1:], log="asked", entrypoint=command[:1])
        assert asked.wait(120) == 0, asked.said()
    assert "rpi4-4gb" in asked.output()
