"""The caption of a table: what its numbers mean, and which of them are not comparable across rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from utils.data import SPLITS
from utils.metrics import NEITHER
from utils.results.aggregate import DECODING, Row, differing, distinction
from utils.results.columns import LOSS_UNIT, OWN_LOSS, Column
from utils.results.counterparts import unlike
from utils.results.gap import FEW_SEEDS, SAMPLES, Closed, unequal, without_share
from utils.results.methods import UNTRAINED, defaults, method_label
from utils.results.parts import different_parts, unequal_seeds
from utils.runs import finite
from utils.text import as_typed, human, printable_line


@dataclass(frozen=True)
class Scope:
    """What decides which numbers of a table are comparable across its rows."""

    mixed: bool  # the runs were trained on different tokens
    hardware: tuple[str, ...]
    references: int  # the number of different sets of references
    data: tuple[str, ...]  # the splits of which the runs read different data
    parts: tuple[str, ...]  # the splits whose losses are on different parts of the same data
    precisions: tuple[str, ...]  # of the evaluations
    seeds: bool  # rows have different seeds, of which each has its own validation items
    decodings: tuple[str, ...]  # the settings of decoding that differ

    @classmethod
    def of(cls, rows: list[Row], mixed: bool) -> Scope:
        results = [result for row in rows for result in row.results]
        references = {result.scores.get("references_sha256") for result in results if result.scores}
        hardware = tuple(sorted({result.hardware for result in results}))
        data = tuple(split for split in SPLITS if len({r.data.get(f"{split}_data") for r in results} - {None}) > 1)
        precisions = {printable_line(r.evaluation["precision"]) for r in results if r.evaluation.get("precision")}
        decodings = tuple(key for key in differing(rows) if key.startswith(DECODING))
        return cls(
            mixed,
            hardware,
            len(references),
            data,
            different_parts(rows),
            tuple(sorted(precisions)),
            unequal_seeds(rows),
            decodings,
        )

    def comparable(self, column: Column) -> bool:
        """Whether the numbers of ``column`` are comparable across the rows."""
        if column.timing:
            return len(self.hardware) < 2
        if column.split in self.data:
            return False
        if column.key in OWN_LOSS:
            return not self.mixed and column.split not in self.parts
        return self.references < 2 and not self.decodings if column.scored else column.split not in self.parts


def readable(key: str) -> str:
    """A setting's name or dotted key as a heading: ``num_beams`` becomes "beams"."""
    return " ".join(part.removeprefix("num_").replace("_", " ") for part in printable_line(key).split("."))


def notes_of(rows: list[Row], columns: list[Column], settings: list[str], scope: Scope) -> list[str]:
    """The sentences of the caption.

    Args:
        columns: the printed measured columns.
        settings: the dotted keys that have columns.
    """
    return [*_about_rows(rows, settings), *_about_columns(rows, columns, settings), *_about_scope(columns, scope)]


def _about_rows(rows: list[Row], settings: list[str]) -> Iterator[str]:
    methods = {row.first.method for row in rows}
    several = any(len(row.results) > 1 for row in rows if row.first.method != UNTRAINED)
    yield "Mean ± sample standard deviation over n seeds." if several else "One seed (n = 1)."
    if UNTRAINED in methods and len(methods) > 1:
        shares = {r.settings.get("train.validation_fraction", 1) for row in rows for r in row.results}
        same = ", the same for every seed" if shares <= {None, 1} else ""
        yield f"untrained: the base model without training{same}."
    kinds = {type(row.first.rank) for row in rows if row.first.rank is not None}
    ratio = "the ratio of the rank R to the smaller side of each adapted weight"
    if kinds == {float}:
        yield f"rank: {ratio}."
    elif kinds == {int}:
        yield "rank: the rank R of each adapted weight."
    elif kinds:
        yield f"rank: an integer is the rank R, a fraction {ratio}."
    biases = {row.first.bias for row in rows if row.first.bias is not None}
    if len(biases) == 1:
        yield f"Trained biases: {biases.pop()}."
    if any(row.parameters is not None for row in rows):
        yield "params: trainable parameters."
    if own := dict.fromkeys(filter(None, (_own_settings(row, settings) for row in rows))):
        yield f"Settings of a method that are not at their defaults: {'; '.join(own)}."
    mixed = [row for row in rows if len({r.record.get("git_commit") for r in row.results} - {None}) > 1]
    if mixed:
        names = "; ".join(dict.fromkeys(" ".join(filter(None, _name(row, rows))) for row in mixed))
        yield f"Seeds of one row were trained by different code (git_commit in run.json): {names}."
    if lacking := [words for row in rows for words in _left_out(row, rows)]:
        yield f"Updates left out, as their gradients were infinite or not a number: {'; '.join(lacking)}."


def _own_settings(row: Row, shown: list[str]) -> str:
    """The row's method and its own settings off their defaults that have no column, "" without any."""
    keys = (key for key in row.settings if key.startswith(f"fnmodel.{row.first.method}.") and key not in shown)
    given = {key: (as_typed(row.settings[key]), as_typed(defaults()[key])) for key in keys if key in defaults()}
    words = [f"{key.rpartition('.')[2]}={value}" for key, (value, default) in given.items() if value != default]
    return f"{method_label(row.first.method)} {', '.join(words)}" if words else ""


def _left_out(row: Row, rows: list[Row]) -> Iterator[str]:
    """The seeds of a row that did without more than a hundredth of their updates. Few are usual in fp16."""
    for result in row.results:
        skipped, steps = result.number("skipped_updates") or 0, result.number("progress", "total_steps") or 0
        if skipped > steps / 100:
            yield f"{' '.join(filter(None, _name(row, rows)))}, seed {result.seed}: {skipped:,} of {steps:,}"


def _about_columns(rows: list[Row], columns: list[Column], settings: list[str]) -> Iterator[str]:
    if any(column.better != NEITHER for column in columns):
        yield "↑: higher is better, ↓: lower is better."
    if any(column.unit == LOSS_UNIT for column in columns):
        yield f"Loss in {LOSS_UNIT}."
    tokens = {printable_line(r.record.get("loss_on")) for row in rows for r in row.results if r.record.get("loss_on")}
    if len(tokens) == 1 and any(column.key in OWN_LOSS for column in columns):
        yield f"Loss and perplexity on {tokens.pop()} tokens."
    yield from dict.fromkeys(column.note for column in columns if column.note)
    if any(column.scored for column in columns):
        yield from _about_texts(rows, settings)


def _about_texts(rows: list[Row], settings: list[str]) -> Iterator[str]:
    """The decoding settings that all rows share, and the share of items with generated texts if it is not all."""
    decoding = {key: value for row in rows for key, value in row.settings.items() if key.startswith(DECODING)}
    same = [f"{readable(key[len(DECODING) :])} {as_typed(decoding[key])}" for key in decoding if key not in settings]
    if same:
        yield f"Decoding: {', '.join(same)}."
    evaluations = [result.evaluation for row in rows for result in row.results]
    shares = {(finite(e.get("predictions")), finite(e.get("items"))) for e in evaluations}
    for generated, items in sorted(shares, key=str):
        if generated and items and generated < items:
            yield f"Texts were generated for {generated:,.0f} of {items:,.0f} test items."


def _about_scope(columns: list[Column], scope: Scope) -> Iterator[str]:
    if scope.mixed and any(column.key in OWN_LOSS for column in columns):
        yield "Rows were trained on different tokens: their loss and perplexity are not comparable."
    if scope.hardware and any(column.timing for column in columns):
        differ = " (times and memory on different hardware, or at other settings of train, are not comparable)"
        differ = differ if len(scope.hardware) > 1 else ""
        yield f"Hardware{differ}: {'; '.join(scope.hardware)}."
    if scope.data:
        yield (
            f"Rows read different {' and '.join(scope.data)} data (the beginning of its digest is shown): numbers on "
            "different data are not comparable."
        )
    if scope.parts:
        yield (
            f"Losses are on different parts of the {' and '.join(scope.parts)} data (train.validation_fraction, "
            "train.seq_len, train.block_size): they are not comparable."
        )
    if scope.seeds and any(column.split == "validation" and not column.timing for column in columns):
        yield (
            "Each seed has its own part of the validation data (train.validation_fraction), and rows have different "
            "seeds: differences are over the seeds that both rows have, and no such value is the best."
        )
    if len(scope.precisions) > 1:
        yield f"Test losses were computed in several precisions: {', '.join(scope.precisions)}."
    if scope.references > 1:
        yield "Runs were scored against different references: their scores are not comparable."
    if scope.decodings and any(column.scored for column in columns):
        names = ", ".join(readable(key[len(DECODING) :]) for key in scope.decodings)
        yield f"Texts were generated with different decoding ({names}): their scores are not comparable."


def baseline_notes(rows: list[Row]) -> Iterator[str]:
    """Which row the differences are to, where the baseline's method has several, and those that are of more than it."""
    used = [row.baseline for row in rows if row.baseline is not None and row.baseline is not row]
    for baseline in {id(row): row for row in used}.values():
        name, words = _name(baseline, [row for row in rows if row.base_model == baseline.base_model])
        if words:
            yield (
                f"Differences to {name} are to the row {words}, the one with the fewest other settings, then "
                "more than one seed in common, then the lowest validation loss."
            )
    across: dict[str, dict[str, None]] = {}  # names, each once, by the settings
    for row in rows:
        if row.baseline is not None and (keys := sorted(unlike(row, row.baseline))):
            across.setdefault(", ".join(map(readable, keys)), {})[row.name] = None
    for words, names in across.items():
        yield f"Differences of {', '.join(names)} are to a training that differs in {words} too."


def _name(row: Row, rows: list[Row]) -> tuple[str, str]:
    """Method and rank of ``row``, and the settings by which it differs from others of these; "" without others."""
    if sum(other.name == row.name for other in rows) == 1:
        return row.name, ""
    differs = distinction(row, rows)
    words = ", ".join(f"{readable(key.rsplit('.', 1)[-1])} {as_typed(value)}" for key, value in differs.items())
    return row.name, f"with {words or f'settings {row.first.group[:8]}'}"


def gap_notes(rows: list[Row], closed: list[Closed], column: Column) -> Iterator[str]:
    """What the share of a closed gap means, and which rows do not have as many trainable parameters as LoRA.

    Args:
        column: the loss.
    """
    if closed:
        ceilings = " or ".join(dict.fromkeys(method_label(one.ceiling.first.method) for one in closed))
        biases = " and trained biases" if any(one.row.first.bias != one.lora.first.bias for one in closed) else ""
        yield (
            f"Gap closed: (LoRA − method) / (LoRA − {ceilings}) of the {column.header}, over the seeds that all three "
            "have; LoRA of the same rank, all three with the same settings but for the learning rate"
            f"{biases}; {SAMPLES:,} bootstrap samples of seeds."
        )
    for name, words in dict.fromkeys(_name(one.lora, rows) for one in closed):
        if words:
            yield f"The gap of {name} is that of the row {words}."
    if any(one.interval and one.seeds <= FEW_SEEDS for one in closed):
        yield (
            f"An interval of {FEW_SEEDS} seeds or fewer goes from the worst seed to the best, so that it covers less "
            "than 95 %."
        )
    others: dict[str, dict[str, None]] = {}  # names, each once, by what is in the way
    for row, keys in without_share(rows, closed):
        reason = f"differs in {', '.join(map(readable, keys))}" if keys else "has no seed in common"
        others.setdefault(reason, {})[row.name] = None
    for reason, names in others.items():
        yield f"No share of the gap for {', '.join(names)}: LoRA of the same rank, or full training, {reason}."
    different = [
        f"{row.name} {human(row.parameters or 0)}, LoRA {human(lora.parameters or 0)}" for row, lora in unequal(rows)
    ]
    if different:
        yield (
            f"Trainable parameters differ by more than 1 % from those of LoRA of the same rank: "
            f"{'; '.join(dict.fromkeys(different))}."
        )
