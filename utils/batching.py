"""From text to batches: tokens once, batches of similar length, loss positions as plain indices."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data import Example
from utils.errors import UserError

CPU = torch.device("cpu")
PAD_MULTIPLE = {"cuda": 8}  # lengths are rounded up to it: few distinct shapes, and matrix units like it; else exact


@dataclass(frozen=True)
class Sample:
    """A tokenised pair: prompt and target joined, and how many characters each loss is spread over.

    A block of a packed data set is one without a target of its own: all is target but the first token.
    """

    ids: Sequence[int]  # a list; of blocks a view of the split's int32 array
    prompt_length: int  # tokens; the first target token is predicted from position prompt_length - 1
    target_characters: int
    characters: int


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
        tensors = (self.input_ids, self.positions, self.labels, self.on_target)
        if device.type == "cuda":  # from pageable memory the copy would wait for the work before it
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors), self.samples)


@dataclass(frozen=True)
class Encoded:
    """A tokenised split, and what was cut to fit.

    ``documents``: how many documents the blocks of a packed data set hold; None: the samples are pairs.
    """

    samples: list[Sample]
    cut: int
    documents: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def loss_tokens(self, index: int, loss_on: str) -> int:
        """How many tokens of a sample carry loss."""
        sample = self.samples[index]
        return len(sample.ids) - (sample.prompt_length if loss_on == "target" else 1)

    def loss_characters(self, index: int, loss_on: str) -> int:
        """How many characters the loss of a sample is spread over."""
        sample = self.samples[index]
        return sample.target_characters if loss_on == "target" else sample.characters

    def describe(self) -> dict[str, int]:
        """Counts for the run's record."""
        lengths = [len(sample.ids) for sample in self.samples]
        shared = 0 if self.documents is None else len(lengths) - 1  # neighbouring blocks share a token
        counts = {"samples": len(lengths), "tokens": sum(lengths) - shared, "longest": max(lengths, default=0)}
        return {**counts, "cut": self.cut, **({} if self.documents is None else {"documents": self.documents})}


def encode(examples: Sequence[Example], tokenizer: Any, seq_len: int) -> Encoded:
    """Tokenise prompts and targets apart, join them, end with eos; cut the target's end beyond ``seq_len``.

    Raises:
        UserError: a prompt alone fills ``seq_len``, so that nothing of its target would be left.
    """
    if not examples:
        return Encoded([], 0)
    # verbose would warn of what is cut or refused below
    options = {"add_special_tokens": False, "verbose": False}
    distinct = list(dict.fromkeys(example.prompt for example in examples))  # E2E has nine references for each
    tokens = dict(zip(distinct, tokenizer(distinct, **options)["input_ids"], strict=True))
    prompts = [tokens[example.prompt] for example in examples]
    targets = tokenizer([example.target for example in examples], **options)["input_ids"]
    samples, cut = [], 0
    for example, prompt, target in zip(examples, prompts, targets, strict=True):
        if len(prompt) >= seq_len:
            where = f"{example.where}: " if example.where else ""
            raise UserError(
                f"{where}train.seq_len={seq_len} leaves no room for the target of a prompt of {len(prompt)} tokens "
                f"({example.prompt[:60]!r}...): raise it, if the model's positions allow, or shorten the prompt"
            )
        ids = [*prompt, *target, tokenizer.eos_token_id]
        target_text = example.target
        if len(ids) > seq_len:
            cut += 1
            ids = ids[:seq_len]
            target_text = tokenizer.decode(ids[len(prompt) :])
        samples.append(Sample(ids, len(prompt), len(target_text), len(example.prompt) + len(target_text)))
    return Encoded(samples, cut)


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator that depends on ``parts`` alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


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
    tensors = (
        input_ids,
        rows * width + labelled - 1,
        input_ids[rows, labelled],
        labelled >= prompts[rows, 0],
    )
    return Batch(*map(torch.from_numpy, tensors), len(chosen)).to(device)
