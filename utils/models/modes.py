"""Evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Within the ``with`` block ``module`` is in evaluation mode, so without dropout; then in its own mode again."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
