"""The table as cells, before any format: leading columns, texts, which are best, differences to a baseline."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from utils.results.aggregate import Row, best_rows, compute_statistics, differing, rows_of
from utils.results.columns import Column, all_columns, check_name, default_columns, mixed_losses
from utils.results.counterparts import set_baselines
from utils.results.gap import Closed, closed_shares
from utils.results.methods import UNTRAINED, method_label
from utils.results.read import Omission, Result, keep_one_limit
from utils.tables.notes import baseline_notes, gap_notes, notes_of, readable
from utils.tables.order import sort_rows
from utils.text import as_typed, human

_FOLDER = re.compile(r"(?<![^\s'\"(=:])~?/(?:[^\s/'\"]+/)+")  # the folder of an absolute path


@dataclass(frozen=True)
class Cell:
    """One cell of a grid."""

    text: str  # not escaped; empty means no value
    std: str = ""
    n: int | None = None  # printed after the value if it is of fewer seeds than the row
    bold: bool = False
    number: bool = False


@dataclass
class Grid:
    """Rows of cells under a header."""

    title: str
    header: list[Cell]
    rows: list[list[Cell]]
    model_starts: list[int]  # indices of the rows where another model begins
    measured: int  # index of the first measured column; the columns before it identify a row
    costs: tuple[int, ...] = ()  # indices of the columns of times, speeds and memory
    name: str = ""  # of the grids after the first, for labels


@dataclass
class Table:
    """The results of one data set: rows for the CSV, grids for people, notes and omitted runs."""

    dataset: str
    rows: list[Row]
    columns: list[Column]  # measured columns of the CSV
    settings: list[str]  # dotted keys that differ between rows
    grids: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)

    @property
    def best_note(self) -> str:
        """What bold means; empty if nothing is."""
        if not any(cell.bold for grid in self.grids for row in grid.rows for cell in row):
            return ""
        several = any(len(row.results) > 1 for row in self.rows)
        return "best in its column" + (", and ± does not overlap the next." if several else ".")

    def public_omissions(self) -> list[tuple[str, str]]:
        """Name and reason of each omission, without folders of this machine, for files that are shared.

        The name of a run is its path relative to the common folder of all runs.
        """
        runs = [*(result.run for row in self.rows for result in row.results), *(x.run for x in self.omissions)]
        shared = os.path.commonpath([run.path.absolute().parent for run in runs]) if runs else ""
        named = [(os.path.relpath(x.run.path.absolute(), shared), x) for x in self.omissions]
        return [(name, _FOLDER.sub("…/", x.reason)) for name, x in named]


def make_table(
    dataset: str,
    results: list[Result],
    unreadable: Sequence[Omission] = (),
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    baseline: str = "none",
) -> Table:
    """The table of one data set's runs.

    Args:
        results: runs of this data set with any status.
        unreadable: runs that cannot be read, of any data set.
        columns: keys of the measured columns; None for the default columns (the CSV then has all columns).
        sort: ``key``, ``key:asc`` or ``key:desc`` of any column; ``key`` alone puts the best first. None for
            ``Row.sort_key``: by model, then by the method's ``order``, then by trainable parameters.
        baseline: the method whose value is subtracted in differences.

    Raises:
        UserError: an unknown column or sort key. The message lists the known ones.
    """
    trials = [result for result in results if result.trial]
    results = [result for result in results if not result.trial]
    finished, limit_note = keep_one_limit([result for result in results if result.finished])
    rows, repeated = rows_of(finished)
    known = all_columns(finished)
    mixed = mixed_losses(finished)
    compute_statistics(rows, known.values())
    set_baselines(rows, baseline)
    settings = differing(rows)
    if sort:
        rows = sort_rows(rows, sort, known, settings)
    if columns is None:
        present = {key for row in rows for key in row.statistics}
        csv_columns = [column for key, column in known.items() if key in present]
        printed = [known[key] for key in default_columns(dataset, mixed) if key in present]
    else:
        for key in columns:
            check_name(key, known, "--columns")
        csv_columns = printed = [known[key] for key in columns]
    table = Table(dataset, rows, csv_columns, settings)
    table.notes = notes_of(rows, printed, settings) + ([limit_note] if limit_note else [])
    if trials:
        seeds = ", ".join(sorted({as_typed(trial.seed) for trial in trials}))
        table.notes.append(f"{len(trials)} trials of searches (seed {seeds}) are not in the table.")
    loss = known["val_loss_target" if mixed else "val_loss"]
    table.closed = closed_shares(rows, loss)
    deltas = _delta_grids(table, printed, baseline)
    table.notes += [*(baseline_notes(rows) if deltas else []), *gap_notes(rows, table.closed, loss)]
    table.grids = [_main_grid(table, printed), *deltas, *([_gap_grid(table)] if table.closed else [])]
    table.notes += _count_notes(table.grids)
    repeated_paths = {omission.run.path for omission in repeated}
    incomplete = [r for r in results if not r.finished]
    if not rows:
        repeated += [Omission(trial.run, "a trial of a search") for trial in trials]
    incomplete += [r for r in finished if r.problems and r.run.path not in repeated_paths]
    table.omissions = [*(Omission(r.run, "; ".join(r.problems)) for r in incomplete), *repeated, *unreadable]
    return table


def _count_notes(grids: list[Grid]) -> Iterator[str]:
    counts = {cell.n for grid in grids for line in grid.rows for cell in line} - {None}
    if counts - {0}:
        yield "(k): the value is of k seeds only."
    if 0 in counts:
        yield "(0): the rows have no seed in common, so that the difference is of their means."


def _leading_columns(table: Table) -> tuple[list[Cell], list[list[Cell]]]:
    """Header and cells of the columns that identify a row. Model and biases are there only if they differ."""
    rows = table.rows
    columns: list[tuple[str, list[str]]] = [("method", [method_label(row.first.method) for row in rows])]
    if len({row.first.model for row in rows}) > 1:
        columns.append(("model", [row.first.model for row in rows]))
    columns.append(("rank", ["" if row.first.rank is None else as_typed(row.first.rank) for row in rows]))
    if len({row.first.bias for row in rows} - {None}) > 1:
        columns.append(("biases", [row.first.bias or "" for row in rows]))
    for key, name in zip(table.settings, _setting_names(table.settings), strict=True):
        columns.append((name, [as_typed(row.settings[key]) if key in row.settings else "" for row in rows]))
    counts = Counter(zip(*(texts for _, texts in columns), strict=True))
    if any(count > 1 for count in counts.values()):  # rows look the same: add the beginning of the group's hash
        columns.append(("settings", [row.first.group[:8] for row in rows]))
    columns.append(("params", ["" if row.parameters is None else human(row.parameters) for row in rows]))
    columns.append(("n", ["" if row.first.method == UNTRAINED else str(len(row.results)) for row in rows]))
    cells = [
        [Cell(texts[i], number=bool(texts[i]) and name in ("rank", "params", "n")) for name, texts in columns]
        for i in range(len(rows))
    ]
    return [Cell(name) for name, _ in columns], cells


def _setting_names(keys: list[str]) -> list[str]:
    """Readable headings: the last part of each dotted key if it is unambiguous, otherwise the whole key."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [readable(part if last.count(part) == 1 else key) for key, part in zip(keys, last, strict=True)]


def _model_starts(rows: list[Row]) -> list[int]:
    return [i for i in range(1, len(rows)) if rows[i].base_model != rows[i - 1].base_model]


def _main_grid(table: Table, columns: list[Column]) -> Grid:
    header, cells = _leading_columns(table)
    starts, measured = _model_starts(table.rows), len(header)
    for column in columns:
        header.append(Cell(column.heading))
        best = best_rows(table.rows, column)
        for i, (row, line) in enumerate(zip(table.rows, cells, strict=True)):
            line.append(_measured_cell(row, column, i in best))
    models = {row.first.model for row in table.rows}
    title = f"{table.dataset}, {models.pop()}" if len(models) == 1 else table.dataset
    costs = tuple(measured + i for i, column in enumerate(columns) if column.timing)
    return Grid(title, header, cells, starts, measured, costs)


def _measured_cell(row: Row, column: Column, bold: bool) -> Cell:
    statistic = row.statistics.get(column.key)
    if statistic is None:
        return Cell("")
    std = "" if statistic.std is None else column.text(statistic.std, like=statistic.mean)
    fewer = statistic.n if statistic.n != len(row.results) else None
    return Cell(column.text(statistic.mean), std, fewer, bold, True)


def _delta_grids(table: Table, columns: list[Column], baseline: str) -> list[Grid]:
    """The grid of differences to the baseline, with the rows that have one; no grid without such rows."""
    usable = [column for column in columns if any(row.delta(column) is not None for row in table.rows)]
    if not usable:
        return []
    header, cells = _leading_columns(table)
    for row, line in zip(table.rows, cells, strict=True):
        line += [_delta_cell(row, column) for column in usable]
    kept = [i for i, row in enumerate(table.rows) if any(row.delta(column) is not None for column in usable)]
    rows = [table.rows[i] for i in kept]
    ranked = any(row.baseline is not None and row.baseline.first.rank is not None for row in rows)
    title = f"difference to {method_label(baseline)}" + (" of the same rank" if ranked else "")
    measured = len(header)
    header += [Cell(f"Δ {column.heading}") for column in usable]
    return [Grid(title, header, [cells[i] for i in kept], _model_starts(rows), measured, name="delta")]


def _delta_cell(row: Row, column: Column) -> Cell:
    delta, seeds = row.delta(column), len(row.compared_seeds(column))
    if delta is None or row.baseline is None:
        return Cell("")
    paired = seeds or UNTRAINED not in (row.first.method, row.baseline.first.method)
    return Cell(column.text(delta, "+"), n=seeds if paired and seeds < len(row.results) else None, number=True)


def _gap_grid(table: Table) -> Grid:
    """The share of the gap that each method closes."""
    header, cells = _leading_columns(table)
    measured = len(header)
    header += [Cell("gap closed"), Cell("95 % interval"), Cell("seeds")]
    rows = []
    for closed in table.closed:
        line = cells[next(i for i, row in enumerate(table.rows) if row is closed.row)]
        share = "no gap" if closed.share is None else percent(closed.share)
        interval = "" if closed.interval is None else " to ".join(map(percent, closed.interval))
        number = closed.share is not None
        rows.append([*line, Cell(share, number=number), Cell(interval), Cell(str(closed.seeds), number=True)])
    starts = _model_starts([closed.row for closed in table.closed])
    return Grid("gap between LoRA and full training", header, rows, starts, measured, name="gap")


def percent(share: float) -> str:
    """A share in percent with a true minus sign."""
    return f"{100 * share:.0f} %".replace("-", "−")
