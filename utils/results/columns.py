"""The measured columns (losses, scores, timings): where each number comes from, and which a table shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from utils.data import source_type
from utils.errors import UserError
from utils.metrics import HIGHER, LOWER, NEITHER, main_scores, metrics
from utils.results.read import SPLIT, Result
from utils.runs import finite
from utils.text import printable_line, suggestions

LOSS_UNIT = "nats per token"


@dataclass(frozen=True)
class Column:
    """One measured quantity."""

    key: str
    header: str
    better: int  # LOWER, HIGHER or NEITHER
    decimals: int | None  # None: three significant digits
    value: Callable[[Result], float | None]
    timing: bool = False  # the value depends on the hardware
    unit: str = ""  # only if the header does not contain it
    scored: bool = False  # the value depends on references
    note: str = ""  # a sentence for the caption

    @property
    def heading(self) -> str:
        """The header with an arrow in the better direction."""
        return self.header + {LOWER: " ↓", NEITHER: "", HIGHER: " ↑"}[self.better]

    @property
    def split(self) -> str:
        """The split of the data that the column is about."""
        return SPLIT if self.scored or self.key.startswith(SPLIT) else "validation"

    @property
    def quality(self) -> bool:
        """Whether the column measures the model's quality, so that differences to a baseline are shown."""
        return self.better != NEITHER and not self.timing

    def text(self, number: float, sign: str = "", like: float | None = None) -> str:
        """``number`` as printed.

        Args:
            sign: "+" for differences.
            like: the mean of a deviation, which has the same number of decimals.
        """
        size = abs(number if like is None else like)
        adaptive = 0 if size >= 100 else 1 if size >= 10 else 2
        text = f"{number:{sign},.{adaptive if self.decimals is None else self.decimals}f}"
        return text.replace("-", "−") if text.strip("+-0.,") else text.lstrip("+-")  # no sign if it rounds to 0


def _record(*path: str) -> Callable[[Result], float | None]:
    return lambda result: result.number(*path)


def _evaluated(key: str) -> Callable[[Result], float | None]:
    return lambda result: finite(result.evaluation.get(key))


def _exponential_of(
    pick: Callable[[str], Callable[[Result], float | None]],
) -> Callable[[str], Callable[[Result], float | None]]:
    """The perplexity from the recorded loss, so that the two agree; as ``LossSum.metrics`` computes it."""

    def value(result: Result, name: str) -> float | None:
        loss = pick(name.replace("perplexity", "loss"))(result)
        return None if loss is None else math.exp(min(loss, 700.0))

    return lambda name: lambda result: value(result, name)


def _scored(name: str) -> Callable[[Result], float | None]:
    return lambda result: finite(result.scores.get(name))


def _loss_columns(key: str, header: str, better: int, decimals: int, source: str) -> list[Column]:
    """Three columns of a quantity: on the tokens of train.loss_on, on target tokens, and on all tokens.

    Args:
        source: ``best`` (validation, from the record) or ``evaluation`` (test).
    """
    pick = (lambda name: _record("best", name)) if source == "best" else _evaluated
    if key == "perplexity":
        pick = _exponential_of(pick)
    prefix = "val" if source == "best" else SPLIT
    unit = LOSS_UNIT if key == "loss" else ""
    return [
        Column(f"{prefix}_{key}{suffix}", header + words, better, decimals, pick(f"{key}{suffix}"), unit=unit)
        for suffix, words in (("", ""), ("_target", ", target"), ("_all", ", all"))
    ]


def stored_bits(result: Result) -> float | None:
    """How much of the information in the validation targets the best checkpoint has stored, in bits; at least 0.

    The targets' information (``DataSource.target_bits``) minus the loss on them. None if that information is not known,
    or if targets were cut, so that the loss is not on all of it.
    """
    bits, loss = source_type(result.dataset).target_bits, result.number("best", "loss_target")
    samples, tokens = (result.number("data", "validation", key) for key in ("samples", "target_tokens"))
    if bits is None or loss is None or samples is None or tokens is None or result.number("data", "validation", "cut"):
        return None
    return max(0.0, samples * bits - loss * tokens / math.log(2))


def training_seconds(result: Result) -> float | None:
    """The time of training with that of its resamples, which records have apart."""
    seconds = result.number("timings", "train_seconds")
    return None if seconds is None else seconds + (result.number("timings", "resample_seconds") or 0)


def _speed(key: str) -> Callable[[Result], float | None]:
    """What a record has per second of training alone, per second of ``training_seconds``."""

    def value(result: Result) -> float | None:
        alone, speed = result.number("timings", "train_seconds"), result.number("timings", key)
        seconds = training_seconds(result)
        if not speed:  # of no step
            return None
        return speed * alone / seconds if alone and seconds else speed

    return value


_STORED = Column(
    "stored_bits", "bits stored", HIGHER, 0, stored_bits,
    note="Bits stored: the information in the validation targets minus the loss on them, summed over pairs.",
)  # fmt: skip
_LOSSES: tuple[Column, ...] = (
    *_loss_columns("loss", "val loss", LOWER, 4, "best"),
    *_loss_columns("perplexity", "val ppl", LOWER, 3, "best"),
    *_loss_columns("loss", "test loss", LOWER, 4, "evaluation"),
    *_loss_columns("perplexity", "test ppl", LOWER, 3, "evaluation"),
    *_loss_columns("bits_per_token", "test bits/token", LOWER, 4, "evaluation")[1:],
    *_loss_columns("bits_per_char", "test bits/char", LOWER, 4, "evaluation")[1:],
)
_TIMINGS: tuple[Column, ...] = (
    Column("train_seconds", "train (s)", LOWER, None, training_seconds, timing=True),
    Column("validation_seconds", "val (s)", LOWER, None, _record("timings", "validation_seconds"), timing=True),
    Column(
        "resample_seconds",
        "resample (s)",
        LOWER,
        None,
        _record("timings", "resample_seconds"),
        timing=True,
        note="The time of training includes that of resamples.",
    ),
    Column("samples_per_second", "samples/s", HIGHER, None, _speed("samples_per_second"), timing=True),
    Column("tokens_per_second", "tokens/s", HIGHER, None, _speed("tokens_per_second"), timing=True),
    Column(
        "peak_memory_mib",
        "memory (MiB)",
        LOWER,
        None,
        _record("timings", "peak_memory_mib"),
        timing=True,
        note="memory: the peak, on a GPU what PyTorch allocated, on a CPU that of the process with its libraries.",
    ),
)
_COST = ("train_seconds", "samples_per_second", "peak_memory_mib")
OWN_LOSS = ("val_loss", "val_perplexity", "test_loss", "test_perplexity")


def all_columns(results: Iterable[Result]) -> dict[str, Column]:
    """Every column by key: losses, the scores of each metric, costs, and other numbers in scores.json."""
    known = {column.key: column for column in (_STORED, *_LOSSES, *_scores(), *_TIMINGS)}
    for result in results:
        for key, value in result.scores.items():
            if key not in known and key != "items" and finite(value) is not None:  # a metric that is not installed
                header = printable_line(key).replace("_", " ")
                known[key] = Column(key, header, NEITHER, 4, _scored(key), scored=True)
    return known


def _scores() -> list[Column]:
    return [
        Column(
            name,
            metric.label(name),
            metric.better,
            metric.decimals,
            _scored(name),
            scored=True,
            note=metric.note if name == metric.names[0] else "",
        )
        for name, metric in metrics().items()
    ]


def default_columns(dataset: str, mixed: bool) -> tuple[str, ...]:
    """Keys of the columns that a data set's table shows by default: losses, the data set's scores, cost.

    Losses on different tokens are not comparable. If the runs were trained on different tokens (``mixed``), the table
    shows the losses on target tokens and on all tokens.
    """
    losses: tuple[str, ...] = ("val_loss", "test_perplexity")
    if mixed:
        losses = tuple(f"{key}_{tokens}" for key in losses for tokens in ("target", "all"))
    source = source_type(dataset)
    stored = () if source.target_bits is None else (_STORED.key,)
    return (*stored, *losses, *main_scores(source.metrics), *_COST)


def mixed_losses(results: Iterable[Result]) -> bool:
    """Whether the runs were trained on different tokens (train.loss_on)."""
    return len({result.record.get("loss_on") for result in results if result.record.get("loss_on")}) > 1


def check_name(name: str, known: Iterable[str], option: str) -> None:
    """Raise UserError if ``name`` is not in ``known``. The message names ``option`` and all known names."""
    known = list(known)
    if name not in known:
        raise UserError(f"{option}: no column is named {printable_line(name)!r}. {suggestions(name, known)}")
