"""Two runs side by side: which settings differ, and what else was not the same when they were made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError, printable
from utils.io.yaml_files import dotted
from utils.results.aggregate import SAID, settings_of
from utils.results.read import Result, read_results, shown
from utils.text import aligned

# Of a run's record: what was measured, and what the settings say already. The rest says how the run was made.
_NOT_COMPARED = (
    *("status", "error", "started", "finished", "progress", "timings", "best", "last", "skipped_updates"),
    *("group", "dataset", "model", "method", "rank", "seed", "loss_on"),
)
_OF_EVALUATION = ("limit", "precision", "references_sha256")
_HEX = re.compile(r"[0-9a-f]{40,}")


def diff_runs(first: str | Path, second: str | Path) -> str:
    """A text table of the dotted keys at which two runs differ, each with the value of A and of B.

    Settings that change a result come first, then those that do not, then what the records say of data, versions,
    code and hardware. A dash stands for a key that a run does not have.

    Raises:
        UserError: a folder is missing, holds no run or several, or cannot be read.
    """
    runs = [_read(path) for path in (first, second)]
    settings = [{**run.settings, **settings_of(run)} for run in runs]
    matters = {*SAID, *settings_of(runs[0]), *settings_of(runs[1])}
    sections = {
        "settings that change the result": _differing(settings, lambda key: key in matters),
        "settings that do not": _differing(settings, lambda key: key not in matters),
        "recorded data, versions, code and hardware": _differing([_made(run) for run in runs], lambda key: True),
    }
    lines = [f"A: {printable(runs[0].run.path)}", f"B: {printable(runs[1].run.path)}"]
    table = iter(aligned([row for found in sections.values() for row in found]))
    for title, found in sections.items():
        lines += ["", title if found else f"{title}: no difference"]
        lines += [f"  {next(table)}" for _ in found]
    return "\n".join(lines)


def _read(path: str | Path) -> Result:
    results, unreadable = read_results([path])
    if unreadable:
        raise UserError(f"--diff: {unreadable[0].reason}")
    if len(results) > 1:
        raise UserError(f"--diff: {path} holds {len(results)} runs: give the folder of one")
    if not results[0].settings:
        raise UserError(f"--diff: {path}: {'; '.join(results[0].problems)}")
    return results[0]


def _made(run: Result) -> dict[str, Any]:
    record = {key: value for key, value in run.record.items() if key not in _NOT_COMPARED}
    evaluation = {key: run.evaluation[key] for key in _OF_EVALUATION if key in run.evaluation}
    return dotted(record) | {f"evaluation.{key}": value for key, value in evaluation.items()}


def _differing(sides: list[dict[str, Any]], wanted: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """Key, A and B, for the wanted keys whose values differ as a reader would see them."""
    one, two = sides
    texts = [
        (printable(key), *(_text(side[key]) if key in side else "–" for side in sides))
        for key in dict.fromkeys([*one, *two])
        if wanted(key) and (key not in one or key not in two or shown(one[key]) != shown(two[key]))
    ]
    return [("", "A", "B"), *texts] if texts else []


def _text(value: Any) -> str:
    """A value as a reader would type it; of a digest its beginning."""
    return _HEX.sub(lambda found: f"{found[0][:12]}…", shown(value))
