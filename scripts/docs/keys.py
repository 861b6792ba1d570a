"""The page of every key of train.py, from configs/train.yaml and the typed configuration.

``python -m scripts.docs.keys`` writes docs/keys.md. The comment of a key is its meaning there, its type and limits are
those that are checked.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.config.settings import Config
from utils.io.files import write_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "keys.md"
NOT_OURS = ("defaults", "hydra")  # Hydra's own nodes of train.yaml

LINE = re.compile(r"( *)([\w.]+):\s*([^#]*?)\s*(?:# (.*))?$")
MORE = re.compile(r"\s{8,}# (.*)$")

HEAD = """# Every key of train.py

Made by `python -m scripts.docs.keys` from [configs/train.yaml](../configs/train.yaml) and the typed configuration. A
key is set on the command line (`train.lr=3e-4`), in a file of `configs/experiment` (`experiment=NAME`), or for one
machine in `configs/local/default.yaml`. `null` means: not set. `python train.py --help` shows all keys as they are set.
"""


@dataclasses.dataclass
class Entry:
    """A key or a group of train.yaml: its dotted name, its default as written (empty for a group), its comment."""

    name: str
    default: str
    comment: str


def entries(text: str) -> list[Entry]:
    """The keys of train.yaml in its order, without Hydra's own."""
    found: list[Entry] = []
    parents: list[str] = []
    for line in text.splitlines():
        if more := MORE.match(line):
            found[-1].comment += " " + more[1]
        elif key := LINE.match(line):
            del parents[len(key[1]) // 2 :]
            parents.append(key[2])
            found.append(Entry(".".join(parents), key[3], key[4] or ""))
    return [entry for entry in found if entry.name.partition(".")[0] not in NOT_OURS]


def types_of(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each dotted key of the typed configuration, with its type and limits in words."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from types_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", _in_words(hints[field.name], field.metadata)


def _in_words(annotation: Any, limits: Any) -> str:
    if limits.get("choices"):
        return ", ".join(str(one).lower() if isinstance(one, bool) else str(one) for one in limits["choices"])
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    names = {int: "int", float: "number", bool: "true or false", str: "text", type(None): "null", Any: "text or list"}
    words = " or ".join(names.get(member, "list") for member in members)
    bounds = {"minimum": "at least", "above": "above", "maximum": "at most"}
    return ", ".join(
        [words, *(f"{word} {limits[bound]}" for bound, word in bounds.items() if limits.get(bound) is not None)]
    )


def page(text: str) -> str:
    """The page of the keys in ``text``, the content of train.yaml."""
    typed, lines, section = dict(types_of(Config())), [HEAD], None
    for entry in entries(text):
        group = entry.name if entry.name not in typed else entry.name.rpartition(".")[0]
        if group != section:
            section = group
            lines += ["", f"## {group or 'the run'}", ""]
            if entry.name not in typed and entry.comment:
                lines += [cell(entry.comment[0].upper() + entry.comment[1:]) + ".", ""]
            header = len(lines)
        if entry.name in typed:
            if len(lines) == header:
                lines += ["| key | default | type | meaning |", "| --- | --- | --- | --- |"]
            lines.append(f"| `{entry.name}` | `{entry.default}` | {cell(typed[entry.name])} | {cell(entry.comment)} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    for sign, shown in {"&": "&amp;", "<": "&lt;", "|": "\\|", "*": "\\*", "_": "\\_"}.items():
        text = text.replace(sign, shown)
    return text


if __name__ == "__main__":
    write_text(PAGE, page((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8")))
