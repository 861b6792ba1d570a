"""The product x W + (x A) B + b in few kernels. Its backward pass computes no gradient of W.

There are two forms, equal up to rounding. For T inputs of size m, n outputs and rank R:

    split     y = x W + (x A) B        T R (m + n) multiplications beside x W, added into its result
    summed    y = x (W + A B)          m R n, for any T, and one product for x

Under autocast a float32 W is cast in each step anyway. The sum takes the place of the cast, so it costs no further pass
over W. Without autocast the sum would be a second copy of W, so the split form is used.

W + A B is summed in float32 and rounded once. The error is as large as that of casting W alone. A pair far below that
error (LoRA's first steps) is noisy in it, but right on average. Adding two outputs in bfloat16 loses such a pair
instead. Measured with a pair whose output is 1e-4 (1e-3) of that of W: one product gives 1.0 (1.0) times the pair, with
noise 14 (2.6) times as large; two products and their sum give 0.07 (0.54) times the pair. So LoRA uses the summed form
too.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

RANK_MULTIPLE = 8  # matrix units take 16-bit rows of 16 bytes
CACHED = 2**18  # numbers of a CPU's sum at a time: 1 MiB in float32


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off: what is written into weights, or compared in a trial, must not pass through bfloat16."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with ``x``: autocast's if it is on and ``x`` is not float64, else that of ``x``."""
    device = x.device.type
    if device != "meta" and x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_transformed() -> bool:
    """Whether ``torch.func`` (vmap, grad, jvp) or forward-mode differentiation is active.

    They need plain operations: they cannot look into a function with its own backward pass.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _plus_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a b in the dtype of ``total``: written into ``total`` if all have that dtype, else rounded once."""
    if total.dtype == a.dtype:
        return total.addmm_(a, b)
    return torch.addmm(total.to(a.dtype), a, b).to(total.dtype)


class _AdaptedProduct(torch.autograd.Function):
    """rows W + (rows A) B + b with a frozen W. If ``summed``, the given weight is W + A B already.

    A and B may be float32 while rows, W and output have 16 bits: their product is then computed in float32. ``low`` is
    rows A where A does not train, else None; the gradient of rows includes the part that goes through it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        low: Tensor | None,
        summed: bool,
    ) -> Tensor:
        out = F.linear(rows, weight.T, bias)  # on a CPU faster than addmm, which copies the bias into the output first
        _, _, _, trains_a, trains_b, *_ = ctx.needs_input_grad
        keeps_rows = trains_a or (trains_b and low is None)
        if not summed:
            low = rows.to(a.dtype) @ a if low is None else low
            out = _plus_product(out, low, b)
        ctx.summed = summed
        ctx.save_for_backward(rows if keeps_rows else None, weight, a, b, low if trains_b else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        needs_rows, _, needs_bias, trains_a, trains_b, *_ = ctx.needs_input_grad
        own_rows, own_grad = rows if rows is None else rows.to(a.dtype), grad_output.to(a.dtype)
        # second derivatives need W + A B as a function of A and B, and rows A as one of the rows, computed again
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if differentiable and ctx.summed:
            weight = weight + (a @ b - (a @ b).detach())
        grad_low = own_grad @ b.T
        grad_rows = grad_a = grad_b = None
        if needs_rows:
            grad_rows = grad_output @ weight.T
            if not ctx.summed:
                grad_rows = _plus_product(grad_rows, grad_low, a.T)
        if own_rows is not None and trains_a:
            grad_a = own_rows.T @ grad_low
        if trains_b:
            low = own_rows @ a if own_rows is not None and (low is None or differentiable) else low
            grad_b = low.T @ own_grad
        grad_bias = grad_output.sum(0) if needs_bias else None
        return grad_rows, None, grad_bias, grad_a, grad_b, None, None


class KeptSum:
    """A buffer for W + A B in autocast's dtype, kept between steps on a CPU, where a new one costs more than the sum.

    Overwriting it invalidates older graphs: their backward pass raises PyTorch's error, as after a change of A or B.
    Values that ``functional_call`` puts in the place of A and B get no buffer, since several may be in one graph.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.versions: list[tuple[int, int]] = []

    def buffer(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        """The ``sum_out`` for ``adapted_product`` of these tensors; None if it needs none or allocates its own."""
        dtype = compute_dtype(x)
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling() and not weight.is_inference()
        if dtype == weight.dtype or not on_cpu or not all(isinstance(factor, nn.Parameter) for factor in (a, b)):
            return None
        if self.values is None or self.values.dtype != dtype or self.values.stride() != weight.stride():
            with torch.inference_mode(False):
                self.values = torch.empty_like(weight, dtype=dtype)
        versions = [(tensor.data_ptr(), tensor._version) for tensor in (weight, a, b)]  # .data swaps keep the version
        if versions != self.versions:
            self.values[:0] = 0  # tells autograd of the write, which goes through .data
            self.versions = versions
        return self.values


def _sum_into(out: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> None:
    """``out`` ← W + A B on a CPU. A B uses its 16-bit units; the float32 sum takes rows that fit into the cache."""
    if not weight.is_contiguous():  # the view (m, n) of a Linear's (n, m)
        out, weight, a, b = out.T, weight.T, b.T, a.T
    delta, rows = a.to(out.dtype) @ b.to(out.dtype), max(1, CACHED // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        out[part] = delta[part].float().add_(weight[part])


def adapted_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, sum_out: Tensor | None = None
) -> Tensor:
    """x W + (x A) B + bias, (..., n), in the dtype that a Linear with this W returns.

    Args:
        x: (..., m); without autocast it has the dtype of W.
        weight: W (m, n), frozen: it gets no gradient.
        a, b: (m, R) and (R, n); they may be float32 while W has 16 bits. If A does not train, x A is kept for the
            backward pass instead of x; if B does not, x alone.
        sum_out: a buffer for W + A B of the summed form on a CPU, (m, n) with the strides of W, in the product's
            dtype; the backward pass reads it. None: a new one.
    """
    dtype, pair_dtype = compute_dtype(x), compute_dtype(a)
    # With A fixed, the gradient of B needs x A and not x. Computed out here it keeps its own derivatives.
    is_split_off = torch.is_grad_enabled() and b.requires_grad and not a.requires_grad
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
    low = rows.to(a.dtype) @ a if is_split_off else None
    apply: Any = _AdaptedProduct.apply  # typed by some versions of PyTorch only
    out: Tensor = apply(rows, weight, bias, a, b, low, summed)
    return out.view(*x.shape[:-1], out.shape[-1])  # not inside the function: a view from there must not be written into
