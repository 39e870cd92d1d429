"""A real agent on a simulated board that grows hot in the middle of its work, and cool again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.conftest import Town

INTERVAL_S = 0.5


def test_a_hot_board_pauses_its_worker_frees_its_memory_and_goes_on_by_itself(town: Town) -> None:
    town.write_hub(
        versions={"buffer": 1, "count": 1, "grace_s": 60.0},
        training={"local_steps": 400, "batch_size": 8},
    )
    town.write_agent("hot", meter={"root": "board", "interval_s": INTERVAL_S})
    zone = town.folder / "hot" / "board" / "sys" / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("45000\n")
    town.start_hub()
    agent = town.start_agent("hot")

    def status() -> str:
        state = town.state("hot")
        return "" if state is None else state.status

    def fresh() -> bool:
        state = town.state("hot")
        return state is not None and state.fresh

    # At once, while the worker loads torch: the next state comes when a quick board is done.
    town.until(lambda: status() == "training" and agent.children("edge_agent.worker"), "it trains")
    (zone / "temp").write_text("90000\n")
    town.until(lambda: status() == "paused", "the agent says that it pauses", INTERVAL_S + 5)
    town.until(lambda: not agent.children("edge_agent.worker"), "the worker is gone", 30)
    state = town.state("hot")
    assert state is not None
    assert "90 C" in state.detail
    assert state.fresh
    assert town.updates(0) == {}
    (zone / "temp").write_text("45000\n")
    town.until(lambda: "hot" in town.updates(0), "the update is counted after all")
    town.until(lambda: not fresh(), "the data that it has trained on are new no more")
    said = agent.said()
    assert said.count("pausing") == 1
    assert "going on" in said
