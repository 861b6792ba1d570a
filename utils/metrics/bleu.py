"""BLEU (Papineni et al. 2002) as the E2E challenge's edited mteval-v13a script computes it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

from utils.metrics import HIGHER, Metric, register
from utils.metrics.tokenizers.mteval import normalize, read_as_sgml


@register
class BLEU(Metric):
    """Corpus BLEU with n-grams up to 4 and the length of the closest reference, on lower-cased mteval-13a tokens.

    The script lower-cases ASCII letters only, so sacrebleu's ``lowercase`` is not used.
    """

    names = ("BLEU",)
    better = HIGHER

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        read = [
            [normalize(read_as_sgml(text, "reference", item)) for text in group]
            for item, group in enumerate(references, 1)
        ]
        super().__init__(read, sources)
        # effective_order changes the scores of single sentences only, which are not used.
        self._bleu = SacreBLEU(tokenize="13a", effective_order=True)

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Matches of 1- to 4-grams, n-grams of the prediction, its length and the closest reference's: (items, 10)."""
        rows = np.zeros((len(predictions), 10))
        for item, (row, prediction, group) in enumerate(zip(rows, predictions, self.references, strict=True), 1):
            sentence = self._bleu.sentence_score(normalize(read_as_sgml(prediction, "prediction", item)), group)
            row[:] = [*sentence.counts, *sentence.totals, sentence.sys_len, sentence.ref_len]
        return rows

    def score(self, predictions: Sequence[str]) -> dict[str, float]:
        totals = self.statistics(predictions).sum(axis=0)
        if totals[7] == 0:
            warnings.warn("no text has four words: BLEU, which needs a 4-gram, is 0", stacklevel=2)
        return self.aggregate(totals)

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        counts = [round(total) for total in totals]
        bleu = SacreBLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp")
        return {"BLEU": bleu.score / 100}
