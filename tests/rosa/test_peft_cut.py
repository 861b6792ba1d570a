"""The learned change cut to a rank or a share, the layers that get a pair, and vLLM's rules for the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rosa
from rosa.integrations.peft.lora_files import VLLM_RANKS, to_peft_lora, vllm_problems
from tests.rosa.cases import adapt, logits, make_model, make_optimizer, train_steps, trained_model


def changes_of(model: Any, base: Any) -> dict[str, Tensor]:
    """W_K − W_0 of each adapted layer as (n, m), in float64, from the merged weights."""
    before = base.state_dict()
    return {
        name: (layer.weight.detach().double() - before[f"{name}.weight"].double())
        for name, layer in rosa.adapter_layers(model).items()
    }


def pairs_in(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """B (n, r) and A (r, m) of each layer, in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix("base_model.model."): (
            tensors[f"{name}.lora_B.weight"].double(), tensors[f"{name}.lora_A.weight"].double()
        )
        for name in names
    }  # fmt: skip


def test_a_cut_to_a_rank_is_the_best_approximation(tmp_path: Path) -> None:
    model, base = trained_model("llama", rosa.RosaConfig(rank=2), 1), make_model("llama")
    written = to_peft_lora(model, base, tmp_path, rank=3)
    assert written.rank == 3
    lost = norm = 0.0
    for name, (b, a) in pairs_in(tmp_path).items():
        change = changes_of(model, base)[name]
        u, s, vt = torch.linalg.svd(change, full_matrices=False)
        torch.testing.assert_close(b @ a, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-6, rtol=0)
        error = float((change - b @ a).norm() / change.norm())
        assert written.errors[name] == pytest.approx(error, abs=1e-5) and error > 0.01
        lost, norm = lost + float((change - b @ a).norm() ** 2), norm + float(change.norm() ** 2)
    assert written.error == pytest.approx((lost / norm) ** 0.5, abs=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_cut_to_a_share_keeps_it_in_every_layer_with_the_least_rank(keep: float, tmp_path: Path) -> None:
    model, base = trained_model("llama", rosa.RosaConfig(rank=2), 1), make_model("llama")
    written = to_peft_lora(model, base, tmp_path, keep=keep)
    for name, change in changes_of(model, base).items():
        shares = torch.linalg.svdvals(change).square().cumsum(0) / change.square().sum()
        rank = written.ranks[name]
        assert shares[rank - 1] >= keep - 1e-6 and (rank == 1 or shares[rank - 2] < keep), name
        assert written.errors[name] == pytest.approx(float(1 - shares[rank - 1]) ** 0.5, abs=1e-4)
    assert len(set(written.ranks.values())) > 1
    assert written.error**2 <= 1 - keep + 1e-6


def test_the_whole_change_is_kept_without_a_cut(tmp_path: Path) -> None:
    model, base = trained_model("llama", rosa.RosaConfig(rank=1), 1), make_model("llama")
    exact, whole, high = (to_peft_lora(model, base, tmp_path, **cut) for cut in ({}, {"keep": 1.0}, {"rank": 12}))
    assert exact.ranks == whole.ranks == high.ranks and exact.rank == 4 and exact.error < 1e-5


def test_a_change_that_is_too_large_says_which_rank_pays(tmp_path: Path) -> None:
    model, base = trained_model("llama", rosa.RosaConfig(rank=4), 2), make_model("llama")
    with pytest.raises(rosa.AdapterError, match=r"rosa\.export.*keep=0\.99 or by a rank of at most (\d+)") as refused:
        to_peft_lora(model, base, tmp_path / "a")
    rank = int(str(refused.value).rstrip(".").split()[-1])
    to_peft_lora(model, base, tmp_path / "b", rank=rank)
    with pytest.raises(rosa.AdapterError, match="it takes"):
        to_peft_lora(model, base, tmp_path / "c", rank=rank + 1)


@pytest.mark.parametrize(
    ("cut", "message"),
    [({"rank": 0}, "rank=0 must be"), ({"keep": 0.0}, "keep=0.0"), ({"keep": 1.5}, "keep=1.5"),
     ({"rank": 2, "keep": 0.5}, "exclude each other")],
)  # fmt: skip
def test_cuts_that_are_none(cut: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(rosa.AdapterError, match=message):
        to_peft_lora(adapt("llama", rosa.LoraConfig(rank=2)), make_model("llama"), tmp_path, **cut)


def test_layers_changed_before_the_adapters_came_get_a_pair_too(tmp_path: Path) -> None:
    """As in a run that begins with another adapter, of other layers."""
    peft = pytest.importorskip("peft")
    model = trained_model("gpt2", rosa.LoraConfig(rank=2, target_modules=["c_attn"]), 0)
    rosa.inject(rosa.unwrap(model), rosa.RosaConfig(rank=1, target_modules=["c_fc"]))
    train_steps(model, make_optimizer(model))
    written = to_peft_lora(model, make_model("gpt2"), tmp_path)
    assert {name.rpartition(".")[2]: rank for name, rank in written.ranks.items()} == {"c_attn": 2, "c_fc": 2}
    loaded = peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


def test_a_change_that_no_pair_holds_is_refused(tmp_path: Path) -> None:
    model = trained_model("gpt2", rosa.LoraConfig(rank=2), 0)
    with torch.no_grad():
        model.transformer.ln_f.bias.add_(0.1)
    with pytest.raises(rosa.AdapterError, match=r"^transformer\.ln_f\.bias is not the base's either.*rosa\.export"):
        to_peft_lora(model, make_model("gpt2"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_target_modules_are_the_usual_names_where_those_are_enough(tmp_path: Path) -> None:
    def names(**settings: Any) -> list[str]:
        to_peft_lora(adapt("llama", rosa.LoraConfig(rank=2, **settings)), make_model("llama"), tmp_path)
        return list(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"])

    assert names() == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert names(target_modules=["v_proj"]) == ["v_proj"]
    assert names(target_modules=r".*\.1\..*v_proj") == ["model.layers.1.self_attn.v_proj"]


# -- vLLM ----------------------------------------------------------------------------------------------------------


def vllm_name(name: str) -> tuple[str, str]:
    """Module and factor of a tensor as vLLM's parse_fine_tuned_lora_name reads its name, or ValueError."""
    parts = name.removeprefix("base_model.model.").split(".")
    if parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
        raise ValueError(name)
    return ".".join(parts[:-2]), parts[-2]


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=2, bias="none"), rosa.LoraConfig(rank=0.25, alpha=8)])
def test_adapters_without_biases_obey_vllms_rules(config: rosa.AdapterConfig, tmp_path: Path) -> None:
    model = trained_model("llama", config, 0)
    written = to_peft_lora(model, make_model("llama"), tmp_path)
    assert written.vllm_problems == [] and written.max_lora_rank == 8
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["bias"] == "none" and not settings["modules_to_save"] and not settings["use_dora"]
    assert settings["lora_alpha"] == settings["r"] == written.rank, "vLLM's one scale is 1"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    read = {vllm_name(name): tensor for name, tensor in tensors.items()}
    base = make_model("llama")
    for (module, factor), tensor in read.items():
        assert module.rpartition(".")[2] in settings["target_modules"]
        assert tensor.shape[factor == "lora_A"] == base.get_submodule(module).weight.shape[factor == "lora_A"]
        assert tensor.shape[factor == "lora_B"] <= written.max_lora_rank


def test_what_vllm_refuses_is_said(tmp_path: Path) -> None:
    whole = to_peft_lora(trained_model("gpt2", rosa.RosaConfig(rank=1), 1), make_model("gpt2"), tmp_path)
    assert len(whole.vllm_problems) == 1 and "trained biases (base_model.model.transformer" in whole.vllm_problems[0]
    good = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    pair = ["base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight"]
    assert vllm_problems(good, pair) == []
    refused: list[tuple[dict[str, Any], str]] = [
        ({"bias": "lora_only"}, "bias is lora_only"), ({"modules_to_save": ["score"]}, "modules_to_save is set"),
        ({"use_dora": True}, "use_dora is set"), ({"r": 513}, "its rank 513 is above 512"),
        ({"r": None}, "r is missing"), ({"rank_pattern": {"q_proj": 600}}, "its rank 600"),
    ]  # fmt: skip
    for change, problem in refused:
        (text,) = vllm_problems({**good, **change}, pair)
        assert problem in text
    assert "tensors outside its pairs (lora_magnitude" in vllm_problems(good, ["lora_magnitude_vector"])[0]
    assert VLLM_RANKS[0] == 1 and list(VLLM_RANKS) == sorted(VLLM_RANKS)
