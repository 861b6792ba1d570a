"""Slot errors in texts written for these tests and in human references."""

from __future__ import annotations

import csv

import pytest

from tests.conftest import data_folder
from utils.metrics import score
from utils.metrics.slots.meaning import parse
from utils.metrics.slots.mentions import compare
from utils.metrics.slots.patterns import PATTERNS, PLACES

FULL = (
    "name[The Mill], eatType[pub], food[Italian], priceRange[cheap], customer rating[5 out of 5], "
    "area[riverside], familyFriendly[no], near[Café Sicilia]"
)


@pytest.mark.parametrize(
    ("text", "missing", "added", "wrong"),
    [
        (
            "The Mill, a cheap Italian pub by the river near Cafe Sicilia, has 5 stars. It is not family-friendly.",
            "",
            "",
            "",
        ),
        (
            "Near Café Sicilia, by the river, The Mill serves inexpensive pasta. This highly rated pub is adults only.",
            "",
            "",
            "",
        ),
        ("The Mill is a pub.", "food,priceRange,customer rating,area,familyFriendly,near", "", ""),
        (
            "The Mill is a cheap Italian coffee shop in the city centre near Café Rouge, child friendly, 1 out of 5.",
            "",
            "",
            "eatType,customer rating,area,familyFriendly,near",
        ),
        ("", "name,eatType,food,priceRange,customer rating,area,familyFriendly,near", "", ""),
    ],
)
def test_a_full_meaning_representation(text: str, missing: str, added: str, wrong: str) -> None:
    meaning = parse(FULL)
    assert meaning
    errors = compare(meaning, text)
    found = [",".join(errors.missing), ",".join(errors.added), ",".join(errors.wrong)]
    assert found == [missing, added, wrong]


@pytest.mark.parametrize(
    ("source", "text", "errors"),
    [
        ("name[Cotto]", "Cotto is a cheap place near the Burger King.", ((), ("near", "priceRange"), ())),
        ("name[Cotto]", "Cotto is a restaurant.", ((), (), ())),  # the general word for a place
        ("name[Cotto]", "Cotto is a pub.", ((), ("eatType",), ())),
        ("name[The Rice Boat], food[Indian]", "Rice Boat serves curry.", ((), (), ())),
        ("name[Cotto], near[Raja Indian Cuisine]", "Cotto is by Raja Indian Cuisine.", ((), (), ())),
        ("name[Cotto], near[All Bar One]", "Cotto, close to All Bar One.", ((), (), ())),
        ("name[Cotto], priceRange[high]", "Cotto costs more than £30.", ((), (), ())),
        ("name[Cotto], priceRange[£20-25]", "Cotto is moderately priced.", ((), (), ())),
        ("name[Cotto], priceRange[less than £20]", "Cotto costs £20-£25.", ((), (), ("priceRange",))),
        ("name[Cotto], customer rating[average]", "Cotto has a 3 out of 5 rating.", ((), (), ())),
        ("name[Cotto], customer rating[low]", "Cotto has a high customer rating.", ((), (), ("customer rating",))),
        (
            "name[Cotto], customer rating[low]",
            "Cotto has a low price and ratings.",
            (("customer rating",), ("priceRange",), ()),
        ),
        ("name[Cotto], familyFriendly[yes]", "Cotto welcomes kids.", ((), (), ())),
        ("name[Cotto], familyFriendly[yes]", "Cotto isn't a place for children.", ((), (), ("familyFriendly",))),
        ("name[Cotto], familyFriendly[no]", "Cotto is not suitable for families.", ((), (), ())),
        ("name[Cotto], familyFriendly[no]", "Cotto is non-child-friendly.", ((), (), ())),
        ("name[Cotto], familyFriendly[no]", "Cotto is kid friendly.", ((), (), ("familyFriendly",))),
        ("name[Cotto], area[city centre]", "Cotto is in the center of town.", ((), (), ())),
        ("name[Cotto], eatType[coffee shop]", "The café Cotto.", ((), (), ())),
    ],
)
def test_single_slots(source: str, text: str, errors: tuple[tuple[str, ...], ...]) -> None:
    meaning = parse(source)
    assert meaning
    found = compare(meaning, text)
    assert (found.missing, tuple(sorted(found.added)), found.wrong) == errors


@pytest.mark.parametrize(
    ("source", "meaning"),
    [
        ("name[The Mill], customerRating[5 out of 5]", {"name": "The Mill", "customer rating": "5 out of 5"}),
        ("customer rating[high],near[Café Brazil]", {"customer rating": "high", "near": "Café Brazil"}),
        ("", None),
        ("Why is the sky blue?", None),
        ("name[A], colour[red]", None),
        ("name[A], name[B]", None),
        ("name[A] area[riverside]", None),
    ],
)
def test_meaning_representations(source: str, meaning: dict[str, str] | None) -> None:
    assert parse(source) == meaning


def test_the_rate_by_hand() -> None:
    sources = ["name[Cotto], area[riverside]", "name[Aromi], food[French]"]
    texts = ["Cotto is in the city centre.", "Aromi is cheap."]
    found = score(texts, [["x"], ["x"]], sources, ["SER", "SER_missing", "SER_added", "SER_wrong"])
    assert found == {"SER": 0.75, "SER_missing": 0.25, "SER_added": 0.25, "SER_wrong": 0.25}


def test_every_value_of_the_data_has_a_pattern_and_people_make_few_errors() -> None:
    folder = data_folder("E2E_DIR")
    with (folder / "testset_w_refs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    errors = slots = 0
    for row in rows:
        meaning = parse(row["mr"])
        assert meaning, row["mr"]
        assert meaning.get("near", PLACES[0]) in PLACES
        assert meaning.get("food", "English") in PATTERNS["food"]
        found = compare(meaning, row["ref"])
        errors += len(found.missing) + len(found.added) + len(found.wrong)
        slots += len(meaning)
    # Dušek et al. (2019) found 11 % on these texts with other patterns.
    assert 0.05 < errors / slots < 0.12
