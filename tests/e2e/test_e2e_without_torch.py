"""A board too small for torch takes part: it is given the training step, written as ONNX."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

from profiles import profile as profiles

if TYPE_CHECKING:
    from federation.messages import AgentState
    from tests.e2e.conftest import Town

SMALL = "rpi-zero2w"


def libraries(process: psutil.Process) -> set[str]:
    with contextlib.suppress(psutil.Error):
        return {Path(mapped.path).name for mapped in process.memory_maps()}
    return set()


def test_a_pi_zero_learns_the_real_minilm_beside_a_board_with_torch(
    town: Town, minilm: Path
) -> None:
    town.write_hub(
        base=str(minilm),
        versions={"count": 1, "buffer": 2},
        training={"local_steps": 3, "batch_size": 8, "max_length": 32},
    )
    export = town.start("hub", "export-step", "step", "--config", "hub/hub.toml", log="export")
    assert export.wait(60) == 0, export.said()
    assert "nf4" in export.output()

    town.write_agent("ann", base=str(minilm))
    town.write_agent("zero", base="../step", profile=SMALL)
    town.start_hub()
    agents = {name: town.start_agent(name) for name in ("ann", "zero")}

    seen: set[str] = set()

    def trained() -> bool:
        for worker in agents["zero"].children("edge_agent.worker"):
            seen.update(libraries(worker))
        return len(town.updates(0)) == 2 if town.versions() else False

    town.until(trained, "both agents' updates")
    assert any(name.startswith("onnxruntime_pybind11_state") for name in seen), seen
    assert not any("torch" in name for name in seen)

    def told() -> AgentState | None:
        state = town.state("zero")
        return state if state is not None and state.step_s else None

    state = town.until(told, "the agent's figures")
    allowed = profiles.load(SMALL).memory_mb
    assert 0 < state.planned_memory_mb <= allowed
    assert 0 < state.worker_memory_mb <= allowed


def test_a_step_for_another_task_is_refused_with_what_to_do(town: Town) -> None:
    town.write_hub(adapter={"rank": 4})
    export = town.start("hub", "export-step", "step", "--config", "hub/hub.toml", log="export")
    assert export.wait(60) == 0, export.said()
    town.write_hub(adapter={"rank": 8})
    town.write_agent("zero", base="../step")
    town.start_hub()
    zero = town.start_agent("zero")
    town.until(lambda: "ffm hub export-step" in zero.said(), "the agent's complaint")
    assert "another task" in zero.said()
