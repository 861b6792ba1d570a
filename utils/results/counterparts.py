"""Which row another is compared with, and in which settings of the training the two differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from utils.results.aggregate import DECODING, RATE, SEVERAL, Row
from utils.text import as_typed

FREE = (RATE, "test_data")  # each method has its own learning rate


def free(key: str) -> bool:
    """Whether a setting may differ between a row and its counterpart. Decoding changes no loss."""
    return key in FREE or key.startswith(DECODING)


def unlike(row: Row, other: Row) -> set[str]:
    """The settings that both rows have and that differ, but for what is ``free``."""
    common = row.settings.keys() & other.settings.keys()
    return {key for key in common if not free(key) and as_typed(row.settings[key]) != as_typed(other.settings[key])}


def set_baselines(rows: list[Row], method: str) -> None:
    """Set the baseline of each row to its ``counterpart`` of ``method``. A row without one has no baseline."""
    for row in rows:
        row.baseline = counterpart(row, rows, method)


def counterpart(row: Row, rows: Iterable[Row], method: str) -> Row | None:
    """The row of ``method`` to compare ``row`` with: of the same model, and with no rank or the same rank.

    Of several, the one that is ``unlike`` it in the fewest settings is used, then one that has ``SEVERAL`` seeds in
    common with it, then the one with the lowest validation loss.
    """
    candidates = [
        other
        for other in rows
        if (other.first.method, other.base_model) == (method, row.base_model)
        and (other.first.rank is None or as_typed(other.first.rank) == as_typed(row.first.rank))
    ]
    return min(candidates, key=lambda other: _distance(row, other), default=None)


def _distance(row: Row, other: Row) -> tuple[Any, ...]:
    seeds = {str(result.seed) for result in row.results} & {str(result.seed) for result in other.results}
    loss = other.statistics.get("val_loss")
    mean = loss.mean if loss else float("inf")
    return (row is not other, len(unlike(row, other)), -min(len(seeds), SEVERAL), mean, other.sort_key())
