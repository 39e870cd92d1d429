"""Every parser reads its seeds, takes what was found once, and a few thousand fresh inputs."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.fuzz import corpus
from benchmarks.fuzz.child import Current, Job, Report, current, memory_folder
from benchmarks.fuzz.mutate import MOST_BYTES, Form, mutate
from benchmarks.fuzz.parsers import BY_NAME, PARSERS
from ffm_common.tied import tied

INPUTS = 30_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[str, Report]]:
    """Feed all parsers in one process of their own: native code that crashes would be seen."""
    with tempfile.TemporaryDirectory(prefix="ffm-fuzz-", dir=memory_folder()) as folder:
        yield fed(Path(folder))


def fed(folder: Path) -> dict[str, Report]:
    shown = current(folder / "current")
    share = INPUTS / sum(parser.inputs for parser in PARSERS)
    jobs = [
        Job(
            parser=parser.name,
            seed=1,
            first=0,
            last=max(20, round(share * parser.inputs)),
            current=str(folder / "current"),
            found=str(folder / "found"),
            replay=True,
        )
        for parser in PARSERS
    ]
    command = ["-X", "faulthandler", "-m", "benchmarks.fuzz.child"]
    done = subprocess.run(
        tied([sys.executable, *command, msgspec.json.encode(jobs).decode()]),
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        number, data = shown.get()
        said = done.stderr.decode(errors="replace")[-3000:]
        pytest.fail(f"input {number} of {len(data)} bytes, {data[:500]!r}:\n{said}")
    found = [msgspec.json.decode(line, type=Report) for line in done.stdout.splitlines()]
    return {report.parser: report for report in found}


@pytest.mark.parametrize("name", list(BY_NAME))
def test_spoilt_input_gives_a_result_or_an_error_with_a_code(
    reports: dict[str, Report], name: str
) -> None:
    report = reports[name]
    assert report.findings == []
    assert report.memory_mb <= BY_NAME[name].memory_mb
    assert sum(report.outcomes.values()) == report.inputs


def test_most_parsers_get_past_their_first_check(reports: dict[str, Report]) -> None:
    """Else the fuzzer would test that check alone."""
    never = [name for name, report in reports.items() if not report.outcomes.get("read")]
    assert never == []


def test_every_parser_has_its_corpus_and_no_corpus_is_left_over() -> None:
    assert {path.name for path in corpus.CORPUS.iterdir()} == set(BY_NAME)
    assert [name for name in BY_NAME if not corpus.seeds(name)] == []


@pytest.mark.parametrize("form", ["bytes", "json", "lines"])
def test_the_same_seed_spoils_alike_and_never_beyond_the_limit(form: Form) -> None:
    seeds = [b'{"a": [1, 2.5, "x"], "b": {"c": null}}', b"key = 1\n[table]\nother = 'x'\n"]
    made = [mutate(seeds, form, random.Random(number)) for number in range(500)]
    assert made == [mutate(seeds, form, random.Random(number)) for number in range(500)]
    assert max(map(len, made)) <= MOST_BYTES
    assert len(set(made)) > 350


def test_what_is_parsed_when_a_process_dies_is_seen_by_its_parent(tmp_path: Path) -> None:
    shown = current(tmp_path / "current")
    assert shown.get() == (-1, b"")
    Current(tmp_path / "current").put(7, b"the last words")
    assert shown.get() == (7, b"the last words")
