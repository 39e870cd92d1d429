"""Cgroups are found in the kernel's own tables; leftovers of dead agents are swept, no others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from profiles.cgroups import (
    CgroupV1,
    CgroupV2,
    Mount,
    SystemdScope,
    find_mount,
    find_own,
    folder_of,
    sweep,
)

HYBRID = """\
25 30 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
36 25 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
CONTAINER = (
    "40 1 0:29 /docker/abc /sys/fs/cgroup ro,nosuid master:9 - cgroup2 cgroup rw,nsdelegate\n"
)
OWN = "9:name=systemd:/\n4:memory:/agents/one\n2:cpu,cpuacct:/\n0::/user.slice/ffm.service\n"


def test_each_hierarchy_is_found_by_its_controller() -> None:
    assert find_mount(HYBRID, "cgroup", "memory") == Mount(Path("/sys/fs/cgroup/memory"), "/")
    assert find_mount(HYBRID, "cgroup2") == Mount(Path("/sys/fs/cgroup/unified"), "/")
    assert find_mount(HYBRID, "cgroup", "cpuset") is None
    assert find_mount("", "cgroup2") is None
    assert find_mount("broken line\n - \n", "cgroup2") is None


def test_the_own_cgroup_is_found_in_each_hierarchy() -> None:
    assert find_own(OWN, "memory") == "/agents/one"
    assert find_own(OWN, "cpuacct") == "/"
    assert find_own(OWN) == "/user.slice/ffm.service"
    assert find_own(OWN, "pids") is None


def test_a_container_sees_its_own_part_of_the_tree() -> None:
    mount = find_mount(CONTAINER, "cgroup2")
    assert mount is not None
    assert folder_of(mount, "/docker/abc/unit") == Path("/sys/fs/cgroup/unit")
    assert folder_of(Mount(Path("/c"), "/"), "/a/b") == Path("/c/a/b")


def test_only_cgroups_of_dead_agents_are_swept(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    kept = [f"ffm-worker-{os.getpid()}-0", "ffm-worker-x-0", "someone-else", "ffm-agent"]
    for name in [f"ffm-worker-{gone.pid}-0", *kept]:
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_each_means_is_there_or_says_why_not() -> None:
    for method in (CgroupV2(), SystemdScope(), CgroupV1()):
        why = method.obstacle()
        assert why is None or len(why) > 10


def test_systemd_run_is_put_in_front_of_the_command() -> None:
    command = SystemdScope().wrap(["python", "-m", "x"], 300)
    assert command[0] == "systemd-run"
    assert "MemoryMax=300M" in command
    assert command[command.index("--") + 1 :] == ["python", "-m", "x"]
