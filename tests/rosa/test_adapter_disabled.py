"""``rosa.disabled``: the base model's function within a block, and what is kept for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rosa
from rosa.kept_base import KeptBase, cut_to_rank
from tests.rosa.cases import (
    FAMILIES,
    FAMILY_CASES,
    Case,
    adapt,
    blocks_weights,
    digests,
    logits,
    make_model,
    make_optimizer,
    train_steps,
    trained_model,
)

REWRITING = ("rosa", "relora")


def numbers(kept: KeptBase) -> int:
    """How many numbers are kept in the place of one weight."""
    pairs = [pair for pair in (kept.change, kept.start) if pair is not None]
    return sum(factor.numel() for pair in pairs for factor in pair) + (0 if kept.whole is None else kept.whole.numel())


@pytest.mark.parametrize(("family", "case"), FAMILY_CASES, ids=str)
def test_the_base_function_is_there_within_the_block(case: Case, family: str) -> None:
    base = logits(make_model(family))
    model = trained_model(family, case.config)
    layers, before, bits = rosa.adapter_layers(model), logits(model), digests(model)
    assert (before - base).abs().max() > 0.05  # else the test would prove nothing
    with rosa.disabled(model) as same:
        assert same is model
        if case.config.method in REWRITING:
            torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=0)
        else:
            assert torch.equal(logits(model), base)
        with rosa.disabled(model):
            inner = logits(model)
        assert torch.equal(logits(model), inner)
    assert digests(model) == bits and torch.equal(logits(model), before)
    assert all(rosa.adapter_layers(model)[name] is layer for name, layer in layers.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=2), rosa.LoraConfig(rank=2, bias="adapted"), rosa.IA3Config()])
def test_a_merged_model_gives_it_too(config: rosa.AdapterConfig, family: str) -> None:
    base, model = logits(make_model(family)), rosa.merge(trained_model(family, config))
    before = digests(model)
    with rosa.disabled(model):
        torch.testing.assert_close(logits(model), base, atol=1e-5 if config.method == "rosa" else 0, rtol=0)
    assert digests(model) == before and all(layer.merged for layer in rosa.adapter_layers(model).values())


def test_an_error_within_the_block_leaves_the_model_as_it_was() -> None:
    model = trained_model("gpt2", rosa.RosaConfig(rank=2)).train()
    before = digests(model)
    with pytest.raises(KeyboardInterrupt), rosa.disabled(model):
        model.eval()
        raise KeyboardInterrupt
    assert digests(model) == before and len(rosa.adapter_layers(model)) == 8
    assert not any(module.training for module in model.modules())  # eval() in the block reached the adapters as well


def test_gradients_of_the_adapters_survive_a_reference_in_between() -> None:
    """A DPO step: policy, reference, backward."""
    model = trained_model("gpt2", rosa.RosaConfig(rank=2))
    batch = torch.arange(12).reshape(2, 6)
    expected = torch.autograd.grad(model(input_ids=batch).logits.square().sum(), list(filter_trained(model)))
    policy = model(input_ids=batch).logits
    with torch.no_grad(), rosa.disabled(model):
        reference = model(input_ids=batch).logits
    assert not torch.allclose(policy, reference)
    for ours, theirs in zip(
        torch.autograd.grad(policy.square().sum(), list(filter_trained(model))), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def filter_trained(model: nn.Module) -> Any:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=1), rosa.RosaConfig(rank=1.0), rosa.LoraConfig(rank=1)])
def test_models_that_read_the_weight_read_that_of_the_base(config: rosa.AdapterConfig) -> None:
    for family in FAMILIES:
        base, model = blocks_weights(make_model(family)), trained_model(family, config)
        with rosa.disabled(model):
            for name, weight in base.items():
                module = model.get_submodule(name)
                read = module.weight.T if module.transposed else module.weight
                torch.testing.assert_close(read.double(), weight, atol=1e-6, rtol=0)
                if module.bias is not None:
                    assert torch.equal(module.bias, make_model(family).get_submodule(name).bias)


def test_hooks_of_a_layer_see_the_base_output() -> None:
    model = trained_model("gpt2", rosa.RosaConfig(rank=2))
    name, seen = "transformer.h.0.mlp.c_fc", []
    model.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append(out))
    base = make_model("gpt2")
    base.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append(out))
    logits(base)
    with rosa.disabled(model):
        logits(model)
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=0)
    assert len(seen) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=1), rosa.ReloraConfig(rank=1)], ids=REWRITING)
@pytest.mark.filterwarnings("ignore:adapting 16-bit", "ignore:rounding to 16 bits")
def test_a_model_in_16_bits_gives_it_to_the_bit(config: Any, family: str, tmp_path: Path) -> None:
    """After resamples that round the weight; and an adapter file gives back the function that was saved."""
    base = make_model(family, dtype=torch.bfloat16)
    expected = logits(base)
    model = trained_model(family, config, resamples=4, dtype=torch.bfloat16)
    learned = logits(model)
    assert not torch.equal(learned, expected)
    rosa.save_adapter(model, tmp_path)
    loaded = rosa.load_adapter(base, tmp_path)
    assert torch.equal(logits(loaded), learned)
    for adapted in (model, loaded, rosa.merge(model)):
        with rosa.disabled(adapted):
            assert torch.equal(logits(adapted), expected)


@pytest.mark.filterwarnings("ignore:adapting 16-bit", "ignore:rounding to 16 bits")
def test_a_base_in_16_bits_stays_whole_under_factors_of_32_bits(tmp_path: Path) -> None:
    rosa.save_adapter(trained_model("gpt2", rosa.RosaConfig(rank=1)), tmp_path)
    base = make_model("gpt2", dtype=torch.bfloat16)
    expected, loaded = logits(base), rosa.load_adapter(base, tmp_path)
    rosa.resample(loaded, 3)
    with rosa.disabled(loaded):
        assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [
        rosa.RosaConfig(rank=1),
        rosa.RosaConfig(rank=2, adapt="b", basis="random"),
        rosa.RosaConfig(rank=1, start="zero"),
        rosa.ReloraConfig(rank=1, alpha=3.0),
    ],
)
def test_the_kept_factors_are_the_change_of_the_weight(config: Any, family: str) -> None:
    """In float64: W_f − W_0, with a rank of at most 2 R (K − 1) + R after K subspaces."""
    base = blocks_weights(make_model(family, dtype=torch.float64))
    model = adapt(family, config, dtype=torch.float64)
    optimizer = make_optimizer(model)
    for number in range(1, 4):
        for name, layer in rosa.adapter_layers(model).items():
            left, right = layer.kept.difference()
            learned = 0 if layer.kept.change is None else layer.kept.change[0].shape[1]
            assert left.shape[1] == learned + config.rank <= (2 * number - 1) * config.rank
            torch.testing.assert_close(left @ right, layer.weight_mn - base[name], atol=1e-10, rtol=0)
            torch.testing.assert_close(layer.kept.weight(layer.weight_mn), base[name], atol=1e-10, rtol=0)
        train_steps(model, optimizer)
        rosa.resample(model, number, optimizer)


def test_no_more_is_kept_than_the_weight() -> None:
    base = blocks_weights(make_model("gpt2"))
    model = adapt("gpt2", rosa.RosaConfig(rank=3))
    optimizer, whole = make_optimizer(model), []
    for number in range(1, 6):
        for name, layer in rosa.adapter_layers(model).items():
            assert 0 < numbers(layer.kept) <= layer.base.weight.numel()
            if layer.kept.whole is not None:
                torch.testing.assert_close(layer.kept.whole.double(), base[name], atol=1e-6, rtol=0)
        whole.append(sum(layer.kept.whole is not None for layer in rosa.adapter_layers(model).values()))
        train_steps(model, optimizer)
        rosa.resample(model, number, optimizer)
    assert whole[0] == 0 and whole[-1] == 8 and whole == sorted(whole)
    with rosa.disabled(model):
        torch.testing.assert_close(logits(model), logits(make_model("gpt2")), atol=1e-5, rtol=0)


def test_training_that_moves_nothing_is_kept_as_rank_one() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=3))
    for number in range(1, 4):
        rosa.resample(model, number)
    for layer in rosa.adapter_layers(model).values():
        assert layer.kept.change[0].shape[1] == 1 and layer.kept.change[0].abs().max() < 1e-6


def test_a_small_change_is_kept_beside_a_large_one() -> None:
    generator = torch.Generator().manual_seed(0)

    def factors(columns: int, size: float) -> tuple[Tensor, Tensor]:
        left = torch.randn(30, columns, generator=generator) * size
        return left, torch.randn(columns, 20, generator=generator)

    (a, b), (c, d) = factors(3, 1.0), factors(2, 1e-4)
    left, right = cut_to_rank(torch.cat([a, c, a, -a], 1), torch.cat([b, d, b, b]))
    assert left.shape == (30, 5) and right.shape == (5, 20)
    torch.testing.assert_close(left @ right, a @ b + c @ d, atol=1e-5, rtol=0)
    torch.testing.assert_close(left.T @ left, right @ right.T, atol=1e-4, rtol=0)  # both sides are equally long


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=2), rosa.ReloraConfig(rank=2)])
def test_what_is_kept_does_not_change_the_training(config: rosa.AdapterConfig) -> None:
    models = []
    for keep_base in (True, False):
        model = rosa.inject(make_model("gpt2"), config, keep_base=keep_base)
        optimizer = make_optimizer(model)
        for number in (1, 2):
            train_steps(model, optimizer)
            rosa.resample(model, number, optimizer)
        models.append(model)
    assert digests(models[0]) == digests(models[1])
    assert all(layer.kept is None for layer in rosa.adapter_layers(models[1]).values())
    with pytest.raises(rosa.AdapterError, match="keep_base=True"), rosa.disabled(models[1]):
        pass
    with rosa.disabled(copy.deepcopy(models[0])) as copied:
        torch.testing.assert_close(logits(copied), logits(make_model("gpt2")), atol=1e-5, rtol=0)


def test_lora_needs_nothing_kept() -> None:
    base, config = make_model("gpt2"), rosa.LoraConfig(rank=2)
    model = rosa.inject(make_model("gpt2"), config, keep_base=False)
    train_steps(model, make_optimizer(model))
    with rosa.disabled(model):
        assert torch.equal(logits(model), logits(base))
    kept = rosa.adapter_layers(adapt("gpt2", config))["transformer.h.0.mlp.c_fc"].kept
    assert numbers(kept) == 0


def test_a_model_without_adapters_has_nothing_to_disable() -> None:
    with pytest.raises(rosa.AdapterError, match="no adapters"), rosa.disabled(make_model("gpt2")):
        pass


def test_a_state_that_was_written_in_place_leaves_no_wrong_base(tmp_path: Path) -> None:
    """torch.distributed.checkpoint reads into the tensors of the state itself, which are those of the model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model, other = (adapt("gpt2", rosa.RosaConfig(rank=2)) for _ in range(2))
    train_steps(model, make_optimizer(model))
    rosa.resample(model, 1)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path / "state")
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=tmp_path / "state")
    with pytest.warns(UserWarning, match="shares the model's memory"):
        set_model_state_dict(other, state["model"])
    torch.testing.assert_close(logits(other), logits(model))
    with pytest.raises(rosa.AdapterError, match="were not kept"), rosa.disabled(other):
        pass
    rosa.save_adapter(other, tmp_path / "adapter")
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(other))
