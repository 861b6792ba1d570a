"""Reads predictions and references like the E2E challenge's scorer, but refuses files that it misreads.

Predictions are one text per line. References are one text per line, in groups separated by empty lines; a file
without empty lines has one reference per prediction. Either may be a table (TSV or CSV) with a header, a source column
(``mr``) and a text column. Rows with the same source are one item. A table of predictions is sorted into the order of
the references by its sources.

The official scorer scores a table that lacks rows, and loses the rows after an unbalanced quotation mark, without a
message. Both are errors here.
"""

from __future__ import annotations

import contextlib
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.io.files import read_text
from utils.runs import Run
from utils.runs.texts import read_texts
from utils.text import one_line

SOURCE_COLUMNS = ("mr", "source", "src", "meaning_representation")
TEXT_COLUMNS = ("ref", "reference", "output", "prediction", "system_output", "text", "target", "tgt", "sys")
DELIMITERS = {"\t": "TSV", ",": "CSV"}


@dataclass(frozen=True)
class Items:
    """One system's output and the references, item by item."""

    predictions: list[str]
    references: list[list[str]]
    sources: list[str] | None  # what each text was made from, if the files contain it


@dataclass(frozen=True)
class Row:
    """A text, the number of its line and, in a table, its source."""

    line: int
    text: str
    source: str | None = None


def read_items(predictions: Path, references: Path, *, tables: bool = True) -> Items:
    """Read and match the two files. Raises UserError that names the file and the line of the problem.

    Args:
        tables: False if the files are plain lines, even if the first line looks like the header of a table.
    """
    groups, sources = read_references(references, tables=tables)
    rows = read_rows(predictions, tables=tables)
    if sources is not None and rows and rows[0].source is not None:
        texts = _by_source(rows, sources, predictions)
    else:
        if sources is None and len(groups) == 1 and len(rows) == len(groups[0]):  # no empty line in the file
            groups = [[text] for text in groups[0]]
        _check_count(rows, groups, predictions, references)
        texts = [row.text for row in rows]
        if sources is None and rows and rows[0].source is not None:
            sources = [row.source or "" for row in rows]
    return Items(texts, groups, sources)


def read_run(run: Run, split: str) -> Items:
    """The texts of an evaluated run, from its JSON lines, or from its line files if another tool wrote them.

    Raises:
        UserError: a file is missing or damaged, or the line files and the JSON lines have different texts.
    """
    if not run.raw_predictions(split).exists():
        if (run.evaluation(split) or {}).get("raw_predictions_sha256"):
            raise UserError(f"{run.raw_predictions(split)} is missing, which eval.py wrote. Run eval.py again.")
        return read_items(run.predictions(split), run.references(split), tables=False)
    answers = read_texts(run, split)
    return Items(
        [one_line(answer.prediction) for answer in answers],
        [[one_line(text) for text in answer.references] for answer in answers],
        [answer.source for answer in answers],
    )


def read_predictions(path: Path) -> list[str]:
    """The predictions of a file in file order. An empty line is an empty prediction."""
    return [row.text for row in read_rows(path)]


def read_references(path: Path, *, tables: bool = True) -> tuple[list[list[str]], list[str] | None]:
    """Groups of references and, from a table, the source of each group.

    Raises:
        UserError: the file is missing, not UTF-8 or empty, or has two empty lines in a row, which would be an item
            without references.
    """
    rows = read_rows(path, tables=tables)
    if rows and rows[0].source is not None:
        by_source: dict[str, list[str]] = {}
        for row in rows:
            if not row.text:
                raise UserError(f"{path}, line {row.line}: the reference is empty")
            by_source.setdefault(row.source or "", []).append(row.text)
        return list(by_source.values()), list(by_source)
    while rows and not rows[-1].text:
        rows.pop()
    groups: list[list[str]] = [[]]
    for row in rows:
        if row.text:
            groups[-1].append(row.text)
        elif groups[-1]:
            groups.append([])
        else:
            raise UserError(
                f"{path}, line {row.line}: an empty line where a reference should be. "
                "Groups are separated by one empty line, and every item needs a reference."
            )
    if not groups[0]:
        raise UserError(f"{path} is empty: it should have references, one group per prediction")
    return groups, None


def read_rows(path: Path, *, tables: bool = True) -> list[Row]:
    """The rows of a file of plain lines or of a table. Raises UserError if the file cannot be read as such texts."""
    if path.suffix.lower() in (".json", ".jsonl"):
        raise UserError(
            f"{path}: JSON would be scored as text, with its braces and field names. Give the texts alone as a .txt "
            "file, one per line (eval.py writes one beside its .jsonl), or a table with a header."
        )
    try:
        content = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    # Only \n ends a line: U+2028, U+0085 or a vertical tab in a generated text must not shift the lines after it.
    lines = [line.rstrip("\r").replace("\r", " ") for line in content.split("\n")]
    if lines[-1] == "":
        lines.pop()
    delimiter = _delimiter(path, lines) if tables else None
    if delimiter is None:
        if content.startswith("\ufeff"):
            print(
                f"warning: {path} begins with a byte order mark, which counts as text, as in the official scorer: save "
                "the file without it",
                file=sys.stderr,
            )
        return [Row(number, one_line(line)) for number, line in enumerate(lines, 1)]
    return _table(path, lines, delimiter)


def _delimiter(path: Path, lines: list[str]) -> str | None:
    """The delimiter of a table, or None for plain lines. A table has a header with a source and a text column."""
    header = lines[0].removeprefix("\ufeff").strip() if lines else ""
    for delimiter in DELIMITERS:
        with contextlib.suppress(csv.Error):  # not a header
            if _columns(_split(header, delimiter)) is not None:
                return delimiter
    if path.suffix.lower() in (".tsv", ".csv"):
        raise UserError(
            f"{path}, line 1: a table needs a header with a source column ({', '.join(SOURCE_COLUMNS)}) "
            f"and a text column ({', '.join(TEXT_COLUMNS)}); found {header[:80]!r}. "
            "Rename the columns, or give the texts alone as a .txt file, one per line."
        )
    return None


def _columns(header: list[str]) -> tuple[int, int] | None:
    names = [_named(name) for name in header]
    source = next((names.index(name) for name in SOURCE_COLUMNS if name in names), None)
    text = next((names.index(name) for name in TEXT_COLUMNS if name in names), None)
    return None if source is None or text is None else (source, text)


def _named(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _unbalanced(line: str, delimiter: str) -> bool:
    try:
        next(csv.reader([line], delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


def _table(path: Path, lines: list[str], delimiter: str) -> list[Row]:
    header = _split(lines[0].removeprefix("\ufeff").strip(), delimiter)
    columns = _columns(header)
    assert columns is not None
    source, text = columns
    texts = [name for name in header if _named(name) in TEXT_COLUMNS]
    if len(texts) > 1:  # references would be scored as predictions, perhaps against themselves
        raise UserError(
            f"{path}, line 1: any of the columns {', '.join(texts)} may hold the texts: keep the one to be scored, or "
            "scored against, beside the sources"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        if _unbalanced(line, delimiter):
            raise UserError(
                f"{path}, line {number}: a quotation mark is opened and not closed, so the following rows would become "
                'part of this field. Close it, or write it twice ("") inside a quoted field.'
            )
        try:
            fields = _split(line, delimiter)
        except csv.Error as error:
            raise UserError(f"{path}, line {number} is not a table row: {error}") from None
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number} has {len(fields)} columns, the header has {len(header)}. "
                f"Quote texts that contain the {DELIMITERS[delimiter]} delimiter."
            )
        rows.append(Row(number, one_line(fields[text]), fields[source].strip()))
    return rows


def _by_source(rows: list[Row], sources: list[str], path: Path) -> list[str]:
    known, texts = set(sources), {}
    for row in rows:
        assert row.source is not None
        if row.source not in known:
            raise UserError(f"{path}, line {row.line}: the references have no source {row.source!r}")
        if row.source in texts:
            raise UserError(f"{path}, line {row.line}: a second text for the source {row.source!r}")
        texts[row.source] = row.text
    missing = [source for source in sources if source not in texts]
    if missing:
        raise UserError(
            f"{path} has no text for {len(missing)} of {len(sources)} sources, the first {missing[0]!r}. "
            "Give one row per source; an empty text is an empty prediction."
        )
    return [texts[source] for source in sources]


def _check_count(rows: list[Row], groups: list[list[str]], predictions: Path, references: Path) -> None:
    if len(rows) == len(groups):
        return
    counts = f"{predictions} has {len(rows)} predictions, {references} has {len(groups)} groups of references"
    if len(rows) > len(groups):
        where = f"line {rows[len(groups)].line} of the predictions is the first without references"
    else:
        example = groups[len(rows)][0][:60]
        where = f"group {len(rows) + 1} of the references ({example!r}) is the first without a prediction"
    lines = len(groups[0])
    hint = f" Without empty lines, the {lines} references belong to one item, or to {lines} predictions."
    hint = hint if len(groups) == 1 else ""
    raise UserError(f"{counts}: {where}. An empty prediction is an empty line.{hint}")
