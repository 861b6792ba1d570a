"""What a method is called in tables and figures, its place in them and its colour; without importing any method."""

from __future__ import annotations

from rosa.methods import method_names, presentation

UNTRAINED = "untrained"  # method "none" with nothing trained: the base model as it came
# What is no adaptation method; those say it themselves.
_OTHERS = {
    UNTRAINED: {"label": "untrained", "order": -2},
    "none": {"label": "full fine-tuning", "order": -1, "colour": "#333333"},
}


def known_methods() -> list[str]:
    """Every name that ``Result.method`` may have, but those of methods that this repository lacks."""
    return [*_OTHERS, *method_names()]


def method_label(name: str) -> str:
    """The method as readers know it."""
    return str(_presentation(name).get("label") or name)


def method_order(name: str) -> float:
    """The method's place in tables and legends, ascending; unknown methods come last."""
    return float(str(_presentation(name).get("order", "inf")))


def method_colour(name: str) -> str | None:
    """#RRGGBB, or None for a method that leaves the choice to the figure."""
    colour = _presentation(name).get("colour")
    return str(colour) if colour else None


def _presentation(name: str) -> dict[str, object]:
    return _OTHERS.get(name) or presentation(name)
