"""`ffm hub versions | show | diff | export | rollback`: the registry, from any other terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.commands.output import say_json

if TYPE_CHECKING:
    from hub.commands.diff import Difference, Gap
    from hub.commands.history import Line, Story
    from hub.config import Located

_HEAD = (
    "version",
    "parent",
    "kind",
    "kB",
    "updates",
    "left out",
    "accuracy",
    "loss",
    "devices",
    "mean",
    "p10",
    "worst",
    "lambda",
    "gate",
    "closed because",
    "when",
)


def add_commands(actions: Any) -> None:
    """Add the commands to the hub's."""
    versions = actions.add_parser("versions", help="list the versions that were published")
    _common(versions, _versions, json=True)
    show = actions.add_parser("show", help="tell all of one version")
    show.add_argument("version", type=int, nargs="?", metavar="V", help="the newest if not given")
    _common(show, _show, json=True)
    diff = actions.add_parser("diff", help="tell how two versions differ")
    diff.add_argument("first", type=int, metavar="A")
    diff.add_argument("second", type=int, metavar="B")
    _common(diff, _diff, json=True)
    export = actions.add_parser("export", help="write a version's adapter as a PEFT folder")
    export.add_argument("version", type=int, nargs="?", metavar="V", help="the newest if not given")
    export.add_argument("out", type=Path, metavar="OUT", help="a folder, empty or not there yet")
    _common(export, _export)
    back = actions.add_parser("rollback", help="go back to an older version")
    back.add_argument("version", type=int, metavar="V")
    back.add_argument("--why", default="", metavar="TEXT", help="for the log and for `show`")
    _common(back, _rollback)


def _common(command: argparse.ArgumentParser, run: Any, *, json: bool = False) -> None:
    command.add_argument("--config", type=Path, required=True, metavar="hub.toml")
    if json:
        command.add_argument("--json", action="store_true")
    command.set_defaults(run=run)


def _versions(arguments: argparse.Namespace) -> int:
    from hub.commands import history

    with history.reading(_located(arguments)) as ledger:
        found = history.lines(ledger)
    if arguments.json:
        return say_json(found)
    _table(_HEAD, [_row(line) for line in found])
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from hub.commands import history

    located = _located(arguments)
    with history.reading(located) as ledger:
        found = history.story(ledger, located, arguments.version)
    if arguments.json:
        return say_json(found)
    sys.stdout.write(_story(found))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from hub.commands import history
    from hub.commands.diff import difference

    located = _located(arguments)
    with history.reading(located) as ledger:
        found = difference(ledger, located, arguments.first, arguments.second)
    if arguments.json:
        return say_json(found)
    _difference(found)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from hub.commands import history
    from hub.commands.export import export

    located = _located(arguments)
    with history.reading(located) as ledger:
        row = history.find(ledger.versions(), arguments.version)
    signed = ", signed" if export(located, row, arguments.out) else ""
    sys.stdout.write(
        f"{arguments.out}: the adapter of version {row.version}, in PEFT's format{signed}\n"
    )
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from hub.commands import history
    from hub.commands.export import whole
    from hub.versions import rollback

    located = _located(arguments)
    with history.reading(located) as ledger:
        rows = ledger.versions()
    row = rollback.check(rows, arguments.version)
    whole(located, row)
    rollback.ask(located.folder / "ledger.db", row.version, arguments.why)
    sys.stdout.write(
        f"asked for: the version after {rows[-1].version} will have the content of version "
        f"{row.version}; a running hub makes it within seconds, else the next one that starts\n"
    )
    return 0


def _located(arguments: argparse.Namespace) -> Located:
    from hub import config

    return config.load(arguments.config)


def _row(line: Line) -> list[str]:
    spread = line.devices.accuracy
    return [
        str(line.version),
        "" if line.parent is None else str(line.parent),
        line.kind,
        f"{line.bytes / 1e3:.1f}",
        str(line.updates),
        str(line.left_out),
        _share(line.accuracy),
        _number(line.loss),
        str(line.devices.devices),
        _share(None if spread is None else spread.mean),
        _share(None if spread is None else spread.tenth),
        _share(None if spread is None else spread.worst),
        _number(line.public_share, 2),
        (line.verdict or "") + (", taken back" if line.taken_back else ""),
        line.closed_because,
        line.created.removesuffix("+00:00"),
    ]


def _table(head: tuple[str, ...], rows: list[list[str]]) -> None:
    """Print columns, numbers to the right; the last two are words, like the third."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if _is_number(head[place]) else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _is_number(name: str) -> bool:
    return name not in {"kind", "gate", "closed because", "when", "agent", "why", "module"}


def _story(found: Story) -> str:
    from hub.versions.devices import describe

    line, record = found.line, found.record
    said = {
        "version": f"{line.version}, {line.kind} of {line.bytes} bytes, {line.created}",
        "comes from": ", ".join(map(str, found.lineage[1:])) or "nothing: it is the first",
        "taken back": "yes: later versions do not come from it" if line.taken_back else "",
        "closed because": line.closed_because,
        "evaluation": f"accuracy {_share(line.accuracy)}, loss {_number(line.loss)}",
        "devices": describe(line.devices),
        "adapter": found.adapter or "kept no more",
        "content": found.content,
        "cost": f"{found.uplink_bytes} bytes up, {found.downlink_bytes} bytes down, "
        f"{found.seconds:.0f} s",
        "lost on the way": f"{found.error:.2f} of the step by the codec, {found.tail:.4f} of the "
        "energy by the cut to the rank",
    }
    if record.decision is not None:
        numbers = record.decision.used
        said["public data"] = f"lambda {record.decision.share:.2f}: {record.decision.why}"
        if numbers is not None:
            said["numbers"] = f"v_F {numbers.v_f:.3f}, v_S {numbers.v_s:.3f}, b2 {numbers.b2:.3f}"
    if record.guard:
        said["guard"] = record.guard
    if record.verdict is not None:
        verdict = record.verdict
        said["gate"] = f"{verdict.outcome}: {verdict.why}"
        if verdict.devices is not None:
            said["devices' vote"] = verdict.devices.why
    for number, note in enumerate(record.notes):
        said[f"note {number + 1}"] = note
    text = "".join(f"{name:<16} {what}\n" for name, what in said.items() if what)
    for one in found.contributions:
        text += f"{'update':<16} {one.agent}, made from version {one.made_from}, "
        text += f"{one.examples} examples, {one.bytes} bytes"
        if one.judgement is not None:
            text += f", weight {one.judgement.weight:.3f}, norm {one.judgement.norm:.2f}"
            text += f", standing {one.judgement.standing:.2f}"
            text += f", {one.judgement.said}" if one.judgement.said else ""
        text += "" if one.reputation is None else f", reputation {one.reputation:.2f}"
        text += f"; left out: {one.left_out}\n" if one.left_out else "\n"
    return text


def _difference(found: Difference) -> None:
    if found.same:
        sys.stdout.write("the same content, to the bit\n")
    wholes = [gap for gap in (found.products, found.rest) if gap is not None]
    _table(("module", "distance", "relative"), [_apart(gap) for gap in (*wholes, *found.modules)])
    for name, (before, after) in (("accuracy", found.accuracy), ("loss", found.loss)):
        sys.stdout.write(f"{name}: {before:.4f} to {after:.4f} ({after - before:+.4f})\n")
    sys.stdout.write(f"contributors: {', '.join(found.contributors) or 'none'}\n")


def _apart(gap: Gap) -> list[str]:
    name = {"products": "all LoRA products", "rest": "all else"}.get(gap.name, gap.name)
    return [name, f"{gap.distance:.5f}", _share(gap.relative)]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
