"""ROSA (Hameed and Rabusseau 2023): x W_f + (x A) B + b, where A and B train a subspace that is sampled repeatedly.

A and B are made of R singular directions of W, and W_f = W − A B is fixed. A resample merges the pair into the weight,
W ← W_f + A B, and makes another subspace trainable, so that the rank of the total change is not bounded by R.
The base module's own weight holds W_f, so that the adapted layer stores one weight, as a LoRA layer does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from rosa.config import LowRankConfig, option
from rosa.fused import full_precision
from rosa.methods import register
from rosa.resampling import SubspaceLayer
from rosa.sharding import max_abs
from rosa.subspace import (
    ADAPTED,
    FACTOR_SPLITS,
    SAMPLE_METHODS,
    choose_directions,
    random_triplets,
    seeded_generator,
    singular_triplets,
    split_triplets,
)


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

    sample_method: Literal["random", "window", "top", "bottom"] = option("random", choices=SAMPLE_METHODS)
    basis: Literal["singular", "random"] = option("singular", choices=("singular", "random"))
    factor_split: Literal["sqrt", "left", "orthonormal"] = option("sqrt", choices=FACTOR_SPLITS)
    start: Literal["split", "zero"] = option("split", choices=("split", "zero"))
    adapt: Literal["ab", "a", "b"] = option("ab", choices=ADAPTED)
    level: Literal["epoch", "step", "never"] = option("epoch", choices=("epoch", "step", "never"))
    every: int = option(1, minimum=1)
    optimizer_state: Literal["reset", "keep"] = option("reset", choices=("reset", "keep"))
    rewarm_steps: int = option(0, minimum=0)
    decay: bool = False

    method: ClassVar[str] = "rosa"
    removed: ClassVar[dict[str, Any]] = {"gain": 1.0}
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


@register(RosaConfig)
class RosaLayer(SubspaceLayer):
    """A layer whose base weight is W_f. A resample does not change the function that it computes."""

    config: RosaConfig

    def __init__(self, name: str, base: nn.Linear, config: RosaConfig) -> None:
        super().__init__(name, base, config)
        self.fixed = {"ab": (), "a": ("B",), "b": ("A",)}[config.adapt]
        for factor in self.fixed:
            self.get_parameter(factor).requires_grad_(False)

    @classmethod
    def initialise_all(cls, layers: Sequence[Self]) -> None:
        super().initialise_all(layers)
        if idle := [layer.name for layer in layers if max_abs(layer.A) == max_abs(layer.B) == 0]:
            warnings.warn(
                f"{len(idle)} weights are zero ({', '.join(idle[:3])}), and so are A and B made of them, which get no "
                "gradient then: leave these layers out of target_modules, set factor_split='left', or take LoRA",
                stacklevel=2,
            )

    def optimizer_options(self, name: str) -> dict[str, float]:
        is_part_of_weight = name in ("A", "B") and self.config.start == "split"
        return {"weight_decay": 0.0} if is_part_of_weight and not self.config.decay else {}

    @property
    def needs_vectors(self) -> bool:
        return self.config.basis == "singular"

    @torch.no_grad()
    def sample(self, number: int, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        config, generator = self.config, seeded_generator(self.config.seed, number, self.name)
        with full_precision(self.base.weight.device):
            if vectors is None:
                on_left = {"a": False, "b": True, "ab": self.in_features <= self.out_features}[config.adapt]
                triplets = random_triplets(self.merged_mn, self.rank, generator, on_left)
            else:
                indices = choose_directions(len(vectors), self.rank, config.sample_method, generator)
                triplets = singular_triplets(self.merged_mn, indices, vectors)
        a, b = split_triplets(*triplets, config.factor_split, config.adapt)
        if config.start == "zero":
            (a if config.adapt == "a" else b).zero_()
        return a.to(self.A.dtype), b.to(self.B.dtype)
