"""LoRA (Hu et al. 2021, section 4.1): x W + b + (α/R) (dropout(x) A) B, W frozen, B zero at the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rosa.config import LowRankConfig, option
from rosa.layers import LowRankLayer
from rosa.methods import register
from rosa.subspace import layer_generator


@dataclass
class LoraConfig(LowRankConfig):
    """LoRA's settings, beside bias, target_modules, seed (``AdapterConfig``) and rank (``LowRankConfig``).

    Attributes:
        alpha: the pair is scaled by alpha / R; None: alpha = R in each layer, so that the scale is 1.
        dropout: probability, in [0, 1], of dropping an input of A in training.
    """

    alpha: float | None = option(None, above=0)
    dropout: float = option(0.0, minimum=0, maximum=1)

    method: ClassVar[str] = "lora"
    published_bias: ClassVar[str] = "none"
    label: ClassVar[str] = "LoRA"
    order: ClassVar[int] = 30
    colour: ClassVar[str] = "#E69F00"


@register(LoraConfig)
class LoraLayer(LowRankLayer):
    """A starts uniform in ±1/√m (Kaiming with a = √5 over the m inputs, as in the authors' and PEFT's code), B zero."""

    config: LoraConfig

    def __init__(self, name: str, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(name, base, config)
        self.scale = 1.0 if config.alpha is None else config.alpha / self.rank
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
