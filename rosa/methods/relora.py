"""ReLoRA (Lialin et al. 2023, arXiv 2307.05695, algorithm 1): LoRA whose pair is merged and starts again, many times.

A restart merges the pair into the weight, W ← W + (α/R) A B, samples another A and sets B to zero. The total change may
have any rank then. Most moments of the optimizer become zero, and the learning rate rises again from near zero.

Two things differ from the authors' training from scratch. Their first cycle trains all weights; here the weights are
pretrained. Their code prunes first and second moments apart from each other. An element that keeps only the first one
then takes steps of m / ε, and since A has no gradient while B is zero, A reached 1,000 in tests. Here the moments of an
element are kept or dropped together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rosa.config import option
from rosa.methods import register
from rosa.methods.lora import LoraConfig, LoraLayer
from rosa.resampling import SubspaceLayer


@dataclass
class ReloraConfig(LoraConfig):
    """ReLoRA's settings, beside those of LoRA (``LoraConfig``).

    Attributes:
        level: the unit of ``every``: epoch, step (of the optimizer), or never, which is LoRA.
        every: the number of epochs or optimizer steps between restarts; 5,000 steps in the paper.
        pruned: the share of the elements of A and B, those with the smallest first moments, whose moments a restart
            sets to zero. The count of steps goes on.
        rewarm_steps: after a restart the learning rate rises linearly to its schedule over this many optimizer steps
            (``Resampler.rewarmed``); 50 to 100 in the paper.
    """

    level: Literal["epoch", "step", "never"] = option("epoch", choices=("epoch", "step", "never"))
    every: int = option(1, minimum=1)
    pruned: float = option(0.99, minimum=0, maximum=1)
    rewarm_steps: int = option(10, minimum=0)

    method: ClassVar[str] = "relora"
    label: ClassVar[str] = "ReLoRA"
    order: ClassVar[int] = 45
    colour: ClassVar[str] = "#56B4E9"

    @property
    def optimizer_state(self) -> float:
        """What a restart does to the optimizer's state, see ``rosa.resample``."""
        return self.pruned


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
