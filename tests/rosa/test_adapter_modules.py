"""Modules that train whole beside the adapters: a new classification head is saved, loaded, counted and disabled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

import rosa
from tests.rosa.cases import adapt, digests, logits, make_model, make_optimizer, tokens, train_steps, trained

CONFIGS = [
    rosa.RosaConfig(rank=2, modules_to_save=["score"]),
    rosa.LoraConfig(rank=2, modules_to_save=("score",)),
    rosa.IA3Config(modules_to_save={"score"}),
]


def classifier(seed: int = 0) -> Any:
    """A tiny classifier; its body is the same for each seed, its new head is not."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)
    )
    torch.manual_seed(seed)
    nn.init.normal_(model.score.weight)
    return model.eval()


def train(model: Any, steps: int = 3) -> None:
    optimizer = make_optimizer(model)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=tokens(), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
        optimizer.step()


@torch.no_grad()
def scores(model: Any) -> Tensor:
    return model(input_ids=tokens()).logits  # type: ignore[no-any-return]


def test_a_head_that_does_not_train_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"score does not train: .*modules_to_save=\['score'\]"):
        rosa.inject(classifier(), rosa.LoraConfig(rank=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.inject(classifier(), CONFIGS[1])


def test_new_heads_are_known_by_the_task_of_the_model_and_not_by_their_names() -> None:
    shape: Any = dict(vocab_size=50, dim=24, hidden_dim=40, n_layers=1, n_heads=2)
    new = DistilBertForSequenceClassification(DistilBertConfig(**shape))
    with pytest.warns(
        UserWarning, match=r"pre_classifier does not .*modules_to_save=\['classifier', 'pre_classifier'\]"
    ):
        rosa.inject(new, rosa.LoraConfig(rank=2, modules_to_save=["classifier"]))
    sizes: Any = dict(vocab_size=50, d_model=24, d_kv=12, d_ff=40, num_layers=1, num_heads=2)
    with pytest.warns(UserWarning, match="classification_head does not train"):
        rosa.inject(T5ForSequenceClassification(T5Config(**sizes)), rosa.LoraConfig(rank=2))
    double = GPT2DoubleHeadsModel(GPT2Config(vocab_size=61, n_embd=24, n_layer=1, n_head=2, num_labels=1))
    with pytest.warns(UserWarning, match="^multiple_choice_head does not train"):  # lm_head is pretrained
        rosa.inject(double, rosa.LoraConfig(rank=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.inject(T5ForConditionalGeneration(T5Config(**sizes)), rosa.LoraConfig(rank=2))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_a_head_trains_and_comes_back(config: Any, tmp_path: Path) -> None:
    model = classifier()
    base = scores(model)
    rosa.inject(model, config)
    head = model.score.weight.detach().clone()
    assert any(p is model.score.weight for p in trained(model))
    train(model)
    assert (model.score.weight - head).abs().max() > 1e-3
    rosa.save_adapter(model, tmp_path)
    assert "score.weight" in load_file(tmp_path / "adapter.safetensors")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # another random head is not another base model
        loaded = rosa.load_adapter(classifier(seed=9), tmp_path)
    torch.testing.assert_close(scores(loaded), scores(model), atol=1e-5, rtol=0)
    assert torch.equal(loaded.score.weight, model.score.weight) and loaded.score.weight.requires_grad
    present = rosa.load_adapter(rosa.inject(classifier(), config), tmp_path, trainable=False)
    torch.testing.assert_close(scores(present), scores(model), atol=1e-5, rtol=0)
    assert not trained(present)

    before = digests(model)
    with rosa.disabled(model):
        torch.testing.assert_close(scores(model), base, atol=1e-5 if config.method == "rosa" else 0, rtol=0)
    assert digests(model) == before and any(p is model.score.weight for p in trained(model))


def test_the_report_counts_it() -> None:
    without = rosa.parameter_report(rosa.inject(classifier(), rosa.LoraConfig(rank=2)))
    report = rosa.parameter_report(rosa.inject(classifier(), CONFIGS[1]))
    assert report.modules == {"score": 3 * 24} and report.trainable == without.trainable + 3 * 24
    assert report.total == without.total and without.modules == {}
    (line,) = [line for line in str(report).splitlines() if line.startswith("score ")]
    assert line.split() == ["score", "whole", "-", "72"]


def test_after_an_unwrap_nothing_trains_and_the_trained_head_stays() -> None:
    model = rosa.inject(classifier(), CONFIGS[0])
    train(model)
    expected = scores(model)
    rosa.unwrap(model)
    torch.testing.assert_close(scores(model), expected, atol=1e-5, rtol=0)
    assert not trained(model) and set(model.state_dict()) == set(classifier().state_dict())
    assert vars(model.score).keys() == vars(classifier().score).keys()


def test_a_tied_output_layer_trains_and_is_disabled_with_its_embedding(tmp_path: Path) -> None:
    base = logits(make_model("gpt2"))
    model = adapt("gpt2", rosa.LoraConfig(rank=2, modules_to_save=["lm_head"]))
    train_steps(model, make_optimizer(model))
    with rosa.disabled(model):
        assert torch.equal(logits(model), base)
    assert model.lm_head.weight is model.transformer.wte.weight
    rosa.save_adapter(model, tmp_path)
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
    assert torch.equal(logits(loaded), logits(model)) and loaded.lm_head.weight is loaded.transformer.wte.weight


def test_without_its_values_from_before_a_head_cannot_be_disabled() -> None:
    model = rosa.inject(classifier(), CONFIGS[1], keep_base=False)
    with pytest.raises(rosa.AdapterError, match="score trains whole"), rosa.disabled(model):
        pass
    assert len(rosa.adapter_layers(model)) == 8
    started = rosa.start_adapters(rosa.inject(classifier(), CONFIGS[1], start=False))
    expected = scores(classifier())
    train(started)
    with rosa.disabled(started):
        assert torch.equal(scores(started), expected)


def test_a_head_that_trains_without_being_named_is_a_warning(tmp_path: Path) -> None:
    model = rosa.inject(classifier(), rosa.LoraConfig(rank=2))
    model.score.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"1 parameters train and .*score\.weight.*not saved.*modules_to_save"):
        rosa.save_adapter(model, tmp_path)
    message = r"score\.weight.*rosa\.disabled computes is not the base"
    with pytest.warns(UserWarning, match=message) as seen, rosa.disabled(model):
        pass
    assert [warning.filename for warning in seen] == [__file__]


def test_statistics_that_no_adapter_holds_are_a_warning() -> None:
    """Of BatchNorm, which a forward pass in training mode changes; of none that it only reads."""
    model = make_model("gpt2")
    model.norm = nn.BatchNorm1d(3)
    with pytest.warns(UserWarning, match=r"changes the statistics of norm, .* in eval mode .*rosa\.export"):
        rosa.inject(model, rosa.LoraConfig(rank=2))
    other = make_model("gpt2")
    other.norm = nn.Module()
    other.norm.register_buffer("running_mean", torch.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.inject(other, rosa.LoraConfig(rank=2))


@pytest.mark.parametrize(
    ("endings", "text"),
    [
        (["head"], "no module's name ends in 'head'"),
        (["mlp"], "mlp trains whole, and transformer.h.0.mlp.c_fc is to be adapted"),
        (["drop"], "has no parameters"),
        ([""], "must be a list of name endings"),
        ("score", "must be a list of name endings"),
        ([7], "must be a list of name endings"),
    ],
)
def test_what_cannot_train_whole_is_refused(endings: Any, text: str) -> None:
    model = classifier()
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.inject(model, rosa.LoraConfig(rank=2, modules_to_save=endings))
    assert digests(model) == before and not rosa.adapter_layers(model)


def test_a_module_with_buffers_is_refused() -> None:
    model = classifier()
    model.norm = nn.BatchNorm1d(3)
    with pytest.raises(rosa.AdapterError, match="norm has no parameters, or more in its state"):
        rosa.inject(model, rosa.LoraConfig(rank=2, modules_to_save=["norm"]))


def test_a_file_with_a_head_needs_a_model_with_that_head(tmp_path: Path) -> None:
    rosa.save_adapter(rosa.inject(classifier(), CONFIGS[1]), tmp_path)
    model = rosa.inject(classifier(), rosa.LoraConfig(rank=2))
    with pytest.raises(rosa.AdapterError, match=r"does not fit the model: score\.weight"):
        rosa.load_adapter(model, tmp_path)


def test_a_head_goes_into_the_files_of_peft(tmp_path: Path) -> None:
    """Whole, so that the random head of the base into which it is loaded does not matter."""
    from peft import PeftModel

    from rosa.integrations.peft import to_peft_lora

    model = rosa.inject(classifier(), rosa.RosaConfig(rank=1, modules_to_save=["score"]))
    train(model)
    to_peft_lora(model, classifier(seed=1), tmp_path)
    loaded = PeftModel.from_pretrained(classifier(seed=2), tmp_path).eval()
    torch.testing.assert_close(scores(loaded), scores(model), atol=1e-5, rtol=0)

    tied = adapt("gpt2", rosa.LoraConfig(rank=1, modules_to_save=["wte"]))
    with pytest.raises(rosa.AdapterError, match=r"lm_head shares its weight with a module of modules_to_save"):
        to_peft_lora(tied, make_model("gpt2"), tmp_path / "tied")
