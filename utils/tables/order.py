"""Sort the rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from utils.errors import UserError
from utils.metrics import HIGHER
from utils.results.aggregate import Row
from utils.results.columns import Column, check_name
from utils.text import printable_line


def sort_rows(rows: list[Row], sort: str, known: dict[str, Column], settings: list[str]) -> list[Row]:
    """``rows`` by ``key``, ``key:asc`` or ``key:desc`` within each model. ``key`` alone puts the best first.

    Numbers come before texts; rows without a value are last. Raises UserError for an unknown key or direction.
    """
    key, _, direction = sort.partition(":")
    if direction not in ("", "asc", "desc"):
        raise UserError(f"--sort: {printable_line(sort)!r} does not end in :asc or :desc")
    values: dict[str, Callable[[Row], Any]] = {
        **{name: partial(_mean, key=name) for name in known},
        "method": lambda row: row.first.method,
        "rank": lambda row: row.first.rank,
        "n": lambda row: len(row.results),
        "parameters": lambda row: row.parameters,
        **{name: partial(_setting, key=name) for name in settings},
    }
    check_name(key, values, "--sort")
    value = values[key]
    highest_first = key in known and known[key].better == HIGHER
    descending = direction == "desc" or (not direction and highest_first)
    numbers = [row for row in rows if isinstance(value(row), (int, float))]
    strings = [row for row in rows if isinstance(value(row), str)]
    rest = [row for row in rows if not isinstance(value(row), (int, float, str))]
    ordered = sorted(numbers, key=value, reverse=descending) + sorted(strings, key=value, reverse=descending) + rest
    return sorted(ordered, key=lambda row: row.base_model)


def _setting(row: Row, key: str) -> Any:
    return row.settings.get(key)


def _mean(row: Row, key: str) -> float | None:
    return row.statistics[key].mean if key in row.statistics else None
