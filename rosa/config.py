"""``AdapterConfig``, ``LowRankConfig``, and ``option``: the check of values, which ``utils.config`` uses too.

Nothing here needs torch: a misspelt setting is refused before torch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

ALL_LINEAR = "all-linear"  # another name of the default of ``target_modules``, as in PEFT


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
    """Everything wrong with the values of a dataclass of ``option`` fields, one sentence per field."""
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


def check_rank(rank: int | float) -> None:
    """Raise ValueError unless ``rank`` is an int of at least 1 or a ratio in (0, 1]."""
    if isinstance(rank, bool) or not isinstance(rank, (int, float)):
        raise ValueError(f"rank={rank!r} must be a number: an int of at least 1, or a ratio in (0, 1]")
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"rank={rank} must be at least 1, or a ratio in (0, 1] such as 0.05")
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ValueError(f"rank={rank} is not a ratio in (0, 1]; write a rank itself as an int, such as 8")


@dataclass
class AdapterConfig:
    """The settings that every method has, and the name, order and colour under which results show it.

    Attributes:
        bias: whether the biases of adapted layers train: ``adapted``, ``none``, or ``auto``, the published
            choice of the method.
        target_modules: which layers to adapt: a regular expression for the whole module name, or a list (or tuple, or
            set) of name endings. None or ``all-linear``: every Linear and Conv1D inside the model's blocks, except
            routers of experts.
        seed: the seed of every random choice of the adapters.
        modules_to_save: name endings of modules that train whole, and are saved with the adapters, such as a new
            classification head: ``["score"]``. None: nothing but the adapters trains.
    """

    bias: Literal["auto", "adapted", "none"] = option("auto", choices=("auto", "adapted", "none"))
    target_modules: str | Collection[str] | None = None
    seed: int = option(0)
    modules_to_save: Collection[str] | None = None

    method: ClassVar[str] = ""  # its name, which is that of its file
    removed: ClassVar[dict[str, Any]] = {}  # settings of earlier versions, at the values that left them without effect
    published_bias: ClassVar[str] = "none"
    # For tables and figures. Give plain values in each class: they are read without importing it.
    label: ClassVar[str] = ""  # as papers write the name
    order: ClassVar[int] = 100  # ascending, from left to right or top to bottom
    colour: ClassVar[str] = ""  # #RRGGBB; "": a colour that no other method has

    def __post_init__(self) -> None:
        self.target_modules = _as_list(self.target_modules)
        if self.target_modules in (ALL_LINEAR, [ALL_LINEAR]):
            self.target_modules = None
        self.modules_to_save = _as_list(self.modules_to_save)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            own = type(self).__name__
            if name in ("base_model_name_or_path", "peft_type"):
                raise AttributeError(
                    f"no {name}: this {own} is for rosa.inject. get_peft_model takes PEFT's own settings, and for ROSA "
                    "RosaConfig(r=...) of rosa.integrations.peft"
                )
            raise AttributeError(f"{own!r} object has no attribute {name!r}")

    @classmethod
    def without_removed(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """``saved`` settings without those in ``removed``. One that had an effect stays, and no config takes it."""
        return {key: value for key, value in saved.items() if not (key in cls.removed and value == cls.removed[key])}

    @property
    def trains_bias(self) -> bool:
        """Whether biases of adapted layers train, ``auto`` resolved."""
        return (self.published_bias if self.bias == "auto" else self.bias) == "adapted"

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be found without a model."""
        found = option_problems(self)
        targets, saved = self.target_modules, self.modules_to_save
        if isinstance(targets, list) and not (targets and all(isinstance(name, str) for name in targets)):
            found.append(f"target_modules={targets} must hold at least one name ending, and names only")
        elif targets is not None and not isinstance(targets, (str, list)):
            found.append(f"target_modules={targets} must be a regular expression or a list of name endings")
        if not isinstance(saved or [], list) or not all(isinstance(name, str) and name for name in saved or []):
            found.append(f"modules_to_save={saved} must be a list of name endings")
        return found


def ends_in(name: str, endings: Collection[str]) -> bool:
    """Whether a module's dotted name ends in one of ``endings``, whole parts of a name."""
    return any(f".{name}".endswith(f".{end}") for end in endings)


def _as_list(names: Any) -> Any:
    """A tuple or set of names as a list; other values as they are."""
    if isinstance(names, (set, frozenset)):
        return sorted(names, key=str)
    return list(names) if isinstance(names, (list, tuple)) else names


@dataclass
class LowRankConfig(AdapterConfig):
    """The settings of methods with a pair A, B.

    Attributes:
        rank: an int is the rank R itself; a float in (0, 1] is a share of q = min(m, n) of each layer.
    """

    rank: int | float = 0.05

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            check_rank(self.rank)
        except ValueError as error:
            found.append(str(error))
        return found
