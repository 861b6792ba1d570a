"""A table as LaTeX with booktabs. Every text is escaped, so that any name is safe to \\input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from utils.tables.layout import Cell, Grid, Table
from utils.text import printable_line, slug

_MAX_COLUMNS = 6  # measured columns that are readable on one page
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    "[": "{[}",  # LaTeX reads a bracket or star after \\ as an option
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",  # two hyphens must not become a dash
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": "$-$",
    "–": "--",
}
_NUMBER = {"−": "$-$", "+": "$+$", ",": "{,}", "%": r"\%"}  # the signs of a cell that is a number
_ACCENTED = {chr(code) for code in range(0xC0, 0x100)} - set("ÐðÞþ×÷")  # every font encoding has these letters


def escape(text: str) -> str:
    """``text`` as LaTeX source. A character that standard fonts lack becomes its code: (U+4E2D)."""
    return "".join(map(_escaped, printable_line(text)))


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    return char if char.isascii() or char in _ACCENTED else f"(U+{ord(char):04X})"


def to_latex(table: Table) -> str:
    """One ``table*`` per grid, scaled down if it is wider than the page.

    The notes are in the first caption, the omitted runs in comments. If the first grid has too many columns, it becomes
    two tables, quality and cost.
    """
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    best = [f"Bold: {table.best_note}"] if table.best_note else []
    for i, grid in enumerate([*_split(table.grids[0]), *table.grids[1:]]):
        caption = [grid.title, *table.notes, *best] if i == 0 else [f"{table.dataset}: {grid.title}"]
        label = "-".join(filter(None, [f"tab:{slug(table.dataset, r'[^A-Za-z0-9]+')}", grid.name]))
        parts.append(_environment(grid, " ".join(f"{text.rstrip('.')}." for text in caption), label))
    if table.omissions:
        parts.append("% Not in the table, or not complete:")
        parts += [f"%   {printable_line(name)}: {printable_line(reason)}" for name, reason in table.public_omissions()]
    return "\n".join(parts) + "\n"


def _split(grid: Grid) -> list[Grid]:
    measured = range(grid.measured, len(grid.header))
    quality = [i for i in measured if i not in grid.costs]
    if len(measured) <= _MAX_COLUMNS or not quality or not grid.costs:
        return [grid]
    return [_columns(grid, quality), replace(_columns(grid, grid.costs), title="cost", name="cost")]


def _columns(grid: Grid, indices: Sequence[int]) -> Grid:
    """``grid`` with its leading columns and the columns at ``indices``."""
    kept = [*range(grid.measured), *indices]
    rows = [[row[i] for i in kept] for row in grid.rows]
    return Grid(grid.title, [grid.header[i] for i in kept], rows, grid.model_starts, grid.measured)


def _environment(grid: Grid, caption: str, label: str) -> str:
    alignment = "".join("r" if any(row[i].number for row in grid.rows) else "l" for i in range(len(grid.header)))
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _line([escape(cell.text) for cell in grid.header]),
        r"\midrule",
    ]
    for i, row in enumerate(grid.rows):
        if i in grid.model_starts:
            lines.append(r"\midrule")
        lines.append(_line([_cell(cell) for cell in row]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}"])


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    if not cell.text:
        return "--"
    text = "".join(_NUMBER.get(char, char) for char in cell.text) if cell.number else escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    std = rf" {{\scriptsize $\pm$ {cell.std.replace(',', '{,}')}}}" if cell.std else ""
    return text + std + (f" ({cell.n})" if cell.n is not None else "")
