"""CIDEr (Vedantam et al. 2015) as the COCO caption code computes it. The paper calls this variant CIDEr-D."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register
from utils.metrics.tokenizers.mteval import count_ngrams
from utils.metrics.tokenizers.ptb import tokenize_groups, tokenize_lines

ORDER = 4
SIGMA = 6.0  # width of the penalty on a difference in length
SCALE = 10.0

Ngram = tuple[str, ...]


class _Vector:
    """The tf-idf weights of a text's n-grams, their norm for each n, and the text's length."""

    def __init__(self, counts: list[Counter[Ngram]], frequencies: Counter[Ngram], log_items: float) -> None:
        self.weights = [
            {ngram: count * (log_items - math.log(max(1, frequencies[ngram]))) for ngram, count in part.items()}
            for part in counts
        ]
        self.norms = [math.sqrt(sum(weight * weight for weight in part.values())) for part in self.weights]
        self.length = counts[1].total()  # COCO's code counts bigrams as the length

    def similarity(self, reference: _Vector) -> float:
        """The mean over n of the cosine with clipped weights, times the length penalty."""
        total = 0.0
        for own, other, norm, other_norm in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
            total += product / (norm * other_norm) if norm and other_norm else product
        difference = self.length - reference.length
        return total / ORDER * math.exp(-(difference**2) / (2 * SIGMA**2))


@register
class CIDEr(Metric):
    """Mean over items of the mean similarity to the references.

    The idf of an n-gram is log(items / items whose references have it). In a test set of one item every idf, and so
    the score, is 0.
    """

    names = ("CIDEr",)
    better = HIGHER

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        counted = [[count_ngrams(line.split(), ORDER) for line in group] for group in tokenize_groups(references)]
        self._frequencies: Counter[Ngram] = Counter()
        for group in counted:
            self._frequencies.update({ngram for counts in group for part in counts for ngram in part})
        self._log_items = math.log(len(counted))
        self._vectors = [[self._vector(counts) for counts in group] for group in counted]

    def _vector(self, counts: list[Counter[Ngram]]) -> _Vector:
        return _Vector(counts, self._frequencies, self._log_items)

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """The score of each item, and 1, so that the sums give the mean: (items, 2)."""
        rows = []
        for line, group in zip(tokenize_lines(predictions), self._vectors, strict=True):
            vector = self._vector(count_ngrams(line.split(), ORDER))
            similarities = [vector.similarity(reference) for reference in group]
            rows.append([SCALE * sum(similarities) / len(group), 1.0])
        return np.array(rows)

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {"CIDEr": float(totals[0] / totals[1])}
