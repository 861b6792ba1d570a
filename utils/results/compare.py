"""Compares the scores of two runs on the same test items with a paired bootstrap test."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.io.files import LARGEST, sha256
from utils.results.read import SPLIT
from utils.runs import Run
from utils.text import aligned, printable_line


def compare_runs(first: str | Path, second: str | Path) -> str:
    """A text table: each score of both runs, their difference with its 95 % interval, and the p value.

    Raises:
        UserError: a folder is not a run or has no predictions, or the references differ.
    """
    from utils.data import metrics_of
    from utils.metrics import applicable, main_scores, metrics
    from utils.metrics.scoring.bootstrap import SAMPLES, compare
    from utils.metrics.scoring.reader import read_run

    runs = [Run(Path(first)), Run(Path(second))]
    dataset, _ = (run.record().get("dataset") for run in runs)  # raises if one is not a run
    for run in runs:
        for path in (run.predictions(SPLIT), run.references(SPLIT)):
            if not path.exists():
                raise UserError(f"--compare: {printable_line(str(path))} is missing: run eval.py on this run first")
    if len({sha256(run.references(SPLIT), LARGEST) for run in runs}) > 1:
        raise UserError(
            "--compare: the two runs have different references, so that they cannot be compared item by item: "
            "evaluate both on the same data and with the same --limit"
        )
    one, two = (read_run(run, SPLIT) for run in runs)
    known = metrics()
    names = [name for name in applicable(one.sources, main_scores(metrics_of(dataset))) if known[name].additive]
    comparisons = compare(one.predictions, two.predictions, one.references, one.sources, names)
    lines = [
        f"A: {printable_line(str(first))}",
        f"B: {printable_line(str(second))}",
        f"{len(one.predictions)} items, paired bootstrap with {SAMPLES} resampled test sets, two-sided",
        "",
    ]
    rows = [["", "A", "B", "A - B", "95 % interval", "p"]]
    for name, row in comparisons.items():
        digits = f".{known[name].decimals}f"
        numbers = [f"{row.first.score:{digits}}", f"{row.second.score:{digits}}", f"{row.difference:+{digits}}"]
        rows.append([name, *numbers, f"[{row.low:+{digits}}, {row.high:+{digits}}]", f"{row.p_value:.3f}"])
    return "\n".join([*lines, *aligned(rows, right=range(1, 6))])
