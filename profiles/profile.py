"""A device profile: the budget of one board, read from TOML; shipped by name, extended by users.

One figure, one source: `Profile.sources` says for each key where the number comes from, or that it
is assumed. A file that overrides a figure without giving a source is itself the source.
"""

from __future__ import annotations

import contextlib
import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from ffm_common.config import Config, convert, read_toml
from ffm_common.errors import ConfigInvalid, ProfileUnknown

Window: TypeAlias = Annotated[
    str, Meta(pattern=r"\A([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d\Z")
]
_Positive: TypeAlias = Annotated[int, Meta(ge=1)]
_Count: TypeAlias = Annotated[int, Meta(ge=0)]
_Rate: TypeAlias = Annotated[float, Meta(gt=0)]
_Watts: TypeAlias = Annotated[float, Meta(ge=0)]

_NOT_FIGURES = frozenset({"name", "title", "cpu", "accelerator", "hours", "sources"})
ASSUMED = "assumed"
_MOST_SAID = 200


class Profile(Config, frozen=True, kw_only=True):
    """What a device may spend, and what it is. One MB is 2**20 bytes here.

    Parameters
    ----------
    name, title
        The short name (`rpi5-8gb`) and the name a person reads.
    memory_mb
        Memory that the worker may use, MB.
    board_memory_mb
        Memory of the whole board, MB.
    cpu_cores
        Threads that the worker may use; it is bound to as many cores.
    niceness
        0 (as everybody else) to 19 (only when nobody else wants the core).
    max_temp_c
        The worker pauses at this temperature, degrees Celsius.
    battery_floor_percent
        Without its charger the worker pauses below this charge. 100 is never on battery; 0 is
        always, and what a board without a battery says.
    hours
        Windows of local time such as "22:00-07:00"; empty means always.
    disk_mb
        Disk space that agent and worker may fill, MB.
    uplink_kbit_s, downlink_kbit_s
        What the agent may use of the network, 1000 bit/s; the planner counts with the same.
    bytes_per_day
        Bytes sent and received in one local day; 0 is no limit.
    joules_per_day
        Energy for training in one local day, joules; 0 is no limit.
    accelerator
        "cuda" where torch can train on a GPU, else "none".
    cpu
        The core, in lower case as compilers spell it: "cortex-a72", "x86-64-v3".
    gflops_fp32
        Sustained 1e9 fp32 operations per second of the device that trains (the accelerator if any).
    memory_bandwidth_gb_s
        Sustained 1e9 bytes per second between memory and the device that trains.
    idle_watts, load_watts
        Power of the board at rest and while training; 0 is unknown.
    sources
        Key to where its figure comes from, or "assumed" with the reason.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    memory_mb: _Positive
    board_memory_mb: _Positive
    cpu_cores: Annotated[int, Meta(ge=1, le=1024)]
    niceness: Annotated[int, Meta(ge=0, le=19)]
    max_temp_c: Annotated[float, Meta(ge=30, le=110)]
    battery_floor_percent: Annotated[int, Meta(ge=0, le=100)]
    disk_mb: _Positive
    uplink_kbit_s: _Positive
    downlink_kbit_s: _Positive
    bytes_per_day: _Count
    joules_per_day: _Count
    accelerator: Literal["none", "cuda"]
    cpu: Annotated[str, Meta(min_length=1)]
    gflops_fp32: _Rate
    memory_bandwidth_gb_s: _Rate
    idle_watts: _Watts
    load_watts: _Watts
    hours: tuple[Window, ...] = ()
    sources: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.memory_mb > self.board_memory_mb:
            raise ValueError("memory_mb is more than board_memory_mb")
        if 0 < self.load_watts < self.idle_watts:
            raise ValueError("load_watts is less than idle_watts")
        unknown = sorted(set(self.sources) - set(figures()))
        if unknown:
            raise ValueError(f"sources names no figure of a profile: {', '.join(unknown)}")

    def source(self, key: str) -> str:
        """Give the source of a figure, or "assumed" where none was given."""
        return self.sources.get(key, ASSUMED)


def figures() -> tuple[str, ...]:
    """Name the keys of a profile that are numbers, each of which needs a source."""
    return tuple(name for name in Profile.__struct_fields__ if name not in _NOT_FIGURES)


def names() -> list[str]:
    """List the names of the shipped profiles, sorted."""
    return sorted(_shipped())


def load(name_or_path: str | Path) -> Profile:
    """Read a shipped profile by name, or the TOML file at a path.

    Raises
    ------
    ProfileUnknown
        No shipped profile has that name and there is no such file.
    ConfigSyntax, ConfigInvalid
        A file is broken; the message names it and the key. A circle of `extends` is one such case.
    """
    return _load(_find(name_or_path, Path()))


def parse(values: dict[str, Any], *, source: str) -> Profile:
    """Turn plain values without `extends` into a profile; `source` is what an error names."""
    return convert(values, Profile, source=source)


def dump(profile: Profile) -> dict[str, Any]:
    """Give the profile as plain values, as JSON and TOML hold them."""
    plain: dict[str, Any] = msgspec.to_builtins(profile)
    return plain


def _load(path: Path) -> Profile:
    return parse(_gather(path, ()), source=str(path))


def _gather(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and what it extends; the nearest file wins, key by key."""
    here = path.resolve()
    if here in chain:
        circle = " -> ".join(p.stem for p in (*chain, here))
        raise ConfigInvalid(f"{path}: extends goes round in a circle: {circle}")
    own = read_toml(path)
    parent = own.pop("extends", None)
    own.setdefault("name", path.stem)
    shipped = here in {p.resolve() for p in _shipped().values()}
    sources = _own_sources(own, path, given_by_user=not shipped)
    if parent is None:
        return {**own, "sources": sources}
    if not isinstance(parent, str):
        raise ConfigInvalid(f"{path}: extends: expected the name or path of a profile")
    base = _gather(_find(parent, path.parent), (*chain, here))
    # A source belongs to its figure: an overridden figure does not keep the old one's.
    kept = {key: text for key, text in base["sources"].items() if key not in own}
    return {**base, **own, "sources": {**kept, **sources}}


def _own_sources(own: dict[str, Any], path: Path, *, given_by_user: bool) -> dict[str, Any]:
    given = own.pop("sources", {})
    if not isinstance(given, dict):
        raise ConfigInvalid(f"{path}: sources: expected a table of figure = text")
    if not given_by_user:
        return given
    return {key: f"set in {path.name}" for key in own if key in figures()} | given


def _find(name_or_path: str | Path, folder: Path) -> Path:
    """Give the file of a shipped name, else of a path that is relative to `folder`."""
    shipped = _shipped()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = folder / name_or_path
    with contextlib.suppress(OSError):  # a name that is too long for a file, say
        if path.is_file():
            return path
    said = str(name_or_path)[:_MOST_SAID]
    near = difflib.get_close_matches(said, shipped, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ProfileUnknown(f"no profile {said} is shipped and no such file exists{hint}")


def _shipped() -> dict[str, Path]:
    folder = Path(str(resources.files("profiles"))) / "boards"
    return {path.stem: path for path in folder.glob("*.toml")}
