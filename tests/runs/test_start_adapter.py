"""Runs that begin with an adapter merged into the base model: identity, copy, evaluation, export, round trips."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import rosa
from tests.conftest import make_config
from tests.export.conftest import logits, model_of
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.export.__main__ import main as export
from utils.generation.decoding import Decoding
from utils.runs import Run
from utils.runs.identity import run_directory
from utils.runs.inputs import adapter_digest, identity_inputs

QUICK = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu")
UNTRAINED = ("train.epochs=0", "fnmodel.params.rank=2", "fnmodel.params.bias=none")


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def fill(model: Any) -> Any:
    """Random values for all pairs, as if they were trained."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("A", "B") or "lora_" in name:
            parameter.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def lora(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of this library, of rank 1 on the MLPs' first layers."""
    folder = tmp_path_factory.mktemp("start") / "lora"
    config = rosa.LoraConfig(rank=1, target_modules=["c_fc"])
    rosa.save_adapter(fill(rosa.inject(plain(small_model), config)), folder)
    return folder


def start_logits(small_model: Path, adapter: Path) -> Tensor:
    return logits(rosa.load_adapter(plain(small_model), adapter))


def test_a_run_starts_from_the_adapters_function(train: Any, small_model: Path, lora: Path) -> None:
    """For a method with pairs, and for full fine-tuning, which trains the merged weights."""
    expected = start_logits(small_model, lora)
    assert (expected - logits(plain(small_model))).abs().max() > 0.01
    for method in ("rosa", "none"):
        run = train(f"model.adapter={lora}", f"fnmodel.name={method}", *UNTRAINED)
        torch.testing.assert_close(logits(model_of(run)), expected, atol=1e-5, rtol=0)
    counts = run.record()["parameters"]
    assert counts["trainable"] == counts["total"] == plain(small_model).num_parameters(), "all weights train"


def test_the_content_is_part_of_a_runs_identity_and_its_path_is_not(train: Any, lora: Path, tmp_path: Path) -> None:
    run = train(f"model.adapter={lora}", *UNTRAINED)
    assert run.inputs()["adapter"] == adapter_digest(lora)
    moved = shutil.copytree(lora, tmp_path / "moved")
    (moved / "README.md").write_text("of no effect")
    (moved / "model.safetensors").write_bytes(b"of no effect: it is not read")
    assert train(f"model.adapter={moved}", *UNTRAINED).path == run.path
    (moved / "adapter_config.json").write_text((moved / "adapter_config.json").read_text() + "\n")
    configs = [make_config(f"model.adapter={moved}"), make_config(f"model.adapter={lora}"), make_config()]
    assert len({run_directory(config, identity_inputs(config)) for config in configs}) == 3


def test_a_run_outlives_the_folder(train: Any, small_model: Path, lora: Path, tmp_path: Path) -> None:
    """It keeps a copy, by which it is evaluated and exported anywhere."""
    adapter = shutil.copytree(lora, tmp_path / "adapter")
    run = train(f"model.adapter={adapter}", "train.epochs=1", "fnmodel.name=lora")
    expected = logits(model_of(run))
    shutil.rmtree(adapter)
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "elsewhere", symlinks=True)))
    assert evaluate_run(copy, QUICK)[0] == "evaluated"
    assert export([str(copy.path), "--as", "merged", "--out", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(plain(tmp_path / "merged")), expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"no such folder\. A run that began with it keeps a copy, RUN/start_adapter"):
        train(f"model.adapter={adapter}", "train.epochs=1", "fnmodel.name=lora")
    again = train(f"model.adapter={run.start_adapter}", "train.epochs=1", "fnmodel.name=lora")
    assert again.path == run.path, "the copy is the same adapter"


def test_another_start_is_refused(train: Any, lora: Path) -> None:
    run = train(f"model.adapter={lora}", "fnmodel.name=lora", *UNTRAINED)
    path = run.start_adapter / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match=r"adapter was \w{8}, is \w{8} \(.*/start_adapter"):
        evaluate_run(run, QUICK)
    shutil.rmtree(run.start_adapter)
    with pytest.raises(UserError, match=r"start_adapter is gone: put the adapter that the run began with"):
        evaluate_run(run, QUICK)


def test_an_interrupted_run_goes_on_from_the_same_start(
    train: Any, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.training import loop

    settings = (f"model.adapter={lora}", "fnmodel.name=lora", "train.epochs=2", "train.fraction=0.3")
    whole = train(*settings)
    shutil.move(whole.path, tmp_path / "whole")
    validate, calls = loop.validate, []

    def stop_at_the_second(training: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stopped")
        return validate(training)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(loop, "validate", stop_at_the_second)
        train(*settings)
    assert train(*settings).record()["best"]["loss"] == Run(tmp_path / "whole").record()["best"]["loss"]


@pytest.mark.parametrize("target", ["c_fc", "c_attn"])
def test_from_adapter_to_run_to_peft(train: Any, small_model: Path, lora: Path, tmp_path: Path, target: str) -> None:
    """The export is on the published base: it holds the start's change too, also where the run adapts other layers."""
    peft = pytest.importorskip("peft")
    run = train(f"model.adapter={lora}", *UNTRAINED, f"fnmodel.params.target_modules=[{target}]", "train.epochs=1")
    assert export([str(run.path), "--as", "peft", "--out", str(tmp_path / "peft")]) == 0
    loaded = peft.PeftModel.from_pretrained(plain(small_model), tmp_path / "peft")
    torch.testing.assert_close(logits(loaded), logits(model_of(run)), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"began with an adapter .*--as peft, which holds both"):
        export([str(run.path), "--as", "adapter"])


def test_from_peft_to_run_to_peft(train: Any, small_model: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    theirs = fill(peft.get_peft_model(plain(small_model), config))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits(theirs)
    assert (expected - logits(plain(small_model))).abs().max() > 0.01
    run = train(f"model.adapter={tmp_path / 'theirs'}", *UNTRAINED)
    torch.testing.assert_close(logits(model_of(run)), expected, atol=1e-5, rtol=0)
    assert export([str(run.path), "--as", "peft", "--out", str(tmp_path / "ours")]) == 0
    ours = peft.PeftModel.from_pretrained(plain(small_model), tmp_path / "ours")
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=0)


MAKE_BAD: dict[str, Callable[[Path], object]] = {
    "it lacks adapter_config.json": lambda folder: (folder / "adapter_config.json").unlink(),
    "cannot be used: .*tensors is .*damaged": lambda folder: (folder / "adapter.safetensors").write_bytes(b"none"),
}


@pytest.mark.parametrize("message", MAKE_BAD)
def test_bad_adapters_are_refused(train: Any, lora: Path, tmp_path: Path, message: str) -> None:
    bad = Path(shutil.copytree(lora, tmp_path / "bad"))
    MAKE_BAD[message](bad)
    with pytest.raises(UserError, match=f"model.adapter=.*{message}"):
        train(f"model.adapter={bad}", *UNTRAINED)
    assert not list(tmp_path.rglob("run.json"))


def test_an_adapter_of_other_weights_is_refused(train: Any, small_model: Path, lora: Path, tmp_path: Path) -> None:
    """Also that of a run which itself began with an adapter: its base is not model.name alone."""
    other = plain(small_model)
    other.transformer.wte.weight.data += 0.01
    rosa.save_adapter(rosa.inject(other, rosa.LoraConfig(rank=1)), tmp_path / "other")
    with pytest.raises(UserError, match=r"saved with another base model .*Give the model that it was made for"):
        train(f"model.adapter={tmp_path / 'other'}", *UNTRAINED)
    first = train(f"model.adapter={lora}", "fnmodel.name=lora", *UNTRAINED, "fnmodel.params.target_modules=[c_attn]")
    with pytest.raises(UserError, match=r"saved with another base model .*start_adapter: .*--as peft, and give that"):
        train(f"model.adapter={first.best}", *UNTRAINED)
    export([str(first.path), "--as", "peft", "--out", str(tmp_path / "both")])
    train(f"model.adapter={tmp_path / 'both'}", *UNTRAINED)


@pytest.mark.parametrize("moment", ["load_base", "description"])
def test_a_folder_that_changes_while_a_run_starts_is_refused(
    train: Any, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Rewritten before it is merged, or between that and the copy: the record would name what was not trained on."""
    from utils.training import launch, setup

    adapter = Path(shutil.copytree(lora, tmp_path / "adapter"))
    module: Any = setup if moment == "load_base" else launch
    original = getattr(module, moment)

    def rewrite_first(*arguments: Any) -> Any:
        with (adapter / "adapter_config.json").open("a") as file:
            file.write("\n")
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"was changed while it was loaded: give the"):
        patch.setattr(module, moment, rewrite_first)
        train(f"model.adapter={adapter}", *UNTRAINED)
    assert not [*tmp_path.rglob("run.json"), *tmp_path.rglob("*start_adapter")]
    assert train(f"model.adapter={adapter}", *UNTRAINED).inputs()["adapter"] == adapter_digest(adapter)
