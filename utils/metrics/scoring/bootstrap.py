"""Bootstrap confidence intervals, and a paired test between two systems (Koehn 2004).

A resampled test set has as many items as the original one, drawn with replacement. Its scores are computed from the
statistics of its items, so that no text is processed twice. Values that a metric takes from all references (NIST's
weights, CIDEr's frequencies) are those of the original test set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.metrics import Metric, Scorer

SAMPLES = 1000
QUANTILES = (0.025, 0.975)  # bounds of a 95 % interval
BLOCK = 100  # samples per block; limits the memory


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % percentile interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same items.

    ``difference`` is first − second, with the interval from ``low`` to ``high``. ``p_value`` is two-sided: twice the
    share of resampled test sets on which the difference is zero or has the other sign; at most 1 and at least
    2 / (samples + 1).
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
    """Paired bootstrap test: both systems are scored on the same resampled test sets.

    Args:
        first: predictions of the first system, one per item.
        second: predictions of the second system.
        references: the reference texts of each item.
        sources: what each text was made from, for metrics that need it.
        names: the scores to compute; None for the official five.
        samples: number of resampled test sets.
        seed: the same seed gives the same result.

    Raises:
        UserError: different numbers of texts, or a metric that is not additive.
    """
    scorer = Scorer(references, sources, names)
    pairs = zip(_resample(scorer, first, samples, seed), _resample(scorer, second, samples, seed), strict=True)
    comparisons = {}
    for (name, score, resampled), (_, other, other_resampled) in pairs:
        differences = resampled - other_resampled
        low, high = np.quantile(differences, QUANTILES)
        comparisons[name] = Comparison(
            _interval(score, resampled),
            _interval(other, other_resampled),
            score - other,
            float(low),
            float(high),
            _p_value(score - other, differences),
        )
    return comparisons


def _p_value(difference: float, differences: np.ndarray) -> float:
    against = differences <= 0 if difference > 0 else differences >= 0
    return float(min(1.0, 2 * (np.count_nonzero(against) + 1) / (len(differences) + 1)))


def _interval(score: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, QUANTILES)
    return Interval(score, float(low), float(high))


def _resample(
    scorer: Scorer, predictions: Sequence[str], samples: int, seed: int
) -> Iterator[tuple[str, float, np.ndarray]]:
    """For each score: its name, its value, and its values on the resampled test sets, shape (samples,)."""
    if samples < 1:
        raise UserError(f"a bootstrap needs at least one sample, not {samples}")
    scorer.check(predictions)
    for metric in scorer.metrics:
        if not metric.additive:
            raise UserError(f"{metric.names[0]} is not a sum over items, so there is no bootstrap for it")
        statistics = metric.statistics(predictions)
        scores = metric.aggregate(statistics.sum(axis=0))
        resampled = _resampled_scores(metric, statistics, samples, seed)
        for name in metric.names:
            if name in scorer.names:
                yield name, float(scores[name]), np.array([values[name] for values in resampled])


def _resampled_scores(metric: Metric, statistics: np.ndarray, samples: int, seed: int) -> list[dict[str, float]]:
    generator = np.random.default_rng(seed)  # the same seed, so the same test sets, for each metric and system
    items = len(statistics)
    scores = []
    for start in range(0, samples, BLOCK):
        chosen = generator.integers(0, items, size=(min(BLOCK, samples - start), items))
        counts = np.zeros((len(chosen), items))
        np.add.at(counts, (np.arange(len(chosen))[:, None], chosen), 1)
        scores += [metric.aggregate(totals) for totals in counts @ statistics]
    return scores
