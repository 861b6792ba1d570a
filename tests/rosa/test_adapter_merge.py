"""Merge, unmerge, unwrap and export compute the same function, and unmerge restores every bit."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rosa
from rosa.integrations.peft.lora_files import to_peft_lora
from rosa.layers import AdapterLayer
from tests.rosa.cases import (
    CASES,
    FAMILIES,
    FAMILY_CASES,
    Case,
    adapt,
    digests,
    logits,
    make_model,
    tokens,
    trained_model,
)


@pytest.mark.parametrize(("family", "case"), FAMILY_CASES, ids=str)
def test_merged_unmerged_and_unwrapped_compute_the_same(case: Case, family: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        model = trained_model(family, case.config, 1, dtype=dtype)
        before, bits = logits(model), digests(model)

        assert rosa.merge(model) is model
        torch.testing.assert_close(logits(model), before, atol=tolerance, rtol=0)
        merged = digests(model)
        assert (merged != bits) == (case.config.method != "bitfit")  # whose change is in the base module already
        assert digests(rosa.merge(model)) == merged  # a second merge changes nothing
        assert digests(rosa.unmerge(model)) == bits
        assert digests(rosa.unmerge(model)) == bits
        assert torch.equal(logits(model), before)

        with rosa.merged(model) as plain:
            assert not any(isinstance(module, AdapterLayer) for module in plain.modules())
            torch.testing.assert_close(logits(plain), before, atol=tolerance, rtol=0)
        assert digests(model) == bits and torch.equal(logits(model), before)

        assert rosa.unwrap(model) is model
        assert not rosa.adapter_layers(model)
        torch.testing.assert_close(logits(model), before, atol=tolerance, rtol=0)


class NewStorages(TorchDispatchMode):
    """The peak size, in bytes, of the living tensors that were made in the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in known:
                self.alive[key] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("action", ["unwrap", "export"])
@pytest.mark.parametrize("name", ["rosa-random", "lora-alpha"])
def test_merging_for_good_needs_room_for_one_layer_only(name: str, action: str, tmp_path: Path) -> None:
    model = adapt("llama", next(case.config for case in CASES if case.name == name), num_hidden_layers=6)
    layers = list(rosa.adapter_layers(model).values())
    largest = max(layer.weight.nbytes for layer in layers)
    assert sum(layer.weight.nbytes for layer in layers) > 20 * largest
    expected, bits = logits(model), digests(model)
    with NewStorages() as new, rosa.merged(model):
        pass
    assert new.peak > 20 * largest  # else the measurement would prove nothing
    with NewStorages() as new:
        rosa.unwrap(model) if action == "unwrap" else rosa.export(model, tmp_path)
    assert new.peak < 4 * largest
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)
    if action == "export":
        assert digests(model) == bits
        assert [path.name for path in sorted(tmp_path.iterdir())] == [
            "config.json", "generation_config.json", "model.safetensors"
        ]  # fmt: skip


def test_an_export_that_fails_restores_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_model("gpt2", CASES[0].config, 1)
    before = digests(model)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        rosa.export(model, tmp_path)
    assert digests(model) == before and len(rosa.adapter_layers(model)) == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unwrapped_model_is_frozen_but_for_what_the_caller_trains(family: str) -> None:
    model = adapt(family, rosa.RosaConfig(rank=2, bias="adapted"))
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    own = [norm.weight, next(iter(rosa.adapter_layers(model).values())).base.weight]
    for parameter in own:
        parameter.requires_grad_(True)
    assert {p for p in rosa.unwrap(model).parameters() if p.requires_grad} == set(own)


def test_a_model_and_an_adapter_do_not_share_a_folder(tmp_path: Path) -> None:
    """``from_pretrained`` would add the change to the merged weights."""
    model = trained_model("gpt2", CASES[0].config, 1)
    rosa.save_adapter(model, tmp_path / "adapter")
    rosa.export(model, tmp_path / "plain")
    with pytest.raises(rosa.AdapterError, match="has adapter_config"):
        rosa.export(model, tmp_path / "adapter")
    with pytest.raises(rosa.AdapterError, match="has config"):
        to_peft_lora(model, make_model("gpt2"), tmp_path / "plain")


def test_the_merged_context_restores_after_an_exception() -> None:
    model = trained_model("llama", CASES[0].config, 1)
    before = digests(model)
    with pytest.raises(KeyboardInterrupt), rosa.merged(model):
        raise KeyboardInterrupt
    assert digests(model) == before and len(rosa.adapter_layers(model)) == 14


def test_the_merged_context_leaves_a_merged_model_merged() -> None:
    model = rosa.merge(trained_model("gpt2", CASES[0].config, 1))
    before = digests(model)
    with rosa.merged(model) as plain:
        assert {k: v for k, v in digests(plain).items() if k.endswith("wte.weight")}.items() <= before.items()
    assert digests(model) == before
    assert all(layer.merged for layer in rosa.adapter_layers(model).values())


def test_generation_is_the_same_merged_and_not() -> None:
    model = trained_model("gpt2", CASES[0].config, 1)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(tokens()))
    expected = model.generate(tokens(), **settings)
    with rosa.merged(model) as plain:
        assert torch.equal(plain.generate(tokens(), **settings), expected)


WITHOUT_LIBRARY = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids, out = torch.tensor(json.loads(sys.argv[1])), []
for folder in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"], info
    out.append(model.eval()(input_ids=ids).logits.tolist())
assert not any(name.split(".")[0] == "rosa" for name in sys.modules)
print(json.dumps(out))
"""


def test_an_export_needs_only_from_pretrained(tmp_path: Path) -> None:
    expected = {}
    for family, name in (("gpt2", "rosa-random"), ("llama", "lora-alpha")):
        model = trained_model(family, next(case for case in CASES if case.name == name).config, 1)
        bits, expected[family] = digests(model), logits(model)
        rosa.export(model, tmp_path / family)
        assert digests(model) == bits and rosa.adapter_layers(model)
    folders = [str(tmp_path / family) for family in expected]
    command = [sys.executable, "-c", WITHOUT_LIBRARY, json.dumps(tokens().tolist()), *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for found, wanted in zip(json.loads(done.stdout), expected.values(), strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("family", "case"), FAMILY_CASES, ids=str)
def test_an_export_holds_the_plain_models_names(case: Case, family: str, tmp_path: Path) -> None:
    model = trained_model(family, case.config, 1)
    rosa.export(model, tmp_path)
    exported = load_file(tmp_path / "model.safetensors")
    unwrapped = rosa.unwrap(model)
    state = unwrapped.state_dict()
    assert set(exported) == set(state) - ({"lm_head.weight"} if family == "gpt2" else set())
    assert all(torch.equal(tensor, state[name]) for name, tensor in exported.items())
