"""agent.toml: who this agent is, where its broker, data and base are, what it may spend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from ffm_common import config
from ffm_common.config import Config

Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,63}$")]


class BrokerAddress(Config, frozen=True, kw_only=True):
    """Where the MQTT broker listens."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883


class DataSource(Config, frozen=True, kw_only=True):
    """The private data: a CSV, TSV, JSONL or Parquet file; columns are guessed if not named."""

    path: str
    text: str | None = None
    label: str | None = None


class AgentConfig(Config, frozen=True, kw_only=True):
    """One agent. Paths are relative to the file's own folder."""

    id: Name
    federation: Name
    data: DataSource
    base: str
    profile: str = "laptop-cpu"
    folder: str = "state"
    broker: BrokerAddress = BrokerAddress()


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's configuration with its paths made absolute."""

    config: AgentConfig
    data: Path
    base: Path
    folder: Path


def load(path: Path) -> Located:
    """Read agent.toml; ConfigError leaves name the file and key at fault."""
    found = config.load(path, AgentConfig)
    home = path.resolve().parent
    return Located(
        config=found,
        data=home / found.data.path,
        base=home / found.base,
        folder=home / found.folder,
    )
