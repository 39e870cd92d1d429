"""What the versions must have been, reckoned offline from who was counted in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from ffm_common.files import make_folder
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors
from hub.config import HubConfig
from hub.making.candidate import Counted, Settings, add_up
from hub.making.downlink import Before, encode
from hub.versions.ledger import UpdateRow
from hub.versions.record import Record

BlobOf: TypeAlias = Callable[[UpdateRow, Tensors], bytes]
"""Gives the container of a counted update, made from these tensors."""


class Replayed(msgspec.Struct, frozen=True):
    """One version as it must have been: its container, and the tensors that agents decode."""

    blob: bytes
    tensors: dict[str, Array]


def replay(
    config: HubConfig,
    base: str,
    first: Tensors,
    counted: Sequence[Sequence[UpdateRow]],
    blob_of: BlobOf,
    *,
    scratch: Path,
    fresh: bool,
) -> list[Replayed]:
    """Make every version again, in one process, with nothing that could go wrong.

    Parameters
    ----------
    config, base
        The hub's.
    first
        What the hub made version 0 from.
    counted
        Per version, the updates that the next one was made from.
    scratch
        For updates, and for what a version carries over to the next.
    fresh
        Whether `first` is random numbers that agents draw themselves.
    """
    made: list[Replayed] = []
    chain = 0
    wanted, before = first, None
    settings = Settings(
        adapter=config.adapter,
        server=config.server,
        defence=config.defence,
        policy=config.public.policy,
    )
    record = Record()
    for version in range(len(counted) + 1):
        carry = make_folder(scratch / str(version))
        if version:
            current, carried = made[-1].tensors, scratch / str(version - 1)
            updates = []
            for row in counted[version - 1]:
                path = scratch / row.container
                path.write_bytes(blob_of(row, current))
                updates.append(Counted(row.agent, str(path), row.examples))
            found = add_up(
                current,
                updates,
                settings=settings,
                base=base,
                record=record,
                carried=carried,
                carry=carry,
            )
            wanted = found.tensors
            record = Record(state=found.step.state, medians=found.step.medians)
            before = Before(version - 1, current, carried)
        sent = encode(
            wanted,
            before,
            version=version,
            base=base,
            codecs=(config.codec_keyframe, config.codec_delta),
            keyframe=not 0 < chain < config.keyframe_every,
            seed=derive(config.seed, "hub", version),
            carry=carry,
            fresh=fresh and not version,
        )
        chain = 1 if sent.kind == "version" else chain + 1
        made.append(Replayed(sent.blob, sent.truth))
    return made
