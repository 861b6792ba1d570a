"""Losses of samples that share a row with their prompt against losses of samples each in its own row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rosa
from tests.rosa.cases import FAMILIES, make_model
from utils.data import get_source
from utils.models import token_loss as module
from utils.models.loading import load_tokenizer
from utils.models.losses import Losses, evaluate_losses
from utils.models.token_loss import TokenLoss
from utils.processes.group import Processes
from utils.tokens import shared_prompts
from utils.tokens.batches import Collator
from utils.tokens.encoding import Encoded, Sample, encode

SEQ_LEN = 64
PAD = 0
SETTINGS = {"gpt2": {"n_positions": SEQ_LEN}, "llama": {"max_position_embeddings": SEQ_LEN}}


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    """Pairs of the bundled data, some cut at ``SEQ_LEN``; then prompts that occur once, one of them of no tokens."""
    examples = get_source("e2e_sample").load("validation", None, None)[:40]
    pairs = encode([e for e in examples if len(e.prompt) < 130], load_tokenizer("tiny"), SEQ_LEN)
    own = [Sample(list(range(1, 2 + size)), prompt, 0, 0) for size, prompt in ((9, 4), (3, 0), (2, 0), (1, 1))]
    assert pairs.cut and max(len(sample.ids) for sample in pairs.samples) == SEQ_LEN
    return Encoded(pairs.samples + own, pairs.cut)


def build(family: str, **changes: Any) -> Any:
    return make_model(family, vocab_size=2000, **SETTINGS[family], **changes)


def count_tokens(token_loss: TokenLoss) -> list[int]:
    """A list that gets the number of inputs, padding counted, of each forward pass from now on."""
    counts: list[int] = []
    token_loss.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].numel()))
    return counts


def sums(losses: Losses) -> Tensor:
    assert losses.target is not None
    return torch.tensor([losses.target.nats, losses.all.nats], dtype=torch.float64)


@pytest.mark.parametrize("head_only", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_give_the_same_losses(encoded: Encoded, family: str, attention: str, head_only: bool) -> None:
    model = build(family)
    model.set_attn_implementation(attention)
    rosa.inject(model, rosa.LoraConfig(rank=4))
    token_loss = TokenLoss(model).train()
    plain = evaluate_losses(token_loss, encoded, PAD, 4)
    assert token_loss.choose_fast_paths(encoded, PAD).shares_prompts and token_loss.training
    token_loss.head_only = head_only
    counts = count_tokens(token_loss)
    shared = evaluate_losses(token_loss, encoded, PAD, 4)
    tokens = sum(len(sample.ids) for sample in encoded.samples)
    assert sum(counts) * 1.4 < tokens
    assert max(counts) <= max(4 * SEQ_LEN, shared_prompts.ROW_TOKENS)
    torch.testing.assert_close(sums(shared), sums(plain), rtol=1e-6, atol=0)
    for one, other in ((shared.target, plain.target), (shared.all, plain.all)):
        assert one is not None and other is not None
        assert (one.tokens, one.characters) == (other.tokens, other.characters)


def test_each_loss_is_that_of_its_sample_alone(encoded: Encoded) -> None:
    """Not only their sums; and a row of a batch does not depend on those beside it."""
    token_loss, device = TokenLoss(build("llama")), torch.device("cpu")
    rows = [row for row in shared_prompts.sample_rows(encoded) if len(row) > 1][:3]
    batch = shared_prompts.collate_rows(encoded, rows, 0, device)
    _, losses = token_loss(batch.input_ids, batch.positions, batch.labels, batch.layout)
    found = iter(losses.split([shared_prompts.row_tokens(encoded, row) - 1 for row in rows]))
    for row in rows:
        samples = [encoded.samples[index] for index in row]
        prompt, *targets = next(found).split(
            [samples[0].prompt_length - 1, *(len(sample.ids) - sample.prompt_length for sample in samples)]
        )
        for index, target in zip(row, targets, strict=True):
            alone = Collator(0, "all")(encoded, [index])
            _, expected = token_loss(alone.input_ids, alone.positions, alone.labels)
            torch.testing.assert_close(torch.cat((prompt, target)), expected, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Rehearsed(Processes):
    """One of several processes; what each gathers is played back from ``said``, by its index."""

    said: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        self.said[self.index] = value
        return [self.said.get(index, value) for index in range(self.count)]


class Wrapper(nn.Module):
    """As DistributedDataParallel wraps a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def test_several_processes_get_the_same_bits(encoded: Encoded) -> None:
    token_loss = TokenLoss(build("gpt2")).choose_fast_paths(encoded, PAD)
    counts = count_tokens(token_loss)
    single, alone = evaluate_losses(token_loss, encoded, PAD, 3), list(counts)
    said: dict[int, Any] = {}
    counts.clear()
    for index in (0, 1, 2, 0):  # the first process again, when it can hear the others
        last = evaluate_losses(Wrapper(token_loss), encoded, PAD, 3, Rehearsed(index, 3, said=said))
    assert last == single
    passes = -(-len(alone) // 3)
    assert len(counts) == 4 * passes  # as many on each process
    assert sorted(counts[: 3 * passes]) == sorted(alone + [1] * (3 * passes - len(alone)))


def test_a_stop_between_two_batches_ends_the_evaluation(encoded: Encoded) -> None:
    token_loss = TokenLoss(build("gpt2")).choose_fast_paths(encoded, PAD)
    counts = count_tokens(token_loss)

    def stop() -> None:
        if len(counts) == 2:
            raise KeyboardInterrupt

    token_loss.train()
    with pytest.raises(KeyboardInterrupt):
        evaluate_losses(token_loss, encoded, PAD, 2, check=stop)
    assert len(counts) == 2
    assert token_loss.training  # as before


@pytest.mark.parametrize("why", ["mask", "positions", "window", "error"])
def test_a_model_that_is_not_sure_to_agree_takes_the_plain_way(
    encoded: Encoded, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("llama")
    if why == "mask":  # a model that sees all tokens before
        monkeypatch.setattr(module, "additive_mask", lambda sees, dtype: None)
    elif why == "positions":  # one that counts them itself
        trunk = model.model.forward
        monkeypatch.setattr(model.model, "forward", lambda position_ids=None, **inputs: trunk(**inputs))
    elif why == "window":
        model.config.sliding_window = SEQ_LEN - 1
    else:
        monkeypatch.setattr(module, "additive_mask", lambda sees, dtype: 1 / 0)
    with caplog.at_level("INFO"):
        token_loss = TokenLoss(model).choose_fast_paths(encoded, PAD)
    assert not token_loss.shares_prompts and "without sharing prompts" in caplog.text
    counts = count_tokens(token_loss)
    evaluate_losses(token_loss, encoded, PAD, 4)
    assert sum(counts) >= sum(len(sample.ids) for sample in encoded.samples)


def test_few_shared_tokens_are_not_worth_a_mask(encoded: Encoded) -> None:
    assert shared_prompts.sharing_pays(encoded)
    first = {sample.prompt_length: sample for sample in encoded.samples}
    assert not shared_prompts.sharing_pays(Encoded(list(first.values()), 0))
    assert not shared_prompts.sharing_pays(Encoded([], 0))
    assert not shared_prompts.sharing_pays(Encoded([Sample([1, 2, 3], 1, 0, 0)] * 9, 0, documents=1))
