"""Flower's side of the comparison: the app that its processes run, in their own environment.

`flower_peer` copies this file into an app folder; nothing of the project imports it.
The engine, the data and the steps are those of `benchmarks.simulation`; what travels is Flower's.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.arena import Arena
from benchmarks.simulation import Federation
from ffm_common.seeds import derive

flower: Any = importlib.import_module("flwr.app")

WORK = Path(os.environ["FFM_FLOWER_WORK"])
ASKED = Federation(**json.loads(os.environ["FFM_FLOWER_FEDERATION"]))
ROUNDS = Path(os.environ["FFM_FLOWER_ROUNDS"])


def train(message: Any, context: Any) -> Any:
    """Take local steps from the arrays of a message; answer with all of them, in float32."""
    place = int(context.node_config["partition-id"])
    version = int(message.content["config"]["server-round"]) - 1
    arena = Arena(ASKED.task, WORK)
    shard = arena.shard(arena.deal(ASKED.agents, ASKED.seed)[place])
    given = message.content["arrays"]
    start = {name: given[name].numpy() for name in sorted(given)}
    seed = derive(ASKED.seed, f"agent-{place:02d}", version)
    trained = arena.train(start, shard, ASKED.local_steps, seed)
    content = flower.RecordDict(
        {
            "arrays": _record(trained),
            "metrics": flower.MetricRecord({"num-examples": len(shard)}),
        }
    )
    return flower.Message(content=content, reply_to=message)


def serve(grid: Any, _context: Any) -> None:
    """Run FedAvg; leave one line of JSON per version."""
    strategies: Any = importlib.import_module("flwr.serverapp.strategy")
    arena = Arena(ASKED.task, WORK)

    def measure(version: int, arrays: Any) -> Any:
        tensors = {name: arrays[name].numpy() for name in sorted(arrays)}
        found = arena.measure(tensors, ASKED.test, ASKED.seed)
        with ROUNDS.open("a") as file:
            file.write(json.dumps({"version": version, "accuracy": found.accuracy}) + "\n")
        return flower.MetricRecord({"accuracy": found.accuracy})

    everybody = ASKED.agents
    strategy = strategies.FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=everybody,
        min_available_nodes=everybody,
    )
    strategy.start(
        grid=grid,
        initial_arrays=_record(arena.start(ASKED.seed)),
        num_rounds=ASKED.versions,
        evaluate_fn=measure,
    )


def _record(tensors: Any) -> Any:
    return flower.ArrayRecord({name: flower.Array(array) for name, array in tensors.items()})


client = importlib.import_module("flwr.clientapp").ClientApp()
client.train()(train)
server = importlib.import_module("flwr.serverapp").ServerApp()
server.main()(serve)
