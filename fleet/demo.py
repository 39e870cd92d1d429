"""`ffm demo`: a whole federation on this machine, every part a real process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ffm_common.errors import FleetStalled, PortBusy, StorageError
from ffm_common.seeds import derive
from ffm_common.task import PROMPT_RATE, Adapter, AdapterKind, Task, Training
from fleet import report as reports
from fleet.baseline import BaselineJob
from fleet.dealing import deal
from fleet.layout import FEDERATION, Layout, Member
from fleet.observer import Observer
from fleet.processes import Child
from fleet.report import Baselines, Report, VersionReport
from fleet.table import Screen
from hub.broker import find_mosquitto
from hub.versions.ledger import VersionRow, read_versions
from learning import adapter as adapters
from learning import base, planning
from learning.engines import EngineName
from learning.process import Worker
from learning.texts.data import label_names
from learning.trainer import Measure
from profiles import profile as profiles
from profiles.calibration import Calibrations
from profiles.limits import Limits
from quantization.updates.rates import bits_of, down_bits

_PROFILES = {
    "torch": ("rpi4-4gb", "rpi5-8gb", "jetson-orin-nano-8gb", "laptop-cpu"),
    "onnx": ("rpi-zero2w", "rpi3b-plus", "rpi4-2gb", "laptop-cpu"),
}
_DEADLINE_S = 240.0
# One unbiased bit is enough where four or more errors average out; fewer devices send more bits.
_MANY, _CODEC_OF_MANY, _CODEC_OF_FEW = 4, "eden1", "eden3"
_PATIENCE_S = 300.0
_LOOK_S = 0.5


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks of the demo.

    Parameters
    ----------
    data, text, label
        Own labelled text and its columns; None: docstrings of this machine's Python.
    base
        Own prepared base; None: MiniLM-L6 is prepared in `out`.
    adapter
        LoRA or soft prompt.
    engine
        What the agents train with; ``onnx`` needs no torch and fits smaller boards.
    agents, versions
        How many of each.
    alpha
        Dirichlet parameter of the split over agents; smaller is less alike.
    seed
        Decides the split and every draw; the same seed gives the same accuracies.
    out
        Folder for everything the run writes.
    baselines
        Also train each device alone, and the hub alone.
    broker, port
        Which broker, and where it listens; port 0 takes a free one.
    """

    data: Path | None
    text: str | None
    label: str | None
    base: Path | None
    adapter: AdapterKind
    engine: EngineName
    agents: int
    versions: int
    alpha: float
    seed: int
    out: Path
    baselines: bool
    broker: Literal["auto", "mosquitto", "amqtt"]
    port: int


def run(options: Options) -> Report:
    """Run the demo and leave report.json, a plot and the final adapter in `options.out`.

    Raises
    ------
    DataError, ModelError, PathUnwritable, FolderBusy, PortBusy, FleetStalled
        Each with its code; nothing is left running.
    """
    started = time.monotonic()
    layout = Layout(options.out, base=options.base, engine=options.engine)
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(Screen())
        if options.base is not None:
            base.verify(options.base)
        parts = deal(
            options.data,
            layout,
            screen,
            text=options.text,
            label=options.label,
            agents=options.agents,
            alpha=options.alpha,
            seed=options.seed,
        )
        port = _port(options.port)
        stack.callback(layout.clear().close)
        members = _members(options.agents, options.engine)
        layout.write_data(parts, members)
        if options.base is None:
            screen.say("quantizing the base model (MiniLM-L6, NF4)")
            base.prepare(base.bundled_minilm(), layout.base)
        adapter, training = _settings(options)
        layout.write_configs(
            members,
            broker=options.broker,
            port=port,
            adapter=adapter,
            training=training,
            versions=options.versions,
            deadline_s=_DEADLINE_S,
            policy="adaptive",
            codec=codec_for(options.agents),
            seed=options.seed,
        )
        task = Task(
            labels=tuple(label_names(parts.public + parts.test)),
            adapter=adapter,
            training=training,
            seed=options.seed,
        )
        if options.engine == "onnx":
            from learning.onnx.export import export

            screen.say("writing the training step as ONNX, for agents without torch")
            export(layout.base, task, layout.agents_base)
        fleet = _Fleet(layout, members, task, screen, port=port, versions=options.versions)
        versions = fleet.run()
        shutil.copytree(layout.version(versions[-1].version), layout.adapter)
        baselines = (
            _baselines(layout, members, options, training, screen) if options.baselines else None
        )
    found = _report(
        options,
        layout,
        versions,
        baselines=baselines,
        events=fleet.events,
        seconds=time.monotonic() - started,
    )
    reports.write(layout.report, found)
    reports.plot(layout.plot, found)
    return found


def _members(count: int, engine: EngineName) -> list[Member]:
    boards = _PROFILES[engine]
    names = [boards[place % len(boards)] for place in range(count)]
    return [
        Member(id=f"{name.split('-')[0]}-{place + 1}", profile=name)
        for place, name in enumerate(names)
    ]


def _settings(options: Options) -> tuple[Adapter, Training]:
    if options.adapter == "prompt":
        return Adapter(kind="prompt"), Training(learning_rate=PROMPT_RATE, head_learning_rate=1e-2)
    return Adapter(kind="lora"), Training()


def codec_for(agents: int) -> str:
    """Give the codec of updates for so many agents."""
    return _CODEC_OF_MANY if agents >= _MANY else _CODEC_OF_FEW


def _port(wanted: int) -> int:
    """Give a port that is free now; agents must know it before the hub starts."""
    with socket.socket() as probe:
        # As brokers do: connections of an earlier run that linger are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise PortBusy(f"port {wanted} on 127.0.0.1 is in use") from error
        return int(probe.getsockname()[1])


class _Fleet:
    """The running processes, watched until the last version is there."""

    def __init__(
        self,
        layout: Layout,
        members: list[Member],
        task: Task,
        screen: Screen,
        *,
        port: int,
        versions: int,
    ) -> None:
        self._layout, self._members, self._task = layout, members, task
        self._port, self._last, self._screen = port, versions, screen
        self._gone: set[str] = set()
        self.events: list[str] = []

    def run(self) -> list[VersionRow]:
        """Start everything, watch, stop everything; give the versions made."""
        with contextlib.ExitStack() as stack:
            hub = self._start("hub", ["hub", "run", "--config", str(self._layout.hub_config)])
            stack.callback(hub.stop)
            # One machine, one measurement, while the hub makes version 0.
            self._calibrate()
            agents = []
            for member in self._members:
                config = self._layout.agent(member.id) / "agent.toml"
                agent = self._start(member.id, ["agent", "run", "--config", str(config)])
                stack.callback(agent.stop)
                agents.append(agent)
            observer = Observer("127.0.0.1", self._port, FEDERATION)
            stack.callback(observer.close)
            versions = self._watch(hub, agents, observer)
            hub.wait(_PATIENCE_S / 10)
            return versions

    def _calibrate(self) -> None:
        """Measure each way in which the agents will train here, so that no two measure at once."""
        base_folder, task = self._layout.agents_base, self._task
        calibrations = Calibrations(self._layout.calibration)
        asked = planning.demand(
            base_folder,
            task,
            update_bits=bits_of(codec_for(len(self._members))),
            down_bits=down_bits(),
        )
        for member in self._members:
            limits = Limits.of(profiles.load(member.profile))
            key = planning.calibration_key(base_folder, task, limits)
            if calibrations.get(key) is None:
                self._screen.say("measuring this machine with a few small steps")
                found = planning.measure(base_folder, task, asked, limits)
                calibrations.put(key, found)

    def _start(self, name: str, arguments: list[str]) -> Child:
        return Child(name, arguments, self._layout.logs / f"{name}.log")

    def _watch(self, hub: Child, agents: list[Child], observer: Observer) -> list[VersionRow]:
        moved, known = time.monotonic(), -1
        while True:
            observer.listen(_LOOK_S)
            versions = self._versions()
            self._screen.show(observer.hub, observer.agents, versions)
            if versions and versions[-1].version >= self._last:
                return versions
            if len(versions) != known:
                known, moved = len(versions), time.monotonic()
            self._look_after(hub, agents, versions)
            if time.monotonic() - moved > _DEADLINE_S + _PATIENCE_S:
                raise FleetStalled(f"no new version for long; logs are in {self._layout.logs}")

    def _look_after(self, hub: Child, agents: list[Child], versions: list[VersionRow]) -> None:
        version = versions[-1].version if versions else 0
        how = hub.ended()
        if how is not None and hub.name not in self._gone:
            if "signal" not in how:
                raise FleetStalled(f"the hub {how}: {hub.last_error()}")
            self._note(hub, f"the hub was {how} in version {version}")
            self._screen.say(
                f"start it again by hand and it carries on:\n"
                f"  ffm hub run --config {self._layout.hub_config}"
            )
        for agent in agents:
            how = agent.ended()
            if how is not None and agent.name not in self._gone:
                self._note(
                    agent,
                    f"agent {agent.name} was lost in version {version} ({how}); "
                    "versions close without it",
                )
                if "signal" not in how:
                    self._note(agent, f"agent {agent.name} said: {agent.last_error()}")
        if all(agent.name in self._gone for agent in agents):
            raise FleetStalled(f"every agent is gone; logs are in {self._layout.logs}")

    def _note(self, child: Child, line: str) -> None:
        self._gone.add(child.name)
        self.events.append(line)
        self._screen.say(line)

    def _versions(self) -> list[VersionRow]:
        try:
            return read_versions(self._layout.ledger)
        except StorageError:
            return []  # not there yet


def _baselines(
    layout: Layout, members: list[Member], options: Options, training: Training, screen: Screen
) -> Baselines:
    """Train every shard alone, as many steps as each device had, two at a time."""
    steps = options.versions * training.local_steps
    screen.say(f"baselines: each device alone and the hub alone, {steps} steps each")
    task = adapters.read_card(layout.adapter).task
    shards = [(m.id, layout.agent(m.id) / "private.jsonl", m.profile) for m in members]
    shards.append(("hub", layout.public, "gateway"))

    def work() -> Iterator[tuple[str, Worker[Measure]]]:
        for name, path, profile_name in shards:
            profile = profiles.load(profile_name)
            limits = Limits.of(profile)
            key = planning.calibration_key(layout.agents_base, task, limits)
            measured = Calibrations(layout.calibration).get(key)
            job = BaselineJob(
                base=str(layout.agents_base.resolve()),
                task=task,
                train=str(path.resolve()),
                evaluation=str(layout.test.resolve()),
                steps=steps,
                micro_batch=training.batch_size,
                threads=1,
                products=measured.products if measured else "fp32",
                seed=derive(options.seed, name, "alone"),
            )
            folder = layout.out / "baselines" / name
            yield name, Worker("fleet.baseline", job, Measure, folder=folder, limits=limits)

    found: dict[str, float] = {}
    running: dict[str, Worker[Measure]] = {}
    waiting = work()
    try:
        while True:
            while len(running) < (os.cpu_count() or 1) and (entry := next(waiting, None)):
                running[entry[0]] = entry[1]
            if not running:
                break
            time.sleep(0.1)
            for name, worker in list(running.items()):
                if worker.poll():
                    found[name] = running.pop(name).result().accuracy
                    screen.say(f"alone: {name} {found[name]:.3f}")
    finally:
        for worker in running.values():
            worker.close()
    hub_alone = found.pop("hub")
    return Baselines(alone=found, hub_alone=hub_alone)


def _report(
    options: Options,
    layout: Layout,
    versions: list[VersionRow],
    *,
    baselines: Baselines | None,
    events: list[str],
    seconds: float,
) -> Report:
    first, *made = versions
    broker = options.broker
    if broker == "auto":
        broker = "mosquitto" if find_mosquitto() else "amqtt"
    plain: dict[str, Any] = msgspec.to_builtins(options, enc_hook=str)
    tensors = adapters.load_tensors(layout.adapter)
    return Report(
        versions=[
            VersionReport(
                version=row.version,
                accuracy=row.accuracy,
                loss=row.loss,
                updates=row.updates,
                closed_because=row.closed_because,
                uplink_bytes=row.uplink_bytes,
                downlink_bytes=row.downlink_bytes,
                seconds=row.seconds,
            )
            for row in made
        ],
        initial_accuracy=first.accuracy,
        final_accuracy=versions[-1].accuracy,
        fp32_update_bytes=sum(4 * int(array.size) for array in tensors.values()),
        adapter_path=str(layout.adapter),
        base_path=str(layout.base),
        evaluation_path=str(layout.test),
        broker=broker,
        seconds=seconds,
        seed=options.seed,
        baselines=baselines,
        events=events,
        config=plain,
    )
