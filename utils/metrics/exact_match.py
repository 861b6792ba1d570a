"""The share of texts that equal a reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics import HIGHER, Metric, register


@register
class ExactMatch(Metric):
    """Predictions that equal one of their references, as a share of all. Blanks at both ends do not count."""

    names = ("exact_match",)
    labels = ("exact match",)
    better = HIGHER
    on_request = True  # free text never equals its reference

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Whether each prediction equals a reference, and 1: (items, 2)."""
        equal = [
            prediction.strip() in {text.strip() for text in group}
            for prediction, group in zip(predictions, self.references, strict=True)
        ]
        return np.array([(float(one), 1.0) for one in equal], dtype=np.float64).reshape(-1, 2)

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        return {"exact_match": float(totals[0] / totals[1]) if totals[1] else 0.0}
