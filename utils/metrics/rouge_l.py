"""ROUGE_L (Lin 2004) as the COCO caption code computes it, on PTB tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register
from utils.metrics.tokenizers.ptb import tokenize_groups, tokenize_lines

BETA = 1.2  # weight of recall against precision in the F-measure


def common_subsequence(first: Sequence[str], masks: dict[str, int], size: int) -> int:
    """Length of the longest common subsequence, by the bit-parallel algorithm of Crochemore et al. (2001).

    An integer has one bit per position of the second text. One addition computes a whole row of the usual table.

    Args:
        first: tokens of the first text.
        masks: for each token of the second text, the bits of its positions.
        size: number of tokens of the second text.
    """
    full = (1 << size) - 1
    row = full
    for token in first:
        matched = row & masks.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return size - row.bit_count()


def _tokens(line: str) -> list[str]:
    return line.split(" ")  # an empty text becomes one empty token, which matches that of another empty text


@register
class RougeL(Metric):
    """Mean over items of the F-measure. An item's precision and recall are the best ones over its references."""

    names = ("ROUGE_L",)
    labels = ("ROUGE-L",)
    better = HIGHER

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        self._groups = [[_tokens(line) for line in group] for group in tokenize_groups(references)]

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """The score of each item, and 1, so that the sums give the mean: (items, 2)."""
        lines = tokenize_lines(predictions)
        scores = [self._score_item(_tokens(line), group) for line, group in zip(lines, self._groups, strict=True)]
        return np.array([[score, 1.0] for score in scores])

    @staticmethod
    def _score_item(prediction: list[str], references: list[list[str]]) -> float:
        masks: dict[str, int] = {}
        for position, token in enumerate(prediction):
            masks[token] = masks.get(token, 0) | 1 << position
        common = [common_subsequence(reference, masks, len(prediction)) for reference in references]
        precision = max(common) / len(prediction)
        recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
        if precision == 0 or recall == 0:
            return 0.0
        return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {"ROUGE_L": float(totals[0] / totals[1])}
