"""`ffm model`, `ffm infer`, `ffm evaluate`: what a person does with a model by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ffm_common.commands import group
from learning.bench import command as bench

if TYPE_CHECKING:
    from learning.model import Learner
    from learning.onnx.merged import MergedModel
    from profiles.planner import Plan


def add_commands(commands: Any) -> None:
    """Add the commands to the parser."""
    model = commands.add_parser("model", help="base models")
    actions = model.add_subparsers(dest="action", metavar="ACTION", required=True)
    prepare = actions.add_parser("prepare", help="quantize a model into a base folder, once")
    prepare.add_argument("source", help="model folder in Hugging Face format, or `minilm`")
    prepare.add_argument("out", type=Path, help="the base folder to write")
    prepare.add_argument("--weights", choices=("nf4", "int8", "bf16", "fp32"), default="nf4")
    prepare.set_defaults(run=_prepare)

    merge = actions.add_parser("merge", help="a trained adapter and its base, for boards to answer")
    merge.add_argument("adapter", type=Path, help="a trained adapter (LoRA)")
    merge.add_argument("out", type=Path, help="the folder to write")
    merge.add_argument("--base", type=Path, help="base folder, if it has moved")
    merge.add_argument("--weights", choices=("int8", "fp32"), default="int8")
    merge.set_defaults(run=_merge)

    new = actions.add_parser("new", help="a base of random weights, to be trained from scratch")
    new.add_argument("out", type=Path, help="the base folder to write")
    shape = new.add_mutually_exclusive_group(required=True)
    shape.add_argument("--shape", help="llama-tiny, llama-mini, bert-tiny, vit-mnist, ...")
    shape.add_argument("--config", type=Path, help="a config.json in Hugging Face format")
    new.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="of text: a model or base that has it"
    )
    new.add_argument("--seed", type=int, default=0)
    new.add_argument("--weights", choices=("bf16", "fp32"), default="fp32")
    new.set_defaults(run=_new)

    export = actions.add_parser("export", help="a fully trained model as a Hugging Face folder")
    export.add_argument("adapter", type=Path, help="a trained adapter (full)")
    export.add_argument("out", type=Path, help="the folder to write")
    export.add_argument("--base", type=Path, help="base folder, if it has moved")
    export.set_defaults(run=_export)

    infer = commands.add_parser("infer", help="answer with a trained adapter, on this machine")
    infer.add_argument("text", nargs="+", help="one or more texts, or files of pictures")
    _adapter_arguments(infer)
    infer.set_defaults(run=_infer)

    evaluate = commands.add_parser("evaluate", help="measure a trained adapter on labelled text")
    evaluate.add_argument("data", type=Path, help="CSV, TSV, JSONL or Parquet")
    evaluate.add_argument("--text", help="column of the text")
    evaluate.add_argument("--label", help="column of the label")
    _adapter_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)

    plan = group(commands, "profile", "device profiles: what a board may spend").add_parser(
        "plan", help="how a device would train a base, and what that costs"
    )
    plan.add_argument("--base", type=Path, required=True, metavar="DIR", help="prepared base")
    plan.add_argument("--profile", default="laptop-cpu", help="a shipped name or a TOML file")
    plan.add_argument("--adapter", choices=("lora", "prompt", "full"), default="lora")
    plan.add_argument("--rank", type=int, default=8)
    plan.add_argument("--top-layers", type=int, default=0, help="0: all layers get the adapter")
    plan.add_argument("--length", type=int, default=64, help="tokens per example")
    plan.add_argument("--batch", type=int, default=16, help="examples per step")
    plan.add_argument("--steps", type=int, default=16, help="steps per version")
    plan.add_argument("--labels", type=int, default=10, help="0: a language model")
    plan.add_argument("--codec", default="int8")
    plan.add_argument(
        "--measure", action="store_true", help="take a few steps here first, and keep the result"
    )
    plan.add_argument(
        "--calibration", type=Path, default=Path("calibration.json"), help="where it is kept"
    )
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(run=_plan)
    bench.add_commands(commands)


def _adapter_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--adapter", type=Path, required=True, metavar="DIR", help="an adapter, or a merged model"
    )
    command.add_argument("--base", type=Path, help="base folder, if it has moved")
    command.add_argument("--json", action="store_true")


def _prepare(arguments: argparse.Namespace) -> int:
    from learning import base

    source = base.bundled_minilm() if arguments.source == "minilm" else Path(arguments.source)
    found = base.prepare(source, arguments.out, arguments.weights)
    sys.stdout.write(f"{arguments.out}: {found.weights}, digest {found.digest}\n")
    return 0


def _new(arguments: argparse.Namespace) -> int:
    from ffm_common.errors import ConfigInvalid
    from learning import base, scratch

    if arguments.config is not None:
        config = base.read_config(arguments.config)
    elif arguments.shape in scratch.SHAPES:
        config = dict(scratch.SHAPES[arguments.shape])
    else:
        raise ConfigInvalid(
            f"--shape {arguments.shape}: there is none of that name",
            remedy=f"take one of {', '.join(scratch.SHAPES)}, or give --config",
        )
    found = scratch.new(
        arguments.out,
        config,
        tokenizer=arguments.tokenizer,
        seed=arguments.seed,
        weights=arguments.weights,
    )
    sys.stdout.write(f"{arguments.out}: {found.weights}, digest {found.digest}\n")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from learning.export import export

    export(arguments.adapter, arguments.out, base_folder=arguments.base)
    sys.stdout.write(f"{arguments.out}: opens with from_pretrained\n")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from learning.onnx.merge import merge

    found = merge(
        arguments.adapter, arguments.out, base_folder=arguments.base, weights=arguments.weights
    )
    sys.stdout.write(f"{arguments.out}: {found.weights}, digest {found.digest}\n")
    return 0


def _infer(arguments: argparse.Namespace) -> int:
    answers = _open(arguments).answer(arguments.text)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(answers).decode() + "\n")
    else:
        for answer in answers:
            sys.stdout.write(f"{answer.label} ({answer.probability:.2f})\n")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from learning.trainer import evaluate

    model = _open(arguments)
    shard = model.shard(arguments.data, text=arguments.text, label=arguments.label)
    measure = evaluate(model.engine, shard)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measure).decode() + "\n")
    else:
        sys.stdout.write(
            f"accuracy {measure.accuracy:.4f}, loss {measure.loss:.4f}, "
            f"{measure.examples} examples\n"
        )
    return 0


def _open(arguments: argparse.Namespace) -> Learner | MergedModel:
    """Open what answers: an adapter on its base, or a merged model, which needs no torch."""
    from learning.onnx import merged

    if merged.is_merged(arguments.adapter):
        return merged.MergedModel(arguments.adapter)
    from learning.model import Learner

    return Learner.load(arguments.adapter, arguments.base)


def _plan(arguments: argparse.Namespace) -> int:
    from ffm_common.config import convert
    from ffm_common.task import Task
    from learning import base, planning
    from profiles import planner
    from profiles import profile as profiles
    from profiles.calibration import Calibrations
    from profiles.limits import Limits
    from quantization.updates.rates import bits_of, down_bits

    decoder = arguments.labels == 0
    labelled = "image-classification" if base.sees(arguments.base) else "classification"
    task = convert(
        {
            "kind": "causal-lm" if decoder else labelled,
            "labels": [f"label {number}" for number in range(arguments.labels)],
            "adapter": {
                "kind": arguments.adapter,
                "rank": arguments.rank,
                "top_layers": arguments.top_layers,
                **({"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]} if decoder else {}),
            },
            "training": {
                "max_length": arguments.length,
                "batch_size": arguments.batch,
                "local_steps": arguments.steps,
            },
        },
        Task,
        source="command line",
    )
    profile = profiles.load(arguments.profile)
    limits = Limits.of(profile)
    asked = planning.demand(
        arguments.base,
        task,
        update_bits=bits_of(arguments.codec),
        down_bits=down_bits(),
    )
    key = planning.calibration_key(arguments.base, task, limits)
    calibrations = Calibrations(arguments.calibration)
    if arguments.measure:
        sys.stderr.write("measuring this machine with a few small steps\n")
        calibrations.put(key, planning.measure(arguments.base, task, asked, limits))
    found = calibrations.get(key) or planner.guess(profile, asked)
    plan = planner.plan(profile, asked, found)
    sys.stdout.write(
        msgspec.json.encode(plan).decode() + "\n" if arguments.json else _plan_lines(plan)
    )
    return 0


def _plan_lines(plan: Plan) -> str:
    basis = "measured on this machine" if plan.measured else "guessed from published figures"
    energy = "" if plan.joules_per_version is None else f"{plan.joules_per_version:.0f} J"
    once_kept = f", {plan.cached_step_seconds:.2f} s once cached" if plan.cached_layers else ""
    rows = {
        "engine, weights": f"{plan.engine}, {plan.weights}",
        "rank": str(plan.rank),
        "micro-batch": f"{plan.micro_batch} x {plan.accumulation}",
        "tokens": str(plan.max_length),
        "checkpointing": "yes" if plan.checkpointing else "no",
        "matrix products": plan.products,
        "threads": str(plan.threads),
        "peak memory": f"{plan.memory_mb:.0f} MB",
        "step": f"{plan.step_seconds:.2f} s{once_kept}",
        "per version": f"{plan.bytes_per_version / 1e3:.0f} kB both ways {energy}".rstrip(),
        "basis": basis,
    }
    return "".join(f"{name:<16} {value}\n" for name, value in rows.items())
