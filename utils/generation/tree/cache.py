"""The keys and values of a batch of token trees, written in place and copied only when dead branches are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Span:
    """The columns that the next forward pass writes and sees, the same for all layers.

    Attributes:
        capacity: the number of columns in the buffers.
        start: the first column to write, and so the number of filled ones.
        width: the number of columns that attention gets; those that are not filled must be masked.
    """

    capacity: int
    start: int = 0
    width: int = 0


class TreeLayer(CacheLayerMixin):
    """One layer's keys and values, each (items, capacity, heads, head size)."""

    is_sliding = False

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.span = span

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, zeros: attention gives masked columns the weight zero, which must not meet a NaN."""
        self.keys, self.values = (
            states.new_zeros(states.shape[0], self.span.capacity, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write states (items, heads, tokens, head size); views of the span's width, laid out alike."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span, tokens = self.span, key_states.shape[2]
        views = []
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[:, span.start : span.start + tokens] = states.transpose(1, 2)
            views.append(buffer[:, : span.width].transpose(1, 2))
        return views[0], views[1]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Length and offset of what attention sees."""
        return self.span.width, 0

    def get_seq_length(self) -> int:
        """The number of filled columns. It is not the number of positions, because siblings share one."""
        return self.span.start

    def get_max_length(self) -> int:
        """The number of columns in the buffers."""
        return self.span.capacity

    get_max_cache_shape = get_max_length  # its name in older transformers


class TreeCache(Cache):
    """The cache of a whole model, through transformers' public interface."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.span = Span(capacity)
        super().__init__(layers=[TreeLayer(self.span) for _ in range(layers)])
        self._spare: Tensor | None = None

    def keep(self, index: Tensor, filled: int) -> None:
        """Keep some items only, and some of their columns.

        Args:
            index: (items kept, new capacity), the old column for each new one. Old columns are numbered through all
                items: item · capacity + column.
            filled: the number of new columns that are kept. Those after them are free to write, and their index may
                be any.
        """
        flat = index.flatten()
        for layer in self.layers:
            if layer.is_initialized:  # a layer that uses another's keys never is
                layer.keys = self._gather(layer.keys, flat, index.shape)
                layer.values = self._gather(layer.values, flat, index.shape)
        self.span.capacity, self.span.start = index.shape[1], filled

    def _gather(self, buffer: Tensor, flat: Tensor, shape: torch.Size) -> Tensor:
        """The chosen columns in the buffer that the last call left over, if it fits: fresh memory is slow to touch."""
        wanted = (*shape, *buffer.shape[2:])
        spare = self._spare
        if spare is None or spare.shape != wanted or spare.dtype != buffer.dtype:
            spare = buffer.new_empty(wanted)
        torch.index_select(buffer.flatten(0, 1).flatten(1), 0, flat, out=spare.flatten(0, 1).flatten(1))
        self._spare = buffer
        return spare
