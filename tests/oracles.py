"""What a data file holds according to Python's own csv and json modules; None or a line where its format forbids it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

Pairs = list[tuple[str, str]]


def by_csv(content: bytes, columns: tuple[str, str] = ("mr", "ref")) -> Pairs | None:
    """The rows of two columns as Python's csv module reads them, None for a file that the format does not allow."""
    try:
        text = content.decode("utf-8-sig")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError):
        return None
    rows = [row for row in rows if row]
    if "\0" in text or not rows or any(header.count(name) != 1 for name in columns):
        return None
    first, second = (header.index(name) for name in columns)
    if any(not max(first, second) < len(row) <= len(header) for row in rows):
        return None
    found = [(row[first].strip(), row[second].strip()) for row in rows]
    return found if all(all(pair) for pair in found) else None


def by_json(content: bytes) -> Pairs | int | None:
    """(question, answer) pairs as the json module reads them line by line, the first bad line's number, None without.

    A question is title and selftext; every text that is used must be one, or a number, and not be empty. An object has
    each field once.
    """

    def text(value: Any) -> str:
        value.encode()
        return value.strip() or 1 / 0  # type: ignore[return-value]

    def fields(found: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in found}) == len(found)
        return dict(found)

    pairs = []
    for number, raw in enumerate(content.split(b"\n"), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if not line.strip():
                continue
            record = json.loads(line, parse_int=str, parse_float=str, object_pairs_hook=fields)
            if "title" in record:
                more = record.get("selftext") or ""
                more.encode()
                question = f"{text(record['title'])} {more.strip()}".strip()
                answers = record["answers.text"] if "answers.text" in record else record["answers"]["text"]
                assert isinstance(answers, list) and answers
            else:
                question, answers = text(record["question"]), [record["answer"]]
            pairs += [(question, text(answer)) for answer in answers]
        except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError, AssertionError, RecursionError):
            return number
    return pairs or None


def first_bad_line(content: bytes) -> int | None:
    """The number of the first line that is not UTF-8."""
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return None
