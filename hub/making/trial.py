"""The making of a version, in the hub's worker: steps, codec, measurement, and the gate.

What agents will decode is what is measured and judged, and nothing is published that did not pass:
the quantized state is the truth, for the hub as for every agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from ffm_common.errors import LossNotFinite
from ffm_common.files import make_folder
from ffm_common.tensors import Tensors, content_digest, save
from hub.gate import hearing
from hub.gate import judges as gate
from hub.gate.ruling import Finding, Ruling
from hub.making import carried, kept_losses
from hub.making.candidate import Candidate, Counted, add_up
from hub.making.downlink import RESIDUAL, Before, Sent, encode
from hub.making.job import Former, VersionJob
from hub.robust.judgement import Judgement
from hub.robust.reputation import WORST, renewed
from hub.switching.policy import policy_of
from hub.switching.public_step import PublicStep
from hub.switching.warmup import warmed_up
from hub.versions.ledger import LeftOut
from hub.versions.record import Record
from hub.versions.restore import restore
from learning.adapter import load_tensors
from learning.process import Report
from learning.trainer import Losses

if TYPE_CHECKING:
    from hub.making.bench import Bench, Judged

_BLANK = "blank"
_SCRATCH = "scratch"
# With fewer examples, accuracies of versions differ by luck alone, more than versions do.
_TELLING = 100
# Examples that a group of updates is judged by, alone: it is about gross harm, many times over.
_SAMPLE = 256


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is made.

    Parameters
    ----------
    bench
        None where none was needed.
    judged
        What was measured; None where nothing was.
    tail
        As in `hub.switching.step.Step`.
    left_out
        Counted updates that are not in it.
    forgot
        Whether what the version before carries over was damaged, so that it was not used.
    restored
        The older version whose content it has, if it has one's.
    """

    sent: Sent
    record: Record
    bench: Bench | None = None
    judged: Judged | None = None
    tail: float = 0.0
    left_out: tuple[LeftOut, ...] = ()
    forgot: bool = False
    restored: int | None = None


def first(job: VersionJob, carry: Path, report: Report) -> Tried:
    """Make version 0: a fresh adapter, warmed up on public data if there is some."""
    bench, warm = _open(job), None
    if job.public is not None:
        warm = bench.warm_up(job.public, seed=job.seed, report=report)
    record = Record(
        decision=warmed_up(policy_of(job.settings.policy), warm),
        files={} if job.public is None else job.public.marks,
    )
    sent = encode(
        bench.fresh() if warm is None else warm.state,
        None,
        version=job.version,
        base=job.base_digest,
        codecs=job.codecs,
        keyframe=job.keyframe,
        seed=job.seed,
        carry=carry,
        fresh=warm is None and job.task.starts_random,
    )
    judged = bench.judge(sent.truth, Path(job.evaluation))
    notes = list(bench.notes)
    told = len(judged.losses.sums) if job.task.classifies else _TELLING
    if told < _TELLING:
        note = f"there are only {told} examples to judge versions by: their accuracy is known to "
        note += f"{100 / told**0.5:.0f} points"
        if told < gate.FEWEST and job.settings.gate.enabled:
            note += f", and the gate, which needs {gate.FEWEST}, lets all pass that give numbers"
        notes.append(note)
    _keep(job, carry, sent, judged.losses)
    record = replace(record, notes=tuple(notes))
    return _sound(Tried(sent=sent, record=record, bench=bench, judged=judged))


def go_back(job: VersionJob, former: Former, folder: Path, carry: Path) -> Tried:
    """Make a version that has an older one's content, as the hub has decided."""
    assert job.rollback is not None  # noqa: S101
    before, forgot = _before(former, job.version, folder)
    wanted = load_tensors(Path(job.rollback.adapter), job.rollback.content)
    record = job.rollback.record
    why = "" if record.verdict is None else record.verdict.why
    sent = restore(
        wanted,
        before,
        version=job.version,
        base=job.base_digest,
        codec=job.codecs[1],
        keyframe=job.keyframe,
        seed=job.seed,
    )
    save(carry / RESIDUAL, sent.residual)
    return Tried(
        sent=sent,
        record=record,
        left_out=tuple(LeftOut(one.agent, why) for one in job.counted),
        forgot=forgot,
        restored=job.rollback.version,
    )


class Trial:
    """The making of a version from the one before.

    Parameters
    ----------
    job, former
        What is made, and from what.
    folder, carry
        For files of this worker's own, and for what the version carries over.
    """

    def __init__(
        self, job: VersionJob, former: Former, folder: Path, carry: Path, report: Report
    ) -> None:
        self._job = job
        self._folder = folder
        self._carry = carry
        self._before, self._forgot = _before(former, job.version, folder)
        self._bench: Bench | None = None
        self._public: PublicStep | None = None
        if job.public is not None and not job.plain:
            self._public = self._open_bench().public_step(
                self._before.truth,
                job.public,
                seed=job.seed,
                least=job.task.adapter.ranks[0],
                report=report,
            )
        self._judgements: dict[str, Judgement] = {}
        self._former_losses: Losses | None = None
        self._sample: Losses | None = None

    def hold(self) -> Tried:
        """Make the version of all updates, or of those that pass, or of the one before."""
        if self._job.plain or not self._job.settings.gate.enabled:
            return _sound(self._attempt(self._job.counted, public=True))

        def attempt(counted: Sequence[Counted], with_public: bool) -> Tried:
            return self._attempt(counted, public=with_public)

        heard = hearing.hear(
            self._job.counted,
            attempt=attempt,
            judge=self._judge,
            harm=self._harm,
            public=self._public is not None,
        )
        found, ruling = heard
        ruling = replace(ruling, devices=self._job.devices)
        return self._back(ruling) if found is None else self._passed(found, ruling)

    def _open_bench(self) -> Bench:
        if self._bench is None:
            self._bench = _open(self._job)
        return self._bench

    def _attempt(self, counted: Sequence[Counted], *, public: bool) -> Tried:
        """Make the version of some updates; what it carries over is in its folder then."""
        job = self._job
        found = self._add_up(
            counted, self._before.carried, self._carry, self._public if public else None
        )
        files = job.record.files
        if self._bench is not None and job.public is not None:
            files = job.public.marks
        made = found.step
        record = Record(
            parent=job.version - 1,
            decision=made.decision,
            state=made.state,
            guard=job.guard,
            files=files,
            judgements=made.judgements,
            medians=made.medians,
            notes=made.notes,
            reputation=made.reputation,
        )
        sent = encode(
            found.tensors,
            self._before,
            version=job.version,
            base=job.base_digest,
            codecs=job.codecs,
            keyframe=job.keyframe,
            seed=job.seed,
            carry=self._carry,
        )
        judged = None
        if not job.plain:
            # Only now, so that adding up and torch do not need their memory at once.
            judged = self._open_bench().judge(sent.truth, Path(job.evaluation))
            _keep(job, self._carry, sent, judged.losses)
            record = replace(record, notes=(*record.notes, *self._open_bench().notes))
        self._judgements = {**record.judgements, **self._judgements}
        return Tried(
            sent=sent,
            record=record,
            bench=self._bench,
            judged=judged,
            tail=made.tail,
            left_out=found.left_out,
            forgot=self._forgot,
        )

    def _add_up(
        self,
        counted: Sequence[Counted],
        carried: Path | None,
        carry: Path,
        public: PublicStep | None,
    ) -> Candidate:
        job = self._job
        return add_up(
            self._before.truth,
            counted,
            settings=job.settings,
            base=job.base_digest,
            record=job.record,
            carried=carried,
            carry=carry,
            public=public,
        )

    def _judge(self, tried: Tried) -> Finding:
        assert tried.judged is not None  # noqa: S101 -- nothing plain is judged
        if self._former_losses is None:
            self._former_losses = self._losses_before(len(tried.judged.losses.sums))
        return self._compare(self._former_losses, tried.judged.losses)

    def _losses_before(self, count: int) -> Losses:
        """Give what the version before loses on each example: kept from then, or measured now."""
        job, content = self._job, content_digest(self._before.truth)
        kept = kept_losses.load(self._before.carried, content=content, data=_data(job))
        if kept is not None and len(kept.sums) == count:
            return kept
        return self._open_bench().judge(self._before.truth, Path(job.evaluation)).losses

    def _harm(self, counted: Sequence[Counted]) -> float:
        """Tell how much a group of updates regresses alone, on some of the examples."""
        found = self._add_up(counted, None, make_folder(self._folder / _SCRATCH), None)
        if self._sample is None:
            self._sample = self._sampled(self._before.truth)
        return gate.excess(self._compare(self._sample, self._sampled(found.tensors)))

    def _sampled(self, tensors: Tensors) -> Losses:
        judged = self._open_bench().judge(tensors, Path(self._job.evaluation), most=_SAMPLE)
        return judged.losses

    def _compare(self, before: Losses, after: Losses) -> Finding:
        return gate.by_examples(before, after, self._job.changes, self._job.settings.gate)

    def _passed(self, found: Tried, ruling: Ruling) -> Tried:
        record = replace(found.record, verdict=ruling)
        if not ruling.without:
            return replace(found, record=record)
        record = replace(
            record,
            judgements={**record.judgements, **self._blamed(ruling.without)},
            reputation=_blame(record.reputation, ruling.without),
        )
        why = f"version {self._job.version} would have been worse with it than the one before"
        left_out = [LeftOut(agent, why) for agent in ruling.without]
        return replace(found, record=record, left_out=(*found.left_out, *left_out))

    def _back(self, ruling: Ruling) -> Tried:
        """Give the version before another number; nobody gets what did not pass."""
        job, before = self._job, self._before
        for path in self._carry.iterdir():
            path.unlink()
        sent = restore(
            before.truth,
            before,
            version=job.version,
            base=job.base_digest,
            codec=job.codecs[1],
            keyframe=job.keyframe,
            seed=job.seed,
        )
        # No momentum: it may be what has led astray.
        save(self._carry / RESIDUAL, sent.residual)
        if self._former_losses is not None:
            _keep(job, self._carry, sent, self._former_losses)
        agents = [one.agent for one in job.counted]
        record = replace(
            job.record,
            parent=job.version - 1,
            decision=None,
            guard=job.guard,
            judgements={**self._judgements, **self._blamed(ruling.without)},
            notes=tuple(self._open_bench().notes),
            reputation=_blame(job.record.reputation, ruling.without),
            verdict=ruling,
        )
        why = f"version {job.version} has the content of version {job.version - 1}: {ruling.why}"
        return Tried(
            sent=sent,
            record=record,
            bench=self._bench,
            left_out=tuple(LeftOut(agent, why) for agent in agents),
            forgot=self._forgot,
            restored=job.version - 1,
        )

    def _blamed(self, agents: Sequence[str]) -> dict[str, Judgement]:
        """Say of those left out what was found when they were in."""
        return {
            agent: replace(
                self._judgements[agent], weight=0.0, standing=0.0, flagged=True, why="gate"
            )
            for agent in agents
            if agent in self._judgements
        }


def _sound(tried: Tried) -> Tried:
    """Give a version that no gate looks at; LossNotFinite where there is nothing to publish."""
    if tried.judged is not None and tried.judged.measure is None:
        raise LossNotFinite("the evaluation loss is no number")
    return tried


def _blame(before: dict[str, float], agents: Sequence[str]) -> dict[str, float]:
    return renewed(before, dict.fromkeys(agents, WORST))


def _data(job: VersionJob) -> str:
    return kept_losses.data_mark(Path(job.evaluation), job.text, job.label)


def _keep(job: VersionJob, carry: Path, sent: Sent, losses: Losses) -> None:
    content = content_digest(sent.truth)
    kept_losses.save(carry, losses, content=content, data=_data(job))


def _open(job: VersionJob) -> Bench:
    from hub.making.bench import Bench
    from learning.texts.cache import TokenCache

    return Bench(
        Path(job.base),
        job.task,
        threads=job.threads,
        text=job.text,
        label=job.label,
        tokens=None if job.tokens is None else TokenCache(Path(job.tokens), job.tokens_mb),
    )


def _before(former: Former, version: int, folder: Path) -> tuple[Before, bool]:
    """Read the version before; say whether what it carries over is damaged and was left out."""
    truth = load_tensors(Path(former.adapter), former.content)
    home = Path(former.carried)
    sound = carried.sound(home, former.carried_digest)
    if not sound:
        home = make_folder(folder / _BLANK)
        save(home / RESIDUAL, {name: 0 * array for name, array in truth.items()})
    return Before(version - 1, truth, home), not sound
