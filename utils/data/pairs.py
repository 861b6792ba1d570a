"""The user's own data: CSV or JSON lines with a column of prompts and a column of targets."""

from __future__ import annotations

from pathlib import Path

from utils.data import DataSource, Example, register
from utils.io.rows import SUFFIXES, find_split, read_rows
from utils.log import log


@register
class Pairs(DataSource):
    """A folder with ``train``, ``validation`` and ``test`` as .csv, .jsonl or .jsonl.gz.

    The model reads the prompt unchanged, then one blank and the target without the blanks and line breaks at its ends.
    Lines with the same prompt are one test item, with their targets as its references.
    """

    names = ("pairs",)
    needs_path = True
    takes_columns = True

    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        assert path is not None  # needs_path: the configuration check refuses a missing path
        file = find_split(path, tuple(f"{split}{suffix}" for suffix in SUFFIXES))
        prompt, target = self.columns
        rows = read_rows(file, self.columns, " (name yours in dataset.prompt and dataset.target)")
        if lost := sum(row[target].removeprefix(" ")[:1].isspace() for _, row in rows):
            log.warning("%s: %d of %d targets lose the blanks or line breaks before them", file, lost, len(rows))
        return [
            Example(row[prompt], row[prompt], f" {row[target].strip()}", row[target].strip(), where)
            for where, row in rows
        ]
