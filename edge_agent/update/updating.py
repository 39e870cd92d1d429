"""From a release that the hub announces to the restart that puts it on trial.

Its wheels are fetched as a version's blobs are, while the agent does its work. Placing and checking
them wait until no worker runs, and until they are over none is begun. The launcher (`ffm_launch`)
does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

import ffm_launch
from edge_agent.config import Located
from edge_agent.journal import Journal
from edge_agent.update import choosing
from edge_agent.update.placing import LATER
from edge_agent.update.step import Step
from federation.messages import Gone, Release
from federation.pace import Throttle
from federation.topics import Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.download import Downloader
from federation.transfer.upload import Publish
from ffm_common.errors import (
    BlobOversize,
    FfmError,
    MessageInvalid,
    MessageStale,
    ReleaseFailed,
    ReleaseUnsuited,
    SignatureInvalid,
    StorageError,
)
from ffm_common.files import make_folder, write_atomic

log = logging.getLogger("ffm.agent")

_PLACING_S: Final = 600.0
_CHECKING_S: Final = 120.0
_AGAIN_S: Final = 600.0


class Updating:
    """The updates of one agent. Times are monotonic seconds.

    Parameters
    ----------
    located
        Its configuration.
    journal
        Remembers which release was the last.
    topics, publish, throttle
        How wheels are asked for.
    tell
        Gets a line for those who look at the agent from elsewhere.
    """

    def __init__(
        self,
        located: Located,
        journal: Journal,
        *,
        topics: Topics,
        publish: Publish,
        throttle: Throttle,
        tell: Callable[[str], None],
    ) -> None:
        self._config = located.config
        self._file = located.file
        self._journal = journal
        self._tell = tell
        self._hub = ""
        if located.identity is not None:
            self._hub = located.identity.membership.anchor.signs
        self._issued = journal.released(self._hub)
        self._here = choosing.here()
        prefix = os.environ.get(ffm_launch.PREFIX_VARIABLE)
        self._prefix = None if prefix is None else Path(prefix)
        self._heard = _inherited()
        self._folder = make_folder(located.folder / "update")
        self._store = BlobStore(self._folder / "blobs")
        self._downloader = Downloader(
            topics,
            self._config.id,
            self._store,
            publish,
            on_complete=self._on_whole,
            on_gone=lambda digest: log.warning("the hub does not have wheel %s", digest[:12]),
            max_bytes=self._config.update.max_mb << 20,
            throttle=throttle,
        )
        self._release: Release | None = None  # the one that is to be taken
        self._whole = False  # whether all of it is here,
        self._placed = ""  # where it is unpacked,
        self._checked = False  # and whether it could run
        self._step: Step | None = None
        self._seen = ""  # the name of the last release that was looked at
        self._again_at = float("-inf")
        self._put_off = False
        self.switched = False
        """Whether this process is to end, so that another one starts from the new release."""

    @property
    def busy(self) -> bool:
        """Whether no work is to be begun now."""
        return self._step is not None or self.switched

    def heard_hub(self) -> None:
        """Tell the launcher that this software works: it has heard the hub."""
        if self._heard is not None:
            with contextlib.suppress(OSError):  # the launcher has gone; it stays open else
                os.write(self._heard, b"1")
            self._heard = None

    def on_connected(self) -> None:
        """Ask for what is missing, from now on."""
        if not self._put_off:
            self._downloader.on_connected()

    def hold(self) -> None:
        """Ask for nothing until `on_connected`."""
        self._downloader.hold()

    def on_chunk(self, digest: str, index: int, payload: bytes) -> None:
        """Take a chunk, if it is of a wheel."""
        with self._contained():
            self._downloader.on_chunk(digest, index, payload)

    def on_gone(self, gone: Gone) -> None:
        """Hear that the hub does not have a blob."""
        self._downloader.on_gone(gone)

    def on_release(self, release: Release) -> None:
        """Take notice of what the hub releases.

        Raises
        ------
        MessageInvalid
            It is for another federation.
        SignatureInvalid
            In this federation nothing is signed.
        MessageStale
            It is older than one heard before.
        """
        if not self._hub:
            raise SignatureInvalid(
                "a release in a federation where nothing is signed",
                remedy='say trust = "enrolled" in hub.toml to have releases',
            )
        if release.federation != self._config.federation:
            raise MessageInvalid(f"release of federation {release.federation!r}")
        if release.issued < self._issued:
            raise MessageStale(f"release {release.name} is older than one heard before")
        if release.name == self._seen:
            return
        self._seen = release.name
        if release.issued > self._issued:
            self._issued = release.issued
            with contextlib.suppress(StorageError):  # a full disk is told elsewhere
                self._journal.set_released(self._hub, release.issued)
        self._forget()
        if not release.wheels or release.version == self._here.version:
            return
        refusal = choosing.objection(release, self._here) or self._hindrance(release)
        if refusal is not None:
            self._refuse(refusal)
        elif not self._config.update.auto:
            log.info(
                "release %s is there, this is %s; `[update] auto = true` in %s takes it",
                release.version,
                self._here.version,
                self._file,
            )
        else:
            self._take(release)

    def tick(self, now: float, *, free: bool, in_touch: bool) -> None:
        """Let time pass.

        Parameters
        ----------
        free
            Whether nothing is being trained, and the board may work.
        in_touch
            Whether the hub is there: else a release on trial could not hear it either.
        """
        with self._contained():
            self._downloader.tick(now)
            if self._put_off and now >= self._again_at:
                self._put_off = False
                if self._release is not None and not self._placed:
                    self._fetch(self._release)
                if in_touch:
                    self._downloader.on_connected()
            if self._step is not None:
                self._end_step(self._step)
            if self._release is None or self._prefix is None or self._step is not None:
                return
            if not (free and self._whole) or now < self._again_at:
                return
            if ffm_launch.trial_in(self._prefix) is not None:
                return  # what runs has still to show that it works
            if not self._placed:
                self._place(self._release, self._prefix)
            elif not self._checked:
                self._check(self._release, self._prefix)
            elif in_touch:
                log.info("release %s is put on trial; starting anew", self._release.version)
                ffm_launch.begin_trial(self._prefix, self._placed)
                self.switched = True

    def close(self) -> None:
        """End what runs."""
        if self._step is not None:
            self._step.end()

    # -- what is taken --------------------------------------------------------------------------

    def _hindrance(self, release: Release) -> FfmError | None:
        """Say what on this board keeps it from taking a release."""
        if self._prefix is None:
            if not self._config.update.auto:
                return None
            return ReleaseUnsuited(
                f"release {release.version} cannot be taken: no launcher has started this agent",
                remedy="start it with `ffm-launch PREFIX agent run --config agent.toml`",
            )
        try:
            why = (self._prefix / ffm_launch.BAD / release.name).read_text(errors="replace")
        except OSError:
            return None
        return ReleaseFailed(f"release {release.version} has failed here: {why}")

    def _refuse(self, error: FfmError) -> None:
        log.error("%s", error.line())
        self._tell(f"{error.message} [{error.code}]")

    def _take(self, release: Release) -> None:
        log.info("release %s is there, this is %s", release.version, self._here.version)
        self._release = release
        for where in ffm_launch.PLACES:
            if self._prefix is not None and ffm_launch.name(self._prefix, where) == release.name:
                self._placed, self._whole = where, True
                return
        with self._contained():
            self._fetch(release)

    def _fetch(self, release: Release) -> None:
        self._whole = False
        wanted = {wheel.blob for wheel in release.wheels}
        for digest in list(self._store.digests()):
            if digest not in wanted:
                self._store.remove(digest)
        self._downloader.want(release.wheels, spread_s=release.spread_s)

    def _on_whole(self, _digest: str) -> None:
        self._whole = True

    def _forget(self) -> None:
        """Let go of the release that was to be taken."""
        self.close()
        self._step = self._release = None
        self._placed, self._whole, self._checked = "", False, False
        self._again_at, self._put_off = float("-inf"), False

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Keep what goes wrong with an update from the agent's other work."""
        try:
            yield
        except BlobOversize as error:
            self._forget()
            self._refuse(error)
        except StorageError as error:
            self._wait(error.line())
        except OSError as error:
            self._wait(f"cannot write into {self._prefix}: {error.strerror or error}")

    def _wait(self, why: str) -> None:
        """Try again later: the disk is full, or has spoiled something."""
        log.error("the update waits for %.0f minutes: %s", _AGAIN_S / 60, why)
        self._again_at = time.monotonic() + _AGAIN_S
        self._put_off = True
        self._downloader.hold()

    # -- steps ----------------------------------------------------------------------------------

    def _place(self, release: Release, prefix: Path) -> None:
        idle = next(one for one in ffm_launch.PLACES if one != ffm_launch.in_force(prefix))
        about = self._folder / "release.json"
        write_atomic(about, msgspec.json.encode(release))
        module = "edge_agent.update.placing"
        folders = [str(about), str(self._store.folder), str(prefix), idle]
        self._step = Step(
            [sys.executable, "-m", module, *folders],
            os.environ,
            limit_s=_PLACING_S,
            log=self._folder / "placing.log",
        )
        self._placed = idle

    def _check(self, release: Release, prefix: Path) -> None:
        """Ask the release itself whether it could run here."""
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        others = [path for path in paths if path and not Path(path).is_relative_to(prefix)]
        site = str(prefix / self._placed / ffm_launch.SITE)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([site, *others]),
            "PYTHONSAFEPATH": "1",  # nothing from whatever folder we are in
        }
        command = [sys.executable, "-m", "ffm", "agent", "check", "--config", str(self._file)]
        log.info("release %s is unpacked; checking it", release.version)
        self._step = Step(
            command, environment, limit_s=_CHECKING_S, log=self._folder / "checking.log"
        )
        self._checked = True

    def _end_step(self, step: Step) -> None:
        ended, release, prefix = step.poll(), self._release, self._prefix
        if ended is None or release is None or prefix is None:
            return
        self._step = None
        status, line = ended
        if status == 0:
            if not self._checked:  # it is unpacked, and needed no more as it came
                for digest in list(self._store.digests()):
                    self._store.remove(digest)
            return
        if not self._checked and status == LATER:
            self._placed = ""
            self._wait(line)
            return
        why = line or f"status {status}"
        self._forget()
        self._refuse(ReleaseFailed(f"release {release.version} has failed here: {why}"))
        ffm_launch.mark_bad(prefix, release.name, why)


def _inherited() -> int | None:
    """Give the pipe to the launcher, if there is one: it stays open while this process lives."""
    text = os.environ.pop(ffm_launch.HEARD_VARIABLE, "")
    try:
        os.set_inheritable(int(text), False)
    except (OSError, ValueError):
        return None
    return int(text)
