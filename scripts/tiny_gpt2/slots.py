"""What a domain of the pretraining text is made of, and the slots that several domains share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scripts.tiny_gpt2 import values as make
from utils.data._sentences import Fact

Values = Sequence[str] | Callable[[random.Random], str]


@dataclass(frozen=True)
class Slot:
    """``keys``: names of the attribute; ``values``: their source; ``wordings``: a Fact, or one per value."""

    keys: tuple[str, ...]
    values: Values
    wordings: Fact | Mapping[str, Fact]


@dataclass(frozen=True)
class Domain:
    """A kind of thing: the names of its name attribute, a source of its names, its nouns and its slots."""

    keys: tuple[str, ...]
    names: Callable[[random.Random], str]
    nouns: tuple[str, ...]
    slots: tuple[Slot, ...]
    advice: tuple[str, ...] = ("Try", "Consider", "Choose")
    relative: str = "that"


def choice(keys: tuple[str, ...], wordings: Mapping[str, Fact]) -> Slot:
    """A slot whose values each have wordings of their own."""
    return Slot(keys, tuple(wordings), wordings)


CITY = Slot(
    ("city", "location", "town"), make.place,
    Fact(("is in {v}", "is located in {v}", "can be found in {v}", "lies in {v}"), (), ("in {v}",), ("In {v}",)),
)  # fmt: skip
YEAR = Slot(
    ("year", "founded", "opened"), make.year,
    Fact(("opened in {v}", "was founded in {v}", "dates from {v}", "goes back to {v}"), ("{v}",), ("from {v}",),
         order=2),
)  # fmt: skip
COLOUR = Slot(
    ("colour", "color", "main colour"), make.COLOURS,
    Fact(("is {v}", "comes in {v}", "is {v} all over", "has a finish in {v}"), ("{v}",), ("in {v}",), order=2),
)  # fmt: skip
PRICE = Slot(
    ("price", "cost", "asking price"), make.money,
    Fact(("costs {v}", "sells for {v}", "is priced at {v}", "has a price tag of {v}", "can be had for {v}"), ("{v}",),
         ("for {v}", "at {v}", "priced at {v}"), ("For {v}", "At a price of {v}")),
)  # fmt: skip
BY = ("by {v}", "from {v}")
LANGUAGE = Slot(
    ("language", "spoken language"), make.NATIONS,
    Fact(("is in {v}", "uses the {v} language", "was made for {v} speakers"), ("{v}-language",), order=3),
)  # fmt: skip
FACILITY = Slot(
    ("facility", "amenity", "on site"), make.FACILITIES,
    Fact(("has a {v} of its own", "boasts its own {v}", "shares its roof with a {v}"), (), ("with its own {v}",)),
)  # fmt: skip
WEIGHT = Slot(
    ("weight", "mass"), lambda rng: f"{make.number(rng, 1, 90)} {rng.choice(('kg', 'pounds'))}",
    Fact(("weighs {v}", "has a weight of {v}", "tips the scales at {v}"), (), ("of {v}", "weighing {v}")),
)  # fmt: skip
