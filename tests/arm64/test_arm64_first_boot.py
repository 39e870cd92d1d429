"""A card that `ffm flash` has prepared boots in an emulated board, which joins by itself.

One board for the whole file, as a boot takes minutes: each test goes on where the last has left it.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffm_common.files import sha256_bytes
from hub.broker import find_mosquitto
from profiles import profile as profiles
from tests.arm64 import machine
from tests.arm64.lacking import lacking
from tests.arm64.machine import GATEWAY, Board
from tests.arm64.rootfs import PYTHON, System, system
from tests.brokers import free_port
from tests.e2e.conftest import NewTown, Started, Town
from tests.fleet.boards import card

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/fleet/boards/golden"
PROFILE = "rpi4-2gb"
HOME = "/var/lib/ffm"
CGROUP = "/sys/fs/cgroup/system.slice/ffm-agent.service"
# The emulated machine's own; the rest is what the image of Raspberry Pi OS brings.
LINE = (
    "console=ttyAMA0 root=/dev/vda rootfstype=ext4 rootwait ds=nocloud net.ifnames=0"
    " systemd.journald.forward_to_console=1 systemd.default_timeout_start_sec=900\n"
)
NETWORK = (
    "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      optional: true\n"
)


@pytest.fixture(scope="module")
def board_system(cache: Path) -> System:
    if find_mosquitto() is None:
        lacking("mosquitto is not installed", "apt-get install mosquitto")
    machine.ready()  # before that which takes long
    return system(cache)


@pytest.fixture(scope="module")
def wheels(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what `make bundle` leaves, and beside it all that a board without torch would fetch."""
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    shutil.copy(ROOT / "constraints.txt", folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # By name, as pip takes the markers of what it is asked for from the machine that it runs on.
    wanted = [*project["dependencies"], "tokenizers", "onnxruntime"]
    pinned = (folder / "constraints.txt").read_bytes() + repr(wanted).encode()
    kept = cache / f"wheels-{PYTHON}-{sha256_bytes(pinned)[:12]}"
    if not kept.exists():
        part = kept.with_suffix(".part")
        tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 26, 27, 28, 31, 34)]
        pip(
            *("download", "--only-binary=:all:", "--implementation=cp"),
            *(f"--python-version={PYTHON}", *tags, "--platform=manylinux2014_aarch64"),
            *("--constraint", folder / "constraints.txt", "--dest", part, *wanted),
        )
        part.rename(kept)
    for wheel in kept.glob("*.whl"):
        shutil.copy(wheel, folder)
    return folder


def pip(*command: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Gateway:
    """A hub of members that boards in QEMU reach, with the training step that they are given."""

    def __init__(self, town: Town) -> None:
        self.town, self.door = town, free_port()
        self._hub: Started | None = None

    def write(self, *, versions: int) -> None:
        """Write its hub.toml."""
        self.town.write_hub(
            trust="enrolled",
            door={"port": self.door},
            versions={"count": versions, "buffer": 1, "deadline_s": 3600},
            training={"local_steps": 3, "batch_size": 8, "max_length": 32},
            # A hub with data of its own would go on without the board.
            public={"train": "public.jsonl", "evaluation": "test.jsonl", "policy": "never"},
        )

    def start(self) -> None:
        self._hub = self.town.start_hub()

    def stop(self) -> None:
        if self._hub is not None:
            self._hub.send(signal.SIGTERM)
            self._hub.wait(60)

    def ask(self, *command: str) -> Any:
        """Ask it in JSON."""
        return json.loads(said(self.town, "hub", *command, "--config", "hub/hub.toml", "--json"))


@pytest.fixture(scope="module")
def gateway(new_town: NewTown) -> Iterator[Gateway]:
    with new_town() as town:
        gateway = Gateway(town)
        gateway.write(versions=1)
        said(town, "hub", "export-step", "step", "--config", "hub/hub.toml")
        yield gateway


def said(town: Town, *command: str | Path) -> str:
    """Run a command of ours, and give what it says."""
    started = town.start(*map(str, command), log=f"asked-{command[0]}")
    assert started.wait(120) == 0, started.said()
    return started.output()


@pytest.fixture(scope="module")
def boot(gateway: Gateway, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a card's first partition that `ffm flash` has prepared for the hub."""
    gateway.start()  # once: it makes itself an identity
    town = gateway.town
    town.until((town.folder / "hub/state/door.json").exists, "the door is open", 60)
    token = gateway.ask("invite", "--agent", "kitchen", "--host", GATEWAY, "--hours", "72")["token"]
    gateway.stop()
    folder = tmp_path_factory.mktemp("card")
    boot = card.raspberrypi(folder / "boot")
    (boot / "cmdline.txt").write_text(LINE)
    (boot / "network-config").write_text(NETWORK)
    wishes = {
        "--board": PROFILE,
        "--boot": boot,
        "--join": token,
        "--id": "kitchen",
        "--base": town.folder / "step",
        "--wheels": wheels,
        "--ssh-key": machine.make_key(folder / "key"),
    }
    told = said(
        town, "flash", "--offline", "--yes", *(one for pair in wishes.items() for one in pair)
    )
    assert f"is prepared for kitchen, a {PROFILE} with Raspberry Pi OS" in told
    return boot


@pytest.fixture(scope="module")
def kitchen(
    board_system: System, boot: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Board]:
    """Give the board, from when the power comes; its cable is not plugged in yet."""
    work = tmp_path_factory.mktemp("board") / "one"
    with Board(board_system, work, boot, key=boot.with_name("key"), cable=False) as board:
        yield board


def test_without_a_network_and_then_without_a_hub_it_says_what_it_waits_for(
    kitchen: Board, gateway: Gateway
) -> None:
    kitchen.until_said(r"ffm: the agent is installed", 1200)
    where = re.escape(f"{GATEWAY}:{gateway.door}")
    kitchen.until_said(rf"ffm: waiting: cannot reach {where}: Network is unreachable", 300)
    kitchen.plug(in_=True)
    kitchen.until_said(rf"ffm: waiting: cannot reach {where}: Connection refused", 300)
    assert "[door-unreachable]; again and again, until it works" in kitchen.console()


def test_it_joins_when_the_hub_comes(kitchen: Board, gateway: Gateway) -> None:
    gateway.start()
    kitchen.until_said(r"ffm: done", 600)
    assert [one["agent"] for one in gateway.ask("agents")] == ["kitchen"]
    kitchen.until(kitchen.lets_in, "its owner logs in by key", 120, pause_s=3)
    assert kitchen.sh("hostname").strip() == "kitchen"
    assert kitchen.sh("ls /boot/firmware/ffm").split() == [
        "base",
        "ffm-first-boot.service",
        "first-boot",
        "settings",
        "wheels",
    ]
    assert kitchen.sh("systemctl is-enabled ffm-first-boot || true").strip() == "disabled"


def shown(board: Board, *names: str) -> dict[str, str]:
    """Give properties of the service."""
    text = board.sh(f"systemctl show ffm-agent -p {','.join(names)}")
    return dict(line.split("=", 1) for line in text.splitlines())


def test_its_service_is_what_the_unit_says(kitchen: Board) -> None:
    unit = kitchen.sh("cat /etc/systemd/system/ffm-agent.service")
    assert unit == (GOLDEN / "ffm-agent.service").read_text()
    wanted = {
        "Type": "notify",
        "NotifyAccess": "all",
        "User": "ffm",
        "Delegate": "yes",
        "OOMPolicy": "continue",
        "WatchdogUSec": "5min",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "NRestarts": "0",
        "UnitFileState": "enabled",
    }
    assert shown(kitchen, *wanted) == wanted
    assert kitchen.sh("systemctl --failed --plain --no-legend") == ""
    launcher = shown(kitchen, "MainPID")["MainPID"]
    assert "ffm-launch" in kitchen.sh(f"tr '\\0' ' ' < /proc/{launcher}/cmdline")
    assert kitchen.sh(f"cat {CGROUP}/cgroup.procs") == ""
    assert len(kitchen.sh(f"cat {CGROUP}/ffm-agent/cgroup.procs").split()) == 2


def test_an_idle_agent_is_small(kitchen: Board) -> None:
    pids = kitchen.sh(f"cat {CGROUP}/ffm-agent/cgroup.procs").split()
    files = " ".join(f"/proc/{pid}/smaps_rollup" for pid in pids)
    pss = [int(one) for one in kitchen.sh(f"grep -h ^Pss: {files} | tr -dc '0-9\\n'").split()]
    assert sum(pss) < 48 << 10, pss


def test_it_trains_under_its_profile_s_limit_and_its_update_is_accepted(
    kitchen: Board, gateway: Gateway
) -> None:
    town = gateway.town
    rows = town.write_csv("private.csv", 60).read_bytes()
    kitchen.sh(f"install -o ffm -g ffm -m 600 /dev/stdin {HOME}/private.csv", stdin=rows)
    kitchen.sh("systemctl restart ffm-agent")
    limit = profiles.load(PROFILE).memory_mb << 20
    seen = kitchen.sh(
        f"until cat {CGROUP}/ffm-worker-*/memory.max 2>/dev/null; do sleep 0.2; done", seconds=300
    )
    assert seen.split()[0] == str(limit)
    update = town.until(lambda: town.updates(0).get("kitchen"), "its update", 600)
    assert update.examples > 0
    town.until(lambda: [row.version for row in town.versions()] == [0, 1], "version 1", 120)
    log = kitchen.sh("journalctl -u ffm-agent -o cat")
    assert f"its worker's memory is held to {limit >> 20} MB by cgroup v2" in log


def test_a_worker_that_is_killed_for_memory_does_not_take_the_service_along(kitchen: Board) -> None:
    assert "cgroup v2" in trial(kitchen)


def trial(board: Board) -> str:
    """Try the profile's limits as its service would, with a worker that takes memory for ever."""
    like = "-p User=ffm -p Delegate=yes -p OOMPolicy=continue"
    return board.sh(
        f"systemd-run -q --wait --pipe {like} /opt/ffm/venv/bin/ffm profile check {PROFILE}"
    )


def agent_of(board: Board) -> str:
    """Give the process of the agent: the launcher's child."""
    launcher = shown(board, "MainPID")["MainPID"]
    return board.sh(f"cat /proc/{launcher}/task/{launcher}/children").strip()


@pytest.mark.parametrize("kill", ["kill -KILL {agent}", "kill -KILL {launcher}"])
def test_what_is_killed_is_started_again(kitchen: Board, kill: str) -> None:
    kitchen.sh("systemctl reset-failed ffm-agent")  # its budget of starts, which these tests use up
    launcher, agent = shown(kitchen, "MainPID")["MainPID"], agent_of(kitchen)
    kitchen.sh(kill.format(agent=agent, launcher=launcher))
    until_well(kitchen, but=agent)
    assert shown(kitchen, "NRestarts")["NRestarts"] == "1"


def test_it_is_started_anew_by_hand(kitchen: Board) -> None:
    agent = agent_of(kitchen)
    kitchen.sh("systemctl restart ffm-agent")
    until_well(kitchen, but=agent)


def test_one_that_hangs_is_noticed_by_the_watchdog(kitchen: Board) -> None:
    soon = "/run/systemd/system/ffm-agent.service.d/soon.conf"
    kitchen.sh(f"install -D -m 644 /dev/stdin {soon}", stdin=b"[Service]\nWatchdogSec=30\n")
    kitchen.sh("systemctl daemon-reload; systemctl reset-failed ffm-agent")
    kitchen.sh("systemctl restart ffm-agent")
    agent = agent_of(kitchen)
    until_well(kitchen)
    kitchen.sh(f"kill -STOP {agent}")
    until_well(kitchen, but=agent)
    assert "Watchdog timeout" in kitchen.sh("journalctl -u ffm-agent -o cat -n 100")


def until_well(board: Board, *, but: str = "") -> None:
    """Wait until its agent, another process than `but`, is connected."""

    def well() -> bool:
        said = board.sh(f"cat {HOME}/state/health.json || true")
        life = json.loads(said) if said else {"pid": but}
        return str(life["pid"]) != but and bool(life["connected"])

    board.until(well, "its agent is connected", 300, pause_s=3)


def test_where_the_kernel_counts_no_memory_it_says_so_and_is_held_otherwise(
    kitchen: Board, board_system: System, boot: Path, gateway: Gateway, tmp_path: Path
) -> None:
    kitchen.close()  # as when somebody pulls the power
    gateway.stop()
    gateway.write(versions=2)
    gateway.start()
    key, words = boot.with_name("key"), "cgroup_disable=memory"
    with Board(board_system, tmp_path / "two", boot, key=key, after=kitchen, words=words) as board:
        town = gateway.town
        town.until(lambda: town.updates(1).get("kitchen"), "its update", 900)
        log = board.sh("journalctl -b -u ffm-agent -o cat")
        limit = profiles.load(PROFILE).memory_mb
        held = re.search(rf"its worker's memory is held to {limit} MB by (.+) \((.+)\)", log)
        assert held is not None, log
        assert "cgroup" not in held[1]
        assert "the kernel was started without the memory controller" in held[2]
        assert "ffm-first-boot" not in board.console()  # it was needed once
