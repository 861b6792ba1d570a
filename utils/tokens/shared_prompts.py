"""Batches for evaluation: samples with one prompt lie in one row, which holds that prompt once.

A row is a prompt and then the targets, each of which continues the prompt alone::

    row        The cat | sat . | ran off .        samples  The cat sat .    The cat ran off .
    part         0   0     1 1     2   2 2        a token sees earlier ones of its own part and of part 0
    position     0   1     2 3     2   3 4

E2E has about nine references for each prompt. Training batches are random, so their samples rarely share a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.tokens.batches import CPU, Batch, length_batches, padded, to_device, token_batches
from utils.tokens.encoding import Encoded

ROW_TOKENS = 512  # maximum tokens of a shared row, because attention cost is quadratic in them
WORTH_SHARING = 1.4  # prompts are shared only if this many times fewer tokens remain; holds even for the bundled model


@dataclass(frozen=True)
class Layout:
    """Where each token of a batch belongs, both (B, T)."""

    parts: Tensor  # 0 for a prompt, then the number of the target within its row; -1 for padding
    position_ids: Tensor  # as if its target were alone with the prompt

    def sees(self) -> Tensor:
        """Whether a token (dimension 1) attends to another (dimension 2): (B, T, T) bool."""
        column = torch.arange(self.parts.shape[1], device=self.parts.device)
        own, other = self.parts[:, :, None], self.parts[:, None]
        return (column <= column[:, None]) & ((other == 0) | (other == own))


@dataclass(frozen=True)
class EvaluationBatch(Batch):
    """A batch with loss on all tokens; a prompt's losses are computed once and count for each of its samples."""

    weights: Tensor  # (2, N): how often each label counts in the loss on target tokens, and in that on all tokens
    layout: Layout | None = None  # None if each row is a single sample


def sample_rows(encoded: Encoded, limit: int = ROW_TOKENS) -> list[list[int]]:
    """All samples in rows of one prompt; a row of several has at most ``limit`` tokens."""
    rows: list[list[int]] = []
    latest: dict[bytes, tuple[list[int], int]] = {}  # of a prompt's tokens: its last row, and that row's tokens
    for index, sample in enumerate(encoded.samples):
        prompt = np.asarray(sample.ids[: sample.prompt_length], np.int64).tobytes()
        own = len(sample.ids) - sample.prompt_length
        row, tokens = latest.get(prompt, ([], limit))
        if not prompt or tokens + own > limit:
            row, tokens = [], sample.prompt_length
            rows.append(row)
        row.append(index)
        latest[prompt] = row, tokens + own
    return rows


def row_tokens(encoded: Encoded, row: Sequence[int]) -> int:
    """The length of a row."""
    samples = [encoded.samples[index] for index in row]
    return samples[0].prompt_length + sum(len(sample.ids) - sample.prompt_length for sample in samples)


def sharing_pays(encoded: Encoded) -> bool:
    """Whether rows of samples with one prompt have fewer tokens by so much that they are faster."""
    if encoded.documents is not None:  # blocks of a stream
        return False
    tokens = sum(encoded.lengths)
    return tokens >= WORTH_SHARING * max(1, sum(row_tokens(encoded, row) for row in sample_rows(encoded)))


def row_batches(
    encoded: Encoded, batch_size: int, shared: bool, tokens: int | None = None, device: torch.device = CPU
) -> list[list[list[int]]]:
    """All samples of ``encoded`` in batches of rows, longest first.

    Args:
        batch_size: samples per batch of unshared rows. A batch of shared rows has at most the tokens of this many
            average samples, padding included, or a single row.
        shared: whether samples with one prompt share a row.
        tokens: if it is set, the tokens of a batch at most, padding included; a longer sample is alone.
    """
    if not shared and tokens is None:
        return [[[index] for index in batch] for batch in length_batches(encoded.lengths, batch_size)]
    limit = batch_size * sum(encoded.lengths) / max(1, len(encoded)) if tokens is None else tokens
    rows = sample_rows(encoded, min(ROW_TOKENS, tokens or ROW_TOKENS)) if shared else [[i] for i in range(len(encoded))]
    batches = token_batches([row_tokens(encoded, row) for row in rows], limit, device)
    return [[rows[number] for number in batch] for batch in batches]


def collate_rows(encoded: Encoded, rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> EvaluationBatch:
    """Rows of samples as one batch; of no rows a batch of padding without loss."""
    made = [_row(encoded, row) for row in rows]
    width = padded(max([1, *(row.shape[1] for row in made)]), device)
    # ids, parts, position ids, columns that predict, weights of the target loss, weights of the loss on all tokens
    fields = np.empty((6, max(len(made), 1), width), dtype=np.int64)
    fields[:] = np.array([pad_id, -1, 0, -1, 0, 0])[:, None, None]
    for number, row in enumerate(made):
        fields[:, number, : row.shape[1]] = row
    ids, parts, position_ids, before, *weights = fields
    numbers, columns = np.nonzero(before >= 0)
    shared = any(len(row) > 1 for row in rows)
    return EvaluationBatch(
        input_ids=to_device(ids, device),
        positions=to_device(numbers * width + before[numbers, columns], device),
        labels=to_device(ids[numbers, columns], device),
        weights=to_device(np.stack([weight[numbers, columns] for weight in weights]), device),
        layout=Layout(to_device(parts, device), to_device(position_ids, device)) if shared else None,
    )


def _row(encoded: Encoded, row: Sequence[int]) -> np.ndarray:
    """A row's fields as ``collate_rows`` lists them, (6, tokens)."""
    samples = [encoded.samples[index] for index in row]
    prompt = samples[0].prompt_length
    targets = [sample.ids[prompt:] for sample in samples]
    sizes = [prompt, *map(len, targets)]
    ids = np.concatenate([samples[0].ids[:prompt], *targets]).astype(np.int64)
    parts = np.repeat(np.arange(len(sizes)), sizes)
    column = np.arange(len(ids))
    starts = np.cumsum([0, *sizes[:-1]])
    position_ids = column - starts[parts] + np.where(parts > 0, prompt, 0)
    before = np.where(position_ids == prompt, prompt, column) - 1  # each target continues the prompt
    return np.stack([ids, parts, position_ids, before, parts > 0, np.where(parts > 0, 1, len(row))])
