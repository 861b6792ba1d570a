"""ROSA (Hameed and Rabusseau 2023): x W_f + (x A) B + b, where A and B train a subspace that is sampled repeatedly.

A and B are made of R singular directions of W, and W_f = W − A B is fixed. A resample merges the pair into the weight,
W ← W_f + A B, and makes another subspace trainable, so that the rank of the total change is not bounded by R.
The base module's own weight holds W_f, so that the adapted layer stores one weight, as a LoRA layer does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rosa.config import LowRankConfig, option
from rosa.fused import full_precision
from rosa.layers import product
from rosa.methods import register
from rosa.resampling import SubspaceLayer
from rosa.sharding import gather
from rosa.subspace import (
    ADAPTED,
    FACTOR_SPLITS,
    SAMPLE_METHODS,
    choose_directions,
    layer_generator,
    random_triplets,
    singular_triplets,
    split_triplets,
)


@dataclass
class RosaConfig(LowRankConfig):
    """ROSA's settings, beside bias, target_modules, seed (``AdapterConfig``) and rank (``LowRankConfig``).

    There are two publications: 2023, Random Orthogonal Subspace Adaptation (Hameed and Rabusseau), whose settings are
    the defaults; and 2024, Random Subspace Adaptation (Hameed, Milios, Reddy and Rabusseau, arXiv 2407.07802), whose
    code has other names, given below. ``basis``, ``start``, ``gain``, ``rewarm_steps`` and the values orthonormal and
    rescale are of neither. The method PiSSA (Meng et al. 2024) is sample_method=top, level=never and bias=none.

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
        gain: A and B are drawn so many times larger, W_f = W − A B with them.
        adapt: which factors train: ab, a, or b (2024: adapt_method). The other one is fixed between resamples.
        level: the unit of ``every``: epoch, step (of the optimizer), or never, for no resample at all (2024:
            factorize_level).
        every: the number of epochs or optimizer steps between resamples (2024: factorize_freq).
        optimizer_state: what a resample does to the optimizer's state of A and B: reset, keep, or rescale (first
            moments become zero, second moments their mean over the tensor).
        rewarm_steps: after a resample the learning rate rises linearly to its schedule over so many optimizer steps
            (``Resampler.rewarmed``).
        decay: whether weight decay acts on A and B that hold a part of W (start=split), which it shrinks. Always acts
            on those that start at zero, as on LoRA's. Takes effect through ``rosa.parameter_groups``.
    """

    sample_method: Literal["random", "window", "top", "bottom"] = option("random", choices=SAMPLE_METHODS)
    basis: Literal["singular", "random"] = option("singular", choices=("singular", "random"))
    factor_split: Literal["sqrt", "left", "orthonormal"] = option("sqrt", choices=FACTOR_SPLITS)
    start: Literal["split", "zero"] = option("split", choices=("split", "zero"))
    gain: float = option(1.0, above=0)
    adapt: Literal["ab", "a", "b"] = option("ab", choices=ADAPTED)
    level: Literal["epoch", "step", "never"] = option("epoch", choices=("epoch", "step", "never"))
    every: int = option(1, minimum=1)
    optimizer_state: Literal["reset", "keep", "rescale"] = option("reset", choices=("reset", "keep", "rescale"))
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


@register(RosaConfig)
class RosaLayer(SubspaceLayer):
    """A layer whose base weight is W_f. A resample does not change the function that it computes.

    All values are written in place, so that optimizers, DDP and compiled graphs keep their parameters.
    """

    rewrites_base: ClassVar[bool] = True

    config: RosaConfig

    def __init__(self, name: str, base: nn.Linear, config: RosaConfig) -> None:
        super().__init__(name, base, config)
        self.fixed = {"ab": (), "a": ("B",), "b": ("A",)}[config.adapt]
        for factor in self.fixed:
            self.get_parameter(factor).requires_grad_(False)
        # Used only if the stored W has 16 bits:
        self._exact: Tensor | None = None  # W in float32, between merge_pair and set_factors
        self._start: tuple[Tensor, Tensor] | None = None  # A and B as they were sampled, on the CPU
        self._change = math.nan  # Frobenius norm of the change of A B by training

    @property
    def _is_rounded(self) -> bool:
        return self.base.weight.dtype.itemsize < 4

    @property
    def merged_mn(self) -> Tensor:
        return self.weight_mn if self._exact is None else self._exact

    @torch.no_grad()
    def initialise(self) -> None:
        self._zero_pair()

    def _zero_pair(self) -> None:
        self.A.zero_()
        self.B.zero_()

    @torch.no_grad()
    def on_load(self) -> None:
        self._remember_pair()

    def _remember_pair(self) -> None:
        """Keep A and B as training starts from them, to find what it changed. Only 16-bit weights need that."""
        if self._is_rounded:
            self._start = gather(self.A).to("cpu", copy=True), gather(self.B).to("cpu", copy=True)

    @torch.no_grad()
    def merge_pair(self) -> None:
        with full_precision(self.base.weight.device):
            if self._is_rounded:
                delta = self.delta()
                self._exact = (self.weight_mn + delta).float()
                if self._start is not None:
                    self._change = float((delta - product(*(start.to(delta.device) for start in self._start))).norm())
            self._add_pair(1)
        self._zero_pair()

    def _add_pair(self, sign: int) -> None:
        """W ← W ± A B, on a CPU in one pass over W."""
        weight = self.weight_mn
        if weight.device.type == "cpu" and weight.dtype == self.A.dtype:
            weight.addmm_(self.A, self.B, alpha=sign)
        else:
            weight.add_(self.delta(), alpha=sign)

    def optimizer_options(self, name: str) -> dict[str, float]:
        is_part_of_weight = name in ("A", "B") and self.config.start == "split"
        return {"weight_decay": 0.0} if is_part_of_weight and not self.config.decay else {}

    @property
    def needs_vectors(self) -> bool:
        return self.config.basis == "singular"

    @torch.no_grad()
    def sample(self, number: int, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        config, generator = self.config, layer_generator(self.config.seed, number, self.name)
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
        return (a * config.gain).to(self.A.dtype), (b * config.gain).to(self.B.dtype)

    @torch.no_grad()
    def set_factors(self, a: Tensor, b: Tensor) -> None:
        """A, B ← a, b and W_f = W − A B.

        W_f is formed from the rounded A and B, so that an error of the factorisation does not change the function. A
        W_f that is stored in 16 bits is rounded once, and ``rounding`` records by how much. With several processes the
        first one sends its A and B to the others, because two machines may find singular vectors of other signs.
        """
        self.A.copy_(a)
        self.B.copy_(b)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast(self.A.data, 0)
            dist.broadcast(self.B.data, 0)
        with full_precision(self.base.weight.device):
            if self._exact is None:
                self._add_pair(-1)
            else:
                delta = self.delta()
                self.weight_mn.copy_(self._exact - delta)
                self.rounding = float((self.weight_mn + delta - self._exact).norm()), self._change
                self._exact = None
        self._remember_pair()
