"""Adapter files: a saved adapter loads under another seed, and one that does not fit changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rosa
from tests.rosa.cases import (
    FAMILY_CASES,
    Case,
    adapt,
    digests,
    logits,
    make_model,
    make_optimizer,
    train_steps,
)


def saved_model(config: rosa.AdapterConfig, folder: Path, family: str = "gpt2") -> Any:
    model = adapt(family, config)
    optimizer = make_optimizer(model)
    train_steps(model, optimizer)
    rosa.resample(model, 1, optimizer)
    train_steps(model, optimizer)
    rosa.save_adapter(model, folder, exact=True)
    return model


@pytest.mark.parametrize(("family", "case"), FAMILY_CASES, ids=str)
def test_loading_gives_the_saved_function_under_another_seed(case: Case, family: str, tmp_path: Path) -> None:
    model = saved_model(case.config, tmp_path, family)
    expected, base = logits(model), make_model(family)
    assert (logits(base) - expected).abs().max() > 0.05  # else the test would prove nothing

    torch.manual_seed(99)
    loaded = rosa.load_adapter(make_model(family), tmp_path)  # into the plain base
    assert torch.equal(logits(loaded), expected)
    assert digests(loaded) == digests(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == flags

    config = type(case.config)(**{**vars(case.config), "seed": 12345})
    present = adapt(family, config)  # into adapters of another seed
    assert digests(present) != digests(model)
    rosa.load_adapter(present, tmp_path)
    assert digests(present) == digests(model)


def test_files_hold_what_they_say(tmp_path: Path) -> None:
    saved_model(rosa.RosaConfig(rank=3, bias="none"), tmp_path / "rosa")
    saved_model(rosa.LoraConfig(rank=3, bias="adapted"), tmp_path / "lora")
    names = {path.name for path in (tmp_path / "rosa").iterdir()}
    assert names == {"adapter_config.json", "adapter.safetensors", "frozen.safetensors"}
    assert {path.name for path in (tmp_path / "lora").iterdir()} == names - {"frozen.safetensors"}
    with safe_open(tmp_path / "lora" / "adapter.safetensors", framework="pt") as file:
        assert {name for name in file.keys() if ".h.0.mlp.c_fc" in name} == {  # noqa: SIM118
            f"transformer.h.0.mlp.c_fc.{part}" for part in ("A", "B", "bias")
        }


def test_the_frozen_file_may_be_kept_from_an_earlier_save(tmp_path: Path) -> None:
    model = adapt("llama", rosa.RosaConfig(rank=3))
    rosa.save_adapter(model, tmp_path, exact=True)
    frozen = (tmp_path / "frozen.safetensors").stat().st_mtime_ns
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(model, tmp_path, frozen=False, exact=True)
    assert (tmp_path / "frozen.safetensors").stat().st_mtime_ns == frozen
    assert digests(rosa.load_adapter(make_model("llama"), tmp_path)) == digests(model)


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=3), rosa.LoraConfig(rank=3)], ids=["rosa", "lora"])
def test_a_merged_model_saves_and_loads_like_any_other(config: rosa.AdapterConfig, tmp_path: Path) -> None:
    model = saved_model(config, tmp_path / "before")
    rosa.save_adapter(rosa.merge(model), tmp_path / "merged", exact=True)
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "merged" / file.name).read_bytes(), file.name
    other = rosa.merge(adapt("gpt2", config))
    rosa.load_adapter(other, tmp_path / "merged")
    assert digests(other) == digests(rosa.unmerge(model))
    assert torch.equal(logits(other), logits(model))


def test_loading_into_a_wrapped_model(tmp_path: Path) -> None:
    model = saved_model(rosa.RosaConfig(rank=3), tmp_path)
    wrapped = torch.nn.Module()
    wrapped.module = make_model("gpt2")
    rosa.load_adapter(wrapped, tmp_path)
    assert torch.equal(logits(wrapped.module), logits(model))


def test_a_model_without_adapters_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(rosa.AdapterError, match="no adapters"):
        rosa.save_adapter(make_model("gpt2"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def instead(path: Path, make: Any) -> None:
    path.unlink()
    make(path)


def change(folder: Path, values: Any) -> None:
    """Write other values of the same names and shapes."""
    path = folder / "adapter.safetensors"
    save_file({name: values(tensor) for name, tensor in load_file(path).items()}, path)


DAMAGE = {
    "config missing": (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter"),
    "config no JSON": (lambda f: truncate(f / "adapter_config.json"), "damaged"),
    "config binary": (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe\x00"), "damaged"),
    "config a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "damaged"),
    "config without layers": (lambda f: (f / "adapter_config.json").write_text('{"format": 1}'), "damaged"),
    "layers a list": (lambda f: edit(f / "adapter_config.json", layers=[]), "damaged"),
    "another format": (lambda f: edit(f / "adapter_config.json", format=2), "format 2"),
    "unknown method": (lambda f: edit(f / "adapter_config.json", method="vera"), "'vera' .* not known"),
    "unknown setting": (lambda f: edit(f / "adapter_config.json", config={"rnk": 3}), "not those of rosa"),
    "bad setting": (lambda f: edit(f / "adapter_config.json", config={"rank": "x"}), "rank='x'"),
    "config a pipe": (lambda f: instead(f / "adapter_config.json", os.mkfifo), "damaged.*not a file"),
    "config endless": (
        lambda f: instead(f / "adapter_config.json", lambda p: p.symlink_to("/dev/zero")),
        "damaged.*not a file",
    ),
    "config sparse": (lambda f: os.truncate(f / "adapter_config.json", 2**40), "damaged.*larger than"),
    "config nested": (lambda f: (f / "adapter_config.json").write_text("[" * 200_000), "damaged"),
    "config a number": (lambda f: (f / "adapter_config.json").write_text("7"), "damaged"),
    "method a list": (lambda f: edit(f / "adapter_config.json", method=["rosa"]), "method must be a text"),
    "format an object": (lambda f: edit(f / "adapter_config.json", format={"a": 1}), "format"),
    "layers of anything": (lambda f: edit(f / "adapter_config.json", layers={"x": [1]}), "hold plain values"),
    "settings of anything": (lambda f: edit(f / "adapter_config.json", config={"seed": {}}), "hold plain values"),
    "other layers": (lambda f: edit(f / "adapter_config.json", layers={"x": {"in": 7}}), "another model"),
    "a PEFT adapter": (lambda f: edit(f / "adapter_config.json", peft_type="IA3"), "library peft.*peft_type is IA3"),
    "weights a pipe": (lambda f: instead(f / "adapter.safetensors", os.mkfifo), "damaged"),
    "weights a folder": (lambda f: instead(f / "adapter.safetensors", Path.mkdir), "damaged"),
    "weights complex": (lambda f: change(f, lambda x: x.to(torch.complex64)), "holds C64 numbers"),
    "weights integers": (lambda f: change(f, lambda x: x.to(torch.int8)), "holds I8 numbers"),
    "weights bool": (lambda f: change(f, lambda x: x > 0), "holds BOOL numbers"),
    "weights float8": (lambda f: change(f, lambda x: x.to(torch.float8_e5m2)), "holds F8_E5M2 numbers"),
    "weights nan": (lambda f: change(f, lambda x: x / 0 * 0), "not finite"),
    "weights infinite": (lambda f: change(f, lambda x: x.abs() / 0), "not finite"),
    "weights too large": (lambda f: change(f, lambda x: x.double() + 1e300), "not finite in torch.float32"),
    "weights missing": (lambda f: (f / "adapter.safetensors").unlink(), "adapter.safetensors is missing"),
    "weights truncated": (lambda f: truncate(f / "adapter.safetensors"), "adapter.safetensors is .*damaged"),
    "weights empty": (lambda f: (f / "adapter.safetensors").write_bytes(b""), "adapter.safetensors is .*damaged"),
    "frozen missing": (lambda f: (f / "frozen.safetensors").unlink(), "frozen.safetensors is missing"),
    "frozen truncated": (lambda f: truncate(f / "frozen.safetensors"), "frozen.safetensors is .*damaged"),
    "files exchanged": (
        lambda f: shutil.copy(f / "frozen.safetensors", f / "adapter.safetensors"),
        r"adapter.safetensors does not fit",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_and_leave_the_model_untouched(damage: str, tmp_path: Path) -> None:
    config = rosa.RosaConfig(rank=3)
    saved_model(config, tmp_path)
    spoil, text = DAMAGE[damage]
    spoil(tmp_path)
    for model in (make_model("gpt2"), adapt("gpt2", config)):
        adapted, before = len(rosa.adapter_layers(model)), digests(model)
        # If the model has adapters already, the file's settings are not used.
        if adapted and damage in ("unknown setting", "bad setting"):
            continue
        expected = "the model has rosa adapters" if adapted and damage == "unknown method" else text
        with pytest.raises(rosa.AdapterError, match=expected):
            rosa.load_adapter(model, tmp_path)
        assert digests(model) == before and len(rosa.adapter_layers(model)) == adapted


@pytest.mark.parametrize(
    ("saved", "family", "present", "text"),
    [
        (rosa.RosaConfig(rank=3), "llama", None, "another model.*transformer.h.0"),
        (rosa.RosaConfig(rank=3), "gpt2", rosa.RosaConfig(rank=4), "another model or of other settings.*'rank': 3"),
        (rosa.RosaConfig(rank=3), "gpt2", rosa.RosaConfig(rank=3, target_modules=["c_fc"]), "absent in the model"),
        (rosa.RosaConfig(rank=3), "gpt2", rosa.RosaConfig(rank=3, bias="none"), "other settings.*'bias'"),
        (rosa.RosaConfig(rank=3), "gpt2", rosa.LoraConfig(rank=3, bias="adapted"), "rosa adapter, .* has lora"),
        (rosa.LoraConfig(rank=3, bias="adapted"), "gpt2", rosa.RosaConfig(rank=3), "lora adapter, .* has rosa"),
        (rosa.LoraConfig(rank=3, alpha=6), "gpt2", rosa.LoraConfig(rank=3, alpha=12), "other settings.*'scale': 2.0"),
    ],
)
def test_an_adapter_of_another_model_or_settings_is_refused(
    saved: rosa.AdapterConfig, family: str, present: rosa.AdapterConfig | None, text: str, tmp_path: Path
) -> None:
    saved_model(saved, tmp_path)
    model = adapt(family, present) if present else make_model(family)
    before, adapted = digests(model), list(rosa.adapter_layers(model))
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.load_adapter(model, tmp_path)
    assert digests(model) == before and list(rosa.adapter_layers(model)) == adapted


def test_a_wider_model_of_the_same_family_is_refused(tmp_path: Path) -> None:
    saved_model(rosa.LoraConfig(rank=3), tmp_path)
    wider = make_model("gpt2", n_embd=32)
    with pytest.raises(rosa.AdapterError, match=re.escape("'in': 24, 'out': 72")):
        rosa.load_adapter(wider, tmp_path)
    assert not rosa.adapter_layers(wider)
