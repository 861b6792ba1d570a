"""Attention of causal models: without a mask for batches that are padded on the right, and with a custom mask."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from rosa.fused import compute_dtype, full_precision
from utils.models.fast_modules import LEVELS, draw_kept, dropped_levels, keep_only

# What transformers passes to every attention; another option that is set asks for more than plain causal attention.
PLAIN_OPTIONS = ("dropout", "scaling", "is_causal", "position_ids", "cache_position", "use_cache", "sliding_window")
UNMASKED = "causal_sdpa"  # transformers builds no mask for an attention that it does not know
SHORT = 96  # tokens up to which dense products in 16 bits take less than half the time of SDPA on a CPU


def is_fully_causal(config: Any, length: int) -> bool:
    """Whether each of ``length`` positions attends to all before it, with no limit by a sliding window or chunks."""
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    one_kind = "sliding_attention" if window and getattr(text, "use_sliding_window", True) else "full_attention"
    kinds = set(getattr(text, "layer_types", None) or [one_kind])  # Mistral has a window and no layer_types
    return kinds <= {"full_attention"} or (kinds <= {"full_attention", "sliding_attention"} and length <= (window or 0))


@contextlib.contextmanager
def causal_attention(model: Any, length: int) -> Iterator[None]:
    """Let SDPA attend causally by its own flag, without a mask. Other attention implementations are left alone.

    Otherwise transformers searches the positions for packed sequences in each forward pass, which waits for the device.
    No mask is needed: padding is on the right, so that no real token attends to it.

    Args:
        model: a causal language model; its configuration is changed within the ``with`` block.
        length: tokens of the batch.
    """
    config = model.config
    by_name = config._attn_implementation == "sdpa" and getattr(model, "_supports_attention_backend", False)
    if not by_name or not is_fully_causal(config, length):  # Falcon calls SDPA itself
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(UNMASKED, _unmasked_attention)
    with _implementation(config, UNMASKED):
        yield


def same_attention(model: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a forward pass and of its recomputation, which comes after ``causal_attention`` has ended."""
    return contextlib.nullcontext(), _implementation(model.config, model.config._attn_implementation)


@contextlib.contextmanager
def _implementation(config: Any, name: str) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def why_no_mask(model: Any, length: int) -> str | None:
    """Why the model cannot take a custom mask and positions; None if no reason is found. A trial must confirm that.

    Args:
        length: the most tokens that a token attends to, itself included.
    """
    parameters = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder or not {"attention_mask", "position_ids", "use_cache"} <= set(parameters):
        return "its forward pass takes no mask and positions"
    attention = model.config._attn_implementation
    if not getattr(model, "_supports_attention_backend", False) or attention not in ("sdpa", "eager"):
        return f"its {attention} attention may not take a custom mask"
    return None if is_fully_causal(model.config, length) else "its attention is not over all tokens"


def additive_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask (B, 1, T, S) for SDPA and eager attention.

    Args:
        sees: whether a token (dimension 1) attends to another (dimension 2), (B, T, S) bool.
        dtype: the model's; under autocast the mask has autocast's.
    """
    device = sees.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def _unmasked_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, except where a CPU is slow in it: with dropout, and in 16 bits on short rows."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    dropped, dtype = dropped_levels(options.get("dropout", 0.0)), compute_dtype(query)
    if (
        query.device.type == "cpu"
        and (0 < dropped < LEVELS or (dropped == 0 and dtype.itemsize == 2 and query.shape[2] <= SHORT))
        and attention_mask is None
        and query.shape[2:] == key.shape[2:]
        and key.shape == value.shape
        and all(value is None for name, value in options.items() if name not in PLAIN_OPTIONS)
        and options.get("is_causal") is not False
        and getattr(module, "is_causal", True)
        and not torch.compiler.is_compiling()
    ):
        scaling = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = (part.to(dtype) for part in (query, key, value))  # rotated ones may be in float32
        return _DenseAttention.apply(query, key, value, scale, dropped), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


class _DenseAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) with dropout, times V, causal: Q (B, H, T, D), K and V (B, H / G, T, D) to (B, T, H, D).

    The G heads of queries that share a head of keys are rows of one product. Scores and softmax are in float32; the
    products with the probabilities are in the inputs' type. The probabilities (B, H, T, T) are kept for the backward
    pass, as SDPA does with dropout.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, dropped: int) -> Tensor:
        items, heads, length, width = query.shape
        groups = heads // key.shape[1]
        query = query.reshape(-1, groups * length, width)
        key, value = key.reshape(-1, length, width), value.reshape(-1, length, width)
        exact = torch.promote_types(query.dtype, torch.float32)
        later = torch.full((length, length), -torch.inf, dtype=exact).triu_(1).repeat(groups, 1)
        with full_precision(query.device):
            scores = torch.baddbmm(later, query.to(exact), key.to(exact).transpose(1, 2), alpha=scale)
            probabilities = torch.softmax(scores, -1).to(query.dtype)
            kept = draw_kept(probabilities.shape, dropped) if dropped else None
            ctx.scale, ctx.upscale = scale, LEVELS / (LEVELS - dropped)
            out = torch.bmm(_kept_values(probabilities, kept), value).mul_(ctx.upscale)
        ctx.save_for_backward(query, key, value, probabilities, kept)
        return out.view(items, heads, length, width).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities, kept = ctx.saved_tensors
        items, length, _, width = grad_output.shape
        grad = grad_output.transpose(1, 2).reshape(query.shape) * ctx.upscale
        with full_precision(grad.device):
            grad_value = torch.bmm(_kept_values(probabilities, kept).transpose(1, 2), grad)
            grad_probabilities = _kept_values(torch.bmm(grad, value.transpose(1, 2)), kept)
            grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
            grad_scores.mul_(ctx.scale)
            grads = torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query), grad_value
        return *(part.view(items, -1, length, width) for part in grads), None, None


def _kept_values(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else keep_only(x, kept)
