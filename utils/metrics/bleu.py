"""BLEU (Papineni et al. 2002) as the E2E challenge's edited mteval-v13a script computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

from utils.metrics import Metric, register
from utils.metrics.text.mteval import lower_ascii


@register
class BLEU(Metric):
    """Corpus BLEU with up to 4-grams, the closest reference's length, on mteval-13a tokens with ASCII lower-cased.

    sacrebleu's own ``lowercase`` would lower-case every letter, which the script does not.
    """

    names = ("BLEU",)

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__([[lower_ascii(text) for text in group] for group in references], sources)
        # The effective order changes a sentence's own score only, and that one is not used.
        self._bleu = SacreBLEU(tokenize="13a", effective_order=True)

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Matches of 1- to 4-grams, n-grams of the prediction, its length and the closest reference's: (items, 10)."""
        rows = np.zeros((len(predictions), 10))
        for row, prediction, group in zip(rows, predictions, self.references, strict=True):
            found = self._bleu.sentence_score(lower_ascii(prediction), group)
            row[:] = [*found.counts, *found.totals, found.sys_len, found.ref_len]
        return rows

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        counts = [round(total) for total in totals]
        found = SacreBLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp")
        return {"BLEU": found.score / 100}
