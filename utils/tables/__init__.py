"""Tables of all runs of a data set, read from the runs' own files and never from their directory names.

``layout.py`` makes the cells, ``order.py`` sorts the rows, ``notes.py`` writes the caption; ``render.py`` writes CSV,
Markdown and plain text, ``latex.py`` LaTeX.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.errors import UserError, printable
from utils.io.files import write_text
from utils.results.methods import known_methods
from utils.results.read import Listed, Result, plain, read_results
from utils.tables.latex import to_latex
from utils.tables.layout import Table, make_table
from utils.tables.render import to_csv, to_markdown, to_text
from utils.text import slug

FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex}

__all__ = ["FORMATS", "Table", "compile_results", "make_table", "read_results"]


def compile_results(
    roots: Sequence[str | Path],
    datasets: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    baseline: str = "none",
    out: Path | None = None,
) -> list[Path]:
    """Write and print one table for each data set with a finished run.

    Args:
        roots: folders searched for runs.
        datasets: only these; empty for all.
        columns, sort, baseline: see ``make_table``.
        formats: of ``FORMATS``; ``results.<format>`` is written for each.
        out: its folder ``<dataset>/`` is written to; None for the folder that holds the data set's runs.

    Returns: the files written.

    Raises:
        UserError: no such folder, no runs, none of a data set asked for, none finished, an unknown column, method or
            format, a folder that cannot be written. Nothing is written then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"--format: {plain(unknown[0])!r} is not known. Known: {', '.join(FORMATS)}")
    results, unreadable = read_results(roots)
    by_dataset: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_dataset[result.dataset].append(result)
    chosen = _chosen(datasets, sorted(by_dataset))
    _check_baseline(baseline, results)
    tables = [make_table(name, by_dataset[name], unreadable, columns, sort, baseline) for name in chosen]
    if not any(table.rows for table in tables):
        listed = [*unreadable] if not tables else tables[0].listed
        raise UserError("no run has finished, so there is no table.\n" + _listing(listed))
    written: list[Path] = []
    width = shutil.get_terminal_size((100, 24)).columns
    folders = {name: _folder(by_dataset[name], out, roots) for name in chosen}
    for table in tables:
        if not table.rows:
            print(f"{table.dataset}: no run has finished.\n{_listing(table.listed)}\n")
            continue
        folder = folders[table.dataset]
        shared = [name for name in folders if folders[name] == folder]
        stem = "results" if len(shared) == 1 else f"results-{slug(table.dataset) or 'unknown'}"
        files = {folder / f"{stem}.{name}": FORMATS[name](table) for name in formats}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                write_text(file, text)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}. Give another folder with --out.") from None
        print(to_text(table, width))
        print("\nwritten:", ", ".join(map(printable, files)), end="\n\n")
        written += files
    return written


def _chosen(datasets: Sequence[str], present: list[str]) -> list[str]:
    if not datasets:
        return present
    chosen = []
    for name in datasets:
        canonical = name if name in present else _canonical(name)
        if canonical not in present:
            raise UserError(f"--dataset: no run is of {plain(name)!r}. The runs are of: {', '.join(present)}")
        chosen.append(canonical)
    return list(dict.fromkeys(chosen))


def _canonical(name: str) -> str:
    from utils.data import sources  # an alias is rare, and the data sets' libraries are slow to import

    source = sources().get(name)
    return source.names[0] if source else name


def _check_baseline(baseline: str, results: list[Result]) -> None:
    methods = {result.method for result in results} | set(known_methods())
    if baseline not in methods:
        known = ", ".join(sorted(methods))
        raise UserError(f"--baseline: {plain(baseline)!r} is no method of these runs. Known: {known}")


def _folder(results: list[Result], out: Path | None, roots: Sequence[str | Path]) -> Path:
    """Where a data set's files go: under ``out``, or the folder that holds its runs below the first root with any."""
    if out is not None:
        return out / (slug(results[0].dataset) or "unknown")
    for root in roots:
        base = Path(root).resolve()
        inside = [r.run.path for r in results if base == r.run.path.resolve() or base in r.run.path.resolve().parents]
        if inside:
            return Path(os.path.commonpath([path.parent for path in inside]))
    return results[0].run.path.parent


def _listing(listed: Sequence[Listed]) -> str:
    return "\n".join(f"  {printable(entry.run.path)}: {entry.reason}" for entry in listed)
