"""Which losses are on different parts of one data set, so that they are not comparable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from utils.results.aggregate import Row
from utils.results.read import SPLIT
from utils.text import as_typed


def different_parts(rows: Iterable[Row]) -> tuple[str, ...]:
    """The splits of which runs of one base model have different parts.

    Those are runs with another train.validation_fraction, and runs of one seed that counted different samples or tokens
    in their losses. Counts that some of them lack, as those of earlier versions do, are not compared.
    """
    rows = list(rows)
    fractions = {(row.base_model, row.fraction) for row in rows if row.fraction is not None}
    differ = ["validation"] if len(fractions) > len({model for model, _ in fractions}) else []
    counts: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for model, result in ((row.base_model, result) for row in rows for result in row.results):
        for split, of_split in (("validation", result.record), (SPLIT, result.evaluation)):
            data = of_split.get("data")
            part = data.get(split) if split != SPLIT and isinstance(data, dict) else data
            if isinstance(part, dict):
                counts[split, result.seed, model].append(part)
    differ += [
        split
        for (split, *_), parts in counts.items()
        for key in set.intersection(*map(set, parts))
        if len({as_typed(part[key]) for part in parts}) > 1
    ]
    return tuple(dict.fromkeys(differ))


def unequal_seeds(rows: Iterable[Row]) -> bool:
    """Whether rows of one base model have different seeds, of which each draws its own validation items."""
    seeds: dict[tuple[str, ...], set[frozenset[str]]] = defaultdict(set)
    for row in rows:
        if row.fraction not in (None, 1):
            seeds[row.base_model].add(frozenset(str(result.seed) for result in row.results))
    return any(len(sets) > 1 for sets in seeds.values())
