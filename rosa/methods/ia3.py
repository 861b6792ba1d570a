"""(IA)³ (Liu et al. 2022, section 3.3): a learned scale per output, (x W + b) ⊙ l, or per input, (x ⊙ l) W + b.

The paper scales keys, values and the inner activations of the MLP, which are the inputs of its second layer. Here each
adapted layer scales its outputs, but the second layers of MLPs (``feedforward_modules``) scale their inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from rosa.layer_state import forward_merged
from rosa.layers import AdapterLayer
from rosa.methods import register
from rosa.settings import IA3Config, ends_in


@register(IA3Config)
class IA3Layer(AdapterLayer):
    """The base module with a ``scale``, (m,) on its inputs or (n,) on its outputs, which starts as 1."""

    takes_quantised: ClassVar[bool] = True

    config: IA3Config

    def __init__(self, name: str, base: nn.Linear, config: IA3Config) -> None:
        super().__init__(name, base, config)
        self.on_input = ends_in(name, config.feedforward_modules)
        self.scale = self.new_parameter(self.in_features if self.on_input else self.out_features)

    def description(self) -> dict[str, object]:
        return {**super().description(), "on_input": self.on_input}

    @classmethod
    def initialise_all(cls, layers: Sequence[Self]) -> None:
        config = layers[0].config
        endings = config.feedforward_modules
        chosen = config.target_modules is not None and endings == IA3Config().feedforward_modules
        if endings and not chosen and not any(layer.on_input for layer in layers):
            warnings.warn(
                f"no adapted layer ends in one of feedforward_modules={endings}: all scale their outputs, and (IA)³ of "
                "the paper scales the inputs of the second layers of MLPs",
                stacklevel=2,
            )
        super().initialise_all(layers)

    @torch.no_grad()
    def initialise(self) -> None:
        self.scale.fill_(1)

    def delta(self) -> Tensor:
        change = self.scale - 1
        return self.weight_mn * (change[:, None] if self.on_input else change)

    def bias_delta(self) -> Tensor | None:
        bias = self.base.bias
        return None if self.on_input or bias is None else bias * (self.scale - 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return forward_merged(self, x)
        if self.on_input:
            return self.base.forward((x * self.scale).to(x.dtype))
        out = self.base.forward(x)
        return (out * self.scale).to(out.dtype)
