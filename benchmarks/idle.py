"""What a federation costs while nothing happens: bytes on the wire and resident memory.

A real hub and a real agent, behind a relay that counts; the agent trains once for version 1, then
both wait. After that 200 more agents come, of which only the connection and the state are real.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.relay import Relay
from benchmarks.result import at_most, finish, parser
from federation import messages
from federation.connection.session import Connected, Session
from federation.messages import AgentState
from federation.topics import Topics
from fleet.layout import to_toml
from fleet.observer import Observer
from fleet.processes import Child
from hub.broker import Broker
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
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = arguments.work or Path(temporary)
        broker = stack.enter_context(Broker(folder / "broker"))
        relay = Relay(broker.port)
        stack.callback(relay.close)
        hub, agent = _write(folder, broker.port, relay.port)
        processes = {}
        for name, config in ("hub", hub), ("agent", agent):
            child = Child(name, [name, "run", "--config", str(config)], folder / f"{name}.log")
            stack.callback(child.stop)
            processes[name] = psutil.Process(child.pid)
        observer = Observer("127.0.0.1", broker.port, FEDERATION)
        stack.callback(observer.close)

        _until(lambda: _idle(observer), "the agent is idle after its update")
        time.sleep(5)
        up, down, started = relay.up, relay.down, time.monotonic()
        time.sleep(seconds)
        lasted = time.monotonic() - started
        up, down = relay.up - up, relay.down - down
        agent_mb = processes["agent"].memory_info().rss / MB

        hub_before = processes["hub"].memory_info().rss / MB
        topics = Topics(FEDERATION)
        for number in range(OTHERS):
            stack.callback(_come(broker.port, topics, f"other-{number}").close)
        _until(lambda: _seen(observer) > OTHERS, "all agents are there")
        time.sleep(30)
        hub_mb = processes["hub"].memory_info().rss / MB

    rows = [
        {
            "what": "idle agent",
            "seconds": round(lasted, 1),
            "bytes_up": up,
            "bytes_down": down,
            "mb_per_day": round((up + down) / lasted * DAY_S / MB, 4),
            "resident_mb": round(agent_mb, 1),
        },
        {"what": "hub with 1 idle agent", "resident_mb": round(hub_before, 1)},
        {"what": f"hub with {OTHERS + 1} idle agents", "resident_mb": round(hub_mb, 1)},
    ]
    targets = [
        at_most("idle agent: MB a day, both ways", (up + down) / lasted * DAY_S / MB, 1.0),
        at_most("idle agent: MB resident", agent_mb, 40.0),
        at_most(f"hub with {OTHERS} idle agents: MB resident", hub_mb, 120.0),
    ]
    return finish("idle", rows, targets, arguments)


def _write(folder: Path, port: int, agent_port: int) -> tuple[Path, Path]:
    """Write the configuration of a hub and of an agent, with a base and a few texts."""
    base = folder / "base"
    prepare(bundled_minilm(), base)
    texts = [f'{{"text": "{word}", "label": "{label}"}}\n' for label, word in _TEXTS]
    for name in "public.jsonl", "test.jsonl", "private.jsonl":
        (folder / name).write_text("".join(texts))
    hub, agent = folder / "hub.toml", folder / "agent.toml"
    hub.write_text(
        to_toml(
            {
                "federation": FEDERATION,
                "base": str(base),
                "folder": "hub",
                "broker": {"kind": "external", "port": port},
                "training": {"local_steps": 2, "batch_size": 2, "max_length": 16},
                "versions": {"count": 1, "buffer": 1},
                "public": {"train": "public.jsonl", "evaluation": "test.jsonl", "steps": 0},
            }
        )
    )
    agent.write_text(
        to_toml(
            {
                "id": AGENT,
                "federation": FEDERATION,
                "base": str(base),
                "folder": "agent",
                "calibration": "calibration.json",
                "broker": {"port": agent_port},
                "data": {"path": "private.jsonl"},
                "meter": {"root": "board"},  # without sensors, so that nothing pauses it
            }
        )
    )
    return hub, agent


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
