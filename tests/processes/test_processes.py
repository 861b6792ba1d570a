"""Two processes (CPU, gloo) and one give the same losses and parameters; one process writes, all end together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rosa.files import SUBSPACE, read_checksums
from tests.conftest import make_config
from tests.processes import worker
from tests.processes.conftest import Lab
from tests.processes.worker import End, Job
from utils.io.files import lock
from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs import Run, find_runs
from utils.runs.identity import run_directory

METHODS = {  # SGD, unlike Adam, shows a gradient that is wrong by a factor
    "none": ("fnmodel.name=none", "train.optimizer=sgd", "train.lr=0.3"),
    "layers": ("fnmodel.name=none", "fnmodel.params.target_modules=all-linear", "train.optimizer=sgd", "train.lr=0.3"),
    "lora": ("fnmodel.name=lora", "train.lr=2e-2", "train.max_grad_norm=0.1", "logging.samples=1"),
    "relora": (
        "fnmodel.name=relora",
        "train.optimizer=sgd",
        "train.momentum=0.9",
        "train.lr=2",
        "fnmodel.relora.level=step",
        "fnmodel.relora.every=4",
        "fnmodel.relora.rewarm_steps=1",
        "fnmodel.relora.lr_ratio_b=4",
    ),
    "rosa": (
        "fnmodel.name=rosa",
        "train.optimizer=sgd",
        "train.lr=10",
        "fnmodel.rosa.level=step",
        "fnmodel.rosa.every=4",
    ),
    "one-sided": (
        "fnmodel.rosa.adapt=b",
        "fnmodel.rosa.basis=random",
        "fnmodel.rosa.level=step",
        "fnmodel.rosa.every=4",
        "fnmodel.rosa.optimizer_state=keep",
    ),
    "ia3": ("fnmodel.name=ia3", "train.optimizer=sgd", "train.lr=1000"),
}
DROPOUT = (
    "model.dropout=0.1", "logging.print_freq=4", "train.lr=1e-2", "train.micro_batch_size=2", "logging.samples=1",
)  # fmt: skip
PARTS = {method: "train.micro_batch_size=2" for method in METHODS} | {"none": "train.micro_batch_tokens=150"}
SHARDED = {
    "none": ("train.sharding=fsdp", "train.gradient_checkpointing=true"),
    "layers": ("train.sharding=fsdp",),
    "lora": ("train.sharding=fsdp", "train.micro_batch_tokens=150"),
    "relora": ("train.sharding=fsdp",),
    "rosa": ("train.sharding=fsdp", "train.micro_batch_size=2"),
    "one-sided": ("train.sharding=fsdp",),
    "ia3": ("train.sharding=fsdp",),
}
STOPPED = f"exit {EXIT_INTERRUPTED}"


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of the run's last checkpoint."""
    files = sorted(run.last.glob("*.safetensors"))
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


def subspaces(run: Run) -> list[str | None]:
    """The number of the subspace in each file of the run's last checkpoint."""
    found = []
    for path in sorted(run.last.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.append(read_checksums(file).get(SUBSPACE))
    return found


def points(run: Run, split: str, *names: str) -> list[list[float]]:
    return [[point[name] for name in names] for point in run.metrics(split)]


@pytest.fixture(scope="module")
def ends(lab: Lab) -> dict[str, list[End]]:
    """How each job ended on both processes. Jobs in a list run the same training several times."""
    jobs = {f"two-{method}": Job(lab.overrides(f"two-{method}", *more, PARTS[method]))
            for method, more in METHODS.items()}  # fmt: skip
    jobs |= {f"sharded-{method}": Job(lab.overrides(f"sharded-{method}", *more, *SHARDED[method]))
             for method, more in METHODS.items()}  # fmt: skip
    jobs["again"] = jobs["two-rosa"]
    jobs["whole"] = Job(lab.overrides("whole", *DROPOUT))
    halves = lab.overrides("halves", *DROPOUT)
    jobs["halves, stopped"] = Job(halves, happens="SIGUSR1", index=1, step=7)
    jobs["halves, validating"] = Job(halves, happens="SIGTERM", index=1, step=12, where="validation")
    jobs["halves, sampling"] = Job(halves, happens="SIGTERM", index=0, step=12, where="samples")
    jobs["halves, resumed"] = Job(halves)
    grown = lab.overrides("grown", *METHODS["rosa"], "logging.print_freq=2")
    assert worker.run(Job(grown, happens="SIGTERM", index=0, step=7)).how == STOPPED
    jobs["grown, resumed"] = Job([*grown, "train.sharding=fsdp"])
    shrunk = lab.overrides("shrunk", *METHODS["rosa"], "logging.print_freq=2")
    jobs["shrunk, stopped"] = Job([*shrunk, "train.sharding=fsdp"], happens="SIGTERM", index=0, step=6)
    jobs["bf16"] = Job(lab.overrides("bf16", *METHODS["rosa"], "train.sharding=fsdp", "train.precision=bf16"))
    jobs["dry"] = Job(lab.overrides("dry", *METHODS["rosa"], "train.sharding=fsdp", "dry_run=true"))
    jobs["nan"] = Job(lab.overrides("nan"), happens="nan", index=1, step=2)
    jobs["memory"] = Job(lab.overrides("memory", *METHODS["rosa"]), happens="memory", index=1, step=2)
    jobs["locked"] = Job(lab.overrides("locked"))
    jobs["seeds"] = Job(lab.overrides("seeds", "runs=2", "train.epochs=1"))
    held = run_directory(make_config(*lab.overrides("locked"), "train.precision=fp32"))
    held.mkdir(parents=True)
    with lock(held / ".train.lock", "trained"):
        return dict(zip(jobs, lab.together("plan", list(jobs.values())), strict=True))


@pytest.fixture(scope="module")
def single(lab: Lab) -> Callable[[str], Run]:
    """The run of a method in one process."""
    return functools.cache(lambda method: alone(lab, f"one-{method}", *METHODS[method]))


def alone(lab: Lab, name: str, *overrides: str) -> Run:
    assert worker.run(Job(lab.overrides(name, *overrides))).how == "finished"
    return lab.run(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("placement", ["two", "sharded"])
def test_two_processes_equal_one(lab: Lab, ends: Any, single: Any, placement: str, method: str) -> None:
    """Compares every logged loss and gradient norm, the validation losses, the parameters and the files.

    Batches have 13 samples, the last one 5, in micro-batches of 2 or of 150 tokens (1 to 3 samples): shares differ, and
    some passes have no sample.
    """
    assert [end.how for end in ends[f"{placement}-{method}"]] == ["finished"] * 2
    one, two = single(method), lab.run(f"{placement}-{method}")
    assert (one.record()["hardware"]["processes"], two.record()["hardware"]["processes"]) == (1, 2)
    for split, names in (("train", ("step", "loss", "grad_norm", "lr")), ("validation", ("step", "loss", "loss_all"))):
        expected = torch.tensor(points(one, split, *names))
        torch.testing.assert_close(torch.tensor(points(two, split, *names)), expected, rtol=1e-5, atol=1e-6)
    assert points(one, "resample", "step", "number") == points(two, "resample", "step", "number")
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-5)
    assert subspaces(two) == subspaces(one)
    moved = points(one, "validation", "loss")
    assert moved[-1][0] < moved[0][0] - 0.03  # else equality would prove nothing


@pytest.mark.parametrize("method", METHODS)
def test_both_processes_hold_the_same_values(ends: Any, method: str) -> None:
    """W_f, A and B are the same to the bit, also after resamples."""
    first, second = ends[f"two-{method}"]
    assert first.values and first.values == second.values
    assert first.share == second.share == 1


@pytest.mark.parametrize("method", METHODS)
def test_sharded_processes_hold_half_each(ends: Any, method: str) -> None:
    first, second = ends[f"sharded-{method}"]
    assert first.values and first.values == second.values
    assert (first.share, second.share) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_only_one_process_writes(lab: Lab, ends: Any, single: Any) -> None:
    one, two = single("rosa"), lab.run("two-rosa")
    names = [sorted(str(p.relative_to(run.path)) for p in run.path.iterdir() if "tfevents" not in p.name)
             for run in (one, two)]  # fmt: skip
    assert names[0] == names[1]
    assert len(list(two.path.glob("*tfevents*"))) == len(list(one.path.glob("*tfevents*")))
    assert [line.split()[3:6] for line in one.log_file.read_text().splitlines() if " epoch " in line] == [
        line.split()[3:6] for line in two.log_file.read_text().splitlines() if " epoch " in line
    ]


def test_a_finished_run_is_left_alone_by_both(ends: Any) -> None:
    assert [(end.how, end.values) for end in ends["again"]] == [("finished", {})] * 2


def test_a_signal_to_one_process_stops_both_and_the_resume_is_exact(lab: Lab, ends: Any) -> None:
    """The signal comes in training, in a validation, or while the main process generates sample texts.

    Dropout is on: each process resumes its own random numbers, and the losses since the last logging point.
    """
    for name in ("stopped", "validating", "sampling"):
        assert [end.how for end in ends[f"halves, {name}"]] == [STOPPED] * 2
    assert [end.how for end in ends["halves, resumed"]] == ["finished"] * 2
    whole, halves = lab.run("whole"), lab.run("halves")
    log = halves.log_file.read_text()
    assert log.count("interrupted by SIGUSR1 at step 8") == 1
    assert "resumed from step-00000008: epoch 1.33, step 8" in log  # votes are read a step later
    assert log.count("interrupted by SIGTERM at step 12") == 2
    first, second = weights(whole), weights(halves)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for split in ("train", "validation"):
        assert points(whole, split, "step", "loss") == points(halves, split, "step", "loss")
    assert ends["whole"][0].values == ends["halves, resumed"][0].values


@pytest.mark.parametrize("name", ["grown", "shrunk"])
def test_a_run_goes_on_with_another_number_of_processes(lab: Lab, ends: Any, name: str) -> None:
    """From one process to two that shard the model, and back."""
    overrides = (*METHODS["rosa"], "logging.print_freq=2")
    if name == "grown":
        assert [end.how for end in ends["grown, resumed"]] == ["finished"] * 2
        other = lab.run(name)
    else:
        assert [end.how for end in ends["shrunk, stopped"]] == [STOPPED] * 2
        other = alone(lab, name, *overrides)
    one = alone(lab, f"reference-{name}", *overrides)
    assert "going on with" in other.log_file.read_text()
    expected = torch.tensor(points(one, "train", "step", "loss"))
    torch.testing.assert_close(torch.tensor(points(other, "train", "step", "loss")), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(other), weights(one), rtol=1e-4, atol=1e-5)


def test_a_dry_run_tries_a_sharded_model(lab: Lab, ends: Any) -> None:
    assert [end.how for end in ends["dry"]] == ["finished"] * 2
    assert not (lab.folder / "dry").exists()


def test_a_loss_that_is_not_finite_ends_both(lab: Lab, ends: Any) -> None:
    main, other = (end.how for end in ends["nan"])
    assert main.startswith("Diverged: the training loss is nan at step")
    assert other.startswith("EchoedError: ")
    assert lab.run("nan").record()["status"] == "failed"


def test_a_resample_that_fails_on_one_process_is_no_divergence(lab: Lab, ends: Any) -> None:
    """A search takes a divergence for the result of a trial."""
    main, other = (end.how for end in ends["memory"])
    assert main.startswith("UserError: another process of this job ended")
    assert other.startswith("UserError: out of memory at step ")
    record = lab.run("memory").record()
    assert (record["status"], record["diverged"]) == ("failed", False)


def test_a_refused_lock_ends_both(ends: Any) -> None:
    main, other = (end.how for end in ends["locked"])
    assert main.startswith("UserError: ") and "already being trained by process" in main
    assert other.startswith("EchoedError: ")


def test_several_seeds_in_one_job(lab: Lab, ends: Any) -> None:
    assert [end.how for end in ends["seeds"]] == ["finished"] * 2
    records = [run.record() for run in find_runs([lab.folder / "seeds"])]
    assert sorted((record["seed"], record["status"]) for record in records) == [(0, "finished"), (1, "finished")]


def test_sharded_training_in_bfloat16(lab: Lab, ends: Any, single: Any) -> None:
    """The losses are close to those in float32, but not equal; the stored weights stay float32."""
    assert [end.how for end in ends["bf16"]] == ["finished"] * 2
    run, full = lab.run("bf16"), single("rosa")
    losses, expected = (torch.tensor(points(r, "train", "loss")) for r in (run, full))
    assert run.record()["hardware"]["precision"] == "bf16"
    assert 1e-5 < (losses - expected).abs().max() < 0.05
    assert {values.dtype for values in weights(run).values()} == {torch.float32}
