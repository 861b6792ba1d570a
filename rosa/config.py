"""Settings of an adapter, and the check that all settings here and in ``utils.config`` share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rosa.subspace import check_rank


def option(
    default: Any,
    *,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field with the values it allows; ``None`` is allowed where it is the default.

    Args:
        default: the default; a list becomes a fresh list for each object.
        choices: the allowed values.
        minimum, above, maximum: bounds of a number; ``above`` is exclusive.
    """
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=limits)
    return dataclasses.field(default=default, metadata=limits)


def option_problems(options: Any, prefix: str = "") -> list[str]:
    """What is wrong with the values of a dataclass of ``option`` fields, one sentence a field."""
    problems = []
    for field in dataclasses.fields(options):
        value, limits = getattr(options, field.name), field.metadata
        if value is None and field.default is None:
            continue
        key = prefix + field.name
        whole = field.type in (int, "int")
        bounded = any(limits.get(bound) is not None for bound in ("minimum", "above", "maximum"))
        if limits.get("choices") is not None and value not in limits["choices"]:
            problems.append(f"{key}={value} is not one of {', '.join(map(str, limits['choices']))}")
        elif (whole or bounded) and (isinstance(value, bool) or not isinstance(value, int if whole else (int, float))):
            problems.append(f"{key}={value!r} must be a {'whole number' if whole else 'number'}")
        elif limits.get("minimum") is not None and not value >= limits["minimum"]:
            problems.append(f"{key}={value} must be at least {limits['minimum']}")
        elif limits.get("above") is not None and not value > limits["above"]:
            problems.append(f"{key}={value} must be above {limits['above']}")
        elif limits.get("maximum") is not None and not value <= limits["maximum"]:
            problems.append(f"{key}={value} must be at most {limits['maximum']}")
    return problems


@dataclass
class AdapterConfig:
    """What every method knows.

    Attributes:
        rank: an int is the rank R itself; a float in (0, 1] a share of q = min(m, n) of each layer.
        bias: whether the biases of adapted layers train: ``adapted``, ``none``, or ``auto``, the published
            choice of the method.
        target_modules: which layers to adapt: a regular expression for the whole module name, or a list of
            name endings. None: every Linear and Conv1D inside the model's blocks.
        seed: of every random choice that the adapters make.
    """

    rank: int | float = 0.05
    bias: Literal["auto", "adapted", "none"] = option("auto", choices=("auto", "adapted", "none"))
    target_modules: str | list[str] | None = None
    seed: int = option(0)

    method: ClassVar[str] = ""
    published_bias: ClassVar[str] = "none"

    @property
    def trains_bias(self) -> bool:
        """Whether biases of adapted layers train, ``auto`` resolved."""
        return (self.published_bias if self.bias == "auto" else self.bias) == "adapted"

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be told without a model."""
        found = option_problems(self)
        try:
            check_rank(self.rank)
        except ValueError as error:
            found.append(str(error))
        targets = self.target_modules
        if isinstance(targets, list) and not (targets and all(isinstance(name, str) for name in targets)):
            found.append(f"target_modules={targets} must hold at least one name ending, and names only")
        elif targets is not None and not isinstance(targets, (str, list)):
            found.append(f"target_modules={targets} must be a regular expression or a list of name endings")
        return found
