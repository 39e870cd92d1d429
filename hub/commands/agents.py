"""`ffm hub agents | pardon`: who takes part and how it stands, in federations of either kind."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hub.commands.output import say_json

if TYPE_CHECKING:
    from hub.config import Located
    from hub.trust.members import Member
    from hub.trust.quarantine import Quarantine

Told: TypeAlias = dict[str, Any]
"""What a program reads of an agent; times in UTC, ISO 8601."""

_TIMES = {
    "since": "member since",
    "certificate_ends": "certificate until",
    "renewed": "renewed",
    "last_came": "last came (UTC)",
}
_MINUTES = len("2026-01-31T12:00")


def add_commands(actions: Any) -> None:
    """Add the commands to the hub's."""
    agents = actions.add_parser("agents", help="list who takes part, is in quarantine, was revoked")
    agents.add_argument("--json", action="store_true")
    agents.set_defaults(run=_agents)
    pardon = actions.add_parser("pardon", help="end an agent's quarantine")
    pardon.add_argument("agent", metavar="ID")
    pardon.set_defaults(run=_pardon)
    for command in (agents, pardon):
        command.add_argument("--config", type=Path, required=True, metavar="hub.toml")


def _agents(arguments: argparse.Namespace) -> int:
    from hub import config

    located = config.load(arguments.config)
    found = _found(located)
    if arguments.json:
        return say_json(found)
    times = _TIMES if located.trust == "enrolled" else {"last_came": _TIMES["last_came"]}
    rows = [("agent", *times.values(), "standing")]
    for told in found:
        whens = ((told[name] or "")[:_MINUTES].replace("T", " ") for name in times)
        rows.append((told["agent"], *whens, _standing(told)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


def _pardon(arguments: argparse.Namespace) -> int:
    from hub import config
    from hub.commands import history
    from hub.trust import quarantine

    located = config.load(arguments.config)
    with history.reading(located):
        pass
    quarantine.pardon(located.folder / "ledger.db", arguments.agent, time.time())
    sys.stdout.write(f"{arguments.agent} is pardoned: a running hub hears it again in a moment\n")
    return 0


def _found(located: Located) -> list[Told]:
    """Tell of all members, or in an open federation of all who ever came."""
    from hub.commands.members import opened

    came, held = _of_ledger(located)
    if located.trust != "enrolled":
        return [{"agent": agent, **_conduct(agent, came, held)} for agent in sorted(came)]
    with opened(located) as members:
        return [_member(one) | _conduct(one.agent, came, held) for one in members.all()]


def _of_ledger(located: Located) -> tuple[dict[str, float], dict[str, Quarantine]]:
    """Give when each agent last came, and their quarantines, as far as the ledger knows."""
    from ffm_common.errors import VersionUnknown
    from hub.commands import history
    from hub.trust import quarantine

    try:
        with history.reading(located) as ledger:
            return ledger.last_came(), quarantine.read(ledger)
    except VersionUnknown:
        return {}, {}


def _member(member: Member) -> Told:
    revoked = member.revoked is not None
    return {
        "agent": member.agent,
        "key": member.public.hex(),
        "since": _when(member.since),
        "certificate_ends": _when(member.credentials.ends),
        "renewed": _when(member.renewed),
        "revoked": _when(member.revoked),
        "why": member.why if revoked else None,
    }


def _conduct(agent: str, came: dict[str, float], held: dict[str, Quarantine]) -> Told:
    last = held.get(agent)
    told = None
    if last is not None:
        told = {
            "holds": last.holds(time.time()),
            "since": _when(last.since),
            "until": _when(last.until),
            "times": last.times,
            "why": last.why,
        }
    return {"last_came": _when(came.get(agent)), "quarantine": told}


def _standing(told: Told) -> str:
    if told.get("revoked"):
        return f"revoked {_minute(told['revoked'])}: {told['why']}"
    last = told["quarantine"]
    if last is None:
        return "good"
    if last["holds"]:
        return f"in quarantine until {_minute(last['until'])}: {last['why']}"
    return f"good; was in quarantine until {_minute(last['until'])}: {last['why']}"


def _minute(when: str) -> str:
    return when[:_MINUTES].replace("T", " ")


def _when(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
