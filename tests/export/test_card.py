"""What a model card says, beside what test_export.py finds in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from utils.config import load_config
from utils.export import card
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


def test_the_settings_do_not_claim_to_be_all(rosa_run: Run) -> None:
    """Keys that came later are left out at their default, such as fnmodel.rosa.start (``LATER`` of the identity)."""
    text = card.model_card(rosa_run, load_config(rosa_run.config_file), card.Exported("merged", "best", (), False))
    assert "without keys of later versions that are at their default:" in text and "start:" not in text
