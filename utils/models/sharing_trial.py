"""Test whether a model computes the same losses when samples share one copy of their prompt."""

from __future__ import annotations

from typing import Any

import torch

from rosa.fused import full_precision
from utils.errors import failed_trial
from utils.models.attention import why_no_mask
from utils.models.modes import evaluation_mode
from utils.tokens.encoding import Encoded, Sample
from utils.tokens.shared_prompts import collate_rows

# Tolerance of the trial, in units of eps times the largest loss. In float32 losses of SmolLM2-135M are 170 units from
# those in float64, where sharing makes no difference at all.
ROUNDINGS = 512
PROMPT, TARGETS = [5, 3, 8, 2], ([6, 7, 9, 4], [9, 1], [7, 6, 6])


@torch.no_grad()
def why_not_shared(token_loss: Any, longest: int) -> str | None:
    """Why samples of up to ``longest`` tokens must each have a row of their own; None if they may share one.

    Args:
        token_loss: a ``TokenLoss``.
    """
    why = why_no_mask(token_loss.model, longest)
    if why:
        return why
    encoded = Encoded([Sample([*PROMPT, *target], len(PROMPT), 0, 0) for target in TARGETS], 0)
    try:
        with full_precision(token_loss.model.device), evaluation_mode(token_loss):
            shared, alone = (_losses(token_loss, encoded, rows) for rows in ([[0, 1, 2]], [[0], [1], [2]]))
    except Exception as error:
        return failed_trial(error)
    prompt, *targets = shared.split([len(PROMPT) - 1, *map(len, TARGETS)])
    found = torch.cat([losses for target in targets for losses in (prompt, target)])
    difference = float((found - alone).abs().max())
    tolerance = ROUNDINGS * torch.finfo(torch.float32).eps * float(alone.abs().max())
    return None if difference <= tolerance else f"in a trial its losses differ by {difference:.2g}"


def _losses(token_loss: Any, encoded: Encoded, rows: list[list[int]]) -> torch.Tensor:
    batch = collate_rows(encoded, rows, 0, token_loss.model.device)
    _, losses = token_loss(batch.input_ids, batch.positions, batch.labels, batch.layout)
    return losses.float()
