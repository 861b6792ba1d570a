"""Slot error rate on E2E, after Dušek, Howcroft and Rieser (2019), "Semantic Noise Matters"."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError
from utils.metrics import LOWER, Metric, register
from utils.metrics.slots.meaning import parse
from utils.metrics.slots.mentions import compare


@register
class SlotErrorRate(Metric):
    """Missing, added and wrong slots of all texts, divided by the slots of all meaning representations.

    SER is the sum of the three rates. Patterns find the slots and miss some human wordings, so that the rate of
    human references is well above 0. Compare systems with one another and with the references.
    """

    names = ("SER", "SER_missing", "SER_added", "SER_wrong")
    labels = ("slot error",)
    better = LOWER
    note = "slot error: missing, added and wrong slots over all slots of the inputs."

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        super().__init__(references, sources)
        self._meanings = [parse(source) for source in sources or ()]
        if not self._meanings or None in self._meanings:
            raise UserError("the slot error rate needs E2E meaning representations as sources: name[...], food[...]")

    @classmethod
    def applies(cls, sources: Sequence[str] | None) -> bool:
        failing = [source for source in sources or () if parse(source) is None]
        if failing and sources and len(failing) < len(sources) / 2:
            warnings.warn(
                f"no slot error rate: {len(failing)} of {len(sources)} sources are no meaning representations, the "
                f"first is {failing[0][:100]!r}",
                stacklevel=2,
            )
        return bool(sources) and not failing

    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Missing, added and wrong slots, and slots of the meaning representation: (items, 4)."""
        rows = []
        for meaning, text in zip(self._meanings, predictions, strict=True):
            assert meaning is not None
            errors = compare(meaning, text)
            rows.append([len(errors.missing), len(errors.added), len(errors.wrong), len(meaning)])
        return np.array(rows, dtype=np.float64)

    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        missing, added, wrong = (float(total / totals[3]) for total in totals[:3])
        return {"SER": missing + added + wrong, "SER_missing": missing, "SER_added": added, "SER_wrong": wrong}
