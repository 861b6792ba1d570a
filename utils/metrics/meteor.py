"""METEOR 1.5 (Denkowski and Lavie 2014) for English, as the E2E challenge's scorer runs it (``-l en -norm``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register
from utils.metrics.meteor15.counts import Comparer, combine
from utils.metrics.meteor15.resources import load_tables
from utils.metrics.scoring.workers import Workers
from utils.metrics.tokenizers.ptb import tokenize_groups, tokenize_lines


@register
class METEOR(Metric):
    """METEOR over the whole test set: each prediction's statistics against its best reference, summed and combined.

    METEOR takes longer than all other scores, so worker processes share the items.
    """

    names = ("METEOR",)
    better = HIGHER
    background = True

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        load_tables()  # before the workers are forked, so that they share the tables
        self._workers = Workers(Comparer, tokenize_groups(references), Comparer.statistics)
        self._begun: Sequence[str] | None = None

    def begin(self, predictions: Sequence[str]) -> None:
        if self._begun is not None:  # nobody has read the results of the previous call
            self._workers.receive()
        self._workers.send(tokenize_lines(predictions))
        self._begun = predictions

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Lengths, function words, matches of each matcher, chunks and matched words: (items, 23)."""
        if self._begun is not predictions:
            self.begin(predictions)
        self._begun = None
        return np.array(self._workers.receive())

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {"METEOR": combine(totals.tolist())}
