"""What a training warns of: settings that leave it without its method, keys without effect, shared samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from utils.data import known_samples, pair
from utils.training import loop, setup


def test_trained_parameters_without_a_gradient_are_named(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the layers of an image model's tower, which a text never reaches."""
    run = train("fnmodel.name=lora", "train.epochs=1")
    assert "get no gradient" not in run.log_file.read_text()
    plain = setup.load_base

    def with_tower(*args: Any) -> Any:
        model = plain(*args)
        model.tower = torch.nn.ModuleList([torch.nn.Linear(32, 32)])
        return model

    monkeypatch.setattr(setup, "load_base", with_tower)
    run = train("fnmodel.name=lora", "train.epochs=1", "seed=1")
    assert "2 of 18 trained parameters get no gradient, though they are counted: tower.0.A" in run.log_file.read_text()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ("train.epochs=1",),
            "rosa never resamples here: of 5 steps, a resample would come after 5 (fnmodel.rosa.level",
        ),
        (("fnmodel.params.bias=none", "train.weight_decay=0.5"), "train.weight_decay decays nothing"),
        (("train.batch_size=71",), "train.batch_size=71: an epoch is one batch of 70 samples"),
        (("fnmodel.rosa.level=step", "fnmodel.rosa.every=500"), "of 15 steps, a resample would come after 500"),
        (
            ("fnmodel.name=lora", "train.epochs=1", "train.batch_size=1", "train.epochs=8"),
            "the warm-up of 500 steps is more",
        ),
    ],
)
def test_settings_that_leave_a_run_without_its_method_are_named(
    train: Any, overrides: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_epoch", lambda training, bar: None)
    assert text in train(*overrides).log_file.read_text()


def test_a_run_as_it_should_be_gets_no_warning(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log = train("train.weight_decay=0.5").log_file.read_text()  # of biases
    assert "never resamples" not in log and "warm-up" not in log and "decays nothing" not in log
    assert "without effect" not in capsys.readouterr().err


def test_keys_without_effect_are_named(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train("fnmodel.name=dora", "fnmodel.lora.alpha=64", "train.block_size=99", "train.epochs=1")
    said = capsys.readouterr().err
    assert "without effect with fnmodel.name=dora and dataset.name=e2e: fnmodel.lora.alpha, train.block_size" in said
    train("fnmodel.rosa.level=never", "fnmodel.rosa.every=50", "fnmodel.rosa.sample_method=top", "train.epochs=1")
    assert "fnmodel.name=rosa (level=never) and dataset.name=e2e: fnmodel.rosa.every\n" in capsys.readouterr().err
    train("fnmodel.name=lora", "fnmodel.rosa.rewarm_steps=3", "fnmodel.rosa.decay=true", "runs=2", "train.epochs=0")
    assert "lora and dataset.name=e2e: fnmodel.rosa.rewarm_steps, fnmodel.rosa.decay\n" in capsys.readouterr().err
    train("fnmodel.rosa.decay=true", "train.epochs=0")
    assert "without effect" not in capsys.readouterr().err
    train("fnmodel.name=none", "fnmodel.params.rank=4", "fnmodel.params.bias=none", "train.epochs=1")
    assert "none and dataset.name=e2e: fnmodel.params.bias, fnmodel.params.rank\n" in capsys.readouterr().err


def test_validation_samples_that_are_training_samples_are_named(train: Any, tmp_path: Path, caplog: Any) -> None:
    for split, count in (("train", 20), ("validation", 2), ("test", 2)):
        lines = (json.dumps({"prompt": f"name[{i}]", "target": " \n A pub."}) for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    run = train("dataset.name=pairs", f"dataset.path={tmp_path}", "train.epochs=1", "fnmodel.name=lora")
    assert "2 of 2 validation samples are training samples too" in run.log_file.read_text()
    assert "train.jsonl: 20 of 20 targets lose the blanks or line breaks before them" in caplog.text


def test_prompts_that_are_known_with_another_target_are_counted() -> None:
    """As in data with several targets for a prompt that were split by lines. A prompt that all share says nothing."""
    training = [pair(f"Name {i}?", "A pub.") for i in range(4)]
    new = [pair("name 0?", "A pub."), pair("Name  1?", "A bar."), pair("Name 2?", "A pub."), pair("Name 9?", "A pub.")]
    assert known_samples(new, training, "test") == (
        "1 of 4 test samples are training samples too, and 3 of 4 test samples have the prompt of a training sample"
    )
    assert known_samples(new[3:], training, "test") == known_samples([pair("a", "b")], [pair("a", "c")], "test") == ""


def test_texts_that_end_within_are_named(train: Any, small_model: Path, tmp_path: Path) -> None:
    """Unigram models, such as XGLM's, have </s> among the pieces of plain text."""
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    pieces = Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -3.0), *((c, -4.0) for c in "</s>")], 0)
    own_tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(pieces), unk_token="<unk>", eos_token="</s>")
    own_tokenizer.save_pretrained(model)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text("prompt,target\na,a</s>a\n<s>,aa\n")
    own = ("dataset.name=pairs", f"dataset.path={tmp_path}", "train.epochs=0", "fnmodel.name=lora")
    log = train(f"model.name={model}", *own).log_file.read_text()
    assert "2 of 8 prompts and targets spell </s>, which this tokenizer reads as the end" in log
    assert "2 of 8" not in train(*own).log_file.read_text()
