"""`ffm profile list | show | detect | check`: what a device may spend, and what enforces it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffm_common.commands import group

if TYPE_CHECKING:
    from profiles.profile import Profile
    from profiles.trial import Trial


def add_commands(commands: Any) -> None:
    """Add the commands to the parser."""
    actions = group(commands, "profile", "device profiles: what a board may spend")

    listed = actions.add_parser("list", help="the shipped profiles")
    listed.set_defaults(run=_list)

    show = actions.add_parser("show", help="every figure of a profile, and where it comes from")
    show.add_argument("name", metavar="NAME", help="a shipped name, or the path of a TOML file")
    show.set_defaults(run=_show)

    detect = actions.add_parser("detect", help="the profile of the board this runs on")
    detect.add_argument("--root", type=Path, default=Path("/"), help="a recorded tree instead")
    detect.set_defaults(run=_detect)

    check = actions.add_parser(
        "check", help="whether a profile is valid, and what enforces its limits on this machine"
    )
    check.add_argument("file", nargs="?", metavar="FILE", help="this machine's own profile if none")
    check.set_defaults(run=_check)

    for action in (listed, show, detect, check):
        action.add_argument("--json", action="store_true")


def _list(arguments: argparse.Namespace) -> int:
    from profiles.profile import load, names

    shipped = [load(name) for name in names()]
    if arguments.json:
        return _print_json([_plain(one) for one in shipped])
    rows = [("name", "memory", "threads", "GFLOP/s", "accelerator", "board")]
    rows += [
        (
            one.name,
            f"{one.memory_mb} MB",
            str(one.cpu_cores),
            f"{one.gflops_fp32:g}",
            one.accelerator,
            one.title,
        )
        for one in shipped
    ]
    return _print_table(rows)


def _show(arguments: argparse.Namespace) -> int:
    from profiles.profile import load

    profile = load(arguments.name)
    if arguments.json:
        return _print_json(_plain(profile))
    return _print_profile(profile)


def _detect(arguments: argparse.Namespace) -> int:
    import msgspec

    from profiles.detect import detect
    from profiles.sensors import Root

    found = detect(Root(arguments.root))
    if arguments.json:
        return _print_json(msgspec.to_builtins(found))
    sys.stdout.write(f"board    {found.facts.model or 'unknown'}\n")
    sys.stdout.write(f"profile  {found.profile.name} ({found.profile.title})\n")
    for difference in found.differences:
        sys.stdout.write(f"differs  {difference}\n")
    if not found.matched:
        sys.stdout.write("\n")
        _print_profile(found.profile)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    import msgspec

    from profiles.detect import detect
    from profiles.profile import load
    from profiles.sensors import Root
    from profiles.trial import try_limits

    profile = load(arguments.file) if arguments.file else detect(Root()).profile
    trial = try_limits(profile)
    if arguments.json:
        _print_json({"profile": profile.name, "valid": True, **msgspec.to_builtins(trial)})
    else:
        _print_trial(profile, trial)
    return 0 if trial.holds else 1


def _print_profile(profile: Profile) -> int:
    from profiles.profile import dump, figures

    rows = []
    for key, value in dump(profile).items():
        if key != "sources":
            text = ", ".join(value) or "always" if isinstance(value, list | tuple) else str(value)
            rows.append((key, text, profile.source(key) if key in figures() else ""))
    return _print_table(rows)


def _print_trial(profile: Profile, trial: Trial) -> None:
    sys.stdout.write(f"{profile.name} is valid\n")
    rows = [("limit", "wanted", "found", "holds", "means")]
    rows += [
        (one.limit, one.wanted, one.found, "yes" if one.enforced else "NO", one.means)
        for one in trial.enforcement
    ]
    _print_table(rows)
    for one in trial.enforcement:
        if one.reason:
            sys.stdout.write(f"{one.limit}: {one.reason}\n")
    sys.stdout.write(f"trial: {trial.sentence}\n")


def _plain(profile: Profile) -> dict[str, Any]:
    from profiles.profile import dump

    return dump(profile)


def _print_json(value: Any) -> int:
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    return 0


def _print_table(rows: Sequence[tuple[str, ...]]) -> int:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0
