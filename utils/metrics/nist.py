"""NIST (Doddington 2002) as the E2E challenge's edited mteval-v13a script computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register
from utils.metrics.tokenizers.mteval import as_read, count_ngrams, tokenize

ORDER = 5
# The penalty is one half where a system writes two thirds of the references' average length.
BETA = math.log(2) / math.log(1.5) ** 2

Ngram = tuple[str, ...]


@register
class NIST(Metric):
    """N-gram matches weighted by how much an n-gram's last word tells after its first ones.

    With counts c over all references, the weight of w1 … wn is log2(c(w1 … wn-1) / c(w1 … wn)), and that of a
    single word log2(tokens / c(w)). The challenge's edit: the length that short output is held against is the
    average over all references, however many an item has.
    """

    names = ("NIST",)
    better = HIGHER

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        corpus: Counter[Ngram] = Counter()
        self._clips: list[dict[Ngram, int]] = []  # for each item, the most any one reference has of an n-gram
        self._lengths: list[tuple[int, int]] = []  # for each item, tokens and number of its references
        for item, group in enumerate(references, 1):
            clip: dict[Ngram, int] = {}
            length = 0
            for text in group:
                tokens = tokenize(as_read(text, "reference", item))
                length += len(tokens)
                for counts in count_ngrams(tokens, ORDER):
                    corpus.update(counts)
                    for ngram, count in counts.items():
                        clip[ngram] = max(count, clip.get(ngram, 0))
            self._clips.append(clip)
            self._lengths.append((length, len(group)))
        corpus[()] = sum(length for length, _ in self._lengths)
        self._weights = {ngram: math.log2(corpus[ngram[:-1]] / count) for ngram, count in corpus.items() if ngram}

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Matched weight and n-grams of each order, reference tokens, references, items: (items, 13)."""
        rows = np.zeros((len(predictions), 2 * ORDER + 3))
        known = zip(self._clips, self._lengths, strict=True)
        for item, (row, prediction, (clip, length)) in enumerate(zip(rows, predictions, known, strict=True), 1):
            tokens = tokenize(as_read(prediction, "prediction", item))
            for n, counts in enumerate(count_ngrams(tokens, ORDER)):
                row[n] = math.fsum(
                    self._weights[ngram] * min(count, clip[ngram]) for ngram, count in counts.items() if ngram in clip
                )
                row[ORDER + n] = counts.total()
            row[2 * ORDER :] = [*length, 1]
        return rows

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        weights, ngrams = totals[:ORDER], totals[ORDER : 2 * ORDER]
        reference_tokens, references, items = totals[2 * ORDER :]
        if ngrams[0] == 0 or reference_tokens == 0:
            return {"NIST": 0.0}
        ratio = min(1.0, ngrams[0] * references / (reference_tokens * items))
        precision = sum(weight / count for weight, count in zip(weights, ngrams, strict=True) if count)
        return {"NIST": float(precision * math.exp(-BETA * math.log(ratio) ** 2))}
