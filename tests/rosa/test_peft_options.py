"""Which layers a ``RosaConfig`` of PEFT adapts, its options, and what it says to bad ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rosa
from tests.rosa.cases import make_model

peft = pytest.importorskip("peft")

from tests.rosa.peft_models import adapt_by_peft, distance, make_classifier, train, trained  # noqa: E402
from tests.rosa.quantised_models import QUANTISERS, Sealed, quantised_llama, training_logits  # noqa: E402


def ranks(model: Any) -> dict[str, int]:
    return {layer.name: layer.rank for layer in rosa.adapter_layers(model).values()}


def test_the_script_of_a_peft_user_changes_in_three_lines() -> None:
    """An import, the settings' class, and the hook after the optimizer's step."""
    from peft import get_peft_model

    from rosa.integrations.peft import RosaConfig

    config = RosaConfig(r=2, target_modules=["c_attn"], bias="none", task_type="CAUSAL_LM", level="step")
    model = get_peft_model(make_model("gpt2"), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(12)[None]
    for step in range(1, 4):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.base_model.update_and_allocate(step)
    assert type(model).__name__ == "PeftModelForCausalLM"
    assert distance(model, make_model("gpt2")) > 0.05


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ({"target_modules": "all-linear"}, {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ({"target_modules": ["c_fc"]}, {"mlp.c_fc"}),
        ({"target_modules": r".*attn\.c_.*"}, {"attn.c_attn", "attn.c_proj"}),
        ({"target_modules": "all-linear", "exclude_modules": ["c_proj"]}, {"attn.c_attn", "mlp.c_fc"}),
        ({"exclude_modules": r".*mlp.*"}, {"attn.c_attn", "attn.c_proj"}),
    ],
)
def test_target_modules(options: dict[str, Any], expected: set[str]) -> None:
    assert set(ranks(adapt_by_peft(**options))) == {f"transformer.h.{i}.{name}" for i in (0, 1) for name in expected}


def test_all_linear_cuts_the_rank_of_a_small_head_and_names_it(tmp_path: Path, caplog: Any) -> None:
    """The score head of two classes has the full rank 2. Named by the user, it is refused."""
    model = adapt_by_peft(base=make_classifier(0), target_modules="all-linear", r=3)
    assert ranks(model)["score"] == 2 and set(ranks(model).values()) == {2, 3}
    assert "score" in caplog.text
    model.save_pretrained(tmp_path)
    assert distance(peft.PeftModel.from_pretrained(make_classifier(0), tmp_path), model) < 1e-5
    with pytest.raises(rosa.AdapterError, match=r"score: r=3.*modules_to_save"):
        adapt_by_peft(base=make_classifier(0), target_modules=["score"], r=3)


def test_all_linear_names_the_stacked_experts_that_it_leaves_out(caplog: Any) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sides = dict(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_local_experts=4)
    base = MixtralForCausalLM(MixtralConfig(**sides, num_attention_heads=2, num_key_value_heads=2))
    adapt_by_peft(base=base, target_modules="all-linear")
    assert "model.layers.{0..1}.mlp.experts" in caplog.text


def test_layers_that_peft_takes_in_no_lora_adapter_are_named_before_the_training(
    recwarn: pytest.WarningsRecorder,
) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    def warned(**options: Any) -> int:
        recwarn.clear()
        sides = dict(vocab_size=61, hidden_size=24, state_size=4, num_hidden_layers=2)
        adapt_by_peft(base=MambaForCausalLM(MambaConfig(**sides)), r=1, **options)
        return sum("save_as_lora" in str(one.message) and "out_proj" in str(one.message) for one in recwarn)

    assert warned() == 1
    assert warned(target_modules=["in_proj"]) == 0


@pytest.mark.parametrize("targets", [None, ["c_attn", "c_fc"]])
def test_layers_to_transform_and_rank_pattern(targets: list[str] | None) -> None:
    found = ranks(
        adapt_by_peft(
            target_modules=targets, layers_to_transform=[1], rank_pattern={"c_attn": 5, r"h\.1\.mlp\.c_fc": 0.5}
        )
    )
    expected = {"attn.c_attn": 5, "mlp.c_fc": 12} | ({} if targets else {"attn.c_proj": 3, "mlp.c_proj": 3})
    assert found == {f"transformer.h.1.{name}": rank for name, rank in expected.items()}


def test_a_ratio_is_a_share_of_each_layer() -> None:
    model = adapt_by_peft("llama", r=0.25)
    assert set(ranks(model).values()) == {3, 6}
    assert model.peft_config["default"].r == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "rank=0 must be at least 1"),
        ({"r": 1.5}, "not a ratio"),
        ({"sample_method": "best"}, "sample_method=best is not one of random"),
        ({"bias": "lora_only"}, "bias=lora_only is not one of auto, adapted, none"),
        ({"every": 0, "level": "never", "start": "one"}, "start=one is not one of split, zero; every=0"),
        ({"rank_pattern": {"c_fc": 0}}, "rank_pattern.'c_fc'.: rank=0"),
        ({"target_modules": "c_.*", "layers_to_transform": 1}, "layers_to_transform"),
        ({"r": 25}, r"transformer\.h\.0\.attn\.c_attn: r=25 is above 24"),
        ({"target_modules": ["wte"]}, r"transformer\.wte cannot be adapted: ROSA takes Linear and Conv1D"),
        ({"target_modules": ["lm_head"]}, "lm_head cannot be adapted: it shares its weight"),
        ({"target_modules": ["nowhere"]}, "not found in the base model"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt_by_peft(**options)


@pytest.mark.parametrize("option", ["lora_alpha", "lora_dropout", "use_dora", "rewarm_steps"])
def test_options_of_lora_are_named(option: str) -> None:
    from rosa.integrations.peft import RosaConfig

    with pytest.raises(TypeError, match=f"'{option}'.*leave it out. It takes .*sample_method"):
        RosaConfig(**{option: 1})


def test_a_missing_or_old_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import rosa.integrations.peft as ours

    monkeypatch.setattr(peft, "__version__", "0.17.1")
    with pytest.raises(rosa.AdapterError, match=r"needs peft 0\.18 or later, not 0\.17\.1"):
        ours.RosaConfig  # noqa: B018
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(rosa.AdapterError, match=r"pip install 'peft>=0\.18'"):
        ours.RosaConfig  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ours.nothing  # noqa: B018


def test_rosa_is_a_real_member_of_pefts_methods() -> None:
    from peft import PeftConfig, PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    from rosa.integrations.peft import RosaConfig, RosaModel

    assert PeftType("ROSA") is PeftType["ROSA"] is PeftType.ROSA is RosaConfig().peft_type
    assert PeftType.ROSA in list(PeftType) and PeftType.ROSA.value == PeftType.ROSA.name == "ROSA"
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ROSA] is RosaModel
    assert isinstance(PeftConfig.from_peft_type(peft_type="ROSA", r=3), RosaConfig)


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    from peft import PeftConfig

    from rosa.integrations.peft import RosaConfig

    config = RosaConfig(r=0.1, target_modules=["b", "a"], bias="adapted", rank_pattern={"a": 2}, decay=True)
    config.save_pretrained(str(tmp_path))
    assert RosaConfig.from_pretrained(tmp_path) == config == PeftConfig.from_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text().replace('"decay"', '"of_a_later_version": 1, "decay"')
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.warns(UserWarning, match="of_a_later_version"):
        assert RosaConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_quantised_layer_is_refused_or_dequantised_when_told_to(kind: str) -> None:
    def base() -> Any:
        return quantised_llama(kind, "up_proj")

    with pytest.raises(rosa.AdapterError, match=r"up_proj cannot be adapted.*quantised.*RosaConfig\(dequantize=True\)"):
        adapt_by_peft(base=base(), target_modules=["up_proj"])
    with pytest.raises(rosa.AdapterError, match=r"up_proj cannot be adapted.*name target_modules \(all-linear\)"):
        adapt_by_peft(base=base(), dequantize=True)
    expected = training_logits(base())
    model = adapt_by_peft(base=base(), target_modules=["up_proj", "q_proj"], dequantize=True)
    assert distance(model, expected) < 1e-5
    train(model, 1)
    assert distance(model, expected) > 0.05
    with model.disable_adapter():
        assert distance(model, expected) < 1e-5
    assert type(model.unload().model.layers[0].mlp.up_proj) is nn.Linear


def test_a_layer_that_cannot_be_dequantised_is_refused() -> None:
    base = quantised_llama("stand-in", "up_proj")
    for layer in base.model.layers:
        layer.mlp.up_proj.__class__ = Sealed
    with pytest.raises(rosa.AdapterError, match="up_proj: its Sealed cannot be dequantised here"):
        adapt_by_peft(base=base, target_modules=["up_proj"], dequantize=True)


def test_layers_that_compute_something_else_are_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 4))
    with pytest.raises(rosa.AdapterError, match="forward of its own"):
        adapt_by_peft(base=model, target_modules=["0"], r=1)
    twins = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(rosa.AdapterError, match="parametrisation"):
        adapt_by_peft(base=twins, target_modules=["0"], r=1)


def test_a_layer_tied_through_its_data_is_refused() -> None:
    base = make_model("llama")
    base.lm_head.weight = nn.Parameter(base.model.embed_tokens.weight.data)
    with pytest.raises(rosa.AdapterError, match="lm_head cannot be adapted: it shares its weight"):
        adapt_by_peft(base=base, target_modules=["lm_head"], r=1)


def test_a_plain_module_without_a_config() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    expected = base(x).detach()
    model = adapt_by_peft(base=base, target_modules=["0", "2"], r=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.base_model.bind_optimizer(optimizer)
    for epoch in (1, 2):
        model(x).square().mean().backward()
        optimizer.step()
        model.base_model.after_epoch(epoch, 2)
    assert distance(model(x).detach(), expected) > 0.01
    with model.disable_adapter():
        assert distance(model(x).detach(), expected) < 1e-6


def test_inject_adapter_in_model() -> None:
    """PEFT's way for models that are not to be wrapped as a whole."""
    from rosa.integrations.peft import RosaConfig

    model = peft.inject_adapter_in_model(RosaConfig(r=2, target_modules=["c_fc"]), make_model("gpt2"))
    assert distance(model, make_model("gpt2")) < 1e-5 and len(ranks(model)) == 2
    assert len([p for p in model.parameters() if p.requires_grad]) == 4


def test_this_librarys_functions_refuse_to_adapt_it_again() -> None:
    with pytest.raises(rosa.AdapterError, match="adapters of the library peft"):
        rosa.inject(trained(resamples=0), rosa.LoraConfig(rank=2))
