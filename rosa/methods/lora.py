"""LoRA (Hu et al. 2021, section 4.1): x W + b + (α/R) (dropout(x) A) B, W frozen, B zero at the start.

Two options come from later papers: the scale α/√R (rsLoRA), with which a larger rank does not learn more slowly, and a
learning rate of B above that of A (LoRA+).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rosa.config import LowRankConfig, option
from rosa.layers import LowRankLayer
from rosa.methods import register
from rosa.subspace import seeded_generator


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
    scale: Literal["standard", "rslora"] = option("standard", choices=("standard", "rslora"))
    dropout: float = option(0.0, minimum=0, maximum=1)
    lr_ratio_b: float = option(1.0, above=0)

    method: ClassVar[str] = "lora"
    label: ClassVar[str] = "LoRA"
    order: ClassVar[int] = 30
    colour: ClassVar[str] = "#E69F00"

    def problems(self) -> list[str]:
        without = self.scale == "rslora" and self.alpha is None
        return super().problems() + (["scale=rslora needs an alpha: the scale is alpha / √R"] if without else [])


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
