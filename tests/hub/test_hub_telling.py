"""What the hub's log says of a version that was just made."""

from __future__ import annotations

import logging

import pytest

from benchmarks.rows import version_row
from hub.making.job import VersionResult
from hub.robust.judgement import WORDS, Judgement, Stage
from hub.telling import tell
from hub.versions.record import Record

WELL = Judgement(norm=1.0, cosine=None, weight=1.0, standing=1.0, flagged=False)


def made(**judgements: Judgement) -> VersionResult:
    return VersionResult(
        kind="delta",
        error=0.0,
        refused=None,
        tail=0.0,
        left_out=(),
        updates=2,
        content="",
        carried="",
        forgot=False,
        measure=None,
        restored=0,
        record=Record(judgements=judgements),
        seconds=1.0,
        peak_memory_mb=1.0,
    )


@pytest.mark.parametrize("why", [*WORDS, ""])
def test_who_is_to_be_looked_at_is_named_with_the_reason(
    why: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Judgement(norm=5.2, cosine=0.1, weight=0.0, standing=0.05, flagged=True, why=why)
    with caplog.at_level(logging.WARNING, "ffm.hub"):
        tell(version_row(version=3), made(ann=WELL, eve=bad))
    (line,) = caplog.messages
    assert line.startswith("version 3: the update of eve counts 0.05 of others: have a look at it")
    assert line.endswith(WORDS[why] if why else "look at it")


def test_nobody_is_named_where_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    cut = Judgement(norm=1.2, cosine=None, weight=0.5, standing=0.8, flagged=False, why="clip")
    with caplog.at_level(logging.WARNING, "ffm.hub"):
        tell(version_row(version=3), made(ann=WELL, bob=cut))
    assert caplog.messages == []
