"""Causal attention without a mask, for batches that are padded on the right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

UNMASKED = "causal_sdpa"  # transformers builds no mask for an attention that it does not know


def is_fully_causal(config: Any, length: int) -> bool:
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
