"""Batches of samples of similar length, padded, with the positions that carry loss as plain indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.tokens.encoding import Encoded, seeded

CPU = torch.device("cpu")
PAD_MULTIPLE = {"cuda": 8}  # lengths are rounded up to it: few distinct shapes, and matrix units like it; else exact


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass. A loss position p predicts ``labels`` from the p-th of the B·T inputs."""

    input_ids: Tensor  # (B, T), padded on the right
    positions: Tensor  # (N,) into the flattened (B * T)
    labels: Tensor  # (N,)
    on_target: Tensor  # (N,) bool: the label is a target token
    samples: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            pinned = tensor.pin_memory() if device.type == "cuda" else tensor  # else the copy waits for the work before
            return pinned.to(device, non_blocking=True)

        return Batch(move(self.input_ids), move(self.positions), move(self.labels), move(self.on_target), self.samples)


def epoch_batches(lengths: Sequence[int], batch_size: int, window: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch as lists of sample indices; a function of (seed, epoch), each sample once.

    Args:
        lengths: tokens of each sample.
        window: shuffled samples are sorted by length within ``window`` batches, to pad little; the batches
            are then shuffled. 0 leaves them random.
    """
    generator = seeded("order", seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch_size * window
    if span:
        windows = [order[start : start + span] for start in range(0, len(order), span)]
        order = [index for part in windows for index in sorted(part, key=lambda i: lengths[i])]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if span:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All samples in batches, longest first: for validation and generation, where order does not matter."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def collate(encoded: Encoded, indices: Sequence[int], loss_on: str, pad_id: int, device: torch.device = CPU) -> Batch:
    """Pad samples on the right and list the positions that carry loss; tensors on ``device``.

    There is no attention mask: with padding on the right no real token can see any, and without a mask the
    attention kernels take their causal fast path.
    """
    chosen = [encoded.samples[index] for index in indices]
    sizes = np.array([len(sample.ids) for sample in chosen], dtype=np.int64)[:, None]
    prompts = np.array([sample.prompt_length for sample in chosen], dtype=np.int64)[:, None]
    longest = int(sizes.max(initial=1))
    multiple = PAD_MULTIPLE.get(device.type, 1)
    width = math.ceil(longest / multiple) * multiple
    columns = np.arange(width)
    input_ids = np.full((max(len(chosen), 1), width), pad_id, dtype=np.int64)
    if chosen:
        input_ids[columns < sizes] = np.concatenate([sample.ids for sample in chosen])
    first = np.maximum(prompts, 1) if loss_on == "target" else 1
    rows, labelled = np.nonzero((columns >= first) & (columns < sizes))
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(rows * width + labelled - 1),
        torch.from_numpy(input_ids[rows, labelled]),
        torch.from_numpy(labelled >= prompts[rows, 0]),
        len(chosen),
    ).to(device)
