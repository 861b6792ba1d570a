"""Label, order and colour of each method in tables and figures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from rosa.methods import method_configs
from utils.config.fnmodel import LAYERS_ONLY
from utils.io.yaml_files import dotted, read_yaml

UNTRAINED = "untrained"  # the base model: method "none" without a training step
FULL_TRAINING = (LAYERS_ONLY, "none")  # a gap's ceiling is the first of them that there is
# Adaptation methods define these values in their settings.
_OTHERS = {
    UNTRAINED: {"label": "untrained", "order": -2},
    "none": {"label": "full fine-tuning", "order": -1, "colour": "#333333"},
    LAYERS_ONLY: {"label": "full, layers only", "order": -0.5, "colour": "#888888"},
}


def known_methods() -> list[str]:
    """Every name that ``Result.method`` may have, except methods that are not in this repository."""
    return [*_OTHERS, *method_configs()]


@functools.cache
def defaults() -> dict[str, Any]:
    """Every key at its default, dotted, with those of single methods (``fnmodel.<method>.*``)."""
    return dotted(read_yaml(Path(__file__).parents[2] / "configs" / "train.yaml"))


def method_label(name: str) -> str:
    """The method's name for readers."""
    return str(_presentation(name).get("label") or name)


def method_order(name: str) -> float:
    """The method's position in tables and legends, ascending. Unknown methods are last."""
    return float(str(_presentation(name).get("order", "inf")))


def method_colour(name: str) -> str | None:
    """#RRGGBB, or None if the figure chooses the colour."""
    colour = _presentation(name).get("colour")
    return str(colour) if colour else None


def _presentation(name: str) -> dict[str, object]:
    config = method_configs().get(name)
    own = {} if config is None else {"label": config.label, "order": config.order, "colour": config.colour}
    return _OTHERS.get(name) or own
