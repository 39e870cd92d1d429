"""The faults: drawn by a seed, and how each is done to a town."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from typing import Final, Literal, TypeAlias, get_args

import msgspec
import psutil

from benchmarks.chaos.kept import Kept
from benchmarks.chaos.town import Town
from benchmarks.chaos.wire import Wire
from benchmarks.relay import Relay
from ffm_common.files import write_atomic

Kind: TypeAlias = Literal[
    "agent killed",
    "agent's worker killed",
    "hub killed",
    "hub's worker killed",
    "broker killed",
    "broker restarted",
    "link reset, going up",
    "link reset, coming down",
    "hub's link reset",
    "link a black hole",
    "hub's link a black hole",
    "link slow",
    "packets doubled",
    "packets out of order",
    "agent's disk full",
    "hub's disk full",
    "agent's clock set",
    "hub's clock set",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

# How often each is drawn. What takes a process down costs seconds of everybody, so it is rarer.
_WEIGHTS: Final[dict[Kind, int]] = {
    "agent killed": 12,
    "agent's worker killed": 4,
    "hub killed": 3,
    "hub's worker killed": 5,
    "broker killed": 2,
    "broker restarted": 2,
    "link reset, going up": 18,
    "link reset, coming down": 6,
    "hub's link reset": 2,
    "link a black hole": 12,
    "hub's link a black hole": 3,
    "link slow": 8,
    "packets doubled": 10,
    "packets out of order": 10,
    "agent's disk full": 4,
    "hub's disk full": 2,
    "agent's clock set": 4,
    "hub's clock set": 2,
}
# How far in a reset comes at most: an update is 590 kB, most versions are 37 kB.
_UP_BYTES: Final = 600_000
_DOWN_BYTES: Final = 100_000
_PATIENCE_S: Final = 12.0
_JUMPS_S: Final = (-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0, 0.0)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault.

    Parameters
    ----------
    at_s
        When, in seconds from the beginning.
    agent
        Which agent it is done to, for those that are done to one.
    amount
        In [0, 1): how long, how far in, how much.
    """

    at_s: float
    kind: Kind
    agent: str
    amount: float


def draw(seed: int, town: Town, *, count: int, seconds: float) -> list[Fault]:
    """Draw faults that a town can have, evenly over some seconds."""
    rng = random.Random(f"faults {seed}")
    kinds = [kind for kind in KINDS if _possible(kind, town)]
    moments = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [
        Fault(
            at_s=moment,
            kind=rng.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0],
            agent=rng.choice(town.names),
            amount=rng.random(),
        )
        for moment in moments
    ]


def _possible(kind: Kind, town: Town) -> bool:
    if kind.startswith("hub's link"):
        return town.hub_link is not None
    return kind != "broker restarted" or town.broker is not None


class Injector:
    """Does faults to a town, and counts those that hit.

    Attributes
    ----------
    hits
        Per kind. A fault that finds nothing to spoil (no worker at work, a process that is down)
        within 12 s is none.
    """

    def __init__(self, town: Town) -> None:
        self._town = town
        self._waiting: list[tuple[float, Fault]] = []
        self._full: list[tuple[float, Kept]] = []
        self._armed: dict[tuple[str, bool], tuple[Relay, int]] = {}
        self.hits: Counter[Kind] = Counter()

    def inject(self, fault: Fault) -> None:
        """Do it, now or as soon as there is something to do it to."""
        self._waiting.append((time.monotonic() + _PATIENCE_S, fault))
        self.tick()

    def tick(self) -> None:
        """Let time pass: try what waits, give disk space back, count resets."""
        now = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for until, fault in waiting:
            if self._hit(fault):
                self.hits[fault.kind] += 1
            elif now < until:
                self._waiting.append((until, fault))
        for until, whose in [entry for entry in self._full if entry[0] <= now]:
            self._full.remove((until, whose))
            _limit_files(whose, psutil.RLIM_INFINITY)

    def heal(self) -> None:
        """Take away every fault that lasts, and those that have not come yet."""
        self._waiting.clear()
        for _, whose in self._full:
            _limit_files(whose, psutil.RLIM_INFINITY)
        self._full.clear()
        for relay in self._town.relays():
            relay.disarm()
            relay.hold(0)
            relay.limit(1, 0)
        for wire in self._wires():
            wire.double = wire.swap = 0
        for one in self._town.everybody():
            self._town.clock(one.name).unlink(missing_ok=True)

    def _hit(self, fault: Fault) -> bool:
        town, amount = self._town, fault.amount
        agent, link = town.agents[fault.agent], town.links[fault.agent]
        match fault.kind:
            case "agent killed":
                return agent.kill(2 * amount)
            case "agent's worker killed":
                return _kill_child(agent, town.workers["agent"])
            case "hub killed":
                return town.hub.kill(2 * amount)
            case "hub's worker killed":
                return _kill_child(town.hub, town.workers["hub"])
            case "broker killed":
                if town.broker is not None:
                    return town.broker.kill(2 * amount)
                killed = _kill_child(town.hub, "mosquitto.conf", "embedded_broker")
                town.broker_ends += [time.monotonic()] * killed
                return killed
            case "broker restarted":
                return town.broker is not None and town.broker.restart(amount)
            case "link reset, going up":
                return self._reset(link, fault, up=True)
            case "link reset, coming down":
                return self._reset(link, fault, up=False)
            case "hub's link reset":
                return town.hub_link is not None and self._reset(town.hub_link, fault, up=False)
            case "link a black hole":
                link.hold(0.5 + 5 * amount)
            case "hub's link a black hole":
                if town.hub_link is not None:
                    town.hub_link.hold(0.5 + 3 * amount)
            case "link slow":
                link.limit(40_000 + 200_000 * amount, 1 + 3 * amount)
            case "packets doubled":
                self._wire(fault).double += 1 + int(5 * amount)
            case "packets out of order":
                self._wire(fault).swap += 1 + int(5 * amount)
            case "agent's disk full":
                return self._fill_disk(agent, 0.5 + 2 * amount)
            case "hub's disk full":
                return self._fill_disk(town.hub, 0.5 + 2 * amount)
            case "agent's clock set":
                self._set_clock(fault.agent, amount)
            case "hub's clock set":
                self._set_clock("hub", amount)
        return True

    def _reset(self, relay: Relay, fault: Fault, *, up: bool) -> bool:
        """Arm a reset, or say whether the one that was armed for this fault has come."""
        key = f"{fault.at_s}", up
        if key not in self._armed:
            if relay.armed:
                return False
            most = _UP_BYTES if up or relay is self._town.hub_link else _DOWN_BYTES
            relay.cut_after(int(fault.amount * most), up=up)
            self._armed[key] = relay, len(relay.cuts)
            return False
        armed, cuts = self._armed[key]
        return len(armed.cuts) > cuts

    def _wires(self) -> list[Wire]:
        return [*self._town.wires.values(), *filter(None, [self._town.hub_wire])]

    def _wire(self, fault: Fault) -> Wire:
        """Take the agent's wire, or now and then the hub's."""
        hub = self._town.hub_wire
        return hub if hub is not None and fault.amount < 0.2 else self._town.wires[fault.agent]

    def _fill_disk(self, whose: Kept, seconds: float) -> bool:
        if not whose.alive or any(one is whose for _, one in self._full):
            return False
        self._full.append((time.monotonic() + seconds, whose))
        return _limit_files(whose, 0)

    def _set_clock(self, name: str, amount: float) -> None:
        by = _JUMPS_S[int(amount * len(_JUMPS_S))]
        write_atomic(self._town.clock(name), str(by).encode())


def _kill_child(parent: Kept, *parts_of_command: str) -> bool:
    for part in parts_of_command:
        for child in parent.children(part):
            with contextlib.suppress(psutil.Error):
                child.kill()
                return True
    return False


def _limit_files(whose: Kept, size: int) -> bool:
    """Have the kernel refuse a process every byte written to a file beyond `size` (EFBIG).

    A disk that is full, as far as the process can see, and needs no root; workers inherit it.
    """
    if not whose.alive:
        return False
    done = False
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(whose.pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if size and one.name() == "mosquitto":
                    continue
                one.rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))
                done = True
            if not size:
                break
    return done
