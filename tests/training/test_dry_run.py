"""``dry_run=true``: counted bytes, the measured peak, estimated time, and that nothing is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rosa.schedule import count_resamples
from tests.conftest import ROOT
from utils.errors import UserError
from utils.training import dry_run, launch
from utils.training.dry_run import SavedTensors, duration, spread

FLOAT = 4  # bytes


@pytest.fixture
def trial(train: Any, monkeypatch: Any, tmp_path: Path) -> Any:
    """A function that makes a dry run with overrides and returns its training and estimate."""

    def run(*overrides: str) -> tuple[Any, dry_run.Estimate]:
        found: list[Any] = []
        monkeypatch.setattr(launch, "report", lambda *arguments: found.append(arguments) or "")
        train("dry_run=true", *overrides)
        assert not (tmp_path / "runs").exists()
        return found[0]

    return run


@pytest.mark.parametrize("method", ["rosa", "rosa fnmodel.rosa.adapt=b", "lora", "none", "bitfit"])
def test_parts_are_the_bytes_that_training_holds(trial: Any, small_model: Path, method: str) -> None:
    from transformers import GPT2LMHeadModel

    training, found = trial(*f"fnmodel.name={method}".split())
    plain = GPT2LMHeadModel.from_pretrained(small_model)
    weights = sum(tensor.nbytes for tensor in (*plain.parameters(), *plain.buffers()))
    m, n = (sum(layer.weight.shape[i] for layer in find_layers(plain)) for i in (0, 1))  # Conv1D: inputs, outputs
    pair = FLOAT * 4 * (m + n) if method[:4] in ("rosa", "lora") else 0  # rank 4
    bias = FLOAT * n if method[:4] in ("rosa", "bitf") else 0
    gradients = {"none": weights, "rosa fnmodel.rosa.adapt=b": FLOAT * 4 * n + bias}.get(method, pair + bias)
    parameters = len(training.trained_parameters())
    numbers = 8 * len(find_layers(plain)) if method[:4] == "rosa" else 0  # of each layer's subspace
    expected = {"weights": weights, "adapters": pair + numbers, "gradients": gradients}
    expected["optimizer"] = 2 * gradients + FLOAT * parameters  # AdamW: two moments, and a count of steps for each
    got = {part: round(mib * 2**20) for part, mib in found.memory.items() if part != "activations"}
    assert got == expected


def find_layers(model: Any) -> list[Any]:
    from transformers.pytorch_utils import Conv1D

    return [module for module in model.modules() if isinstance(module, Conv1D)]


def test_kept_outputs_of_frozen_blocks_are_counted_and_the_first_epoch_computes_them(trial: Any) -> None:
    """12 validation samples are among no training samples; a token takes 32 numbers."""
    last = ("fnmodel.name=lora", "fnmodel.params.target_modules=[h.1.mlp.c_fc]", "model.dropout=0")
    training, found = trial(*last, "train.cache_frozen=true", "train.epochs=3")
    samples = {tuple(s.ids) for part in (training.data.train, training.data.validation) for s in part.samples}
    assert round(found.memory["kept outputs"] * 2**20) == FLOAT * 32 * sum(map(len, samples))
    assert found.samples_per_second == pytest.approx(3 * len(training.data.train) / found.seconds["training"])
    _, plain = trial(*last)
    assert "kept outputs" not in plain.memory


def test_counted_gradients_and_state_are_there_in_a_step(trial: Any) -> None:
    training, found = trial("fnmodel.name=rosa", "train.optimizer=sgd", "train.momentum=0.9")
    training.token_loss.zero_grad()
    rows = torch.arange(1, 13).view(1, 12)
    training.token_loss(rows, torch.arange(4, 9), rows[0, 5:10])[0].backward()
    held = sum(p.grad.nbytes for p in training.model.parameters() if p.grad is not None)
    assert held == round(found.memory["gradients"] * 2**20) == round(found.memory["optimizer"] * 2**20)


def test_kept_tensors_are_counted_once_and_while_they_are_kept() -> None:
    layer = torch.nn.Linear(10, 10, bias=False)
    x = torch.ones(5, 10)
    saved = SavedTensors(layer)
    with saved:
        for _ in range(3):  # the graph of each pass is gone before the next
            hidden = layer(x)  # keeps x; the weight is the model's own
            loss = (hidden.exp() * hidden).sum()  # keeps exp's output (twice) and hidden
            assert saved.peak == FLOAT * 150
            loss.backward()
            del hidden, loss
    assert saved.peak == FLOAT * 150
    reference = torch.nn.Linear(10, 10, bias=False)
    reference.load_state_dict(layer.state_dict())
    for _ in range(3):
        hidden = reference(x)
        (hidden.exp() * hidden).sum().backward()
    assert torch.equal(layer.weight.grad, reference.weight.grad)


def test_activations_follow_the_micro_batch(trial: Any) -> None:
    whole, half = (
        trial("train.batch_size=16", "train.sort_window=0", *more)[1].memory["activations"]
        for more in ((), ("train.micro_batch_size=4",))
    )
    assert 0.2 * whole < half < 0.4 * whole


@pytest.mark.parametrize(
    "method", ["rosa fnmodel.rosa.level=step fnmodel.rosa.every=4", "rosa fnmodel.rosa.every=2", "lora"]
)
def test_the_planned_resamples_are_those_of_the_run(trial: Any, train: Any, method: str) -> None:
    overrides = f"fnmodel.name={method} train.epochs=4".split()
    training, found = trial(*overrides)
    planned = count_resamples(training.resampler, 4, training.total_steps)
    assert planned == train(*overrides).record()["timings"]["resamples"]
    assert ("resampling" in found.seconds) == (planned > 0)


def test_a_dry_run_prints_all_of_it_and_writes_nothing(small_model: Path, tmp_path: Path) -> None:
    """By the command, with a folder of runs that stays as it was."""
    done = command(
        "dry_run=true", f"model.name={small_model}", "train.epochs=2", "train.batch_size=16", f"output.path={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    lines = dict(
        re.findall(r"^(weights|adapters|gradients|optimizer|activations|expected peak) +([\d.,]+)$", done.stdout, re.M)
    )
    assert len(lines) == 6
    assert re.search(r"trainable [\d,]+ of [\d,]+ parameters", done.stdout)
    assert re.search(r"samples/s in 6 trial steps: about .* for 2 epochs of 2,000 samples", done.stdout)
    assert not any(tmp_path.iterdir())


def test_a_run_without_epochs_has_nothing_to_try(train: Any) -> None:
    with pytest.raises(UserError, match=r"train\.epochs=0 leaves dry_run=true no step"):
        train("dry_run=true", "train.epochs=0")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (245, "4 min 5 s"),
        (12_000, "3 h 20 min"),
        (7_199, "2 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_spread_has_both_ends() -> None:
    assert [spread(range(n), 4) for n in (1, 3, 10)] == [[0], [0, 1, 2], [0, 3, 6, 9]]


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", "dataset.name=e2e_sample", "train.device=cpu", *overrides],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


TRAINED = """
import resource, sys
from tests.conftest import make_config
from utils.training import launch

def set_up(*arguments):
    pages = int(open("/proc/self/statm").read().split()[1])
    start.append(pages * resource.getpagesize() / 2**20)
    return original(*arguments)

start, original, launch.set_up = [], launch.set_up, set_up
launch.train_all(make_config(*sys.argv[1:]), [])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - start[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("method", ["rosa", "none"])
def test_the_expected_peak_is_that_of_the_run(method: str, tmp_path: Path) -> None:
    """On the bundled model, in fresh processes, from the set-up on, when the libraries are there."""
    overrides = ["dataset.name=e2e_sample", "model.name=tiny", "train.device=cpu", f"fnmodel.name={method}"]
    overrides += ["train.batch_size=128", "train.epochs=2", "train.fraction=0.3", f"output.path={tmp_path}"]
    done = command("dry_run=true", *overrides)
    expected = float(re.search(r"expected peak +([\d.,]+)", done.stdout)[1].replace(",", ""))
    run = subprocess.run([sys.executable, "-c", TRAINED, *overrides], cwd=ROOT, capture_output=True, text=True)
    measured = float(run.stdout.splitlines()[-1])
    assert 0.8 * measured < expected < 1.2 * measured, (expected, measured)
