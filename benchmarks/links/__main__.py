"""Whether transfers use a line, come to an end on a bad one, and send little twice after a cut.

Real sessions, outbox, uploader, receiver and downloader, a real mosquitto between them. The lines
are emulated with two network namespaces where this machine allows it (`benchmarks.links.tun`), so
that TCP sees delay and loss; else by a relay that roughly limits the rate and nothing else: the
rows say so, and their share of the line is not judged. A line's delay is that of a round trip. Cuts
are TCP resets after a random count of bytes.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec

from benchmarks.links.ends import AgentEnd, blob_of, hub_side
from benchmarks.links.tun import Line, Wire
from benchmarks.relay import Relay
from benchmarks.result import Target, at_least, at_most, finish, parser
from federation.transfer.chunks import CHUNK

Direction: TypeAlias = Literal["up", "down"]
Side: TypeAlias = Literal["agent", "hub"]

_HUB, _AGENT = "10.77.0.1", "10.77.0.2"
_WELL: Final = Line(mbit_s=20, rtt_ms=50)
_FAR: Final = Line(mbit_s=20, rtt_ms=100)
_BAD: Final = Line(mbit_s=1, rtt_ms=300, loss=0.05)
_WHOLE: Final = 10_000_000
_SHARE: Final = 0.85
_MOST_TWICE: Final = 4
_CUT_CHUNKS: Final = 20
_FOR_EVER_S: Final = 1e6
_RELAY: Final = "relay, rate only"
_SIDES: Final[tuple[Side, ...]] = ("agent", "hub")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One transfer over a line.

    `share` is of the line's rate, `twice` counts chunks beyond one of each.
    """

    emulation: str
    mbit_s: float
    rtt_ms: float
    loss: float
    direction: Direction
    size: int
    seconds: float
    share: float
    twice: int


class Cuts(msgspec.Struct, frozen=True, kw_only=True):
    """Uploads of which each was cut once, at a random byte; chunks sent twice in one of them.

    `side` says whose line to the broker it was: the hub's has the broker hold what it has taken.
    """

    side: Side
    uploads: int
    cuts: int
    size: int
    most_twice: int
    mean_twice: float


def main() -> int:
    """Run, judge, leave the result."""
    arguments = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="ffm-links-") as name:
        rows = list(_lines(Path(name), arguments))
        cuts = [
            _cut_uploads(Path(name) / f"cuts-{side}", 8 if arguments.quick else 60, side)
            for side in _SIDES
        ]
    print(*cuts, sep="\n", file=sys.stderr)
    found = list(map(msgspec.to_builtins, [*rows, *cuts]))
    return finish("links", found, _targets(rows, cuts), arguments)


def _targets(rows: list[Row], cuts: list[Cuts]) -> list[Target]:
    well = [row for row in rows if row.rtt_ms == _WELL.rtt_ms and row.emulation != _RELAY]
    bad = [row for row in rows if row.mbit_s == _BAD.mbit_s]
    return [
        *(at_least(f"share of the line, 10 MB {row.direction}", row.share, _SHARE) for row in well),
        at_least("transfers that end on the bad line, both ways", len(bad), 2),
        *(
            at_most(f"chunks sent twice, the {one.side}'s line cut", one.most_twice, _MOST_TWICE)
            for one in cuts
        ),
    ]


def _lines(work: Path, arguments: Namespace) -> Iterator[Row]:
    small = 200_000 if arguments.quick else 1_000_000
    for line, size in ((_WELL, _WHOLE), (_FAR, _WHOLE), (_BAD, small)):
        for direction in ("up", "down"):
            folder = work / f"{line.rtt_ms}-{direction}"
            row = _over(folder, line, direction, size)
            print(row, file=sys.stderr)
            yield row


def _over(folder: Path, line: Line, direction: Direction, size: int) -> Row:
    """Transfer one blob over a line."""
    with contextlib.ExitStack() as stack:
        try:
            how, figures = _emulated(stack, folder, line, direction, size)
        except OSError as error:
            print(f"no emulation by namespaces here: {error}", file=sys.stderr)
            how, figures = _relayed(stack, folder / "relayed", line, direction, size)
    seconds = figures["seconds"]
    return Row(
        emulation=how,
        mbit_s=line.mbit_s,
        rtt_ms=line.rtt_ms,
        loss=line.loss,
        direction=direction,
        size=size,
        seconds=round(seconds, 2),
        share=round(size * 8 / seconds / (line.mbit_s * 1e6), 3),
        twice=figures["twice"],
    )


def _emulated(
    stack: contextlib.ExitStack, folder: Path, line: Line, direction: Direction, size: int
) -> tuple[str, dict[str, Any]]:
    hub = stack.enter_context(_End("hub", folder / "hub", _HUB))
    agent = stack.enter_context(_End("agent", folder / "agent", _AGENT))
    stack.callback(Wire((hub.tun, agent.tun), line, seed=size).close)
    ready = hub.hear()
    hub.ask([size, 0])
    agent.tell(ready["port"])
    figures = agent.ask([direction, size, 0])
    return f"namespaces, {ready['congestion']}", figures


class _End:
    """A process that is one end of the transfer, in a network of its own.

    Raises
    ------
    OSError
        It could not make that network.
    """

    def __init__(self, role: str, folder: Path, address: str) -> None:
        folder.mkdir(parents=True)
        self._ours, theirs = socket.socketpair()
        with theirs:
            end = [role, str(folder), address, str(theirs.fileno()), _HUB]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.links.ends", *end],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        _, handles, _, _ = socket.recv_fds(self._ours, 1, 1)
        if not handles:
            said = self._process.communicate()[1].decode().splitlines()
            self._ours.close()
            raise OSError(said[-1] if said else "the other end ended at once")
        self.tun = handles[0]
        self._answers = self._ours.makefile()
        # What it says from here on is for a person to read.
        self._errors = threading.Thread(target=self._pass_on, daemon=True)
        self._errors.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._ours.close()
        self._process.wait()
        self._errors.join()

    def tell(self, order: object) -> None:
        """Give an order."""
        self._ours.sendall(json.dumps(order).encode() + b"\n")

    def ask(self, order: object) -> dict[str, Any]:
        """Give an order and wait until it is done."""
        self.tell(order)
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Wait for an answer."""
        if not (line := self._answers.readline()):
            raise RuntimeError("the other end has died")
        found: dict[str, Any] = json.loads(line)
        return found

    def _pass_on(self) -> None:
        if (errors := self._process.stderr) is not None:
            with errors:
                for line in errors:
                    sys.stderr.write(line.decode(errors="replace"))


def _relayed(
    stack: contextlib.ExitStack, folder: Path, line: Line, direction: Direction, size: int
) -> tuple[str, dict[str, Any]]:
    relay, port = _served(stack, folder, blob := blob_of(size, 0), "agent")
    relay.limit(line.mbit_s * 1e6 / 8, _FOR_EVER_S)
    agent = AgentEnd(folder / "agent", "127.0.0.1", port)
    stack.callback(agent.close)
    seconds = agent.send(blob) if direction == "up" else agent.fetch(blob)
    return _RELAY, {"seconds": seconds, "twice": agent.chunks - -(-size // CHUNK)}


def _served(
    stack: contextlib.ExitStack, folder: Path, blob: bytes, side: Side
) -> tuple[Relay, int]:
    """Have the hub's end serve in a thread; give the relay on one line, and the agent's port."""
    folder.mkdir(parents=True)
    relays: list[Relay] = []

    def line(port: int) -> int:
        relays.append(Relay(port))
        stack.callback(relays[0].close)
        return relays[0].port

    served = hub_side(folder, "127.0.0.1", line if side == "hub" else None)
    hub, port = stack.enter_context(served)
    if side == "agent":
        port = line(port)
    hub.put(blob)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            hub.turn()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    stack.callback(serving.join)
    stack.callback(ended.set)
    return relays[0], port


def _cut_uploads(folder: Path, count: int, side: Side) -> Cuts:
    """Send blobs, each cut once at a random byte.

    A session that is cut again and again waits longer and longer: each gets new ones.
    """
    rng = random.Random(0)
    size = _CUT_CHUNKS * CHUNK
    twice, cuts = [], 0
    for number in range(count):
        with contextlib.ExitStack() as stack:
            relay, port = _served(stack, folder / str(number), b"nobody asks for this", side)
            # What is under way is what a cut can cost: on an unlimited line that would be little.
            relay.limit(_WELL.mbit_s * 1e6 / 8, _FOR_EVER_S)
            agent = AgentEnd(folder / str(number) / "agent", "127.0.0.1", port)
            stack.callback(agent.close)
            relay.cut_after(rng.randrange(1, size), up=side == "agent")
            agent.send(blob_of(size, number))
            twice.append(agent.chunks - _CUT_CHUNKS)
            cuts += len(relay.cuts)
    return Cuts(
        side=side,
        uploads=count,
        cuts=cuts,
        size=size,
        most_twice=max(twice),
        mean_twice=round(sum(twice) / count, 2),
    )


if __name__ == "__main__":
    raise SystemExit(main())
