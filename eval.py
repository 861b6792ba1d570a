#!/usr/bin/env python
"""Evaluate every finished run under one or several folders: losses, predictions and references."""

from __future__ import annotations

import argparse

from utils.errors import run_cli
from utils.generation.decoding import add_arguments, take_decoding
from utils.processes.signals import end_on_signals, ignore_signals


def parse_arguments() -> argparse.Namespace:
    """Command line of eval.py."""
    parser = argparse.ArgumentParser(
        description="Predictions, references, loss and perplexity for every finished run under the given folders.",
        epilog="Written beside each run: <split>_predictions.txt and .jsonl, <split>_references.txt, eval.json. "
        "Then score them: bash eval.sh RUNS",
    )
    parser.add_argument("runs", nargs="+", help="folders with runs, or runs")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    parser.add_argument("--limit", type=int, help="evaluate only the first N items, unless more are already")
    parser.add_argument("--batch-size", type=int, help="prompts generated together (default: 64, on a GPU 128)")
    parser.add_argument("--force", action="store_true", help="evaluate again even if the evaluation is current")
    add_arguments(parser)
    parser.add_argument("--dataset-path", help="local data that replaces the run's dataset.path")
    return parser.parse_args()


def main() -> int:
    """Evaluate. Returns 0 if no run failed."""
    end_on_signals()
    values = vars(parse_arguments())
    decoding = take_decoding(values, limit=1, batch_size=1)
    from utils.io.hub import go_offline_without_network

    go_offline_without_network()  # before anything imports the hub's libraries
    from utils.evaluation import Options, evaluate_runs

    code = evaluate_runs(values.pop("runs"), Options(decoding=decoding, **values))
    ignore_signals()
    return code


if __name__ == "__main__":
    run_cli(main)
