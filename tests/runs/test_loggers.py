"""``logging.to``: what wandb and trackio get, by modules that stand in for them, and what their failures do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, make_config
from tests.training.reading import only_run
from utils.config.settings import LOGGERS
from utils.errors import UserError
from utils.runs.loggers import Logger, check_installed
from utils.training import loop

WANDB = """
class Settings:
    def __init__(self, **options):
        self.options = options

class Run:
    def __init__(self):
        self.summary = {}
    def define_metric(self, name, step_metric=None):
        calls.append(("define_metric", name, step_metric))
    def log(self, values):
        calls.append(("log", values.pop("step"), values))
    def finish(self):
        calls.append(("finish", self.summary))

def init(**options):
    calls.append(("init", options))
    return Run()

calls = []
"""
TRACKIO = """
class Run:
    def log(self, metrics, step=None):
        calls.append(("log", step, metrics))
    def finish(self):
        calls.append(("finish",))

def init(project, name=None, resume="never", config=None, embed=True):
    calls.append(("init", dict(project=project, name=name, resume=resume, config=config)))
    return Run()

calls = []
"""
BOTH = "logging.to=[wandb,trackio]"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The calls that modules in the places of wandb and trackio get, by module."""
    found = {}
    for name, source in {"wandb": WANDB, "trackio": TRACKIO}.items():
        module: Any = importlib.util.module_from_spec(ModuleSpec(name, None))
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
        found[name] = module.calls
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return found


def logged(calls: list[Any]) -> list[tuple[int, str, Any]]:
    """(step, name, number) of every number that was logged, in order."""
    return [
        (call[1], name, value)
        for call in calls
        if call[0] == "log"
        for name, value in call[2].items()
        if not isinstance(value, str)
    ]


def in_file(run: Any) -> list[tuple[int, str, Any]]:
    """The same of metrics.jsonl."""
    return [
        (point["step"], f"{point['split']}/{name}", value)
        for point in run.metrics()
        for name, value in point.items()
        if name not in ("step", "epoch", "split")
    ]


def inits(calls: list[Any]) -> list[dict[str, Any]]:
    return [call[1] for call in calls if call[0] == "init"]


def test_named_loggers_get_what_metrics_jsonl_gets(train: Any, calls: dict[str, list[Any]]) -> None:
    run = train(BOTH, "logging.samples=1", "train.epochs=2")
    for name in ("wandb", "trackio"):
        (init,), (first, *points) = inits(calls[name]), logged(calls[name])
        assert first[:2] == (0, "model/trainable_parameters") and points == in_file(run)
        assert init["project"] == "rosa" and init["resume"] == "allow" and init["config"]["train.batch_size"] == 16
        texts = [call[2] for call in calls[name] if call[0] == "log" and "sample/0" in call[2]]
        assert len(texts) == 3 and "**" in texts[0]["sample/0"]
    assert calls["wandb"][1:3] == [("define_metric", "step", None), ("define_metric", "*", "step")]
    assert calls["wandb"][-1] == ("finish", {f"final/{k}": v for k, v in run.record()["best"].items() if k != "step"})
    assert calls["trackio"][-1] == ("finish",)
    assert not run.board_files()


def test_a_resume_goes_on_in_the_same_run_and_logs_no_step_twice(
    train: Any, calls: dict[str, list[Any]], monkeypatch: Any, tmp_path: Path
) -> None:
    """Killed after the points of steps 6 and 8, which lie beyond the checkpoint of step 5."""
    with monkeypatch.context() as patch:
        original = loop.train_step

        def killed(training: Any, *arguments: Any, **options: Any) -> Any:
            if training.progress.step == 8:
                raise RuntimeError("planted")
            return original(training, *arguments, **options)

        patch.setattr(loop, "train_step", killed)
        with pytest.raises(RuntimeError):
            train(BOTH)
    assert max(step for step, *_ in in_file(only_run(tmp_path))) == 8
    before = {name: list(found) for name, found in calls.items()}
    run = train(BOTH)
    assert "resumed from step-00000005" in run.log_file.read_text()
    for name, key in (("wandb", "id"), ("trackio", "name")):
        first, second = inits(calls[name])
        assert first[key] == second[key] and second["resume"] == "allow"
        again = logged(calls[name][len(before[name]) :])
        assert {step for step, *_ in logged(before[name])} >= {6, 8} and min(step for step, *_ in again) == 10
        timed = ("per_second", "seconds", "memory_mib")
        kept = [point for point in logged(calls[name])[1:] if not point[1].endswith(timed)]
        assert kept == [point for point in in_file(run) if not point[1].endswith(timed)]


@pytest.mark.parametrize("method", ["__init__", "log", "finish"])
def test_a_logger_that_fails_is_left_out_after_one_warning(
    train: Any, calls: dict[str, list[Any]], monkeypatch: Any, method: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["wandb"].Run, method, fails)
    run = train("logging.to=[tensorboard,wandb,trackio]", "train.epochs=1")
    assert run.log_file.read_text().count("wandb: no route to host. Training goes on.") == 1
    assert run.record()["status"] == "finished" and run.board_files()
    assert logged(calls["trackio"])[1:] == in_file(run)


def test_a_missing_package_is_named_before_anything_is_written(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"logging.to names wandb and trackio, not installed here: pip install wandb trackio"
    ):
        train(BOTH)
    assert not (tmp_path / "runs").exists()


def test_a_logger_that_is_not_named_is_not_imported(train: Any, monkeypatch: Any) -> None:
    for name in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would raise
    run = train("logging.to=[]", "train.epochs=1")
    assert in_file(run) and not run.board_files() and not run.loggers_file.exists()
    assert "Training goes on" not in run.log_file.read_text()


@pytest.mark.parametrize("names", ["[tensorbord]", "[wandb,wandb]"])
def test_a_list_of_other_loggers_is_refused(names: str) -> None:
    with pytest.raises(UserError, match=r"logging.to=.* must name some of tensorboard, wandb, trackio, each once"):
        make_config(f"logging.to={names}")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_package_itself_takes_a_run(name: str, small_model: Path, small_e2e: Path, tmp_path: Path) -> None:
    """Offline, in a process of its own."""
    pytest.importorskip(name, reason=f"{name} is not installed")
    check_installed([name])
    done = subprocess.run(
        [sys.executable, "train.py", f"logging.to=[{name}]", f"model.name={small_model}", f"dataset.path={small_e2e}",
         f"output.path={tmp_path / 'runs'}", "train.epochs=1", "train.device=cpu", "fnmodel.params.rank=4",
         "train.batch_size=16"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")},
    )  # fmt: skip
    assert done.returncode == 0 and "Training goes on" not in done.stderr, done.stderr
    kept = only_run(tmp_path).path / "wandb" if name == "wandb" else tmp_path / "trackio"
    assert any(path.suffix in (".wandb", ".db") for path in kept.rglob("*"))


def test_each_name_has_its_class() -> None:
    assert sorted(LOGGERS) == sorted(kind.__name__.lower() for kind in Logger.__subclasses__())
