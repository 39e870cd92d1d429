"""A fleet on disk: the folders, data shards and configuration files of one hub and its agents.

::

    OUT/base/                 the quantized base
    OUT/hub/hub.toml          and the hub's state, public.jsonl, test.jsonl
    OUT/agents/ID/agent.toml  and the agent's state, private.jsonl
    OUT/logs/                 what each process says

Anybody can start any of these processes by hand with ``ffm hub run`` and ``ffm agent run``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ffm_common.errors import PathUnwritable
from ffm_common.files import make_folder, write_atomic
from ffm_common.task import Adapter, Training
from fleet.partition import Split
from learning.data import write_jsonl

_MARKER = ".ffm-fleet"
FEDERATION = "demo"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One agent: its id, its profile's name."""

    id: str
    profile: str


class Layout:
    """The paths of a fleet below `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.base = out / "base"
        self.hub = out / "hub"
        self.hub_config = self.hub / "hub.toml"
        self.ledger = self.hub / "state" / "ledger.db"
        self.public = self.hub / "public.jsonl"
        self.test = self.hub / "test.jsonl"
        self.logs = out / "logs"
        self.adapter = out / "adapter"
        self.report = out / "report.json"
        self.plot = out / "accuracy.png"

    def agent(self, name: str) -> Path:
        """Give the folder of an agent."""
        return self.out / "agents" / name

    def version(self, number: int) -> Path:
        """Give where the hub keeps a version's adapter."""
        return self.hub / "state" / "versions" / str(number)

    def clear(self) -> None:
        """Make `out` an empty folder of ours; never touch one that is not.

        Raises
        ------
        PathUnwritable
            It cannot be written, or holds something that no fleet run has put there.
        """
        if self.out.is_dir() and any(self.out.iterdir()):
            if not (self.out / _MARKER).exists():
                raise PathUnwritable(
                    f"{self.out} holds files of somebody else's",
                    remedy="name an empty or new folder with --out",
                )
            make_folder(self.out)
            for path in self.out.iterdir():
                if path.name != _MARKER:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        make_folder(self.out)
        (self.out / _MARKER).touch()
        make_folder(self.logs)

    def write_data(self, split: Split, members: list[Member]) -> None:
        """Give each its shard."""
        make_folder(self.hub)
        write_jsonl(self.public, split.public)
        write_jsonl(self.test, split.test)
        for member, shard in zip(members, split.agents, strict=True):
            write_jsonl(make_folder(self.agent(member.id)) / "private.jsonl", shard)

    def write_configs(
        self,
        members: list[Member],
        *,
        broker: str,
        port: int,
        adapter: Adapter,
        training: Training,
        versions: int,
        deadline_s: float,
        public_steps: int,
        seed: int,
    ) -> None:
        """Write hub.toml and one agent.toml each."""
        columns = {"text": "text", "label": "label"}
        hub = {
            "federation": FEDERATION,
            "base": "../base",
            "seed": seed,
            "broker": {"kind": broker, "host": "127.0.0.1", "port": port},
            "adapter": msgspec.to_builtins(adapter),
            "training": msgspec.to_builtins(training),
            "versions": {
                "count": versions,
                "buffer": len(members),
                "deadline_s": deadline_s,
                "exit_when_done": True,
            },
            "public": {
                "train": self.public.name,
                "evaluation": self.test.name,
                "steps": public_steps,
                **columns,
            },
        }
        write_atomic(self.hub_config, to_toml(hub).encode())
        for member in members:
            agent = {
                "id": member.id,
                "federation": FEDERATION,
                "base": "../../base",
                "profile": member.profile,
                "broker": {"host": "127.0.0.1", "port": port},
                "data": {"path": "private.jsonl", **columns},
            }
            write_atomic(self.agent(member.id) / "agent.toml", to_toml(agent).encode())


def to_toml(values: Mapping[str, Any]) -> str:
    """Write plain values and tables one level deep as TOML."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in values.items()
        if not isinstance(value, Mapping)
    ]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", to_toml(value).rstrip()]
    return "\n".join(lines) + "\n"
