"""One version's training on the board: real workers, measured, planned, paused, killed, resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from edge_agent.belonging import Belonging
from edge_agent.config import AgentConfig, DataSource, Located
from edge_agent.training import Trained, Training
from federation.messages import Link, Manifest
from ffm_common.errors import MemoryLimitHit, PlanImpossible, WorkerFailed
from ffm_common.files import sha256_bytes
from ffm_common.task import Task
from ffm_common.tensors import content_digest, load, spec_digest
from learning import base, planning
from learning.torch.engine import TorchEngine
from profiles import profile as profiles
from profiles.calibration import Calibrated, Calibration, Calibrations
from profiles.limits import Limits
from profiles.profile import Profile
from quantization.updates.container import pack

PROFILE = profiles.load("laptop-cpu")
STEPS = 30


class Place:
    """An agent's folders, a version to train from, and a calibration made up for speed."""

    def __init__(self, folder: Path, minilm: Path, texts: Path, task: Task) -> None:
        self.folder = folder
        self.minilm = minilm
        self.digest = base.describe(minilm).digest
        self.task = msgspec.structs.replace(
            task, training=msgspec.structs.replace(task.training, local_steps=STEPS)
        )
        start = TorchEngine(minilm, self.task).read()
        blob = pack(start, kind="version", version=0, base=self.digest, codec="fp32", seed=0)
        self.blob = folder / "version.ffm"
        self.blob.write_bytes(blob)
        self.residual = folder / "none.safetensors"
        self.manifest = Manifest(
            federation="town",
            version=0,
            chain=(Link(blob=sha256_bytes(blob), size=len(blob)),),
            content=content_digest(start),
            base=self.digest,
            spec=spec_digest(start),
            task=self.task,
            codec="ecsq0.5",
            down_bits=8.0,
            deadline_s=600,
            open=True,
        )
        self.where = Located(
            config=AgentConfig(
                id="pi", federation="town", data=DataSource(path=texts.name), base=minilm.name
            ),
            data=texts,
            base=minilm,
            folder=folder,
            calibration=folder / "calibration.json",
            board=folder,
        )

    def training(self, name: str, profile: Profile = PROFILE) -> Training:
        return Training(
            self.where,
            self.digest,
            profile,
            work=self.folder / name / "work",
            calibration=self.where.calibration,
            seal=Belonging(self.where).seal,
        )

    def calibrate(self, profile: Profile = PROFILE, floor_mb: float = 400) -> None:
        made_up = Calibration(floor_mb=floor_mb, scale=1, overhead_s=0.1, rate=1e10)
        key = planning.calibration_key(self.minilm, self.task, Limits.of(profile))
        both = Calibrated(plain=made_up, checkpointing=made_up)
        Calibrations(self.where.calibration).put(key, both)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, minilm: Path, texts: Path, task: Task) -> Place:
    return Place(tmp_path_factory.mktemp("place"), minilm, texts, task)


def finish(training: Training, seconds: float = 90) -> Trained:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        trained = training.tend()
        if trained is not None:
            return trained
        time.sleep(0.05)
    pytest.fail("the training did not end")


def until_step(training: Training, step: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        training.tend()
        worker = training.worker
        if worker is not None and worker.last is not None and worker.last.step >= step:
            return
        time.sleep(0.02)
    pytest.fail("the training did not get that far")


def test_paused_or_killed_training_ends_as_if_nothing_had_happened(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ffm.agent")
    place.calibrate()
    calm = place.training("calm")
    calm.begin(place.manifest, [place.blob], place.residual)
    undisturbed = finish(calm)

    troubled = place.training("troubled")
    troubled.begin(place.manifest, [place.blob], place.residual)
    until_step(troubled, 3)
    worker = troubled.worker
    assert worker is not None
    pid = worker.process.pid
    troubled.pause()
    while troubled.running:
        assert troubled.tend() is None
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()  # its memory is free

    troubled.begin(place.manifest, [place.blob], place.residual)
    until_step(troubled, 14)
    worker = troubled.worker
    assert worker is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="killed"):
        finish(troubled)
    assert not troubled.running

    # Of each agent once, however often it begins.
    held = [line for line in caplog.messages if line.startswith("its worker's memory is held to ")]
    assert [line.split(" by ")[0] for line in held] == 2 * [
        f"its worker's memory is held to {PROFILE.memory_mb} MB"
    ]

    again = place.training("troubled")  # as after a restart of the agent
    assert again.resumes(place.manifest)
    again.begin(place.manifest, [place.blob], place.residual)
    resumed = finish(again)
    for trained in (undisturbed, resumed):  # what half a bit did not carry is kept for the next
        assert trained.residual is not None
        assert spec_digest(load(trained.residual)) == place.manifest.spec
    assert len(resumed.result.losses) == STEPS
    assert resumed.result.losses == pytest.approx(undisturbed.result.losses, rel=1e-4)
    assert resumed.offer.examples == undisturbed.offer.examples


def test_a_board_that_was_never_measured_is_measured_before_the_first_plan(place: Place) -> None:
    place.where.calibration.unlink(missing_ok=True)
    training = place.training("measured")
    training.begin(place.manifest, [place.blob], place.residual)
    assert training.measuring
    assert training.plan is None
    end = time.monotonic() + 60
    while training.measuring and time.monotonic() < end:
        training.tend()
        time.sleep(0.05)
    assert training.plan is not None
    assert training.plan.measured
    assert 200 < training.plan.memory_mb < 1500
    training.close()
    assert not training.running


def test_a_task_that_does_not_fit_is_refused_before_anything_starts(place: Place) -> None:
    small = profiles.load("rpi-zero2w")
    place.calibrate(small)
    training = place.training("small", small)
    with pytest.raises(PlanImpossible, match="256 MB"):
        training.begin(place.manifest, [place.blob], place.residual)
    assert not training.running


def test_a_worker_beyond_its_memory_is_ended_and_the_limit_is_named(place: Place) -> None:
    tight = msgspec.structs.replace(PROFILE, memory_mb=200)
    place.calibrate(tight, floor_mb=50)  # a calibration that lies, so that the limit must hold
    training = place.training("tight", tight)
    training.begin(place.manifest, [place.blob], place.residual)
    with pytest.raises(MemoryLimitHit, match="200 MB"):
        finish(training)
    assert not training.running
    # and the agent takes the next work
    place.calibrate()
    training = place.training("next")
    training.begin(place.manifest, [place.blob], place.residual)
    until_step(training, 1)
    training.close()
