"""agent.toml: who this agent is, where its broker, data and base are, what it may spend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from federation.connection.address import Address, BrokerAddress, locate
from ffm_common import config
from ffm_common.config import Config, Name


class DataSource(Config, frozen=True, kw_only=True):
    """The private data: a CSV, TSV, JSONL or Parquet file; columns are guessed if not named.

    Parameters
    ----------
    held_out
        How much of it is never trained on: with it the device measures each version, and says the
        loss and the accuracy to the hub. 0: nothing is held out, and nothing said.
    """

    path: str
    text: str | None = None
    label: str | None = None
    held_out: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.1


class MeterSource(Config, frozen=True, kw_only=True):
    """Where the board's sensors are read, and how often.

    Parameters
    ----------
    root
        This machine, or a folder with a recorded or simulated tree of /sys and /proc.
    interval_s
        Seconds between two looks.
    """

    root: str = "/"
    interval_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0


class AgentConfig(Config, frozen=True, kw_only=True):
    """One agent. Paths are relative to the file's own folder.

    Parameters
    ----------
    profile
        What the worker may use: a shipped name (``ffm profile list``) or a file.
    folder
        For everything that must outlive the process.
    calibration
        What was measured on this machine; agents on one machine may share the file.
    """

    id: Name
    federation: Name
    data: DataSource
    base: str
    profile: str = "laptop-cpu"
    folder: str = "state"
    calibration: str = "state/calibration.json"
    broker: BrokerAddress = BrokerAddress()
    meter: MeterSource = MeterSource()


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's configuration with its paths made absolute."""

    config: AgentConfig
    data: Path
    base: Path
    folder: Path
    calibration: Path
    board: Path
    broker: Address = Address()


def load(path: Path) -> Located:
    """Read agent.toml; ConfigError leaves name the file and key at fault."""
    found = config.load(path, AgentConfig)
    home = path.resolve().parent
    return Located(
        config=found,
        data=home / found.data.path,
        base=home / found.base,
        folder=home / found.folder,
        calibration=home / found.calibration,
        board=home / found.meter.root,
        broker=locate(found.broker, path),
    )
