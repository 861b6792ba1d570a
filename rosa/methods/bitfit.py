"""BitFit (Ben Zaken et al. 2022, section 3): x W + b in the adapted layers, of which only the bias b trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rosa.config import AdapterConfig
from rosa.layers import AdapterLayer
from rosa.methods import register


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


@register(BitFitConfig)
class BitFitLayer(AdapterLayer):
    """The base module with a trained bias; layers without one stay as they are."""

    def initialise(self) -> None:
        """Nothing is added, so nothing is set."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base.forward(x)
