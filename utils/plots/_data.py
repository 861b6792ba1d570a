"""The data of figures: rows of the table, curves over seeds, and one setting for each method and rank."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.results.aggregate import (
    DECODING,
    SEVERAL,
    Row,
    compute_statistics,
    differing,
    distinction,
    most_common,
    rows_of,
)
from utils.results.columns import OWN_LOSS, Column, all_columns, check_name, mixed_losses
from utils.results.counterparts import unlike
from utils.results.methods import UNTRAINED
from utils.results.read import Result, keep_one_limit, read_results
from utils.runs import finite
from utils.text import as_typed

SAMPLE_METHOD = "fnmodel.rosa.sample_method"


class NothingToDraw(Exception):
    """Raised if runs or values of a figure are missing. The text says which."""


@dataclass(frozen=True)
class Curve:
    """Mean over seeds at each x. ``std`` is None for one seed."""

    x: list[float]
    mean: list[float]
    std: list[float] | None
    seeds: int = 1


@dataclass
class PlotData:
    """The finished runs of one data set and one model."""

    dataset: str
    model: str
    rows: list[Row]
    metric: Column
    metric_given: bool = False  # False: ``metric`` is the default
    loss: str = "loss"  # the key of the loss that all these runs share
    notes: list[str] = field(default_factory=list)
    trials: list[Row] = field(default_factory=list)  # of searches; they are not in ``rows``
    asked: bool = True  # the user asked for this figure; False: one that says little is left out

    @property
    def methods(self) -> list[str]:
        """Every method in table order. All figures use this list, so that a method has the same colour in each."""
        return list(dict.fromkeys(row.first.method for row in self.rows))

    def trained(self) -> list[Row]:
        """One row per method and rank, sorted by method, then rank ratios, then integer ranks.

        Of several settings of ROSA, those that resample at random come first, because that is the published method;
        then those that have the metric, then those with ``SEVERAL`` seeds, then that with the lowest validation loss.
        A note names the chosen setting.
        """
        choices: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.first.method != UNTRAINED:
                choices[row.first.method, as_typed(row.first.rank)].append(row)
        picked = []
        for rows in choices.values():
            published = [row for row in rows if _as_published(row)] or rows
            best = self.preferred([row for row in published if self.metric.key in row.statistics] or published)
            picked.append(best)
            if len(rows) > 1:
                chosen = _differing_settings(best, rows)
                self.note(f"{self.model}: {best.name} has {len(rows)} settings; all figures but sampling show {chosen}")
        keys = sorted(set().union(*(unlike(picked[0], row) for row in picked)))
        if keys := [key for key in keys if not key.startswith("fnmodel.")]:
            self.note(f"{self.model}: methods and ranks were not trained alike: they differ in {', '.join(keys)} too")
        return sorted(picked, key=lambda row: (self.methods.index(row.first.method), rank_order(row.first.rank)))

    def having_metric(self, rows: list[Row]) -> list[Row]:
        """Those of ``rows`` that have the metric. A note names each run of the others, and what it lacks."""
        for row in rows:
            if self.metric.key not in row.statistics:
                for result in row.results:
                    why = "; ".join(result.problems) or f"no {self.metric.header}"
                    self.note(f"left out: {result.run.path}: {why}")
        return [row for row in rows if self.metric.key in row.statistics]

    def preferred(self, rows: list[Row]) -> Row:
        """The row with the lowest validation loss, of those with ``SEVERAL`` seeds if there are any."""
        return min(rows, key=lambda row: (-min(len(row.results), SEVERAL), _mean(row, f"val_{self.loss}")))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def curve(self, row: Row, split: str, key: str, bins: int | None = None) -> Curve | None:
        """``key`` of the logging points of ``split`` over epochs, at the points that all seeds share.

        A seed whose points end early is left out, if others have all of theirs. Notes name what is missing.

        Args:
            bins: None for single points. A number divides the longest run into this many equal intervals and takes
                the mean of the points in each. A point is then the mean since the previous point, like a training
                loss, so that its x is in the middle between the two.
        """
        read = [_points(result, split, key, self) for result in row.results]
        seeds = [points for points, whole in read if whole] or [points for points, _ in read if points]
        if not seeds:
            return None
        if bins:
            end = max(max(points) for points in seeds)
            seeds = [_centred(points) for points in seeds]
            if end > 0 and max(map(len, seeds)) > bins:
                seeds = [_binned(points, end, bins) for points in seeds]
        shared = sorted(set.intersection(*(set(points) for points in seeds)))
        values = [[points[x] for points in seeds] for x in shared]
        if not shared:
            return None
        std = [statistics.stdev(over_seeds) for over_seeds in values] if len(seeds) > 1 else None
        return Curve(shared, [statistics.fmean(over_seeds) for over_seeds in values], std, len(seeds))


def _as_published(row: Row) -> bool:
    sample, level = (row.settings.get(key) for key in (SAMPLE_METHOD, "fnmodel.rosa.level"))
    return sample in (None, "random") and level != "never"


def rank_order(rank: float | None) -> tuple[bool, float]:
    """A sort key: ratios before integer ranks, each ascending. 1.0 and 1 are different ranks."""
    return isinstance(rank, int), rank or 0


def _mean(row: Row, key: str) -> float:
    statistic = row.statistics.get(key)
    return statistic.mean if statistic else float("inf")


def _differing_settings(best: Row, rows: list[Row]) -> str:
    words = (f"{key}={as_typed(value)}" for key, value in distinction(best, rows).items())
    return ", ".join(words) or f"group {best.first.group[:8]}"


def _points(result: Result, split: str, key: str, data: PlotData) -> tuple[dict[float, float], bool]:
    """The value at each epoch, and whether the last one is of the run's last step. Notes say what is missing."""
    run, bad = result.run, list[str]()
    try:
        points = run.metrics(split, bad)
    except UserError as error:
        points, bad = [], [str(error)]
    by_x = {}
    for point in points:
        x, y = finite(point.get("epoch")), finite(point.get(key))
        if x is not None and y is not None:
            by_x[round(x, 6)] = y, finite(point.get("step")) or 0
    end = result.number("progress", "step") or 0
    whole = bool(by_x) and max(step for _, step in by_x.values()) >= end
    missing = [bad[0] + (f", and {len(bad) - 1} more lines" if len(bad) > 1 else "")] if bad else []
    if len(by_x) < len(points):
        missing.append(f"{len(points) - len(by_x)} of {len(points)} {split} points have no finite {key}")
    if not whole:
        missing.append(f"its {split} points end before step {end:,.0f}" if by_x else f"it has no {split} points")
    if missing:
        data.note(f"{run.path}: {run.without_folder('; '.join(missing))}")
    return {x: y for x, (y, _) in by_x.items()}, whole


def _centred(points: dict[float, float]) -> dict[float, float]:
    """The points with x moved to the middle between the previous point and this one."""
    return {round((before + x) / 2, 6): points[x] for before, x in itertools.pairwise([0.0, *sorted(points)])}


def _binned(points: dict[float, float], end: float, bins: int) -> dict[float, float]:
    within: dict[int, list[float]] = defaultdict(list)
    for x, y in points.items():
        within[min(int(x / end * bins), bins - 1)].append(y)
    return {(i + 0.5) * end / bins: statistics.fmean(values) for i, values in sorted(within.items())}


def load_plot_data(folder: str | Path, metric: str | None = None) -> list[PlotData]:
    """The finished runs at or below ``folder``, one ``PlotData`` per base model, sorted by its name.

    Raises:
        UserError: a missing folder, no runs, runs of several data sets, no finished run, an unknown metric.
    """
    results, unreadable = read_results([folder])
    datasets = sorted({result.dataset for result in results})
    if len(datasets) > 1:
        raise UserError(
            f"{folder} has runs of several data sets ({', '.join(datasets)}): give the folder of one data set with --fn"
        )
    finished, limit_note = keep_one_limit([result for result in results if result.finished])
    left_out = [f"{r.run.path}: {'; '.join(r.problems)}" for r in results if not r.finished]
    left_out += [f"{omission.run.path}: {omission.reason}" for omission in unreadable]
    if not finished:
        lines = "\n".join(f"  {line}" for line in left_out)
        raise UserError(f"no run under {folder} has finished, so there is nothing to draw.\n{lines}")
    known = all_columns(finished)
    mixed = mixed_losses(finished)
    every, repeated = rows_of(finished)
    compute_statistics(every, known.values())
    rows, trials = ([row for row in every if row.first.trial == trial] for trial in (False, True))
    left_out += [f"{omission.run.path}: {omission.reason}" for omission in repeated]
    column = _metric(metric, known, rows, mixed)
    notes = [limit_note] if limit_note and not column.key.startswith("val") else []
    notes += [f"left out: {line}" for line in left_out]
    loss = "loss_target" if mixed else "loss"
    rows = _of_one_data(rows, column.split, notes)
    models = {row.base_model: row for row in [*rows, *trials]}
    if column.scored:
        notes += _different_decodings(rows, column)
    return [
        PlotData(
            datasets[0],
            _model_name(models[model], models.values()),
            [row for row in rows if row.base_model == model],
            column,
            metric is not None,
            loss,
            notes if i == 0 else [],
            [row for row in trials if row.base_model == model],
        )
        for i, model in enumerate(sorted(models))
    ]


def _different_decodings(rows: list[Row], column: Column) -> Iterator[str]:
    """A note for each setting of decoding in which rows of one base model differ."""
    for model in dict.fromkeys(row.base_model for row in rows):
        own = [row for row in rows if row.base_model == model and column.key in row.statistics]
        for key in differing(own):
            if key.startswith(DECODING):
                values = dict.fromkeys(as_typed(row.settings[key]) for row in own if key in row.settings)
                name = _model_name(own[0], {row.base_model: row for row in rows}.values())
                yield (
                    f"{name}: the texts were generated with {key[len(DECODING) :]} {' and '.join(values)}: their "
                    f"{column.header} is not comparable"
                )


def _model_name(row: Row, rows: Iterable[Row]) -> str:
    """The name of a row's base model, with its folder and the digest of its files if others have that name."""
    if sum(other.first.model == row.first.model for other in rows) == 1:
        return row.first.model
    own = [row.settings[key] for key in ("base", "base_files") if key in row.settings]
    return f"{row.first.model} ({', '.join(own)})"


def _of_one_data(rows: list[Row], split: str, notes: list[str]) -> list[Row]:
    """The rows whose validation data, and those of ``split``, are the most common ones of their model."""
    for name in dict.fromkeys(("validation", split)):
        key, kept = f"{name}_data", []
        usual = {
            model: most_common(result.data for row in rows if row.base_model == model for result in row.results)
            for model in {row.base_model for row in rows}
        }
        for row in rows:
            if row.settings.get(key) in (None, usual[row.base_model].get(key)):
                kept.append(row)
            else:
                why = f"its {name} data are not those of most runs"
                notes += [f"left out: {result.run.path}: {why}" for result in row.results]
        rows = kept
    return rows


def _metric(name: str | None, known: dict[str, Column], rows: list[Row], mixed: bool) -> Column:
    if name is not None:
        check_name(name, known, "--metric")
        if mixed and name in OWN_LOSS:
            raise UserError(
                f"--metric: these runs were trained on different tokens, so their {name} is not comparable. "
                f"Use {name}_target or {name}_all."
            )
        return known[name]
    suffix = "_target" if mixed else ""
    evaluated = any(f"test_perplexity{suffix}" in row.statistics for row in rows)
    return known[("test_perplexity" if evaluated else "val_loss") + suffix]
