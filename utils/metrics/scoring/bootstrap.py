"""Bootstrap confidence intervals, and a paired test between two systems (Koehn 2004).

Test sets of the same size are drawn from the items with replacement. Each metric is scored on a drawn set from
its items' statistics, so that no text is scored twice; what a metric takes from all references (NIST's weights,
CIDEr's frequencies) stays that of the whole test set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.metrics import Metric, Scorer

SAMPLES = 1000
QUANTILES = (0.025, 0.975)  # bounds of the 95 % intervals
BLOCK = 100  # samples drawn at a time, which bounds the memory


@dataclass(frozen=True)
class Interval:
    """A score with its percentile interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same items.

    ``p_value`` is two-sided: twice the share of drawn test sets on which the difference has the other sign or is
    zero, at most 1, and never below 1 / (samples + 1). ``low`` and ``high`` bound the difference (first − second).
    """

    first: Interval
    second: Interval
    difference: float
    low: float
    high: float
    p_value: float


def compare(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
    names: Iterable[str] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Paired bootstrap test of two systems: both are scored on the same drawn test sets.

    Args:
        first: predictions of one system, one for each item.
        second: predictions of the other.
        references: the reference texts of each item.
        sources: what each text was made from, for metrics that need it.
        names: the scores wanted; None for the official five.
        samples: number of drawn test sets.
        seed: of the draws; the same seed gives the same result.

    Raises:
        UserError: counts that differ, or a metric that is no sum over items.
    """
    scorer = Scorer(references, sources, names)
    pairs = zip(_all_samples(scorer, first, samples, seed), _all_samples(scorer, second, samples, seed), strict=True)
    found = {}
    for (name, score, drawn), (_, other, other_drawn) in pairs:
        differences = drawn - other_drawn
        low, high = np.quantile(differences, QUANTILES)
        found[name] = Comparison(
            _interval(score, drawn),
            _interval(other, other_drawn),
            score - other,
            float(low),
            float(high),
            _p_value(score - other, differences),
        )
    return found


def _p_value(difference: float, differences: np.ndarray) -> float:
    against = differences <= 0 if difference > 0 else differences >= 0
    return float(min(1.0, 2 * (np.count_nonzero(against) + 1) / (len(differences) + 1)))


def _interval(score: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, QUANTILES)
    return Interval(score, float(low), float(high))


def _all_samples(
    scorer: Scorer, predictions: Sequence[str], samples: int, seed: int
) -> Iterator[tuple[str, float, np.ndarray]]:
    """For each score its name, its value and its values on the drawn test sets, shape (samples,)."""
    if samples < 1:
        raise UserError(f"a bootstrap needs at least one sample, not {samples}")
    scorer.check(predictions)
    for metric in scorer.metrics:
        if not metric.additive:
            raise UserError(f"{metric.names[0]} is no sum over items, so there is no bootstrap for it")
        statistics = metric.statistics(predictions)
        scores = metric.aggregate(statistics.sum(axis=0))
        drawn = _draw(metric, statistics, samples, seed)
        for name in metric.names:
            if name in scorer.names:
                yield name, float(scores[name]), np.array([values[name] for values in drawn])


def _draw(metric: Metric, statistics: np.ndarray, samples: int, seed: int) -> list[dict[str, float]]:
    generator = np.random.default_rng(seed)  # the same for each metric and system: all see the same test sets
    items = len(statistics)
    drawn = []
    for start in range(0, samples, BLOCK):
        choice = generator.integers(0, items, size=(min(BLOCK, samples - start), items))
        times = np.zeros((len(choice), items))
        np.add.at(times, (np.arange(len(choice))[:, None], choice), 1)
        drawn += [metric.aggregate(totals) for totals in times @ statistics]
    return drawn
