"""A table as CSV (for machines), Markdown and plain text (for people). LaTeX is in latex.py."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

from utils.tables.layout import Cell, Grid, Table
from utils.tables.results import shown

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
        seeds = " ".join(str(result.seed) for result in row.results)
        line = [table.dataset, first.model, first.method, first.rank, first.bias, *settings]
        line += [first.group, seeds, len(row.results)]
        line += [first.number("parameters", key) for key in ("total", "trainable", "adapted_layers")]
        for column in table.columns:
            statistic = row.statistics.get(column.key)
            line += [statistic.mean, statistic.std, statistic.n] if statistic else [None, None, 0]
            line.append(row.delta(column.key) if column.quality else None)
        line.append(row.baseline.first.group if row.baseline else None)
        writer.writerow([_inert(value) if isinstance(value, str) else value for value in line])
    return buffer.getvalue()


def _inert(text: str) -> str:
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE)
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") and text and not number else text


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
    parts += [_markdown(note) for note in table.notes]
    if table.listed:
        parts.append("## Not, or not wholly, in the table")
        parts.append("\n".join(f"- {_markdown(str(x.run.path))}: {_markdown(x.reason)}" for x in table.listed))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _markdown_cell(cell: Cell) -> str:
    if not cell.text:
        return "–"
    text = cell.text if cell.number else _markdown(cell.text)
    return _with_std(f"**{text}**" if cell.bold else text, cell)


def _with_std(text: str, cell: Cell) -> str:
    return text + (f" ± {cell.std}" if cell.std else "") + (f" ({cell.n})" if cell.n is not None else "")


def _numeric(grid: Grid, i: int) -> bool:
    return any(row[i].number for row in grid.rows)


def to_text(table: Table, width: int | None = None) -> str:
    """The grids for a terminal, best values starred. Columns beyond ``width`` characters go on below, with the
    leading columns again."""
    parts = []
    for grid in table.grids:
        parts.append(f"{grid.title}\n{_plain_grid(grid, width)}")
    if table.notes:
        stars = any(cell.bold for grid in table.grids for row in grid.rows for cell in row)
        parts.append("\n".join([*(["* best in its column."] if stars else []), *table.notes]))
    if table.listed:
        lines = [f"  {listed.run.path}: {listed.reason}" for listed in table.listed]
        parts.append("\n".join(["Not, or not wholly, in the table:", *lines]))
    return "\n\n".join(parts)


def _plain_grid(grid: Grid, width: int | None) -> str:
    texts = [[cell.text for cell in grid.header]]
    texts += [[_with_std(c.text + ("*" if c.bold else ""), c) if c.text else "–" for c in row] for row in grid.rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(grid.header))]
    leading = grid.measured
    chunks: list[list[int]] = [[]]
    base = sum(widths[:leading]) + 2 * leading
    used = base
    for i in range(leading, len(widths)):
        if width and chunks[-1] and used + widths[i] + 2 > width:
            chunks.append([])
            used = base
        chunks[-1].append(i)
        used += widths[i] + 2
    adjust: list[Callable[[str, int], str]] = [
        str.rjust if _numeric(grid, i) else str.ljust for i in range(len(widths))
    ]
    blocks = []
    for chunk in chunks:
        shown_columns = [*range(leading), *chunk]
        lines = ["  ".join(adjust[i](row[i], widths[i]) for i in shown_columns).rstrip() for row in texts]
        blocks.append("\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]))
    return "\n\n".join(blocks)
