"""What a federation costs while nothing happens: bytes on the wire and resident memory.

A real hub and a real agent, behind a relay that counts; the agent trains once for version 1, then
both wait: at first in an open federation, then as members, over TLS and with all that is said
signed. In the open one 200 more agents come, of which only the connection and the state are real.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.relay import Relay
from benchmarks.result import at_most, finish, parser
from federation import messages
from federation.connection.session import Connected, Session
from federation.messages import AgentState
from federation.topics import Topics
from federation.trust import membership
from federation.trust.membership import Membership
from ffm_common.files import make_folder
from fleet.layout import to_toml
from fleet.observer import Observer
from fleet.processes import Child
from hub.broker import Broker
from hub.trust.authority import Authority
from hub.trust.members import Members
from hub.trust.trusting import IDENTITY
from learning.base import bundled_minilm, prepare

FEDERATION = "idle"
AGENT = "board"
OTHERS = 200
DAY_S = 86_400
MB = 1e6


def main() -> int:
    """Run it; gives 1 where a target is missed."""
    arguments = parser(__doc__).parse_args()
    seconds = 60.0 if arguments.quick else 600.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        base = folder / "base"
        prepare(bundled_minilm(), base)
        idle, hub_before, hub_after = _open(make_folder(folder / "open"), base, seconds)
        member = _enrolled(make_folder(folder / "enrolled"), base, seconds)
    rows = [
        {"what": "idle agent", **idle},
        {"what": "hub with 1 idle agent", "resident_mb": round(hub_before, 1)},
        {"what": f"hub with {OTHERS + 1} idle agents", "resident_mb": round(hub_after, 1)},
        {"what": "idle member: TLS, and signed", **member},
    ]
    targets = [
        at_most("idle agent: MB a day, both ways", idle["mb_per_day"], 1.0),
        at_most("idle agent: MB resident", idle["resident_mb"], 40.0),
        at_most(f"hub with {OTHERS} idle agents: MB resident", hub_after, 120.0),
        at_most("idle member: MB a day, both ways", member["mb_per_day"], 1.0),
        at_most("idle member: MB resident", member["resident_mb"], 40.0),
    ]
    return finish("idle", rows, targets, arguments)


def _open(folder: Path, base: Path, seconds: float) -> tuple[dict[str, float], float, float]:
    """Give what an idle agent costs, and MB resident of the hub without and with many more."""
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(folder / "broker"))
        relay = Relay(broker.port)
        stack.callback(relay.close)
        _write(folder, base, hub={"broker": {"kind": "external", "port": broker.port}})
        _write_agent(folder, base, broker={"port": relay.port})
        hub, agent = _start(stack, folder, "hub"), _start(stack, folder, "agent")
        observer = Observer("127.0.0.1", broker.port, FEDERATION)
        stack.callback(observer.close)
        _until(lambda: _idle(observer), "the agent is idle after its update")
        found = _watch(agent, relay, seconds)
        before = hub.memory_info().rss / MB
        topics = Topics(FEDERATION)
        for number in range(OTHERS):
            stack.callback(_come(broker.port, topics, f"other-{number}").close)
        _until(lambda: _seen(observer) > OTHERS, "all agents are there")
        time.sleep(30)
        return found, before, hub.memory_info().rss / MB


def _enrolled(folder: Path, base: Path, seconds: float) -> dict[str, float]:
    """Give what an idle agent costs that is a member, at a broker of the hub's own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with ExitStack() as stack:
        relay = Relay(port)
        stack.callback(relay.close)
        hub = {"trust": "enrolled", "broker": {"port": port}, "door": {"enabled": False}}
        _write(folder, base, hub=hub)
        _write_agent(folder, base)
        _enrol(folder, relay.port)
        _start(stack, folder, "hub")
        agent = _start(stack, folder, "agent")
        log = folder / "agent.log"
        _until(lambda: "holding version 1" in log.read_text(), "the agent is idle again")
        return _watch(agent, relay, seconds)


def _start(stack: ExitStack, folder: Path, name: str) -> psutil.Process:
    command = [name, "run", "--config", str(folder / f"{name}.toml")]
    child = Child(name, command, folder / f"{name}.log")
    stack.callback(child.stop)
    return psutil.Process(child.pid)


def _watch(agent: psutil.Process, relay: Relay, seconds: float) -> dict[str, float]:
    """Let some time pass; give what it cost."""
    time.sleep(5)
    up, down, started = relay.up, relay.down, time.monotonic()
    time.sleep(seconds)
    lasted = time.monotonic() - started
    up, down = relay.up - up, relay.down - down
    return {
        "seconds": round(lasted, 1),
        "bytes_up": up,
        "bytes_down": down,
        "mb_per_day": round((up + down) / lasted * DAY_S / MB, 4),
        "resident_mb": round(agent.memory_info().rss / MB, 1),
    }


def _enrol(folder: Path, port: int) -> None:
    """Let the agent in, without going through the hub's door."""
    authority = Authority(make_folder(folder / "hub") / IDENTITY, FEDERATION)
    identity = make_folder(folder / "agent") / IDENTITY
    public = membership.key_for(identity).public
    made = authority.certify(AGENT, public)
    members = Members(authority.members)
    members.enrol(AGENT, public, made)
    members.close()
    member = Membership(
        agent=AGENT,
        anchor=authority.anchor,
        host="127.0.0.1",
        port=port,
        tls=True,
        door=("127.0.0.1", 1),
        begins=made.credentials.begins,
        ends=made.credentials.ends,
    )
    membership.keep(identity, member, made.credentials.certificate, authority.certificate)


def _write(folder: Path, base: Path, hub: Mapping[str, object]) -> None:
    """Write a few texts and hub.toml with some more keys."""
    texts = [f'{{"text": "{word}", "label": "{label}"}}\n' for label, word in _TEXTS]
    for name in "public.jsonl", "test.jsonl", "private.jsonl":
        (folder / name).write_text("".join(texts))
    (folder / "hub.toml").write_text(
        to_toml(
            {
                "federation": FEDERATION,
                "base": str(base),
                "folder": "hub",
                "training": {"local_steps": 2, "batch_size": 2, "max_length": 16},
                "versions": {"count": 1, "buffer": 1},
                "public": {"train": "public.jsonl", "evaluation": "test.jsonl", "policy": "never"},
                **hub,
            }
        )
    )


def _write_agent(folder: Path, base: Path, **more: object) -> None:
    (folder / "agent.toml").write_text(
        to_toml(
            {
                "id": AGENT,
                "federation": FEDERATION,
                "base": str(base),
                "folder": "agent",
                "calibration": "calibration.json",
                "data": {"path": "private.jsonl"},
                "meter": {"root": "board"},  # without sensors, so that nothing pauses it
                **more,
            }
        )
    )


_TEXTS = [
    (label, f"the {word} number {number}")
    for number in range(4)
    for label, word in [("animal", "cat"), ("animal", "dog"), ("tool", "saw"), ("tool", "file")]
]


def _idle(observer: Observer) -> bool:
    observer.listen(0)
    state = observer.agents.get(AGENT)
    return state is not None and state.status == "idle" and state.version == 1


def _seen(observer: Observer) -> int:
    observer.listen(0)
    return sum(state.status == "idle" for state in observer.agents.values())


def _come(port: int, topics: Topics, name: str) -> Session:
    """Connect as an agent does, and say that it is idle."""
    state = topics.agent_state(name)
    lost = messages.encode(AgentState(status="lost", boot=1))
    session = Session(
        "127.0.0.1",
        port,
        f"{FEDERATION}.{name}",
        subscriptions=topics.for_agent(name),
        will=(state, lost),
    )
    while not isinstance(session.next(10), Connected):
        pass
    idle = AgentState(status="idle", boot=1, profile="rpi4-4gb", version=1)
    session.publish(state, messages.encode(idle), retain=True)
    return session


def _until(what: Callable[[], bool], why: str, seconds: float = 300.0) -> None:
    """Wait for something."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            sys.exit(f"waited {seconds:.0f} s in vain: {why}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
