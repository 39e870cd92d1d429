"""Tending the training: which version is trained from and when, and what becomes of the work.

A finished update is in the outbox before the journal says so, and work that fails is begun again
within its budget of restarts, so a kill at any moment costs at most the steps since the worker's
last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge_agent.announcing import Announcer
from edge_agent.care import Care
from edge_agent.freshness import Freshness
from edge_agent.journal import Journal
from edge_agent.residuals import Residuals
from edge_agent.staleness import welcome
from edge_agent.training import Trained, Training
from federation.messages import Manifest, Vote
from federation.transfer.blobs import BlobStore
from federation.transfer.outbox import Outbox
from ffm_common.errors import FfmError
from ffm_common.restarts import Budget

log = logging.getLogger("ffm.agent")


class Tending:
    """The training of one agent, over all versions.

    Parameters
    ----------
    me, base
        The agent's id, and the digest of its base.
    training
        Trains from one version at a time.
    care
        Says when the worker must pause, and keeps account of what it costs.
    store
        Holds the containers of versions; those that nobody needs any more are deleted here.
    outbox, residuals, journal
        Where an update goes, and what is remembered of it.
    freshness
        Says whether the data are new.
    announcer, rest
        How the agent is, while it trains; `rest` shows what else goes on once that has ended.
    vote
        Says what a version is worth here.

    Attributes
    ----------
    manifest
        The current one; None as long as none has come.
    """

    def __init__(
        self,
        me: str,
        base: str,
        training: Training,
        *,
        care: Care,
        store: BlobStore,
        outbox: Outbox,
        residuals: Residuals,
        journal: Journal,
        freshness: Freshness,
        announcer: Announcer,
        rest: Callable[..., None],
        vote: Callable[[Vote], None],
    ) -> None:
        self._me = me
        self._base = base
        self._training = training
        self._care = care
        self._store = store
        self._outbox = outbox
        self._residuals = residuals
        self._journal = journal
        self._freshness = freshness
        self._announcer = announcer
        self._rest = rest
        self._vote = vote
        self._budget = Budget()
        self._pausing = False
        self.manifest: Manifest | None = None

    @property
    def running(self) -> bool:
        """Whether a worker is there."""
        return self._training.running

    def asked(self, manifest: Manifest) -> bool:
        """Tell whether this agent is to train from a version."""
        return manifest.chosen is None or self._me in manifest.chosen

    def heed(self, manifest: Manifest) -> None:
        """Go by another manifest: work on an older version goes on only where it may count."""
        self.manifest = manifest
        begun = self._training.begun
        if self._training.running and begun is not None:
            if welcome(begun, manifest):
                log.info("version %d is out, going on with %d", manifest.version, begun.version)
            else:
                log.info("version %d is out, dropping the work on an older one", manifest.version)
                self._training.close()
        self._budget.renew()
        if manifest.base == self._base:
            self._sweep(manifest)

    def give_way(self) -> None:
        """Have the worker pause where the profile asks, and say when it may go on."""
        pauses = self._care.pauses
        if pauses:
            if not self._pausing:
                log.warning("pausing: %s", pauses[0].sentence)
            self._pausing = True
            self._training.pause()
            self._announcer.set("paused", detail="; ".join(pause.sentence for pause in pauses))
        elif self._pausing:
            self._pausing = False
            log.info("going on")
            self._rest(detail="")

    def begin(self, now: float, *, free: bool) -> None:
        """Train, if there is something to train from.

        Parameters
        ----------
        now
            Monotonic seconds.
        free
            Whether nothing but the training itself, or the profile, stands against it.
        """
        manifest = self._trainable(now) if free else None
        if manifest is None:
            return
        self._announcer.set(
            "training",
            # An older one may be finished.
            version=max(manifest.version, self._announcer.state.version),
            step=0,
            steps=manifest.task.training.local_steps,
            detail="",
        )
        self._freshness.begun()
        try:
            self._training.begin(
                manifest,
                [self._store.path(link.blob) for link in manifest.chain],
                self._residuals.of(self._journal.entry.trained),
            )
        except FfmError as error:
            self._fail(manifest, error, now)

    def tend(self, now: float) -> None:
        """Look after the data, and the worker: its vote, its progress, its update, its failure."""
        state, fresh = self._announcer.state, self._freshness.fresh(now)
        if fresh != state.fresh:
            self._announcer.set(state.status, fresh=fresh)
        manifest = self._training.begun
        if not self._training.running or manifest is None:
            return
        spent = self._training.seconds()
        try:
            trained = self._training.tend()
        except FfmError as error:
            self._fail(manifest, error, now)
            return
        finally:
            if not self._training.running:  # what failed has cost energy, too
                self._care.count_work(spent)
        vote = self._training.vote() if trained is None else trained.vote
        if vote is not None:  # with the update it is said again: a link may have been cut
            self._vote(vote)
        if trained is not None:
            self._keep(manifest, trained, now)
        elif self._announcer.state.status == "training":
            if self._training.running:
                self._show_progress()
            else:  # it has obeyed a pause that is already over
                self._rest()

    def close(self) -> None:
        """End the worker."""
        self._training.close()

    def _trainable(self, now: float) -> Manifest | None:
        """Give the manifest to train from now, if there is one: what was begun comes first."""
        current, begun = self.manifest, self._training.begun
        if (
            current is None
            or not current.open
            or current.base != self._base
            or self._training.running
            or self._care.pauses
            or now < self._budget.due
        ):
            return None
        if begun is not None and welcome(begun, current) and self._ready(begun):
            return begun
        return current if self.asked(current) and self._ready(current) else None

    def _ready(self, manifest: Manifest) -> bool:
        """Tell whether a version is here and its update is not yet made."""
        return self._journal.entry.trained != manifest.blob and all(
            self._store.has(link.blob) for link in manifest.chain
        )

    def _show_progress(self) -> None:
        plan, worker = self._training.plan, self._training.worker
        if self._training.measuring:
            self._announcer.set("training", detail="measuring this board")
        elif plan is not None and worker is not None:
            changes: dict[str, object] = {
                "planned_memory_mb": round(plan.memory_mb, 1),
                "planned_step_s": round(plan.step_seconds, 3),
                "detail": "",
            }
            if worker.last is not None:
                changes |= {
                    "step": worker.last.step,
                    "loss": worker.last.loss,
                    "worker_memory_mb": worker.last.memory_mb,
                }
            self._announcer.set("training", **changes)

    def _keep(self, manifest: Manifest, trained: Trained, now: float) -> None:
        """Put a finished update into the outbox, then note that it is there."""
        try:
            if trained.residual is not None:
                self._residuals.put(manifest.blob, trained.residual)
            self._outbox.add(trained.offer, trained.blob)
            self._journal.set_trained(manifest.blob, self._freshness.trained())
        except FfmError as error:
            self._fail(manifest, error, now)
            return
        self._residuals.keep_only(manifest.blob)
        self._forget()
        self._announcer.set(
            "paused" if self._care.pauses else "uploading",
            step=len(trained.result.losses),
            loss=trained.result.losses[-1],
            worker_memory_mb=round(trained.result.peak_memory_mb, 1),
            step_s=round(trained.result.step_seconds, 3),
        )

    def _fail(self, manifest: Manifest, error: FfmError, now: float) -> None:
        """Say what went wrong, and try again: soon at first, then after long pauses.

        An older version is not tried again where there is a newer one.
        """
        if self.manifest is not None and self.manifest.blob != manifest.blob:
            self._forget()
        delay = self._budget.failed(now, got=self._announcer.state.step)
        self._announcer.give_up(
            f"training from version {manifest.version} failed, again in {delay:.0f} s: "
            f"{error.message} [{error.code}] -- {error.how_to_resolve}"
        )

    def _forget(self) -> None:
        """Let go of the work on a version, and of what only that needs."""
        self._training.forget()
        if self.manifest is not None:
            self._sweep(self.manifest)

    def _sweep(self, manifest: Manifest) -> None:
        """Delete the containers that neither a version nor the work on an older one needs."""
        begun = self._training.begun
        wanted = {link.blob for link in manifest.chain}
        if begun is not None and welcome(begun, manifest):
            wanted |= {link.blob for link in begun.chain}
        for digest in list(self._store.digests()):
            if digest not in wanted:
                self._store.remove(digest)
