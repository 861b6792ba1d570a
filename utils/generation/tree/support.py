"""Check whether a model can be decoded as a tree: by its class, and by a trial against its plain forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rosa.fused import full_precision
from utils.errors import failed_trial
from utils.generation.tree.loop import Trees
from utils.models.attention import why_no_mask

# Tolerance of the trial, in units of eps times the largest logit. SmolLM2-135M, trained on E2E, was up to 211 off in
# float32, and 84 under autocast to bfloat16: more than half of the largest logit. So the trial has no autocast.
ROUNDINGS, ROUNDINGS_OF_16_BITS = 512, 64


def why_not(model: Any, beams: int, ngram: int, prompt: int, new: int) -> str | None:
    """The reason why ``decode`` cannot serve this model and these settings; None if it can.

    Args:
        ngram, prompt, new: the size of the n-grams that may not repeat, and the most tokens of a prompt and of a text.
    """
    why = why_no_mask(model, prompt + new)
    if why:
        return why
    banned = prompt + new if ngram else 0
    if model.config.get_text_config(decoder=True).vocab_size < 2 * beams + banned:
        return "its vocabulary is so small that all candidates could be banned"
    try:
        with full_precision(model.device):
            found, expected = _trial(model)
    except Exception as error:
        return failed_trial(error)
    roundings = ROUNDINGS if model.dtype == torch.float32 else ROUNDINGS_OF_16_BITS
    tolerance = roundings * torch.finfo(model.dtype).eps * float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return None if difference <= tolerance else f"in a trial its logits differ by {difference:.2g}"


@torch.no_grad()
def _trial(model: Any) -> tuple[Tensor, Tensor]:
    """The last logits of four short beams: decoded as a tree with a cleared cache, and by plain forward passes."""
    prompts = torch.tensor([[0, 5, 3], [2, 4, 1]], device=model.device)  # the first begins with padding
    padding = torch.tensor([1, 0], device=model.device)
    tokens = torch.tensor([[[6, 7], [8, 9], [3, 5]], [[7, 6], [2, 8], [9, 4]]], device=model.device)
    parents = torch.tensor([[1, 1], [1, 0]], device=model.device)
    trees = Trees(model, prompts, padding, beams=2)
    trees.read_prompts()
    trees.step(tokens[:, 0])
    trees.follow(parents)
    trees.step(tokens[:, 1])
    trees.keep(torch.tensor([1, 0], device=model.device), int(trees.live().max()))
    found = trees.step(tokens.flip(0)[:, 2]).flip(0)
    expected = []
    for item in range(2):
        prompt = prompts[item, padding[item] :].expand(2, -1)
        written = torch.stack((tokens[item, 0, parents[item]], tokens[item, 1], tokens[item, 2]), 1)
        expected.append(model(input_ids=torch.cat((prompt, written), 1), use_cache=False).logits[:, -1])
    return found.float(), torch.stack(expected).float()
