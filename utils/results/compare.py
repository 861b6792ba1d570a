"""Compares the scores of two runs on the same test items with a paired bootstrap test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io.files import sha256
from utils.results.read import SPLIT, decoding_of, of_earlier_checkpoint
from utils.runs import Run
from utils.text import aligned, as_typed, printable_line


def compare_runs(first: str | Path, second: str | Path) -> str:
    """A text table: each score of both runs, their difference with its 95 % interval, and the p value.

    Raises:
        UserError: a folder is not a run or has no predictions, these are of another checkpoint than its best, or the
            references differ.
    """
    from utils.data import source_type
    from utils.metrics import HIGHER, LOWER, NEITHER, applicable, main_scores, metrics
    from utils.metrics.scoring.bootstrap import SAMPLES, compare
    from utils.metrics.scoring.reader import read_run

    runs = [Run(Path(first)), Run(Path(second))]
    dataset, _ = (run.record().get("dataset") for run in runs)  # raises if one is not a run
    for run in runs:
        for path in (run.predictions(SPLIT), run.references(SPLIT)):
            if not path.exists():
                raise UserError(f"--compare: {printable_line(str(path))} is missing: run eval.py on this run first")
    evaluations = [run.evaluation(SPLIT) or {} for run in runs]
    for run, evaluation in zip(runs, evaluations, strict=True):
        if earlier := of_earlier_checkpoint(run, evaluation):
            raise UserError(f"--compare: {printable_line(str(run.path))}: {earlier}")
    if len({sha256(run.references(SPLIT)) for run in runs}) > 1:
        raise UserError(
            "--compare: the two runs have different references, so that they cannot be compared item by item: "
            "evaluate both on the same data and with the same --limit"
        )
    one, two = (read_run(run, SPLIT) for run in runs)
    known, main = metrics(), main_scores(source_type(dataset).metrics)
    names = [name for name in applicable(one.sources, main) if known[name].additive]
    comparisons = compare(one.predictions, two.predictions, one.references, one.sources, names)
    lines = [
        f"A: {printable_line(str(first))}",
        f"B: {printable_line(str(second))}",
        *_decoded_differently(*map(decoding_of, evaluations)),
        f"{len(one.predictions)} items, paired bootstrap with {SAMPLES} resampled test sets, two-sided",
        "",
    ]
    rows = [["", "A", "B", "A - B", "95 % interval", "p", "better"]]
    for name, row in ((name, comparisons[name]) for name in names):
        digits = f".{known[name].decimals}f"
        numbers = [f"{row.first.score:{digits}}", f"{row.second.score:{digits}}", f"{row.difference:+{digits}}"]
        rows.append([name, *numbers, f"[{row.low:+{digits}}, {row.high:+{digits}}]", f"{row.p_value:.3f}"])
        rows[-1].append({LOWER: "lower", NEITHER: "", HIGHER: "higher"}[known[name].better])
    return "\n".join([*lines, *aligned(rows, right=range(1, 6))])


def _decoded_differently(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """A line that names the settings of decoding that differ, if there are any."""
    pairs = {key: (as_typed(one[key]), as_typed(two[key])) for key in one if key in two}
    texts = [f"{printable_line(key)} {a} for A, {b} for B" for key, (a, b) in pairs.items() if a != b]
    return [f"the texts were generated with different decoding: {'; '.join(texts)}"] if texts else []
