"""LoRA folders of both ways load in a process that has PEFT, but not this library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rosa
from tests.rosa.cases import logits, make_model, make_optimizer, tokens, train_steps

pytest.importorskip("peft")

from tests.rosa.peft_models import trained

ALONE = """
import sys
sys.modules["rosa"] = None  # an import of it raises ImportError
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, ids, found, *folders = sys.argv[1:]
logits = []
for folder in folders:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        logits.append(model(torch.load(ids, weights_only=True)).logits)
torch.save(logits, found)
"""


def test_folders_load_where_only_peft_is(tmp_path: Path) -> None:
    from rosa.integrations.peft import save_as_lora, to_peft_lora

    make_model("gpt2").save_pretrained(tmp_path / "base")
    by_peft = trained("gpt2", resamples=1, r=1)
    save_as_lora(tmp_path / "by-peft", by_peft)
    injected = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=1, bias="none"))
    train_steps(injected, make_optimizer(injected), 2)
    to_peft_lora(injected, make_model("gpt2"), tmp_path / "injected")
    torch.save(tokens(), tmp_path / "ids")
    names = ("base", "ids", "found", "by-peft", "injected")
    words = [sys.executable, "-c", ALONE, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for found, model in zip(torch.load(tmp_path / "found", weights_only=True), (by_peft, injected), strict=True):
        torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=0)
        assert (found - logits(make_model("gpt2"))).abs().max() > 1e-3
