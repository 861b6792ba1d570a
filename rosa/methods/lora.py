"""LoRA (Hu et al. 2021, section 4.1): x W + b + (α/R) (dropout(x) A) B, W frozen, B zero at the start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rosa.config import LoraConfig
from rosa.layers import AdapterLayer
from rosa.methods import register
from rosa.subspace import layer_generator


@register(LoraConfig)
class LoraLayer(AdapterLayer):
    """A uniform in ±1/√m (Kaiming with a = √5 over the m inputs, as in the authors' and PEFT's code), B zero."""

    config: LoraConfig

    def __init__(self, name: str, base: nn.Linear, rank: int, config: LoraConfig) -> None:
        super().__init__(name, base, rank, config)
        self.scale = 1.0 if config.alpha is None else config.alpha / rank
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def description(self) -> dict[str, Any]:
        return {**super().description(), "scale": self.scale}

    @torch.no_grad()
    def initialise(self) -> None:
        bound = 1 / math.sqrt(self.in_features)
        generator = layer_generator(self.config.seed, 0, self.name)
        start = torch.empty(self.A.shape, dtype=torch.float32, device="cpu")  # the same numbers on every device
        self.A.copy_(start.uniform_(-bound, bound, generator=generator))
        self.B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.merged or not (self.training and self.config.dropout):
            return super().forward(x)
        return self.apart(x, self.dropout)
