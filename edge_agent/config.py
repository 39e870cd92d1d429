"""agent.toml: who this agent is, where its broker, data and base are, what it may spend.

A board that has joined (`ffm agent join`) needs no `[broker]`: it was told where that is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from federation.connection.address import Address, BrokerAddress, locate
from federation.connection.carrier import Carrier, Tls
from federation.trust import membership
from federation.trust.anchor import BROKER_NAME
from federation.trust.membership import Identity
from ffm_common import config
from ffm_common.config import Config, Name
from ffm_common.errors import MembershipOther

IDENTITY: Final = "identity"
"""The folder in an agent's state folder with what it holds since it has joined."""


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


class UpdateChoice(Config, frozen=True, kw_only=True):
    """Whether this agent takes software that its hub releases (docs/self-update.md).

    Parameters
    ----------
    auto
        False: it says in its log that there is some.
    max_mb
        The largest release that is fetched, MB.
    """

    auto: bool = False
    max_mb: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 64


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
    broker
        None: where the hub has said that it is when the board joined; else on this machine.
    """

    id: Name
    federation: Name
    data: DataSource
    base: str
    profile: str = "laptop-cpu"
    folder: str = "state"
    calibration: str = "state/calibration.json"
    broker: BrokerAddress | None = None
    meter: MeterSource = MeterSource()
    update: UpdateChoice = UpdateChoice()


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's configuration with its paths made absolute; who it is, where it has joined."""

    config: AgentConfig
    data: Path
    base: Path
    folder: Path
    calibration: Path
    board: Path
    broker: Address = Address()
    identity: Identity | None = None
    file: Path = Path("agent.toml")


def load(path: Path) -> Located:
    """Read agent.toml, and the board's identity if it has joined.

    Raises
    ------
    ConfigError
        Its leaves name the file and key at fault.
    IdentityBroken
        A file of the identity cannot be used.
    MembershipOther
        The identity is that of another agent, or of another federation.
    """
    found = config.load(path, AgentConfig)
    home = path.resolve().parent
    identity = membership.load(home / found.folder / IDENTITY)
    if identity is not None:
        check_same(identity, found, path)
    return Located(
        config=found,
        data=home / found.data.path,
        base=home / found.base,
        folder=home / found.folder,
        calibration=home / found.calibration,
        board=home / found.meter.root,
        broker=_address(found.broker, path, identity),
        identity=identity,
        file=path.resolve(),
    )


def check_same(identity: Identity, found: AgentConfig, path: Path) -> None:
    """Refuse an identity that is not of the agent which agent.toml names.

    Raises
    ------
    MembershipOther
        It is not.
    """
    member = identity.membership
    has = f"{member.agent} of federation {member.anchor.federation}"
    wanted = f"{found.id} of federation {found.federation}"
    if has != wanted:
        raise MembershipOther(
            f"this board is {has}, and {path} names {wanted}",
            remedy=f"correct {path}, or remove {identity.folder} and join again",
        )


def _address(broker: BrokerAddress | None, path: Path, identity: Identity | None) -> Address:
    """Give where the broker is, and what a member shows there and believes in."""
    if identity is None:
        return locate(broker or BrokerAddress(), path)
    own = Tls(
        ca=identity.authority,
        certificate=identity.certificate,
        key=identity.key_file,
        name=BROKER_NAME,
    )
    if broker is None:
        member = identity.membership
        carrier = Carrier(tls=own if member.tls else None, path=member.path)
        return Address(host=member.host, port=member.port, carrier=carrier)
    found = locate(broker, path)
    if found.carrier.tls is None:
        return found
    tls = found.carrier.tls.backed_by(own)
    return msgspec.structs.replace(found, carrier=msgspec.structs.replace(found.carrier, tls=tls))
