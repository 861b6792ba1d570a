"""Batches of samples of similar length, padded, with the positions that carry loss as plain indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rosa.subspace import seeded_generator
from utils.tokens.encoding import Encoded

CPU = torch.device("cpu")
PAD_MULTIPLE = {"cuda": 8}  # lengths are rounded up to it: few distinct shapes, and matrix units like it; else exact


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass. ``labels[i]`` is predicted at ``positions[i]`` of the flattened inputs."""

    input_ids: Tensor  # (B, T), padded on the right
    positions: Tensor  # (N,) into the flattened (B * T)
    labels: Tensor  # (N,)


@dataclass(frozen=True)
class Collator:
    """Makes batches: pads samples on the right and lists the positions that carry loss.

    There is no attention mask: padding is on the right, so that no real token attends to it, and without a mask the
    attention kernels take their causal fast path.

    Attributes:
        pad_id: the token that fills up shorter samples.
        loss_on: which tokens carry loss, target or all.
        device: where the tensors go.
    """

    pad_id: int
    loss_on: str
    device: torch.device = CPU

    def __call__(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """The samples ``indices`` as one batch; of no samples a batch of padding without loss."""
        chosen = [encoded.samples[index] for index in indices]
        sizes = np.array([len(sample.ids) for sample in chosen], dtype=np.int64)[:, None]
        prompts = np.array([sample.prompt_length for sample in chosen], dtype=np.int64)[:, None]
        width = padded(max((len(sample.ids) for sample in chosen), default=1), self.device)
        columns = np.arange(width)
        input_ids = np.full((max(len(chosen), 1), width), self.pad_id, dtype=np.int64)
        if chosen:
            input_ids[columns < sizes] = np.concatenate([sample.ids for sample in chosen])
        first = np.maximum(prompts, 1) if self.loss_on == "target" else 1
        rows, labelled = np.nonzero((columns >= first) & (columns < sizes))
        arrays = (input_ids, rows * width + labelled - 1, input_ids[rows, labelled])
        return Batch(*(to_device(array, self.device) for array in arrays))


def padded(length: int, device: torch.device) -> int:
    """The width of a batch whose longest sample has ``length`` tokens."""
    multiple = PAD_MULTIPLE.get(device.type, 1)
    return math.ceil(length / multiple) * multiple


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on ``device``, without waiting for the work before the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # from pageable memory the copy would wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")  # mps may read memory that is free by then


def epoch_batches(lengths: Sequence[int], batch_size: int, window: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch as lists of sample indices; a function of (seed, epoch), each sample once.

    Args:
        lengths: tokens of each sample.
        window: shuffled samples are sorted by length within ``window`` batches, to pad little; the batches
            are then shuffled. 0 leaves them random.
    """
    generator = seeded_generator("order", seed, epoch)
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


def token_batches(lengths: Sequence[int], limit: float, device: torch.device = CPU) -> list[list[int]]:
    """All samples in batches of at most ``limit`` tokens, padding counted, longest first.

    A sample that is longer than ``limit`` is a batch of its own.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > limit:
            batches.append([])
            width = padded(lengths[index], device)
        batches[-1].append(index)
    return batches


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], processes: int, size: int, tokens: int | None, device: torch.device
) -> list[list[list[int]]]:
    """For each process its share of ``batch`` in parts, one part for each forward pass.

    All processes have the same number of parts, some of them empty, because a sharded model is gathered from all of
    them in each pass.

    Args:
        batch: indices of samples.
        lengths: tokens of each sample of the split.
        size: samples per part at most; without effect if ``tokens`` is set.
        tokens: tokens per part at most, as in ``token_batches``.
    """
    divided = []
    for process in range(processes):
        share = batch[process::processes]
        if tokens is None:
            divided.append([list(share[start : start + size]) for start in range(0, len(share), size)])
        else:
            parts = token_batches([lengths[index] for index in share], tokens, device)
            divided.append([[share[i] for i in part] for part in parts])
    count = max(map(len, divided))
    return [parts + [[]] * (count - len(parts)) for parts in divided]
