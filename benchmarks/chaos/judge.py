"""After the faults: everything is there, once and unaltered, at the price that it may have."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from benchmarks.chaos import fixed
from benchmarks.chaos.replay import replay
from benchmarks.chaos.town import CODEC, Town
from benchmarks.chaos.wire import Pass
from federation.messages import Done
from federation.transfer.outbox import Outbox
from ffm_common.files import sha256_bytes
from ffm_common.seeds import derive
from ffm_common.tensors import Tensors, content_digest
from hub import config as hubs
from hub.versions.ledger import UpdateRow, VersionRow, read_versions
from learning import adapter, base


class Upload(msgspec.Struct, frozen=True):
    """One update's way up: how often it was interrupted, and chunks sent again.

    A chunk that is sent again is put down to the last end before that: so what one event costs is
    not shared out, though the broker's end is that of everybody's connections, too.

    Parameters
    ----------
    cuts
        Connections of the agent's that ended, whatever ended them.
    beyond
        Ends of the hub, its connection or the broker: what the broker had taken and not handed on
        is gone with them.
    cut_again, beyond_again
        The most chunks sent again after one end: of the agent's connection alone, and of the other.
    calm_again
        Chunks sent again without any end.
    """

    cuts: int
    beyond: int
    cut_again: int
    beyond_again: int
    calm_again: int


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Parameters
    ----------
    wrong
        One sentence for each thing that should not be; empty is what we want.
    receipts, counted
        Updates that an agent holds a receipt for, and updates in the ledger.
    blob_bytes, link_bytes
        What had to pass, updates counted and versions fetched, and what agents' links have seen.
    uploads
        Of every update that was sent up.
    """

    wrong: list[str]
    versions: int
    receipts: int
    counted: int
    blob_bytes: int
    link_bytes: int
    uploads: list[Upload]


def judge(town: Town) -> Judgement:
    """Look at what an ended town has left."""
    wrong: list[str] = []
    rows = _updates(town.ledger)
    versions = read_versions(town.ledger)
    receipts = _check_receipts(town, rows, wrong)
    _check_versions(town, rows, versions, wrong)
    blobs = sum(row.size for row in rows)
    sizes = {row.blob: row.size for row in versions}
    for wire in town.wires.values():
        for blob, size in sizes.items():
            passed = {chunk for chunk in wire.down if chunk[0] == blob}
            if sum(wire.sizes[chunk] for chunk in passed) == size:
                blobs += size
    return Judgement(
        wrong=wrong,
        versions=len(versions) - 1,
        receipts=receipts,
        counted=len(rows),
        blob_bytes=blobs,
        link_bytes=sum(link.up + link.down for link in town.links.values()),
        uploads=[upload for name in town.names for upload in _uploads(town, name)],
    )


def _updates(ledger: Path) -> list[UpdateRow]:
    address = f"{ledger.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
        db.row_factory = sqlite3.Row
        rows = db.execute("SELECT * FROM updates ORDER BY version, agent").fetchall()
        return [UpdateRow(**dict(row)) for row in rows]


def _check_receipts(town: Town, rows: Sequence[UpdateRow], wrong: list[str]) -> int:
    """Every update with a receipt is in one version's set; nothing is there twice."""
    where: dict[str, list[UpdateRow]] = {}
    for row in rows:
        where.setdefault(row.digest, []).append(row)
    wrong += [f"{row.agent}'s for {row.version}: {row.fault}" for row in rows if row.fault]
    wrong += [f"{digest} is counted twice" for digest, found in where.items() if len(found) > 1]
    receipts = 0
    for name in town.names:
        outbox = Outbox(town.home(name) / "state" / "outbox")
        with contextlib.closing(outbox):
            for settled in outbox.history():
                if not isinstance(settled.receipt, Done):
                    continue
                receipts += 1
                offer = settled.offer
                found = [(row.agent, row.version) for row in where.get(offer.digest, [])]
                if found != [(name, offer.version)]:
                    wrong.append(f"{name} has a receipt for version {offer.version}: {found}")
    return receipts


def _check_versions(
    town: Town, rows: Sequence[UpdateRow], versions: Sequence[VersionRow], wrong: list[str]
) -> None:
    """Each version, and each update in it, is what it must be without any fault, bit for bit."""
    config = hubs.load(town.folder / "hub" / "hub.toml").config
    digest = base.describe(town.base).digest
    counted = [[row for row in rows if row.version == version.version] for version in versions]

    def blob_of(row: UpdateRow, current: Tensors) -> bytes:
        if town.setting.training:  # nobody can say what it must have been, but the agent's digest
            made = (town.archive / row.container).read_bytes()
        else:
            seed = fixed.seed_of(town.setting.seed, row.agent, row.version)
            made = fixed.update(current, base=digest, version=row.version, codec=CODEC, seed=seed)
        if sha256_bytes(made) != row.container:
            wrong.append(f"the update of {row.agent} for version {row.version} was altered")
        return made

    if town.setting.training:
        first = adapter.load_tensors(town.state / "versions" / "0")
    else:
        first = fixed.fresh(derive(config.seed, "hub", 0))
    with tempfile.TemporaryDirectory() as scratch:
        made = replay(
            config,
            digest,
            first,
            counted[:-1],
            blob_of,
            scratch=Path(scratch),
            fresh=town.setting.training,
        )
    for row in counted[-1]:  # taken, and not in a version yet
        blob_of(row, made[-1].tensors)
    for version, again, before in zip(versions, made, [[], *counted], strict=False):
        if version.blob != sha256_bytes(again.blob):
            wrong.append(f"version {version.version} is not what its updates give")
        if version.updates != len(before):
            wrong.append(f"version {version.version} says {version.updates} updates: {len(before)}")
    final = adapter.load_tensors(town.state / "versions" / str(versions[-1].version))
    if content_digest(final) != content_digest(made[-1].tensors):
        wrong.append("the final adapter is another than without faults")


def _uploads(town: Town, name: str) -> list[Upload]:
    blobs: dict[str, list[list[Pass]]] = {}
    for (digest, _), passes in town.wires[name].passes.items():
        blobs.setdefault(digest, []).append(passes)
    ends = sorted(town.ends_beyond_agents())
    return [upload_of(chunks, ends) for chunks in blobs.values()]


def upload_of(chunks: Sequence[Sequence[Pass]], ends: Sequence[float]) -> Upload:
    """Judge an upload by the passes of each of its chunks; `ends` are those beyond, ascending."""
    last: Counter[tuple[int, int]] = Counter()  # connection, ends beyond so far -> chunks again
    beyond: set[tuple[int, int]] = set()
    calm = 0
    for passes in chunks:
        after = [(one.connection, bisect(ends, one.at)) for one in passes]
        for before, now in pairwise(after):
            if before == now:
                calm += 1
                continue
            last[now] += 1
            if before[1] != now[1]:
                beyond.add(now)
    times = [one.at for passes in chunks for one in passes]
    return Upload(
        cuts=len({one.connection for passes in chunks for one in passes}) - 1,
        beyond=bisect(ends, max(times)) - bisect(ends, min(times)),
        cut_again=max((count for end, count in last.items() if end not in beyond), default=0),
        beyond_again=max((last[end] for end in beyond), default=0),
        calm_again=calm,
    )
