"""Our side of the comparison: real hub and agent processes, the agents through a counting relay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.arena import Arena
from benchmarks.codecs.socket_rows import Seen, SocketRow, wait_for, watch
from benchmarks.relay import Relay, free_port
from benchmarks.simulation import Federation, deal_files
from benchmarks.tasks import base_folder, task_of
from ffm_common.errors import StorageError
from ffm_common.task import Task
from fleet.layout import Layout, Member
from fleet.processes import Child
from hub.versions.ledger import read_versions
from learning import planning
from learning.onnx.export import export
from profiles import profile as profiles
from profiles.calibration import Calibrations
from profiles.limits import Limits
from quantization.updates.container import pack
from quantization.updates.rates import bits_of, down_bits

_PROFILE = "laptop-cpu"
_NEVER_S = 3600.0
_ANY = "00" * 32


def ours(work: Path, asked: Federation) -> Iterator[SocketRow]:
    """Run a federation of real processes; give its versions as they come.

    Codecs down are the hub's defaults, whatever is asked.

    Raises
    ------
    RunFailed
        It does not get to the next version.
    FfmError
        Something is missing here.
    """
    start = Arena(asked.task, work).start(asked.seed)
    update = len(pack(start, kind="update", version=0, base=_ANY, codec=asked.up, seed=0))
    task = task_of(asked.task)
    training = msgspec.structs.replace(task.training, local_steps=asked.local_steps)
    task = msgspec.structs.replace(task, training=training, seed=asked.seed)
    layout = Layout(work / "ours", base=base_folder(work), engine="onnx")
    members = [Member(id=f"agent-{place:02d}", profile=_PROFILE) for place in range(asked.agents)]
    with contextlib.ExitStack() as stack:
        stack.callback(layout.clear().close)
        layout.write_data(deal_files(asked), members)
        export(layout.base, task, layout.agents_base)
        _calibrate(layout, task, asked.up)
        port = free_port()
        layout.write_configs(
            members,
            broker="auto",
            port=port,
            adapter=task.adapter,
            training=training,
            versions=asked.versions,
            deadline_s=_NEVER_S,
            policy="never",
            codec=asked.up,
            seed=asked.seed,
        )

        def run(name: str, *arguments: str) -> None:
            child = Child(name, arguments, layout.logs / f"{name}.log")
            stack.callback(child.stop)

        run("hub", "hub", "run", "--config", str(layout.hub_config))
        wait_for(port)
        proxy = Relay(port)
        stack.callback(proxy.close)
        for member in members:
            config = layout.agent(member.id) / "agent.toml"
            config.write_text(config.read_text().replace(f"port = {port}", f"port = {proxy.port}"))
            run(member.id, "agent", "run", "--config", str(config))

        def look() -> list[Seen]:
            seen, payload = [], 0
            with contextlib.suppress(StorageError):  # not there yet
                for row in read_versions(layout.ledger):
                    seen.append(Seen(row.version, row.accuracy, payload * asked.agents))
                    # Fetched, and answered with an update, before the next version is there.
                    payload += row.size + update
            return seen

        yield from watch("ours", asked, proxy, look)


def _calibrate(layout: Layout, task: Task, codec: str) -> None:
    """Measure this machine once for all agents, as the demo does."""
    limits = Limits.of(profiles.load(_PROFILE))
    asked = planning.demand(
        layout.agents_base, task, update_bits=bits_of(codec), down_bits=down_bits()
    )
    found = planning.measure(layout.agents_base, task, asked, limits)
    key = planning.calibration_key(layout.agents_base, task, limits)
    Calibrations(layout.calibration).put(key, found)
