from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import ffm
from ffm_common.errors import BoardOther, ConfigInvalid, ConfigMissing, PathTaken
from fleet.boards import install
from fleet.boards.install import Role, Service
from tests.fleet.boards.real import accepted

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = {
    "agent": 'id = "kitchen"\nfederation = "home"\nbase = "base"\n[data]\npath = "private.csv"\n',
    "hub": 'federation = "home"\nbase = "base"\n[public]\ntrain = "a.csv"\nevaluation = "b.csv"\n',
}
roles = pytest.mark.parametrize("role", install.ROLES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give the root of an image, with the program and both configurations in it."""
    root = tmp_path / "root"
    for folder in ("var/lib/ffm", "opt/ffm/venv/bin", "srv/ffm"):
        (root / folder).mkdir(parents=True)
    for name, text in CONFIGS.items():
        for folder in ("var/lib/ffm", "srv/ffm"):
            (root / folder / f"{name}.toml").write_text(text)
    for name in ("ffm", "ffm-launch"):
        program = root / "opt/ffm/venv/bin" / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return root


def service(root: Path, role: Role = "agent", config: str = "/var/lib/ffm") -> Service:
    return Service(
        role=role,
        config=Path(config) / f"{role}.toml",
        ffm=Path("/opt/ffm/venv/bin/ffm"),
        root=root,
    )


def installed(some: Service) -> str:
    install.install(some, install.plan(some), lambda _: None)
    return (some.root / "etc/systemd/system" / some.unit).read_text()


@roles
def test_a_unit_is_what_it_was_meant_to_be(root: Path, role: Role) -> None:
    text = installed(service(root, role))
    golden = GOLDEN / f"ffm-{role}.service"
    if "FFM_GOLDEN" in os.environ:  # written anew on purpose; look at the difference
        golden.write_text(text)
    assert text == golden.read_text()
    wanted = root / "etc/systemd/system/multi-user.target.wants" / f"ffm-{role}.service"
    assert wanted.readlink() == Path(f"/etc/systemd/system/ffm-{role}.service")
    account = (root / "etc/sysusers.d/ffm.conf").read_text()
    assert account.endswith('\nu ffm - "ffm-edge" /var/lib/ffm\n')


@roles
@pytest.mark.parametrize("config", ["/var/lib/ffm", "/srv/ffm"])
def test_systemd_takes_the_unit_without_a_word(root: Path, role: Role, config: str) -> None:
    some = service(root, role, config)
    text = installed(some)
    unit = root / "etc/systemd/system" / some.unit
    # systemd looks for the program in this machine, not in the image.
    unit.write_text(text.replace(f"ExecStart={some.program}", "ExecStart=/bin/true"))
    # A user of that name need not be here, and nothing else may be said.
    said = accepted("systemd-analyze", "verify", "--man=no", unit)
    assert [line for line in said.splitlines() if "ffm" in line] == []


def test_the_unit_leaves_to_the_worker_what_its_limits_need(root: Path) -> None:
    lines = installed(service(root)).splitlines()
    for needed in ("Delegate=yes", "OOMPolicy=continue", "KillMode=mixed", "Type=notify"):
        assert needed in lines
    for harmful in ("ProtectControlGroups", "PrivateDevices", "ProtectClock", "MemoryMax"):
        assert not [line for line in lines if line.startswith(f"{harmful}=")]


def test_a_folder_elsewhere_may_be_written_to_and_nothing_beside_it(root: Path) -> None:
    lines = installed(service(root, config="/srv/ffm")).splitlines()
    assert "ReadWritePaths=/srv/ffm" in lines
    assert not [line for line in lines if line.startswith("StateDirectory")]
    assert "ProtectSystem=strict" in lines


def test_what_was_installed_is_removed_and_its_data_stays(root: Path) -> None:
    some = service(root)
    installed(some)
    assert install.uninstall(some) == [str(root / "etc/systemd/system/ffm-agent.service")]
    assert not list(root.rglob("ffm-agent.service"))
    assert (root / "var/lib/ffm/agent.toml").exists()
    assert install.uninstall(some) == []


def test_a_configuration_that_cannot_be_used_is_not_installed(root: Path) -> None:
    (root / "var/lib/ffm/agent.toml").write_text("id = 3\n")
    with pytest.raises(ConfigInvalid):
        install.plan(service(root))
    (root / "var/lib/ffm/agent.toml").unlink()
    with pytest.raises(ConfigMissing):
        install.plan(service(root))
    assert not (root / "etc").exists()


@pytest.mark.parametrize("home", ["/var/lib/f%m", "/var/lib/f m", "/var/lib/f\nUser=root"])
def test_a_path_that_a_unit_would_misread_is_refused(root: Path, home: str) -> None:
    with pytest.raises(ConfigInvalid, match="plain characters"):
        install.plan(service(root, config=home))
    with pytest.raises(ConfigInvalid, match="can be no account"):
        install.plan(msgspec.structs.replace(service(root), user="root\nX=1"))


def test_a_unit_that_was_changed_is_not_replaced_without_a_yes(root: Path) -> None:
    command = ["install", "agent", "--root", str(root), "--ffm", "/opt/ffm/venv/bin/ffm"]
    assert ffm.main(command) == 0
    unit = root / "etc/systemd/system/ffm-agent.service"
    unit.write_text("mine\n")
    run = [sys.executable, "-m", "ffm", *command]
    done = subprocess.run(run, input="", capture_output=True, text=True, check=False)
    assert done.returncode == PathTaken.exit_status
    assert "[path-taken]" in done.stderr
    assert unit.read_text() == "mine\n"
    assert ffm.main([*command, "--yes"]) == 0
    assert unit.read_text() != "mine\n"


def test_a_dry_run_shows_files_and_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub.toml").write_text(CONFIGS["hub"])
    command = ["install", "hub", "--config", str(tmp_path / "hub.toml"), "--ffm", sys.executable]
    assert ffm.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "# /etc/systemd/system/ffm-hub.service (" in said
    assert f"ExecStart={sys.executable} hub run --config {tmp_path}/hub.toml\n" in said
    assert "$ systemctl enable --now ffm-hub.service\n" in said
    assert ffm.main([*command, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["commands"][0] == "systemd-sysusers /etc/sysusers.d/ffm.conf"


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_without_systemd_it_is_said_and_nothing_written() -> None:
    with pytest.raises(BoardOther, match="no systemd runs here"):
        install.require_systemd()
