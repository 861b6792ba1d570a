"""The share of the gap between LoRA and full training that a method closes, with an interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils.results.aggregate import Row
from utils.results.columns import Column
from utils.results.counterparts import counterpart, unlike
from utils.results.methods import FULL_TRAINING, UNTRAINED
from utils.text import as_typed

REFERENCE = "lora"
VARIANTS = {"fnmodel.lora.scale": "standard", "fnmodel.lora.lr_ratio_b": 1.0}  # off these: rsLoRA, LoRA+
EQUAL = 0.01  # numbers of trainable parameters count as equal up to this share
LEAST_GAP = 1e-3  # nats per token: below it LoRA has learned all that full training has
SAMPLES = 10_000
QUANTILES = (0.025, 0.975)  # bounds of a 95 % interval
FEW_SEEDS = 3  # of so few, more than 2.5 % of the resamples draw one seed alone, so that single seeds are the bounds


@dataclass(frozen=True)
class Closed:
    """The share (LoRA − method) / (LoRA − ceiling) of a loss.

    Attributes:
        row: the method's row, ``lora`` that of LoRA with the same rank, ``ceiling`` that of full training.
        seeds: how many seeds the three have in common; their means over these count.
        share: None if LoRA is not above the ceiling by ``LEAST_GAP``, so that there is no gap.
        interval: 95 % percentile interval over resampled seeds; None for one seed, or if some resamples have no gap.
    """

    row: Row
    lora: Row
    ceiling: Row
    seeds: int
    share: float | None
    interval: tuple[float, float] | None


def compared(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each row of another adapter than plain LoRA with the row of plain LoRA that has the same rank."""
    plain, others = _plain_and_others(rows)
    return [(row, lora) for row in others if (lora := _comparable(row, plain, REFERENCE)) is not None]


def _plain_and_others(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of plain LoRA, and those of the other adapters."""
    plain = [row for row in rows if row.first.method == REFERENCE and not _is_variant(row)]
    return plain, [row for row in rows if row.first.method not in (UNTRAINED, *FULL_TRAINING) and row not in plain]


def _is_variant(row: Row) -> bool:
    return any(as_typed(row.settings.get(key, default)) != as_typed(default) for key, default in VARIANTS.items())


def _comparable(row: Row, rows: Sequence[Row], method: str) -> Row | None:
    """The row of ``method`` whose training differs from that of ``row`` in nothing but the method and what is ``free``.

    Adapters train other biases by default, so a LoRA with the same biases is preferred and not required.
    """

    equal = [other for other in rows if not unlike(row, other) - {*VARIANTS}]
    same = [other for other in equal if other.first.bias == row.first.bias]
    return counterpart(row, same, method) or counterpart(row, equal, method)


def without_share(rows: Sequence[Row], closed: Sequence[Closed]) -> list[tuple[Row, list[str]]]:
    """The adapters without a share although LoRA of their rank and full training are among ``rows``, each with the
    settings in which the nearest of the two differ from it; none if they only have no seed in common.
    """
    plain, others = _plain_and_others(rows)
    found = []
    for row in others:
        lora = counterpart(row, plain, REFERENCE)
        ceiling = next((other for name in FULL_TRAINING if (other := counterpart(row, rows, name))), None)
        if lora and ceiling and all(one.row is not row for one in closed):
            found.append((row, sorted((unlike(row, lora) | unlike(row, ceiling)) - {*VARIANTS})))
    return found


def unequal(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Those of ``compared`` whose numbers of trainable parameters differ by more than 1 %."""
    return [
        (row, lora)
        for row, lora in compared(rows)
        if row.parameters and lora.parameters and abs(row.parameters - lora.parameters) > EQUAL * lora.parameters
    ]


def closed_shares(rows: Sequence[Row], column: Column) -> list[Closed]:
    """The share of each row of ``compared`` that has a ceiling and a seed in common with it and with LoRA."""
    found = []
    for row, lora in compared(rows):
        ceiling = next((other for name in FULL_TRAINING if (other := _comparable(row, rows, name))), None)
        if ceiling is None:
            continue
        three = [part.by_seed(column) for part in (lora, row, ceiling)]
        seeds = sorted(set.intersection(*map(set, three)))
        if seeds:
            losses = [[values[seed] for seed in seeds] for values in three]
            found.append(Closed(row, lora, ceiling, len(seeds), *share_of_gap(*losses)))
    return found


def share_of_gap(
    lora: Sequence[float], method: Sequence[float], ceiling: Sequence[float]
) -> tuple[float | None, tuple[float, float] | None]:
    """The share of the gap of mean losses that ``method`` closes, and its bootstrap interval.

    A resample draws as many seeds as there are, with replacement, the same for all three, since runs of one seed share
    the order of their data.

    Args:
        lora, method, ceiling: a loss per seed, in the same order.
    """
    import numpy as np  # only for a table that has a gap: a command that prints its help must start fast

    closed, gaps = np.subtract(lora, method), np.subtract(lora, ceiling)
    if gaps.mean() < LEAST_GAP:
        return None, None
    share = float(closed.mean() / gaps.mean())
    drawn = np.random.default_rng(0).integers(len(gaps), size=(SAMPLES, len(gaps)))
    resampled = gaps[drawn].mean(axis=1)
    if len(gaps) < 2 or np.min(resampled) <= 0:
        return share, None
    low, high = np.quantile(closed[drawn].mean(axis=1) / resampled, QUANTILES)
    return share, (float(low), float(high))
