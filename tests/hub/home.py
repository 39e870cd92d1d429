"""A hub's folders with versions in them, made without training: for tests of what comes after."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from benchmarks.rows import version_row
from federation.transfer.blobs import BlobStore
from ffm_common import tensors as shape
from ffm_common.files import make_folder
from ffm_common.tensors import Array, content_digest
from hub.config import Gate
from hub.gate.ruling import Ruling
from hub.making.carried import digest
from hub.making.downlink import RESIDUAL
from hub.robust.judgement import Judgement
from hub.versions import record
from hub.versions.ledger import Ledger, LeftOut, UpdateRow, VersionRow, VoteRow
from hub.versions.record import Record
from hub.versions.registry import Registry
from hub.versions.rollback import Rollbacks
from learning.adapter import WEIGHTS
from quantization.updates.container import pack

BASE = "ab" * 32
STANDING = Judgement(norm=1.0, cosine=None, weight=0.5, standing=1.0, flagged=False)
TOO_LONG = Judgement(norm=5.2, cosine=None, weight=0.0, standing=0.0, flagged=True, why="threshold")


def tensors(seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        "layer.lora_A.weight": draw.standard_normal((4, 20)).astype(np.float32),
        "layer.lora_B.weight": draw.standard_normal((30, 4)).astype(np.float32),
        "bias": draw.standard_normal(3).astype(np.float32),
    }


class Home:
    """A hub's folders with its versions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(folder / "ledger.db")
        self.store = BlobStore(folder / "blobs")
        self.registry = Registry(
            folder / "versions", folder / "carried", self.ledger, self.store, BASE
        )
        self.rollbacks = Rollbacks(self.ledger, self.registry, Gate())

    def commit(
        self, seed: int, *, parent: int | None = None, left_out: tuple[LeftOut, ...] = ()
    ) -> VersionRow:
        """Publish tensors drawn by a seed, made from the version before or from `parent`."""
        version = self.registry.next
        made = tensors(seed)
        blob = pack(made, kind="version", version=version, base=BASE, codec="fp32", seed=0)
        folders = [self.folder / "work" / name for name in ("adapter", "carried")]
        for folder, name in zip(folders, (WEIGHTS, RESIDUAL), strict=True):
            shutil.rmtree(folder, ignore_errors=True)
            shape.save(make_folder(folder) / name, made)
        past = version - 1 if parent is None and version else parent
        said = Record(
            parent=past,
            judgements={"ann": STANDING, "bob": STANDING, "eve": TOO_LONG} if version else {},
            reputation={"ann": 0.8, "bob": 0.8, "eve": 0.8},
            medians={"others": float(version)},
            verdict=Ruling(outcome="accepted", why=""),
        )
        row = version_row(
            version=version,
            blob=self.registry.keep_blob(blob),
            size=len(blob),
            loss=1.0 + seed,
            updates=2,
            closed_because="buffer",
            content=content_digest(made),
            carried=digest(folders[1]),
            record=record.encode(said),
        )
        self.registry.commit(row, folders[0], folders[1], left_out)
        return row

    def vote(self, version: int, loss: float) -> None:
        for number in range(5):
            self.ledger.add_vote(
                VoteRow(
                    agent=f"agent-{number}",
                    version=version,
                    loss=loss + 0.1 * number,
                    accuracy=None,
                    examples=20,
                    received=0.0,
                )
            )

    def update(self, agent: str, version: int, counted_for: int) -> None:
        blob = pack(tensors(7), kind="update", version=version, base=BASE, codec="fp32", seed=0)
        digest = self.store.put(blob)
        self.ledger.add_update(
            UpdateRow(
                agent=agent,
                version=version,
                digest=digest,
                size=len(blob),
                container=digest,
                examples=10,
                loss=None,
                received=0.0,
                counted_for=counted_for,
            )
        )

    def close(self) -> None:
        self.ledger.close()
