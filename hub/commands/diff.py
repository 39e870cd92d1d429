"""How far two versions are apart, module by module, and what they are worth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from ffm_common.errors import VersionUnknown
from ffm_common.slices import pairs
from ffm_common.tensors import Tensors
from hub.commands.history import contributors, find, folder_of
from hub.config import Located
from hub.making.downlink import distances
from hub.versions.ledger import Ledger, VersionRow
from hub.versions.lineage import lineage
from learning.adapter import load_tensors


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A distance (Euclidean; of LoRA factors that of their products), and as a share of the first.

    `relative` is None where the first is all zeros.
    """

    name: str
    distance: float
    relative: float | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two versions beside each other.

    Parameters
    ----------
    first, second
        Their numbers.
    same
        Whether they have the same content, to the bit.
    products, rest
        Over all LoRA products, and over all else; None where there is none.
    modules
        One by one.
    accuracy, loss
        On the hub's evaluation data; None where not measured.
    contributors
        Agents with an update in a version between, the second one included.
    """

    first: int
    second: int
    same: bool
    products: Gap | None
    rest: Gap | None
    modules: list[Gap]
    accuracy: tuple[float, float]
    loss: tuple[float, float]
    contributors: list[str]


def difference(ledger: Ledger, located: Located, first: int, second: int) -> Difference:
    """Compare two versions.

    Raises
    ------
    VersionUnknown
        One is not there, or its adapter is kept no more.
    AdapterInvalid
        The disk has spoiled one.
    """
    rows = ledger.versions()
    one, other = find(rows, first), find(rows, second)
    before, after = (_tensors(located, row) for row in (one, other))
    factors = pairs(before)
    paired = {name for pair in factors for name in pair}
    rest = [name for name in sorted(before) if name not in paired]
    modules = [
        _gap(a.removesuffix(".lora_A.weight"), _part(before, (a, b)), _part(after, (a, b)))
        for a, b in factors
    ]
    modules += [_gap(name, _part(before, [name]), _part(after, [name])) for name in rest]
    return Difference(
        first=first,
        second=second,
        same=one.content == other.content,
        products=_gap("products", _part(before, paired), _part(after, paired)) if paired else None,
        rest=_gap("rest", _part(before, rest), _part(after, rest)) if rest else None,
        modules=modules,
        accuracy=(one.accuracy, other.accuracy),
        loss=(one.loss, other.loss),
        contributors=contributors(ledger, _between(rows, one, other)),
    )


def _tensors(located: Located, row: VersionRow) -> Tensors:
    folder: Path | None = folder_of(located, row)
    if folder is None:
        raise VersionUnknown(f"the adapter of version {row.version} is kept no more")
    return load_tensors(folder, row.content)


def _part(tensors: Tensors, names: Collection[str]) -> Tensors:
    return {name: tensors[name] for name in names}


def _gap(name: str, before: Tensors, after: Tensors) -> Gap:
    """Give the distance of two parts, which hold either LoRA factors or none."""
    distance = max(distances(before, after))
    length = max(distances(before, {}))
    return Gap(name=name, distance=distance, relative=distance / length if length else None)


def _between(rows: Sequence[VersionRow], one: VersionRow, other: VersionRow) -> list[VersionRow]:
    """List the versions that lead from the older one to the newer one."""
    old, new = sorted((one.version, other.version))
    way = set(lineage([row for row in rows if row.version <= new]))
    return [row for row in rows if old < row.version <= new and row.version in way]
