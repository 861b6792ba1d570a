"""Two runs on the same test items: differences of their scores with a paired bootstrap test."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.io.files import LARGEST, sha256
from utils.results.read import plain
from utils.runs import Run
from utils.text import aligned

SPLIT = "test"


def compare_runs(first: str | Path, second: str | Path) -> str:
    """A text table: each score of both runs, first minus second with its 95 % interval, and the p value.

    Raises:
        UserError: one is no run or has no predictions, or their references differ.
    """
    from utils.data import metrics_of
    from utils.metrics import applicable, main_scores, metrics
    from utils.metrics.scoring.bootstrap import SAMPLES, compare
    from utils.metrics.scoring.reader import read_run

    runs = [Run(Path(first)), Run(Path(second))]
    dataset, _ = (run.record().get("dataset") for run in runs)  # raises where one is no run
    for run in runs:
        for path in (run.predictions(SPLIT), run.references(SPLIT)):
            if not path.exists():
                raise UserError(f"--compare: {plain(str(path))} is missing: run eval.py on this run first")
    if len({sha256(run.references(SPLIT), LARGEST) for run in runs}) > 1:
        raise UserError(
            "--compare: the two runs have different references, so no paired test of them is possible: "
            "evaluate both on the same data and with the same --limit"
        )
    one, two = (read_run(run, SPLIT) for run in runs)
    known = metrics()
    names = [name for name in applicable(one.sources, main_scores(metrics_of(dataset))) if known[name].additive]
    found = compare(one.predictions, two.predictions, one.references, one.sources, names)
    lines = [
        f"A: {plain(str(first))}",
        f"B: {plain(str(second))}",
        f"{len(one.predictions)} items, paired bootstrap over {SAMPLES} drawn test sets, two-sided",
        "",
    ]
    rows = [["", "A", "B", "A - B", "95 % interval", "p"]]
    for name, row in found.items():
        digits = f".{known[name].decimals}f"
        numbers = [f"{row.first.score:{digits}}", f"{row.second.score:{digits}}", f"{row.difference:+{digits}}"]
        rows.append([name, *numbers, f"[{row.low:+{digits}}, {row.high:+{digits}}]", f"{row.p_value:.3f}"])
    return "\n".join([*lines, *aligned(rows, right=range(1, 6))])
