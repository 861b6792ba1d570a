#!/usr/bin/env python
"""Evaluate every finished run under one or several folders: losses, predictions and references."""

from __future__ import annotations

import argparse
import dataclasses
import math

from utils.errors import UserError, run_cli
from utils.generation.decoding import Decoding


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_arguments() -> argparse.Namespace:
    """Command line of eval.py."""
    parser = argparse.ArgumentParser(
        description="Predictions, references, loss and perplexity for every finished run under the given folders.",
        epilog="Written beside each run: <split>_predictions.txt and .jsonl, <split>_references.txt, eval.json. "
        "Then score them: bash eval.sh RUNS",
    )
    parser.add_argument("runs", nargs="+", help="folders with runs, or runs")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    parser.add_argument("--limit", type=int, help="evaluate only the first N items (not a complete evaluation)")
    parser.add_argument("--batch-size", type=int, help="prompts generated together (default: 64, on a GPU 128)")
    parser.add_argument("--force", action="store_true", help="evaluate again even if the evaluation is current")
    for field in dataclasses.fields(Decoding):
        text = f"{field.metadata['help']} (default: {field.default})"
        parser.add_argument(_flag(field.name), type=type(field.default), default=field.default, help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: as for train.py"
    )
    parser.add_argument("--dataset-path", help="local data that replaces the run's dataset.path")
    return parser.parse_args()


def main() -> int:
    """Evaluate. Returns 0 if no run failed."""
    arguments = parse_arguments()
    values = vars(arguments)
    least = {field.name: field.metadata["minimum"] for field in dataclasses.fields(Decoding)}
    for name, minimum in {"limit": 1, "batch_size": 1, **least}.items():
        if minimum is not None and values[name] is not None and values[name] < minimum:
            raise UserError(f"{_flag(name)} {values[name]} must be at least {minimum}")
    if not math.isfinite(arguments.length_penalty):
        raise UserError(f"--length-penalty {arguments.length_penalty} must be a finite number")
    from utils.io.hub import go_offline_without_network

    go_offline_without_network()  # before anything imports the hub's libraries
    from utils.evaluation import Options, evaluate_runs

    decoding = Decoding(**{field.name: values.pop(field.name) for field in dataclasses.fields(Decoding)})
    return evaluate_runs(values.pop("runs"), Options(decoding=decoding, **values))


if __name__ == "__main__":
    run_cli(main)
