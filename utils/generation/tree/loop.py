"""Generate for a batch of prompts: one forward pass over the prompts, then one for each token of all beams.

The beams of an item are branches of one tree of tokens. Its cache holds each token once, and a mask says which of them
a beam descends from; when beams are dropped or doubled, only the mask changes. Every few steps, dead branches and
finished items are removed together; only then does the host wait for the device.

    columns   The | cat dog | sat ran | ...        a step adds one column per beam
    beam 0     1     1   0     1   0                The cat sat
    beam 1     1     1   0     0   1                The cat ran
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.generation.tree.cache import TreeCache
from utils.generation.tree.search import Search
from utils.models.attention import additive_mask

STEPS = 8  # between two checks for finished items
GRAIN = 16  # attention sees a multiple of it in columns: few distinct shapes, and aligned masks
SLACK = 1.5  # a buffer that is larger than needed by up to this factor is kept


class Trees:
    """The model's side of a batch: its cache, and the columns that each beam sees."""

    def __init__(self, model: Any, prompts: Tensor, padding: Tensor, beams: int) -> None:
        """Prompts (items, prompt length), padded on the left with ``padding`` (items,) tokens."""
        self.model, self.beams = model, beams
        self.prompts = prompts
        length, device = prompts.shape[1], prompts.device
        config = model.config.get_text_config(decoder=True)
        self.cache = TreeCache(config.num_hidden_layers, _round_up(length) + STEPS * beams)
        parameters = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"  # its name in older transformers
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        column = torch.arange(length, device=device)
        self.real = column >= padding[:, None]  # (items, prompt length)
        self.position = (length - padding)[:, None]  # (items, 1), of the next token
        self.own = torch.eye(beams, dtype=torch.bool, device=device)
        self.sees = torch.zeros(len(prompts), beams, self.cache.span.capacity, dtype=torch.bool, device=device)
        self.sees[:, :, :length] = self.real[:, None]

    @property
    def full(self) -> bool:
        """Whether the cache has no room for another token per beam."""
        return self.cache.span.start + self.beams > self.cache.span.capacity

    def read_prompts(self) -> Tensor:
        """Logits after the prompts, (items, 1, vocabulary)."""
        length = self.prompts.shape[1]
        column = torch.arange(length, device=self.prompts.device)
        mask = (column <= column[:, None]) & self.real[:, None]
        position = (column - (length - self.position)).clamp_(min=0)
        return self._forward(self.prompts, position, mask, **self.last_only)[:, -1:]

    def follow(self, parents: Tensor) -> None:
        """Let each beam continue one of the beams before it: parents (items, beams)."""
        self.sees = self.sees.gather(1, parents[:, :, None].expand_as(self.sees))

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (items, beams, vocabulary) after a token of each beam, (items, beams)."""
        start = self.cache.span.start
        self.sees[:, :, start : start + self.beams] = self.own
        width = min(_round_up(start + self.beams), self.cache.span.capacity)
        logits = self._forward(tokens, self.position.expand_as(tokens), self.sees[:, :, :width])
        self.position = self.position + 1
        return logits

    def live(self) -> Tensor:
        """The number of columns of each item from which a beam descends."""
        return self.sees.any(1).sum(1)

    def keep(self, items: Tensor, columns: int) -> None:
        """Keep these items only, and in each the columns that a beam sees, at most ``columns``."""
        span = self.cache.span
        needed = _round_up(columns) + STEPS * self.beams
        capacity = span.capacity if needed <= span.capacity <= SLACK * needed else needed
        sees = self.sees.index_select(0, items)
        order = (~sees.any(1)).to(torch.uint8).argsort(dim=1, stable=True)[:, :columns]  # the seen ones, in order
        room = (0, capacity - columns)
        self.sees = torch.nn.functional.pad(sees.gather(2, order[:, None].expand(-1, self.beams, -1)), room)
        self.cache.keep(torch.nn.functional.pad(order, room) + items[:, None] * span.capacity, columns)
        self.position = self.position.index_select(0, items)

    def _forward(self, ids: Tensor, position: Tensor, sees: Tensor, **options: Any) -> Tensor:
        """Logits after ``ids`` (items, tokens); ``sees`` (items, tokens, width): the columns that each attends to."""
        span = self.cache.span
        span.width = sees.shape[2]
        mask = additive_mask(sees, self.model.dtype)
        options |= {self.cache_name: self.cache, "use_cache": True, "return_dict": True}
        logits: Tensor = self.model(input_ids=ids, position_ids=position, attention_mask=mask, **options).logits
        span.start += ids.shape[1]
        return logits


def decode(trees: Trees, search: Search, check: Callable[[], None]) -> Tensor:
    """The best continuation of each prompt: (items, new tokens), padded on the right after eos.

    Args:
        check: called for each token; what it raises ends the work.
    """
    items = len(trees.prompts)
    results = torch.full((items, search.new), search.pad, device=trees.prompts.device)
    numbers = list(range(items))  # of the prompts that the rows of the batch belong to
    tokens, parents = search.advance(trees.read_prompts())
    for _ in range(search.new - 1):
        check()
        trees.follow(parents)
        if trees.full:
            is_open, live = read_to_host(trees, search)
            going_on = [row for row, flag in enumerate(is_open) if flag]
            if len(going_on) < len(numbers):
                results[torch.tensor(numbers, device=results.device)] = search.result()
                numbers = [numbers[row] for row in going_on]
                if not numbers:
                    return results
                kept = torch.tensor(going_on, device=results.device)
                search.keep(kept)
                tokens = tokens[kept]
            else:
                kept = torch.arange(len(numbers), device=results.device)
            trees.keep(kept, max(live[row] for row in going_on))
        tokens, parents = search.advance(trees.step(tokens))
    results[torch.tensor(numbers, device=results.device)] = search.result()
    return results


def read_to_host(trees: Trees, search: Search) -> tuple[list[int], list[int]]:
    """The open items, and the number of live columns of each. Only here does the host wait for the device."""
    is_open, live = torch.stack((search.open.long(), trees.live())).tolist()
    return is_open, live


def _round_up(count: int) -> int:
    return -(-count // GRAIN) * GRAIN
