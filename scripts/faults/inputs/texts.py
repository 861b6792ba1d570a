"""Data files, predictions and references."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.faults.inputs.judge import Input
from scripts.faults.inputs.mutate import damaged
from scripts.faults.inputs.oracles import by_csv, by_json
from utils.data import Example
from utils.data.e2e import E2E
from utils.data.eli5 import ELI5
from utils.data.pairs import Pairs
from utils.metrics.__main__ import main as score


def _files(
    good: bytes, name: str, load: Callable[[Path], list[Example]], oracle: Callable[[bytes], Any],
    folder: Path, chance: random.Random,
) -> Iterator[Input]:  # fmt: skip
    path = folder / name
    while True:
        what, content = damaged(good, chance)
        if chance.random() < 0.3:
            more, content = damaged(content, chance)
            what = f"{what}, {more}"
        plain = content
        if name.endswith(".gz"):
            content = gzip.compress(content, mtime=0)
            if chance.random() < 0.3:
                more, content = damaged(content, chance)
                what = f"{what}, compressed: {more}"
        path.write_bytes(content)

        def check(found: Any, _printed: str, content: bytes = content, plain: bytes = plain) -> str | None:
            try:
                plain = gzip.decompress(content) if name.endswith(".gz") else content
            except Exception:
                return "a damaged archive was read"
            expected = oracle(plain)
            same = [(item.source, item.reference) for item in found] == expected
            return None if same else f"read {len(found)} items that are not the file's"

        yield Input(f"{name}: {what}", lambda: load(folder), (str(path),), check=check)


def e2e(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """E2E's CSV file, damaged."""
    good = (data / "e2e_nlg" / "devset.csv").read_bytes()
    return _files(good, "devset.csv", lambda path: E2E().load("validation", path, None), by_csv, folder, chance)


def eli5(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """ELI5's JSON lines, damaged."""
    good = (data / "eli5" / "validation.jsonl").read_bytes()
    return _files(good, "validation.jsonl", lambda path: ELI5().load("validation", path, None), by_json, folder, chance)


def eli5_gzip(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """The same compressed, the archive damaged too."""
    good = (data / "eli5" / "validation.jsonl").read_bytes()
    load = lambda path: ELI5().load("validation", path, None)  # noqa: E731
    return _files(good, "validation.jsonl.gz", load, by_json, folder, chance)


def pairs(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """A user's own CSV file, damaged."""
    good = (data / "e2e_nlg" / "devset.csv").read_bytes().replace(b"mr,ref", b"prompt,target", 1)

    def oracle(content: bytes) -> list[tuple[str, str]] | None:
        return by_csv(content, ("prompt", "target"))

    def load(path: Path) -> list[Example]:
        found = Pairs().load("validation", path, None)
        return [Example(item.source.strip(), "", "", item.reference) for item in found]

    return _files(good, "validation.csv", load, oracle, folder, chance)


def predictions(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """A system's predictions and their references, plain or as tables, one of the two damaged."""
    rows = by_csv((data / "e2e_nlg" / "testset_w_refs.csv").read_bytes()) or []
    sources = list(dict.fromkeys(mr for mr, _ in rows))
    texts = {source: [ref for mr, ref in rows if mr == source] for source in sources}
    plain = {
        "predictions.txt": "".join(f"{texts[source][0]}\n" for source in sources),
        "references.txt": "\n".join("".join(f"{text}\n" for text in texts[source]) for source in sources),
    }
    tables = {
        "predictions.tsv": "MR\toutput\n" + "".join(f"{source}\t{texts[source][0]}\n" for source in sources),
        "references.tsv": "mr\tref\n" + "".join(f"{mr}\t{ref}\n" for mr, ref in rows),
    }
    while True:
        files = chance.choice([plain, tables])
        paths = [folder / name for name in files]
        for path in paths:
            path.write_text(files[path.name], encoding="utf-8")
        bad = chance.choice(paths)
        what, content = damaged(bad.read_bytes(), chance)
        bad.write_bytes(content)

        def call(paths: list[Path] = paths) -> int:
            return score([*map(str, paths), "--json", "--metrics", "BLEU,ROUGE_L"])

        def check(_code: Any, printed: str) -> str | None:
            values = json.loads(printed[printed.index("{") :])
            return None if all(0 <= value < 1 + 1e-9 for value in values.values()) else f"scores {values}"

        yield Input(f"{bad.name}: {what}", call, tuple(map(str, paths)), check=check)
