"""Each engine trains from its image, emulated, and as well as on this machine."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from ffm_common.task import Adapter, Task, Training
from learning import base
from learning.onnx.export import export
from tests.arm64 import emulation, steps
from tests.arm64.steps import Job

if TYPE_CHECKING:
    from tests.arm64.containers import Contain
    from tests.arm64.images import Builder
    from tests.e2e.conftest import Started, Town

# An optimizer of more steps may part from itself by more: floats are added in another order.
_NEAR = 1e-4
_PATIENCE_S = 1200.0
_TASK = Task(
    labels=("animals", "tools", "weather"),
    adapter=Adapter(rank=4),
    training=Training(local_steps=4, batch_size=4, max_length=32),
    seed=5,
)


@pytest.fixture(scope="module")
def folders(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give one model as each engine takes it."""
    made = tmp_path_factory.mktemp("folders")
    plain = small_base.parent / "plain"
    found = {"nf4": small_base, "onnx-nf4": made / "onnx-nf4", "onnx-fp32": made / "onnx-fp32"}
    for weights in ("int8", "fp32"):
        found[weights] = made / weights
        base.prepare(plain, found[weights], weights)
    export(small_base, _TASK, found["onnx-nf4"])
    export(found["fp32"], _TASK, found["onnx-fp32"])
    return found


def _task(name: str) -> Task:
    """All weights are trained where none is quantized."""
    full = Adapter(kind="full")
    return msgspec.structs.replace(_TASK, adapter=full) if name == "fp32" else _TASK


@pytest.mark.parametrize(
    ("target", "names"),
    [("agent-lite", ("onnx-nf4", "onnx-fp32")), ("agent", ("nf4", "int8", "fp32"))],
)
def test_an_image_trains_as_this_machine_does(
    builder: Builder,
    town: Town,
    contain: Contain,
    folders: dict[str, Path],
    target: str,
    names: tuple[str, ...],
) -> None:
    image = builder.image(target)
    town.write_agent("board")
    volume = town.folder / "board"
    script = Path(steps.__file__)
    here = Job(
        folders={name: str(folders[name]) for name in names},
        tasks={name: _task(name) for name in names},
        data=str(volume / "private.jsonl"),
    )
    there = msgspec.structs.replace(
        here,
        folders={name: f"/folders/{name}" for name in names},
        data="/var/lib/ffm/private.jsonl",
    )
    (volume / "job.json").write_bytes(msgspec.json.encode(there))
    (town.folder / "job.json").write_bytes(msgspec.json.encode(here))
    sees = {f"/folders/{name}": folders[name] for name in names}
    container = contain(image, volume, sees={**sees, "/steps": script.parent})
    emulated = container.start(
        "-P", f"/steps/{script.name}", "job.json", log="emulated", entrypoint=["python"]
    )
    native = town.start_program([sys.executable, str(script), "job.json"], log="native")
    losses = {started: _losses(started) for started in (native, emulated)}
    for name in names:
        assert losses[emulated][name] == pytest.approx(losses[native][name], abs=_NEAR), name
        assert len(losses[emulated][name]) == _TASK.training.local_steps


def _losses(started: Started) -> dict[str, list[float]]:
    assert started.wait(_PATIENCE_S) == 0, started.said()
    found: dict[str, list[float]] = json.loads(started.output())
    return found


@pytest.mark.skipif(platform.machine() == "aarch64", reason="nothing is emulated here")
def test_what_is_emulated_is_a_raspberry_pi_4(
    builder: Builder, contain: Contain, tmp_path: Path
) -> None:
    container = contain(builder.image("agent-lite"), tmp_path / "volume", sees={})
    asked = container.start("-m", "1", "CPU part", "/proc/cpuinfo", log="cpu", entrypoint=["grep"])
    assert asked.wait(60) == 0, asked.said()
    assert asked.output().split() == ["CPU", "part", ":", emulation.PART]
