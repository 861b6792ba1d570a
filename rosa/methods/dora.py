"""DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): x (V ⊙ g) + b, where V = W + (α/R) A B and g = s / ‖V‖.

A B changes the direction of each column of W, of which an output has one, and a trained magnitude s (n,) sets its
length, at first that of W's column. ‖V‖ is the norm of the columns, (n,). As in section 4.3 of the paper, it is a
constant in the backward pass. As in PEFT, dropout acts on the change of the output only, and weight decay on s too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rosa.fused import full_precision
from rosa.layer_state import forward_merged
from rosa.methods import register
from rosa.methods.lora import LoraLayer
from rosa.settings import DoraConfig, LoraConfig


@register(DoraConfig)
class DoraLayer(LoraLayer):
    """LoRA's pair and a ``magnitude`` (n,). A column of zeros stays zero.

    Each forward pass computes the norms, and so the matrix V.
    """

    takes_quantised: ClassVar[bool] = False

    def __init__(self, name: str, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(name, base, config)
        self.magnitude = self.new_parameter(self.out_features)

    @torch.no_grad()
    def initialise(self) -> None:
        super().initialise()
        self.magnitude.copy_(self.norms())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """‖V‖ of each output, (n,), detached, in float32 at least."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        with full_precision(self.A.device):
            weight, a, b = (values.to(dtype) for values in (self.weight_mn, self.A, self.B))
            total = torch.addmm(weight, a, b, alpha=self.scale)
            norms: Tensor = torch.linalg.vector_norm(total, dim=0)
        return norms.clamp_min(torch.finfo(norms.dtype).tiny)

    def ratios(self) -> Tensor:
        """g (n,), of which only the magnitude has a gradient."""
        return self.magnitude / self.norms()

    @property
    def weight(self) -> Tensor:
        """V ⊙ g; see ``LowRankLayer``."""
        if self.merged:
            return self.base.weight
        ratios = self.ratios()
        scaled = super().weight * (ratios[:, None] if self.transposed else ratios)
        return scaled.to(self.base.weight.dtype)

    def delta(self) -> Tensor:
        weight = self.weight_mn
        return (weight + super().delta()) * self.ratios() - weight

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return forward_merged(self, x)
        ratios, bias = self.ratios(), self.base.bias
        if self.training and self.config.dropout:
            out, own = self.base.forward(x), self.dropout(x)
            low = (own.to(self.A.dtype) @ self.A) @ self.B
            scaled: Tensor = out + (own @ self.weight_mn) * (ratios - 1) + low * (ratios * self.scale)
        else:
            out = super().forward(x)
            scaled = out * ratios if bias is None else (out - bias) * ratios + bias
        return scaled.to(out.dtype)
