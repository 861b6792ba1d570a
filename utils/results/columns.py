"""The table's columns: where each number comes from, which way is better, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from utils.results.read import SPLIT, Result, plain
from utils.runs import finite

LOWER, NEITHER, HIGHER = -1, 0, 1
LOSS_UNIT = "nats per token"


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    ``better`` is LOWER, HIGHER or NEITHER; ``decimals`` None prints three significant digits;
    ``timing`` values depend on the hardware; ``unit`` is what ``header`` does not say.
    """

    key: str
    header: str
    better: int
    decimals: int | None
    value: Callable[[Result], float | None]
    timing: bool = False
    unit: str = ""

    @property
    def heading(self) -> str:
        """The header with an arrow to where it is better."""
        return self.header + {LOWER: " ↓", NEITHER: "", HIGHER: " ↑"}[self.better]

    @property
    def scored(self) -> bool:
        """Whether it depends on references."""
        return self.key not in _UNSCORED

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


def _scored(*names: str) -> Callable[[Result], float | None]:
    return lambda result: next((v for name in names if (v := finite(result.scores.get(name))) is not None), None)


def _on_both(key: str, header: str, better: int, decimals: int, source: str) -> list[Column]:
    """A quantity on the tokens that were trained (the loss of train.loss_on), and on target and all tokens."""
    pick = (lambda name: _record("best", name)) if source == "best" else _evaluated
    prefix = "val" if source == "best" else SPLIT
    unit = LOSS_UNIT if key == "loss" else ""
    return [
        Column(f"{prefix}_{key}{suffix}", header + words, better, decimals, pick(f"{key}{suffix}"), unit=unit)
        for suffix, words in (("", ""), ("_target", ", target"), ("_all", ", all"))
    ]


COLUMNS: tuple[Column, ...] = (
    *_on_both("loss", "val loss", LOWER, 4, "best"),
    *_on_both("perplexity", "val ppl", LOWER, 3, "best"),
    *_on_both("loss", "test loss", LOWER, 4, "evaluation"),
    *_on_both("perplexity", "test ppl", LOWER, 3, "evaluation"),
    *_on_both("bits_per_token", "test bits/token", LOWER, 4, "evaluation")[1:],
    *_on_both("bits_per_char", "test bits/char", LOWER, 4, "evaluation")[1:],
    Column("BLEU", "BLEU", HIGHER, 4, _scored("BLEU")),
    Column("NIST", "NIST", HIGHER, 4, _scored("NIST")),
    Column("METEOR", "METEOR", HIGHER, 4, _scored("METEOR")),
    Column("ROUGE_L", "ROUGE-L", HIGHER, 4, _scored("ROUGE_L")),
    Column("CIDEr", "CIDEr", HIGHER, 4, _scored("CIDEr")),
    Column("slot_error_rate", "slot error", LOWER, 4, _scored("slot_error_rate", "SER")),
    Column("train_seconds", "train (s)", LOWER, None, _record("timings", "train_seconds"), timing=True),
    Column("validation_seconds", "val (s)", LOWER, None, _record("timings", "validation_seconds"), timing=True),
    Column("resample_seconds", "resample (s)", LOWER, None, _record("timings", "resample_seconds"), timing=True),
    Column("samples_per_second", "samples/s", HIGHER, None, _record("timings", "samples_per_second"), timing=True),
    Column("tokens_per_second", "tokens/s", HIGHER, None, _record("timings", "tokens_per_second"), timing=True),
    Column("peak_memory_mib", "memory (MiB)", LOWER, None, _record("timings", "peak_memory_mib"), timing=True),
)
_UNSCORED = {column.key for column in COLUMNS if column.timing or column.key.startswith(("val_", "test_"))}
_SCORES = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "slot_error_rate")
_COST = ("train_seconds", "samples_per_second", "peak_memory_mib")
SHOWN = ("val_loss", "test_perplexity", *_SCORES, *_COST)
# Losses on different tokens do not compare, so where runs trained on different ones both kinds are shown for each.
SHOWN_MIXED = (
    "val_loss_target",
    "val_loss_all",
    "test_perplexity_target",
    "test_perplexity_all",
    *_SCORES,
    *_COST,
)
OWN_LOSS = ("val_loss", "val_perplexity", "test_loss", "test_perplexity")


def known_columns(results: Iterable[Result]) -> dict[str, Column]:
    """Every column by key: the fixed ones, then any further number that scores.json holds."""
    known = {column.key: column for column in COLUMNS}
    known_elsewhere = {"SER", "items"}  # another name of a column; a count
    for result in results:
        for key, value in result.scores.items():
            if key not in known and key not in known_elsewhere and finite(value) is not None:
                known[key] = Column(key, plain(key).replace("_", " "), NEITHER, 4, _scored(key))
    return known


def mixed_losses(results: Iterable[Result]) -> bool:
    """Whether the runs were trained on different tokens (train.loss_on)."""
    return len({result.record.get("loss_on") for result in results if result.record.get("loss_on")}) > 1
