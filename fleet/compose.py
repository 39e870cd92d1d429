"""`ffm fleet compose`: a fleet of emulated boards as containers, in one folder.

::

    OUT/compose.yaml          hub, invitations, agents
    OUT/base/                 the quantized base, seen by all
    OUT/hub/hub.toml          and public.jsonl, test.jsonl
    OUT/agents/ID/agent.toml  and private.jsonl, board/ (simulated sensors), seen by that one

All of it is read only to the containers; what they must keep is in a volume each. The hub starts
its own mosquitto, which lets in members only: a small container makes an invitation for each
agent, which joins with it at its first start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ffm_common.errors import ConfigInvalid
from ffm_common.files import write_atomic
from ffm_common.task import Adapter, Training
from fleet.dealing import deal
from fleet.demo import codec_for
from fleet.layout import Layout, Member, to_toml
from fleet.table import Screen
from fleet.yaml import to_yaml
from learning import base
from profiles import profile as profiles

MARGIN_MB: Final = 256
"""Beside the worker's memory: the agent itself, and the emulator."""

_STATE: Final = "/var/lib/ffm"
_INVITED: Final = "/invitations"
_MOST: Final = 200
_PLATFORM: Final = "linux/arm64"
# Emulated arithmetic is a hundred times slower: small versions, and time for them.
_TRAINING: Final = Training(local_steps=5, batch_size=4, max_length=32)
_DEADLINE_S: Final = 7200.0
# QEMU knows these cores; one that is nearest for those that it does not know.
_CORES: Final[Mapping[str, str]] = {
    "cortex-a53": "cortex-a53",
    "cortex-a57": "cortex-a57",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "cortex-a76",
    "cortex-a78ae": "cortex-a76",
}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks for.

    Parameters
    ----------
    mix
        Profile's name -> its share of the agents.
    agents
        How many; None: as many as the shares add up to.
    out
        An empty folder, or one of an earlier fleet, which is replaced.
    base
        Own prepared base; None: MiniLM-L6 is prepared in `out`.
    data, text, label, alpha, seed
        As `fleet.dealing.deal` takes them.
    source
        Where this project's source is, to build the images from.
    cpus
        Of the machine that runs the containers: no container may have more.
    """

    mix: dict[str, int]
    out: Path
    source: Path
    agents: int | None = None
    base: Path | None = None
    data: Path | None = None
    text: str | None = None
    label: str | None = None
    alpha: float = 0.3
    seed: int = 0
    cpus: int = 1


def read_mix(text: str) -> dict[str, int]:
    """Read ``rpi5-8gb=8,rpi4-4gb=4``.

    Raises
    ------
    ConfigInvalid
        It is something else.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, count = part.strip().partition("=")
        if not (count.isascii() and count.isdigit()) or not 1 <= int(count) <= _MOST:
            raise ConfigInvalid(f"--mix: {part!r} is not NAME=COUNT, such as rpi5-8gb=8")
        if name in found:
            raise ConfigInvalid(f"--mix: {name} is there twice")
        found[name] = int(count)
    return found


def members(mix: Mapping[str, int], count: int | None) -> list[Member]:
    """Give the agents: shares of `mix`, rounded so that they add up to `count`.

    Raises
    ------
    ProfileUnknown
        There is no such board.
    ConfigInvalid
        There is no QEMU for its processor; there would be too many, or fewer than kinds.
    """
    for name in mix:
        _core(name)
    total = sum(mix.values())
    wanted = total if count is None else count
    if not len(mix) <= wanted <= _MOST:
        raise ConfigInvalid(f"--agents: {wanted} is not between {len(mix)} kinds and {_MOST}")
    # Largest remainders, but one of each kind at least.
    exact = {name: wanted * share / total for name, share in mix.items()}
    whole = {name: max(1, int(share)) for name, share in exact.items()}
    while sum(whole.values()) != wanted:
        step = 1 if sum(whole.values()) < wanted else -1
        open_to = [name for name in mix if step > 0 or whole[name] > 1]
        chosen = max(open_to, key=lambda name: step * (exact[name] - whole[name]))
        whole[chosen] += step
    return [
        Member(id=f"{name}-{place + 1}", profile=name)
        for name, number in whole.items()
        for place in range(number)
    ]


def write(options: Options) -> dict[str, Any]:
    """Write the folder; give what a program reads of it.

    Raises
    ------
    ConfigInvalid, ProfileUnknown, DataError, ModelError, PathUnwritable, FolderBusy
        Each with its code.
    """
    who = members(options.mix, options.agents)
    if not (options.source / "Dockerfile.arm64").is_file():
        raise ConfigInvalid(
            f"--source: there is no Dockerfile.arm64 in {options.source}",
            remedy="give the folder of this project's source",
        )
    layout = Layout(options.out, base=None)
    if options.base is not None:
        base.verify(options.base)
    with Screen() as screen:
        parts = deal(
            options.data,
            layout,
            screen,
            text=options.text,
            label=options.label,
            agents=len(who),
            alpha=options.alpha,
            seed=options.seed,
        )
        lock = layout.clear()
        try:
            layout.write_data(parts, who)
            _put_base(options, layout, screen)
            _write_configs(layout, who, options.seed)
            text = to_yaml(compose(who, source=options.source.resolve(), cpus=options.cpus))
            write_atomic(options.out / "compose.yaml", (_HEAD + text).encode())
        finally:
            lock.close()
    return {
        "compose": str(options.out / "compose.yaml"),
        "agents": [
            {"id": member.id, "profile": member.profile, **_limits(member.profile, options.cpus)}
            for member in who
        ],
    }


_HEAD: Final = (
    "# Written by `ffm fleet compose`. Start it with `docker compose up --build`, where QEMU is\n"
    "# registered for arm64 (docs/boards.md says how, and what is different with Podman).\n"
)


def compose(who: Sequence[Member], *, source: Path, cpus: int) -> dict[str, Any]:
    """Give the content of compose.yaml."""
    names = " ".join(member.id for member in who)
    # A name that is invited already keeps its invitation: this runs at every start.
    invite = (
        f"for name in {names}; do "
        f"[ -s {_INVITED}/$$name ] || {{ ffm hub invite --config /hub/hub.toml --host hub "
        f"--agent $$name --hours 72 > {_INVITED}/.part && mv {_INVITED}/.part {_INVITED}/$$name; }}"
        " || exit 1; done"
    )
    hub = {
        **_service("hub", source),
        "command": ["hub", "run", "--config", "/hub/hub.toml"],
        "volumes": ["./base:/base:ro", "./hub:/hub:ro", f"hub:{_STATE}"],
        "healthcheck": _health("hub", "/hub/hub.toml", every="20s"),
        "restart": "unless-stopped",
    }
    invitations = {
        **_service("hub", source),
        "entrypoint": ["sh", "-c", invite],
        "volumes": [
            "./base:/base:ro",
            "./hub:/hub:ro",
            f"hub:{_STATE}",
            f"invitations:{_INVITED}",
        ],
        "depends_on": {"hub": {"condition": "service_healthy"}},
        "restart": "no",
    }
    return {
        "services": {
            "hub": hub,
            "invitations": invitations,
            **{member.id: _agent(member, source, cpus) for member in who},
        },
        "networks": {"fleet": {}},
        "volumes": {name: {} for name in ("hub", "invitations", *(m.id for m in who))},
    }


def _agent(member: Member, source: Path, cpus: int) -> dict[str, Any]:
    limits = _limits(member.profile, cpus)
    token = f'"$$(head -n 1 {_INVITED}/{member.id})"'
    config = "--config /board/agent.toml"
    return {
        **_service("agent", source),
        "entrypoint": [
            "sh",
            "-c",
            f"ffm agent join --wait {token} {config} && exec ffm agent run {config}",
        ],
        "environment": {"QEMU_CPU": _core(member.profile)},
        "mem_limit": f"{limits['memory_mb']}m",
        "cpus": limits["cpus"],
        "volumes": [
            "./base:/base:ro",
            f"./agents/{member.id}:/board:ro",
            f"{member.id}:{_STATE}",
            f"invitations:{_INVITED}:ro",
        ],
        "depends_on": {"invitations": {"condition": "service_completed_successfully"}},
        "healthcheck": _health("agent", "/board/agent.toml", every="5m"),
        "restart": "unless-stopped",
    }


def _service(target: str, source: Path) -> dict[str, Any]:
    return {
        "image": f"ffm-{target}",
        "build": {"context": str(source), "dockerfile": "Dockerfile.arm64", "target": target},
        "platform": _PLATFORM,
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 -- the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "networks": ["fleet"],
    }


def _health(role: str, config: str, *, every: str) -> dict[str, Any]:
    """Ask seldom: under emulation each question costs seconds of a processor."""
    return {
        "test": ["CMD", "ffm", role, "health", "--config", config],
        "interval": every,
        "timeout": "60s",
        "retries": 3,
        "start_period": "10m",
    }


def _limits(name: str, cpus: int) -> dict[str, Any]:
    profile = profiles.load(name)
    return {"memory_mb": profile.memory_mb + MARGIN_MB, "cpus": min(profile.cpu_cores, cpus)}


def _core(name: str) -> str:
    profile = profiles.load(name)
    core = _CORES.get(profile.cpu)
    if core is None:
        raise ConfigInvalid(f"--mix: {name} has no arm64 processor to emulate, but {profile.cpu}")
    return core


def _put_base(options: Options, layout: Layout, screen: Screen) -> None:
    if options.base is None:
        screen.say("quantizing the base model (MiniLM-L6, NF4)")
        base.prepare(base.bundled_minilm(), layout.base)
        return
    layout.base.mkdir()
    for path in sorted(options.base.iterdir()):
        write_atomic(layout.base / path.name, path.read_bytes())


def _write_configs(layout: Layout, who: Sequence[Member], seed: int) -> None:
    federation = "fleet"
    columns = {"text": "text", "label": "label"}
    hub = {
        "federation": federation,
        "base": "/base",
        "folder": f"{_STATE}/state",
        "trust": "enrolled",
        "seed": seed,
        "codec_up": codec_for(len(who)),
        "broker": {"kind": "mosquitto", "host": "0.0.0.0"},  # noqa: S104 -- in its network
        "adapter": msgspec.to_builtins(Adapter(kind="lora")),
        "training": msgspec.to_builtins(_TRAINING),
        "versions": {"buffer": len(who), "deadline_s": _DEADLINE_S},
        "public": {
            "train": layout.public.name,
            "evaluation": layout.test.name,
            "steps": 2,
            "warmup_steps": 0,
            **columns,
        },
    }
    write_atomic(layout.hub_config, to_toml(hub).encode())
    for member in who:
        agent = {
            "id": member.id,
            "federation": federation,
            "base": "/base",
            "profile": member.profile,
            "folder": f"{_STATE}/state",
            "calibration": f"{_STATE}/state/calibration.json",
            "data": {"path": "private.jsonl", **columns},
            "meter": {"root": "board"},
        }
        write_atomic(layout.agent(member.id) / "agent.toml", to_toml(agent).encode())
