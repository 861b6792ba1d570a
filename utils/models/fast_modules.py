"""Faster modules for elementwise functions: the same results in fewer passes over memory.

On two CPU cores GPT-2's activation and dropout take a quarter of a training step in transformers and PyTorch, and a
tenth here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 2**16  # a probability is rounded to 1 / LEVELS: 0.1 becomes 6554 / 65536
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def dropped_levels(p: float) -> int:
    """The probability ``p`` as a number of ``LEVELS``."""
    return round(p * LEVELS)


def draw_kept(shape: Sequence[int], dropped: int) -> Tensor:
    """Booleans of that shape on the CPU, False with probability ``dropped`` / ``LEVELS``, from 16 random bits each."""
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(shape) >= dropped - LEVELS // 2


def keep_only(x: Tensor, kept: Tensor) -> Tensor:
    """``x`` where ``kept`` and 0 elsewhere, by a bitwise "and", which takes a tenth of ``torch.where``'s time."""
    integers = _INTEGERS[x.itemsize]
    return (x.view(integers) & kept.to(integers).neg_()).view(x.dtype)


class _Dropped(torch.autograd.Function):
    """x · kept · scale. Only the mask ``kept`` is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return keep_only(x, kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return keep_only(grad_output, kept).mul_(ctx.scale), None, None


class BitDropout(nn.Dropout):
    """Dropout by 16 random bits per element on a CPU, ten times as fast as Bernoulli samples. Elsewhere PyTorch's.

    The probability is rounded to 1 / 65536 and the scale follows it, so that the mean stays exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = dropped_levels(self.p)
        fast = x.device.type == "cpu" and x.is_floating_point() and 0 < dropped < LEVELS
        if not (self.training and fast) or self.inplace or torch.compiler.is_compiling():
            return super().forward(x)
        return _Dropped.apply(x, draw_kept(x.shape, dropped), LEVELS / (LEVELS - dropped))


def use_faster_modules(model: nn.Module) -> None:
    """Replace, in place, GPT-2's GELU by PyTorch's one kernel for the same formula, and dropout by ``BitDropout``."""
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh().train(child.training))
            elif type(child) is nn.Dropout:
                setattr(module, name, BitDropout(child.p, child.inplace).train(child.training))
