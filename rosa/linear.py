"""The product x W + (x A) B + b with few kernels, and a backward pass that makes no gradient of W.

Two forms, equal but for rounding; T inputs of size m, n outputs, rank R:

    split     y = x W + (x A) B        T R (m + n) multiplications beside x W, added into its result
    summed    y = x (W + A B)          m R n, whatever T, and one product for x

Under autocast W must be cast in each step anyway, so that W + A B costs one pass over it, which the cast does. In
full precision it would cost a second copy of W, hence the split form there.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

RANK_MULTIPLE = 8  # matrix units take 16-bit rows of 16 bytes


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off: what is written into weights must not pass through bfloat16."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What products with ``x`` are computed in: autocast's type where it is on, else its own."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class _AdaptedProduct(torch.autograd.Function):
    """x W + (x A) B + b, where W is frozen; ``summed``: W is W + A B already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, summed: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
        low = None
        if not summed:
            low = rows @ a
            out.addmm_(low, b)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        slope = upstream.reshape(-1, upstream.shape[-1])
        slope_low = slope @ b.T
        slope_x = None
        if ctx.needs_input_grad[0]:
            slope_x = slope @ weight.T
            if low is not None:
                slope_x.addmm_(slope_low, a.T)
            slope_x = slope_x.view(ctx.shape)
        slope_bias = slope.sum(0) if ctx.needs_input_grad[2] else None
        return slope_x, None, slope_bias, rows.T @ slope_low, (rows @ a if low is None else low).T @ slope, None


def adapted_product(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """x W + (x A) B + bias, (..., n).

    Args:
        x: (..., m).
        weight: W (m, n), frozen: it gets no gradient.
        a, b: (m, R) and (R, n).
    """
    dtype = compute_dtype(x)
    if dtype == weight.dtype:
        return _AdaptedProduct.apply(x, weight, bias, a, b, False)  # type: ignore[no-any-return, no-untyped-call]
    with torch.no_grad(), full_precision(x.device):
        summed = torch.addmm(weight, a, b).to(dtype)
    a, b = a.to(dtype), b.to(dtype)
    if x.is_cuda and (missing := -a.shape[1] % RANK_MULTIPLE):
        a, b = torch.nn.functional.pad(a, (0, missing)), torch.nn.functional.pad(b, (0, 0, 0, missing))
    bias = None if bias is None else bias.to(dtype)
    return _AdaptedProduct.apply(x.to(dtype), summed, bias, a, b, True)  # type: ignore[no-any-return, no-untyped-call]
