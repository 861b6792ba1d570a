"""Reads the results of runs and checks which of them can be used.

Scores can be used if they belong to the run's current files: scores.json has hashes of the predictions and references
that were scored. Results that fail a check are left out of ``evaluation`` and ``scores``, and ``problems`` says why.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.data import SPLITS
from utils.errors import UserError, reason
from utils.io.files import sha256
from utils.io.yaml_files import dotted, read_yaml
from utils.results.methods import FULL_TRAINING, UNTRAINED
from utils.runs import Run, find_runs, finite
from utils.runs.provenance import hardware_of
from utils.runs.run import ADAPTER, SUMMARY, checkpoint_hash
from utils.text import cut, printable_line

SPLIT = "test"
FOLDER = ("/", ".", "~")  # how the name of a local model begins


@dataclass(frozen=True)
class Omission:
    """A run that the table leaves out, completely or in part, and the reason."""

    run: Run
    reason: str


@dataclass(frozen=True)
class Result:
    """The files of one run. ``settings`` is config.yaml with dotted keys. Missing parts are empty."""

    run: Run
    record: dict[str, Any]
    settings: dict[str, Any]
    evaluation: dict[str, Any]
    scores: dict[str, Any]
    problems: tuple[str, ...]
    inputs: dict[str, str] = field(default_factory=dict)  # the digest of each by name, see utils.runs.inputs
    base_files: str | None = None  # the beginning of a digest of the base model's files, which tells weights apart

    @property
    def finished(self) -> bool:
        return self.record["status"] == "finished"

    @property
    def trial(self) -> bool:
        """Whether it is a trial of a search, which shows only how its settings were chosen."""
        return self.settings.get("output.search") is True

    @property
    def dataset(self) -> str:
        return printable_line(self.record.get("dataset") or self.settings.get("dataset.name") or "unknown")

    @property
    def model(self) -> str:
        """The model's name. Of a local folder only the last part, because the rest belongs to one machine."""
        name = printable_line(self.record.get("model") or self.settings.get("model.name") or "unknown")
        return Path(name).name or name if name.startswith(FOLDER) else name

    @property
    def base(self) -> str | None:
        """The absolute folder of a local model, which tells models of one name apart. None for the hub's."""
        name = printable_line(self.settings.get("model.name") or "")
        return os.path.abspath(os.path.expanduser(name)) if name.startswith(FOLDER) else None

    @property
    def data(self) -> dict[str, str]:
        """The beginning of each split's digest under ``<split>_data``. Old records and untested splits have none."""
        found = {split: self.inputs.get(f"data/{split}") for split in SPLITS}
        return {f"{split}_data": printable_line(digest)[:8] for split, digest in found.items() if digest}

    @property
    def method(self) -> str:
        """A method's name, ``none`` (full fine-tuning), ``none-layers`` or ``untrained``."""
        name = printable_line(self.record.get("method") or "none")
        steps = self.number("progress", "total_steps")
        untrained = steps == 0 or self.settings.get("train.epochs") == 0
        return UNTRAINED if name in FULL_TRAINING and untrained else name

    @property
    def rank(self) -> int | float | None:
        """The rank as configured: an int is a rank, a float a ratio of min(m, n)."""
        rank = self.record.get("rank")
        return rank if isinstance(rank, (int, float)) and not isinstance(rank, bool) else None

    @property
    def bias(self) -> str | None:
        bias = self.record.get("bias")
        return None if bias is None else printable_line(bias)

    @property
    def seed(self) -> Any:
        return self.record.get("seed")

    @property
    def group(self) -> str:
        """A hash that is the same for runs that differ in the seed only. If it is not recorded, a hash of the path."""
        own_group = hashlib.sha256(os.fsencode(self.run.path)).hexdigest()
        return printable_line(self.record.get("group") or own_group)

    @property
    def limit(self) -> int | None:
        """The number of evaluated items; None for all items, also if the limit was above their number."""
        limit, count, every = (finite(self.evaluation.get(key)) for key in ("limit", "predictions", "all_items"))
        every = every if every is not None or count is None else count + 1  # old records lack the number of all items
        return None if limit is None or (every is not None and limit >= every) else int(limit)

    @property
    def decoding(self) -> dict[str, Any]:
        """The decoding settings of the predictions."""
        return decoding_of(self.evaluation)

    @property
    def precision(self) -> str:
        """In which precision the run computed, whatever was asked for: ``auto`` depends on the machine. Else empty."""
        parts = self.record.get("hardware")
        return printable_line(parts.get("precision") or "") if isinstance(parts, dict) else ""

    @property
    def hardware(self) -> str:
        """The device, and the settings that change what a run costs: times and memory compare on equal ones only."""
        return hardware_of(self.record, {key.removeprefix("train."): value for key, value in self.settings.items()})

    def number(self, *keys: str) -> float | None:
        """The finite number at the path ``keys`` of the record, or None."""
        value: Any = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return finite(value)


def decoding_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The decoding settings of an evaluation, without the batch size, which changes only the speed."""
    decoding = evaluation.get("decoding")
    return {k: v for k, v in decoding.items() if k != "batch_size"} if isinstance(decoding, dict) else {}


def read_results(roots: Iterable[str | Path]) -> tuple[list[Result], list[Omission]]:
    """Every readable run at or below ``roots`` in path order, and the runs that cannot be read.

    Raises UserError if a root does not exist or no run is found.
    """
    results: list[Result] = []
    unreadable: list[Omission] = []
    for run in find_runs(roots):
        try:
            result = _read(run)
            results.append(replace(result, inputs=_inputs(run, result.record)))
        except Exception as error:  # one bad run must not prevent the table of the others
            unreadable.append(Omission(run, printable_line(run.without_folder(reason(error)))))
    return _with_base_files(results), unreadable


def _inputs(run: Run, record: dict[str, Any]) -> dict[str, str]:
    """The run's inputs. Committed records of before inputs.json have them in three fields of run.json."""
    found = run.inputs()
    for field_name, kind in (("data_sha256", "data"), ("base_sha256", "model")):
        digests = record.get(field_name)
        found |= {f"{kind}/{name}": value for name, value in digests.items()} if isinstance(digests, dict) else {}
    return found | ({ADAPTER: record["adapter_sha256"]} if record.get("adapter_sha256") else {})


def _base_files(result: Result) -> dict[str, str]:
    return {name: digest for name, digest in result.inputs.items() if name.startswith("model/")}


def _with_base_files(results: list[Result]) -> list[Result]:
    """The results with ``base_files``, of those files that every record of their base model has.

    The others do not count, because a cache of the hub may have more files or fewer. Old records have none.
    """
    recorded: dict[tuple[str, str | None], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if files := _base_files(result):
            recorded[result.model, result.base].append(files)
    shared = {key: sorted(set.intersection(*map(set, every))) for key, every in recorded.items()}
    named = []
    for result in results:
        files, names = _base_files(result), shared.get((result.model, result.base))
        text = json.dumps([[name, files[name]] for name in names], default=str) if files and names else None
        digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()[:8]
        named.append(replace(result, base_files=digest))
    return named


def _read(run: Run) -> Result:
    record = run.record()
    problems: list[str] = []
    settings = _settings(run, problems)
    if record["status"] != "finished":
        return Result(run, record, settings, {}, {}, (_unfinished(record),))
    if not record.get("group"):
        problems.append("its record has no 'group', so it is not averaged with other seeds")
    evaluation = _part(run, run.evaluation, problems)
    scores = _part(run, run.scores, problems)
    if evaluation and (earlier := of_earlier_checkpoint(run, evaluation)):
        return Result(run, record, settings, {}, {}, (*problems, earlier))
    if evaluation is None:
        problems.append("not evaluated (eval.py)")
    if scores is None:
        problems.append("not scored (eval.sh)")
    elif stale := _stale(run, evaluation or {}, scores):
        problems.append(f"{stale}: scores not counted (run eval.py and eval.sh again)")
        scores = None
    return Result(run, record, settings, evaluation or {}, scores or {}, tuple(problems))


def _settings(run: Run, problems: list[str]) -> dict[str, Any]:
    try:
        return dotted(read_yaml(run.config_file))
    except (UserError, OSError) as error:
        problems.append(f"{printable_line(run.without_folder(reason(error)))}: its settings are not known")
        return {}


def _part(run: Run, read: Callable[[str], dict[str, Any] | None], problems: list[str]) -> dict[str, Any] | None:
    try:
        return read(SPLIT)
    except UserError as error:
        problems.append(printable_line(run.without_folder(reason(error))))
        return None


def of_earlier_checkpoint(run: Run, evaluation: dict[str, Any]) -> str | None:
    """That an evaluation is not of the run's best checkpoint, or None, as for a record without its weights."""
    evaluated = evaluation.get("checkpoint_sha256")
    if evaluated is None or not (run.best / SUMMARY).is_file() or checkpoint_hash(run.best) == evaluated:
        return None
    return f"{run.eval_file.name} is of another checkpoint: its test results are not counted (run eval.py again)"


def _stale(run: Run, evaluation: dict[str, Any], scores: dict[str, Any]) -> str | None:
    """Why scores are not of the texts that eval.py wrote, or None.

    Both records name one hash for each file, and the file has it. A committed record may lack all but the predictions.
    """
    if not evaluation:
        return f"without {run.eval_file.name} the extent of its scores is unknown"
    if not scores.get("predictions_sha256"):
        return f"{run.scores_file.name} does not say which predictions it belongs to"
    if not run.predictions(SPLIT).is_file():
        return f"{run.predictions(SPLIT).name} is missing, so its scores cannot be checked"
    for key, file in run.texts(SPLIT).items():
        hashes = {part[key] for part in (evaluation, scores) if part.get(key)}
        if len(hashes) > 1:
            return f"{run.scores_file.name} and {run.eval_file.name} are of different files {file.name}"
        if hashes and file.is_file() and sha256(file) not in hashes:
            return f"scores are stale: {file.name} has changed since"
    return None


def _unfinished(record: dict[str, Any]) -> str:
    progress = record.get("progress")
    progress = progress if isinstance(progress, dict) else {}
    at = f"at step {progress.get('step', '?')} of {progress.get('total_steps', '?')}" if progress else ""
    if record["status"] == "failed":
        error = printable_line(record.get("error") or "no reason recorded")
        return f"failed {at}".strip() + f": {cut(error, 200)}"
    return f"unfinished: {record['status']} {at}".strip() + " (the same command resumes it)"


def keep_one_limit(results: list[Result]) -> tuple[list[Result], str | None]:
    """Keep the test results of one limit only, because results on different items are not comparable.

    Evaluations on all items are kept. If there are none, those with the most common limit are kept, and the returned
    note names the limit.
    """
    limits = Counter(result.limit for result in results if result.evaluation)
    if not limits:
        return results, None
    kept = None if None in limits else max(limits, key=lambda limit: (limits[limit], limit))
    comparable = [
        result
        if not result.evaluation or result.limit == kept
        else replace(
            result,
            evaluation={},
            scores={},
            problems=(
                *result.problems,
                f"evaluated on the first {result.limit} items only: its test results are not comparable",
            ),
        )
        for result in results
    ]
    return (
        comparable,
        None if kept is None else f"Test results are of the first {kept} items only (eval.py --limit {kept}).",
    )
