"""Data sets, one file per data set, registered by name.

- ``e2e``, ``eli5``: the published data sets, from local files or the hub
- ``e2e_sample``: the bundled data set, generated with ``_sentences``
- ``phone_book``: random keys and numbers, generated
- ``pairs``: the user's own CSV or JSON lines

A new data set is a new file here with a ``DataSource`` subclass under ``@register``; no list has to be edited. Every
source returns ``Example`` objects: texts, not tokens.
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
COLUMNS = ("prompt", "target")  # of the user's own data, unless dataset.prompt and dataset.target name others


@dataclass(frozen=True)
class Example:
    """One training pair.

    Attributes:
        source: what the text describes or answers (E2E: the meaning representation). Generation treats all examples
            with the same source as one item, whose references are their ``reference`` texts.
        prompt: what the model reads.
        target: what the model learns to write after the prompt.
        reference: the target as metrics see it, without the leading blank.
        where: file and line of a local file, for messages.
    """

    source: str
    prompt: str
    target: str
    reference: str
    where: str = field(default="", compare=False)


class DataSource(ABC):
    """A data set and its defaults."""

    names: ClassVar[tuple[str, ...]]  # the canonical name (its folder under the output path), then aliases
    loss_on: ClassVar[str] = "target"  # the tokens that carry loss when train.loss_on is null: target or all
    packed: ClassVar[bool] = False  # True: documents are joined and cut into blocks of train.block_size tokens
    generate_limit: ClassVar[int | None] = None  # eval.py generates for this many items, the first ones; None: for all
    needs_path: ClassVar[bool] = False  # True: the user must set dataset.path
    metrics: ClassVar[tuple[str, ...]] = ()  # its scores in the order of a table's columns; empty: all that apply
    default_size: ClassVar[int | None] = None  # pairs, if they are generated from dataset.size and dataset.book
    takes_columns: ClassVar[bool] = False  # True: its files have the columns that dataset.prompt and .target name
    target_bits: ClassVar[float | None] = None  # information in a target, if its pairs are random: bits to be stored

    def __init__(self, size: int | None = None, book: int = 0, columns: tuple[str, str] = COLUMNS) -> None:
        """Keep what the settings say about the data.

        Args:
            size, book: of generated data: the number of pairs (None: its default), and which pairs.
            columns: with ``takes_columns``, those of prompt and target.
        """
        self.size, self.book, self.columns = size, book, columns

    def prompt(self, source: str) -> str:
        """What the model reads for a source of the user's own; the text itself, unless the data set has a template."""
        return source

    @abstractmethod
    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        """The examples of ``split`` in file order.

        Args:
            split: train, validation or test.
            path: a local file or folder that takes precedence over the hub; None for the hub or bundled data.
            cache: the hub's cache folder, None for its default.

        Raises:
            UserError: the data is missing or malformed. The message names the file, the line and the way out.
        """


_SOURCES: Registry[type[DataSource]] = Registry(__name__, "data set")
Source = TypeVar("Source", bound=type[DataSource])


def register(source: Source) -> Source:
    """Class decorator: register a data source under each of its names."""
    _SOURCES.add(source, *source.names)
    return source


def sources() -> dict[str, type[DataSource]]:
    """Every registered data source by name, aliases included."""
    return _SOURCES.all()


def get_source(name: str, size: int | None = None, book: int = 0, columns: tuple[str, str] = COLUMNS) -> DataSource:
    """The data source called ``name``, see DataSource. Raises UserError that suggests the nearest known name."""
    known = sources()
    if name not in known:
        raise UserError(f"dataset.name={name} is not known. {suggestions(name, known)}")
    return known[name](size, book, columns)


def source_type(name: Any) -> type[DataSource]:
    """The class of the data set ``name``; ``DataSource`` itself, with its defaults, for an unknown one."""
    return sources().get(str(name), DataSource)


def refuse_path(name: str, path: Path | None) -> None:
    """Raise UserError for a path given to the generated data set ``name``."""
    if path is not None:
        raise UserError(
            f"dataset.path={path} does not go with dataset.name={name}, which is generated and reads no files. "
            "Leave out dataset.path, or give the name of the data set in the files (dataset.name=e2e)."
        )


def group_by_source(examples: Sequence[Example]) -> list[list[Example]]:
    """Group all examples with the same source. Groups are in the order in which their sources first appear."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    return list(groups.values())


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 of the texts of ``examples`` in their order, hexadecimal."""
    sha = hashlib.sha256()
    for example in examples:
        add_texts(sha, example.source, example.prompt, example.target, example.reference)
    return sha.hexdigest()


def known_samples(examples: Sequence[Example], training: Sequence[Example], split: str) -> str:
    """How many of ``examples`` the training data give away, in words; "" for none.

    A prompt counts whatever its case and blanks, unless all samples have the same one.
    """
    pairs = {(example.prompt, example.target) for example in training}
    whole = sum((example.prompt, example.target) in pairs for example in examples)
    asked, prompts = ([folded(example.prompt) for example in part] for part in (examples, training))
    known = 0 if len({*asked, *prompts}) == 1 else sum(map({*prompts}.__contains__, asked))
    found = [f"{whole} of {len(examples)} {split} samples are training samples too"] if whole else []
    if known > whole:
        found.append(f"{known} of {len(examples)} {split} samples have the prompt of a training sample")
    return ", and ".join(found)


def folded(text: str) -> str:
    """The text without differences of case and white space."""
    return " ".join(text.casefold().split())


def add_texts(sha: Any, *texts: str) -> None:
    """Add texts to a hashlib object. Each text is preceded by its length, so ("ab", "c") and ("a", "bc") differ."""
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        sha.update(len(content).to_bytes(8, "little") + content)


def training_units(source: DataSource, examples: Sequence[Example]) -> list[list[Example]]:
    """The units that ``train.fraction`` counts and never splits: documents of a packed data set, otherwise pairs."""
    return group_by_source(examples) if source.packed else [[example] for example in examples]


def pair(source: str, reference: str, where: str = "") -> Example:
    """The published layout of a data-to-text pair: ``Input: {source} Output:`` and `` {reference}``.

    Prompt and target are tokenised separately and joined, so that generation starts from exactly the tokens that
    training saw. The target starts with a blank because GPT-2's tokens include the blank before a word.
    """
    return Example(source, f"Input: {source} Output:", f" {reference}", reference, where)
