"""Full training of some layers only, the ceiling of every adapter on them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import rosa
from rosa.targets import find_targets
from tests.rosa.cases import FAMILIES, LAYERS_PER_BLOCK, adapt, blocks_weights, make_model, make_optimizer, train_steps


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_that_adapters_adapt_train_alone(family: str) -> None:
    """As in a model that is frozen by hand; the rest keeps its bits."""
    model = make_model(family, dtype=torch.float64)
    start, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    assert rosa.train_only(model, "all-linear") is model
    adapted = set(rosa.adapter_layers(adapt(family, rosa.LoraConfig(rank=1))))
    assert adapted == blocks_weights(model).keys() and len(adapted) == 2 * LAYERS_PER_BLOCK[family]
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] in adapted)
    for each in (model, by_hand):
        train_steps(each, make_optimizer(each))
    values, moved = dict(by_hand.named_parameters()), set()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, values[name], atol=1e-12, rtol=0)
        if not torch.equal(parameter, start.get_parameter(name)):
            moved.add(name)
    assert moved == {name for name in values if name.rpartition(".")[0] in adapted}
    assert any(name.endswith("bias") for name in moved) == (family == "gpt2")
    assert rosa.parameter_report(model).trainable == sum(values[name].numel() for name in moved)


def test_all_linear_is_the_default_of_adapters() -> None:
    """One spelling in files, and the same layers."""
    config = rosa.LoraConfig(rank=1, target_modules="all-linear")
    assert config == rosa.LoraConfig(rank=1) and config.target_modules is None


@pytest.mark.parametrize("targets", [["c_fc"], r".*\.mlp\.c_fc"])
def test_layers_by_name(targets: Any) -> None:
    model = rosa.train_only(make_model("gpt2"), targets)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == [f"transformer.h.{i}.mlp.c_fc.{part}" for i in (0, 1) for part in ("weight", "bias")]


@pytest.mark.parametrize(
    ("targets", "text"),
    [("nowhere", "matches nowhere"), ([], "at least one name"), ("lm_head", "sharing their weight"), (3, "modules=3")],
)
def test_targets_that_are_none_leave_the_model_as_it_is(targets: Any, text: str) -> None:
    model = make_model("gpt2")
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.train_only(model, targets)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_with_adapters_is_refused() -> None:
    with pytest.raises(rosa.AdapterError, match="adapters already"):
        rosa.train_only(adapt("llama", rosa.LoraConfig(rank=1)), "all-linear")


@pytest.mark.parametrize("targets", ["all-linear", ["all-linear"]])
def test_all_linear_is_the_default_wherever_targets_are_looked_for(targets: Any) -> None:
    """It leaves out what the default leaves out: a layer with a forward of its own."""
    model = make_model("gpt2")
    assert find_targets(model, targets).keys() == find_targets(model, None).keys() == blocks_weights(model).keys()
    layer = model.transformer.h[1].mlp.c_fc
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)
    assert find_targets(model, targets).keys() == blocks_weights(model).keys() - {"transformer.h.1.mlp.c_fc"}
