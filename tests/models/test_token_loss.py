"""The loss with its head at labelled positions only, compared with the model's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rosa
from utils.data import pair
from utils.models.loading import load_model, load_tokenizer
from utils.models.token_loss import TokenLoss
from utils.tokens.batches import Collator
from utils.tokens.encoding import encode


@pytest.mark.parametrize("loss_on", ["target", "all"])
def test_loss_and_gradients_equal_the_plain_way(small_model: Path, loss_on: str) -> None:
    """Head at labelled positions, no mask, batched: against one sample at a time through the model's own forward."""
    model = load_model(str(small_model), dropout=0.0)
    tokenizer = load_tokenizer(str(small_model))
    examples = [pair("name[A]", "A is a pub."), pair("name[The Long Hall], area[riverside]", "By the river: é, £20.")]
    encoded = encode(examples, tokenizer, 200)
    rosa.inject(model, rosa.RosaConfig(rank=4))
    batch = Collator(tokenizer.pad_token_id, loss_on)(encoded, [0, 1])
    token_loss = TokenLoss(model)
    assert token_loss.try_head_only(batch)
    total, losses = token_loss(batch.input_ids, batch.positions, batch.labels)
    loss = total / len(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)

    nats, tokens = torch.zeros(()), 0
    for sample in encoded.samples:
        labels = torch.tensor([sample.ids]).clone()
        if loss_on == "target":
            labels[0, : sample.prompt_length] = -100
        count = int((labels[0, 1:] != -100).sum())
        nats = nats + model(input_ids=torch.tensor([sample.ids]), labels=labels).loss * count
        tokens += count
    expected = torch.autograd.grad(nats / tokens, parameters)
    assert loss.item() == pytest.approx((nats / tokens).item(), abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, expected, strict=True))


def test_a_head_that_is_more_than_linear_takes_the_plain_way(small_model: Path) -> None:
    model = load_model(str(small_model))
    tokenizer = load_tokenizer(str(small_model))
    encoded = encode([pair("name[A]", "A is a pub.")], tokenizer, 99)
    batch = Collator(tokenizer.pad_token_id, "all")(encoded, [0])
    token_loss = TokenLoss(model)
    assert token_loss.try_head_only(batch)
    original = model.forward

    def scaled(**inputs: Any) -> Any:
        output = original(**inputs)
        output.logits = 3 * output.logits
        return output

    model.forward = scaled
    assert not token_loss.try_head_only(batch)
