"""Next-token loss with the output head computed only where there is a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.batching import Batch, Encoded, collate, length_batches
from utils.logs import log


class TokenLoss(nn.Module):
    """Cross entropy in nats of each labelled position, (N,), of a causal language model.

    The vocabulary's logits dominate memory and much of the time; here they exist for the N labelled positions
    only. Models whose head is more than a linear map of the last hidden state (scaled or capped logits) are
    recognised by ``check`` and take the plain way.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head_only = True

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Losses (N,) in float32 for inputs (B, T), positions (N,) into B * T, labels (N,)."""
        if self.head_only:
            hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden.flatten(0, 1)[positions])
        else:
            logits = self.model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)[positions]
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def checked(self, encoded: Encoded, pad_id: int, device: torch.device) -> TokenLoss:
        """Itself, after a ``check`` on the first samples of ``encoded``."""
        batch = collate(encoded, range(min(2, len(encoded))), "all", pad_id)
        if not self.check(batch.to(device)):
            log.info("this model's head is not a plain linear map: logits are computed at every position")
        return self

    @torch.no_grad()
    def check(self, batch: Batch) -> bool:
        """Compare both ways on ``batch`` and keep the fast one only if they agree; True if they do."""
        training = self.model.training
        self.model.eval()
        self.head_only = False
        plain = self(batch.input_ids, batch.positions, batch.labels)
        self.head_only = True
        try:
            fast = self(batch.input_ids, batch.positions, batch.labels)
            self.head_only = torch.allclose(plain, fast, rtol=1e-3, atol=1e-3)
        except (AttributeError, TypeError):  # a model without a bare trunk or output embeddings
            self.head_only = False
        self.model.train(training)
        return self.head_only


@dataclass(frozen=True)
class Losses:
    """Summed negative log likelihood in nats with what it is spread over, on target and on all tokens.

    ``targets``: whether the data has any; without them nothing is said of target tokens.
    """

    nats_target: float
    tokens_target: int
    characters_target: int
    nats_all: float
    tokens_all: int
    characters_all: int
    targets: bool = True

    def metrics(self, loss_on: str) -> dict[str, float]:
        """Each quantity under the name that says what it is; ``loss`` and ``perplexity`` are ``loss_on``'s."""
        values = {}
        for kind in ("target", "all") if self.targets else ("all",):
            nats, tokens = getattr(self, f"nats_{kind}"), getattr(self, f"tokens_{kind}")
            loss = nats / max(tokens, 1)
            values[f"loss_{kind}"] = loss
            values[f"perplexity_{kind}"] = math.exp(min(loss, 700.0))  # e^709 is the largest double
            values[f"bits_per_token_{kind}"] = loss / math.log(2)
            characters = getattr(self, f"characters_{kind}")
            values[f"bits_per_char_{kind}"] = nats / math.log(2) / max(characters, 1)
        return {"loss": values[f"loss_{loss_on}"], "perplexity": values[f"perplexity_{loss_on}"], **values}


@torch.no_grad()
def evaluate_losses(
    token_loss: nn.Module, encoded: Encoded, indices: Sequence[int], batch_size: int, pad_id: int, device: torch.device
) -> Losses:
    """Losses of the samples ``indices`` in evaluation mode; each sample once, in batches of similar length."""
    training = token_loss.training
    token_loss.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    lengths = [len(encoded.samples[index].ids) for index in indices]
    for chosen in length_batches(lengths, batch_size):
        batch = collate(encoded, [indices[i] for i in chosen], "all", pad_id).to(device)
        losses = token_loss(batch.input_ids, batch.positions, batch.labels).double()
        sums += torch.stack([(losses * batch.on_target).sum(), losses.sum()]).cpu()
    token_loss.train(training)
    samples = [encoded.samples[index] for index in indices]
    return Losses(
        nats_target=float(sums[0]),
        tokens_target=sum(encoded.loss_tokens(index, "target") for index in indices),
        characters_target=sum(sample.target_characters for sample in samples),
        nats_all=float(sums[1]),
        tokens_all=sum(encoded.loss_tokens(index, "all") for index in indices),
        characters_all=sum(sample.characters for sample in samples),
        targets=encoded.documents is None,
    )
