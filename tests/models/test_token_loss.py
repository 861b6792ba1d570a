"""The loss with its head at labelled positions only, compared with the model's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, xLSTMConfig

import rosa
from tests.rosa.test_adapter_architectures import CAUSAL, make
from utils.data import pair
from utils.errors import UserError
from utils.models.causality import check_causal
from utils.models.loading import load_model, load_tokenizer
from utils.models.token_loss import TokenLoss
from utils.tokens.batches import Collator
from utils.tokens.encoding import Encoded, Sample, encode


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


def test_capped_logits_take_the_plain_way_however_small_they_are() -> None:
    """Those of a trial are too small to tell, and training makes them larger."""
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    batch = Collator(0, "all")(Encoded([Sample([1, 2, 3], 1, 0, 0)], 0), [0])
    for cap in (30.0, None):
        config = Gemma2Config(vocab_size=50, num_key_value_heads=2, final_logit_softcapping=cap, **sizes)
        assert TokenLoss(Gemma2ForCausalLM(config)).try_head_only(batch) == (cap is None)
    capped = xLSTMConfig(vocab_size=50, hidden_size=16, num_heads=2, num_blocks=1)
    assert not TokenLoss(AutoModelForCausalLM.from_config(capped)).try_head_only(batch)


def test_the_kept_cast_of_a_frozen_head_follows_its_weight(small_model: Path) -> None:
    """A second pass reads the kept values, a pass after a write casts again; a trained weight is never kept."""
    model = load_model(str(small_model), dropout=0.0).eval()
    encoded = encode([pair("name[A]", "A is a pub.")], load_tokenizer(str(small_model)), 99)
    batch = Collator(0, "all")(encoded, [0])
    weight = model.get_output_embeddings().weight.requires_grad_(False)
    token_loss = TokenLoss(model)

    def losses(of: TokenLoss = token_loss) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return of(batch.input_ids, batch.positions, batch.labels)[1]

    first, kept = losses(), token_loss.cast.values
    assert kept is not None and kept.dtype == torch.bfloat16
    assert torch.equal(first, losses()) and token_loss.cast.values is kept
    with torch.no_grad():
        weight.mul_(2.0)
    assert torch.equal(losses(), losses(TokenLoss(model))) and not torch.equal(losses(), first)
    model.get_output_embeddings().weight = torch.nn.Parameter(weight.detach() / 2, requires_grad=False)
    assert torch.equal(token_loss.cast(model.get_output_embeddings().weight, torch.bfloat16), kept)
    model.get_output_embeddings().weight.requires_grad_(True)
    trained = TokenLoss(model)
    losses(trained)
    assert trained.cast.values is None
    for number in range(20):  # each freed before the next, which would lie at its address
        assert trained.cast(torch.full((64, 64), float(number)), torch.bfloat16)[0, 0] == number


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_architecture_gets_the_losses_of_its_samples_alone(kind: str) -> None:
    """No mask, padding on the right, the head where there is a loss: against the model's own pass over each sample."""
    model = make(AutoModelForCausalLM, kind, CAUSAL[kind][0])
    rows = [[5, 9, 3, 8, 2, 7, 4], [6, 1, 12]]
    encoded = Encoded([Sample(row, 1, 0, 0) for row in rows], 0)
    token_loss = TokenLoss(model).eval().choose_fast_paths(encoded, 0)
    check_causal(token_loss)
    batch = Collator(0, "all")(encoded, [0, 1])
    _, losses = token_loss(batch.input_ids, batch.positions, batch.labels)
    alone = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1].log_softmax(-1) for row in rows]
    expected = [-row[range(len(ids) - 1), ids[1:]] for row, ids in zip(alone, rows, strict=True)]
    torch.testing.assert_close(losses, torch.cat(expected), atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = token_loss(batch.input_ids, batch.positions, batch.labels)
    assert (losses - torch.cat(expected)).abs().median() < 5e-2  # a router may choose another expert for a token


@pytest.mark.parametrize(("kind", "why"), [("bert", "its predictions depend on later"), ("roberta", "TypeError")])
def test_an_encoder_is_refused(kind: str, why: str) -> None:
    token_loss = TokenLoss(make(AutoModelForCausalLM, kind, dict(pad_token_id=None)))
    with pytest.raises(UserError, match=f"is no causal language model, .*{why}"):
        check_causal(token_loss)
