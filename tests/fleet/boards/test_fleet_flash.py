from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
import yaml

import ffm
from federation.trust.invitation import Invitation
from ffm_common.errors import (
    BoardOther,
    BootPartitionMissing,
    ConfigInvalid,
    DiskFull,
    FfmError,
    ModelDigest,
    ModelMissing,
    NameInvalid,
    PathUnwritable,
    ProfileUnknown,
    TokenExpired,
    TokenInvalid,
    WheelMissing,
)
from fleet.boards import flash
from fleet.boards.flash import Wishes
from fleet.boards.partition import Partition, look
from fleet.boards.wifi import Wifi, key_of, wifi
from tests.fleet.boards import card
from tests.fleet.boards.real import accepted

GOLDEN = Path(__file__).parent / "golden"
WIFI = Wifi(ssid="Küche 5", key=key_of("Küche 5", "correct horse"), country="DE")
BOARDS = ["rpi-zero2w", "rpi3b-plus", "rpi4-4gb", "rpi5-8gb"]
MAKERS = {"raspberrypi": card.raspberrypi, "ubuntu": card.ubuntu}


@pytest.fixture
def wishes(tmp_path: Path) -> Wishes:
    (tmp_path / "me.pub").write_text(f"{card.KEY}\n")
    return Wishes(
        board="rpi4-4gb",
        token=card.TOKEN,
        id="kitchen",
        base=card.base(tmp_path / "base"),
        wheels=card.wheels(tmp_path / "dist"),
        wifi=WIFI,
        ssh_key=tmp_path / "me.pub",
    )


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    return card.raspberrypi(tmp_path / "boot")


def content(folder: Path) -> dict[str, bytes]:
    """Give all that is in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def written(wishes: Wishes, boot: Path) -> dict[str, bytes]:
    plan = flash.plan(wishes, look(boot), now=card.NOW)
    plan.check()
    plan.write()
    return content(boot)


@pytest.mark.parametrize("system", MAKERS)
@pytest.mark.parametrize("board", BOARDS)
def test_a_card_holds_what_its_first_boot_needs(
    wishes: Wishes, tmp_path: Path, board: str, system: str
) -> None:
    boot = MAKERS[system](tmp_path / "boot")
    before = content(boot)
    after = written(msgspec.structs.replace(wishes, board=board), boot)
    assert set(after) - set(before) == {
        "ffm/base/base.json",
        "ffm/base/weights.safetensors",
        "ffm/wheels/constraints.txt",
        "ffm/wheels/ffm_edge-0.1.0-py3-none-any.whl",
        "ffm/ffm-first-boot.service",
        "ffm/first-boot",
        "ffm/settings",
        "ffm/token",
        "network-config",
    }
    assert {name for name in before if after[name] != before[name]} == {
        "cmdline.txt",
        "meta-data",
        "user-data",
    }
    golden = GOLDEN / f"{system}-{board}"
    told = {name: after[name] for name in ("cmdline.txt", "meta-data", "network-config")}
    told |= {name: after[name] for name in ("user-data", "ffm/settings")}
    text = "".join(f"== {name}\n{data.decode()}" for name, data in told.items())
    if "FFM_GOLDEN" in os.environ:  # written anew on purpose; look at the difference
        golden.write_text(text)
    assert text == golden.read_text()


def test_the_user_data_passes_cloud_init_s_own_schema(wishes: Wishes, boot: Path) -> None:
    written(wishes, boot)
    accepted("cloud-init", "schema", "--config-file", boot / "user-data")


def test_netplan_takes_the_network(wishes: Wishes, boot: Path, tmp_path: Path) -> None:
    network = tmp_path / "root" / "etc" / "netplan" / "50-cloud-init.yaml"
    network.parent.mkdir(parents=True)
    network.touch(mode=0o600)
    network.write_bytes(written(wishes, boot)["network-config"])
    accepted("netplan", "generate", "--root-dir", tmp_path / "root")
    made = (tmp_path / "root" / "run" / "netplan" / "wpa-wlan0.conf").read_text()
    assert f"psk={WIFI.key}\n" in made
    assert "country=DE\n" in made


def test_the_unit_and_the_script_pass_their_readers(wishes: Wishes, boot: Path) -> None:
    written(wishes, boot)
    accepted("sh", "-n", boot / "ffm" / "first-boot")
    accepted("systemd-analyze", "verify", boot / "ffm" / "ffm-first-boot.service")


def test_settings_are_read_by_a_shell_as_they_were_meant(wishes: Wishes, boot: Path) -> None:
    odd = PurePosixPath("/home/me/it's $HOME `x`.csv")
    written(msgspec.structs.replace(wishes, data=odd, offline=True), boot)
    script = f'. {boot}/ffm/settings; printf "%s|" "$FFM_DATA" "$FFM_ID" "$FFM_EXTRA" "$FFM_PIP"'
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{odd}|kitchen|train|--no-index|"


def test_the_kernel_line_keeps_its_words_and_gets_each_new_one_once(
    wishes: Wishes, boot: Path
) -> None:
    once = written(wishes, boot)["cmdline.txt"]
    assert once.startswith(card.PI_LINE.strip().encode())
    assert once.count(b"\n") == 1
    assert once.endswith(b"cgroup_enable=memory cgroup_memory=1 cfg80211.ieee80211_regdom=DE\n")
    assert written(wishes, boot)["cmdline.txt"] == once


def test_another_invitation_is_another_first_boot_to_cloud_init(wishes: Wishes, boot: Path) -> None:
    one = written(wishes, boot)["meta-data"]
    again = Invitation.draw("gateway.local", 8884, bytes(32)).token()
    assert written(msgspec.structs.replace(wishes, token=again), boot)["meta-data"] != one


def test_the_network_is_named_as_it_is_and_its_password_is_nowhere(
    wishes: Wishes, boot: Path
) -> None:
    after = written(wishes, boot)
    network = yaml.safe_load(after["network-config"])["network"]
    assert network["wifis"]["wlan0"]["access-points"] == {"Küche 5": {"password": WIFI.key}}
    assert all(b"correct horse" not in data for data in after.values())


def test_the_key_is_that_of_the_standard() -> None:
    # IEEE 802.11-2016, J.4.2, the first two of its examples.
    assert key_of("IEEE", "password") == (
        "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    )
    assert key_of("ThisIsASSID", "ThisIsAPassword") == (
        "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"
    )
    key = hashlib.sha256(b"x").hexdigest()
    assert key_of("any", key.upper()) == key


def test_a_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("password\n")
    assert wifi("IEEE", "DE", tmp_path / "password").key == key_of("IEEE", "password")
    monkeypatch.setenv("FFM_WIFI_PASSWORD", "password")
    assert wifi("IEEE", "DE", None).key == key_of("IEEE", "password")
    for ssid, country in (("", "DE"), ("x" * 33, "DE"), ("IEEE", None), ("IEEE", "de")):
        with pytest.raises(ConfigInvalid):
            wifi(ssid, country, None)
    monkeypatch.setenv("FFM_WIFI_PASSWORD", "short")
    with pytest.raises(ConfigInvalid, match="8 to 63"):
        wifi("IEEE", "DE", None)


def without(name: str) -> Callable[[Path], None]:
    return lambda boot: (boot / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (without("config.txt"), BootPartitionMissing, "it has no config.txt"),
        (without("cmdline.txt"), BootPartitionMissing, "it has no cmdline.txt"),
        (without("issue.txt"), BootPartitionMissing, "not known here"),
        (without("user-data"), BoardOther, "has no user-data"),
    ],
)
def test_what_is_no_boot_partition_is_refused(
    boot: Path, spoil: Callable[[Path], None], error: type[FfmError], said: str
) -> None:
    spoil(boot)
    with pytest.raises(error, match=said):
        look(boot)


def test_an_unknown_system_may_be_named(boot: Path) -> None:
    (boot / "issue.txt").unlink()
    assert look(boot, "ubuntu").system == "ubuntu"


BAD: list[tuple[dict[str, Any], type[FfmError], str]] = [
    ({"board": "rpi9"}, ProfileUnknown, "no profile rpi9"),
    ({"board": "jetson-nano"}, BoardOther, "does not boot from a partition"),
    ({"board": "laptop-cpu"}, BoardOther, "does not boot from a partition"),
    ({"token": "ffm1-nonsense"}, TokenInvalid, "invitation"),
    ({"id": "The Kitchen"}, NameInvalid, "The Kitchen"),
    ({"hostname": "-x"}, ConfigInvalid, "--hostname"),
    ({"data": PurePosixPath("private.csv")}, ConfigInvalid, "--data"),
    ({"data": PurePosixPath("/a\nb")}, ConfigInvalid, "--data"),
    ({"base": Path("/nowhere")}, ModelMissing, "/nowhere"),
    ({"wheels": Path("/nowhere")}, WheelMissing, "/nowhere"),
    ({"user": "The Owner"}, ConfigInvalid, "--user"),
]


@pytest.mark.parametrize(("change", "error", "said"), BAD)
def test_a_wrong_wish_is_refused_and_nothing_written(
    wishes: Wishes, boot: Path, change: dict[str, Any], error: type[FfmError], said: str
) -> None:
    before = content(boot)
    with pytest.raises(error, match=said):
        written(msgspec.structs.replace(wishes, **change), boot)
    assert content(boot) == before


def test_an_invitation_that_runs_out_before_a_first_boot_is_refused(
    wishes: Wishes, boot: Path
) -> None:
    found = look(boot)
    flash.plan(wishes, found, now=card.NOW + 86400 - 7201)
    with pytest.raises(TokenExpired, match=r"is good until 2027-01-16 08:00 UTC: too short"):
        flash.plan(wishes, found, now=card.NOW + 86400 - 7199)
    with pytest.raises(TokenExpired, match=r"was good until 2027-01-16 08:00 UTC$"):
        flash.plan(wishes, found, now=card.NOW + 86401)


def test_a_private_key_is_never_put_on_a_card(wishes: Wishes, boot: Path, tmp_path: Path) -> None:
    (tmp_path / "me").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(ConfigInvalid, match="not one public key"):
        written(msgspec.structs.replace(wishes, ssh_key=tmp_path / "me"), boot)


def test_a_damaged_base_is_not_put_on_a_card(wishes: Wishes, boot: Path) -> None:
    (wishes.base / "weights.safetensors").write_bytes(b"weight$")
    with pytest.raises(ModelDigest):
        written(wishes, boot)


def test_a_full_card_is_noticed_before_anything_is_written(wishes: Wishes, boot: Path) -> None:
    before = content(boot)
    os.truncate(wishes.wheels / "ffm_edge-0.1.0-py3-none-any.whl", 1 << 42)  # takes no room itself
    with pytest.raises(DiskFull, match="MB are wanted"):
        written(wishes, boot)
    assert content(boot) == before


def test_a_card_is_prepared_again_where_its_copies_have_room_but_once(
    wishes: Wishes, boot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(wishes.wheels / "ffm_edge-0.1.0-py3-none-any.whl", 1 << 20)
    written(wishes, boot)
    copy = boot / "ffm" / "wheels" / "ffm_edge-0.1.0-py3-none-any.whl"
    before = copy.stat().st_ino
    room = shutil.disk_usage(boot)._replace(free=(4 << 20) + (1 << 19))
    monkeypatch.setattr("shutil.disk_usage", lambda _: room)
    again = msgspec.structs.replace(wishes, id="cellar")
    assert b"FFM_ID=cellar\n" in written(again, boot)["ffm/settings"]
    assert copy.stat().st_ino == before
    (boot / "ffm" / "base" / "weights.safetensors").write_bytes(b"stheigw")  # as many bytes
    assert flash.plan(again, look(boot), now=card.NOW).replaced() == [
        "ffm/base/weights.safetensors"
    ]


def test_a_card_that_fails_in_the_middle_is_as_it_was(wishes: Wishes, boot: Path) -> None:
    before = content(boot)
    plan = flash.plan(wishes, look(boot), now=card.NOW)
    plan.check()
    (wishes.base / "weights.safetensors").unlink()
    with pytest.raises(PathUnwritable, match="No such file"):
        plan.write()
    assert content(boot) == before
    assert not (boot / "ffm").exists()


def test_nothing_is_written_outside_the_folder(wishes: Wishes, boot: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (boot / "ffm").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PathUnwritable, match="is no file in"):
        written(wishes, boot)
    assert content(tmp_path / "elsewhere") == {}


def arguments(wishes: Wishes, boot: Path, *more: str) -> list[str]:
    token = Invitation.draw("gw", 1, bytes(32), ends=int(time.time()) + 86400).token()
    required = {"board": "rpi5-8gb", "boot": boot, "join": token, "id": "kitchen"}
    required |= {"base": wishes.base, "wheels": wishes.wheels}
    return ["flash", *(f"--{key}={value}" for key, value in required.items()), *more]


def test_a_dry_run_shows_every_file_and_writes_none(
    wishes: Wishes, boot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(boot)
    assert ffm.main(arguments(wishes, boot, "--dry-run")) == 0
    said = capsys.readouterr().out
    for name in ("ffm/token", "ffm/settings", "user-data", "cmdline.txt", "ffm/base/base.json"):
        assert f"# {boot}/{name} (" in said
    assert "ffm1-" not in said
    assert said.endswith("nothing is written\n")
    assert content(boot) == before


def test_nothing_is_replaced_unless_it_may_be(
    wishes: Wishes, boot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(boot)
    command = [sys.executable, "-m", "ffm", *arguments(wishes, boot)]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[path-taken]" in done.stderr
    assert "has cmdline.txt, meta-data, user-data already" in done.stderr
    assert content(boot) == before
    assert ffm.main(arguments(wishes, boot, "--yes", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert {file["path"] for file in told["files"]} <= set(content(boot))


def test_a_partition_says_what_it_is(boot: Path) -> None:
    assert look(boot) == Partition(folder=boot, system="raspberrypi", cmdline=card.PI_LINE)
