"""The values that a text mentions for each slot, compared with the meaning representation."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from utils.metrics.slots.patterns import FAMILY, GENERIC, NOT_FOR_FAMILIES, PATTERNS, PLACES, SAME, SAME_RATING


@dataclass(frozen=True)
class SlotErrors:
    """Names of slots by kind of error."""

    missing: tuple[str, ...]  # in the meaning representation, not in the text
    added: tuple[str, ...]  # in the text, not in the meaning representation
    wrong: tuple[str, ...]  # in both, with different values


def compare(meaning: Mapping[str, str], text: str) -> SlotErrors:
    """Compare a text with the meaning representation it was made from."""
    mentioned = mentions(meaning, text)
    missing = [slot for slot in meaning if not mentioned.get(slot)]
    added = [
        slot
        for slot, values in mentioned.items()
        if slot not in meaning and any((slot, value) not in GENERIC for value in values)
    ]
    wrong = []
    for slot, value in meaning.items():
        if mentioned.get(slot) and _canonical(slot, value) not in mentioned[slot]:
            wrong.append(slot)
    return SlotErrors(tuple(missing), tuple(added), tuple(wrong))


def mentions(meaning: Mapping[str, str], text: str) -> dict[str, set[str]]:
    """The values that a text mentions for each slot. ``SAME`` lists values with the same meaning.

    Only the restaurant name of the meaning representation is searched, so that a wrong name is not found.
    """
    rest = _normalize(text)
    values: dict[str, set[str]] = {}
    if "name" in meaning:
        rest, found = _remove_name(meaning["name"], rest)
        values["name"] = {meaning["name"]} if found else set()
    values["near"] = set()
    for landmark in dict.fromkeys([meaning["near"], *PLACES] if "near" in meaning else PLACES):
        rest, found = _remove_name(landmark, rest)
        if found:
            values["near"].add(landmark)
    for slot, patterns in PATTERNS.items():
        values[slot] = {value for value, pattern in patterns.items() if pattern.search(rest)}
    values["familyFriendly"] = _family(rest)
    return values


def _canonical(slot: str, value: str) -> str:
    if slot == "priceRange":
        return SAME.get(value.lower(), value)
    if slot == "customer rating":
        return SAME_RATING.get(value.lower(), value)
    if slot == "familyFriendly":
        return value.lower()
    known = PATTERNS.get(slot, {})
    return next((name for name in known if name.lower() == value.lower()), value)


def _family(text: str) -> set[str]:
    if not FAMILY.search(text):
        return set()
    return {"no"} if NOT_FOR_FAMILIES.search(text) else {"yes"}


def _normalize(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("‑", "-")
    return re.sub(r"\s+", " ", text)


@functools.lru_cache(maxsize=1024)
def _name_pattern(name: str) -> re.Pattern[str]:
    """Matches a name with or without "The", with e or é, and with blanks, hyphens or nothing between its words."""
    words = re.findall(r"[\w'&]+", name)
    if len(words) > 1 and words[0].lower() == "the":
        words = words[1:]
    spelled = r"[\s-]*".join(re.escape(word).replace("é", "[eé]").replace("É", "[EÉ]") for word in words)
    return re.compile(rf"(?<!\w){spelled}(?!\w)", re.IGNORECASE)


def _remove_name(name: str, text: str) -> tuple[str, bool]:
    """``text`` without ``name``, and whether it was there."""
    rest, count = _name_pattern(name).subn(" _ ", text)
    return rest, count > 0
