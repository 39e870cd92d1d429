"""A federation of real processes, each link through a relay, and a broker in one of three ways."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from benchmarks.chaos import fixed, training
from benchmarks.chaos.kept import Kept, python
from benchmarks.chaos.wire import Wire
from benchmarks.relay import Relay, free_port
from federation.topics import Topics, is_digest
from federation.trust import membership
from federation.trust.membership import Membership
from ffm_common.files import make_folder, write_atomic
from ffm_common.task import Task
from fleet.layout import to_toml
from fleet.partition import Split
from hub.broker import answers, find_mosquitto
from hub.trust.authority import Authority
from hub.trust.members import Members
from hub.trust.trusting import IDENTITY
from learning import planning
from learning.texts.data import Example, write_jsonl
from profiles import profile as profiles
from profiles.calibration import Calibrated, Calibration, Calibrations
from profiles.limits import Limits

BrokerName: TypeAlias = Literal["mosquitto", "amqtt"]
Keeping: TypeAlias = Literal["own", "outside", "persistent"]
"""Whose the broker is: the hub's child; or a process of its own, which keeps nothing or all."""

FEDERATION: Final = "chaos"
CODEC: Final = "fp32"
KEYFRAME_EVERY: Final = 4
GRACE_S: Final = 2.0
# Not nice: else what a version takes would be up to whatever else this machine does.
_PROFILE: Final = 'extends = "gateway"\nniceness = 0\n'
_START_S: Final = 20.0

_FIXED: Final = {"hub": "chaos.hub_worker", "agent": "chaos.agent_worker"}
_REAL: Final = {"hub": "hub.making.worker", "agent": "edge_agent.worker"}

_MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
{user}
set_tcp_nodelay true
max_packet_size 131072
max_inflight_messages 20
max_queued_messages 10000
max_queued_bytes 67108864
log_dest stderr
{persistence}
"""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a town is made of; `deadline_s` is each version's, and `training` is the real one.

    `enrolled`: every message is signed and every update sealed; a broker outside knows nothing of
    it, the hub's own speaks TLS, so that nothing on the links can be read or doubled.
    """

    broker: BrokerName
    keeping: Keeping
    seed: int
    agents: int = 4
    deadline_s: float = 8.0
    training: bool = False
    enrolled: bool = False


class Town:
    """Hub, agents and broker on disk and as processes.

    Parameters
    ----------
    folder
        Emptied first.
    setting
        What to make.

    Attributes
    ----------
    hub, agents, broker
        The processes; the broker is None where it is the hub's child.
    links, wires
        Each agent's relay, and what passes on it.
    hub_link, hub_wire
        The hub's, where the broker is outside.
    broker_ends
        When the hub's child was killed (monotonic seconds).
    workers
        What the command lines of the hub's and of an agent's worker hold.
    archive
        Where `keep_updates` keeps what the hub will delete.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = make_folder(folder)
        self.setting = setting
        self.names = [f"agent-{place}" for place in range(setting.agents)]
        self.base = folder.parent / "base" if setting.training else folder / "base"
        self.workers = _REAL if setting.training else _FIXED
        self.archive = make_folder(folder / "archive")
        self.state = folder / "hub" / "state"
        self.ledger = self.state / "ledger.db"
        self._port = free_port()
        topics = Topics(FEDERATION)
        self.wires = {name: Wire(topics) for name in self.names}
        self._tls = setting.enrolled and setting.keeping == "own"
        steps = {name: None if self._tls else self.wires[name].step for name in self.names}
        self.links = {name: Relay(self._port, step=step) for name, step in steps.items()}
        self.broker: Kept | None = None
        self.broker_ends: list[float] = []
        self.hub_link: Relay | None = None
        self.hub_wire: Wire | None = None
        if setting.keeping != "own":
            self.broker = Kept("broker", self._broker_command(), folder / "broker.log")
            self.hub_wire = Wire(topics)
            self.hub_link = Relay(self._port, step=self.hub_wire.step)
        self._write()
        self.hub = self._ours("hub", "hub", folder / "hub" / "hub.toml")
        self.agents = {
            name: self._ours(name, "agent", self.home(name) / "agent.toml") for name in self.names
        }

    def home(self, agent: str) -> Path:
        """Give the folder of an agent."""
        return self.folder / agent

    def clock(self, name: str) -> Path:
        """Give the file that says how wrong the clock of a process is."""
        return self.folder / f"{name}.clock"

    def everybody(self) -> list[Kept]:
        """List all processes that are kept."""
        return [*filter(None, [self.broker]), self.hub, *self.agents.values()]

    def relays(self) -> list[Relay]:
        """List all links."""
        return [*self.links.values(), *filter(None, [self.hub_link])]

    def ends_beyond_agents(self) -> list[float]:
        """Give when the hub, its connection or the broker has ended."""
        lives = [*self.hub.lives, *(self.broker.lives if self.broker else [])]
        cuts = self.hub_link.cuts if self.hub_link else []
        return [*(life.until for life in lives), *cuts, *self.broker_ends]

    def start(self) -> None:
        """Start all of them.

        Raises
        ------
        TimeoutError
            The broker does not answer.
        """
        if self.broker is not None:
            self.broker.tend(time.monotonic())
            self._wait_for_broker()
        self.hub.tend(time.monotonic())
        self._wait_for_broker()
        self.tend()

    def tend(self) -> None:
        """Start again what has ended."""
        now = time.monotonic()
        for one in self.everybody():
            one.tend(now)

    def close(self) -> None:
        """End everything, agents first."""
        for one in reversed(self.everybody()):
            one.stop()
        for relay in self.relays():
            relay.close()

    def look(self, query: str) -> list[Any]:
        """Ask the hub's ledger without writing to it; nothing if it is not there yet."""
        with contextlib.suppress(sqlite3.Error):
            address = f"{self.ledger.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=1)) as db:
                return db.execute(query).fetchall()
        return []

    def _wait_for_broker(self) -> None:
        until = time.monotonic() + _START_S
        while not answers("127.0.0.1", self._port):
            if time.monotonic() > until:
                raise TimeoutError(f"the broker does not answer; see {self.folder}")
            time.sleep(0.02)

    def keep_updates(self) -> None:
        """Link what lies in the hub's store into the archive, before it is deleted."""
        with contextlib.suppress(OSError):
            for path in (self.state / "blobs").iterdir():
                if not (self.archive / path.name).exists() and is_digest(path.name):
                    with contextlib.suppress(OSError):
                        (self.archive / path.name).hardlink_to(path)

    def _ours(self, name: str, role: str, config: Path) -> Kept:
        command = python("-m", "benchmarks.chaos.child", role, str(config), str(self.clock(name)))
        if not self.setting.training:
            command.append("--fixed")
        return Kept(name, command, self.folder / f"{name}.log")

    def _broker_command(self) -> list[str]:
        if self.setting.broker == "amqtt":
            where = ("--host", "127.0.0.1", "--port", str(self._port))
            return python("-m", "hub.embedded_broker", *where)
        mosquitto = find_mosquitto()
        if mosquitto is None:
            raise FileNotFoundError("mosquitto is not installed")
        store = make_folder(self.folder / "broker")
        keeps = f"persistence true\npersistence_location {store}/\nautosave_interval 5"
        config = self.folder / "mosquitto.conf"
        text = _MOSQUITTO.format(
            port=self._port,
            user="user root" if os.geteuid() == 0 else "",
            persistence=keeps if self.setting.keeping == "persistent" else "persistence false",
        )
        write_atomic(config, text.encode())
        return [mosquitto, "-c", str(config)]

    def _write(self) -> None:
        """Write data and configurations."""
        profile = self.folder / "profile.toml"
        write_atomic(profile, _PROFILE.encode())
        if self.setting.training:
            training.prepare(self.folder.parent, str(profile), CODEC)
            task = training.task(self.setting.seed)
            split = training.deal(len(self.names), self.setting.seed)
            agents_base, calibration = "../../step", "../../calibration.json"
        else:
            fixed.write_base(self.base)
            task = fixed.task(self.setting.seed)
            shard = [Example(text=f"text {label}", label=label) for label in task.labels]
            split = Split([shard] * len(self.names), shard, shard, 0)
            agents_base, calibration = "../base", "../calibration.json"
            self._calibrate(task, str(profile))
        home = make_folder(self.folder / "hub")
        write_jsonl(home / "public.jsonl", split.public)
        write_jsonl(home / "test.jsonl", split.test)
        outside = self.hub_link is not None
        hub = {
            "federation": FEDERATION,
            "trust": "enrolled" if self.setting.enrolled else "open",
            "door": {"enabled": False},
            "base": os.path.relpath(self.base, home),
            "seed": self.setting.seed,
            "codec_up": CODEC,
            "keyframe_every": KEYFRAME_EVERY,
            "profile": str(profile.absolute()),
            "broker": {
                "kind": "external" if outside else self.setting.broker,
                "port": self.hub_link.port if self.hub_link is not None else self._port,
            },
            "adapter": msgspec.to_builtins(task.adapter),
            "training": msgspec.to_builtins(task.training),
            "versions": {
                "buffer": len(self.names),
                "deadline_s": self.setting.deadline_s,
                "grace_s": GRACE_S,
            },
            "public": {"train": "public.jsonl", "evaluation": "test.jsonl", "policy": "never"},
        }
        write_atomic(home / "hub.toml", to_toml(hub).encode())
        for name, shard in zip(self.names, split.agents, strict=True):
            home = make_folder(self.home(name))
            write_jsonl(home / "private.jsonl", shard)
            make_folder(home / "board")  # no sensors: this machine's heat shall pause nobody
            agent = {
                "id": name,
                "federation": FEDERATION,
                "base": agents_base,
                "profile": str(profile.absolute()),
                "broker": {"port": self.links[name].port},
                "data": {"path": "private.jsonl"},
                "calibration": calibration,
                "meter": {"root": "board"},
            }
            if self._tls:
                del agent["broker"]  # it knows that from the hub
            write_atomic(home / "agent.toml", to_toml(agent).encode())
        if self.setting.enrolled:
            self._enrol()

    def _enrol(self) -> None:
        """Let all agents in, without going through the hub's door."""
        authority = Authority(make_folder(self.state) / IDENTITY, FEDERATION)
        members = Members(authority.members)
        for name in self.names:
            identity = make_folder(self.home(name) / "state") / IDENTITY
            public = membership.key_for(identity).public
            made = authority.certify(name, public)
            members.enrol(name, public, made)
            member = Membership(
                agent=name,
                anchor=authority.anchor,
                host="127.0.0.1",
                port=self.links[name].port,
                tls=self._tls,
                door=("127.0.0.1", 1),
                begins=made.credentials.begins,
                ends=made.credentials.ends,
            )
            membership.keep(identity, member, made.credentials.certificate, authority.certificate)
        members.close()

    def _calibrate(self, task: Task, profile: str) -> None:
        """Say what a probe would have measured: it would load torch, and nothing is trained."""
        limits = Limits.of(profiles.load(profile))
        quick = Calibration(floor_mb=50, scale=1.0, overhead_s=0.01, rate=1e12)
        Calibrations(self.folder / "calibration.json").put(
            planning.calibration_key(self.base, task, limits),
            Calibrated(plain=quick, checkpointing=quick),
        )
