"""The measured columns (losses, scores, timings): where each number comes from, and which a table shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from utils.data import metrics_of
from utils.metrics import HIGHER, LOWER, NEITHER, main_scores, metrics
from utils.results.read import SPLIT, Result, plain
from utils.runs import finite

LOSS_UNIT = "nats per token"


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    ``better`` is LOWER, HIGHER or NEITHER; ``decimals`` None prints three significant digits;
    ``timing`` values depend on the hardware, ``scored`` ones on references; ``unit`` is what ``header`` does not say,
    ``note`` a sentence for the caption.
    """

    key: str
    header: str
    better: int
    decimals: int | None
    value: Callable[[Result], float | None]
    timing: bool = False
    unit: str = ""
    scored: bool = False
    note: str = ""

    @property
    def heading(self) -> str:
        """The header with an arrow to where it is better."""
        return self.header + {LOWER: " ↓", NEITHER: "", HIGHER: " ↑"}[self.better]

    @property
    def quality(self) -> bool:
        """Whether a difference to a baseline says something about the model."""
        return self.better != NEITHER and not self.timing

    def text(self, number: float, sign: str = "", like: float | None = None) -> str:
        """``number`` as printed; ``sign`` "+" for differences; ``like`` the mean whose decimals a deviation takes."""
        size = abs(number if like is None else like)
        adaptive = 0 if size >= 100 else 1 if size >= 10 else 2
        text = f"{number:{sign},.{adaptive if self.decimals is None else self.decimals}f}"
        return text.replace("-", "−") if text.strip("+-0.,") else text.lstrip("+-")  # what rounds to 0 has no sign


def _record(*path: str) -> Callable[[Result], float | None]:
    return lambda result: result.number(*path)


def _evaluated(key: str) -> Callable[[Result], float | None]:
    return lambda result: finite(result.evaluation.get(key))


def _scored(name: str) -> Callable[[Result], float | None]:
    return lambda result: finite(result.scores.get(name))


def _on_both(key: str, header: str, better: int, decimals: int, source: str) -> list[Column]:
    """A quantity on the tokens that were trained (the loss of train.loss_on), and on target and all tokens."""
    pick = (lambda name: _record("best", name)) if source == "best" else _evaluated
    prefix = "val" if source == "best" else SPLIT
    unit = LOSS_UNIT if key == "loss" else ""
    return [
        Column(f"{prefix}_{key}{suffix}", header + words, better, decimals, pick(f"{key}{suffix}"), unit=unit)
        for suffix, words in (("", ""), ("_target", ", target"), ("_all", ", all"))
    ]


_LOSSES: tuple[Column, ...] = (
    *_on_both("loss", "val loss", LOWER, 4, "best"),
    *_on_both("perplexity", "val ppl", LOWER, 3, "best"),
    *_on_both("loss", "test loss", LOWER, 4, "evaluation"),
    *_on_both("perplexity", "test ppl", LOWER, 3, "evaluation"),
    *_on_both("bits_per_token", "test bits/token", LOWER, 4, "evaluation")[1:],
    *_on_both("bits_per_char", "test bits/char", LOWER, 4, "evaluation")[1:],
)
_TIMINGS: tuple[Column, ...] = (
    Column("train_seconds", "train (s)", LOWER, None, _record("timings", "train_seconds"), timing=True),
    Column("validation_seconds", "val (s)", LOWER, None, _record("timings", "validation_seconds"), timing=True),
    Column("resample_seconds", "resample (s)", LOWER, None, _record("timings", "resample_seconds"), timing=True),
    Column("samples_per_second", "samples/s", HIGHER, None, _record("timings", "samples_per_second"), timing=True),
    Column("tokens_per_second", "tokens/s", HIGHER, None, _record("timings", "tokens_per_second"), timing=True),
    Column("peak_memory_mib", "memory (MiB)", LOWER, None, _record("timings", "peak_memory_mib"), timing=True),
)
_COST = ("train_seconds", "samples_per_second", "peak_memory_mib")
OWN_LOSS = ("val_loss", "val_perplexity", "test_loss", "test_perplexity")


def known_columns(results: Iterable[Result]) -> dict[str, Column]:
    """Every column by key: the fixed ones, a score of each metric, and any further number that scores.json holds."""
    known = {column.key: column for column in (*_LOSSES, *_scores(), *_TIMINGS)}
    for result in results:
        for key, value in result.scores.items():
            if key not in known and key != "items" and finite(value) is not None:  # of a metric that is not here
                header = plain(key).replace("_", " ")
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


def shown_columns(dataset: str, mixed: bool) -> tuple[str, ...]:
    """Keys of the columns that a data set's table shows: losses, the data set's own scores, cost.

    Losses on different tokens do not compare, so where runs trained on different ones (``mixed``) both kinds are
    shown for each.
    """
    losses: tuple[str, ...] = ("val_loss", "test_perplexity")
    if mixed:
        losses = tuple(f"{key}_{tokens}" for key in losses for tokens in ("target", "all"))
    return (*losses, *main_scores(metrics_of(dataset)), *_COST)


def mixed_losses(results: Iterable[Result]) -> bool:
    """Whether the runs were trained on different tokens (train.loss_on)."""
    return len({result.record.get("loss_on") for result in results if result.record.get("loss_on")}) > 1
