"""NIST (Doddington 2002) as the E2E challenge's edited mteval-v13a script computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register
from utils.metrics.tokenizers.mteval import count_ngrams, read_as_sgml, tokenize

ORDER = 5
# The penalty is 0.5 when the predictions have two thirds of the references' average length.
BETA = math.log(2) / math.log(1.5) ** 2

Ngram = tuple[str, ...]


@register
class NIST(Metric):
    """N-gram matches, weighted by the information of an n-gram's last word given the words before it.

    With counts c over all references, the weight of w1 … wn is log2(c(w1 … wn-1) / c(w1 … wn)), and that of a
    single word is log2(tokens / c(w)). The challenge changed the brevity penalty: its reference length is the average
    over all references, whatever their number per item.
    """

    names = ("NIST",)
    better = HIGHER

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        corpus: Counter[Ngram] = Counter()
        self._clips: list[dict[Ngram, int]] = []  # per item: the largest count of an n-gram in one reference
        self._lengths: list[tuple[int, int]] = []  # per item: tokens and number of its references
        for item, group in enumerate(references, 1):
            clip: dict[Ngram, int] = {}
            length = 0
            for text in group:
                tokens = tokenize(read_as_sgml(text, "reference", item))
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
        """Matched weight of each order, n-grams of each order, reference tokens, references, 1: (items, 13)."""
        rows = np.zeros((len(predictions), 2 * ORDER + 3))
        bounds = zip(self._clips, self._lengths, strict=True)
        for item, (row, prediction, (clip, length)) in enumerate(zip(rows, predictions, bounds, strict=True), 1):
            tokens = tokenize(read_as_sgml(prediction, "prediction", item))
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
