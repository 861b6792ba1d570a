"""Test whether padding on the left changes what a model writes by transformers' ``generate``."""

from __future__ import annotations

from typing import Any

import torch

from rosa.fused import full_precision

ROUNDINGS = 512  # tolerance of the trial, in units of eps times the largest logit
PROMPT, PADDING = [3, 5, 8], 2


@torch.no_grad()
def padding_counts(model: Any) -> bool:
    """Whether the logits after a prompt depend on padding before it.

    They do in decoders like BART's, where a mask does not move the positions, and in recurrent models that read no mask
    (RWKV).
    """
    with full_precision(model.device):
        alone, padded = _logits(model, 0), _logits(model, PADDING)
    tolerance = ROUNDINGS * torch.finfo(model.dtype).eps * float(alone.abs().max())
    return not float((padded - alone).abs().max()) <= tolerance


def _logits(model: Any, padding: int) -> torch.Tensor:
    """The logits of two tokens after a prompt with so much padding before it, (2, vocabulary)."""
    ids = torch.tensor([[0] * padding + PROMPT], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=(torch.arange(ids.shape[1], device=model.device) >= padding).long()[None],
        do_sample=False,
        num_beams=1,
        max_new_tokens=2,
        pad_token_id=0,
        eos_token_id=model.config.get_text_config(decoder=True).vocab_size,  # never written
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.cat(output.logits).float()
