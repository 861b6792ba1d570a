"""Distinct-n (Li et al. 2016): the share of different n-grams in the output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import Metric, register
from utils.metrics.tokenizers.mteval import count_ngrams, tokenize

ORDERS = (1, 2)


@register
class Distinct(Metric):
    """Different n-grams divided by all n-grams, over all predictions together, on BLEU's tokens; 0 without n-grams."""

    names = ("distinct_1", "distinct_2")
    additive = False

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """For each order, n-grams that no earlier item has, and all n-grams: (items, 4)."""
        seen: list[set[tuple[str, ...]]] = [set() for _ in ORDERS]
        rows = np.zeros((len(predictions), 2 * len(ORDERS)))
        for row, prediction in zip(rows, predictions, strict=True):
            for at, counts in enumerate(count_ngrams(tokenize(prediction), len(ORDERS))):
                row[2 * at] = len(counts.keys() - seen[at])
                row[2 * at + 1] = counts.total()
                seen[at].update(counts)
        return rows

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {
            name: float(totals[2 * at] / totals[2 * at + 1]) if totals[2 * at + 1] else 0.0
            for at, name in enumerate(self.names)
        }
