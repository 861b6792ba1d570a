"""BLEU (Papineni et al. 2002) as the E2E challenge's edited mteval-v13a script computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

from utils.metrics import HIGHER, Metric, register
from utils.metrics.tokenizers.mteval import as_read, normalize


@register
class BLEU(Metric):
    """Corpus BLEU with up to 4-grams, the closest reference's length, on mteval-13a tokens with ASCII lower-cased.

    sacrebleu's own ``lowercase`` would lower-case every letter, which the script does not.
    """

    names = ("BLEU",)
    better = HIGHER

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        read = [
            [normalize(as_read(text, "reference", item)) for text in group] for item, group in enumerate(references, 1)
        ]
        super().__init__(read, sources)
        # The effective order changes a sentence's own score only, and that one is not used.
        self._bleu = SacreBLEU(tokenize="13a", effective_order=True)

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Matches of 1- to 4-grams, n-grams of the prediction, its length and the closest reference's: (items, 10)."""
        rows = np.zeros((len(predictions), 10))
        for item, (row, prediction, group) in enumerate(zip(rows, predictions, self.references, strict=True), 1):
            found = self._bleu.sentence_score(normalize(as_read(prediction, "prediction", item)), group)
            row[:] = [*found.counts, *found.totals, found.sys_len, found.ref_len]
        return rows

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        counts = [round(total) for total in totals]
        found = SacreBLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp")
        return {"BLEU": found.score / 100}
