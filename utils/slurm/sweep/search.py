"""A search for settings: what to try next and what is chosen, as a function of the losses known so far.

A search starts with every combination of the values in the sweep file. The best one is then compared with its
neighbours, one key at a time. A key with two or more numbers above 0, and none below, is widened: while the best value
is the lowest or the highest tried, the next one is added, at the ratio of the last two, unless train.py refuses it. A 0
among them is the lowest. With ``factor`` values are then added between the best and its neighbours, until their ratios
are at most ``factor``. Nothing is remembered: the same losses give the same steps again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io.yaml_files import dotted, read_yaml
from utils.results.aggregate import PRECISION, settings_of
from utils.results.read import Result
from utils.runs import Run, finite
from utils.slurm.ledger import noted_runs, unfit
from utils.slurm.sweep.quoting import override_word
from utils.text import as_typed

SEARCHED = "output.search"  # the key that marks the runs of a search
DIGITS = 3  # significant digits of added values
_ROUNDING = 1.01  # two values that were rounded to three digits have a ratio that is at most so much too large

Point = dict[str, Any]  # the value of each searched key
Allowed = Callable[[Point], bool]


@dataclass(frozen=True)
class Search:
    """A group's ``search``.

    Attributes:
        keys: the values to start with, by key.
        seed: the seed of the trials.
        seeds: the seeds that the chosen settings are trained with.
        factor: the largest ratio of the chosen value to its neighbours; None: as the given values are.
        most: how many values a key gets at most below its lowest given value, and above its highest.
    """

    keys: dict[str, list[Any]]
    seed: int
    seeds: list[int]
    factor: float | None = None
    most: int = 4


@dataclass(frozen=True)
class Found:
    """What is known of one search. ``jobs`` and ``losses`` belong to ``points``.

    Attributes:
        points: the settings to try, as far as they are known.
        losses: the best validation loss of each; infinite if the training diverged or its settings are
            unfit, None if it has not ended.
        chosen: the best settings, once all points have ended and no further ones are needed.
        problem: why nothing can be chosen; empty if something can.
        name: the other settings that tell this search from its group's others.
        jobs: the ids of the points' jobs.
    """

    points: list[Point]
    losses: list[float | None]
    chosen: Point | None = None
    problem: str = ""
    name: str = ""
    jobs: tuple[str, ...] = ()

    @property
    def waits(self) -> list[str]:
        """The jobs without a result."""
        return [job for job, loss in zip(self.jobs, self.losses, strict=True) if loss is None]

    @property
    def without_loss(self) -> list[str]:
        """The jobs that can have no loss: their training diverged, or their settings do not fit model or data."""
        return [job for job, loss in zip(self.jobs, self.losses, strict=True) if loss == math.inf]

    def text(self) -> str:
        """What was chosen, or the problem; empty while the search goes on."""
        if self.chosen is None:
            return f"{self.name}: {self.problem}" if self.problem else ""
        loss = self.losses[self.points.index(self.chosen)]
        bad = f", {len(self.without_loss)} diverged or unfit" if self.without_loss else ""
        return f"{self.name}: chose {_words(self.chosen)}, validation loss {loss:.4f} ({len(self.points)} tried{bad})"


def explore(
    search: Search,
    loss: Callable[[Point], float | None],
    allowed: Allowed = lambda point: True,
    difference: Callable[[list[Point]], str] = lambda points: "",
) -> Found:
    """The points to try, and the choice if it can be made.

    Args:
        search: the settings of the search.
        loss: a point's best validation loss: infinite if it can have none, None if it is not known yet.
        allowed: whether a point beyond the given values can be trained; else the search ends before it.
        difference: why the losses of points cannot be compared; empty if they can.
    """
    points = [dict(zip(search.keys, values, strict=True)) for values in itertools.product(*search.keys.values())]
    losses: list[float | None] = []
    while True:
        losses += [loss(point) for point in points[len(losses) :]]
        known = [value for value in losses if value is not None]
        problem = difference(points)
        if problem or len(known) < len(points):
            return Found(points, losses, problem=problem)
        best = points[known.index(min(known))]  # the first of equals
        if min(known) == math.inf:
            return Found(points, losses, problem=f"all {len(points)} diverged or are unfit: give other values")
        added = list(_neighbours(search, points, best, allowed)) or list(_between(search, points, best))
        if not added:
            edges = [key for key in _numeric(search) if _beyond(points, best, key, allowed) is not None]
            problem = (
                f"the best, {_words(best)}, is at the edge after {search.most} further values of {', '.join(edges)}: "
                "give other values, or a higher search.most"
            )
            return Found(points, losses, None, problem) if edges else Found(points, losses, best)
        points += added


def _neighbours(search: Search, points: list[Point], best: Point, allowed: Allowed) -> Iterator[Point]:
    """The points beside ``best`` along each numeric key that were not tried; beyond an end of the tried values, too."""
    for key in _numeric(search):
        values = _values(points, key)
        place = values.index(best[key])
        near = values[max(0, place - 1) : place + 2]
        if _widened(search, values, key, place) < search.most:
            near += [value for value in [_beyond(points, best, key, allowed)] if value is not None]
        yield from (point for value in near if (point := {**best, key: value}) not in points)


def _between(search: Search, points: list[Point], best: Point) -> Iterator[Point]:
    """Points between ``best`` and its neighbours along each numeric key, where their ratio is above the factor."""
    for key in _numeric(search) if search.factor is not None else ():
        values = _values(points, key)
        place = values.index(best[key])
        for low, high in itertools.pairwise(values[max(0, place - 1) : place + 2]):
            if search.factor is None or low == 0 or high / low <= search.factor * _ROUNDING:
                continue
            parts = math.ceil(math.log(high / low) / math.log(search.factor) - 1e-9)
            between = (_like(low * (high / low) ** (part / parts), values) for part in range(1, parts))
            yield from ({**best, key: value} for value in dict.fromkeys(between) if value not in values)


def _numeric(search: Search) -> list[str]:
    """The keys that are widened: their values are numbers from 0 on, two or more of them above 0."""
    numbers = {key: list(map(finite, values)) for key, values in search.keys.items()}
    return [
        key
        for key, values in numbers.items()
        if all(value is not None and value >= 0 for value in values) and sum(map(bool, values)) > 1
    ]


def _values(points: list[Point], key: str) -> list[Any]:
    return sorted({point[key] for point in points})


def _widened(search: Search, values: list[Any], key: str, place: int) -> int:
    """How many values were added beyond the given ones, on the side where ``place`` is."""
    given = search.keys[key]
    return sum(value < min(given) for value in values) if place == 0 else sum(value > max(given) for value in values)


def _beyond(points: list[Point], best: Point, key: str, allowed: Allowed) -> Any:
    """The next value of ``key`` if that of ``best`` is the lowest or highest tried; None if it is not, or has none."""
    values = _values(points, key)
    if best[key] not in (values[0], values[-1]):
        return None
    last, previous = (values[0], values[1]) if best[key] == values[0] else (values[-1], values[-2])
    value = _like(last * (last / previous), values)
    return value if value not in (0, *values) and allowed({**best, key: value}) else None


def _like(value: float, values: list[Any]) -> Any:
    """``value`` rounded: to an integer if all ``values`` are integers, else to three significant digits."""
    return round(value) if all(isinstance(other, int) for other in values) else float(f"{value:.{DIGITS}g}")


def _words(point: Point) -> str:
    return " ".join(override_word(key, value) for key, value in point.items())


def recorded_loss(folder: Path, job: str) -> float | None:
    """The best validation loss of a job's run, infinite if it diverged or its settings are unfit; None if it has not
    ended, or ended otherwise.

    Args:
        folder: the sweep's state (ledger.py), where the job noted its run's directory.
        job: its id.
    """
    if unfit(folder, job):
        return math.inf
    _, record = _recorded(folder, job) or (None, {"status": None})
    if record["status"] == "failed" and record.get("diverged") is True:
        return math.inf
    best = record.get("best")
    return finite(best.get("loss")) if record["status"] == "finished" and isinstance(best, dict) else None


def _recorded(folder: Path, job: str) -> tuple[Run, dict[str, Any]] | None:
    """A job's run and its record; None if it has not started, or not written it yet."""
    try:
        run = Run(Path(noted_runs(folder, job)[-1]))
        return run, run.record()
    except (OSError, UserError, IndexError):
        return None


def incomparable(folder: Path, jobs: Iterable[str], keys: Collection[str]) -> str:
    """Why the losses of these jobs cannot be compared: as far as their runs recorded it, they differ in their data, in
    the files of the base model or in a setting that is not among ``keys``, the searched ones. Empty if they do not.
    """
    runs: dict[str, dict[str, list[str]]] = {}  # names by value, by what has it
    found = [one for job in jobs if (one := _recorded(folder, job))]
    for run, record in sorted(found, key=lambda one: str(one[1].get("started"))):
        for name, digest in run.inputs().items():
            if name != "data/test":  # which no trial reads
                runs.setdefault(name, {}).setdefault(str(digest), []).append(run.path.name)
        for key, value in _settings(run, record, keys).items():
            runs.setdefault(key, {}).setdefault(as_typed(value), []).append(run.path.name)
    for what, by_value in runs.items():
        if len(by_value) > 1:
            sides = "; then ".join(", ".join(names) for names in by_value.values())
            fresh = "set train.precision" if what == PRECISION else "give another output.path"
            return (
                f"its trials cannot be compared, since {what} changed: {sides}. Either {fresh}, "
                "or remove the folders of the old trials and call with --retry"
            )
    return ""


def _settings(run: Run, record: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The settings that change a run's result, but for ``keys``; none if one of these stands for several."""
    try:
        written = run.config_file.stat().st_mtime_ns
    except OSError:
        return {}
    searched = {key.lstrip("+") for key in keys}
    settings = _config(run.config_file, written)
    if not searched <= settings.keys():
        return {}
    result = Result(run, record, settings, {}, {}, (), run.inputs())
    kept = settings_of(result)
    if result.precision:  # in which it computed: auto depends on the machine
        kept[PRECISION] = result.precision
    return {key: value for key, value in kept.items() if key not in searched}


@functools.cache
def _config(file: Path, written: int) -> dict[str, Any]:
    """A config.yaml with dotted keys. ``written``, its time, tells versions apart: a search asks again and again."""
    try:
        return dotted(read_yaml(file))
    except (OSError, UserError):
        return {}
