"""METEOR 1.5 (Denkowski and Lavie 2014) for English, as the E2E challenge's scorer runs it (``-l en -norm``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register
from utils.metrics.meteor15.counts import Comparer, combine
from utils.metrics.meteor15.resources import load
from utils.metrics.scoring.workers import Workers
from utils.metrics.tokenizers.ptb import tokenize_groups, tokenize_lines


@register
class METEOR(Metric):
    """METEOR over the whole test set: statistics of each prediction's best reference, summed, then combined.

    It takes most of the time of all scores, and items do not depend on one another: worker processes share them.
    """

    names = ("METEOR",)
    better = HIGHER
    background = True

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        load()  # once, and not in each worker
        self._workers = Workers(Comparer, tokenize_groups(references), Comparer.statistics)
        self._begun: Sequence[str] | None = None

    def begin(self, predictions: Sequence[str]) -> None:
        if self._begun is not None:  # begun, and nobody asked
            self._workers.receive()
        self._workers.send(tokenize_lines(predictions))
        self._begun = predictions

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Lengths, function words, matches by matcher, chunks and matched words: (items, 23)."""
        if self._begun is not predictions:
            self.begin(predictions)
        self._begun = None
        return np.array(self._workers.receive())

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {"METEOR": combine(totals.tolist())}
