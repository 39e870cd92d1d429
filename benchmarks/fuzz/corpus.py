"""The corpus: for each parser a folder of small files, valid ones (seeds) and what was found once.

A file is named by what it is for and by its digest, and never changed: a parser must read each seed
for ever, and refuse or read everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ffm_common.files import make_folder, sha256_bytes

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "corpus"
_SEED, _FOUND = "seed-", "found-"


def write_seeds(parser: str, seeds: Mapping[str, bytes]) -> None:
    """Replace the seeds of a parser."""
    folder = make_folder(CORPUS / parser)
    for path in folder.glob(f"{_SEED}*"):
        path.unlink()
    for name, data in seeds.items():
        (folder / f"{_SEED}{name}").write_bytes(data)


def seeds(parser: str) -> dict[str, bytes]:
    """Give the valid inputs by name, in order of names."""
    return _read(parser, _SEED)


def findings(parser: str) -> dict[str, bytes]:
    """Give what once crashed, hung or was too large."""
    return _read(parser, _FOUND)


def keep(parser: str, data: bytes, folder: Path) -> Path:
    """Write a finding down."""
    path = make_folder(folder / parser) / f"{_FOUND}{sha256_bytes(data)[:12]}"
    path.write_bytes(data)
    return path


def _read(parser: str, prefix: str) -> dict[str, bytes]:
    paths = sorted((CORPUS / parser).glob(f"{prefix}*"))
    return {path.name.removeprefix(prefix): path.read_bytes() for path in paths}
