"""What the tests of ROSA under PEFT share: adapted tiny models, training with resamples, changes of the function."""

from __future__ import annotations

from typing import Any

import torch

from tests.rosa.cases import logits, make_model, train_steps
from tests.rosa.cases import trained as trained_parameters


def adapt_by_peft(family: str = "gpt2", base: Any = None, adapter: str = "default", **options: Any) -> Any:
    """A model of PEFT with ROSA on all layers of its blocks, rank 3 unless said otherwise."""
    from peft import get_peft_model

    from rosa.integrations.peft import RosaConfig

    model = make_model(family) if base is None else base
    return get_peft_model(model, RosaConfig(**{"r": 3, **options}), adapter_name=adapter)


def without_decay(model: Any, lr: float = 1e-2) -> torch.optim.Optimizer:
    """AdamW without decay, which shrinks the change of a bias here and the bias itself in ``rosa.inject``."""
    return torch.optim.AdamW(trained_parameters(model), lr=lr, weight_decay=0)


def train(model: Any, resamples: int = 0, steps: int = 2, lr: float = 1e-2, autocast: bool = False) -> Any:
    """Train the active adapter with a resample after each epoch of ``steps`` steps; returns the optimizer."""
    optimizer = without_decay(model, lr)
    model.base_model.bind_optimizer(optimizer)
    for epoch in range(1, resamples + 2):
        train_steps(model, optimizer, steps, autocast=autocast)
        assert model.base_model.after_epoch(epoch, resamples + 1) == (epoch <= resamples)
    return optimizer


def trained(family: str = "gpt2", resamples: int = 2, **options: Any) -> Any:
    model = adapt_by_peft(family, **options)
    train(model, resamples)
    return model


def distance(one: Any, other: Any) -> float:
    """The largest difference of two models' logits, or of two tensors."""
    first, second = (value if isinstance(value, torch.Tensor) else logits(value) for value in (one, other))
    return float((first.float() - second.float()).abs().max())


def make_classifier(head_seed: int) -> Any:
    """The tiny GPT-2 with a random head for two classes."""
    from transformers import GPT2ForSequenceClassification

    base = make_model("gpt2")
    torch.manual_seed(head_seed)
    model = GPT2ForSequenceClassification(base.config).eval()
    model.config.pad_token_id = 0
    model.transformer.load_state_dict(base.transformer.state_dict())
    return model
