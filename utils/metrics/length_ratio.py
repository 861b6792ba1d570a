"""Length of a system's texts relative to the references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import Metric, register
from utils.metrics.tokenizers.mteval import tokenize


@register
class LengthRatio(Metric):
    """Tokens of the predictions divided by tokens of the references. An item counts the mean of its references."""

    names = ("length_ratio",)

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        self._lengths = [sum(len(tokenize(text)) for text in group) / len(group) for group in references]

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Tokens of the prediction and mean tokens of its references: (items, 2)."""
        lengths = [len(tokenize(prediction)) for prediction in predictions]
        return np.array(list(zip(lengths, self._lengths, strict=True)), dtype=np.float64)

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {"length_ratio": float(totals[0] / totals[1]) if totals[1] else 0.0}
