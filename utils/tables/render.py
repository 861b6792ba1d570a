"""A table as CSV (for machines), Markdown and plain text (for people). LaTeX is in latex.py."""

from __future__ import annotations

import csv
import io
import re
import textwrap

from utils.errors import printable
from utils.tables.layout import Cell, Grid, Table
from utils.text import as_typed, justified, printable_line

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#+|~&$@]|:(?=//))")


def to_csv(table: Table) -> str:
    """One line per row: settings, then ``<column>_mean``, ``_std``, ``_n`` and ``_delta`` in full precision.

    A row whose baseline differs in a condition has no delta.

    A text that a spreadsheet would read as a formula gets a leading apostrophe.
    """
    names = ["dataset", "model", "method", "rank", "bias", *table.settings]
    names += ["group", "seeds", "n", "parameters_total", "parameters_trainable", "adapted_layers"]
    for column in table.columns:
        names += [f"{column.key}_{part}" for part in ("mean", "std", "n", "delta")]
    names += ["gap_closed", "gap_closed_low", "gap_closed_high"] if table.closed else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_escape_formula(name) for name in [*names, "baseline"]])
    for row in table.rows:
        first = row.first
        settings = [as_typed(row.settings[key]) if key in row.settings else None for key in table.settings]
        seeds = " ".join(printable_line(result.seed) for result in row.results)
        line = [table.dataset, first.model, first.method, first.rank, first.bias, *settings]
        line += [first.group, seeds, len(row.results)]
        line += [first.number("parameters", "total"), row.parameters, first.number("parameters", "adapted_layers")]
        for column in table.columns:
            statistic = row.statistics.get(column.key)
            line += [statistic.mean, statistic.std, statistic.n] if statistic else [None, None, 0]
            line.append(row.delta(column))
        if table.closed:
            closed = next((one for one in table.closed if one.row is row), None)
            line += [closed.share, *(closed.interval or (None, None))] if closed else [None, None, None]
        line.append(row.baseline.first.group if row.baseline else None)
        writer.writerow([_escape_formula(value) if isinstance(value, str) else value for value in line])
    return buffer.getvalue()


def _escape_formula(text: str) -> str:
    text = printable_line(text)
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE)
    return f"'{text}" if text.startswith(tuple("=+-@")) and not number else text


def to_markdown(table: Table) -> str:
    """The grids as GitHub tables with bold best values, then the notes and the omitted runs."""
    parts = []
    for level, grid in zip(("#", "##", "##"), table.grids, strict=False):
        title = grid.title if level == "##" else f"Results: {grid.title}"
        parts.append(f"{level} {_markdown(title)}")
        aligned = ["---:" if _numeric(grid, i) else "---" for i in range(len(grid.header))]
        lines = [[_markdown(cell.text) for cell in grid.header], aligned]
        lines += [[_markdown_cell(cell) for cell in row] for row in grid.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [_markdown(note) for note in [*table.notes, *([f"Bold: {table.best_note}"] if table.best_note else [])]]
    if table.omissions:
        parts.append("## Not in the table, or not complete")
        omitted = [f"- {_markdown(name)}: {_markdown(reason)}" for name, reason in table.public_omissions()]
        parts.append("\n".join(omitted))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", printable_line(text))


def _markdown_cell(cell: Cell) -> str:
    if not cell.text:
        return "–"
    text = cell.text if cell.number else _markdown(cell.text)
    std = f" ± {cell.std}" if cell.std else ""
    return (f"**{text}**" if cell.bold else text) + std + (f" ({cell.n})" if cell.n is not None else "")


def _numeric(grid: Grid, i: int) -> bool:
    return any(row[i].number for row in grid.rows)


def to_text(table: Table, width: int = 100) -> str:
    """The grids for a terminal of ``width`` characters, with a star at the best values.

    Columns that do not fit are printed below, after the leading columns that distinguish the rows.
    """
    parts = [f"{printable_line(grid.title)}\n{_plain_grid(grid, width)}" for grid in table.grids]
    notes = [*table.notes, *([f"*: {table.best_note}"] if table.best_note else [])]
    parts.append("\n".join(line for note in notes for line in textwrap.wrap(printable_line(note), width)))
    if table.omissions:
        lines = [f"  {printable(x.run.path)}: {printable_line(x.reason)}" for x in table.omissions]
        parts.append("\n".join(["Not in the table, or not complete:", *lines]))
    return "\n\n".join(parts)


def _plain_grid(grid: Grid, width: int) -> str:
    columns = [_plain_column(grid, i) for i in range(len(grid.header))]
    widths = [len(column[0]) for column in columns]
    blocks = [list(range(grid.measured))]
    repeated = _distinguishing(columns[: grid.measured])
    for i in range(grid.measured, len(columns)):
        if sum(widths[j] + 2 for j in blocks[-1]) + widths[i] > width and blocks[-1] != repeated:
            blocks.append(list(repeated))
        blocks[-1].append(i)
    parts = []
    for block in blocks:
        lines = ["  ".join(cells).rstrip() for cells in zip(*(columns[i] for i in block), strict=True)]
        parts.append("\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]))
    return "\n\n".join(parts)


def _plain_column(grid: Grid, i: int) -> list[str]:
    """The header and the cells of column ``i`` with the same width; numbers are aligned, like 0.6443±.0071*."""
    cells = [row[i] for row in grid.rows]
    texts = [printable_line(cell.text) or "–" for cell in cells]
    suffixes = [_suffix(cell) for cell in cells]
    if not _numeric(grid, i):
        return justified([printable_line(grid.header[i].text), *texts])
    joined = map("".join, zip(justified(texts, right=True), justified(suffixes), strict=True))
    return justified([printable_line(grid.header[i].text), *joined], right=True)


def _suffix(cell: Cell) -> str:
    """The deviation, the star of a best value and the number of seeds."""
    std = "±" + (cell.std[1:] if cell.std.startswith("0.") else cell.std) if cell.std else ""
    return std + ("*" if cell.bold else "") + (f" ({cell.n})" if cell.n is not None else "")


def _distinguishing(columns: list[list[str]]) -> list[int]:
    """Indices of a few columns that distinguish the rows as well as all of them do. The first one is always kept."""
    kept = list(range(len(columns)))
    for i in reversed(range(1, len(columns))):
        fewer = [j for j in kept if j != i]
        if len(set(zip(*(columns[j] for j in fewer), strict=True))) == len(set(zip(*columns, strict=True))):
            kept = fewer
    return kept
