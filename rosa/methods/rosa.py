"""ROSA (Hameed and Rabusseau 2023): x W_f + (x A) B + b, where A and B train a subspace that is sampled repeatedly.

A and B are made of R singular directions of W, and W_f = W − A B is fixed. A resample merges the pair into the weight,
W ← W_f + A B, and makes another subspace trainable, so that the rank of the total change is not bounded by R.
The base module's own weight holds W_f, so that the adapted layer stores one weight, as a LoRA layer does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from rosa.fused import full_precision
from rosa.methods import register
from rosa.resampling import SubspaceLayer
from rosa.settings import RosaConfig
from rosa.sharding import max_abs
from rosa.subspace import choose_directions, random_triplets, seeded_generator, singular_triplets, split_triplets


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
