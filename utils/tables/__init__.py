"""Tables of a data set's runs, from the files of the runs and not from their directory names.

``layout.py`` makes a table as cells; ``columns.py`` in ``utils.results`` has the columns. ``order.py`` sorts its rows,
``notes.py`` writes its caption. ``render.py`` (CSV, Markdown, text) and ``latex.py`` print it.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.errors import UserError, printable
from utils.io.archives import archive_of
from utils.io.files import write_results
from utils.results.methods import known_methods
from utils.results.read import Omission, Result, read_results
from utils.runs import Run
from utils.tables.latex import to_latex
from utils.tables.layout import Table, make_table
from utils.tables.render import to_csv, to_markdown, to_text
from utils.text import printable_line, slug

FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex}

__all__ = ["FORMATS", "compile_results"]


def compile_results(
    roots: Sequence[str | Path],
    datasets: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    baseline: str = "none",
    out: Path | None = None,
) -> list[Path]:
    """Write and print one table per data set that has a finished run.

    Args:
        roots: folders that are searched for runs.
        datasets: only these data sets; empty for all.
        columns, sort, baseline: see ``make_table``.
        formats: names in ``FORMATS``; each gives a file ``results.<format>``.
        out: write to ``<out>/<dataset>/``; None for the folder with the data set's runs, or if every root is a run,
            the first of these: a table of some runs must not replace that of all.

    Returns: the files written.

    Raises:
        UserError: a missing folder, no runs, no run of a given data set, no finished run, an unknown column, method or
            format (nothing is written in these cases), or a folder that cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"--format: {printable_line(unknown[0])!r} is not known. Known: {', '.join(FORMATS)}")
    if out is None and (archive := next(filter(None, map(archive_of, roots)), None)):
        raise UserError(f"Set --out: {printable(archive)} is an archive, which no table can be written into.")
    results, unreadable = read_results(roots)
    by_dataset: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_dataset[result.dataset].append(result)
    chosen = _chosen(datasets, sorted(by_dataset))
    _check_baseline(baseline, results)
    tables = [make_table(name, by_dataset[name], unreadable, columns, sort, baseline) for name in chosen]
    if not any(table.rows for table in tables):
        omissions = [*unreadable] if not tables else tables[0].omissions
        raise UserError("no run has finished, so there is no table.\n" + _lines(omissions))
    written: list[Path] = []
    width = shutil.get_terminal_size((100, 24)).columns
    folders = {name: _folder(by_dataset[name], out, roots) for name in chosen}
    for table in tables:
        if not table.rows:
            print(f"{table.dataset}: no run has finished.\n{_lines(table.omissions)}\n")
            continue
        folder = folders[table.dataset]
        shared = [name for name in folders if folders[name] == folder]
        stem = "results" if len(shared) == 1 else f"results-{slug(table.dataset) or 'unknown'}"
        files = {folder / f"{stem}.{name}": FORMATS[name](table).encode() for name in formats}
        write_results(folder, files)
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
            raise UserError(
                f"--dataset: there is no run on {printable_line(name)!r}. The runs are on: {', '.join(present)}"
            )
        chosen.append(canonical)
    return list(dict.fromkeys(chosen))


def _canonical(name: str) -> str:
    from utils.data import sources  # only for an alias: the libraries of the data sets are slow to import

    source = sources().get(name)
    return source.names[0] if source else name


def _check_baseline(baseline: str, results: list[Result]) -> None:
    methods = {result.method for result in results} | set(known_methods())
    if baseline not in methods:
        known = ", ".join(sorted(methods))
        raise UserError(f"--baseline: {printable_line(baseline)!r} is not a method of these runs. Known: {known}")


def _folder(results: list[Result], out: Path | None, roots: Sequence[str | Path]) -> Path:
    """The folder for a data set's files: see ``compile_results``. Of runs, their common folder below the first root."""
    if out is not None:
        return out / (slug(results[0].dataset) or "unknown")
    if all(Run(Path(root)).record_file.is_file() for root in roots):
        return results[0].run.path
    for root in roots:
        base = Path(root).resolve()
        inside = [r.run.path for r in results if base == r.run.path.resolve() or base in r.run.path.resolve().parents]
        if inside:
            return Path(os.path.commonpath([path.parent for path in inside]))
    return results[0].run.path.parent


def _lines(omissions: Sequence[Omission]) -> str:
    return "\n".join(f"  {printable(omission.run.path)}: {omission.reason}" for omission in omissions)
