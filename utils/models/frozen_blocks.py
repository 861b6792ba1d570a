"""The blocks before the first trained one: computed once for each row of tokens, not again in each epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rosa.fused import full_precision
from utils.errors import UserError, failed_trial
from utils.models.compilation import blocks
from utils.models.frozen_file import FrozenFile
from utils.models.modes import evaluation_mode
from utils.tokens.batches import Batch
from utils.tokens.encoding import Encoded


class FrozenBlocks:
    """Keeps what the leading frozen blocks of a causal model give for each row of tokens that it has seen.

    Each row is computed alone, so that its values depend neither on the batch that it first came in nor on a resume.

    Attributes:
        count: number of leading blocks without trained parameters.
        total: number of all blocks.
        kept: the hidden states (n, d) after those blocks, of each row of n tokens.
        token_bytes: what a token takes in ``kept``, as the trial showed.
        outputs: what ``kept`` had in the trial, in float32.
        file: gets what is kept, for other runs; None: it stays in memory.
        from_file: whether another run left all of it there.
    """

    def __init__(self, model: Any) -> None:
        """Raises UserError if the first block, or something outside the blocks, is trained, or nothing at all."""
        self.model, self.blocks = model, blocks(model)
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self.token_bytes = 0
        self.outputs: list[Tensor] = []
        self.file: FrozenFile | None = None
        self.from_file = False
        self.total = len(self.blocks)
        trained = [any(parameter.requires_grad for parameter in block.parameters()) for block in self.blocks]
        self.count = trained.index(True) if True in trained else 0
        inside = {id(parameter) for block in self.blocks[self.count :] for parameter in block.parameters()}
        outside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
        if not self.count or outside:
            what = f"{outside[0]} is trained" if outside else "the first block is trained, or none"
            raise UserError(
                f"train.cache_frozen=true needs leading blocks that are not trained, and nothing trained outside the "
                f"blocks, but {what}: set fnmodel.params.target_modules to layers of the last blocks, or "
                f"train.cache_frozen=false"
            )

    @contextlib.contextmanager
    def reused(self, input_ids: Tensor, positions: Tensor) -> Iterator[None]:
        """Within the ``with`` block a forward pass of ``input_ids`` takes what is kept. Unseen rows are computed first.

        Args:
            input_ids: (B, T), padded on the right.
            positions: of labels, indices into the flattened B · T axis. What follows a row's last one gets zeros.
        """
        count, length = input_ids.shape
        ends = torch.zeros(count, dtype=torch.long, device=positions.device)
        ends.scatter_reduce_(0, positions // length, positions % length + 1, "amax")
        rows = [tuple(row[:end]) for row, end in zip(input_ids.tolist(), ends.tolist(), strict=True)]
        unseen = {row: number for number, row in enumerate(rows) if row and row not in self.kept}
        for row, number in unseen.items():
            self.kept[row] = self.compute(input_ids[number : number + 1, : len(row)])[0]
        if unseen and self.file is not None:
            self.file.write_once(self.kept)
        if not any(rows):
            yield
            return
        some = next(iter(self.kept.values()))
        hidden = some.new_zeros(count, length, some.shape[-1])
        for out, row in zip(hidden, rows, strict=True):
            if row:
                out[: len(row)] = self.kept[row]
        with self._replaced(lambda given: hidden, self.blocks[: self.count]):
            yield

    def share(self, folder: Path, precision: str, train: Encoded, validation: Encoded) -> None:
        """Read what a run with the same samples and frozen blocks has left in ``folder``, or leave it there later."""
        own = {id(tensor) for block in self.blocks[self.count :] for tensor in (*block.parameters(), *block.buffers())}
        weights = [t for t in (*self.model.parameters(), *self.model.buffers()) if id(t) not in own]
        self.file = FrozenFile(folder, precision, [*weights, *self.outputs], (train, validation))
        self.kept = self.file.read(self.model.device)
        self.from_file = bool(self.kept)

    def expected_bytes(self, *parts: Encoded) -> int:
        """The bytes of ``kept`` once it has every sample of ``parts``."""
        return self.token_bytes * sum(map(len, {tuple(sample.ids) for part in parts for sample in part.samples}))

    @torch.no_grad()
    def compute(self, input_ids: Tensor) -> Tensor:
        """The hidden states (B, T, d) after the frozen blocks. The other blocks, which may have dropout, do not run."""
        found = []

        def keep(given: Tensor) -> Tensor:
            found.append(given)
            return given

        with self._replaced(keep, self.blocks[self.count :]):
            self.model.base_model(input_ids=input_ids, use_cache=False)
        return found[0]

    @contextlib.contextmanager
    def _replaced(self, function: Callable[[Tensor], Tensor], some: list[nn.Module]) -> Iterator[None]:
        """Let ``some`` of the blocks give ``function`` of their hidden states, and nothing else."""

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
            return function(hidden_states)

        for block in some:
            block.forward = forward
        try:
            yield
        finally:
            for block in some:
                del block.forward


@torch.no_grad()
def frozen_blocks(token_loss: Any, batch: Batch) -> FrozenBlocks:
    """The frozen blocks of a ``TokenLoss``'s model, after a trial on ``batch`` has shown that its losses stay.

    Args:
        batch: with the shortest and the longest sample, because some models (longrope) compute short rows otherwise in
            a long batch.

    Raises:
        UserError: they cannot be kept, with the way out.
    """
    frozen = FrozenBlocks(token_loss.model)
    inputs = batch.input_ids, batch.positions, batch.labels
    try:
        with full_precision(batch.input_ids.device), evaluation_mode(token_loss):
            token_loss.train()
            if not torch.equal(frozen.compute(batch.input_ids), frozen.compute(batch.input_ids)):
                raise UserError(
                    "train.cache_frozen=true: the frozen blocks give other outputs each time. Set model.dropout=0; if "
                    "it is 0, one of their kernels is not deterministic: leave train.cache_frozen out"
                )
            token_loss.eval()
            _, plain = token_loss(*inputs)
            with frozen.reused(*inputs[:2]):
                _, reused = token_loss(*inputs)
    except Exception as error:
        why = failed_trial(error)
    else:
        why = "" if torch.allclose(plain, reused, rtol=1e-4, atol=1e-4) else "in a trial the losses differ"
    frozen.outputs = list(frozen.kept.values())
    frozen.token_bytes = max((output[0].nbytes for output in frozen.outputs), default=0)
    frozen.kept.clear()
    if why:
        raise UserError(f"train.cache_frozen=true does not work with this model ({why}): leave it out")
    return frozen
