"""Adapter files from different moments, models or methods are not loaded as one adapter."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rosa
import rosa.files
from rosa.files import ADAPTER_FILE, CONFIG_FILE, FROZEN_FILE
from tests.rosa.cases import adapt, digests, logits, make_model, make_optimizer, train_steps

ROSA, LORA = rosa.RosaConfig(rank=3), rosa.LoraConfig(rank=3, bias="adapted")


class KillError(BaseException):
    """Stands for a kill: no handler of errors catches it."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_weights_of_another_subspace_are_refused(tmp_path: Path) -> None:
    model = adapt("gpt2", ROSA)
    rosa.save_adapter(model, tmp_path / "old", exact=True)
    rosa.resample(model, 1)
    rosa.save_adapter(model, tmp_path / "new", exact=True)
    for name in (ADAPTER_FILE, FROZEN_FILE):
        mixed = tmp_path / name
        shutil.copytree(tmp_path / "new", mixed)
        shutil.copy(tmp_path / "old" / name, mixed)
        base = make_model("gpt2")
        before = digests(base)
        with pytest.raises(rosa.AdapterError, match="two different subspaces"):
            rosa.load_adapter(base, mixed)
        assert digests(base) == before
    assert digests(rosa.load_adapter(make_model("gpt2"), tmp_path / "new")) == digests(model)


def test_a_save_without_the_frozen_weights_after_a_resample_is_refused(tmp_path: Path) -> None:
    model = adapt("gpt2", ROSA)
    with pytest.raises(rosa.AdapterError, match="frozen=True"):
        rosa.save_adapter(model, tmp_path / "none", frozen=False)  # there are none yet
    rosa.save_adapter(model, tmp_path)
    before = contents(tmp_path)
    rosa.resample(model, 1)
    with pytest.raises(rosa.AdapterError, match="frozen=True"):
        rosa.save_adapter(model, tmp_path, frozen=False)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize(
    ("config", "exact"), [(ROSA, True), (ROSA, False), (LORA, False)], ids=["rosa", "compact", "lora"]
)
def test_a_kill_at_any_write_is_never_taken_for_an_adapter(
    config: rosa.AdapterConfig, exact: bool, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder then loads as the old or the new adapter, or is refused."""
    model, known = adapt("gpt2", config), []
    for folder in (tmp_path / "old", tmp_path / "new"):
        rosa.save_adapter(model, folder, exact=exact)
        known.append(digests(rosa.load_adapter(make_model("gpt2"), folder)))
        if folder.name == "old":
            train_steps(model, make_optimizer(model))
            rosa.resample(model, 1)
    tmp_path, steps = tmp_path / "old", 0

    def counted(function: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > stop:
                raise KillError
            return function(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(rosa.files, "save_file", counted(save_file))
        patch.setattr(Path, "write_text", counted(Path.write_text))
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a kill removes no temporary files
        try:
            rosa.save_adapter(model, tmp_path, exact=exact)
        except KillError:
            assert steps == stop + 1
    monkeypatch.setattr(rosa.files, "LEFTOVER_SECONDS", -1)  # as a save does that comes an hour later
    try:
        assert digests(rosa.load_adapter(make_model("gpt2"), tmp_path)) in known
    except rosa.AdapterError as error:
        assert "two different" in str(error) and stop > 3 - (config is LORA)  # only while files are replaced
    rosa.save_adapter(model, tmp_path, exact=exact)
    assert digests(rosa.load_adapter(make_model("gpt2"), tmp_path)) == known[1]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_settings_of_another_save_are_refused(tmp_path: Path) -> None:
    """The same layers and shapes, but another scale."""
    for name, alpha in (("one", 3.0), ("two", 6.0)):
        rosa.save_adapter(adapt("gpt2", rosa.LoraConfig(rank=3, alpha=alpha)), tmp_path / name)
    shutil.copy(tmp_path / "two" / CONFIG_FILE, tmp_path / "one")
    with pytest.raises(rosa.AdapterError, match="two different saves"):
        rosa.load_adapter(make_model("gpt2"), tmp_path / "one")


def test_files_from_before_there_were_marks_load(tmp_path: Path) -> None:
    model = adapt("gpt2", ROSA)
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(model, tmp_path, exact=True)
    for name in (ADAPTER_FILE, FROZEN_FILE):
        save_file(load_file(tmp_path / name), tmp_path / name)  # without metadata
    description = json.loads((tmp_path / CONFIG_FILE).read_text())
    del description["base"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(description))
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
    assert digests(loaded) == digests(model)
    train_steps(loaded, make_optimizer(loaded))  # a run of an earlier version goes on: A and B with a mark, W_f without
    rosa.save_adapter(loaded, tmp_path, frozen=False, exact=True)
    assert digests(rosa.load_adapter(make_model("gpt2"), tmp_path)) == digests(loaded)
    rosa.resample(loaded, 1)
    with pytest.raises(rosa.AdapterError, match="frozen=True"):
        rosa.save_adapter(loaded, tmp_path, frozen=False, exact=True)


def test_another_method_leaves_no_frozen_file(tmp_path: Path) -> None:
    rosa.save_adapter(adapt("gpt2", ROSA), tmp_path)
    rosa.save_adapter(adapt("gpt2", LORA), tmp_path)
    assert not (tmp_path / FROZEN_FILE).exists()


@pytest.mark.parametrize("config", [ROSA, LORA], ids=["rosa", "lora"])
def test_another_base_of_the_same_shapes_is_a_warning(config: rosa.AdapterConfig, tmp_path: Path) -> None:
    model = adapt("gpt2", config)
    model.config._name_or_path = "some/model"
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(rosa.merge(model), tmp_path, exact=True)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["base"]["name"] == "some/model"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.load_adapter(make_model("gpt2"), tmp_path)
        rosa.load_adapter(model, tmp_path)
        rosa.load_adapter(make_model("gpt2", dtype=torch.float64), tmp_path)  # a rounded base is the same base
    for other in (make_model("gpt2", seed=1), make_model("gpt2", vocab_size=62)):
        with pytest.warns(UserWarning, match=r"another base model \(some/model\)"):
            rosa.load_adapter(other, tmp_path)


@pytest.mark.parametrize("view", ["transposed", "sliced"])
@pytest.mark.parametrize("config", [ROSA, LORA], ids=["rosa", "lora"])
def test_weights_that_are_views_save(config: rosa.AdapterConfig, view: str, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Module()
        model.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8)])
        joint = torch.randn(16, 6)
        for number, layer in enumerate(model.layers):
            part = joint[8 * number : 8 * number + 8] if view == "sliced" else torch.randn(6, 8).T
            layer.weight = nn.Parameter(part)
        return model

    model = rosa.inject(build(), config)
    rosa.save_adapter(model, tmp_path, exact=True)
    x = torch.randn(2, 6)
    loaded = rosa.load_adapter(build(), tmp_path)
    for ours, theirs in zip(loaded.layers, model.layers, strict=True):
        assert torch.equal(ours(x), theirs(x))


def test_a_hostile_expression_is_not_run(tmp_path: Path) -> None:
    """Matching it would take forever. The layers are those that the file lists."""
    config = rosa.LoraConfig(rank=3, target_modules=r".*c_fc")
    model = adapt("gpt2", config)
    rosa.save_adapter(model, tmp_path, exact=True)
    for pattern in ("(.+)+!", "(" * 5000, "a{99999999999}"):
        description = json.loads((tmp_path / CONFIG_FILE).read_text())
        description["config"]["target_modules"] = pattern
        (tmp_path / CONFIG_FILE).write_text(json.dumps(description))
        loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
        assert digests(loaded) == digests(model)
    with pytest.raises(rosa.AdapterError, match="nothing to adapt"):
        rosa.load_adapter(make_model("llama"), tmp_path)


def test_an_adapter_can_be_loaded_frozen(tmp_path: Path) -> None:
    model = adapt("gpt2", ROSA)
    rosa.save_adapter(model, tmp_path, exact=True)
    for loaded in (make_model("gpt2"), adapt("gpt2", ROSA)):
        rosa.load_adapter(loaded, tmp_path, trainable=False)
        assert torch.equal(logits(loaded), logits(model))
        assert not any(p.requires_grad for p in loaded.parameters())
