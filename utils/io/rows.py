"""Read CSV and JSON lines strictly: an error names file and line, and nothing is skipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io.files import decode, read_bytes

SHOWN = 8  # rows that a message names; it counts all
SUFFIXES = (".csv", ".jsonl", ".jsonl.gz", ".json.gz")
Row = tuple[str, dict[str, Any]]  # its place ("file, line 3") and its fields


def _unpacked_text(path: Path) -> str:
    """The text of a UTF-8 file, unpacked if its name ends in .gz; without a byte order mark, line ends unchanged."""
    try:
        content = read_bytes(path)
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return decode(path, content, "utf-8-sig")


def read_csv(path: Path, columns: tuple[str, ...], hint: str = "") -> list[Row]:
    """The rows of a CSV file with a header that has at least ``columns``; ``hint`` ends the message if it has not."""
    csv.field_size_limit(sys.maxsize)
    # a NUL would end a field early in other readers
    text = _unpacked_text(path)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line} has a NUL character: this is not a text file")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="")
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise UserError(f"{path} has no column {' or '.join(missing)}; its columns: {found}{hint}")
        twice = [name for name in columns if list(reader.fieldnames or ()).count(name) > 1]
        if twice:
            raise UserError(f"{path} has the column {twice[0]} twice")
        rows = []
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if isinstance(row.get(""), list):  # under restkey; a column without a name has a text there
                raise UserError(f"{where} has more fields than the header: quote fields that hold commas")
            if any(row[name] is None for name in columns):
                raise UserError(f"{where} has fewer fields than the header")
            rows.append((where, row))
        return rows
    except csv.Error as error:
        # line_num is the end of the last good row
        raise UserError(f"{path}, line {reader.line_num + 1}: no CSV from here on: {error}") from None


def read_json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file; numbers are texts as they are written, as in a CSV."""
    lines = _unpacked_text(path).split("\n")
    return json_objects(path, lines, parse_int=str, parse_float=str, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a repeated key, of which json would take the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def json_objects(
    path: Path, lines: Iterable[str | bytes], bad: list[str] | None = None, **options: Any
) -> Iterator[Row]:
    """The JSON object on each of ``lines``, which were read from ``path``; empty lines are skipped.

    Args:
        bad: gets what is wrong with each line that is no JSON object, instead of an error.
        options: of ``json.loads``.

    Raises:
        UserError: names the line that is no JSON object.
    """
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            value, wrong = json.loads(line, **options), "is not a JSON object with fields"
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of too many digits
            value, wrong = None, f"is not JSON that can be read: {error}"
        if isinstance(value, dict):
            yield where, value
        elif bad is None:
            raise UserError(f"{where} {wrong}")
        else:
            bad.append(f"{where} {wrong}")


def read_rows(path: Path, columns: tuple[str, ...], hint: str = "") -> list[Row]:
    """The records of a CSV or JSON-lines file. ``hint`` ends the message if there is no such column or field.

    Raises:
        UserError: a field of ``columns`` is missing, no text or empty. The first of these rows are named, all counted.
    """
    records = read_csv(path, columns, hint) if path.suffix == ".csv" else list(read_json_lines(path))
    if not records:
        raise UserError(f"{path} has no records")
    for name in columns:
        if not any(name in record for _, record in records):
            where, record = records[0]
            raise UserError(f"{where} has no field {name}; its fields: {', '.join(record) or 'none'}{hint}")
    lost = []
    for where, record in records:
        empty = [name for name in columns if not isinstance(text := record.get(name), str) or not text.strip()]
        if empty:
            lost.append(f"{where.rpartition(', ')[2]} ({' and '.join(empty)})")
        for name in set(columns) - {*empty}:
            check_characters(where, name, record[name])
    if lost:
        first = ", ".join(lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
        raise UserError(
            f"{path}, {first}: empty or not a text ({len(lost)} of {len(records)} rows). Complete or remove them"
        )
    return records


def check_characters(where: str, name: str, text: str) -> None:
    """Raise UserError for a text that no UTF-8 file can hold: JSON allows half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {name} has half a surrogate pair, which is no character") from None


def find_split(folder: Path, names: tuple[str, ...]) -> Path:
    """The file of a split in ``folder``: the only one of ``names`` that exists.

    Raises:
        UserError: there is no such folder, none or several of the files, or something that is no file; says what to do.
    """
    if not folder.exists():
        raise UserError(f"dataset.path={folder} does not exist")
    if not folder.is_dir():
        raise UserError(f"dataset.path={folder} is a file: give the folder that holds {', '.join(names[:3])}")
    found = [folder / name for name in names if os.path.lexists(folder / name)]
    if not found:
        raise UserError(f"dataset.path={folder} holds none of {', '.join(names)}")
    if len(found) > 1:
        raise UserError(
            f"dataset.path={folder} holds {' and '.join(path.name for path in found)}, and only one of them can be the "
            "split: move the others away"
        )
    if not found[0].is_file():
        kind = "a folder" if found[0].is_dir() else "a link to nothing" if found[0].is_symlink() else "no regular file"
        raise UserError(f"{found[0]} is {kind}: put the file of the split there")
    return found[0]
