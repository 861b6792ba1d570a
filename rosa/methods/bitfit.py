"""BitFit (Ben Zaken et al. 2022, section 3): x W + b in the adapted layers, of which only the bias b trains."""

from __future__ import annotations

from torch import Tensor

from rosa.layers import AdapterLayer
from rosa.methods import register
from rosa.settings import BitFitConfig


@register(BitFitConfig)
class BitFitLayer(AdapterLayer):
    """The base module with a trained bias; layers without one stay as they are."""

    def initialise(self) -> None:
        """Nothing is added, so nothing is set."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base.forward(x)
