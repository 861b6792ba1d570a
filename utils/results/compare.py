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
    from utils.metrics import OFFICIAL, applicable
    from utils.metrics.scoring.bootstrap import SAMPLES, compare
    from utils.metrics.scoring.reader import read_items
    from utils.metrics.scoring.score_runs import read_sources

    runs = [Run(Path(first)), Run(Path(second))]
    for run in runs:
        run.record()  # raises where it is no run
        for path in (run.predictions(SPLIT), run.references(SPLIT)):
            if not path.exists():
                raise UserError(f"--compare: {plain(str(path))} is missing: run eval.py on this run first")
    if len({sha256(run.references(SPLIT), LARGEST) for run in runs}) > 1:
        raise UserError(
            "--compare: the two runs have different references, so no paired test of them is possible: "
            "evaluate both on the same data and with the same --limit"
        )
    one, two = (read_items(run.predictions(SPLIT), run.references(SPLIT)) for run in runs)
    sources = read_sources(runs[0].raw_predictions(SPLIT), len(one.predictions))
    names = [*OFFICIAL, *(["SER"] if "SER" in applicable(sources) else [])]
    found = compare(one.predictions, two.predictions, one.references, sources, names)
    lines = [
        f"A: {plain(str(first))}",
        f"B: {plain(str(second))}",
        f"{len(one.predictions)} items, paired bootstrap over {SAMPLES} drawn test sets, two-sided",
        "",
    ]
    rows = [["", "A", "B", "A - B", "95 % interval", "p"]]
    for name, row in found.items():
        scores = [f"{row.first.score:.4f}", f"{row.second.score:.4f}", f"{row.difference:+.4f}"]
        rows.append([name, *scores, f"[{row.low:+.4f}, {row.high:+.4f}]", f"{row.p_value:.3f}"])
    return "\n".join([*lines, *aligned(rows, right=range(1, 6))])
