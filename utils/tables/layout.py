"""The table as cells, before any format: which columns, which texts, which are best, what the notes say."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.errors import UserError
from utils.runs import finite
from utils.tables.aggregate import (
    Row,
    best_rows,
    differing,
    fill,
    method_label,
    rows_of,
    set_baselines,
)
from utils.tables.columns import OWN_LOSS, SHOWN, SHOWN_MIXED, Column, known_columns, mixed_losses
from utils.tables.results import METHOD_LABELS, Listed, Result, one_limit, plain, shown


@dataclass(frozen=True)
class Cell:
    """One cell: unescaped text; ``std`` and ``n`` follow the mean; ``text`` empty means no value."""

    text: str
    std: str = ""
    n: int | None = None
    bold: bool = False
    number: bool = False


@dataclass
class Grid:
    """Rows of cells under a header.

    ``blocks`` are the row numbers at which another model begins; the columns from ``measured`` on are measured,
    those before say what a row is; ``costs`` are the places of times, speeds and memory.
    """

    title: str
    header: list[Cell]
    rows: list[list[Cell]]
    blocks: list[int]
    measured: int
    costs: tuple[int, ...] = ()


@dataclass
class Table:
    """Everything known of one data set: rows for the CSV, grids for people, notes and the runs left out."""

    dataset: str
    rows: list[Row]
    columns: list[Column]  # in the CSV
    settings: list[str]  # dotted keys that differ between rows
    grids: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    listed: list[Listed] = field(default_factory=list)


def make_table(
    dataset: str,
    results: list[Result],
    unreadable: Sequence[Listed] = (),
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    baseline: str = "none",
) -> Table:
    """The table of one data set's runs.

    Args:
        results: runs of this data set, whatever their status.
        columns: keys of the measured columns; None for the usual ones (the CSV then has all).
        sort: ``key``, ``key:asc`` or ``key:desc`` of any column; a bare key puts the best first.
        baseline: the method that differences are taken to.

    Raises:
        UserError: an unknown column or sort key; names the known ones.
    """
    finished, limit_note = one_limit([result for result in results if result.finished])
    rows, repeated = rows_of(finished)
    known = known_columns(finished)
    mixed = mixed_losses(finished)
    wanted = [find_column(key, known, "--columns") for key in columns] if columns is not None else list(known.values())
    fill(rows, known.values())
    set_baselines(rows, baseline)
    settings = differing(rows)
    if sort:
        rows = _sorted(rows, sort, known, settings)
        rows.sort(key=lambda row: row.first.model)
    usual = SHOWN_MIXED if mixed else SHOWN
    printed = wanted if columns is not None else [known[key] for key in usual]
    if columns is None:
        printed = [column for column in printed if any(column.key in row.statistics for row in rows)]
        wanted = [column for column in wanted if any(column.key in row.statistics for row in rows)]
    table = Table(dataset, rows, wanted, settings)
    hardware = sorted({result.hardware for row in rows for result in row.results})
    references = {r.scores.get("references_sha256") for row in rows for r in row.results if r.scores}
    table.notes = _notes(rows, printed, limit_note, mixed, hardware, len(references) > 1)
    unsafe = {c.key for c in printed if (c.timing and len(hardware) > 1) or (mixed and c.key in OWN_LOSS)}
    unsafe |= {c.key for c in printed if c.scored and len(references) > 1}
    table.grids = [_main_grid(table, printed, unsafe)]
    if delta := _delta_grid(table, printed, baseline, unsafe):
        table.grids.append(delta)
    doubled = {listed.run.path for listed in repeated}
    table.listed = [
        *(Listed(r.run, "; ".join(r.problems)) for r in results if not r.finished),
        *(Listed(r.run, "; ".join(r.problems)) for r in finished if r.problems and r.run.path not in doubled),
        *repeated,
        *unreadable,
    ]
    return table


def find_column(key: str, known: dict[str, Column], option: str) -> Column:
    """The column named ``key``. Raises UserError with the nearest and all known names, under ``option``."""
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{option}: no column is named {plain(key)!r}.{hint} Known: {', '.join(known)}")
    return known[key]


def _sorted(rows: list[Row], sort: str, known: dict[str, Column], settings: list[str]) -> list[Row]:
    key, _, direction = sort.partition(":")
    if direction not in ("", "asc", "desc"):
        raise UserError(f"--sort: {plain(sort)!r} ends in neither :asc nor :desc")
    texts = {
        "method": lambda row: row.first.method,
        "rank": lambda row: row.first.rank,
        "n": lambda row: len(row.results),
        "parameters": lambda row: row.parameters,
        **{name: (lambda row, name=name: row.settings.get(name)) for name in settings},
    }
    if key in texts:
        value, descending = texts[key], direction == "desc"
    else:
        if key not in known:
            every = {**known, **dict.fromkeys(texts)}
            find_column(key, every, "--sort")  # type: ignore[arg-type]
        column = known[key]
        value = lambda row: row.statistics[key].mean if key in row.statistics else None  # noqa: E731
        descending = direction == "desc" if direction else column.better > 0
    numbers = [row for row in rows if isinstance(value(row), (int, float))]
    strings = [row for row in rows if isinstance(value(row), str)]
    rest = [row for row in rows if not isinstance(value(row), (int, float, str))]
    return sorted(numbers, key=value, reverse=descending) + sorted(strings, key=value, reverse=descending) + rest


def _short(keys: list[str]) -> list[str]:
    """The last part of each dotted key where that is unambiguous."""
    count = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return [key.rsplit(".", 1)[-1] if count[key.rsplit(".", 1)[-1]] == 1 else key for key in keys]


def _identity(table: Table) -> tuple[list[Cell], list[list[Cell]]]:
    """The leading columns, which say what a row is. Model and biases appear where they tell rows apart."""
    rows = table.rows
    header, cells = ["method"], [[Cell(method_label(row))] for row in rows]

    def add(name: str, texts: list[str], number: bool = False) -> None:
        header.append(name)
        for line, text in zip(cells, texts, strict=True):
            line.append(Cell(text, number=number and bool(text)))

    if len({row.first.model for row in rows}) > 1:
        add("model", [row.first.model for row in rows])
    add("rank", ["" if row.first.rank is None else shown(row.first.rank) for row in rows], number=True)
    if any(row.first.bias is not None for row in rows):
        add("biases", [row.first.bias or "" for row in rows])
    for key, name in zip(table.settings, _short(table.settings), strict=True):
        add(name, [shown(row.settings[key]) if key in row.settings else "" for row in rows])
    said = Counter(tuple(cell.text for cell in line) for line in cells)
    if any(count > 1 for count in said.values()):  # rows differ in something that is not shown: say which is which
        add("settings", [row.first.group[:8] for row in rows])
    add("params", ["" if row.parameters is None else _human(row.parameters) for row in rows], number=True)
    add("n", [str(len(row.results)) for row in rows], number=True)
    return [Cell(name) for name in header], cells


def _human(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return f"{count:.0f}"


def _blocks(rows: list[Row]) -> list[int]:
    return [i for i in range(1, len(rows)) if rows[i].first.model != rows[i - 1].first.model]


def _main_grid(table: Table, columns: list[Column], unsafe: set[str]) -> Grid:
    header, cells = _identity(table)
    blocks, measured = _blocks(table.rows), len(header)
    for column in columns:
        header.append(Cell(column.header))
        best: set[int] = set()
        if column.key not in unsafe:
            for start, end in zip([0, *blocks], [*blocks, len(table.rows)], strict=True):
                best |= {start + i for i in best_rows(table.rows[start:end], column)}
        for i, (row, line) in enumerate(zip(table.rows, cells, strict=True)):
            statistic = row.statistics.get(column.key)
            if statistic is None:
                line.append(Cell(""))
                continue
            std = "" if statistic.std is None else column.text(statistic.std, like=statistic.mean)
            fewer = statistic.n if statistic.n != len(row.results) else None
            line.append(Cell(column.text(statistic.mean), std, fewer, i in best, True))
    models = {row.first.model for row in table.rows}
    title = f"{table.dataset}, {models.pop()}" if len(models) == 1 else table.dataset
    costs = tuple(measured + i for i, column in enumerate(columns) if column.timing)
    return Grid(title, header, cells, blocks, measured, costs)


def _delta_grid(table: Table, columns: list[Column], baseline: str, unsafe: set[str]) -> Grid | None:
    usable = [
        column
        for column in columns
        if column.quality and column.key not in unsafe and any(row.delta(column.key) is not None for row in table.rows)
    ]
    if not usable:
        return None
    header, cells = _identity(table)
    header = [*header, *(Cell(f"Δ {column.header}") for column in usable)]
    for row, line in zip(table.rows, cells, strict=True):
        for column in usable:
            delta = row.delta(column.key)
            line.append(Cell("") if delta is None else Cell(column.text(delta, "+"), number=True))
    kept = [i for i, row in enumerate(table.rows) if row.baseline is not row and row.baseline is not None]
    rows = [table.rows[i] for i in kept]
    ranked = any(row.baseline is not None and row.baseline.first.rank is not None for row in rows)
    title = f"difference to {METHOD_LABELS.get(baseline, baseline)}" + (" of the same rank" if ranked else "")
    return Grid(title, header, [cells[i] for i in kept], _blocks(rows), len(header) - len(usable))


def _notes(
    rows: list[Row], columns: list[Column], limit_note: str | None, mixed: bool, hardware: list[str], references: bool
) -> list[str]:
    notes = []
    if any(len(row.results) > 1 for row in rows):
        notes.append("Mean ± sample standard deviation over n seeds.")
    if any(s.n != len(row.results) for row in rows for c in columns if (s := row.statistics.get(c.key))):
        notes.append("(k): a value of k seeds only.")
    losses = {plain(r.record.get("loss_on")) for row in rows for r in row.results if r.record.get("loss_on")}
    if any(column.key in OWN_LOSS for column in columns) and losses:
        if mixed:
            notes.append("Rows were trained on different tokens: loss and perplexity do not compare across them.")
        else:
            notes.append(f"Loss and perplexity on {losses.pop()} tokens.")
    if any(column.timing for column in columns) and hardware:
        differ = " (times and memory do not compare across it)" if len(hardware) > 1 else ""
        notes.append(f"Hardware{differ}: {'; '.join(hardware)}.")
    if references:
        notes.append("Runs were scored against different references: scores do not compare across them.")
    if limit_note and any(c.key in row.statistics for row in rows for c in columns):
        notes.append(limit_note)
    if any(column.scored for column in columns):
        notes += [f"Texts were generated for {share} test items." for share in _generated(rows)]
    return notes


def _generated(rows: list[Row]) -> list[str]:
    """What share of the evaluated items has a text, where it is not all of them (ELI5: questions, not blocks)."""
    evaluations = [result.evaluation for row in rows for result in row.results]
    shares = {(finite(e.get("predictions")), finite(e.get("items"))) for e in evaluations}
    return [
        f"{made:,.0f} of {items:,.0f}" for made, items in sorted(shares, key=str) if made and items and made < items
    ]
