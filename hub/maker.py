"""Making a version: the counted updates are added up, then a worker refreshes and judges it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec

from ffm_common import tensors as shape
from ffm_common.errors import FfmError
from ffm_common.files import make_folder
from ffm_common.seeds import derive
from ffm_common.task import Task
from ffm_common.tensors import Tensors
from hub.aggregation import Contribution, aggregate
from hub.config import Located
from hub.worker import ADAPTER, BLOB, VersionJob, VersionResult
from learning.process import Worker
from profiles.limits import Limits
from profiles.profile import Profile
from quantization.updates.container import shapes_of, unpack

log = logging.getLogger("ffm.hub")

_ATTEMPTS = 3
_CANDIDATE = "candidate.safetensors"


class Made(msgspec.Struct, frozen=True):
    """A version that is ready: its container, its adapter folder, and how good it is."""

    blob: bytes
    adapter: Path
    result: VersionResult
    tail: float


class Maker:
    """Makes one version at a time.

    Parameters
    ----------
    where, base_digest, task
        What the federation learns, and on which data of the hub's the version is refreshed.
    profile
        What the worker may use.
    folder
        For the worker's files; emptied after every version.
    """

    def __init__(
        self, where: Located, base_digest: str, task: Task, profile: Profile, folder: Path
    ) -> None:
        self._where = where
        self._base_digest = base_digest
        self._task = task
        self._profile = profile
        self._folder = folder
        self._worker: Worker[VersionResult] | None = None
        self._tail = 0.0
        self._failures = 0

    @property
    def busy(self) -> bool:
        """Whether a version is being made."""
        return self._worker is not None

    def begin(self, version: int) -> None:
        """Make a version from a fresh adapter: the first one."""
        self._start(version, None)

    def add_up(self, version: int, current: Tensors, blobs: dict[str, tuple[bytes, int]]) -> None:
        """Make a version from the current one and the updates counted for it.

        Parameters
        ----------
        blobs
            Agent -> its update's container and how many examples made it.
        """
        layout = shapes_of(current)
        contributions = {
            agent: Contribution(unpack(blob, layout, base=self._base_digest)[1], examples)
            for agent, (blob, examples) in blobs.items()
        }
        result = aggregate(current, contributions)
        self._tail = result.tail
        candidate = make_folder(self._folder) / _CANDIDATE
        shape.save(candidate, result.tensors)
        self._start(version, candidate)

    def poll(self) -> Made | None:
        """Give the version once it is ready; None while it is made, or when an attempt failed.

        Raises
        ------
        FfmError
            Several attempts in a row have failed.
        """
        if self._worker is None or not self._worker.poll():
            return None
        worker, self._worker = self._worker, None
        try:
            result = worker.result()
        except FfmError as error:
            self._failures += 1
            log.error("making a version failed: %s", error.message)
            if self._failures >= _ATTEMPTS:
                raise
            return None
        self._failures = 0
        return Made((self._folder / BLOB).read_bytes(), self._folder / ADAPTER, result, self._tail)

    def clear(self) -> None:
        """Delete the worker's files: the version is safe in the registry."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _start(self, version: int, candidate: Path | None) -> None:
        public = self._where.config.public
        limits = Limits.of(self._profile)
        job = VersionJob(
            base=str(self._where.base),
            base_digest=self._base_digest,
            version=version,
            candidate=None if candidate is None else str(candidate),
            task=self._task,
            codec=self._where.config.codec_down,
            train=str(self._where.train),
            evaluation=str(self._where.evaluation),
            text=public.text,
            label=public.label,
            steps=public.steps,
            rate_scale=public.rate_scale,
            threads=limits.threads,
            seed=derive(self._task.seed, "hub", version),
        )
        self._worker = Worker("hub.worker", job, VersionResult, folder=self._folder, limits=limits)
