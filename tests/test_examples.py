"""The examples are short, run with their defaults on the bundled model, and what they write has learned its texts."""

from __future__ import annotations

import difflib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rosa
from utils.models.loading import BUNDLED

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs an example in this process, in an empty folder, and returns the folder."""
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *arguments: str) -> Path:
        torch.manual_seed(0)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return tmp_path

    return run_example


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(BUNDLED["tiny"], dtype=torch.float32)


@torch.no_grad()
def loss(model: Any) -> float:
    """The loss on the examples' texts, in nats per token."""
    texts = (EXAMPLES / "texts.txt").read_text(encoding="utf-8").splitlines()
    batch = AutoTokenizer.from_pretrained(BUNDLED["tiny"])(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return float(model.eval()(**batch, labels=labels).loss)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_has_a_line_in_the_readme(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 40
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["plain_loop.py", "trainer.py", "with_accelerate.py"])
def test_an_adapter_of_this_library_is_trained(name: str, run: Any) -> None:
    folder = run(name, "--epochs", "3")
    assert loss(rosa.load_adapter(base(), folder / "adapter")) < 0.6 * loss(base())


def test_peft_alone_serves_what_rosa_learned(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft")
    folder = run("serve_as_lora.py")
    assert "rank 16, for vLLM --max-lora-rank 16" in capsys.readouterr().out  # two subspaces of rank 4: at most 2 R K
    assert loss(peft.PeftModel.from_pretrained(base(), folder / "lora")) < 0.8 * loss(base())


@pytest.mark.parametrize("name", ["lora_with_peft.py", "rosa_with_peft.py"])
def test_an_adapter_of_peft_is_trained(name: str, run: Any, recwarn: pytest.WarningsRecorder) -> None:
    peft = pytest.importorskip("peft")
    assert loss(peft.PeftModel.from_pretrained(base(), run(name) / "adapter")) < 0.6 * loss(base())
    assert not [one for one in recwarn if "left the optimizer" in str(one.message)]


def test_three_lines_of_a_script_with_peft_change() -> None:
    lora, rosa_ = (
        [line for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines() if line]
        for name in ("lora_with_peft.py", "rosa_with_peft.py")
    )
    changes = [line for line in difflib.ndiff(lora, rosa_) if line[0] in "+-"]
    assert sum(line[0] == "+" for line in changes) == 3 and sum(line[0] == "-" for line in changes) == 1


def test_a_classifier_is_loaded_with_its_head(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    run("sequence_classification.py")
    assert "right: 1.0" in capsys.readouterr().out


def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells are plain Python, so that they run without Jupyter, whose packages would be the only reason for it."""
    monkeypatch.chdir(EXAMPLES)
    cells = json.loads((EXAMPLES / "rosa.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], f"cell {number} keeps an output"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
