"""Which losses are on different parts of one data set, so that they are not comparable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from utils.results.aggregate import Row
from utils.results.read import SPLIT
from utils.text import as_typed


def different_parts(rows: Iterable[Row]) -> tuple[str, ...]:
    """The splits of which runs of one seed and base model counted different samples or tokens in their losses.

    Counts that some of them lack, as those of earlier versions do, are not compared.
    """
    counts: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for model, result in ((row.base_model, result) for row in rows for result in row.results):
        for split, of_split in (("validation", result.record), (SPLIT, result.evaluation)):
            data = of_split.get("data")
            part = data.get(split) if split != SPLIT and isinstance(data, dict) else data
            if isinstance(part, dict):
                counts[split, result.seed, model].append(part)
    differ = [
        split
        for (split, *_), parts in counts.items()
        for key in set.intersection(*map(set, parts))
        if len({as_typed(part[key]) for part in parts}) > 1
    ]
    return tuple(dict.fromkeys(differ))
