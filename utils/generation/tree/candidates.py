"""Find the likeliest next tokens of many beams without a float32 copy of all logits."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # tokens, of which only the best is compared first
CHUNK = {"cpu": 2**21}  # logits taken at a time: as many as the processor's cache holds
CHUNK_ELSEWHERE = 2**27  # 512 MiB in float32


def likeliest(logits: Tensor, count: int, banned: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and tokens of the best, each (items, beams, count), sorted.

    Args:
        logits: (items, beams, vocabulary); overwritten.
        banned: (items, beams, any) tokens that must not come next; one beyond the vocabulary bans nothing. The
            others keep their probabilities, as in transformers: these are not normalised again.
    """
    items, beams, vocabulary = logits.shape
    rows = max(CHUNK.get(logits.device.type, CHUNK_ELSEWHERE) // (beams * vocabulary), 1)
    scores, tokens = [], []
    for start in range(0, items, rows):
        part = logits[start : start + rows].float()
        norm = part.logsumexp(-1, keepdim=True)
        if banned is not None:
            ban(part, banned[start : start + rows])
        best, which = top(part, count)
        scores.append(best - norm)
        tokens.append(which)
    return torch.cat(scores), torch.cat(tokens)


def ban(logits: Tensor, tokens: Tensor) -> Tensor:
    """Write minus infinity into logits (..., vocabulary) at ``tokens`` (..., any) that are in the vocabulary."""
    inside = tokens < logits.shape[-1]
    # The minimum of the present value and this one: an entry cannot undo another at its place, as a plain write would.
    value = torch.where(inside, -torch.inf, torch.inf).to(logits.dtype)
    return logits.scatter_reduce_(-1, tokens.where(inside, 0), value, "amin")


def top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``values.topk(count)`` along the last dimension, which it reads once: the best lie in the best blocks."""
    size = values.shape[-1]
    whole = size // BLOCK * BLOCK
    if whole < 2 * count * BLOCK:
        best, where = values.topk(count)
        return best, where
    blocks = values[..., :whole].unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).topk(count)[1][..., None]
    rest = torch.arange(whole, size, device=values.device)
    inside = torch.arange(BLOCK, device=values.device)
    found = blocks.gather(-2, chosen.expand(*chosen.shape[:-1], BLOCK)).flatten(-2)
    best, where = torch.cat((found, values[..., whole:]), -1).topk(count)
    places = torch.cat(((chosen * BLOCK + inside).flatten(-2), rest.expand(*values.shape[:-1], -1)), -1)
    return best, places.gather(-1, where)
