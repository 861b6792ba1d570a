"""Signals that ask to stop are acknowledged at once and obeyed within a batch; nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faults.lab import differences, facts
from utils import evaluation
from utils.evaluation import Options, evaluate_runs
from utils.generation.decoding import Decoding
from utils.generation.tree.loop import Trees
from utils.metrics import Scorer
from utils.metrics.scoring import score_runs as scoring
from utils.metrics.scoring.workers import FEWEST
from utils.processes import signals
from utils.processes.signals import EXIT_INTERRUPTED, stop_on_signals
from utils.runs import Run, checkpoints, find_runs
from utils.training import launch, loop, samples
from utils.training.training import Training


@contextlib.contextmanager
def stopped_at(owner: Any, name: str, call: int) -> Iterator[list[int]]:
    """Send this process SIGTERM when ``owner.name`` is called for the ``call``-th time. The exit code must be 75.

    Yields a list that gets the number of each call.
    """
    original, calls = getattr(owner, name), []

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(owner, name, signalled)
        yield calls
    assert stop.value.code == EXIT_INTERRUPTED
    assert len(calls) >= call


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [(loop, "evaluate_losses", 1, 0), (loop, "evaluate_losses", 2, 5), (samples, "generate", 2, 5)],
)
def test_a_validation_that_was_stopped_is_repeated(
    train: Any, tmp_path: Path, capfd: Any, owner: Any, name: str, call: int, step: int
) -> None:
    """The stop comes in the first validation, in that of an epoch, or in its sample texts. A resume is exact."""
    overrides = ("train.epochs=2", "logging.samples=1")
    whole = train(*overrides)
    capfd.readouterr()
    halves = (*overrides, f"output.path={tmp_path / 'halves'}")
    with stopped_at(owner, name, call) as calls:
        train(*halves)
    (run,) = find_runs([tmp_path / "halves"])
    stderr = capfd.readouterr().err
    assert "SIGTERM: stopping after this batch" in stderr and "run the same command again" in stderr
    assert len(calls) == call
    assert run.record()["status"] == "interrupted" and run.record()["progress"]["step"] == step
    assert [point["step"] for point in run.metrics("validation")] == [0][:step]
    assert run.last.exists() == (step > 0)
    train(*halves)
    assert not differences(facts(whole.path), facts(run.path))


@pytest.mark.parametrize(("owner", "name"), [(loop, "evaluate_losses"), (Training, "close")])
def test_a_stop_ends_the_seeds_too(train: Any, tmp_path: Path, owner: Any, name: str) -> None:
    """In the first seed's last validation, and when it has nothing left to stop in."""
    with stopped_at(owner, name, call=1 if name == "close" else 2):
        train("train.epochs=1", "runs=2")
    (first,) = find_runs([tmp_path / "runs"])
    assert first.record()["status"] == ("finished" if name == "close" else "interrupted")
    train("train.epochs=1", "runs=2")
    assert [run.record()["status"] for run in find_runs([tmp_path / "runs"])] == ["finished"] * 2


def test_a_stop_ends_a_validation_after_a_batch(train: Any, tmp_path: Path) -> None:
    from utils.models.token_loss import TokenLoss

    with stopped_at(TokenLoss, "forward", call=6) as calls:  # four calls check the model; pairs share three rows
        train("train.micro_batch_size=1")
    assert len(calls) == 6


def test_a_second_interrupt_does_not_wait(monkeypatch: Any) -> None:
    monkeypatch.setattr(signals, "SAME_PRESS", -1.0)
    before = signal.getsignal(signal.SIGINT)  # ignored if a shell started the tests in the background
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_is_finished_before_its_last_checkpoint_goes(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """After a kill between the two, the next command removes the checkpoint and trains nothing."""
    overrides = ("train.epochs=2", "train.keep_last=false", "train.lr=1e-9", "train.save_every=3")

    def killed(_run: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "remove_last", killed)
        train(*overrides)
    (run,) = find_runs([tmp_path / "runs"])
    assert run.record()["status"] == "finished" and run.last.exists()
    best = run.best.resolve()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_train", None)
        train(*overrides)
    assert sorted(run.checkpoints.iterdir()) == [run.best, best]


# -- evaluation and scoring ----------------------------------------------------------------------------------

FAST = Options(decoding=Decoding(num_beams=2, max_new_tokens=8), device="cpu")


@pytest.fixture
def roots(train: Any, tmp_path: Path) -> list[str]:
    """Two finished runs."""
    for method in ("lora", "none"):
        train(f"fnmodel.name={method}", "train.epochs=0")
    return [str(tmp_path / "runs")]


def test_an_evaluation_that_was_stopped_keeps_the_finished_runs(roots: list[str], capsys: Any) -> None:
    with stopped_at(evaluation, "generate_tokens", call=2):
        evaluate_runs(roots, FAST)
    first, second = find_runs(roots)
    assert "1 of 2 runs are evaluated" in capsys.readouterr().out
    assert first.evaluation() and not second.eval_file.exists() and not list(second.path.glob("test_*"))
    before = first.eval_file.stat().st_mtime_ns
    with stopped_at(Trees, "step", call=3) as steps:  # within a batch
        evaluate_runs(roots, FAST)
    assert len(steps) == 3
    assert evaluate_runs(roots, FAST) == 0
    assert second.evaluation() and first.eval_file.stat().st_mtime_ns == before


def write_texts(run: Run, items: int) -> None:
    run.predictions().write_text("The pub is near the river.\n" * items)
    run.references().write_text("\n".join(["The river is near the pub.\n"] * items))


def test_a_scoring_that_was_stopped_keeps_the_finished_runs(roots: list[str], capsys: Any) -> None:
    first, second = find_runs(roots)
    for run in (first, second):
        write_texts(run, 3)
    with stopped_at(Scorer, "score", call=2):
        scoring.main(roots)
    assert first.scores() and not second.scores_file.exists()
    assert capsys.readouterr().out.count("scored") == 1
    assert scoring.main(roots) == 0
    assert second.scores() == {**first.scores()}


# -- the commands, and signals from outside ------------------------------------------------------------------

LOADING = """
import runpy, sys
class Pause:  # when the library is imported
    def find_spec(name, path=None, target=None):
        if name == library and not sys.meta_path.remove(Pause):
            print("paused", flush=True)
            sys.stdin.readline()
library = sys.argv[1]
sys.meta_path.insert(0, Pause)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", signals.SIGNALS)
@pytest.mark.parametrize("words", [("hydra", "train.py"), ("torch", "train.py"), ("torch", "eval.py", ".")])
def test_a_signal_while_libraries_load_ends_with_one_line(
    tmp_path: Path, words: tuple[str, ...], number: signal.Signals
) -> None:
    settings = ["model.name=tiny", "dataset.name=e2e_sample", f"output.path={tmp_path}"] * ("train.py" in words)
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING, *words, *settings], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", signals.STOPPED_NOTE: str(tmp_path / "note")},
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "paused\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[1].splitlines() == [
        f"stopped by {number.name} before it began: run the same command again"
    ]
    assert process.returncode == EXIT_INTERRUPTED
    assert (tmp_path / "note").read_text() == f"{number.name}\n" and len(list(tmp_path.iterdir())) == 1


PAUSED = """
import importlib, runpy, sys
module, name = sys.argv[1].split(":")
owner = importlib.import_module(module)
*parents, name = name.split(".")
for parent in parents:
    owner = getattr(owner, parent)
original = getattr(owner, name)
def paused(*arguments, **options):
    result = original(*arguments, **options)
    print("paused", flush=True)
    sys.stdin.readline()
    return result
setattr(owner, name, paused)
del sys.argv[:2]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def stopped_command(place: str, words: list[str], send: Callable[[int, int], None]) -> str:
    """Run a command until it pauses after its first call of ``place``, ask it to stop, and wait for its end.

    Returns:
        What it wrote to stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED, place, *words], cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    try:
        assert any(line == "paused\n" for line in process.stdout), process.stderr.read()
        send(process.pid, signal.SIGUSR1)
        stderr = ""
        while "SIGUSR1: stopping after this" not in stderr:  # at once: it is still paused
            line = process.stderr.readline()
            assert line, stderr
            stderr += line
        _, rest = process.communicate("\n" * 99, timeout=60)
    finally:
        process.kill()
    assert process.returncode == EXIT_INTERRUPTED, stderr + rest
    assert "Traceback" not in stderr + rest
    return stderr + rest


def test_train_takes_a_signal_from_outside(small_model: Path, small_e2e: Path, tmp_path: Path) -> None:
    stderr = stopped_command(
        "utils.models.token_loss:TokenLoss.choose_fast_paths",
        ["train.py", f"model.name={small_model}", f"dataset.path={small_e2e}", f"output.path={tmp_path}", "runs=2"],
        os.kill,
    )
    (run,) = find_runs([tmp_path])
    assert run.record()["status"] == "interrupted"
    assert "interrupted by SIGUSR1 at step 0" in run.log_file.read_text() and "run the same command again" in stderr


def test_eval_takes_a_signal_from_outside(train: Any) -> None:
    run = train("train.epochs=0")
    command = ["eval.py", str(run.path), "--device=cpu"]
    stopped_command("utils.models.token_loss:TokenLoss.choose_fast_paths", command, os.kill)
    assert not run.eval_file.exists()


def test_scoring_takes_a_signal_to_all_its_processes(tmp_path: Path) -> None:
    """The workers go on until the process that gives them work stops, and end with it."""
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run")
    run.update_record(status="finished")
    write_texts(run, FEWEST)
    place = "utils.metrics.meteor:METEOR.begin"
    stopped_command(place, ["utils.metrics.scoring.score_runs", str(tmp_path)], os.killpg)
    assert not run.scores_file.exists()
