"""What a model card says, beside what test_export.py finds in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from utils.config.settings import load_config
from utils.evaluation import Options, evaluate_run
from utils.export import card
from utils.export.__main__ import main
from utils.generation.decoding import Decoding
from utils.models.gguf import gguf_options
from utils.results.read import read_results
from utils.runs import Run


@pytest.mark.parametrize("form", ["peft", "adapter"])
@pytest.mark.parametrize("newer", [True, False])
def test_the_code_unpacks_a_gguf_base(rosa_run: Run, monkeypatch: pytest.MonkeyPatch, form: str, newer: bool) -> None:
    """With the argument that utils/models/gguf.py gives itself, which only newer versions of transformers have."""
    if newer and not gguf_options():
        pytest.skip("this version of transformers always unpacks GGUF files")
    if not newer:
        monkeypatch.setattr(card, "gguf_options", dict)
    config = load_config(rosa_run.config_file)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, gguf_file="small.gguf"))
    lines = card._code(form, "base", config, read_results([rosa_run.path])[0][0])
    given: dict[str, Any] = {}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda _, **options: given.update(options))
    exec("\n".join(line for line in lines if not line.startswith(("model =", "from peft"))), {})
    assert given["gguf_file"] == "small.gguf" and ("quantization_config" in given) == newer
    assert not newer or given["quantization_config"].dequantize


def test_the_loss_is_that_of_the_exported_checkpoint(rosa_run: Run, tmp_path: Path) -> None:
    """Also when a training that goes on has recorded another one meanwhile, or saved between two validations."""
    loss = rosa_run.record()["best"]["loss"]
    run = Run(Path(shutil.copytree(rosa_run.path, tmp_path / "run", symlinks=True)))
    run.update_record(best={**run.record()["best"], "loss": 9.87654})
    config, exported = load_config(run.config_file), card.Exported("merged", "best", run.best, (), False)
    text = card.model_card(run, config, exported)
    assert f"| {loss:.4f} |" in text and "9.8765" not in text
    state = json.loads((run.best / "state.json").read_text())
    state["progress"]["step"] += 1
    (run.best / "state.json").write_text(json.dumps(state))
    assert f"{loss:.4f}" not in card.model_card(run, config, exported)


def test_a_merged_model_decodes_as_the_texts_on_its_card(rosa_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(rosa_run.path, tmp_path / "run"))
    evaluate_run(run, Options(limit=1, device="cpu", decoding=Decoding(num_beams=1, no_repeat_ngram_size=0)))
    merged = tmp_path / "merged"
    assert main([str(run.path), "--out", str(merged), "--as", "merged"]) == 0
    assert "no_repeat_ngram_size=0" in (merged / "README.md").read_text()
    found = json.loads((merged / "generation_config.json").read_text())
    assert found.get("no_repeat_ngram_size", 0) == 0 and found.get("num_beams", 1) == 1
