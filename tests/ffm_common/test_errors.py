from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffm_common import errors
from ffm_common.errors import DataLabels, FfmError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
DRAWN = re.compile(r"^(?P<indent>[\s│]*)[├└]── (?P<name>\w+)(?:\s+(?P<code>[a-z-]+))?$")


def tree(kind: type[FfmError] = FfmError, depth: int = 0) -> Iterator[tuple[int, type[FfmError]]]:
    """Give every class below `kind` with its depth, in the order of the files."""
    for child in kind.__subclasses__():
        if child.__module__.startswith(f"{errors.__name__}."):
            yield depth, child
            yield from tree(child, depth + 1)


LEAVES = [kind for _, kind in tree() if not kind.__subclasses__()]
leaves = pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)


def row(leaf: type[FfmError]) -> str:
    """Give the line that docs/errors.md must have for a leaf."""
    what = (inspect.getdoc(leaf) or "").splitlines()[0].rstrip(".")
    return f"| `{leaf.code}` | {what} | {leaf.remedy} |"


def test_the_drawing_is_the_tree() -> None:
    drawn = [
        (len(found["indent"]) // 4 - 1, found["name"], found["code"])
        for found in map(DRAWN.match, (errors.__doc__ or "").splitlines())
        if found
    ]
    real = [
        (depth, kind.__name__, None if kind.__subclasses__() else kind.code)
        for depth, kind in tree()
    ]
    assert drawn == real, "the drawing at the top of ffm_common/errors/__init__.py is not the tree"


def test_every_leaf_has_a_code_of_its_own() -> None:
    codes = [leaf.code for leaf in LEAVES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@leaves
def test_a_leaf_has_its_own_code_remedy_and_docstring(leaf: type[FfmError]) -> None:
    assert "code" in vars(leaf)
    assert "remedy" in vars(leaf)
    assert leaf.__doc__


@leaves
def test_a_leaf_ends_a_command_with_one_readable_line(leaf: type[FfmError]) -> None:
    line = leaf("what happened").line()
    assert line == f"error [{leaf.code}]: what happened -- {leaf.remedy}"
    assert leaf.exit_status in {1, 2}


def test_the_place_may_know_a_better_remedy() -> None:
    error = errors.PortBusy("port 1883 is in use", remedy="ask Anna")
    assert error.line() == "error [port-busy]: port 1883 is in use -- ask Anna"


def test_the_manual_has_a_line_for_each_leaf_in_the_order_of_the_tree() -> None:
    found = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    wanted = [row(leaf) for leaf in LEAVES]
    missing = "\n".join(line for line in wanted if line not in found)
    outdated = "\n".join(line for line in found if line not in wanted)
    assert not missing, f"add to docs/errors.md, in the order of the tree:\n{missing}"
    assert not outdated, f"remove from docs/errors.md:\n{outdated}"
    assert found == wanted, "docs/errors.md is not in the order of the tree"


def test_what_is_quoted_of_data_is_in_the_line_and_not_in_the_message() -> None:
    error = DataLabels("no example has a label of this task", quotes="one is 'x'")
    assert "of this task; one is 'x' -- " in error.line()
    assert str(error) == error.message == "no example has a label of this task"
