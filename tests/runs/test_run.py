"""The files of a run's directory, errors in logging points with line numbers, and a base model that has moved."""

from __future__ import annotations

import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.records import write_run
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.export.__main__ import main as export
from utils.generation.decoding import Decoding
from utils.prompt import main as prompt
from utils.runs import RUN_POINTER, Run, find_runs
from utils.runs.provenance import peak_memory_mib, reset_peak_memory
from utils.training import launch
from utils.training.setup import set_up


def test_logging_points_by_split_and_what_is_no_point_named_with_its_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.metrics() == []
    run.metrics_file.write_text('{"split": "train", "loss": 1.5}\n\n{"split": "validation", "loss": 2}\n')
    assert run.metrics("validation") == [{"split": "validation", "loss": 2}] and len(run.metrics()) == 2
    for line, words in (
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
    ):
        run.metrics_file.write_text('{"split": "train", "loss": 1.5}\n' + line)
        with pytest.raises(UserError, match=f"metrics.jsonl, line 2.*({words})"):
            run.metrics()
        bad: list[str] = []
        assert len(run.metrics("train", bad)) == len(bad) == 1 and words in bad[0]


def test_a_link_to_a_run_counts_once_and_other_links_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, linked = write_run(tmp_path / "runs"), write_run(tmp_path / "elsewhere", seed=1)
    folder = tmp_path / "runs"
    for name, target in (("a", real), ("b", linked), ("c", linked), ("up", tmp_path), ("d", tmp_path / "gone")):
        (folder / name).symlink_to(target)
    (folder / "loop").symlink_to("loop")
    assert [run.path for run in find_runs([folder])] == [folder / "b", real]
    warned = capsys.readouterr().err
    assert warned == f"warning: {folder / 'up'} is a link to a folder and is not searched: give that folder\n"


def test_a_folder_with_parts_of_a_run_is_an_incomplete_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a folder of runs that has such files. Links to checkpoints are no folders to search."""
    runs = [write_run(tmp_path, seed=seed) for seed in range(4)]
    for run, kept in zip(runs, ("config.yaml", "metrics.jsonl", "checkpoints", None), strict=True):
        (run / "checkpoints" / "step-1").mkdir(parents=True)
        for name in ("best", "last"):
            (run / "checkpoints" / name).symlink_to("step-1")
        for part in [part for part in run.iterdir() if kept and part.name != kept]:
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    (runs[3].parent / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    assert {run.path: run.incomplete for run in find_runs([tmp_path])} == dict.fromkeys(runs[:3], True) | {
        runs[3]: False
    }
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"label-\w+/run\.json is missing: .* incomplete copy"):
        Run(runs[0]).record()


def test_the_model_of_a_run_is_found_again_where_it_was_moved(train: Any, small_model: Path, tmp_path: Path) -> None:
    """Every command that needs it names the key and the file to edit, which is then as good as before."""
    before, after = Path(shutil.copytree(small_model, tmp_path / "before")), tmp_path / "after"
    run = train(f"model.name={before}", "train.epochs=0", "fnmodel.name=lora")
    before.rename(after)
    options = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu")
    commands: list[Callable[[], Any]] = [
        lambda: evaluate_run(run, options),
        lambda: prompt([str(run.path), "text", "--device", "cpu"]),
        lambda: export([str(run.path), "--as", "adapter", "--out", str(tmp_path / "exported")]),
    ]
    for command in commands:
        with pytest.raises(UserError, match=r"before is not a folder .* new path as model\.name in .*config\.yaml"):
            command()
    run.config_file.write_text(run.config_file.read_text().replace(f"name: {before}", f"name: {after}"))
    for command in commands:
        command()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process lower its peak")
def test_a_later_run_of_a_process_has_its_own_peak_memory() -> None:
    torch.ones(2**26)  # 256 MiB
    before = peak_memory_mib(torch.device("cpu"))
    reset_peak_memory()
    assert peak_memory_mib(torch.device("cpu")) < before - 200


def test_a_later_run_of_a_process_begins_without_the_models_before(train: Any, monkeypatch: Any) -> None:
    """In bfloat16 accelerate makes a cycle of them, and the peak of memory would be that of two models."""
    models: list[weakref.ref[Any]] = []

    def watched(*arguments: Any) -> Any:
        assert not [model for model in models if model() is not None]
        training = set_up(*arguments)
        models.append(weakref.ref(training.model))
        return training

    monkeypatch.setattr(launch, "set_up", watched)
    train("runs=2", "train.epochs=1", "train.precision=bf16")
    assert len(models) == 2


def test_the_run_that_a_job_trained_last_is_noted_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A search reads the loss of that one."""
    monkeypatch.setenv(RUN_POINTER, str(tmp_path / "pointer"))
    runs = [Run(tmp_path / name) for name in ("one", "two")]
    for run in (*runs, runs[0]):
        run.path.mkdir(exist_ok=True)
        launch._point_to(run)
    assert (tmp_path / "pointer").read_text() == "".join(f"{run.path}\n" for run in reversed(runs))


def test_the_precision_that_auto_chooses_is_part_of_a_run(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    auto, given = train("train.epochs=0"), train("train.epochs=0", "train.precision=fp32")
    assert auto.path == given.path and "precision: fp32" in auto.config_file.read_text()
    monkeypatch.setattr(launch, "resolve_precision", lambda *_: "bf16")  # as on a machine with another processor
    other = train("train.epochs=0", "train.precision=bf16")
    assert other.path != auto.path and other.record()["hardware"]["precision"] == "bf16"
