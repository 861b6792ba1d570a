"""The table as cells, before any format: leading columns, texts, which are best, differences to a baseline."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.results.aggregate import Row, best_rows, differing, fill, rows_of, set_baselines
from utils.results.columns import Column, known_columns, mixed_losses, shown_columns
from utils.results.methods import UNTRAINED, method_label
from utils.results.read import Listed, Result, one_limit, shown
from utils.tables.notes import Scope, notes_of, readable
from utils.tables.order import check_name, sort_rows
from utils.text import human

_FOLDER = re.compile(r"(?<![^\s'\"(=:])~?/(?:[^\s/'\"]+/)+")  # of a path from the root or from home


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

    @property
    def has_best(self) -> bool:
        return any(cell.bold for grid in self.grids for row in grid.rows for cell in row)

    def left_out(self) -> list[tuple[str, str]]:
        """The runs not, or not wholly, in the table, and why, without the folders of this machine: for files that
        are passed on. A run is named from the folder that all of them share."""
        runs = [*(result.run for row in self.rows for result in row.results), *(listed.run for listed in self.listed)]
        shared = os.path.commonpath([run.path.absolute().parent for run in runs]) if runs else ""
        named = [(os.path.relpath(listed.run.path.absolute(), shared), listed) for listed in self.listed]
        return [(name, _FOLDER.sub("…/", x.reason.replace(f"{x.run.path}{os.sep}", ""))) for name, x in named]


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
        sort: ``key``, ``key:asc`` or ``key:desc`` of any column; a bare key puts the best first. None for the order
            of ``Row.order``: untrained, full fine-tuning, LoRA, ROSA, others, and of each fewest parameters first.
        baseline: the method that differences are taken to.

    Raises:
        UserError: an unknown column or sort key; names the known ones.
    """
    finished, limit_note = one_limit([result for result in results if result.finished])
    rows, repeated = rows_of(finished)
    known = known_columns(finished)
    scope = Scope.of(rows, mixed_losses(finished))
    fill(rows, known.values())
    set_baselines(rows, baseline)
    settings = differing(rows)
    if sort:
        rows = sort_rows(rows, sort, known, settings)
    if columns is None:
        present = {key for row in rows for key in row.statistics}
        wanted = [column for key, column in known.items() if key in present]
        printed = [known[key] for key in shown_columns(dataset, scope.mixed) if key in present]
    else:
        for key in columns:
            check_name(key, known, "--columns")
        wanted = printed = [known[key] for key in columns]
    table = Table(dataset, rows, wanted, settings)
    table.notes = notes_of(rows, printed, settings, scope) + ([limit_note] if limit_note else [])
    table.grids = [_main_grid(table, printed, scope), *_delta_grids(table, printed, baseline, scope)]
    doubled = {listed.run.path for listed in repeated}
    listed = [r for r in results if not r.finished]
    listed += [r for r in finished if r.problems and r.run.path not in doubled]
    table.listed = [*(Listed(r.run, "; ".join(r.problems)) for r in listed), *repeated, *unreadable]
    return table


def _identity(table: Table) -> tuple[list[Cell], list[list[Cell]]]:
    """The leading columns, which say what a row is. Model and biases appear where they tell rows apart."""
    rows = table.rows
    columns: list[tuple[str, list[str]]] = [("method", [method_label(row.first.method) for row in rows])]
    if len({row.first.model for row in rows}) > 1:
        columns.append(("model", [row.first.model for row in rows]))
    columns.append(("rank", ["" if row.first.rank is None else shown(row.first.rank) for row in rows]))
    if len({row.first.bias for row in rows} - {None}) > 1:
        columns.append(("biases", [row.first.bias or "" for row in rows]))
    for key, name in zip(table.settings, _short(table.settings), strict=True):
        columns.append((name, [shown(row.settings[key]) if key in row.settings else "" for row in rows]))
    said = Counter(zip(*(texts for _, texts in columns), strict=True))
    if any(count > 1 for count in said.values()):  # rows differ in something that is not shown: say which is which
        columns.append(("settings", [row.first.group[:8] for row in rows]))
    columns.append(("params", ["" if row.parameters is None else human(row.parameters) for row in rows]))
    columns.append(("n", ["" if row.first.method == UNTRAINED else str(len(row.results)) for row in rows]))
    cells = [
        [Cell(texts[i], number=bool(texts[i]) and name in ("rank", "params", "n")) for name, texts in columns]
        for i in range(len(rows))
    ]
    return [Cell(name) for name, _ in columns], cells


def _short(keys: list[str]) -> list[str]:
    """The last part of each dotted key where that is unambiguous, in readable words."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [readable(part if last.count(part) == 1 else key) for key, part in zip(keys, last, strict=True)]


def _blocks(rows: list[Row]) -> list[int]:
    return [i for i in range(1, len(rows)) if rows[i].first.model != rows[i - 1].first.model]


def _main_grid(table: Table, columns: list[Column], scope: Scope) -> Grid:
    header, cells = _identity(table)
    blocks, measured = _blocks(table.rows), len(header)
    for column in columns:
        header.append(Cell(column.heading))
        best: set[int] = set()
        if scope.compares(column):
            for start, end in zip([0, *blocks], [*blocks, len(table.rows)], strict=True):
                best |= {start + i for i in best_rows(table.rows[start:end], column)}
        for i, (row, line) in enumerate(zip(table.rows, cells, strict=True)):
            line.append(_measured(row, column, i in best))
    models = {row.first.model for row in table.rows}
    title = f"{table.dataset}, {models.pop()}" if len(models) == 1 else table.dataset
    costs = tuple(measured + i for i, column in enumerate(columns) if column.timing)
    return Grid(title, header, cells, blocks, measured, costs)


def _measured(row: Row, column: Column, bold: bool) -> Cell:
    statistic = row.statistics.get(column.key)
    if statistic is None:
        return Cell("")
    std = "" if statistic.std is None else column.text(statistic.std, like=statistic.mean)
    fewer = statistic.n if statistic.n != len(row.results) else None
    return Cell(column.text(statistic.mean), std, fewer, bold, True)


def _delta_grids(table: Table, columns: list[Column], baseline: str, scope: Scope) -> list[Grid]:
    """The differences to the baseline, of the rows that have one, if any."""
    usable = [column for column in columns if column.quality and scope.compares(column)]
    usable = [column for column in usable if any(row.delta(column.key) is not None for row in table.rows)]
    if not usable:
        return []
    header, cells = _identity(table)
    for row, line in zip(table.rows, cells, strict=True):
        deltas = [(column, row.delta(column.key)) for column in usable]
        line += [Cell("") if d is None else Cell(column.text(d, "+"), number=True) for column, d in deltas]
    kept = [i for i, row in enumerate(table.rows) if row.baseline is not row and row.baseline is not None]
    rows = [table.rows[i] for i in kept]
    ranked = any(row.baseline is not None and row.baseline.first.rank is not None for row in rows)
    title = f"difference to {method_label(baseline)}" + (" of the same rank" if ranked else "")
    measured = len(header)
    header += [Cell(f"Δ {column.heading}") for column in usable]
    return [Grid(title, header, [cells[i] for i in kept], _blocks(rows), measured)]
