"""Attention of causal models: without a mask for batches that are padded on the right, and with a mask of ours."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

UNMASKED = "causal_sdpa"  # transformers builds no mask for an attention that it does not know


def sees_all_before(config: Any, length: int) -> bool:
    """Whether each position of ``length`` tokens attends to all before it: no sliding window or chunks cut it off."""
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    one_kind = "sliding_attention" if window and getattr(text, "use_sliding_window", True) else "full_attention"
    kinds = set(getattr(text, "layer_types", None) or [one_kind])  # Mistral names a window and no kinds of layers
    return kinds <= {"full_attention"} or (kinds <= {"full_attention", "sliding_attention"} and length <= (window or 0))


@contextlib.contextmanager
def causal_attention(model: Any, length: int) -> Iterator[None]:
    """Let SDPA attend causally by its own flag, without a mask; other attention implementations stay as they are.

    Without it transformers looks into the positions for packed sequences at each forward pass, which waits for the
    device. With padding on the right no real token can see any.

    Args:
        model: a causal language model; its configuration is changed for the length of the ``with`` block.
        length: tokens of the batch.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or not sees_all_before(config, length):
        yield
        return
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(UNMASKED, sdpa_attention_forward)
    config._attn_implementation = UNMASKED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def why_no_mask(model: Any, length: int) -> str | None:
    """Why the model may not attend by a mask and positions of ours; None if it seems to, which a trial must show.

    Args:
        length: the most tokens before a token that it sees, itself counted.
    """
    parameters = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder or not {"attention_mask", "position_ids", "use_cache"} <= set(parameters):
        return "its forward pass takes no mask and positions"
    attention = model.config._attn_implementation
    if not getattr(model, "_supports_attention_backend", False) or attention not in ("sdpa", "eager"):
        return f"its {attention} attention may not take a mask of ours"
    return None if sees_all_before(model.config, length) else "its attention is not over all tokens"


def additive_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, T, S) that both SDPA and eager attention take, of which token sees which (B, T, S).

    Args:
        dtype: the model's; under autocast the mask has autocast's.
    """
    device = sees.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
