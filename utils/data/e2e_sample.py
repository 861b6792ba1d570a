"""The bundled data set: restaurant descriptions that a grammar generates from meaning representations (MRs).

An MR has the attributes and values of the E2E challenge; names, landmarks and sentences are this project's own.
A fixed seed generates everything, so that the examples are the same on every machine, without files or network.
The base model does not know the wordings and has to learn them. A trained model still has to copy names, and there
are several correct texts for each MR.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from utils.data import SPLITS, DataSource, Example, pair, refuse_path, register
from utils.data._sentences import Fact, Subject, describe
from utils.errors import UserError

SEED = 2023
SIZES = {"train": 500, "validation": 60, "test": 60}  # MRs
REFERENCES = 4  # different texts for each MR

# Names consist of common words. A small vocabulary splits a rare word into many tokens, and the usual decoding
# rule against repeated 4-grams, which includes the prompt, would forbid the model to copy it.
NAMES = (
    "The Silver Swan", "The Sleepy Fox", "Garden House", "The Stone Table", "Summer Lane", "The Hidden Gate",
    "Golden Court", "The Wild Rose", "Mill Corner", "The Old Station", "The Merry Lion", "Bridge House",
    "The Lucky Horse", "The Blue Window", "Oak and Rose", "The Broken Wheel", "Morning Star", "The Iron Gate",
    "Moon Garden", "The Twin Crown", "Orchard Place", "The White Eagle", "Winter Palace", "The Red Bell",
    "Crystal Lake", "The Proud Ship", "Market Table", "The Gentle Dragon", "Castle Hill", "The Green Feather",
    "The Black Anchor", "Forest Mirror", "The Grand Orchard", "Evening Island", "The Royal Oak", "Little Harbour",
    "The Lost Key", "Happy Heart", "The Quick Letter", "The Lonely Moon",
)  # fmt: skip
LANDMARKS = (
    "Café Rose", "Crown Hotel", "The Grand Arcade", "Park Hall", "Café Moon", "Star Theatre", "Stone Gallery",
    "Bridge School", "Station Inn", "Hill Church", "The Lion and Key", "Road Market", "Tower Library",
    "The Fox and Horse", "Silver College", "Storm Bar",
)  # fmt: skip
FOODS = ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese")

EAT_TYPES = ("pub", "coffee shop", "restaurant")
NO_TYPE = ("place", "venue", "place", "spot", "establishment")

FOOD = Fact(
    clauses=("serves {v} food", "offers {v} cuisine", "has {v} dishes on its menu",
             "specialises in {v} cooking", "cooks {v} food"),
    before=("{v}",),
    after=("with {v} food", "serving {v} dishes", "with {v} dishes on the menu"),
    order=4,
)  # fmt: skip
FAST_FOOD = Fact(
    clauses=("serves fast food", "sells fast food", "has fast food on its menu", "is known for its fast food",
             "does fast food"),
    before=("fast food",),
    after=("serving fast food", "with a fast food menu"),
    order=4,
)  # fmt: skip
NEAR = Fact(
    clauses=("is near {v}", "is close to {v}", "stands next to {v}", "is a short walk from {v}",
             "is just around the corner from {v}", "has {v} as its neighbour"),
    after=("near {v}", "close to {v}", "next to {v}", "not far from {v}", "beside {v}"),
    fronts=("Near {v}", "Close to {v}", "A few steps from {v}", "Right by {v}"),
)  # fmt: skip
PRICES: Mapping[str, Fact] = {
    "cheap": Fact(
        ("is cheap", "has low prices", "is easy on the wallet", "keeps its prices low"),
        ("cheap", "inexpensive", "low-cost"), ("with low prices",), mood=1,
    ),
    "moderate": Fact(
        ("is moderately priced", "has moderate prices", "charges moderate prices", "has mid-range prices"),
        ("moderately priced", "mid-priced"), ("with moderate prices",),
    ),
    "high": Fact(
        ("is expensive", "has high prices", "charges high prices", "is on the expensive side"),
        ("expensive", "high-priced"), ("with high prices",), mood=-1,
    ),
    "less than £20": Fact(
        ("costs less than £20", "charges less than £20", "has prices below £20", "will cost you under £20"),
        (), ("for less than £20", "with prices under £20"), ("For less than £20",), mood=1,
    ),
    "£20-25": Fact(
        ("costs £20-25", "charges between £20 and £25", "has prices from £20 to £25",
         "has a price range of £20-25"),
        (), ("for £20-25", "in the £20-25 price range"), ("For £20-25",),
    ),
    "more than £30": Fact(
        ("costs more than £30", "charges over £30", "has prices above £30", "will cost you more than £30"),
        (), ("for more than £30", "with prices over £30"), ("For more than £30",), mood=-1,
    ),
}  # fmt: skip
RATINGS: Mapping[str, Fact] = {
    "low": Fact(
        ("has a low customer rating", "is poorly rated by its customers", "gets bad reviews"),
        ("poorly rated", "low-rated"), ("with a low customer rating",), mood=-1,
    ),
    "average": Fact(
        ("has an average customer rating", "is rated average by its guests", "gets middling reviews"),
        ("average-rated",), ("with an average customer rating", "with an average rating"),
    ),
    "high": Fact(
        ("has a high customer rating", "is highly rated by its customers", "gets excellent reviews"),
        ("highly rated", "well-reviewed"), ("with a high customer rating",), mood=1,
    ),
    "1 out of 5": Fact(
        ("has a customer rating of 1 out of 5", "is rated 1 out of 5", "earns just one star",
         "scores 1 out of 5 with its guests"),
        ("one-star", "1-star"), ("with a customer rating of 1 out of 5", "with one star"), mood=-1,
    ),
    "3 out of 5": Fact(
        ("has a customer rating of 3 out of 5", "is rated 3 out of 5", "earns three stars",
         "scores 3 out of 5 with its guests"),
        ("three-star", "3-star"), ("with a customer rating of 3 out of 5", "with three stars"),
    ),
    "5 out of 5": Fact(
        ("has a customer rating of 5 out of 5", "is rated 5 out of 5", "earns a full five stars",
         "scores 5 out of 5 with its guests"),
        ("five-star", "5-star"), ("with a customer rating of 5 out of 5", "with five stars"), mood=1,
    ),
}  # fmt: skip
AREAS: Mapping[str, Fact] = {
    "city centre": Fact(
        ("is in the city centre", "can be found in the city centre", "lies in the heart of the city",
         "is located in the centre of the city"),
        ("city centre",), ("in the city centre", "in the heart of the city", "in the centre of the city"),
        ("In the city centre", "In the heart of the city"), order=3,
    ),
    "riverside": Fact(
        ("is by the river", "can be found on the riverside", "looks out over the river",
         "is located in the riverside area"),
        ("riverside",), ("by the river", "on the riverside", "on the banks of the river"),
        ("By the river", "In the riverside area"), order=3,
    ),
}  # fmt: skip
FAMILY: Mapping[str, Fact] = {
    "yes": Fact(
        ("is family-friendly", "welcomes families", "is good for children", "is a fine choice for a family"),
        ("family-friendly", "child-friendly", "kid-friendly"), ("for the whole family",), mood=1,
    ),
    "no": Fact(
        ("is not family-friendly", "does not welcome children", "is no place for kids",
         "is not suitable for families"),
        ("adults-only",), ("for adults only",), mood=-1,
    ),
}  # fmt: skip

# Attribute -> (values, share of MRs that have it), in the order of an MR.
ONTOLOGY: Mapping[str, tuple[tuple[str, ...], float]] = {
    "name": (NAMES, 1.0),
    "eatType": (EAT_TYPES, 0.65),
    "food": (FOODS, 0.7),
    "priceRange": (tuple(PRICES), 0.65),
    "customer rating": (tuple(RATINGS), 0.65),
    "area": (tuple(AREAS), 0.6),
    "familyFriendly": (tuple(FAMILY), 0.6),
    "near": (LANDMARKS, 0.5),
}


def write_mr(slots: Mapping[str, str]) -> str:
    """The MR as E2E writes it: ``name[Nettle], eatType[pub]``."""
    return ", ".join(f"{attribute}[{value}]" for attribute, value in slots.items())


def reference(slots: Mapping[str, str], rng: random.Random) -> str:
    """One text that states every slot of an MR once."""
    facts = [_fact(name, value) for name, value in slots.items() if name not in ("name", "eatType")]
    nouns = (slots["eatType"],) if "eatType" in slots else NO_TYPE
    subject = Subject(slots["name"], nouns, vague="eatType" not in slots, advice=("Try", "Visit", "Go to"))
    return describe(subject, facts, rng)


def _fact(attribute: str, value: str) -> Fact:
    if attribute == "food":
        return FAST_FOOD if value == "Fast food" else FOOD.fill(value)
    if attribute == "near":
        return NEAR.fill(value)
    wordings = {"priceRange": PRICES, "customer rating": RATINGS, "area": AREAS, "familyFriendly": FAMILY}
    return wordings[attribute][value]


def _draw_slots(rng: random.Random) -> dict[str, str]:
    while True:
        drawn = [attribute for attribute, (_, share) in ONTOLOGY.items() if rng.random() < share]
        slots = {attribute: rng.choice(ONTOLOGY[attribute][0]) for attribute in drawn}
        if len(slots) >= 3:
            return slots


@lru_cache(maxsize=1)
def _all_examples() -> dict[str, tuple[Example, ...]]:
    """Every split. All are made together, so that no MR is in two of them."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    examples = {}
    for split in SPLITS:
        items: list[Example] = []
        while len(items) < SIZES[split] * REFERENCES:
            slots = _draw_slots(rng)
            mr = write_mr(slots)
            if mr in seen:
                continue
            seen.add(mr)
            texts: dict[str, None] = {}  # a dict keeps the order in which texts were drawn
            while len(texts) < REFERENCES:
                texts[reference(slots, rng)] = None
            items += [pair(mr, text) for text in texts]
        examples[split] = tuple(items)
    return examples


@register
class E2ESample(DataSource):
    """2,000 training pairs (500 MRs with 4 texts); validation and test have 240 pairs (60 MRs) each."""

    names = ("e2e_sample",)

    def prompt(self, source: str) -> str:
        return pair(source, "").prompt

    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        """See DataSource.load. Raises UserError when a path is given: this data set has no files."""
        refuse_path("e2e_sample", path)
        if split not in SPLITS:
            raise UserError(f"split {split!r} is not known. Known: {', '.join(SPLITS)}")
        return list(_all_examples()[split])
