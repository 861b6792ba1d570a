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
from rosa.subspace import FACTOR_SPLITS, SAMPLE_METHODS, choose_directions, factor_pair, layer_generator


@dataclass
class RosaConfig(LowRankConfig):
    """ROSA's settings, beside bias, target_modules, seed (``AdapterConfig``) and rank (``LowRankConfig``).

    Attributes:
        sample_method: which singular directions train: random, window (a random block of neighbours), top
            or bottom.
        factor_split: sqrt (√S on both sides) or left (U S | Vᵀ).
        level: the unit of ``every``: epoch, step (of the optimizer), or never, for no resample at all.
        every: the number of epochs or optimizer steps between resamples.
        optimizer_state: whether a resample resets or keeps the optimizer's state of A and B: reset or keep.
    """

    sample_method: Literal["random", "window", "top", "bottom"] = option("random", choices=SAMPLE_METHODS)
    factor_split: Literal["sqrt", "left"] = option("sqrt", choices=FACTOR_SPLITS)
    level: Literal["epoch", "step", "never"] = option("epoch", choices=("epoch", "step", "never"))
    every: int = option(1, minimum=1)
    optimizer_state: Literal["reset", "keep"] = option("reset", choices=("reset", "keep"))

    method: ClassVar[str] = "rosa"
    published_bias: ClassVar[str] = "adapted"
    label: ClassVar[str] = "ROSA"
    order: ClassVar[int] = 40
    colour: ClassVar[str] = "#0072B2"


@register(RosaConfig)
class RosaLayer(SubspaceLayer):
    """A layer whose base weight is W_f. A resample does not change the function that it computes.

    All values are written in place, so that optimizers, DDP and compiled graphs keep their parameters.
    """

    rewrites_base: ClassVar[bool] = True

    config: RosaConfig

    def __init__(self, name: str, base: nn.Linear, config: RosaConfig) -> None:
        super().__init__(name, base, config)
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
            delta = self.delta()
            if self._is_rounded:
                self._exact = (self.weight_mn + delta).float()
                if self._start is not None:
                    self._change = float((delta - product(*(start.to(delta.device) for start in self._start))).norm())
            self.weight_mn.add_(delta)
        self._zero_pair()

    @property
    def needs_vectors(self) -> bool:
        return True

    @torch.no_grad()
    def sample(self, number: int, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        assert vectors is not None
        generator = layer_generator(self.config.seed, number, self.name)
        indices = choose_directions(len(vectors), self.rank, self.config.sample_method, generator)
        return factor_pair(self.merged_mn, indices, self.config.factor_split, vectors)

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
            delta = self.delta()
            if self._exact is None:
                self.weight_mn.sub_(delta)
            else:
                self.weight_mn.copy_(self._exact - delta)
                self.rounding = float((self.weight_mn + delta - self._exact).norm()), self._change
                self._exact = None
        self._remember_pair()
