"""The checks that PEFT makes of each of its methods (tests/testing_common.py there), in own words, for ROSA.

Left out, with the reason: prompt learning, prefix tuning and adaption prompts (other kinds of methods); mixed adapter
batches and weighted combinations (refused with a message, see below); several adapters with bias (PEFT refuses it, here
each has its own, see below); device maps with several devices, and float16 on a GPU (this suite runs on a CPU);
Megatron, GPTQ and other quantised layers (see test_peft_options.py); embeddings and convolutions (refused there).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import rosa
from tests.rosa.cases import FAMILIES, digests, logits, make_model, make_optimizer, tokens, train_steps

peft = pytest.importorskip("peft")

from tests.rosa.peft_models import adapt_by_peft, distance, train, trained  # noqa: E402


def add_second(model: Any, resamples: int = 1, **options: Any) -> Any:
    """Another adapter, ``second``, trained and active."""
    from rosa.integrations.peft import RosaConfig

    model.add_adapter("second", RosaConfig(**{"r": 2, "seed": 3, **options}))
    model.set_adapter("second")
    train(model, resamples)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_attributes_of_the_model(family: str) -> None:
    model = adapt_by_peft(family)
    assert model.peft_config["default"].peft_type == "ROSA" and model.peft_type.value == "ROSA"
    assert model.active_adapters == ["default"] and not hasattr(model, "no_such_attribute")
    assert model.get_base_model().config.model_type == family
    assert {status.enabled for status in model.get_layer_status()} == {True}
    assert model.get_model_status().peft_types == {"default": "ROSA"}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapter_parameters_train(family: str) -> None:
    model = adapt_by_peft(family)
    before, optimizer = digests(model), make_optimizer(model)
    train_steps(model, optimizer, 1)
    after = digests(model)
    for name, parameter in model.named_parameters():
        trains = name.endswith((".default.A", ".default.B"))
        assert parameter.requires_grad == trains == (parameter.grad is not None), name
        assert (before[name] != after[name]) == trains, name
    count, total = model.get_nb_trainable_parameters()
    assert count == sum(p.numel() for name, p in model.named_parameters() if name.endswith((".A", ".B"))) < total


def test_only_the_factor_that_trains_and_biases() -> None:
    model = adapt_by_peft(adapt="a", bias="adapted")
    train(model, 1)
    names = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"A", "bias_change"}
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == names


@pytest.mark.parametrize("family", FAMILIES)
def test_disable_adapter(family: str) -> None:
    model, base = trained(family), make_model(family)
    changed = logits(model)
    assert distance(changed, base) > 0.05
    with model.disable_adapter():
        assert distance(model, base) < 1e-5
        with model.disable_adapter():
            assert distance(model, base) < 1e-5
    assert torch.equal(logits(model), changed)


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_merge_layers(family: str, safe_merge: bool) -> None:
    model = trained(family, bias="adapted")
    before, expected = digests(model), logits(model)
    model.merge_adapter(safe_merge=safe_merge)
    assert distance(model, expected) < 1e-5 and digests(model) != before
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()  # a second time: nothing
    assert distance(model, expected) < 1e-5
    model.unmerge_adapter()
    assert digests(model) == before
    model.merge_adapter()
    with model.disable_adapter():
        assert distance(model, make_model(family)) < 1e-5
    plain = model.merge_and_unload(safe_merge=safe_merge)
    assert distance(plain, expected) < 1e-5
    assert (
        type(plain) is type(make_model(family)) and plain.state_dict().keys() == make_model(family).state_dict().keys()
    )


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_layers_with_nan(safe_merge: bool) -> None:
    model = trained(resamples=0)
    with torch.no_grad():
        model.get_base_model().transformer.h[1].mlp.c_fc.rosa_layers["default"].A[0, 0] = torch.nan
    if safe_merge:
        with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc: NaNs detected"):
            model.merge_and_unload(safe_merge=True)
    else:
        assert logits(model.merge_and_unload()).isnan().any()


def test_merge_several_adapters() -> None:
    """The sum of both changes, merged at once or after one another, active at once, and removed to the bit."""
    model = add_second(trained())
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = logits(model)
    before = digests(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert min(distance(both, alone[name]) for name in alone) > 0.01
    model.merge_adapter(["default", "second"])
    assert distance(model, both) < 1e-5
    model.unmerge_adapter()
    model.merge_adapter(["second"])
    assert distance(model, alone["second"]) < 1e-5
    with pytest.warns(UserWarning, match="additionally merging default"):
        model.merge_adapter(["default"])
    assert distance(model, both) < 1e-5
    model.unmerge_adapter()
    assert digests(model) == before
    other = copy.deepcopy(model)
    assert distance(model.merge_and_unload(adapter_names=["default"]), alone["default"]) < 1e-5
    assert distance(other.merge_and_unload(adapter_names=["second"]), alone["second"]) < 1e-5


@pytest.mark.parametrize("active", ["default", "second"])
def test_merge_of_an_adapter_that_some_layers_lack(active: str) -> None:
    """The weight of such a layer holds W_f of the other adapter, which became a part of the plain model."""
    from rosa.integrations.peft import RosaConfig

    model = trained(target_modules=["c_attn"])
    model.add_adapter("second", RosaConfig(r=2, target_modules=["c_attn", "c_fc"]))
    model.set_adapter("second")
    train(model, 1)
    model.set_adapter(active)
    expected = logits(model)
    model.merge_adapter()
    assert distance(model, expected) < 1e-5
    assert distance(model.merge_and_unload(), expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_with_several_adapters(family: str) -> None:
    """Each computes what it computes alone; switching writes nothing."""
    first = trained(family)
    expected = logits(first)
    alone = adapt_by_peft(family, adapter="second", r=2, seed=3)
    train(alone, 1)
    model = add_second(first)
    assert distance(model, alone) < 2e-5
    before = digests(model)
    for name, outputs in (("default", expected), ("second", logits(alone)), ("default", expected)):
        model.set_adapter(name)
        assert distance(model, outputs) < 2e-5
        with model.disable_adapter():
            assert distance(model, make_model(family)) < 1e-5
    assert digests(model) == before
    train(model, 1)  # the first one again
    model.set_adapter("second")
    assert distance(model, alone) < 2e-5


@pytest.mark.parametrize("name", ["default", "second"])
def test_delete_adapter(name: str) -> None:
    model = add_second(trained())
    kept = {"default": "second", "second": "default"}[name]
    model.set_adapter(kept)
    expected = logits(model)
    model.set_adapter(name)
    with pytest.warns(UserWarning, match=f"Setting active adapter to {kept}"):
        model.delete_adapter(name)
    assert list(model.peft_config) == [kept] and model.active_adapters == [kept]
    assert distance(model, expected) < 1e-5
    assert not [key for key in model.state_dict() if f".{name}." in key]
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("unknown")
    train(model, 1)
    with model.disable_adapter():
        assert distance(model, make_model("gpt2")) < 1e-5
    assert distance(model.unload(), make_model("gpt2")) < 1e-5


def test_delete_the_inactive_and_the_last_adapter() -> None:
    model = add_second(trained())
    expected = logits(model)
    model.delete_adapter("default")
    assert model.active_adapters == ["second"] and distance(model, expected) < 1e-5
    model.delete_adapter("second")
    assert distance(model.base_model.model, make_model("gpt2")) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_unload(family: str) -> None:
    model = trained(family)
    plain = model.unload()
    assert distance(plain, make_model(family)) < 1e-5
    assert plain.state_dict().keys() == make_model(family).state_dict().keys()
    assert distance(adapt_by_peft(base=plain), make_model(family)) < 1e-5  # adapted once more


def test_each_adapter_has_its_own_bias() -> None:
    model = add_second(trained(bias="adapted"), bias="adapted")
    changes = [a.bias_change for a in model.get_base_model().transformer.h[0].attn.c_attn.rosa_layers.values()]
    assert len(changes) == 2 and all(change.abs().max() > 0 for change in changes)
    with model.disable_adapter():
        assert distance(model, make_model("gpt2")) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_generate(family: str) -> None:
    model = trained(family)
    prompt = tokens(2, 4)
    settings: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    out = model.generate(input_ids=prompt, **settings)
    assert torch.equal(out, model.generate(prompt, **settings))
    with model.disable_adapter():
        assert torch.equal(
            model.generate(input_ids=prompt, **settings), make_model(family).generate(prompt, **settings)
        )
    assert torch.equal(model.merge_and_unload().generate(prompt, **settings), out)


def test_refused_combinations_name_the_way_out() -> None:
    model = add_second(trained(resamples=0), 0)
    with pytest.raises(rosa.AdapterError, match="save_as_lora"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mixed")
    with pytest.raises(rosa.AdapterError, match="save_as_lora"):
        model(input_ids=tokens(), adapter_names=["default", "second", "default", "second"])


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    """Also with another seed for what is random, under another name, and beside another adapter."""
    model = trained(family, bias="adapted")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    torch.manual_seed(3)
    loaded = peft.PeftModel.from_pretrained(make_model(family), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert distance(loaded, expected) < 1e-5
    assert not any(p.requires_grad for p in loaded.parameters())
    with loaded.disable_adapter():
        assert distance(loaded, make_model(family)) < 1e-5
    loaded.load_adapter(tmp_path, "other")
    loaded.set_adapter("other")
    assert distance(loaded, expected) < 1e-5
    loaded.set_adapter("default")
    assert distance(loaded.unload(), make_model(family)) < 1e-5


def test_save_selected_adapters(tmp_path: Path) -> None:
    model = add_second(trained())
    expected = logits(model)
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert not (tmp_path / "one" / "adapter_config.json").exists()
    model.save_pretrained(tmp_path / "both")
    for folder in (tmp_path / "one" / "second", tmp_path / "both" / "second"):
        assert distance(peft.PeftModel.from_pretrained(make_model("gpt2"), folder), expected) < 1e-5
    with pytest.raises(ValueError, match="invalid `selected_adapters`"):
        model.save_pretrained(tmp_path, selected_adapters=["unknown"])
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert (tmp_path / "pickled" / "adapter_model.bin").exists()


def test_copies_and_whole_state_dicts() -> None:
    model = trained()
    expected = logits(model)
    twin = copy.deepcopy(model)
    assert distance(twin, expected) == 0
    train(twin, 1)
    assert distance(model, expected) == 0
    fresh = adapt_by_peft(seed=9)
    fresh.load_state_dict(model.state_dict())
    assert distance(fresh, expected) == 0
    with fresh.disable_adapter():
        assert distance(fresh, make_model("gpt2")) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_of_parameters_are_those_of_lora(family: str) -> None:
    """Also after resamples: the record of W_f − W_0 is no parameter, and DDP leaves it out of each forward pass."""
    names = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": "all-linear"}[family]
    lora = peft.get_peft_model(make_model(family), peft.LoraConfig(r=3, target_modules=names))
    model = trained(family)
    assert model.get_nb_trainable_parameters() == lora.get_nb_trainable_parameters()
    records = {name for name, buffer in model.named_buffers() if buffer.is_floating_point() and "rosa_" in name}
    assert records and set(model._ddp_params_and_buffers_to_ignore) == records
