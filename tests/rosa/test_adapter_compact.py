"""Adapter files that hold the factors of W_f − W_0 in the place of W_f."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rosa
from rosa.files import ADAPTER_FILE, CONFIG_FILE, FROZEN_FILE
from tests.rosa.cases import (
    FAMILIES,
    FAMILY_CASES,
    Case,
    adapt,
    digests,
    logits,
    make_model,
    make_optimizer,
    train_steps,
    trained_model,
)
from tests.rosa.test_adapter_disabled import REWRITING

RESAMPLING = [(family, case) for family, case in FAMILY_CASES if case.config.method in REWRITING]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(("family", "case"), RESAMPLING, ids=str)
def test_a_compact_adapter_gives_the_function_and_trains_on(case: Case, family: str, tmp_path: Path) -> None:
    """Under another seed; after the load both go on alike: the next subspaces are the same."""
    model = trained_model(family, case.config, resamples=1)
    rosa.save_adapter(model, tmp_path / "compact")
    rosa.save_adapter(model, tmp_path / "exact", exact=True)
    torch.manual_seed(99)
    loaded = rosa.load_adapter(make_model(family), tmp_path / "compact")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == flags
    for one in (model, loaded):
        rosa.resample(one, 2)
    layers, others = rosa.adapter_layers(model), rosa.adapter_layers(loaded)
    for name, layer in layers.items():
        largest = float(layer.weight.detach().abs().max())
        torch.testing.assert_close(others[name].delta(), layer.delta(), atol=1e-3 * largest, rtol=0)
    exact, compact = (load_file(tmp_path / kind / FROZEN_FILE) for kind in ("exact", "compact"))
    assert not any(name.endswith((".left", ".right")) for name in exact)
    for name, layer in layers.items():
        if f"{name}.left" in compact:
            factors = compact[f"{name}.left"].numel() + compact[f"{name}.right"].numel()
            assert factors < layer.base.weight.numel() and f"{name}.weight" not in compact
        else:
            assert torch.equal(compact[f"{name}.weight"], exact[f"{name}.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_takes_the_room_of_the_pairs(family: str, tmp_path: Path) -> None:
    sizes, wide = [], dict(n_embd=96) if family == "gpt2" else dict(hidden_size=96, intermediate_size=160)
    model = adapt(family, rosa.RosaConfig(rank=1, bias="none"), **wide)
    optimizer = make_optimizer(model)
    pair = sum(layer.A.numel() + layer.B.numel() for layer in rosa.adapter_layers(model).values()) * 4
    for number in range(3):
        rosa.save_adapter(model, tmp_path / f"{number}")
        sizes.append((tmp_path / f"{number}" / FROZEN_FILE).stat().st_size)
        train_steps(model, optimizer)
        rosa.resample(model, number + 1, optimizer)
    rosa.save_adapter(model, tmp_path / "exact", exact=True)
    headers = 200 * 2 * len(rosa.adapter_layers(model))
    for number, found in enumerate(sizes):  # W_f − W_0 after K subspaces: rank 2 R (K − 1) + R
        assert (2 * number + 1) * pair <= found <= (2 * number + 1) * pair + headers
    assert size(tmp_path / "2") < size(tmp_path / "exact") / 2


def test_training_that_begins_at_zero_changes_no_weight_at_first(tmp_path: Path) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=4, start="zero"))
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(model, tmp_path)
    assert all(factor.shape in {(1, factor.shape[1]), (factor.shape[0], 1)} and not factor.any()
               for factor in load_file(tmp_path / FROZEN_FILE).values())  # fmt: skip
    torch.testing.assert_close(
        logits(rosa.load_adapter(make_model("gpt2"), tmp_path)), logits(model), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("exact", [False, True])
def test_the_base_function_is_there_after_a_load(exact: bool, tmp_path: Path) -> None:
    base, model = logits(make_model("gpt2")), trained_model("gpt2", rosa.RosaConfig(rank=2), resamples=1)
    rosa.save_adapter(model, tmp_path, exact=exact)
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
    for number in (2, 3):
        with rosa.disabled(loaded):
            torch.testing.assert_close(logits(loaded), base, atol=0 if exact else 1e-5, rtol=0)
        train_steps(loaded, make_optimizer(loaded))
        rosa.resample(loaded, number)
    without = rosa.load_adapter(make_model("gpt2"), tmp_path, keep_base=False)
    with pytest.raises(rosa.AdapterError, match="keep_base=True"), rosa.disabled(without):
        pass
    rosa.save_adapter(without, tmp_path / "again")  # what is not known is saved whole
    assert not any(name.endswith(".left") for name in load_file(tmp_path / "again" / FROZEN_FILE))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_factors_of_a_whole_w_f_are_found(family: str, tmp_path: Path) -> None:
    """A checkpoint of a run holds W_f; what is made of it for others is compact again."""
    model = trained_model(family, rosa.RosaConfig(rank=1), resamples=2)
    rosa.save_adapter(model, tmp_path / "known")
    rosa.save_adapter(model, tmp_path / "exact", exact=True)
    rosa.save_adapter(rosa.load_adapter(make_model(family), tmp_path / "exact"), tmp_path / "found")
    known, found = (load_file(tmp_path / kind / FROZEN_FILE) for kind in ("known", "found"))
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in known.items()}
    loaded = rosa.load_adapter(make_model(family), tmp_path / "found")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


def test_factors_that_are_not_smaller_are_not_written(tmp_path: Path) -> None:
    rosa.save_adapter(trained_model("gpt2", rosa.RosaConfig(rank=8), resamples=2), tmp_path / "exact", exact=True)
    rosa.save_adapter(rosa.load_adapter(make_model("gpt2"), tmp_path / "exact"), tmp_path / "again")
    exact, again = (load_file(tmp_path / kind / FROZEN_FILE) for kind in ("exact", "again"))
    assert exact.keys() == again.keys() and all(torch.equal(again[name], exact[name]) for name in exact)


def test_saved_and_loaded_many_times_it_stays_the_same(tmp_path: Path) -> None:
    model = trained_model("llama", rosa.RosaConfig(rank=2), resamples=1)
    expected, sizes = logits(model), []
    for _ in range(4):
        rosa.save_adapter(model, tmp_path)
        sizes.append(size(tmp_path))
        model = rosa.load_adapter(make_model("llama"), tmp_path)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert max(sizes) - min(sizes) < 100


def test_a_wrong_base_is_one_error(tmp_path: Path) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    model.config._name_or_path = "some/model"
    rosa.save_adapter(rosa.merge(model), tmp_path)
    other = make_model("gpt2")
    with torch.no_grad():
        other.transformer.h[1].mlp.c_proj.weight[0, 0] += 1e-3
    before = digests(other)
    with pytest.raises(rosa.AdapterError, match=r"another base model \(some/model\)"):
        rosa.load_adapter(other, tmp_path)
    assert digests(other) == before and not rosa.adapter_layers(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.load_adapter(make_model("gpt2"), tmp_path)
        rounded = rosa.load_adapter(make_model("gpt2", dtype=torch.float64), tmp_path)  # not compared
    torch.testing.assert_close(logits(rounded).float(), logits(rosa.unmerge(model)), atol=1e-5, rtol=0)


def test_adapters_that_are_there_take_it_if_they_know_their_base(tmp_path: Path) -> None:
    config = rosa.RosaConfig(rank=2)
    model = trained_model("gpt2", config, resamples=1)
    rosa.save_adapter(model, tmp_path)
    present = rosa.merge(trained_model("gpt2", rosa.RosaConfig(rank=2, seed=5), resamples=2))
    rosa.load_adapter(present, tmp_path)
    torch.testing.assert_close(logits(present), logits(model), atol=1e-5, rtol=0)
    with rosa.disabled(present):
        torch.testing.assert_close(logits(present), logits(make_model("gpt2")), atol=1e-5, rtol=0)
    late = rosa.inject(make_model("gpt2"), config, start=False)
    torch.testing.assert_close(logits(rosa.load_adapter(late, tmp_path)), logits(model), atol=1e-5, rtol=0)
    unknown = rosa.inject(make_model("gpt2"), config, keep_base=False)
    before = digests(unknown)
    with pytest.raises(rosa.AdapterError, match="did not keep them"):
        rosa.load_adapter(unknown, tmp_path)
    other = adapt("gpt2", config, seed=1)
    with pytest.raises(rosa.AdapterError, match="another base model"):
        rosa.load_adapter(other, tmp_path)
    assert digests(unknown) == before


def test_the_frozen_file_may_be_kept(tmp_path: Path) -> None:
    model = trained_model("gpt2", rosa.RosaConfig(rank=2), resamples=1)
    rosa.save_adapter(model, tmp_path)
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(model, tmp_path, frozen=False)
    torch.testing.assert_close(
        logits(rosa.load_adapter(make_model("gpt2"), tmp_path)), logits(model), atol=1e-5, rtol=0
    )
    with pytest.raises(rosa.AdapterError, match="frozen=True"):
        rosa.save_adapter(model, tmp_path, frozen=False, exact=True)


def edited(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / FROZEN_FILE)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / FROZEN_FILE)


LEFT = "transformer.h.0.mlp.c_fc.left"
DAMAGE = {
    "another rank": (lambda f: edited(f, LEFT, lambda t: t[:, :1].clone()), "c_fc.right differ"),
    "no column": (lambda f: edited(f, LEFT, lambda t: t[:, :0].clone()), "does not fit the model"),
    "a vector": (lambda f: edited(f, LEFT, lambda t: t[:, 0].clone()), "does not fit the model"),
    "too many inputs": (lambda f: edited(f, LEFT, lambda t: torch.cat([t, t])), "does not fit the model"),
    "not finite": (lambda f: edited(f, LEFT, lambda t: t / 0), "not finite"),
    "other values": (lambda f: edited(f, LEFT, lambda t: 2 * t), "two different subspaces"),
    "cut off": (lambda f: (f / FROZEN_FILE).write_bytes((f / FROZEN_FILE).read_bytes()[:-9]), "missing or damaged"),
    "missing": (lambda f: (f / FROZEN_FILE).unlink(), "missing or damaged"),
    "of a number": (
        lambda f: (f / CONFIG_FILE).write_text(json.dumps(
            (d := json.loads((f / CONFIG_FILE).read_text())) | {"base": d["base"] | {"adapted": 7}}
        )),
        None,  # without a checksum of the base nothing is compared
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_factors_change_nothing(kind: str, tmp_path: Path) -> None:
    rosa.save_adapter(trained_model("gpt2", rosa.RosaConfig(rank=2), resamples=1), tmp_path)
    damage, text = DAMAGE[kind]
    damage(tmp_path)
    model = make_model("gpt2")
    before = digests(model)
    if text is None:
        rosa.load_adapter(model, tmp_path)
        return
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.load_adapter(model, tmp_path)
    assert digests(model) == before and not rosa.adapter_layers(model)
    assert (tmp_path / ADAPTER_FILE).exists()
