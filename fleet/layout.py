"""A fleet on disk: the folders, data shards and configuration files of one hub and its agents.

::

    OUT/base/                 the quantized base, unless the user brings one
    OUT/step/                 the training step exported from it, for agents without torch
    OUT/hub/hub.toml          and the hub's state, public.jsonl, test.jsonl
    OUT/agents/ID/agent.toml  and the agent's state, private.jsonl, board/ (simulated sensors)
    OUT/calibration.json      what was measured on this machine, for all agents
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
from ffm_common.lock import FolderLock
from ffm_common.task import Adapter, Training
from fleet.partition import Split
from learning.engines import EngineName
from learning.texts.data import write_jsonl

_MARKER = ".ffm-fleet"
FEDERATION = "demo"
# A simulated board's sensors: cool, on mains. Write 90000 into its temp and the agent pauses.
_BOARD = "board"
_SIMULATED = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 48000,
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": 1,
}


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One agent: its id, its profile's name."""

    id: str
    profile: str


class Layout:
    """The paths of a fleet below `out`, with its base there or in a folder of the user's.

    Agents train from the base, or, with engine ``onnx``, from a step exported into `agents_base`.
    """

    def __init__(
        self, out: Path, *, base: Path | None = None, engine: EngineName = "torch"
    ) -> None:
        self.out = out
        self._given_base = None if base is None else base.resolve()
        self.base = self._given_base or out / "base"
        self.agents_base = self.base if engine == "torch" else out / "step"
        self.hub = out / "hub"
        self.hub_config = self.hub / "hub.toml"
        self.ledger = self.hub / "state" / "ledger.db"
        self.public = self.hub / "public.jsonl"
        self.test = self.hub / "test.jsonl"
        self.calibration = out / "calibration.json"
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

    def clear(self) -> FolderLock:
        """Make `out` an empty folder of ours, held until the lock given is closed.

        Raises
        ------
        PathUnwritable
            It cannot be written, or holds something that no fleet run has put there.
        FolderBusy
            Another fleet runs in it.
        """
        make_folder(self.out)
        if any(self.out.iterdir()) and not (self.out / _MARKER).exists():
            raise PathUnwritable(
                f"{self.out} holds files of somebody else's",
                remedy="name an empty or new folder with --out",
            )
        lock = FolderLock(self.out, _MARKER)
        try:
            for path in self.out.iterdir():
                if path.name != _MARKER:
                    _remove(path)
            make_folder(self.logs)
        except BaseException:
            lock.close()
            raise
        return lock

    def write_data(self, split: Split, members: list[Member]) -> None:
        """Give each its shard."""
        make_folder(self.hub)
        write_jsonl(self.public, split.public)
        write_jsonl(self.test, split.test)
        for member, shard in zip(members, split.agents, strict=True):
            folder = make_folder(self.agent(member.id))
            write_jsonl(folder / "private.jsonl", shard)
            for name, content in _SIMULATED.items():
                path = folder / _BOARD / name
                make_folder(path.parent)
                path.write_text(f"{content}\n")

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
        policy: str,
        codec: str,
        seed: int,
    ) -> None:
        """Write hub.toml and one agent.toml each."""
        columns = {"text": "text", "label": "label"}
        hub = {
            "federation": FEDERATION,
            "base": self._seen_from(1, self.base),
            "seed": seed,
            "codec_up": codec,
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
                "policy": policy,
                # Of each half, in place of the devices' own: here hub and agents share one machine.
                "steps": 8,
                **columns,
            },
        }
        write_atomic(self.hub_config, to_toml(hub).encode())
        for member in members:
            agent = {
                "id": member.id,
                "federation": FEDERATION,
                "base": self._seen_from(2, self.agents_base),
                "profile": member.profile,
                "broker": {"host": "127.0.0.1", "port": port},
                "data": {"path": "private.jsonl", **columns},
                "calibration": f"../../{self.calibration.name}",
                "meter": {"root": _BOARD},
            }
            write_atomic(self.agent(member.id) / "agent.toml", to_toml(agent).encode())

    def _seen_from(self, depth: int, base: Path) -> str:
        """Name a base as seen from a folder `depth` levels below `out`, which may be moved."""
        return str(base if base == self._given_base else Path(*[".."] * depth, base.name))


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise PathUnwritable(f"cannot remove {path}: {error.strerror or error}") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Write plain values and tables one level deep as TOML; every key is a bare one."""
    lines = [
        f"{key} = {_toml_value(value)}"
        for key, value in values.items()
        if not isinstance(value, Mapping)
    ]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", to_toml(value).rstrip()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # TOML takes JSON's values, but no surrogate pairs (so no escapes), and no bare DEL.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
