"""Checkpoints: a resumed training equals an undisturbed one, and damage is found."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tests.training.reading import only_run, points, stopped_at, weights
from utils import prompt
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.export.write import Options as ExportOptions
from utils.export.write import export_run
from utils.generation.decoding import Decoding
from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs import Run, checkpoints, find_runs
from utils.runs.checkpoint_folder import OtherRun
from utils.training import loop, record

METHODS = ("rosa", "lora", "dora", "none", "ia3", "bitfit")
OPTIONS = (
    "relora fnmodel.relora.rewarm_steps=3",
    "rosa fnmodel.rosa.adapt=b fnmodel.rosa.optimizer_state=keep fnmodel.rosa.rewarm_steps=4",
    "rosa fnmodel.rosa.basis=random fnmodel.rosa.start=zero fnmodel.rosa.decay=true",
)


@pytest.mark.parametrize("method", METHODS + OPTIONS)
@pytest.mark.filterwarnings("error:rewarm_steps")  # the first thing of a resume at an epoch's end is a resample
def test_resumed_equals_undisturbed(train: Any, monkeypatch: Any, tmp_path: Path, method: str) -> None:
    """Stops within an epoch, at an epoch's last step, and after a resample; dropout is 0.1."""
    settings = f"fnmodel.name={method}".split()
    whole = train(*settings, f"output.path={tmp_path / 'whole'}")
    original = loop.train_step

    for stop_at in (3, 5, 8):

        def stopping(training: Any, *arguments: Any, stop_at: int = stop_at, **options: Any) -> Any:
            result = original(training, *arguments, **options)
            if training.progress.step + 1 == stop_at:
                training.stop.signal = "SIGTERM"
            return result

        overrides = (*settings, f"output.path={tmp_path / f'stopped-{stop_at}'}")
        monkeypatch.setattr(loop, "train_step", stopping)
        with pytest.raises(SystemExit) as stopped:
            train(*overrides)
        assert stopped.value.code == EXIT_INTERRUPTED
        monkeypatch.setattr(loop, "train_step", original)
        _check_equal(whole, train(*overrides))


def _check_equal(whole: Run, halves: Run) -> None:
    assert halves.record()["status"] == "finished"
    first, second = weights(whole.last), weights(halves.last)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for split, names in (("train", ("step", "loss", "lr")), ("validation", ("step", "loss")), ("resample", ("step",))):
        assert points(whole, split, *names) == points(halves, split, *names)


def test_a_damaged_checkpoint_is_passed_over_and_named(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", _fail_at_epoch(3))
        with pytest.raises(RuntimeError):
            train("train.save_every=1")
    run = only_run(tmp_path)
    assert run.record()["status"] == "failed"
    damaged = run.last / "adapter.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    resumed = train("train.save_every=1")
    assert "adapter.safetensors is damaged" in resumed.log_file.read_text()
    assert "resumed from" in resumed.log_file.read_text()
    assert resumed.record()["status"] == "finished"


def test_without_one_complete_checkpoint_a_run_refuses_to_start_over(
    train: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", _fail_at_epoch(2))
        with pytest.raises(RuntimeError):
            train()
    run = only_run(tmp_path)
    for path in run.checkpoints.glob("step-*/state.pt"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint .* is complete"):
        train()


def _fail_at_epoch(epoch: int) -> Any:
    original = loop.validate

    def validate(training: Any) -> bool:
        if training.progress.epoch == epoch:
            raise RuntimeError("planted")
        return original(training)

    return validate


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        SafetensorError("Error while serializing: I/O error: Cannot allocate memory (os error 12)"),
    ],
)
def test_no_memory_for_a_checkpoint_is_not_a_full_disk(
    train: Any, monkeypatch: Any, tmp_path: Path, error: Any
) -> None:
    def save(*_: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints.torch, "save", save)
    with pytest.raises(UserError, match="out of memory while the checkpoint of step 5 is written") as caught:
        train("train.epochs=1")
    assert "disk" not in str(caught.value) and "make room" not in str(caught.value)
    assert not list(only_run(tmp_path).checkpoints.iterdir())


def test_the_record_has_every_start_and_the_last_one_decides(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "git_commit", lambda: "a" * 40)
    with stopped_at(5):
        train("train.epochs=2")
    monkeypatch.setattr(record, "git_commit", lambda: "b" * 40)
    run = train("train.epochs=2")
    found = run.record()
    assert [start["git_commit"][0] for start in found["starts"]] == ["a", "b"] and found["git_commit"] == "b" * 40
    assert [start["step"] for start in found["starts"]] == [0, 5]
    assert "goes on with other git_commit than it was begun with" in run.log_file.read_text()


def test_a_resumed_run_has_the_highest_peak_of_its_processes(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reached in training, after the record was first written."""
    peaks = itertools.chain([100.0], itertools.repeat(200.0))
    monkeypatch.setattr(record, "peak_memory_mib", lambda device: next(peaks))
    with stopped_at(3):
        train("train.epochs=1")
    monkeypatch.setattr(record, "peak_memory_mib", lambda device: 50.0)
    assert train("train.epochs=1").record()["timings"]["peak_memory_mib"] == 200.0


@pytest.mark.parametrize("keep_last", [True, False])
def test_a_finished_run_gets_the_links_again_that_a_copy_left_out(train: Any, keep_last: bool) -> None:
    """Without them nothing is known to be the best, and nothing must be removed as something else."""
    overrides = ("train.epochs=2", f"train.keep_last={keep_last}")
    run = train(*overrides)
    links = [link for link in (run.best, run.last) if link.exists()]
    before, best = [link.resolve() for link in links], run.best.resolve()
    assert len(links) == 1 + keep_last
    for link in links:
        link.unlink()
    train(*overrides)
    assert [link.resolve() for link in links] == before
    for link in links:
        link.unlink()
    (best / "state.json").write_text("{}")  # a damaged one is left as it is
    train(*overrides)
    assert best.is_dir() and not run.best.exists()


def test_a_run_without_its_checkpoints_says_that_it_begins_again(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", _fail_at_epoch(3))
        with pytest.raises(RuntimeError):
            train()
    run = only_run(tmp_path)
    shutil.rmtree(run.checkpoints)
    train()
    assert "of which there is no checkpoint: it begins again" in run.log_file.read_text()


def test_a_checkpoint_of_another_run_is_refused(train: Any, tmp_path: Path) -> None:
    """By a resume, also without the record, and by all that loads a finished run's model; a record likewise."""
    for seed in ("0", "1"):
        with stopped_at(3):
            train(f"seed={seed}")
    first, second = find_runs([tmp_path / "runs"])
    shutil.rmtree(first.checkpoints)
    shutil.copytree(second.checkpoints, first.checkpoints, symlinks=True)
    record = first.record_file.read_text()
    for missing in (False, True):
        first.record_file.unlink() if missing else None
        with pytest.raises(OtherRun, match=r"step-00000003 belongs to .* seed 1, .* not to .* seed 0, "):
            train("seed=0")
    first.record_file.write_text(record)
    shutil.rmtree(first.checkpoints)
    finished, other = train("seed=0"), train("seed=1")

    shutil.copytree(finished.checkpoints, tmp_path / "own", symlinks=True)
    shutil.rmtree(finished.checkpoints)
    shutil.copytree(other.checkpoints, finished.checkpoints, symlinks=True)
    decoding = Decoding(num_beams=1, max_new_tokens=4)
    loads = (
        lambda: evaluate_run(finished, Options(decoding=decoding, device="cpu")),
        lambda: list(prompt.continuations(
            str(finished.path), ["a"], decoding, raw=True, checkpoint="best", batch_size=1, device="cpu",
            precision="fp32",
        )),
        lambda: export_run(finished, ExportOptions("merged")),
    )  # fmt: skip
    for load in loads:
        with pytest.raises(OtherRun, match=r"belongs to another run .* seed 1, .* seed 0, "):
            load()
    assert not finished.eval_file.exists()

    shutil.rmtree(finished.checkpoints)
    shutil.copytree(tmp_path / "own", finished.checkpoints, symlinks=True)
    loads[0]()
    finished.update_record(best=other.record()["best"])
    with pytest.raises(UserError, match="belongs to another training of these settings"):
        loads[2]()
    shutil.copy(other.record_file, finished.record_file)
    with pytest.raises(OtherRun, match=r"run\.json belongs to another run .* seed 1, .* seed 0, "):
        train("seed=0")


def test_damage_in_the_logging_points_costs_only_the_points_in_it(train: Any, tmp_path: Path) -> None:
    """Half a line at the end, and a line that is no JSON. A second resume from the same checkpoint repeats no point."""
    whole = train(f"output.path={tmp_path / 'whole'}", "logging.print_freq=1")
    with stopped_at(9):
        train("logging.print_freq=1")
    run = only_run(tmp_path / "runs")
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"', b"!", 1)
    run.metrics_file.write_bytes(b"".join(lines)[:-10])
    lost = [json.loads(whole.metrics_file.read_bytes().splitlines()[number])["step"] for number in (2, len(lines) - 1)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop, "validate", _fail_at_epoch(2))
        train("logging.print_freq=1")
    assert f"{run.metrics_file}: 2 damaged lines are left out: line 3, {len(lines)}" in run.log_file.read_text()
    train("logging.print_freq=1")
    assert [json.loads(line) for line in run.metrics_file.read_bytes().splitlines()] == run.metrics()
    for split in ("train", "validation", "resample"):
        expected = points(whole, split, "step")
        assert points(run, split, "step") == [(n,) for (n,) in expected if split != "train" or n not in lost]
