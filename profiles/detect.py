"""Find out which board this is: the nearest shipped profile, and what differs from it.

A Raspberry Pi or Jetson says its name in the device tree; a PC is known by its instruction set, its
battery and its graphics card. What no shipped profile describes gets one derived from what was
found, with every figure that could not be found marked "assumed".
"""

from __future__ import annotations

import re

import msgspec

from profiles import sensors
from profiles.profile import Profile, figures, load
from profiles.sensors import Root

# Models in the device tree, and the profiles of that family from small to large memory.
_FAMILIES = (
    (r"Raspberry Pi Zero 2", ("rpi-zero2w",)),
    (r"Raspberry Pi 3 Model B Plus", ("rpi3b-plus",)),
    (r"Raspberry Pi (4 Model B|400|Compute Module 4)", ("rpi4-2gb", "rpi4-4gb")),
    (r"Raspberry Pi (5|500|Compute Module 5)\b", ("rpi5-4gb", "rpi5-8gb", "rpi5-16gb")),
    (r"Jetson Nano", ("jetson-nano",)),
    (r"Jetson Orin Nano", ("jetson-orin-nano-8gb",)),
    (r"Jetson AGX Orin", ("jetson-agx-orin",)),
)
# "CPU part" of /proc/cpuinfo, implementer 0x41 (Arm's main ID register).
_ARM_PARTS = {
    0xD03: "cortex-a53",
    0xD04: "cortex-a35",
    0xD05: "cortex-a55",
    0xD07: "cortex-a57",
    0xD08: "cortex-a72",
    0xD0B: "cortex-a76",
    0xD41: "cortex-a78",
    0xD42: "cortex-a78ae",
}
# The kernel keeps some memory for itself: a board's size is the next of these.
_SIZES_MB = tuple(1024 * size // 2 for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128))
_V3_FLAGS = frozenset({"avx2", "bmi2", "fma"})
_NVIDIA = ("dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu", "proc/driver/nvidia/version")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; an empty text or None is unknown.

    Parameters
    ----------
    model
        The board's own name, from the device tree, or the processor's of a PC.
    jetson_release
        First line of /etc/nv_tegra_release.
    cpu
        The core, as in `Profile.cpu`.
    cores, memory_mb, board_memory_mb
        Cores online; memory that the kernel has; the size that it is sold as. MB.
    accelerator
        "cuda" where an NVIDIA device is there, else "none".
    battery
        Whether there is a battery.
    """

    model: str
    jetson_release: str
    cpu: str
    cores: int
    memory_mb: int | None
    board_memory_mb: int | None
    accelerator: str
    battery: bool


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """The profile for a board.

    Parameters
    ----------
    profile
        A shipped profile, or one derived from what was found.
    matched
        Whether the board is one that a shipped profile describes.
    differences
        What is different from the shipped profile, one sentence each.
    facts
        What was found.
    """

    profile: Profile
    matched: bool
    differences: list[str]
    facts: Facts


def detect(root: Root) -> Detection:
    """Name the nearest profile for the machine (or recorded tree) at `root`."""
    facts = find_facts(root)
    family = next((names for model, names in _FAMILIES if re.search(model, facts.model)), None)
    if family is not None:
        nearest = _largest_that_fits([load(name) for name in family], facts)
        if nearest is not None:
            return Detection(
                profile=nearest,
                matched=True,
                differences=_differences(nearest, facts),
                facts=facts,
            )
    base = load(family[0] if family else _class_of(facts))
    # A laptop profile speaks for a class, not for a model: it is always adapted to what was found.
    unknown = f"no shipped profile describes {facts.model or 'this machine'}"
    return Detection(
        profile=_derive(base, facts),
        matched=False,
        differences=[f"{unknown}; derived from {base.name}", *_differences(base, facts)],
        facts=facts,
    )


def find_facts(root: Root) -> Facts:
    """Read what the machine says about itself."""
    cpuinfo = root.text("proc/cpuinfo") or ""
    memory = sensors.memory(root)
    total = memory.total_mb if memory else None
    named = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    model = root.text("proc/device-tree/model") or root.text("sys/firmware/devicetree/base/model")
    return Facts(
        model=model or (named[1].strip() if named else ""),
        jetson_release=(root.text("etc/nv_tegra_release") or "").partition("\n")[0],
        cpu=_core_name(cpuinfo),
        cores=sensors.cores(root),
        memory_mb=total,
        board_memory_mb=next((size for size in _SIZES_MB if total and size >= total), total),
        accelerator="cuda" if any(root.exists(name) for name in _NVIDIA) else "none",
        battery=sensors.power(root).battery_percent is not None,
    )


def _core_name(cpuinfo: str) -> str:
    part = re.search(r"^CPU part\s*: (0x[0-9a-f]+)", cpuinfo, re.MULTILINE)
    if part:
        return _ARM_PARTS.get(int(part[1], 16), f"arm part {part[1]}")
    flags = re.search(r"^flags\s*: (.+)$", cpuinfo, re.MULTILINE)
    if not flags:
        return "unknown"
    found = set(flags[1].split())
    if "avx512vl" in found and found >= _V3_FLAGS:
        return "x86-64-v4"
    return "x86-64-v3" if found >= _V3_FLAGS else "x86-64-v2"


def _largest_that_fits(profiles: list[Profile], facts: Facts) -> Profile | None:
    """A profile for a larger board would promise memory that is not there."""
    if facts.board_memory_mb is None:
        return profiles[0]
    fitting = [one for one in profiles if one.board_memory_mb <= facts.board_memory_mb]
    return max(fitting, key=lambda one: one.board_memory_mb, default=None)


def _class_of(facts: Facts) -> str:
    if facts.cpu.startswith("x86"):
        if facts.accelerator == "cuda":
            return "laptop-cuda"
        return "laptop-cpu" if facts.battery else "gateway"
    return "jetson-orin-nano-8gb" if facts.jetson_release else "rpi4-2gb"


def _differences(profile: Profile, facts: Facts) -> list[str]:
    said = []
    if facts.board_memory_mb is not None and facts.board_memory_mb != profile.board_memory_mb:
        said.append(
            f"memory is {facts.board_memory_mb} MB, the profile's {profile.board_memory_mb}"
        )
    if facts.cpu not in {"unknown", profile.cpu}:
        said.append(f"the core is {facts.cpu}, the profile's {profile.cpu}")
    if facts.cores < profile.cpu_cores:
        said.append(f"{facts.cores} cores are online, the profile uses {profile.cpu_cores}")
    if facts.accelerator != profile.accelerator:
        said.append(f"the accelerator is {facts.accelerator}, the profile's {profile.accelerator}")
    return said


def _derive(base: Profile, facts: Facts) -> Profile:
    """Make a profile of what was found; the speed is the base's, by the number of cores."""
    threads = max(1, facts.cores - 1)
    board = facts.memory_mb or base.board_memory_mb
    cuda = facts.accelerator == "cuda"
    scale = 1.0 if cuda else threads / base.cpu_cores
    sources = dict.fromkeys(figures(), f"assumed: as {base.name}")
    sources |= {
        "board_memory_mb": "found on this machine" if facts.memory_mb else sources["memory_mb"],
        "memory_mb": "assumed: half of what was found on this machine",
        "cpu_cores": "found on this machine, one left to its owner",
        "gflops_fp32": f"assumed: as {base.name}, by the number of cores",
    }
    return msgspec.structs.replace(
        base,
        name="detected",
        title=(facts.model or "Unknown board")[:200],
        board_memory_mb=board,
        memory_mb=max(1, board // 2),
        cpu_cores=threads,
        cpu=facts.cpu,
        accelerator="cuda" if cuda else "none",
        gflops_fp32=round(base.gflops_fp32 * scale, 1),
        battery_floor_percent=100 if facts.battery else 0,
        sources=sources,
    )
