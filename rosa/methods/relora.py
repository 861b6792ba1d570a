"""ReLoRA (Lialin et al. 2023, arXiv 2307.05695, algorithm 1): LoRA whose pair is merged and starts again, many times.

A restart merges the pair into the weight, W ← W + (α/R) A B, samples another A and sets B to zero. The total change may
have any rank then. Most moments of the optimizer become zero, and the learning rate rises again from near zero.

Two things differ from the authors' training from scratch. Their first cycle trains all weights; here the weights are
pretrained. Their code prunes first and second moments apart from each other. An element that keeps only the first one
then takes steps of m / ε, and since A has no gradient while B is zero, A reached 1,000 in tests. Here the moments of an
element are kept or dropped together.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rosa.methods import register
from rosa.methods.lora import LoraLayer
from rosa.resampling import SubspaceLayer
from rosa.settings import ReloraConfig


@register(ReloraConfig)
class ReloraLayer(SubspaceLayer, LoraLayer):
    """LoRA's layer; the base weight holds what was merged."""

    takes_quantised: ClassVar[bool] = False

    config: ReloraConfig

    @property
    def needs_vectors(self) -> bool:
        return False

    @torch.no_grad()
    def sample(self, number: int, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.first_factor(number), torch.zeros_like(self.B)
