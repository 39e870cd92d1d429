"""Making a version: the counted updates are added up, then a worker refreshes and judges it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import partial
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
from hub.opening import Opener
from hub.registry import Registry
from hub.server_optimizer import load_moments, save_moments, step
from hub.worker import ADAPTER, BLOB, CARRIED, VersionJob, VersionResult
from learning.process import Worker
from profiles.limits import Limits
from profiles.profile import Profile

log = logging.getLogger("ffm.hub")

_ATTEMPTS = 3
_CANDIDATE = "candidate.safetensors"
# Of the disk space that the profile gives, the hub's data may take this part, tokenized.
_TOKENS_SHARE = 8


class Made(msgspec.Struct, frozen=True):
    """A version that is ready.

    Parameters
    ----------
    blob
        Its container.
    adapter, carried
        Folders for `Registry.commit`.
    """

    blob: bytes
    adapter: Path
    carried: Path
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
        For the worker's files; emptied after every version. What the version shall carry over to
        the next (see `Registry.commit`) goes into `CARRIED` there, in `add_up` or in the worker.
    registry
        The current version, with what it carries over.
    """

    def __init__(
        self,
        where: Located,
        base_digest: str,
        task: Task,
        profile: Profile,
        *,
        folder: Path,
        registry: Registry,
    ) -> None:
        self._where = where
        self._base_digest = base_digest
        self._task = task
        self._profile = profile
        self._folder = folder
        self._registry = registry
        self._worker: Worker[VersionResult] | None = None
        self._tail = 0.0
        self._failures = 0

    @property
    def busy(self) -> bool:
        """Whether a version is being made."""
        return self._worker is not None

    def begin(self, version: int) -> None:
        """Make a version from a fresh adapter: the first one."""
        self._empty_carried()
        self._start(version, None)

    def add_up(
        self, version: int, current: Tensors, counted: Mapping[str, tuple[Path, int]]
    ) -> None:
        """Make a version from the current one and the updates counted for it.

        Parameters
        ----------
        counted
            Agent -> the file of its update's container and how many examples made it.
        """
        self._empty_carried()
        adapter, server = self._task.adapter, self._where.config.server
        opener = Opener(current, adapter, self._base_digest)
        contributions = {
            agent: Contribution(partial(opener.read, path), examples, opener.rank(path))
            for agent, (path, examples) in counted.items()
        }
        mean = aggregate(current, contributions, least=adapter.ranks[0])
        self._tail = mean.tail
        _, carried = self._registry.folders or (None, None)
        moments = load_moments(carried, server, current)
        made, moments = step(server, current, mean.tensors, moments)
        save_moments(self._folder / CARRIED, moments)
        candidate = make_folder(self._folder) / _CANDIDATE
        shape.save(candidate, made)
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
        return Made(
            (self._folder / BLOB).read_bytes(),
            self._folder / ADAPTER,
            self._folder / CARRIED,
            result,
            self._tail,
        )

    def clear(self) -> None:
        """Delete the worker's files: the version is safe in the registry."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _empty_carried(self) -> None:
        """Make room for what this version carries over; a failed attempt may have left some."""
        shutil.rmtree(self._folder / CARRIED, ignore_errors=True)
        make_folder(self._folder / CARRIED)

    def _start(self, version: int, candidate: Path | None) -> None:
        config, public = self._where.config, self._where.config.public
        before, carried = self._registry.folders or (None, None)
        limits = Limits.of(self._profile)
        job = VersionJob(
            base=str(self._where.base),
            base_digest=self._base_digest,
            version=version,
            candidate=None if candidate is None else str(candidate),
            task=self._task,
            before=None if before is None else str(before),
            carried=None if carried is None else str(carried),
            codecs=(config.codec_keyframe, config.codec_delta),
            keyframe=not 0 < len(self._registry.chain) < config.keyframe_every,
            train=str(self._where.train),
            evaluation=str(self._where.evaluation),
            text=public.text,
            label=public.label,
            steps=public.steps,
            rate_scale=public.rate_scale,
            threads=limits.threads,
            seed=derive(self._task.seed, "hub", version),
            tokens=str(self._folder.with_name("tokens")),
            tokens_mb=self._profile.disk_mb // _TOKENS_SHARE,
        )
        self._worker = Worker("hub.worker", job, VersionResult, folder=self._folder, limits=limits)
