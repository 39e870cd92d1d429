"""The job of the hub's worker, and its answer: what crosses between the hub's two processes."""

from __future__ import annotations

import msgspec

from ffm_common.task import Task
from hub.gate.ruling import Finding
from hub.making.candidate import Counted, Settings
from hub.making.public_files import PublicData
from hub.versions.ledger import Kind, LeftOut
from hub.versions.record import Record
from hub.versions.rollback import Rollback
from learning.trainer import Measure

BLOB = "version.ffm"
ADAPTER = "adapter"
CARRIED = "carried"


class Former(msgspec.Struct, frozen=True, kw_only=True):
    """The version before: folders of its adapter and of what it carries over, with digests."""

    adapter: str
    content: str
    carried: str
    carried_digest: str


class VersionJob(msgspec.Struct, frozen=True, kw_only=True):
    """Make `version` from the one before and the updates counted for that.

    Parameters
    ----------
    before
        None for version 0, which is a fresh adapter.
    record
        Of the version before, its budget as the guard leaves it.
    guard
        Why that is what it is.
    counted, settings
        What is added up, and how.
    codecs, keyframe
        Of keyframes and of deltas; whether a keyframe is due.
    plain
        Add up, encode, and nothing else: no base is opened, no step taken, nothing measured. For
        a hub whose training fails again and again.
    rollback
        The older version whose content this one gets; then nothing is added up.
    devices
        What devices say of the version before.
    changes
        By how much the loss has changed with versions so far (`hub.gate.judges.usual`).
    public
        What is trained on: version 0 is warmed up, of others a step starts where the devices'
        did. None: nothing.
    evaluation, text, label
        The hub's other data, and the columns of both.
    tokens, tokens_mb
        Folder that keeps them tokenized from version to version, and its limit; None: memory.
    """

    base: str
    base_digest: str
    version: int
    before: Former | None
    record: Record = Record()
    guard: str = ""
    counted: tuple[Counted, ...] = ()
    task: Task
    settings: Settings
    codecs: tuple[str, str]
    keyframe: bool
    plain: bool = False
    rollback: Rollback | None = None
    devices: Finding | None = None
    changes: tuple[float, ...] = ()
    public: PublicData | None
    evaluation: str
    text: str | None
    label: str | None
    threads: int
    seed: int
    tokens: str | None = None
    tokens_mb: int = 0


class VersionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the version travels and how good it is, and how the worker fared.

    Parameters
    ----------
    kind, error, refused
        As in `Sent`.
    tail
        As in `Step`.
    left_out
        Counted updates that are not in it, and why.
    updates
        How many updates are in it.
    content, carried
        Digests of its tensors and of what it carries over.
    forgot
        Whether what the version before carries over was damaged, so that it was not used.
    measure
        None for a plain version, and for one that has an older one's content.
    restored
        That older one, if it has one's.
    record
        How it came about.
    """

    kind: Kind
    error: float
    refused: float | None
    tail: float
    left_out: tuple[LeftOut, ...]
    updates: int
    content: str
    carried: str
    forgot: bool
    measure: Measure | None
    restored: int | None = None
    record: Record
    seconds: float
    peak_memory_mb: float
