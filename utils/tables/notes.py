"""The caption of a table: what its numbers mean, and which of them are not comparable across rows."""

from __future__ import annotations

from collections.abc import Iterator

from rosa.settings import ALL_LINEAR
from utils.metrics import NEITHER
from utils.results.aggregate import DECODING, PRECISION, RATE, TARGETS, Row, differing_conditions, distinction
from utils.results.columns import LOSS_UNIT, OWN_LOSS, Column
from utils.results.gap import FEW_SEEDS, SAMPLES, Closed, unequal, without_share
from utils.results.methods import UNTRAINED, defaults, method_label
from utils.runs import finite
from utils.text import as_typed, human, printable_line

ALWAYS = ("train.epochs", "train.batch_size", RATE)  # in the caption also at their defaults
SAID = (PRECISION, "train.loss_on")  # other sentences say them


def readable(key: str) -> str:
    """A setting's name or dotted key as a heading: ``num_beams`` becomes "beams"."""
    return " ".join(part.removeprefix("num_").replace("_", " ") for part in printable_line(key).split("."))


def notes_of(rows: list[Row], columns: list[Column], settings: list[str]) -> list[str]:
    """The sentences of the caption.

    Args:
        columns: the printed measured columns.
        settings: the dotted keys that have columns.
    """
    return [*_about_rows(rows, settings), *_about_columns(rows, columns, settings), *_about_comparisons(rows, columns)]


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
    if shared := _shared_settings(rows, settings):
        yield f"The same for all rows: {', '.join(shared)}."
    mixed = [row for row in rows if len({r.record.get("git_commit") for r in row.results} - {None}) > 1]
    if mixed:
        names = "; ".join(dict.fromkeys(" ".join(filter(None, _name(row, rows))) for row in mixed))
        yield f"Seeds of one row were trained by different code (git_commit in run.json): {names}."
    if lacking := [words for row in rows for words in _left_out(row, rows)]:
        yield f"Updates left out, as their gradients were infinite or not a number: {'; '.join(lacking)}."


def _shared_settings(rows: list[Row], shown: list[str]) -> list[str]:
    """The settings without a column: how long each row trained, and what is not at its default."""
    shared = {key: value for row in rows for key, value in row.settings.items() if key not in shown}
    usual = defaults() | {TARGETS: ALL_LINEAR}
    known = dict.fromkeys(key for key in (*ALWAYS, *usual) if key in shared and key not in SAID)
    return [
        f"{key}={as_typed(shared[key])}"
        for key in known
        if key in ALWAYS or as_typed(shared[key]) != as_typed(usual[key])
    ]


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


def _about_comparisons(rows: list[Row], columns: list[Column]) -> Iterator[str]:
    """The hardware, and the conditions across which nothing is compared."""
    hardware = sorted({result.hardware for row in rows for result in row.results})
    if any(column.timing for column in columns):
        yield f"Hardware: {'; '.join(hardware)}."
    differ = dict.fromkeys(key for column in columns for key in differing_conditions(rows, column))
    if differ:
        yield f"Rows with different {', '.join(map(readable, differ))} are not compared, in bold or in differences."
    for column in columns:
        if any(row.drawn(column) and len(row.results) > 1 for row in rows):
            yield (
                "Each seed has its own part of the validation data (train.validation_fraction): ± of a validation loss "
                "is over seeds and parts, and only rows of the same seeds are compared."
            )
            break
    evaluations = [result.evaluation for row in rows for result in row.results]
    yield from dict.fromkeys(f"{printable_line(e['known'])}." for e in evaluations if e.get("known"))
    precisions = sorted({printable_line(e["precision"]) for e in evaluations if e.get("precision")})
    if len(precisions) > 1:
        yield f"Test losses were computed in several precisions: {', '.join(precisions)}."


def baseline_notes(rows: list[Row]) -> Iterator[str]:
    """Which row the differences are to, if the baseline's method has several."""
    used = [row.baseline for row in rows if row.baseline is not None and row.baseline is not row]
    for baseline in {id(row): row for row in used}.values():
        name, words = _name(baseline, [row for row in rows if row.base_model == baseline.base_model])
        if words:
            yield (
                f"Differences to {name} are to the row {words}, the one with the fewest other settings, then "
                "more than one seed in common, then the lowest validation loss."
            )


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
