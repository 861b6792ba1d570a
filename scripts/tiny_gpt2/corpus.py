"""Documents for pretraining: data in many layouts, each followed by a text that describes them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.tiny_gpt2 import values as make
from scripts.tiny_gpt2.domains import DOMAINS
from scripts.tiny_gpt2.slots import Domain, Slot
from utils.data._sentences import Fact, Subject, capital, describe

# Before and after the data; the text follows with one blank.
FRAMES = (
    ("Input: ", " Output:"), ("Input: ", " Output:"), ("Data: ", " Text:"), ("Facts: ", " Summary:"),
    ("", " ->"), ("Record: ", " Description:"), ("Write about this: ", "\n"), ("Table: ", " In words:"),
)  # fmt: skip
RECITALS = 0.2  # share of documents that only repeat names


@dataclass(frozen=True)
class Document:
    """A pretraining text: ``data`` with its frame (may be empty) and the ``text`` that follows it."""

    data: str
    text: str


def documents(seed: int) -> Iterator[Document]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield _recital(rng) if rng.random() < RECITALS else _document(rng)


def _recital(rng: random.Random) -> Document:
    """A document whose text only repeats names from its data: the shortest way to learn to copy."""
    makers = (make.venue, make.title, make.person, make.place, make.company, make.word, make.dish, make.address)
    keys = [key for domain in DOMAINS for slot in domain.slots for key in slot.keys]
    pairs = [(key, rng.choice(makers)(rng)) for key in rng.sample(keys, rng.randint(1, 4))]
    before, after = rng.choice(FRAMES)
    names = [value for _, value in pairs]
    if rng.random() < 0.5:
        rng.shuffle(names)
    form = rng.choice((", ", " and ", "; "))
    return Document(f"{before}{_layout(pairs, rng)}{after}", f" {form.join(names)}.")


def _document(rng: random.Random) -> Document:
    domain = rng.choice(DOMAINS)
    slots = rng.sample(domain.slots, rng.randint(1, min(6, len(domain.slots))))
    name = domain.names(rng)
    pairs = [(rng.choice(domain.keys), name)]
    facts = []
    for slot in slots:
        value = slot.values(rng) if callable(slot.values) else rng.choice(slot.values)
        key = rng.choice([key for key in slot.keys if all(key != used for used, _ in pairs)] or slot.keys)
        pairs.append((key, value))
        facts.append(_wordings(slot, value))
    text = describe(_subject(domain, name, rng), facts, rng)
    if rng.random() < 0.08:
        return Document("", text)
    kind = rng.random()
    if kind < 0.3:  # the noun is in the data too
        noun = next((noun for noun in domain.nouns if f" {noun}" in text), None)
        if noun:
            pairs.insert(1, (rng.choice(("type", "kind", "isA")), noun))
    if rng.random() < 0.3:
        head, *rest = pairs
        rng.shuffle(rest)
        pairs = [head, *rest]
    before, after = rng.choice(FRAMES)
    return Document(f"{before}{_layout(pairs, rng)}{after}", f" {text}")


def _wordings(slot: Slot, value: str) -> Fact:
    return slot.wordings.fill(value) if isinstance(slot.wordings, Fact) else slot.wordings[value]


def _subject(domain: Domain, name: str, rng: random.Random) -> Subject:
    pronoun = rng.choice(("She", "He")) if domain.relative == "who" else "It"
    return Subject(name, domain.nouns, pronoun=pronoun, relative=domain.relative, advice=domain.advice)


def _layout(pairs: list[tuple[str, str]], rng: random.Random) -> str:
    """Attribute-value pairs on one line, in one of the notations of the data-to-text literature."""
    form = rng.randrange(7)
    if form <= 1:
        return ", ".join(f"{key}[{value}]" for key, value in pairs)
    if form == 2:
        return " | ".join(f"{key}: {value}" for key, value in pairs)
    if form == 3:
        return "; ".join(f"{key} = {value}" for key, value in pairs)
    if form == 4:
        name = pairs[0][1]
        return " ".join(f"({name}, {key}, {value})" for key, value in pairs[1:])
    if form == 5:
        return json.dumps(dict(pairs), ensure_ascii=False)
    return ", ".join(f"{capital(key)} {value}" for key, value in pairs)
