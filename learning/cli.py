"""`ffm model prepare`, `ffm infer`, `ffm evaluate`: what a person does with a model by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec


def add_commands(commands: Any) -> None:
    """Add the commands to the parser."""
    model = commands.add_parser("model", help="base models")
    actions = model.add_subparsers(dest="action", metavar="ACTION", required=True)
    prepare = actions.add_parser("prepare", help="quantize a model into a base folder, once")
    prepare.add_argument("source", help="model folder in Hugging Face format, or `minilm`")
    prepare.add_argument("out", type=Path, help="the base folder to write")
    prepare.add_argument("--weights", choices=("nf4", "fp32"), default="nf4")
    prepare.set_defaults(run=_prepare)

    infer = commands.add_parser("infer", help="answer with a trained adapter, on this machine")
    infer.add_argument("text", nargs="+", help="one or more texts")
    _adapter_arguments(infer)
    infer.set_defaults(run=_infer)

    evaluate = commands.add_parser("evaluate", help="measure a trained adapter on labelled text")
    evaluate.add_argument("data", type=Path, help="CSV, TSV, JSONL or Parquet")
    evaluate.add_argument("--text", help="column of the text")
    evaluate.add_argument("--label", help="column of the label")
    _adapter_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _adapter_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--adapter", type=Path, required=True, metavar="DIR")
    command.add_argument("--base", type=Path, help="base folder, if it has moved")
    command.add_argument("--json", action="store_true")


def _prepare(arguments: argparse.Namespace) -> int:
    from learning import base

    source = base.bundled_minilm() if arguments.source == "minilm" else Path(arguments.source)
    found = base.prepare(source, arguments.out, arguments.weights)
    sys.stdout.write(f"{arguments.out}: {found.weights}, digest {found.digest}\n")
    return 0


def _infer(arguments: argparse.Namespace) -> int:
    from learning.model import Learner

    answers = Learner.load(arguments.adapter, arguments.base).answer(arguments.text)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(answers).decode() + "\n")
    else:
        for answer in answers:
            sys.stdout.write(f"{answer.label} ({answer.probability:.2f})\n")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from learning.model import Learner
    from learning.trainer import evaluate

    learner = Learner.load(arguments.adapter, arguments.base)
    shard = learner.shard(arguments.data, text=arguments.text, label=arguments.label)
    measure = evaluate(learner.engine, shard)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measure).decode() + "\n")
    else:
        sys.stdout.write(
            f"accuracy {measure.accuracy:.4f}, loss {measure.loss:.4f}, "
            f"{measure.examples} examples\n"
        )
    return 0
