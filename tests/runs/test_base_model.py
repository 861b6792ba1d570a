"""The base model of a run: its files have digests in the record, and a run goes on from no others."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.training.reading import stopped_at
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.generation.decoding import Decoding

QUICK = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu")


def shifted(weights: Path, target: Path) -> None:
    """Write ``weights`` to ``target`` with every number .02 larger."""
    save_file({name: value + 0.02 for name, value in load_file(weights).items()}, target, metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["lora", "rosa", "none"])
def test_another_base_in_the_models_folder_is_refused(
    train: Any, small_model: Path, tmp_path: Path, method: str
) -> None:
    """By the resume, by the evaluation, and by the command of the finished run."""
    base = tmp_path / "base"
    shutil.copytree(small_model, base)
    used, original = base / "model.safetensors", small_model / "model.safetensors"
    settings = (f"model.name={base}", f"fnmodel.name={method}", "train.epochs=2")
    with stopped_at(5):
        train(*settings)
    shifted(original, used)
    with pytest.raises(UserError, match=r"was made from another base model: model\.safetensors in model\.name="):
        train(*settings)
    shutil.copy(original, used)
    run = train(*settings)
    assert run.record()["status"] == "finished"
    shifted(original, used)
    for again in (lambda: train(*settings), lambda: evaluate_run(run, QUICK)):
        with pytest.raises(UserError, match=r"was made from another base model: model\.safetensors"):
            again()
    run.update_record(base_sha256=None)  # as in records of earlier versions: an adapter knows its base by itself
    with pytest.raises(UserError, match=r"back to model\.name's folder") if method != "none" else nullcontext():
        evaluate_run(run, QUICK)


def test_another_tokenizer_is_refused_and_new_files_are_not(train: Any, small_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_model, base)
    run = train(f"model.name={base}", "train.epochs=1")
    (base / "README.md").write_text("written later")
    evaluate_run(run, QUICK)
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace('"a"', '"~"', 1))
    with pytest.raises(UserError, match=r"another base model: tokenizer\.json in model\.name="):
        evaluate_run(run, dataclasses.replace(QUICK, force=True))


def test_another_version_of_a_model_of_the_hub_is_refused(
    train: Any, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache of a model, which its owner then replaces: first its page, then its weights."""
    cache = tmp_path / "models--someone--small"
    versions = [cache / "snapshots" / (digit * 40) for digit in "abc"]
    for version in versions:
        shutil.copytree(small_model, version)
    (versions[1] / "README.md").write_text("new")
    shifted(small_model / "model.safetensors", versions[2] / "model.safetensors")
    main = cache / "refs" / "main"
    main.parent.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    main.write_text(versions[0].name)
    with stopped_at(5):
        train("model.name=someone/small", "train.epochs=2")
    main.write_text(versions[2].name)
    with pytest.raises(UserError, match=r"was made from another base model: model\.safetensors in model\.name=someone"):
        train("model.name=someone/small", "train.epochs=2")
    main.write_text(versions[1].name)
    run = train("model.name=someone/small", "train.epochs=2")
    assert run.record()["status"] == "finished" and "model.safetensors" in run.record()["base_sha256"]
    main.write_text(versions[2].name)
    with pytest.raises(UserError, match=r"was made from another base model: model\.safetensors"):
        evaluate_run(run, QUICK)
