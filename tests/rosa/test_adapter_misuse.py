"""What users do with a training loop's objects: each is right, or refused with the way out."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import rosa
from rosa.integrations.trainer import ResampleCallback
from tests.rosa.cases import adapt, digests, logits, make_model, make_optimizer, train_steps
from tests.rosa.peft_models import adapt_by_peft

METHODS = [rosa.RosaConfig(rank=2), rosa.LoraConfig(rank=2)]


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_the_state_of_a_merged_model_is_that_of_the_unmerged_one(config: Any) -> None:
    model = adapt("gpt2", config)
    train_steps(model, make_optimizer(model))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    rosa.merge(model)
    found = model.state_dict()
    assert all(value.equal(expected[name]) for name, value in found.items())
    fresh = rosa.inject(make_model("gpt2"), config)
    fresh.load_state_dict(copy.deepcopy(found))
    torch.testing.assert_close(logits(fresh), logits(model))
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=r"is merged: call rosa\.unmerge"):
        model.load_state_dict(expected)
    assert digests(model) == before


def test_a_pair_without_its_base_weight_is_not_loaded() -> None:
    """The usual idiom for LoRA keeps what requires a gradient."""
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    rosa.resample(model, 1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(rosa.AdapterError, match=r"has its A and not base\.weight.*save_adapter"):
        rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2)).load_state_dict(trained, strict=False)
    of_peft = adapt_by_peft()
    of_peft.base_model.after_epoch(1)
    trained = {name: p for name, p in of_peft.named_parameters() if p.requires_grad}
    with pytest.raises(rosa.AdapterError, match=r"has its A and not left, right, number.*save_pretrained"):
        adapt_by_peft().load_state_dict(trained, strict=False)
    of_lora = {n: p for n, p in adapt("gpt2", rosa.LoraConfig(rank=2)).named_parameters() if p.requires_grad}
    rosa.inject(make_model("gpt2"), rosa.LoraConfig(rank=2)).load_state_dict(of_lora, strict=False)


def test_an_optimizer_of_the_plain_model_is_refused() -> None:
    model = make_model("gpt2")
    early = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rosa.inject(model, rosa.RosaConfig(rank=2))
    with pytest.raises(rosa.AdapterError, match=r"no parameter of the adapters: make one of rosa\.parameter_groups"):
        rosa.Resampler(model, early)


def test_a_trained_base_weight_is_named_when_the_adapter_is_saved(tmp_path: Path) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    layer = rosa.adapter_layers(model)["transformer.h.1.mlp.c_fc"]
    layer.base.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"1 parameters train and .*c_fc.*they are not saved: freeze them"):
        rosa.save_adapter(model, tmp_path)


def test_the_base_of_a_conversion_is_not_the_model_itself(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = make_model("gpt2")
    own = model.state_dict()
    rosa.inject(model, rosa.RosaConfig(rank=2))
    train_steps(model, make_optimizer(model))
    with pytest.raises(rosa.AdapterError, match=r"the very weight of .*read the base again"):
        to_peft_lora(model, own, tmp_path)
    to_peft_lora(model, make_model("gpt2"), tmp_path)


def test_the_mode_that_is_set_while_merged_stays() -> None:
    model = adapt("gpt2", rosa.LoraConfig(rank=2, dropout=0.5)).train()
    with rosa.merged(model):
        model.eval()
    assert not any(module.training for module in model.modules())
    with rosa.merged(model):
        model.train()
    assert all(module.training for module in model.modules())


def test_nothing_is_due_before_the_first_step() -> None:
    model = adapt_by_peft(level="step", every=2)
    assert not model.base_model.update_and_allocate(0, 10)
    assert model.base_model.update_and_allocate(2, 10)


def test_a_callback_serves_the_model_of_its_last_training() -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    callback, state = ResampleCallback(), TrainerState()
    of_peft, injected = adapt_by_peft(), adapt("gpt2", rosa.RosaConfig(rank=2))
    settings: Any = TrainingArguments("none", report_to=[])
    for model in (of_peft, injected):
        callback.on_train_begin(settings, state, TrainerControl(), model=model, optimizer=make_optimizer(model))
    state.epoch, state.num_train_epochs = 1, 3
    before: list[dict[str, str]] = [digests(of_peft), digests(injected)]
    callback.on_epoch_begin(settings, state, TrainerControl())
    assert digests(of_peft) == before[0] and digests(injected) != before[1]


def test_moments_under_other_names_are_not_pruned() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    optimizer = torch.optim.RMSprop(rosa.parameter_groups(model), lr=1e-3)
    train_steps(model, optimizer)
    with pytest.raises(rosa.AdapterError, match="cannot change the state 'square_avg' of RMSprop"):
        rosa.resample(model, 1, optimizer, optimizer_state=0.5)
    rosa.resample(model, 1, optimizer)


@pytest.mark.parametrize("change", ["keep", 0.5, 0.0])
def test_an_optimizers_copies_of_the_old_pair_are_not_kept(change: str | float) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    optimizer = torch.optim.ASGD(rosa.parameter_groups(model), lr=1e-3)
    train_steps(model, optimizer)
    with pytest.raises(rosa.AdapterError, match="the state 'ax' of ASGD holds A and B of the old subspace"):
        rosa.resample(model, 1, optimizer, optimizer_state=change)
    rosa.resample(model, 1, optimizer, optimizer_state="reset")


@pytest.mark.parametrize("config", [rosa.LoraConfig(rank=2, bias="adapted"), rosa.IA3Config(), rosa.DoraConfig(rank=2)])
def test_training_steps_of_a_merged_model_warn(config: Any) -> None:
    """Biases still have gradients, so that nothing else would say it."""
    model = rosa.merge(adapt("gpt2", config))
    ids = torch.arange(4)[None]
    with pytest.warns(UserWarning, match=r"a merged layer does not train: first rosa\.unmerge"):
        model.train()(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(ids)
        with torch.no_grad():
            model.train()(ids)
        rosa.unmerge(model)(ids)


def test_the_settings_of_this_library_are_not_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(AttributeError, match=r"is for rosa\.inject.*\(r=\.\.\.\) of rosa\.integrations\.peft"):
        peft.get_peft_model(make_model("gpt2"), rosa.RosaConfig(rank=2))
    copied = copy.deepcopy(rosa.RosaConfig(rank=2))
    assert copied == rosa.RosaConfig(rank=2) and not hasattr(copied, "alpha")


def test_training_on_after_a_load_draws_a_new_subspace(tmp_path: Path) -> None:
    """Also of a second training of one model; the number is in the file and in the model's state."""
    config = rosa.RosaConfig(rank=2)
    model = adapt("gpt2", config)
    rosa.Resampler(model, None).after_epoch(1, 2)
    rosa.save_adapter(model, tmp_path, exact=True)
    loaded, copied = rosa.load_adapter(make_model("gpt2"), tmp_path), adapt("gpt2", config)
    copied.load_state_dict(model.state_dict())
    state = {name: value for name, value in model.state_dict().items() if not name.endswith(".number")}
    adapt("gpt2", config).load_state_dict(state)  # of an earlier version
    for one in (model, loaded, copied):
        resampler = rosa.Resampler(one, None)
        assert resampler.number == 1 and resampler.rate_factor(1) == 1
        resampler.after_epoch(1, 2)
        assert resampler.number == 2
    assert digests(loaded) == digests(copied) == digests(model)


def test_an_optimizer_of_a_part_of_the_pairs_is_refused() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    layers = rosa.adapter_layers(model).values()
    halves = (torch.optim.AdamW([getattr(layer, name) for layer in layers]) for name in ("A", "B"))
    for half in halves:
        with pytest.raises(rosa.AdapterError, match="holds only some of the adapters"):
            rosa.Resampler(model, half)


def test_a_ramp_counts_from_the_last_step_that_it_was_told() -> None:
    """A loop that resamples by epochs tells the steps to ``rewarmed`` only, or it is warned."""
    model = adapt("gpt2", rosa.ReloraConfig(rank=2, rewarm_steps=3))
    optimizer = torch.optim.SGD(rosa.parameter_groups(model), lr=1.0)
    resampler = rosa.Resampler(model, optimizer)
    with pytest.warns(UserWarning, match=r"rewarm_steps=3 needs each optimizer step within resampler\.rewarmed"):
        resampler.after_epoch(1, 9)
    rates = []
    for step in range(1, 9):
        with resampler.rewarmed(step):
            rates.append(optimizer.param_groups[0]["lr"])
        if step == 4:
            resampler.after_epoch(2, 9)
    assert rates == [1.0] * 4 + [0.25, 0.5, 0.75, 1.0]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with resampler.rewarmed(9):  # no ramp: nothing is touched
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    resampler.after_epoch(3, 9)
    with pytest.raises(rosa.AdapterError, match="step the scheduler after the block"), resampler.rewarmed(10):
        scheduler.step()


def test_epochs_count_from_one() -> None:
    with pytest.raises(rosa.AdapterError, match="number of complete epochs, 1 after the first"):
        rosa.Resampler(adapt("gpt2", rosa.RosaConfig(rank=2)), None).after_epoch(0, 4)


def test_a_frozen_adapter_that_is_loaded_again_trains(tmp_path: Path) -> None:
    model = adapt("gpt2", rosa.LoraConfig(rank=2, modules_to_save=["ln_f"]))
    rosa.save_adapter(model, tmp_path)
    rosa.load_adapter(model, tmp_path, trainable=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    rosa.load_adapter(model, tmp_path)
    assert all(layer.A.requires_grad and layer.B.requires_grad for layer in rosa.adapter_layers(model).values())


def test_a_disabled_or_distributed_model_is_refused(tmp_path: Path) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    with rosa.disabled(model):
        for work in (rosa.merge, rosa.unwrap, lambda one: rosa.export(one, tmp_path / "plain")):
            with pytest.raises(rosa.AdapterError, match=r"leave rosa\.disabled before"):
                work(model)
    with rosa.merged(model), pytest.raises(rosa.AdapterError, match=r"within rosa\.merged"), rosa.disabled(model):
        pass
    plain = make_model("gpt2")
    plain.__class__ = type("Wrapped", (torch.nn.parallel.DistributedDataParallel, type(plain)), {})
    with pytest.raises(rosa.AdapterError, match="adapt first, then wrap"):
        rosa.inject(plain, rosa.RosaConfig(rank=2))


def test_a_wrapped_model_is_not_exported(tmp_path: Path) -> None:
    wrapper = torch.nn.Module()
    wrapper.module = adapt("gpt2", rosa.LoraConfig(rank=2))
    with pytest.raises(rosa.AdapterError, match=r"give the model that it wraps \(model\.module"):
        rosa.export(wrapper, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_peft_says_that_epochs_do_nothing_where_steps_are_meant() -> None:
    model = adapt_by_peft(level="step", every=2)
    with pytest.warns(UserWarning, match=r"after_epoch does nothing with level='step'"):
        model.base_model.after_epoch(1, 4)


def test_biases_of_a_saved_adapter_of_peft_are_not_dropped(tmp_path: Path) -> None:
    adapt_by_peft(bias="adapted").save_pretrained(tmp_path)
    with pytest.raises(rosa.AdapterError, match="the saved adapter trained biases"):
        adapt_by_peft(bias="none").load_adapter(tmp_path, "default")


@pytest.mark.parametrize("level", ["epoch", "step"])
def test_a_call_that_does_not_serve_the_level_is_a_warning(level: Any) -> None:
    """Either way the training went on without a resample, and without a word."""
    model = adapt("gpt2", rosa.RosaConfig(rank=2, level=level))
    resampler = rosa.Resampler(model, make_optimizer(model))
    if level == "step":
        with pytest.warns(UserWarning, match="after_epoch does nothing with level='step': call resampler.after_step"):
            assert not resampler.after_epoch(1, epochs=3)
    else:
        assert not resampler.after_step(1, total_steps=2)
        with pytest.warns(UserWarning, match="level='epoch' does so in resampler.after_epoch"):
            assert not resampler.after_step(2, total_steps=2)
    with pytest.warns(UserWarning, match="3 of .*=2: nothing resamples after the end.* over all epochs"):
        assert not (resampler.after_step if level == "step" else resampler.after_epoch)(3, 2)


def test_a_decay_of_pretrained_directions_is_a_warning() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    with pytest.warns(UserWarning, match=r"weight decay shrinks A and B.* rosa\.parameter_groups"):
        rosa.Resampler(model, make_optimizer(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.Resampler(model, torch.optim.AdamW(rosa.parameter_groups(model)))


def test_a_rate_of_b_that_the_optimizer_does_not_have_is_a_warning() -> None:
    model = adapt("gpt2", rosa.LoraConfig(rank=2, lr_ratio_b=16))
    with pytest.warns(UserWarning, match=r"lr_ratio_b does nothing.* rosa\.parameter_groups"):
        rosa.Resampler(model, make_optimizer(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.Resampler(model, torch.optim.AdamW(rosa.parameter_groups(model, lr=1e-3), lr=1e-3))


@pytest.mark.parametrize("level", ["epoch", "step"])
def test_a_loop_that_makes_both_calls_is_warned_of_nothing(level: Any) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2, level=level))
    resampler = rosa.Resampler(model, make_optimizer(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resampler.after_step(1, total_steps=2)
        resampler.after_epoch(1, epochs=2)
        resampler.after_step(2, total_steps=2)
    assert resampler.number == 1


@pytest.mark.parametrize("by_peft", [False, True])
def test_a_base_weight_that_is_computed_after_the_adaptation_is_refused_by_name(by_peft: bool) -> None:
    """Pruning and the like register hooks on the base, which run with the adapted layer."""
    from torch.nn.utils import prune, spectral_norm, weight_norm

    for compute in (lambda base: prune.l1_unstructured(base, "weight", 0.5), weight_norm, spectral_norm):
        model = adapt_by_peft("llama") if by_peft else adapt("llama", rosa.RosaConfig(rank=2))
        logits(model)
        name = "model.layers.1.self_attn.q_proj"
        layer: Any = next(module for long, module in model.named_modules() if long.endswith(name))
        assert not hasattr(layer, "weight_orig")
        compute(layer.base_layer if by_peft else layer.base)
        with pytest.raises(rosa.AdapterError, match=rf"^{name}: its weight is computed"):
            logits(model)
