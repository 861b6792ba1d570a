"""The product x W + (x A) B + b with few kernels, and a backward pass that makes no gradient of W.

Two forms, equal but for rounding; T inputs of size m, n outputs, rank R:

    split     y = x W + (x A) B        T R (m + n) multiplications beside x W, added into its result
    summed    y = x (W + A B)          m R n, whatever T, and one product for x

Under autocast a float32 W must be cast in each step anyway, so that W + A B costs one pass over it, which the cast
does. In full precision it would cost a second copy of W, hence the split form there.

W + A B is summed in float32 and rounded once, with an error as large as that of casting W alone. A pair far below that
error (LoRA's first steps) drowns in it, but is whole on average, whereas two outputs in bfloat16 that are added lose
it: of a pair whose output is 1e-4 (1e-3) of that of W, one product gives 1.0 (1.0) times the pair and noise 14 (2.6)
times as large, two products and their sum give 0.07 (0.54) times the pair. Hence the summed form for LoRA too.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

RANK_MULTIPLE = 8  # matrix units take 16-bit rows of 16 bytes
CACHED = 2**18  # numbers of a CPU's sum at a time: 1 MiB in float32


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off: what is written into weights must not pass through bfloat16."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What products with ``x`` are computed in: autocast's type where it is on (not for float64), else its own."""
    device = x.device.type
    if device != "meta" and x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_transformed() -> bool:
    """Whether ``torch.func`` (vmap, grad, jvp) or forward-mode differentiation is at work.

    They differentiate and batch plain operations; a function with its own backward pass is closed to them.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _plus_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, in the type of ``total``: into ``total`` where all have that type, else rounded once."""
    if total.dtype == a.dtype:
        return total.addmm_(a, b)
    return torch.addmm(total.to(a.dtype), a, b).to(total.dtype)


class _AdaptedProduct(torch.autograd.Function):
    """rows W + (rows A) B + b, where W is frozen; ``summed``: W is W + A B already.

    A and B may be float32 beside 16-bit rows, W and output: what they add is then computed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, summed: bool
    ) -> Tensor:
        out = F.linear(rows, weight.T, bias)  # on a CPU faster than addmm, which copies the bias into the output first
        low = None
        if not summed:
            low = rows.to(a.dtype) @ a
            out = _plus_product(out, low, b)
        ctx.save_for_backward(rows, weight, a, b, low)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        summed = low is None
        own_rows, own_grad = rows.to(a.dtype), grad_output.to(a.dtype)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again, by A and B too
            low = None
            if summed:
                weight = weight + (a @ b - (a @ b).detach())
        if low is None:
            low = own_rows @ a
        grad_low = own_grad @ b.T
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad_output @ weight.T
            if not summed:
                grad_rows = _plus_product(grad_rows, grad_low, a.T)
        grad_bias = grad_output.sum(0) if ctx.needs_input_grad[2] else None
        return grad_rows, None, grad_bias, own_rows.T @ grad_low, low.T @ own_grad, None


def _sum_into(out: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> None:
    """``out`` ← W + A B on a CPU: A B by its 16-bit units, the sum in float32, by rows that stay in the cache."""
    if not weight.is_contiguous():  # the view (m, n) of a Linear's (n, m)
        out, weight, a, b = out.T, weight.T, b.T, a.T
    delta, rows = a.to(out.dtype) @ b.to(out.dtype), max(1, CACHED // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        out[part] = delta[part].float().add_(weight[part])


def adapted_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, sum_out: Tensor | None = None
) -> Tensor:
    """x W + (x A) B + bias, (..., n), in the type that a Linear of that W gives.

    Args:
        x: (..., m); without autocast of the type of W.
        weight: W (m, n), frozen: it gets no gradient.
        a, b: (m, R) and (R, n); they may be float32 beside a 16-bit W.
        sum_out: memory for W + A B of the summed form on a CPU, (m, n) with the strides of W, in the product's type;
            the backward pass reads it. None: new memory.
    """
    dtype, pair_dtype = compute_dtype(x), compute_dtype(a)
    summed = dtype != weight.dtype
    if summed:
        with torch.no_grad(), full_precision(x.device):
            if sum_out is None:
                weight = torch.addmm(weight.to(a.dtype), a, b).to(dtype)
            else:
                _sum_into(sum_out.data, weight, a, b)
                weight = sum_out
    a, b = a.to(pair_dtype), b.to(pair_dtype)
    if x.is_cuda and pair_dtype.itemsize == 2 and (missing := -a.shape[1] % RANK_MULTIPLE):
        a, b = F.pad(a, (0, missing)), F.pad(b, (0, 0, 0, missing))
    bias = None if bias is None else bias.to(dtype)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    out: Tensor = _AdaptedProduct.apply(rows, weight, bias, a, b, summed)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])  # here and not in the function, whose outputs allow writing in place
