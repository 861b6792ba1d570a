"""The settings of all methods that come with the library, and ``option``: the check of values.

Nothing here imports torch, which takes seconds: ``utils.config`` refuses a misspelt setting before. A method of your
own has its settings in its file (``rosa.methods``).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

ALL_LINEAR = "all-linear"  # another name of the default of ``target_modules``, as in PEFT
SampleMethod = Literal["random", "window", "top", "bottom"]
FactorSplit = Literal["sqrt", "left", "orthonormal"]
Adapted = Literal["ab", "a", "b"]  # which factors train
Level = Literal["epoch", "step", "never"]


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
        choices: the allowed values, unless a ``Literal`` type names them.
        minimum, above, maximum: bounds of a number; ``above`` is exclusive.
    """
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=limits)
    return dataclasses.field(default=default, metadata=limits)


def option_problems(options: Any, prefix: str = "") -> list[str]:
    """Everything wrong with the values of a dataclass of ``option`` fields, one sentence per field."""
    problems = []
    hints = typing.get_type_hints(type(options))
    for one in dataclasses.fields(options):
        value, limits = getattr(options, one.name), one.metadata
        if value is None and one.default is None:
            continue
        key = prefix + one.name
        whole = hints[one.name] is int
        bounded = any(limits.get(bound) is not None for bound in ("minimum", "above", "maximum"))
        is_literal = typing.get_origin(hints[one.name]) is Literal
        choices = typing.get_args(hints[one.name]) if is_literal else limits.get("choices")
        if choices is not None and value not in choices:
            problems.append(f"{key}={value} is not one of {', '.join(map(str, choices))}")
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

    bias: Literal["auto", "adapted", "none"] = "auto"
    target_modules: str | Collection[str] | None = None
    seed: int = option(0)
    modules_to_save: Collection[str] | None = None

    method: ClassVar[str] = ""  # its name, which is that of its file
    published_bias: ClassVar[str] = "none"
    # For tables and figures
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


@dataclass
class LoraConfig(LowRankConfig):
    """LoRA's settings, beside bias, target_modules, seed (``AdapterConfig``) and rank (``LowRankConfig``).

    Attributes:
        alpha: the pair is scaled by alpha / R; None: alpha = R in each layer, so that the scale is 1.
        scale: standard (alpha / R), or rslora (alpha / √R, Kalajdzievski 2023, section 3.2), which needs an alpha.
        dropout: probability, in [0, 1], of dropping an input of A in training.
        lr_ratio_b: the learning rate of B over that of A (LoRA+, Hayou et al. 2024, section 5), 16 in its experiments.
            Takes effect through ``rosa.parameter_groups``.
    """

    alpha: float | None = option(None, above=0)
    scale: Literal["standard", "rslora"] = "standard"
    dropout: float = option(0.0, minimum=0, maximum=1)
    lr_ratio_b: float = option(1.0, above=0)

    method: ClassVar[str] = "lora"
    label: ClassVar[str] = "LoRA"
    order: ClassVar[int] = 30
    colour: ClassVar[str] = "#E69F00"

    def problems(self) -> list[str]:
        without = self.scale == "rslora" and self.alpha is None
        return super().problems() + (["scale=rslora needs an alpha: the scale is alpha / √R"] if without else [])


@dataclass
class DoraConfig(LoraConfig):
    """DoRA's settings are those of LoRA (``LoraConfig``)."""

    method: ClassVar[str] = "dora"
    label: ClassVar[str] = "DoRA"
    order: ClassVar[int] = 35
    colour: ClassVar[str] = "#D55E00"


@dataclass
class ReloraConfig(LoraConfig):
    """ReLoRA's settings, beside those of LoRA (``LoraConfig``).

    Attributes:
        level: the unit of ``every``: epoch, step (of the optimizer), or never, which is LoRA.
        every: the number of epochs or optimizer steps between restarts; 5,000 steps in the paper.
        pruned: the share of the elements of A and B, those with the smallest first moments, whose moments a restart
            sets to zero. The count of steps goes on.
        rewarm_steps: after a restart the learning rate rises linearly to its schedule over this many optimizer steps
            (``Resampler.rewarmed``); 50 to 100 in the paper.
    """

    level: Level = "epoch"
    every: int = option(1, minimum=1)
    pruned: float = option(0.99, minimum=0, maximum=1)
    rewarm_steps: int = option(10, minimum=0)

    method: ClassVar[str] = "relora"
    label: ClassVar[str] = "ReLoRA"
    order: ClassVar[int] = 45
    colour: ClassVar[str] = "#56B4E9"

    @property
    def optimizer_state(self) -> float:
        """What a restart does to the optimizer's state, see ``rosa.resample``."""
        return self.pruned


@dataclass
class RosaConfig(LowRankConfig):
    """ROSA's settings, beside bias, target_modules, seed (``AdapterConfig``) and rank (``LowRankConfig``).

    There are two publications: 2023, Random Orthogonal Subspace Adaptation (Hameed and Rabusseau), whose settings are
    the defaults; and 2024, Random Subspace Adaptation (Hameed, Milios, Reddy and Rabusseau, arXiv 2407.07802), whose
    code has other names, given below. ``basis``, ``rewarm_steps`` and factor_split=orthonormal are of neither.
    The method PiSSA (Meng et al. 2024) is sample_method=top, level=never and bias=none.

    Attributes:
        sample_method: which singular directions train: random, window (a random block of neighbours: what both codes
            call random), top or bottom.
        basis: singular (directions of W), or random (a random orthonormal basis and W's part in it; see
            ``rosa.subspace.random_triplets``). Its orthonormal factor is the one that does not train, else that of the
            shorter side. Nothing is factorised, and ``sample_method`` has no meaning.
        factor_split: sqrt (√S on both sides; with a random basis, both factors of a direction are equally long), left
            (U S | Vᵀ; 2024), or orthonormal (the factor that does not train is orthonormal, the other one holds the
            rest; where both train, √s U and √s Vᵀ with the mean s of S).
        start: split (A B is taken from W: W_f = W − A B; 2024: factorize_method equal), or zero (W_f = W, and the
            factor that trains, or B if both do, is zero).
        adapt: which factors train: ab, a, or b (2024: adapt_method). The other one is fixed between resamples.
        level: the unit of ``every``: epoch, step (of the optimizer), or never, for no resample at all (2024:
            factorize_level).
        every: the number of epochs or optimizer steps between resamples (2024: factorize_freq).
        optimizer_state: what a resample does to the optimizer's state of A and B: reset or keep.
        rewarm_steps: after a resample the learning rate rises linearly to its schedule over this many optimizer steps
            (``Resampler.rewarmed``).
        decay: whether weight decay acts on A and B that hold a part of W (start=split), which it shrinks. Always acts
            on those that start at zero, as on LoRA's. Takes effect through ``rosa.parameter_groups``.
    """

    sample_method: SampleMethod = "random"
    basis: Literal["singular", "random"] = "singular"
    factor_split: FactorSplit = "sqrt"
    start: Literal["split", "zero"] = "split"
    adapt: Adapted = "ab"
    level: Level = "epoch"
    every: int = option(1, minimum=1)
    optimizer_state: Literal["reset", "keep"] = "reset"
    rewarm_steps: int = option(0, minimum=0)
    decay: bool = False

    method: ClassVar[str] = "rosa"
    published_bias: ClassVar[str] = "adapted"
    label: ClassVar[str] = "ROSA"
    order: ClassVar[int] = 40
    colour: ClassVar[str] = "#0072B2"

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be found without a model."""
        found = super().problems()
        if self.basis == "random" and self.sample_method != "random":
            found.append(f"sample_method={self.sample_method} chooses singular directions: basis=random has none")
        return found


@dataclass
class IA3Config(AdapterConfig):
    """(IA)³'s settings, beside bias, target_modules and seed (``AdapterConfig``).

    Weight decay pulls a scale from 1 towards 0, and the layer's weight with it: give the optimizer none.

    Attributes:
        feedforward_modules: name endings of the layers whose inputs are scaled instead of their outputs. Endings that
            match nothing are ignored; if none matches, a warning says so.
    """

    feedforward_modules: list[str] = field(
        default_factory=lambda: ["mlp.c_proj", "down_proj", "fc2", "fc_out", "dense_4h_to_h", "wo"]
    )

    method: ClassVar[str] = "ia3"
    label: ClassVar[str] = "(IA)³"
    order: ClassVar[int] = 20
    colour: ClassVar[str] = "#009E73"

    def problems(self) -> list[str]:
        endings = self.feedforward_modules
        right = isinstance(endings, list) and all(isinstance(ending, str) and ending for ending in endings)
        wrong = [] if right else [f"feedforward_modules={endings} must be a list of name endings"]
        return super().problems() + wrong


@dataclass
class BitFitConfig(AdapterConfig):
    """BitFit's settings: bias, target_modules and seed (``AdapterConfig``)."""

    method: ClassVar[str] = "bitfit"
    published_bias: ClassVar[str] = "adapted"
    label: ClassVar[str] = "BitFit"
    order: ClassVar[int] = 10
    colour: ClassVar[str] = "#CC79A7"

    def problems(self) -> list[str]:
        wrong = ["bias=none leaves BitFit nothing to train"] if self.bias == "none" else []
        return super().problems() + wrong


METHODS: dict[str, type[AdapterConfig]] = {
    config.method: config for config in (BitFitConfig, DoraConfig, IA3Config, LoraConfig, ReloraConfig, RosaConfig)
}
