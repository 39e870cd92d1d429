"""Every parser of what comes from outside, or from a disk. A new one is one line here.

The numbers of inputs are shares of those in all, chosen so that none takes most of the time.
"""

from __future__ import annotations

from typing import Final

from benchmarks.fuzz import data, folders, state, trust, updates, wire
from benchmarks.fuzz.subject import Parser

PARSERS: Final = (
    Parser(name="messages", make=wire.control_messages, inputs=180_000),
    Parser(name="topics", make=wire.topics, inputs=60_000),
    Parser(name="chunks", make=wire.chunk, inputs=40_000),
    Parser(name="hub", make=wire.hub, inputs=80_000, memory_mb=96),
    Parser(name="agent", make=wire.agent, inputs=80_000),
    Parser(name="websocket", make=wire.websocket, inputs=40_000),
    Parser(name="mqtt", make=wire.mqtt, inputs=40_000),
    Parser(name="containers", make=updates.containers, inputs=110_000),
    Parser(name="chains", make=updates.chains, inputs=20_000),
    Parser(name="signed-messages", make=trust.signed_messages, inputs=40_000),
    Parser(name="sealed-updates", make=trust.sealed_updates, inputs=40_000),
    Parser(name="invitations", make=trust.invitations, inputs=20_000),
    Parser(name="door", make=trust.door, inputs=40_000),
    Parser(name="memberships", make=trust.memberships, inputs=10_000),
    Parser(name="private-keys", make=trust.private_keys, inputs=10_000),
    Parser(name="signed-adapters", make=trust.signed_adapters, inputs=10_000),
    Parser(name="released-wheels", make=trust.released_wheels, inputs=5_000),
    Parser(name="launch-trial", make=trust.launch_trial, inputs=5_000),
    Parser(name="signs-of-life", make=trust.signs_of_life, inputs=5_000),
    Parser(name="hub-toml", make=state.hub_toml, inputs=12_000),
    Parser(name="agent-toml", make=state.agent_toml, inputs=15_000),
    Parser(name="profile-toml", make=state.profile_toml, inputs=10_000),
    Parser(name="journal", make=state.journal, inputs=10_000),
    Parser(name="calibration", make=state.calibration, inputs=10_000),
    Parser(name="daily-budget", make=state.daily_budget, inputs=10_000),
    Parser(name="version-record", make=state.version_record, inputs=15_000),
    Parser(name="kept-losses", make=state.kept_loss, inputs=10_000),
    Parser(name="worker-answers", make=state.worker_answers, inputs=20_000),
    Parser(name="adapter-weights", make=state.adapter_weights, inputs=20_000),
    Parser(name="residual", make=state.residual, inputs=10_000),
    Parser(name="training-state", make=state.training_state, inputs=20_000),
    Parser(name="tokens", make=state.tokens, inputs=20_000),
    Parser(name="board", make=state.board, inputs=5_000),
    Parser(name="outbox", make=state.outbox, inputs=10_000),
    Parser(name="hub-ledger", make=state.hub_ledger, inputs=10_000),
    Parser(name="adapter-card", make=folders.adapter_card, inputs=12_000),
    Parser(name="base-manifest", make=folders.base_manifest, inputs=8_000),
    Parser(name="model-config", make=folders.model_config, inputs=10_000),
    Parser(name="weights-head", make=folders.weights_head, inputs=10_000),
    Parser(name="picture-processor", make=folders.picture_processor, inputs=8_000),
    Parser(name="tokenizer", make=folders.tokenizer, inputs=8_000),
    Parser(name="tokenizer-config", make=folders.tokenizer_config, inputs=5_000),
    Parser(name="exported-step", make=folders.exported_step, inputs=8_000),
    Parser(name="merged-model", make=folders.merged_model, inputs=6_000),
    Parser(name="graph", make=folders.graph, inputs=8_000, memory_mb=128),
    Parser(name="csv", make=data.csv, inputs=10_000),
    Parser(name="tsv", make=data.tsv, inputs=7_000),
    Parser(name="jsonl", make=data.jsonl, inputs=7_000),
    Parser(name="json-line", make=data.one_json_line, inputs=7_000),
    Parser(name="plain-text", make=data.plain_text, inputs=6_000),
    Parser(name="parquet", make=data.parquet, inputs=8_000, memory_mb=256),
    Parser(name="pictures", make=data.pictures, inputs=9_000, memory_mb=1024),
    Parser(name="picture-zip", make=data.picture_zip, inputs=3_000, memory_mb=256),
    Parser(name="picture-arrays", make=data.picture_arrays, inputs=3_000, memory_mb=256),
)
BY_NAME: Final = {parser.name: parser for parser in PARSERS}
