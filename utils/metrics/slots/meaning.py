"""E2E meaning representations: ``name[Aromi], eatType[pub], familyFriendly[no]``."""

from __future__ import annotations

import re

SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")

_PAIR = re.compile(r"\s*([^,\[\]]+?)\s*\[([^\[\]]*)\]\s*")
_NAMES = {slot.lower().replace(" ", ""): slot for slot in SLOTS}


def parse(source: str) -> dict[str, str] | None:
    """The slots and values of a meaning representation, or None if ``source`` is not one."""
    meaning: dict[str, str] = {}
    position = 0
    while position < len(source):
        pair = _PAIR.match(source, position)
        if pair is None:
            return None
        slot = _NAMES.get(re.sub(r"[\s_]", "", pair[1]).lower())
        if slot is None or slot in meaning:
            return None
        meaning[slot] = pair[2].strip()
        position = pair.end()
        if position < len(source):
            if source[position] != ",":
                return None
            position += 1
    return meaning or None
