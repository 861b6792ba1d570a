"""Nothing heavy is imported before it is needed: ``import rosa``, and what train.py does before it trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("datasets", "accelerate", "tensorboard", "matplotlib", "pandas", "nltk", "scipy", "sacrebleu", "peft")
LIBRARY = (
    *HEAVY,
    "hydra",
    "omegaconf",
    "utils",
    "transformers.modeling_utils",
    "transformers.models.gpt2",
    "torch._dynamo",
)
UNUSED = (
    "datasets",
    "matplotlib",
    "pandas",
    "nltk",
    "scipy",
    "sacrebleu",
    "torchvision",
    "onnxscript",
)  # by a training
COMMAND = (*HEAVY, "torch", "transformers", "numpy")  # before a configuration is known to be good

SCRIPT = """
import json, runpy, sys
names, target = json.loads(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]
try:
    if target.isidentifier():
        module = __import__(target)
        [getattr(module, name) for name in getattr(module, "__all__", ())]
    else:
        runpy.run_path(target, run_name="__main__")
except SystemExit:
    pass
print("loaded:", json.dumps([name for name in names if name in sys.modules]))
"""


def test_the_help_lists_the_experiments_and_explains_what_is_peculiar() -> None:
    text = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in ("experiment: e2e, eli5", "fnmodel.name is the method", "runs=3 trains the seeds 0, 1 and 2"):
        assert name in text


def loaded(names: tuple[str, ...], *arguments: str) -> list[str]:
    """Which of ``names`` a fresh process has imported after the use of a module's names, or a script with arguments."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(names), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("loaded:"), done.stdout
    return list(json.loads(line.removeprefix("loaded:")))


def test_the_probe_sees_imports() -> None:
    assert loaded(("json", "decimal", "datasets"), "decimal") == ["json", "decimal"]


def test_the_library_imports_nothing_of_experiments_or_models() -> None:
    assert loaded((*LIBRARY, "torch"), "rosa") == ["torch"]


@pytest.mark.parametrize(
    "arguments",
    [("train.py", "--help"), ("train.py", "--cfg", "job"), ("eval.py", "--help"), ("compile_results.py", "--help"),
     ("jobrunner.py", "--help")],
    ids=" ".join,
)  # fmt: skip
def test_commands_that_only_print_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded(COMMAND, *arguments) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.lrr=1",),
        ("+train.lrr=1", "train.epochs=-1", "fnmodel.rosa.every=0", "dataset.name=e2ee", "output.path="),
        ("fnmodel.rosa.sample_method=best",),
    ],
    ids=" ".join,
)
def test_a_typo_is_told_before_torch_is_imported(overrides: tuple[str, ...]) -> None:
    assert loaded(COMMAND, "train.py", *overrides) == []


def test_a_training_imports_nothing_of_data_hubs_scores_and_plots(tmp_path: Path) -> None:
    """From the command to the first validation and a checkpoint, on the bundled model and data."""
    overrides = ("model.name=tiny", "dataset.name=e2e_sample", "train.epochs=0", "train.device=cpu")
    assert loaded((*UNUSED, "torch"), "train.py", *overrides, f"output.path={tmp_path}") == ["torch"]
