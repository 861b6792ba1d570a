"""The user's own data: CSV or JSON lines with the columns ``prompt`` and ``target``."""

from __future__ import annotations

from pathlib import Path

from utils.data import DataSource, Example, register
from utils.io.rows import SUFFIXES, find_split, read_rows


@register
class Pairs(DataSource):
    """A folder with ``train``, ``validation`` and ``test`` as .csv, .jsonl or .jsonl.gz.

    The model reads the prompt unchanged, then one blank and the target without the blanks and line breaks at its ends.
    Lines with the same prompt are one test item, with their targets as its references.
    """

    names = ("pairs",)
    needs_path = True

    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        assert path is not None  # needs_path: the configuration check refuses a missing path
        file = find_split(path, tuple(f"{split}{suffix}" for suffix in SUFFIXES))
        return [
            Example(row["prompt"], row["prompt"], f" {row['target'].strip()}", row["target"].strip(), where)
            for where, row in read_rows(file, ("prompt", "target"))
        ]
