"""``python -m utils.metrics PREDICTIONS REFERENCES [--json]``: the official E2E scores of any system's output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, comma_list, plain_warnings, run_cli
from utils.metrics import OFFICIAL, applicable, metrics, score
from utils.metrics.scoring.reader import read_items, read_predictions
from utils.text import aligned


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of ``python -m utils.metrics``."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.metrics",
        description="Score a system's texts with BLEU, NIST, METEOR, ROUGE_L and CIDEr as the E2E challenge does.",
    )
    parser.add_argument("predictions", type=Path, help="one text per line, or a TSV/CSV table with a source column")
    parser.add_argument(
        "references", type=Path, help="groups separated by empty lines; or one reference per line; or a table"
    )
    parser.add_argument("--sources", type=Path, help="the input of each text, one per line (for the slot error rate)")
    parser.add_argument("--metrics", help="comma-separated score names, or 'all'; default: the official five")
    parser.add_argument(
        "--engine", choices=("python", "java"), default="python", help="java: METEOR, ROUGE_L and CIDEr by the jars"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def _without_java(names: Sequence[str], engine: str) -> list[str]:
    """The names that this project's code scores, not the jars."""
    from utils.metrics.scoring.java import NAMES

    return [name for name in names if engine == "python" or name not in NAMES]


@plain_warnings()
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, score, print."""
    arguments = parse_arguments(argv)
    items = read_items(arguments.predictions, arguments.references)
    sources = items.sources if arguments.sources is None else read_predictions(arguments.sources)
    if sources and items.sources and sources != items.sources and sorted(sources) == sorted(items.sources):
        raise UserError(f"--sources: {arguments.sources} has the sources of the tables in another order: leave it out")
    if arguments.metrics is None:
        names: Sequence[str] = OFFICIAL
    elif arguments.metrics == "all":
        names = applicable(sources)
    else:
        names = comma_list(arguments.metrics)
        if not names:
            raise UserError("--metrics names no score")
    scores = score(items.predictions, items.references, sources, _without_java(names, arguments.engine))
    if arguments.engine == "java":
        from utils.metrics.scoring.java import score as score_with_java

        scores |= score_with_java(items.predictions, items.references)
        scores = {name: scores[name] for name in names}
    if arguments.json:
        print(json.dumps(scores, indent=2, allow_nan=False))
    else:
        rows = [[name, f"{value:.{metrics()[name].decimals}f}"] for name, value in scores.items()]
        print("\n".join(aligned(rows)))
    return 0


if __name__ == "__main__":
    run_cli(main)
