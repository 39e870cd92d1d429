"""Images and boots for arm64, emulated: `make test-arm64`; the ordinary run leaves them out.

What they download and build is kept in a folder, and a second run takes minutes. What a machine
lacks is skipped by name; a run in which nothing ran is no success.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.conftest import new_town, small_base, town

if TYPE_CHECKING:
    from tests.arm64.containers import Contain, Container
    from tests.arm64.images import Builder, Image
    from tests.e2e.conftest import Town

__all__ = ["new_town", "small_base", "town"]

_FOLDER: Final = Path(__file__).parent
_NOTHING_RAN: Final = 75  # EX_TEMPFAIL, as `make audit` gives where it could not ask


@pytest.fixture(scope="session")
def cache() -> Path:
    """Give the folder for what is downloaded and built, which outlives a run."""
    path = Path(os.environ.get("FFM_ARM64_CACHE") or Path.home() / ".cache" / "ffm-arm64")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def builder(cache: Path) -> Iterator[Builder]:
    """Give what builds images, with an emulator for what is built."""
    from tests.arm64 import emulation
    from tests.arm64.images import Builder

    emulation.ready(cache)
    with contextlib.closing(Builder(cache)) as builder:
        yield builder


@pytest.fixture
def contain(town: Town) -> Iterator[Contain]:
    """Give a maker of containers, all of which end before the town does."""
    from tests.arm64.containers import Container

    with contextlib.ExitStack() as made:

        def make(
            image: Image, volume: Path, *, sees: Mapping[str, Path], memory_mb: int | None = None
        ) -> Container:
            container = Container(town, image, volume, sees=sees, memory_mb=memory_mb)
            return made.enter_context(contextlib.closing(container))

        yield make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is here."""
    for item in items:
        if item.path.is_relative_to(_FOLDER):
            item.add_marker(pytest.mark.arm64)


def _skipped(reporter: pytest.TerminalReporter) -> list[str]:
    found = []
    for report in reporter.stats.get("skipped", []):
        if isinstance(report, pytest.TestReport) and "arm64" in report.keywords:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            found.append(f"SKIPPED {report.nodeid}\n    {str(why).removeprefix('Skipped: ')}")
    return found


def _nothing_ran(reporter: pytest.TerminalReporter) -> bool:
    return not any(reporter.stats.get(kind) for kind in ("passed", "failed", "error"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give a status of its own to a run that has shown nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _skipped(reporter) and _nothing_ran(reporter):
        session.exitstatus = _NOTHING_RAN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, and in red, what was not tested."""
    if skipped := _skipped(terminalreporter):
        nothing = _nothing_ran(terminalreporter)
        title = "NOTHING WAS TESTED" if nothing else f"{len(skipped)} NOT TESTED, ON AN arm64 BOARD"
        terminalreporter.section(title, sep="!", red=True, bold=True)
        for line in skipped:
            terminalreporter.line(line, red=True)
