"""Lists the settings, data, versions, code and hardware that differ between two runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError, printable
from utils.io.yaml_files import dotted
from utils.results.aggregate import OWN_COLUMN, settings_of
from utils.results.read import Result, read_results
from utils.text import aligned, as_typed

# Keys of the record that are not compared: measurements, and values that the settings contain.
_NOT_COMPARED = (
    *("status", "error", "started", "finished", "progress", "timings", "best", "last"),
    *("group", "dataset", "model", "method", "rank", "seed", "loss_on", "starts"),
)
_OF_EVALUATION = ("limit", "precision", "references_sha256")
_HEX = re.compile(r"[0-9a-f]{40,}")


def diff_runs(first: str | Path, second: str | Path) -> str:
    """A text table of the dotted keys with different values, with the values of A and B.

    Its sections are settings that change a result, other settings, and recorded data, versions, code and hardware. A
    dash means that a run does not have the key.

    Raises:
        UserError: a folder is missing, has no run or several runs, or cannot be read.
    """
    runs = [_read(path) for path in (first, second)]
    settings = [{**run.settings, **settings_of(run)} for run in runs]
    effective = {*OWN_COLUMN, *settings_of(runs[0]), *settings_of(runs[1])}
    sections = {
        "settings that change the result": _differing(settings, lambda key: key in effective),
        "settings that do not": _differing(settings, lambda key: key not in effective),
        "recorded data, versions, code and hardware": _differing([_recorded(run) for run in runs], lambda key: True),
    }
    lines = [f"A: {printable(runs[0].run.path)}", f"B: {printable(runs[1].run.path)}"]
    table = iter(aligned([row for rows in sections.values() for row in rows]))
    for title, rows in sections.items():
        lines += ["", title if rows else f"{title}: no difference"]
        lines += [f"  {next(table)}" for _ in rows]
    return "\n".join(lines)


def _read(path: str | Path) -> Result:
    results, unreadable = read_results([path])
    if unreadable:
        raise UserError(f"--diff: {unreadable[0].reason}")
    if len(results) > 1:
        raise UserError(f"--diff: {path} has {len(results)} runs: give the folder of one run")
    if not results[0].settings:
        raise UserError(f"--diff: {path}: {'; '.join(results[0].problems)}")
    return results[0]


def _recorded(run: Result) -> dict[str, Any]:
    record = {key: value for key, value in run.record.items() if key not in _NOT_COMPARED}
    if earlier := _earlier_starts(run.record.get("starts")):
        record["earlier_starts"] = earlier
    evaluation = {key: run.evaluation[key] for key in _OF_EVALUATION if key in run.evaluation}
    return dotted(record) | {f"evaluation.{key}": value for key, value in evaluation.items()}


def _earlier_starts(starts: Any) -> list[dict[str, Any]]:
    """Code, versions and hardware of starts that had others than the last one, which has keys of its own."""
    starts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    kept = [{key: value for key, value in start.items() if key not in ("time", "step")} for start in starts]
    return [start for i, start in enumerate(kept) if start != kept[-1] and start not in kept[:i]]


def _differing(sides: list[dict[str, Any]], wanted: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """Rows of key, A and B, under a header, for the wanted keys whose printed values differ; [] if there are none."""
    one, two = sides
    texts = [
        (printable(key), *(_text(side[key]) if key in side else "–" for side in sides))
        for key in dict.fromkeys([*one, *two])
        if wanted(key) and (key not in one or key not in two or as_typed(one[key]) != as_typed(two[key]))
    ]
    return [("", "A", "B"), *texts] if texts else []


def _text(value: Any) -> str:
    """A value as a user would type it; hexadecimal digests are shortened."""
    return _HEX.sub(lambda digest: f"{digest[0][:12]}…", as_typed(value))
