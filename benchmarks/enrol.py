"""A hundred boards join: from the first invitation until the last membership is on its disk.

The hub is the real one, ``ffm hub run`` with its broker. Some boards join as a person has them
join, one after the other: ``ffm hub invite`` and ``ffm agent join``, each a process of its own. The
others are invited and join in this process, four at a time, by the functions that these commands
call: a hundred boards have a hundred processors, and this machine has two. All of them have a
folder of their own on this disk, and speak to the hub's door in TLS.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.relay import free_port
from benchmarks.result import Target, at_most, finish, parser
from edge_agent.enrolment.joining import Wishes, join
from federation.trust import membership
from federation.trust.invitation import Invitation
from ffm_common.tied import tied
from fleet.layout import to_toml
from fleet.processes import Child
from hub import config
from hub.config import Located
from hub.trust import place
from hub.trust.authority import Authority
from hub.trust.members import Members
from hub.trust.trusting import identity_of
from hub.versions.ledger import read_versions
from learning.base import bundled_minilm, prepare
from learning.texts.data import Example, write_jsonl

_BOARDS, _QUICK = 100, 20
_COMMANDS, _QUICK_COMMANDS = 10, 2
_AT_A_TIME: Final = 4
_WITHIN_S: Final = 30.0
_PATIENCE_S: Final = 300.0
_FEDERATION: Final = "enrol"
MB: Final = 1e6


def main() -> int:
    """Run it; gives 1 where a target is missed."""
    arguments = parser(__doc__).parse_args()
    boards = _QUICK if arguments.quick else _BOARDS
    commands = _QUICK_COMMANDS if arguments.quick else _COMMANDS
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = arguments.work or Path(temporary)
        located = _start(folder, stack)
        hub = _hub_process(located)
        before = hub.memory_info().rss, sum(hub.cpu_times()[:2])

        began = time.monotonic()
        by_command = [_by_command(folder, number) for number in range(commands)]
        here = _in_process(located, folder, range(commands, boards))
        took = time.monotonic() - began

        after = hub.memory_info().rss, sum(hub.cpu_times()[:2])
        whole = _whole(folder, boards)
        with closing(Members(identity_of(located) / "members.db")) as members:
            count = len(members.all())
        rows: list[dict[str, Any]] = [
            _row("ffm hub invite, ffm agent join", by_command),
            _row("invited and joined in one process", here),
            {"what": "members", "count": count, "seconds": round(took, 2)},
            {"what": "identities on disk, whole, with a certificate that fits", "count": whole},
            {
                "what": "the hub, of all that",
                "cpu_s": round(after[1] - before[1], 2),
                "resident_mb": round(after[0] / MB, 1),
                "resident_before_mb": round(before[0] / MB, 1),
            },
        ]
    targets: list[Target] = [
        at_most(f"{boards} boards enrolled: seconds", took, _WITHIN_S),
        at_most("boards that are no members", boards - min(count, whole), 0),
    ]
    return finish("enrol", rows, targets, arguments)


def _start(folder: Path, stack: ExitStack) -> Located:
    """Start a hub, and wait until it has its first version: later it is as busy as it mostly is."""
    base = folder / "base"
    if not base.exists():
        prepare(bundled_minilm(), base)
    texts = [Example(text=f"the {word}", label=word) for word in ("cat", "saw") for _ in range(8)]
    for name in ("public.jsonl", "test.jsonl"):
        write_jsonl(folder / name, texts)
    values = {
        "federation": _FEDERATION,
        "trust": "enrolled",
        "base": str(base),
        "broker": {"port": free_port()},
        "door": {"port": 0},
        "training": {"local_steps": 2, "batch_size": 2, "max_length": 16},
        "public": {"train": "public.jsonl", "evaluation": "test.jsonl", "warmup_steps": 0},
    }
    (folder / "hub.toml").write_text(to_toml(values))
    located = config.load(folder / "hub.toml")
    child = Child("hub", ["hub", "run", "--config", str(folder / "hub.toml")], folder / "hub.log")
    stack.callback(child.stop)
    until = time.monotonic() + _PATIENCE_S
    ledger = located.folder / "ledger.db"
    while not (ledger.exists() and read_versions(ledger)):
        if child.ended() or time.monotonic() > until:
            sys.exit(f"no hub: {child.last_error()}")
        time.sleep(0.2)
    return located


def _hub_process(located: Located) -> psutil.Process:
    port = place.find(located).port
    for process in psutil.Process().children(recursive=True):
        for found in process.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port:
                return process
    sys.exit("nobody listens at the door")


def _by_command(folder: Path, number: int) -> float:
    """Have a board join as a person does; give the seconds."""
    began = time.monotonic()
    said = _ffm("hub", "invite", "--config", str(folder / "hub.toml"), "--json")
    board = _board(folder, number)
    token = json.loads(said)["token"]
    told = ["--config", str(board / "agent.toml"), "--id", board.name]
    _ffm("agent", "join", token, *told, "--data", str(folder), "--base", str(folder))
    return time.monotonic() - began


def _ffm(*arguments: str) -> str:
    command = tied([sys.executable, "-m", "ffm", *arguments])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def _in_process(located: Located, folder: Path, numbers: range) -> list[float]:
    """Invite boards and have them join here; give the seconds of each."""
    where = place.told(place.find(located), None)
    authority = Authority(identity_of(located), _FEDERATION)
    with closing(Members(authority.members)) as members:

        def come(number: int) -> float:
            began = time.monotonic()
            invitation = Invitation.draw(where.host, where.port, authority.fingerprint)
            members.invite(invitation.secret, ends=time.time() + 3600)
            board = _board(folder, number)
            wishes = Wishes(id=board.name, data=folder, base=folder)
            join(invitation.token(), board / "agent.toml", wishes)
            return time.monotonic() - began

        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            return list(pool.map(come, numbers))


def _board(folder: Path, number: int) -> Path:
    found = folder / "boards" / f"board-{number}"
    found.mkdir(parents=True, exist_ok=True)
    return found


def _whole(folder: Path, boards: int) -> int:
    """Count the boards whose folder holds a whole identity that their certificate fits."""
    found = 0
    for number in range(boards):
        identity = membership.load(_board(folder, number) / "state" / "identity")
        if identity is not None:
            found += membership.fits(identity.certificate.read_text(), identity.key_file)
    return found


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "boards": len(seconds),
        "median_s": round(statistics.median(seconds), 3),
        "longest_s": round(max(seconds), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
