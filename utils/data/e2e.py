"""E2E NLG (Novikova, Dušek and Rieser 2017): restaurant descriptions from meaning representations."""

from __future__ import annotations

from pathlib import Path

from utils.data import DataSource, Example, pair, register
from utils.io import hub
from utils.io.rows import find_split, read_rows

FILES = {
    "train": ("trainset.csv", "train.csv"),
    "validation": ("devset.csv", "validation.csv", "valid.csv", "dev.csv"),
    "test": ("testset_w_refs.csv", "test.csv"),
}


@register
class E2E(DataSource):
    """The challenge's own CSV files (columns mr, ref), or ``tuetschek/e2e_nlg`` from the hub."""

    names = ("e2e_nlg", "e2e")

    def prompt(self, source: str) -> str:
        return pair(source, "").prompt

    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        if path is not None:
            rows = read_rows(find_split(path, FILES[split]), ("mr", "ref"))
            return [pair(row["mr"].strip(), row["ref"].strip(), where) for where, row in rows]
        # datasets >= 4 no longer runs the repository's loading script, but reads its parquet conversion
        rows = hub.load_split("tuetschek/e2e_nlg", split, cache, revision="refs/convert/parquet")
        return [pair(row["meaning_representation"].strip(), row["human_reference"].strip()) for row in rows]
