"""Test whether a model predicts each token from those before it alone, as training and generation need."""

from __future__ import annotations

from typing import Any

import torch

from rosa.fused import full_precision
from utils.errors import UserError, failed_trial
from utils.models.modes import evaluation_mode

ROUNDINGS = 64  # tolerance of the trial, in units of eps times the largest loss
TOKENS = [[5, 3, 8, 2], [5, 3, 8, 6]]  # the last ones differ
POSITIONS, LABELS = [0, 1, 2, 4, 5, 6], [3, 8, 2, 3, 8, 2]  # the same predictions in both rows, before their last token


@torch.no_grad()
def check_causal(token_loss: Any) -> None:
    """Raise UserError if the last token of a text changes predictions before it, or the trial fails.

    transformers loads encoders (BERT, RoBERTa) as causal models too. They see the tokens that they are to predict.

    Args:
        token_loss: a ``TokenLoss``.
    """
    device = token_loss.model.device
    head_only, token_loss.head_only = token_loss.head_only, False
    tensors = (torch.tensor(values, device=device) for values in (TOKENS, POSITIONS, LABELS))
    try:
        with full_precision(device), evaluation_mode(token_loss):
            _, losses = token_loss(*tensors)
        one, other = losses.chunk(2)
        tolerance = ROUNDINGS * torch.finfo(torch.float32).eps * float(losses.abs().max())
        why = None if float((one - other).abs().max()) <= tolerance else "its predictions depend on later tokens"
    except Exception as error:
        why = failed_trial(error)
    finally:
        token_loss.head_only = head_only
    if why:
        raise UserError(
            f"model.name: {type(token_loss.model).__name__} is no causal language model, which train.py needs: {why}. "
            "Another model can be adapted as a library: rosa.inject."
        )
