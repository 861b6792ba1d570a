"""A table as CSV (for machines), Markdown and plain text (for people). LaTeX is in latex.py."""

from __future__ import annotations

import csv
import io
import re
import textwrap

from utils.errors import printable
from utils.results.read import plain, shown
from utils.tables.layout import Cell, Grid, Table
from utils.text import justified

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#+|~&$@]|:(?=//))")


def to_csv(table: Table) -> str:
    """One line a row of the table: identity, then ``<column>_mean``, ``_std``, ``_n`` and ``_delta`` in full precision.

    A text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    names = ["dataset", "model", "method", "rank", "bias", *table.settings]
    names += ["group", "seeds", "n", "parameters_total", "parameters_trainable", "adapted_layers"]
    for column in table.columns:
        names += [f"{column.key}_{part}" for part in ("mean", "std", "n", "delta")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_inert(name) for name in [*names, "baseline"]])
    for row in table.rows:
        first = row.first
        settings = [shown(row.settings[key]) if key in row.settings else None for key in table.settings]
        seeds = " ".join(plain(result.seed) for result in row.results)
        line = [table.dataset, first.model, first.method, first.rank, first.bias, *settings]
        line += [first.group, seeds, len(row.results)]
        line += [first.number("parameters", "total"), row.parameters, first.number("parameters", "adapted_layers")]
        for column in table.columns:
            statistic = row.statistics.get(column.key)
            line += [statistic.mean, statistic.std, statistic.n] if statistic else [None, None, 0]
            line.append(row.delta(column.key) if column.quality else None)
        line.append(row.baseline.first.group if row.baseline else None)
        writer.writerow([_inert(value) if isinstance(value, str) else value for value in line])
    return buffer.getvalue()


def _inert(text: str) -> str:
    text = plain(text)
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE)
    return f"'{text}" if text.startswith(tuple("=+-@")) and not number else text


def to_markdown(table: Table) -> str:
    """The grids as GitHub tables, best values bold, then the notes and the runs left out."""
    parts = []
    for level, grid in zip(("#", "##", "##"), table.grids, strict=False):
        title = grid.title if level == "##" else f"Results: {grid.title}"
        parts.append(f"{level} {_markdown(title)}")
        aligned = ["---:" if _numeric(grid, i) else "---" for i in range(len(grid.header))]
        lines = [[_markdown(cell.text) for cell in grid.header], aligned]
        lines += [[_markdown_cell(cell) for cell in row] for row in grid.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [_markdown(note) for note in [*table.notes, *(["Bold: best in its column."] if table.has_best else [])]]
    if table.listed:
        parts.append("## Not, or not wholly, in the table")
        parts.append("\n".join(f"- {_markdown(name)}: {_markdown(reason)}" for name, reason in table.left_out()))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", plain(text))


def _markdown_cell(cell: Cell) -> str:
    if not cell.text:
        return "–"
    text = cell.text if cell.number else _markdown(cell.text)
    std = f" ± {cell.std}" if cell.std else ""
    return (f"**{text}**" if cell.bold else text) + std + (f" ({cell.n})" if cell.n is not None else "")


def _numeric(grid: Grid, i: int) -> bool:
    return any(row[i].number for row in grid.rows)


def to_text(table: Table, width: int = 100) -> str:
    """The grids for a terminal of ``width`` characters, best values starred. Columns that do not fit go on below,
    with those of the leading columns again that tell the rows apart."""
    parts = [f"{plain(grid.title)}\n{_plain_grid(grid, width)}" for grid in table.grids]
    notes = [*table.notes, *(["*: best in its column."] if table.has_best else [])]
    parts.append("\n".join(line for note in notes for line in textwrap.wrap(plain(note), width)))
    if table.listed:
        lines = [f"  {printable(listed.run.path)}: {plain(listed.reason)}" for listed in table.listed]
        parts.append("\n".join(["Not, or not wholly, in the table:", *lines]))
    return "\n\n".join(parts)


def _plain_grid(grid: Grid, width: int) -> str:
    columns = [_plain_column(grid, i) for i in range(len(grid.header))]
    widths = [len(column[0]) for column in columns]
    blocks = [list(range(grid.measured))]
    again = _telling(columns[: grid.measured])
    for i in range(grid.measured, len(columns)):
        if sum(widths[j] + 2 for j in blocks[-1]) + widths[i] > width and blocks[-1] != again:
            blocks.append(list(again))
        blocks[-1].append(i)
    parts = []
    for block in blocks:
        lines = ["  ".join(cells).rstrip() for cells in zip(*(columns[i] for i in block), strict=True)]
        parts.append("\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]))
    return "\n\n".join(parts)


def _plain_column(grid: Grid, i: int) -> list[str]:
    """The header and the cells of column ``i``, all of one width; numbers stand below each other as 0.6443±.0071*."""
    cells = [row[i] for row in grid.rows]
    texts = [plain(cell.text) or "–" for cell in cells]
    tails = [_tail(cell) for cell in cells]
    if not _numeric(grid, i):
        return justified([plain(grid.header[i].text), *texts])
    whole = map("".join, zip(justified(texts, right=True), justified(tails), strict=True))
    return justified([plain(grid.header[i].text), *whole], right=True)


def _tail(cell: Cell) -> str:
    std = "±" + (cell.std[1:] if cell.std.startswith("0.") else cell.std) if cell.std else ""
    return std + ("*" if cell.bold else "") + (f" ({cell.n})" if cell.n is not None else "")


def _telling(columns: list[list[str]]) -> list[int]:
    """The first few of the leading ``columns`` that tell the rows apart as well as all of them do."""
    kept = list(range(len(columns)))
    for i in reversed(range(1, len(columns))):
        fewer = [j for j in kept if j != i]
        if len(set(zip(*(columns[j] for j in fewer), strict=True))) == len(set(zip(*columns, strict=True))):
            kept = fewer
    return kept
