"""Data sets, one file per data set, registered by name.

- ``e2e``, ``eli5``: the published data sets, from local files or the hub
- ``e2e_sample``: the bundled data set, generated with ``_sentences``
- ``pairs``: the user's own CSV or JSON lines

A new data set is a new file here with a ``DataSource`` subclass under ``@register``; no list has to be edited. Every
source returns ``Example`` objects: texts, not tokens. This folder may import ``utils.io``, ``log``, ``text`` and
``errors``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rosa.registry import Registry
from utils.errors import UserError
from utils.text import suggestions

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One training pair. ``source`` is what the text was made from (E2E: the meaning representation);
    examples of equal source are one item for generation, their ``reference`` texts its references.
    ``where`` is the place in a local file that it was read from, for messages."""

    source: str
    prompt: str
    target: str
    reference: str
    where: str = field(default="", compare=False)


class DataSource(ABC):
    """A data set. ``names``: the canonical name (its folder under the output path), then its aliases."""

    names: ClassVar[tuple[str, ...]]
    loss_on: ClassVar[str] = "target"  # which tokens carry loss when train.loss_on is null: target or all
    packed: ClassVar[bool] = False  # True: documents joined and cut into blocks of train.block_size tokens
    generate_limit: ClassVar[int | None] = None  # eval.py generates for the first so many items; None: for all
    needs_path: ClassVar[bool] = False  # True: dataset.path has no default to fall back on
    metrics: ClassVar[tuple[str, ...]] = ()  # its scores in the order of a table; empty: all that apply to its texts

    @abstractmethod
    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        """The examples of ``split`` in file order.

        Args:
            split: train, validation or test.
            path: a local file or folder that takes precedence over the hub; None for the hub or bundled data.
            cache: the hub's cache folder, None for its default.

        Raises:
            UserError: the data cannot be had or is malformed; names file and line, and the way out.
        """


_SOURCES: Registry[type[DataSource]] = Registry(__name__, "data set")
Source = TypeVar("Source", bound=type[DataSource])


def register(source: Source) -> Source:
    """Class decorator: make a data source known under each of its names."""
    _SOURCES.add(source, *source.names)
    return source


def sources() -> dict[str, type[DataSource]]:
    """Every registered data source by name, aliases included."""
    return _SOURCES.all()


def get_source(name: str) -> DataSource:
    """The data source of that name. Raises UserError with the known names and the nearest one."""
    known = sources()
    if name not in known:
        raise UserError(f"dataset.name={name} is not known. {suggestions(name, known)}")
    return known[name]()


def metrics_of(name: Any) -> tuple[str, ...]:
    """The scores that the data set ``name`` lists; empty, which stands for all, also where it is not known here."""
    source = sources().get(name) if isinstance(name, str) else None
    return source.metrics if source else ()


def group_by_source(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples of equal source together, wherever they stand; sources in order of first appearance."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    return list(groups.values())


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 of the texts of ``examples`` in their order, hexadecimal."""
    found = hashlib.sha256()
    for example in examples:
        add_texts(found, example.source, example.prompt, example.target, example.reference)
    return found.hexdigest()


def add_texts(found: Any, *texts: str) -> None:
    """Add texts to a hashlib object so that other texts, or the same ones cut elsewhere, give another digest."""
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)


def training_units(source: DataSource, examples: Sequence[Example]) -> list[list[Example]]:
    """What ``train.fraction`` counts and never takes apart: the documents of a packed data set, else the pairs."""
    return group_by_source(examples) if source.packed else [[example] for example in examples]


def pair(source: str, reference: str, where: str = "") -> Example:
    """The published layout of a data-to-text pair: ``Input: {source} Output:`` and `` {reference}``.

    Prompt and target are tokenised apart and joined, so that generation starts from exactly the tokens that
    training saw; the target's leading blank belongs to its first word, as GPT-2's vocabulary wants it.
    """
    return Example(source, f"Input: {source} Output:", f" {reference}", reference, where)
