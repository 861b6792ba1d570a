"""From runs to rows: mean and standard deviation over seeds, what else differs, and differences to a baseline."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from utils.results.columns import Column
from utils.results.methods import UNTRAINED, method_order
from utils.results.read import Listed, Result, shown
from utils.runs.identity import LATER, WITHOUT_EFFECT

# What a row says in a column of its own.
SAID = ("seed", "dataset.name", "model.name", "fnmodel.name", "fnmodel.params.rank", "fnmodel.params.bias")
NOT_SETTINGS = (*SAID, "hydra", *WITHOUT_EFFECT)  # anything else that differs gets a column


@dataclass(frozen=True)
class Statistic:
    """Mean over seeds; ``std`` is the sample standard deviation (divisor n − 1), None for one seed."""

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
    settings: dict[str, Any]  # what changes a result, by dotted key
    statistics: dict[str, Statistic] = field(default_factory=dict)  # by column key; missing without any value
    baseline: Row | None = None

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def parameters(self) -> float | None:
        """Parameters that were trained: none of the untrained model's."""
        return 0 if self.first.method == UNTRAINED else self.first.number("parameters", "trainable")

    def delta(self, key: str) -> float | None:
        """This row's mean less the baseline's, None where either is missing or this row is the baseline."""
        if self.baseline is None or self.baseline is self:
            return None
        mine, theirs = self.statistics.get(key), self.baseline.statistics.get(key)
        return None if mine is None or theirs is None else mine.mean - theirs.mean

    def order(self) -> tuple[Any, ...]:
        method = self.first.method
        rank, settings = str(self.first.rank), str(self.settings)
        return (self.first.model, method_order(method), method, self.parameters or 0, rank, settings, self.first.group)


def settings_of(result: Result) -> dict[str, Any]:
    """The settings that can change this run's result, decoding included, by dotted key."""
    others = _blocks(result.settings) - {result.method}
    skipped = (*NOT_SETTINGS, *(f"fnmodel.{name}" for name in others))
    if result.method in ("none", UNTRAINED):
        skipped = (*skipped, "fnmodel")
    if result.method == UNTRAINED:
        skipped = (*skipped, "train")
    kept = {
        key: value
        for key, value in result.settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in skipped)
    }
    if result.settings:  # runs of before lack these; they tell measurements apart, the untrained model's too
        kept |= {key: result.settings.get(key, default) for key, default in LATER.items()}
    if "train.loss_on" in kept:  # null there is the data set's own choice, which the record names
        kept["train.loss_on"] = result.record.get("loss_on") or kept["train.loss_on"]
    return kept | {f"decoding.{key}": value for key, value in result.decoding.items()}


def _blocks(settings: dict[str, Any]) -> set[str]:
    """Names of the methods' own nodes, fnmodel.<method>.*."""
    return {key.split(".")[1] for key in settings if key.startswith("fnmodel.") and key.count(".") > 1} - {"params"}


def rows_of(results: Iterable[Result]) -> tuple[list[Row], list[Listed]]:
    """Finished runs by group, one run per seed, in table order; and the runs that would count a seed twice.

    Runs of one group whose predictions were decoded differently are different rows. A run without an
    evaluation goes with the group's most common decoding, as its training does not depend on it.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.group].append(result)
    rows, repeated = [], []
    for group in groups.values():
        decodings = Counter(json.dumps(r.decoding, sort_keys=True, default=str) for r in group if r.decoding)
        usual = decodings.most_common(1)[0][0] if decodings else "{}"
        parts: dict[str, dict[Any, Result]] = defaultdict(dict)
        for result in sorted(group, key=_completeness, reverse=True):
            decoding = json.dumps(result.decoding, sort_keys=True, default=str) if result.decoding else usual
            seeds = parts[decoding]
            if result.seed is not None and result.seed in seeds:
                first = seeds[result.seed].run.path
                repeated.append(Listed(result.run, f"same settings and seed as {first}: counted once"))
            else:
                seeds[result.run.path if result.seed is None else result.seed] = result
        for seeds in parts.values():
            members = [seeds[seed] for seed in sorted(seeds, key=lambda seed: (str(type(seed)), seed))]
            rows.append(Row(members, settings_of(max(members, key=_completeness))))
    return sorted(rows, key=Row.order), repeated


def _completeness(result: Result) -> tuple[int, str]:
    return (bool(result.evaluation) + bool(result.scores), str(result.record.get("finished") or ""))


def fill(rows: list[Row], columns: Iterable[Column]) -> None:
    """Compute every column's statistic in every row.

    Time and memory only where something was trained. The untrained model is the same with every seed, so it has no
    deviation over them.
    """
    for column in columns:
        for row in rows:
            untrained = row.first.method == UNTRAINED
            if column.timing and untrained:
                continue
            values = [value for result in row.results if (value := column.value(result)) is not None]
            if statistic := Statistic.of(values):
                row.statistics[column.key] = replace(statistic, std=None) if untrained else statistic


def differing(rows: list[Row]) -> list[str]:
    """Keys of the settings that differ between rows for which they mean something, in order of appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    return [key for key in keys if len({shown(row.settings[key]) for row in rows if key in row.settings}) > 1]


def set_baselines(rows: list[Row], method: str) -> None:
    """Give each row the baseline it is compared with: same model, that method, and no rank or the row's own; among
    several the one that shares most settings, then the lowest validation loss. Other rows get none."""
    for row in rows:
        candidates = [
            other
            for other in rows
            if (other.first.method, other.first.model) == (method, row.first.model)
            and (other.first.rank is None or shown(other.first.rank) == shown(row.first.rank))
        ]
        row.baseline = min(candidates, key=lambda other: _distance(row, other), default=None)


def _distance(row: Row, other: Row) -> tuple[Any, ...]:
    common = row.settings.keys() & other.settings.keys()
    differences = sum(shown(row.settings[key]) != shown(other.settings[key]) for key in common)
    loss = other.statistics.get("val_loss")
    return (row is not other, differences, loss.mean if loss else float("inf"), other.order())


def best_rows(rows: list[Row], column: Column) -> set[int]:
    """Indices of the trained rows that are best in ``column`` as printed; empty where all are, as one alone is."""
    trained = [(i, row) for i, row in enumerate(rows) if row.first.method != UNTRAINED]
    means = {i: row.statistics[column.key].mean for i, row in trained if column.key in row.statistics}
    if column.better == 0 or not means:
        return set()
    best = max(means.values(), key=lambda mean: mean * column.better)
    equal = {i for i, mean in means.items() if column.text(mean) == column.text(best)}
    return equal if len(equal) < len(means) else set()
