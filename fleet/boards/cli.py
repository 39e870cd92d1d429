"""`ffm flash` and `ffm install`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet.boards.files import Plan


def add_commands(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_flash(commands)
    _add_install(commands)


def _add_flash(commands: Any) -> None:
    flash = commands.add_parser(
        "flash", help="prepare a Raspberry Pi's card: it joins by itself at its first boot"
    )
    flash.add_argument("--board", required=True, metavar="NAME", help="`ffm profile list`: rpi...")
    flash.add_argument(
        "--boot", type=Path, required=True, metavar="DIR", help="where its first partition is"
    )
    flash.add_argument("--join", required=True, metavar="TOKEN", help="from `ffm hub invite`")
    flash.add_argument("--id", required=True, metavar="ID", help="what it is to be called")
    flash.add_argument(
        "--base", type=Path, required=True, metavar="FOLDER", help="the base, or exported step"
    )
    flash.add_argument(
        "--wheels", type=Path, default=Path("dist"), metavar="DIR", help="of `make bundle` (dist)"
    )
    flash.add_argument(
        "--offline", action="store_true", help="all wheels are there: nothing is fetched"
    )
    flash.add_argument(
        "--data",
        type=PurePosixPath,
        default=PurePosixPath("/var/lib/ffm/private.csv"),
        metavar="PATH",
        help="where its private data is, or will be, on the board (%(default)s)",
    )
    flash.add_argument("--hostname", metavar="NAME", help="if not its id")
    flash.add_argument("--wifi", metavar="SSID", help="asks for the password")
    flash.add_argument("--wifi-country", metavar="XX", help="such as DE")
    flash.add_argument(
        "--wifi-password-file", type=Path, metavar="FILE", help="or in FFM_WIFI_PASSWORD"
    )
    flash.add_argument("--ssh-key", type=Path, metavar="FILE.pub", help="who may log in")
    flash.add_argument("--user", default="ffm-owner", metavar="NAME", help="as (%(default)s)")
    flash.add_argument("--os", choices=("raspberrypi", "ubuntu"), help="if its marks do not tell")
    _common(flash, _flash)


def _add_install(commands: Any) -> None:
    install = commands.add_parser("install", help="run agent or hub as a service of systemd")
    install.add_argument("role", choices=("agent", "hub"))
    install.add_argument(
        "--config", type=Path, metavar="FILE", help="agent.toml or hub.toml (in /var/lib/ffm)"
    )
    install.add_argument("--user", default="ffm", metavar="NAME", help="as whom (%(default)s)")
    install.add_argument("--ffm", type=Path, metavar="PROGRAM", help="if not this one")
    install.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="of an image, not this system"
    )
    install.add_argument("--uninstall", action="store_true", help="remove it; its data stays")
    _common(install, _install)


def _common(command: argparse.ArgumentParser, run: Any) -> None:
    command.add_argument("--dry-run", action="store_true", help="show every file, write none")
    command.add_argument("--yes", action="store_true", help="replace what is there without asking")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=run)


def _flash(arguments: argparse.Namespace) -> int:
    from fleet.boards import flash, partition
    from fleet.boards.wifi import wifi

    found = partition.look(arguments.boot, arguments.os)
    net = None
    if arguments.wifi is not None:
        net = wifi(arguments.wifi, arguments.wifi_country, arguments.wifi_password_file)
    wishes = flash.Wishes(
        board=arguments.board,
        token=arguments.join,
        id=arguments.id,
        base=arguments.base,
        wheels=arguments.wheels,
        data=arguments.data,
        hostname=arguments.hostname,
        wifi=net,
        ssh_key=arguments.ssh_key,
        user=arguments.user,
        offline=arguments.offline,
    )
    files = flash.plan(wishes, found)
    files.check()
    if not _go_on(files, arguments):
        return 0
    files.write()
    if not arguments.json:
        sys.stdout.write(
            f"{arguments.boot} is prepared for {arguments.id}, a {arguments.board} with "
            f"{_title(found.system)}: {len(files.files)} files are written, no image\n"
            "Unmount it, put the card into the board, and switch it on. `ffm hub agents` shows it "
            "when it has joined; on the board, `journalctl -u ffm-first-boot`.\n"
        )
        if net is None:
            sys.stdout.write("It has no Wi-Fi: give it a cable.\n")
        if arguments.ssh_key is None:
            sys.stdout.write("Nobody may log in by key: --ssh-key lets you in.\n")
    return 0


def _title(system: str) -> str:
    return {"raspberrypi": "Raspberry Pi OS", "ubuntu": "Ubuntu"}[system]


def _install(arguments: argparse.Namespace) -> int:
    from fleet.boards import install

    config = arguments.config or Path("/var/lib/ffm") / f"{arguments.role}.toml"
    service = install.Service(
        role=arguments.role,
        config=config.absolute(),
        ffm=arguments.ffm or install.default_ffm(),
        user=arguments.user,
        root=arguments.root,
    )
    if arguments.uninstall:
        removed = [] if arguments.dry_run else install.uninstall(service)
        sys.stdout.write(
            f"{removed[0]} is removed; {config.parent} and the account stay\n"
            if removed
            else f"{service.unit}: nothing is removed\n"
        )
        return 0
    files = install.plan(service)
    if not arguments.dry_run:
        if service.live:
            install.require_root()
            install.require_systemd()
        files.check()
    run = [" ".join(command) for command in install.commands(service)]
    if not _go_on(files, arguments, run):
        return 0
    install.install(service, files, (lambda _: None) if arguments.json else sys.stdout.write)
    return 0


def _go_on(files: Plan, arguments: argparse.Namespace, run: list[str] | None = None) -> bool:
    """Show the files where that is all that is wanted; ask where one would be replaced."""
    import msgspec

    from ffm_common.errors import PathTaken

    if arguments.json:
        told = {"folder": str(files.folder), "files": files.told(), "commands": run or []}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    elif arguments.dry_run:
        sys.stdout.writelines(f"{line}\n" for line in files.lines())
        sys.stdout.writelines(f"$ {command}\n" for command in run or [])
        sys.stdout.write("nothing is written\n")
    if arguments.dry_run:
        return False
    replaced = files.replaced()
    if not replaced or arguments.yes:
        return True
    names = ", ".join(replaced)
    if not sys.stdin.isatty():
        raise PathTaken(f"{files.folder} has {names} already")
    sys.stderr.write(f"{files.folder}: replace {names}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise PathTaken(f"{names} in {files.folder} are kept: nothing is written")
    return True
