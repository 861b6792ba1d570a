"""Rows from runs: mean and standard deviation over seeds, differing settings, and differences to a baseline."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rosa.settings import ALL_LINEAR
from utils.metrics import NEITHER
from utils.results.columns import Column
from utils.results.methods import UNTRAINED, method_label, method_order
from utils.results.read import SPLIT, Omission, Result
from utils.runs import finite
from utils.runs.identity import WITHOUT_EFFECT
from utils.runs.run import ADAPTER
from utils.text import as_typed, printable_line

# Settings that always have a column or a table of their own.
OWN_COLUMN = ("seed", "dataset.name", "model.name", "fnmodel.name", "fnmodel.params.rank", "fnmodel.params.bias")
TARGETS = "fnmodel.params.target_modules"
RATE = "train.lr"
PRECISION = "train.precision"  # of a row the one that its runs computed in, whatever was asked for
SEVERAL = 2  # seeds before the lowest loss decides: one alone may be low by luck
DECODING = "decoding."
VALIDATED = "train.validation_fraction"  # the one key of train that the untrained model reads
NOT_COMPARED = (*OWN_COLUMN, "hydra", *WITHOUT_EFFECT)  # any other setting that differs gets a column


@dataclass(frozen=True)
class Statistic:
    """Mean over n seeds. ``std`` is the sample standard deviation (divisor n − 1), None for one seed."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Statistic | None:
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))


@dataclass
class Row:
    """Runs that differ in the seed only."""

    results: list[Result]
    settings: dict[str, Any]  # settings that change a result, by dotted key
    statistics: dict[str, Statistic] = field(default_factory=dict)  # by column key; columns without a value are missing
    baseline: Row | None = None
    base_model: tuple[str, str, str] = ("", "", "")  # name, folder and digest: numbers of two are not compared

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def name(self) -> str:
        """Method and rank, as in "LoRA 8"."""
        rank = [] if self.first.rank is None else [as_typed(self.first.rank)]
        return " ".join([method_label(self.first.method), *rank])

    @property
    def parameters(self) -> float | None:
        """The number of trainable parameters, 0 for the untrained model."""
        return 0 if self.first.method == UNTRAINED else self.first.number("parameters", "trainable")

    @property
    def fraction(self) -> float | None:
        """The share of the validation items that each seed draws (train.validation_fraction); None if not known."""
        settings = self.first.settings
        return finite(settings.get("train.validation_fraction")) or 1.0 if settings else None

    def drawn(self, column: Column) -> bool:
        """Whether each seed has items of its own for the values of ``column``."""
        return column.split == "validation" and not column.timing and self.fraction not in (None, 1)

    def by_seed(self, column: Column) -> dict[str, float]:
        """The value of each seed that has one."""
        values = {str(result.seed): column.value(result) for result in self.results}
        return {seed: value for seed, value in values.items() if value is not None}

    @property
    def hardware(self) -> str:
        """That of all seeds."""
        return " / ".join(sorted({result.hardware for result in self.results}))

    def conditions(self, column: Column) -> dict[str, Any]:
        """What rows must share for their values of ``column`` to be compared: all but the method and its rate."""
        skipped = ["fnmodel.", RATE, "base", *([] if column.scored else [DECODING])]
        skipped += [] if column.split == SPLIT and not column.timing else [f"{SPLIT}_data"]
        kept = {key: as_typed(value) for key, value in self.settings.items() if not key.startswith(tuple(skipped))}
        return {"model": self.base_model, **kept, **({"hardware": self.hardware} if column.timing else {})}

    def delta(self, column: Column) -> float | None:
        """This row's mean minus the baseline's, of ``compared_seeds``.

        None if one is missing, if both are one row, or if they differ in a condition that both have.
        """
        if self.baseline is None or self.baseline is self or not column.quality:
            return None
        own, other = self.conditions(column), self.baseline.conditions(column)
        if any(own[key] != other[key] for key in own.keys() & other.keys()):
            return None
        rows, seeds = (self, self.baseline), self.compared_seeds(column)
        if seeds or any(row.drawn(column) for row in rows):
            mine, theirs = (Statistic.of([row.by_seed(column)[seed] for seed in seeds]) for row in rows)
        else:
            mine, theirs = (row.statistics.get(column.key) for row in rows)
        return None if mine is None or theirs is None else mine.mean - theirs.mean

    def compared_seeds(self, column: Column) -> list[str]:
        """The seeds that both this row and the baseline have: a difference is over these.

        Without one it is of the rows' means, if all seeds have the same items: so to the untrained model.
        """
        rows = [row for row in (self, self.baseline) if row is not None]
        if any(row.first.method == UNTRAINED and not row.drawn(column) for row in rows):
            return []
        return sorted(set.intersection(*(set(row.by_seed(column)) for row in rows)))

    def sort_key(self) -> tuple[Any, ...]:
        """Orders rows by model, method, trainable parameters and rank."""
        method = self.first.method
        rank, settings = str(self.first.rank), str(self.settings)
        return (self.base_model, method_order(method), method, self.parameters or 0, rank, settings, self.first.group)


def settings_of(result: Result) -> dict[str, Any]:
    """The settings that can change this run's result, with decoding, by dotted key."""
    others = _methods_with_settings(result.settings) - {result.method}
    skipped = (*NOT_COMPARED, *(f"fnmodel.{name}" for name in others))
    if result.method in ("none", UNTRAINED):
        skipped = (*skipped, "fnmodel")
    if result.method == UNTRAINED:
        skipped = (*skipped, "train")
    kept = {
        key: value
        for key, value in result.settings.items()
        if key == VALIDATED or not any(key == name or key.startswith(f"{name}.") for name in skipped)
    }
    if start := result.inputs.get(ADAPTER):  # what lies at its path may change
        kept["model.adapter"] = printable_line(start)[:8]
    if kept.get(TARGETS, "") is None:  # of an adapter; none without targets has no such key here
        kept[TARGETS] = ALL_LINEAR
    if "train.loss_on" in kept:  # null means the data set's default, which the record contains
        kept["train.loss_on"] = result.record.get("loss_on") or kept["train.loss_on"]
    return kept | {f"{DECODING}{key}": value for key, value in result.decoding.items()}


def _methods_with_settings(settings: dict[str, Any]) -> set[str]:
    """The names of the methods that have a node, fnmodel.<method>.*."""
    return {key.split(".")[1] for key in settings if key.startswith("fnmodel.") and key.count(".") > 1} - {"params"}


def rows_of(results: Iterable[Result]) -> tuple[list[Row], list[Omission]]:
    """Group finished runs into rows.

    Runs of one group with different decoding, data, base models or precisions are different rows, and trials of
    searches have rows of their own. A run without an evaluation belongs to the row with the group's most common
    decoding, because its training does not depend on it; so with digests of data and base models.

    Returns: the rows in table order, and the runs left out of them because another run has the same seed.
    """
    groups: dict[tuple[str, bool], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.group, result.trial].append(result)
    rows, repeated = [], []
    for group in groups.values():
        usual = most_common(_conditions(result) for result in group)
        parts: dict[str, dict[Any, Result]] = defaultdict(dict)
        for result in sorted(group, key=_completeness, reverse=True):
            seeds = parts[json.dumps(usual | _conditions(result), sort_keys=True)]
            if result.seed is not None and result.seed in seeds:
                first = seeds[result.seed].run.path
                repeated.append(Omission(result.run, f"same settings and seed as {first}: counted once"))
            else:
                seeds[result.run.path if result.seed is None else result.seed] = result
        for conditions, seeds in parts.items():
            members = [seeds[seed] for seed in sorted(seeds, key=lambda seed: (str(type(seed)), seed))]
            fullest = max(members, key=_completeness)
            base = {} if fullest.base is None else {"base": fullest.base}
            known = {key: value for key, value in json.loads(conditions).items() if key != "decoding"}
            rows.append(Row(members, settings_of(fullest) | known | base))
    _name_base_models(rows)
    return sorted(rows, key=Row.sort_key), repeated


def _conditions(result: Result) -> dict[str, str]:
    """What seeds of one row share beside their group, as far as it is known: decoding, data, base model, precision."""
    shared = {"decoding": json.dumps(result.decoding, sort_keys=True, default=str) if result.decoding else ""}
    shared |= {"base_files": result.base_files or "", **result.data}
    shared |= {} if result.method == UNTRAINED else {PRECISION: result.precision}
    return {key: value for key, value in shared.items() if value}


def most_common(found: Iterable[dict[str, str]]) -> dict[str, str]:
    """The most common value of each key."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for values in found:
        for key, value in values.items():
            counts[key][value] += 1
    return {key: count.most_common(1)[0][0] for key, count in counts.items()}


def _name_base_models(rows: list[Row]) -> None:
    """Set ``base_model``, and leave of each base model's folder what tells models of one name apart.

    Without a digest of its files, a model counts as the most common one of its name and folder.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    digests: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        name, folder, files = row.first.model, row.settings.get("base", ""), row.settings.get("base_files")
        digests[name, folder].update([files] if files else [])
        if folder:
            folders[name].append(folder)
    for row in rows:
        place = row.first.model, row.settings.get("base", "")
        usual = next((files for files, _ in digests[place].most_common(1)), "")
        row.base_model = (*place, row.settings.get("base_files", usual))
        if "base" in row.settings:
            where = os.path.relpath(row.settings["base"], os.path.commonpath(folders[row.first.model]))
            row.settings["base"] = "a folder" if where == os.curdir else where
        elif row.first.model in folders:
            row.settings["base"] = "by name"


def _completeness(result: Result) -> tuple[int, str]:
    return (bool(result.evaluation) + bool(result.scores), str(result.record.get("finished") or ""))


def compute_statistics(rows: list[Row], columns: Iterable[Column]) -> None:
    """Compute the statistic of each column in each row.

    The untrained model has no time and memory. It is the same for every seed, so it has no standard deviation, but for
    losses on a part of the validation data, which the seed chooses.
    """
    for column in columns:
        for row in rows:
            untrained = row.first.method == UNTRAINED
            if column.timing and untrained:
                continue
            values = [value for result in row.results if (value := column.value(result)) is not None]
            if statistic := Statistic.of(values):
                fixed = untrained and not row.drawn(column)
                row.statistics[column.key] = replace(statistic, std=None) if fixed else statistic


def differing(rows: list[Row]) -> list[str]:
    """Dotted keys whose values differ between rows, in order of appearance. Rows without the key are ignored."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    return [key for key in keys if len({as_typed(row.settings[key]) for row in rows if key in row.settings}) > 1]


def distinction(row: Row, rows: list[Row]) -> dict[str, Any]:
    """The settings by which ``row`` differs from those of ``rows`` that have its method and rank; biases last."""
    same = [other for other in rows if other.name == row.name]
    settings = {key: row.settings[key] for key in differing(same) if key in row.settings}
    return settings | ({"biases": row.first.bias} if len({other.first.bias for other in same} - {None}) > 1 else {})


def differing_conditions(rows: list[Row], column: Column) -> list[str]:
    """The conditions in which trained rows with a value in ``column`` differ."""
    found = [row.conditions(column) for row in rows if row.first.method != UNTRAINED and column.key in row.statistics]
    keys = dict.fromkeys(key for conditions in found for key in conditions)
    return [key for key in keys if len({conditions[key] for conditions in found if key in conditions}) > 1]


def best_rows(rows: list[Row], column: Column) -> set[int]:
    """Indices of the trained rows that are best in ``column`` among several with the same conditions.

    With one seed in each row, these are the rows with the best printed value. With more, it is the best row if its mean
    ± standard deviation does not overlap that of the next. A validation loss on items that each seed has for itself is
    compared among rows of the same seeds.
    """
    keys = differing_conditions(rows, column)
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.first.method != UNTRAINED and column.key in row.statistics and column.better != NEITHER:
            conditions, seeds = row.conditions(column), row.by_seed(column) if row.drawn(column) else ()
            groups[*(conditions.get(key) for key in keys), *sorted(seeds)].append(i)
    best: set[int] = set()
    for group in groups.values():
        values = {i: rows[i].statistics[column.key] for i in group}
        first, *others = sorted(group, key=lambda i: -values[i].mean * column.better)
        equal = {i for i in group if column.text(values[i].mean) == column.text(values[first].mean)}
        if all(value.std is None for value in values.values()):
            best |= equal if len(equal) < len(group) else set()
        elif others and not _overlap(values[first], values[others[0]]):
            best.add(first)
    return best


def _overlap(one: Statistic, other: Statistic) -> bool:
    """Whether mean ± standard deviation of the two overlap, as they may if a deviation is not known."""
    return None in (one.std, other.std) or abs(one.mean - other.mean) <= (one.std or 0) + (other.std or 0)
