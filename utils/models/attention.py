"""Causal attention without a mask, for batches that are padded on the right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

UNMASKED = "causal_sdpa"  # transformers builds no mask for an attention that it does not know


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
        model: a causal language model; its configuration is changed for the length of the ``with`` block.
        length: tokens of the batch.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or not is_fully_causal(config, length):
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
