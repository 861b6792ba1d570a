"""Scores run folders, for eval.sh: every run with predictions gets a scores.json."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.data import SPLITS, source_type
from utils.errors import UserError, plain_warnings, reason, run_cli
from utils.io.files import lock, remove_leftovers, sha256, write_json
from utils.io.yaml_files import dotted, read_yaml
from utils.metrics import Scorer, applicable, main_scores, metrics
from utils.metrics.scoring.reader import read_run
from utils.processes.signals import never, stop_on_signals
from utils.runs import Run, find_runs, finite
from utils.text import aligned


@dataclass
class Outcome:
    """The scores of one split of a run, or the reason why there are none."""

    run: Run
    split: str
    state: str  # scored, current, waiting (no predictions yet) or failed
    scores: dict[str, float] = field(default_factory=dict)
    items: int | None = None  # that were scored
    reason: str = ""


class RunScorer:
    """Scores runs one after another. Runs with the same references share a Scorer, which processes them once.

    Args:
        force: score again even if scores.json is current.
        check: called before each metric; an exception that it raises stops the scoring.
    """

    def __init__(self, force: bool = False, check: Callable[[], None] = never) -> None:
        self.force, self.check = force, check
        self._key: tuple[object, ...] | None = None
        self._scorer: Scorer | None = None

    def score(self, run: Run) -> list[Outcome]:
        """Score every split of ``run`` that has predictions. A failure is an outcome, not an exception.

        A trial of a search has none and no outcome: eval.py leaves it out too.
        """
        splits = [split for split in SPLITS if run.predictions(split).exists()]
        if not splits:
            return [] if _is_trial(run) else [_waiting(run)]
        outcomes = []
        for split in splits:
            try:
                with plain_warnings(f"{run.path}: "):
                    outcomes.append(self._score_split(run, split))
            except Exception as error:  # one run must not stop the others
                outcomes.append(Outcome(run, split, "failed", reason=run.without_folder(reason(error))))
        return outcomes

    def _score_split(self, run: Run, split: str) -> Outcome:
        items = read_run(run, split)
        count = len(items.predictions)
        names = applicable(items.sources, source_type(run.record().get("dataset")).metrics)
        hashes = {key: sha256(path) for key, path in run.texts(split).items() if path.exists()}
        saved = run.readable_parts(run.scores_file).get(split, {})
        if not self.force and _is_current(saved, names, hashes):
            return Outcome(run, split, "current", {name: saved[name] for name in names}, count)
        key = (hashes["references_sha256"], names, None if items.sources is None else tuple(items.sources))
        if self._scorer is None or self._key != key:
            self._key, self._scorer = key, Scorer(items.references, items.sources, names, self.check)
        scores = self._scorer.score(items.predictions)
        _write_scores(run, split, {**scores, "items": count, **hashes})
        return Outcome(run, split, "scored", scores, count)


def _write_scores(run: Run, split: str, entry: dict[str, Any]) -> None:
    """Add a split's scores to scores.json. The lock keeps splits that another process writes at the same time."""
    lock_file = run.lock_file("score")
    with lock(lock_file, "scored"):
        try:
            remove_leftovers(run.scores_file)
            write_json(run.scores_file, {**run.readable_parts(run.scores_file), split: entry})
        finally:
            lock_file.unlink(missing_ok=True)


def _is_current(saved: dict[str, Any], names: Sequence[str], hashes: dict[str, str]) -> bool:
    same = all(saved.get(key) == value for key, value in hashes.items())
    return same and all(finite(saved.get(name)) is not None for name in names)


def _is_trial(run: Run) -> bool:
    with contextlib.suppress(UserError, OSError, AttributeError):
        return dotted(read_yaml(run.config_file)).get("output.search") is True
    return False


def _waiting(run: Run) -> Outcome:
    status = run.record()["status"]
    todo = {
        "finished": f"python eval.py {run.path}",
        "running": "wait until training has finished, then run eval.py",
        "interrupted": "give the same train.py command again to resume it, then run eval.py",
        "failed": f"see {run.log_file}, train again, then run eval.py",
    }[status]
    return Outcome(run, SPLITS[-1], "waiting", reason=f"no predictions (status {status}): {todo}")


def table(outcomes: Sequence[Outcome]) -> str:
    """The scores as an aligned text table, one row per run and split. Names are relative to the common folder.

    If rows of a split are of different numbers of items, as after eval.py --limit, a column has these.
    """
    root = Path(os.path.commonpath([outcome.run.path.resolve().parent for outcome in outcomes]))
    sources = [source_type(outcome.run.record().get("dataset")) for outcome in outcomes]
    main = [name for source in sources for name in main_scores(source.metrics)]
    columns = [name for name in dict.fromkeys(main) if any(name in outcome.scores for outcome in outcomes)]
    decimals = [metrics()[name].decimals for name in columns]
    counts = {
        (outcome.run.record().get("dataset"), outcome.split, outcome.items) for outcome in outcomes if outcome.items
    }
    differ = len(counts) > len({count[:2] for count in counts})
    rows = [["run", "split", *columns, *(["items"] if differ else []), ""]]
    for outcome in outcomes:
        scores = [outcome.scores.get(name) for name in columns]
        values = ["-" if x is None else f"{x:.{digits}f}" for x, digits in zip(scores, decimals, strict=True)]
        values += ["-" if outcome.items is None else str(outcome.items)] if differ else []
        rows.append([str(outcome.run.path.resolve().relative_to(root)), outcome.split, *values, outcome.state])
    return "\n".join(aligned(rows, right=range(2, 2 + len(columns) + differ)))


def main(argv: Sequence[str] | None = None) -> int:
    """``eval.sh RUNS [RUNS ...]``: score all runs; 1 when a run could not be scored, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="eval.sh", description="Score every run that has predictions.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folder with runs, or a run itself")
    parser.add_argument("--force", action="store_true", help="score again even if scores.json is current")
    arguments = parser.parse_args(argv)
    runs = find_runs(arguments.runs)
    outcomes: list[Outcome] = []
    with stop_on_signals(unit="metric") as stop:
        scorer = RunScorer(arguments.force, stop.check)
        try:
            for run in runs:
                stop.check()
                try:
                    outcomes += scorer.score(run)
                except Exception as error:
                    outcomes.append(Outcome(run, "-", "failed", reason=run.without_folder(reason(error))))
        finally:
            _report(outcomes)
    states = {outcome.state for outcome in outcomes}
    if states <= {"waiting"}:
        raise UserError("no run has predictions yet. Run eval.py on the finished runs first.")
    return 1 if "failed" in states else 0


def _report(outcomes: Sequence[Outcome]) -> None:
    """Print the scores, and why other runs have no scores."""
    scored = [outcome for outcome in outcomes if outcome.scores]
    waiting = [outcome for outcome in outcomes if outcome.state == "waiting"]
    if scored:
        print(table(scored))
    if waiting:
        print("\nnot scored, because there are no predictions:")
        for outcome in waiting:
            print(f"  {outcome.run.path}: {outcome.reason}")
    for outcome in outcomes:
        if outcome.state == "failed":
            print(f"error: {outcome.run.path}: {outcome.reason}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
