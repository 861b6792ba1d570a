"""Losses of a whole data set, as sums that do not depend on its batches or processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.log import work_bar
from utils.models.modes import evaluation_mode
from utils.models.token_loss import TokenLoss, unwrapped
from utils.processes.group import Processes
from utils.processes.signals import never
from utils.tokens.encoding import Encoded
from utils.tokens.shared_prompts import collate_rows, row_batches


@dataclass(frozen=True)
class LossSum:
    """A summed negative log likelihood in nats, and the number of tokens and characters that it covers."""

    nats: float
    tokens: int
    characters: int

    def metrics(self) -> dict[str, float]:
        """The mean loss in nats per token, its perplexity, and bits per token and per character."""
        loss = self.nats / max(self.tokens, 1)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # e^709 is the largest double
            "bits_per_token": loss / math.log(2),
            "bits_per_char": self.nats / math.log(2) / max(self.characters, 1),
        }


@dataclass(frozen=True)
class Losses:
    """The loss on target tokens and on all tokens of a data set. ``target`` is None for data without targets."""

    target: LossSum | None
    all: LossSum

    def metrics(self, loss_on: str) -> dict[str, float]:
        """Every metric by name, such as ``loss_target``; ``loss`` and ``perplexity`` are those of ``loss_on``."""
        sums = {"all": self.all} if self.target is None else {"target": self.target, "all": self.all}
        values = {f"{name}_{kind}": value for kind, part in sums.items() for name, value in part.metrics().items()}
        return {"loss": values[f"loss_{loss_on}"], "perplexity": values[f"perplexity_{loss_on}"], **values}


@torch.no_grad()
def evaluate_losses(
    token_loss: nn.Module,
    encoded: Encoded,
    pad_id: int,
    batch_size: int,
    processes: Processes = Processes(),  # noqa: B008 (immutable)
    check: Callable[[], None] = never,
    name: str = "losses",
    tokens: int | None = None,
) -> Losses:
    """Losses of all samples of ``encoded`` in evaluation mode, in batches of similar length.

    Samples with one prompt share a row where that saves many tokens and a trial of ``token_loss`` allows it.

    Each process takes a share of the batches. All get the same sums, added in the order of the batches, so that the
    result is the same to the bit for any number of processes.

    Args:
        pad_id: the token that fills up shorter samples.
        check: called after each batch, on every process. An exception from it ends the evaluation.
        name: the title of the progress bar.
        tokens: if it is set, a batch has at most this many tokens, padding counted, and any number of samples.
    """
    device = unwrapped(token_loss).model.device
    shared = unwrapped(token_loss).shares(encoded)
    batches = row_batches(encoded, batch_size, shared, tokens, device)
    sums_on = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    share = torch.zeros(math.ceil(len(batches) / processes.count), 2, dtype=torch.float64, device=sums_on)
    with evaluation_mode(token_loss), work_bar(len(share), name, "batch", main=processes.main) as shown:
        for row in range(len(share)):
            # every process makes the same number of forward passes, because shards are gathered in each
            number = row * processes.count + processes.index
            rows = batches[number] if number < len(batches) else []
            batch = collate_rows(encoded, rows, pad_id, device)
            _, losses = token_loss(batch.input_ids, batch.positions, batch.labels, batch.layout)
            share[row] = (losses.to(sums_on).double() * batch.weights.to(sums_on)).sum(1)
            shown.update()
            check()
    sums = torch.zeros(2, dtype=torch.float64)
    for batch_sums in torch.stack(processes.gather(share.cpu()), dim=1).flatten(0, 1):
        sums += batch_sums
    target, everything = (
        LossSum(
            nats,
            sum(encoded.loss_tokens(index, kind) for index in range(len(encoded))),
            sum(encoded.loss_characters(index, kind) for index in range(len(encoded))),
        )
        for kind, nats in zip(("target", "all"), sums.tolist(), strict=True)
    )
    return Losses(target if encoded.documents is None else None, everything)


def model_losses(
    model: Any, encoded: Encoded, pad_id: int, batch_size: int, check: Callable[[], None] = never
) -> Losses:
    """``evaluate_losses`` of a plain model, in the fastest way that trials allow."""
    token_loss = TokenLoss(model).choose_fast_paths(encoded, pad_id)
    return evaluate_losses(token_loss, encoded, pad_id, batch_size, check=check)
