"""LoRA (Hu et al. 2021, section 4.1): x W + b + (α/R) (dropout(x) A) B, W frozen, B zero at the start.

Two options come from later papers: the scale α/√R (rsLoRA), with which a larger rank does not learn more slowly, and a
learning rate of B above that of A (LoRA+).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rosa.layers import LowRankLayer
from rosa.methods import register
from rosa.settings import LoraConfig
from rosa.subspace import seeded_generator


@register(LoraConfig)
class LoraLayer(LowRankLayer):
    """A starts uniform in ±1/√m (Kaiming with a = √5 over the m inputs, as in the authors' and PEFT's code), B zero."""

    takes_quantised: ClassVar[bool] = True

    config: LoraConfig

    def __init__(self, name: str, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(name, base, config)
        divisor = math.sqrt(self.rank) if config.scale == "rslora" else self.rank
        self.scale = 1.0 if config.alpha is None else config.alpha / divisor
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def description(self) -> dict[str, Any]:
        return {**super().description(), "scale": self.scale}

    def optimizer_options(self, name: str) -> dict[str, float]:
        return {"lr_scale": self.config.lr_ratio_b} if name == "B" and self.config.lr_ratio_b != 1 else {}

    def first_factor(self, number: int = 0) -> Tensor:
        """An A to start from, on the CPU; ``number`` counts the starts."""
        bound = 1 / math.sqrt(self.in_features)
        generator = seeded_generator(self.config.seed, number, self.name)
        start = torch.empty(self.A.shape, dtype=torch.float32, device="cpu")  # the same numbers on every device
        return start.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def initialise(self) -> None:
        self.A.copy_(self.first_factor())
        self.B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.merged or not (self.training and self.config.dropout):
            return super().forward(x)
        return self.apart(x, self.dropout)
