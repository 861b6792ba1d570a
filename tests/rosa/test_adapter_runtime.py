"""Adapters in training: gradient checkpointing, autocast, compilation; and the time of the import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing

import rosa
from tests.rosa.cases import CASES, FAMILIES, Case, adapt, logits, make_optimizer, tokens, train_steps, trained

ROOT = Path(__file__).parents[2]
SOME = [case for case in CASES if case.name in ("rosa-random", "lora-bias")]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(case: Case, family: str) -> None:
    model = adapt(family, case.config)
    with torch.no_grad():  # LoRA's B of zero would hide A's gradient
        for layer in rosa.adapter_layers(model).values():
            layer.B.add_(0.1)
    expected = gradients(model)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    found = gradients(model)
    assert found.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_autocast_trains_float32_parameters(case: Case, family: str) -> None:
    model = adapt(family, case.config)
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = logits(model)
    assert rough.dtype == torch.bfloat16
    difference = (rough.float() - exact).abs().max() / exact.abs().max()
    assert 0 < difference < 0.05
    optimizer = make_optimizer(model)
    losses = train_steps(model, optimizer, steps=6, autocast=True)
    rosa.resample(model, 1, optimizer)
    losses += train_steps(model, optimizer, steps=2, autocast=True)
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in trained(model))
    assert losses[5] < losses[0] and losses[7] < losses[4]


def test_a_resample_under_autocast_is_done_in_full_precision() -> None:
    model = adapt("llama", rosa.RosaConfig(rank=4))
    before = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rosa.resample(model, 1)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rosa.merge(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


def test_a_compiled_model_stays_valid_over_a_resample() -> None:
    """Graphs are captured as in real compilation, without code generation, which takes a minute on a small machine."""
    model = adapt("gpt2", rosa.RosaConfig(rank=4))
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    optimizer = make_optimizer(model)
    batch, frames = tokens(), 0
    for number in (1, 2):
        model.train()
        compiled(input_ids=batch, labels=batch).loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        frames = frames or counter.frame_count
        expected = gradients(model)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)
        optimizer.step()
        optimizer.zero_grad()
        rosa.resample(compiled, number, optimizer)
    assert counter.frame_count == frames > 0  # nothing was compiled again
    assert list(rosa.adapter_layers(compiled)) == list(rosa.adapter_layers(model))


def test_the_package_is_typed_and_says_its_version() -> None:
    """Type checkers of a user's code see the types (PEP 561); the modules of the methods can be reached by name."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '\nversion = { attr = "rosa.__version__" }\n' in project
    assert f"\nversion: {rosa.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert '\nrosa = ["py.typed"]\n' in project and (ROOT / "rosa" / "py.typed").is_file()
    assert rosa.methods.lora.LoraConfig is rosa.LoraConfig and rosa.methods.rosa.RosaConfig is rosa.RosaConfig


IMPORT = """
import json, sys, time
import torch
from transformers.pytorch_utils import Conv1D
before, start = set(sys.modules), time.perf_counter()
import rosa
seconds = time.perf_counter() - start
new = sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
unwanted = ("hydra", "omegaconf", "datasets", "accelerate", "peft", "utils", "rosa.integrations")
loaded = [name for name in unwanted if name in sys.modules]
print(json.dumps({"seconds": seconds, "new": new, "loaded": loaded}))
"""


def test_the_import_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert set(result["new"]) <= {"rosa", "safetensors"}, result
    assert not result["loaded"], result
    assert result["seconds"] < 2, result  # about 0.05 s on an idle machine
