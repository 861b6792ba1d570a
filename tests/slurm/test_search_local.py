"""A search whose jobs run here: it goes to its end, is continued after a kill, and says which trials have no result."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import make_config
from tests.slurm.conftest import ROOT, SWEEP, TRAINER, trained, wait_for
from utils.errors import UserError
from utils.runs import RUN_POINTER
from utils.slurm import commands, local
from utils.slurm.ledger import Ledger, Submission
from utils.slurm.sweep.file import Job
from utils.slurm.sweep.repeats import repeated_jobs
from utils.training.launch import train_all

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def trainer(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a search over trainer.py; no SLURM commands, no GPUs."""
    (project / "trainer.py").write_text(TRAINER)
    (project / "jobs.yaml").write_text(SWEEP.replace("PYTHON", f"{sys.executable} -I -S"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(local, "_POLL", 0.01)
    return project


def test_a_search_runs_here_to_its_end_and_nothing_twice(trainer: Path, run: Run) -> None:
    done = run("--local", "2")
    assert done.code == 0, done.err
    calls = trained(trainer)
    assert len({tuple(call.values()) for call in calls}) == len(calls)
    trials = {(call["method"], float(call["lr"])) for call in calls if call.get("output.search") == "true"}
    final = {(call["method"], float(call["lr"]), call["seed"]) for call in calls if "output.search" not in call}
    assert {call["seed"] for call in calls if "output.search" in call} == {"100"}
    assert {lr for method, lr in trials if method == "lora"} == {3e-4, 5.48e-4, 1e-3, 1.73e-3, 3e-3}
    assert {method for method, _, _ in final} == {"lora", "rosa"} and len(final) == 4
    chosen = {method: lr for method, lr, _ in final}
    assert chosen["lora"] == 1e-3 and 1 / 2 < chosen["rosa"] / 2e-2 < 2
    assert {seed for *_, seed in final} == {"0", "1"}
    assert (trainer / "seen").read_text().count("\n") == len(calls), "the table comes last"
    assert re.search(r"^find: method=lora: chose lr=0\.001, validation loss 1\.0000 \(5 tried\)$", done.out, re.M)
    before = len(calls)
    again = run("--local", "2")
    assert again.code == 0 and "nothing to send" in again.out and "chose lr=0.001" in again.out
    assert len(trained(trainer)) == before
    shown = run("-s").out
    assert "search find: method=lora: chose lr=0.001" in shown and " not sent" not in shown


def test_a_killed_search_goes_on(trainer: Path, run: Run) -> None:
    """jobrunner.py is killed while all trials run, and they run on: the next call waits for them and repeats none."""
    (trainer / "hold").touch()
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import jobrunner; jobrunner.main()"
    killed = subprocess.Popen([sys.executable, "-c", program, "--local", "6"], stdout=subprocess.DEVNULL)
    wait_for(lambda: (trainer / "log").exists() and len(trained(trainer)) == 6)
    killed.kill()
    killed.wait()
    assert "find: 6 running\n" in run("-s").out
    threading.Timer(0.3, (trainer / "hold").unlink).start()
    again = run("--local", "2", "--only", "find")
    assert again.code == 0, again.err
    calls = [tuple(call.values()) for call in trained(trainer)]
    assert len(calls) == len(set(calls)) and "method=lora: chose lr=0.001" in again.out


PLAIN = """
groups:
  - {name: table, after: fair, command: "cp log seen"}
  - name: fair
    command: PYTHON train.py
    matrix: {method: [lora]}
    search: {keys: {lr: [0.001, 0.003, 0.0003]}, seed: 100, seeds: [0, 1, 2]}
  - {name: plain, command: PYTHON train.py, matrix: {method: [lora], lr: [0.001], seed: [0, 1]}}
"""


@pytest.fixture
def repeating(trainer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search that chooses what a plain group trains, too, with a stand-in for train.py whose keys are not checked."""
    (trainer / "train.py").write_text(TRAINER)
    (trainer / "jobs.yaml").write_text(PLAIN.replace("PYTHON", f"{sys.executable} -I -S"))
    monkeypatch.setattr(commands, "sending_problems", repeated_jobs)
    return trainer


@pytest.mark.parametrize("first", ["plain", "fair", None])
def test_a_choice_that_another_group_trains_is_trained_once(repeating: Path, run: Run, first: str | None) -> None:
    """Whichever came first, its job counts for both groups, and for what waits for them."""
    if first == "fair":  # the plain group comes into the file later
        text = (repeating / "jobs.yaml").read_text()
        (repeating / "jobs.yaml").write_text(text.partition("  - {name: plain")[0])
        assert run("--local", "2").code == 0
        (repeating / "jobs.yaml").write_text(text)
    elif first == "plain":
        assert run("--local", "2", "--only", "plain").code == 0
    done = run("--local", "2")
    assert done.code == 0, done.err
    calls = [tuple(call.values()) for call in trained(repeating)]
    assert len(calls) == len(set(calls)) == 6 and (repeating / "seen").read_text().count("\n") == 6
    assert run("--local", "2").code == 0 and len(trained(repeating)) == 6
    shown = run("-s").out
    assert "not sent" not in shown and "failed" not in shown
    assert ("fair: 6 done" if first == "fair" else "2 of its trainings are jobs of plain") in shown
    assert run("--cancel").code == 0 and run("--logs", "fair").code == 2


def test_two_searches_that_meet_share_their_trainings(repeating: Path, run: Run) -> None:
    """Each is widened to a rate of the other, and both choose the same one."""
    text = "  - {{name: {}, command: PYTHON train.py, search: {{keys: {{method: [lora], lr: {}}}, {}}}}}\n"
    settings = "seed: 100, seeds: [0, 1]"
    groups = text.format("low", "[0.0001, 0.0003]", settings) + text.format("high", "[0.0009, 0.0027]", settings)
    (repeating / "jobs.yaml").write_text("groups:\n" + groups.replace("PYTHON", f"{sys.executable} -I -S"))
    done = run("--local", "2")
    assert done.code == 0, done.err
    calls = [tuple(call.values()) for call in trained(repeating)]
    assert len(calls) == len(set(calls)) and "low: low: chose" in done.out and "high: high: chose" in done.out


def test_jobs_that_the_file_repeats_are_shown_and_cancelled_all_the_same(repeating: Path, run: Run) -> None:
    text = (repeating / "jobs.yaml").read_text()
    (repeating / "jobs.yaml").write_text(text + text[text.index("  - {name: plain") :].replace("plain", "again"))
    assert "groups plain and again have the same job" in run("--local").err
    assert "again: 2 not sent" in run("-s").out and run("--cancel").code == 0
    assert "no jobs have this name" in run("--logs", "nothing").err


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("data", "old", "new", "data/train"),
        ("settings", "train: {epochs: 1}", "train: {epochs: 4}", "train.epochs"),  # configs/local was edited
        ("precision", "fp32", "bf16", "train.precision"),  # auto, on GPUs of two kinds
    ],
)
def test_trials_of_other_data_or_settings_are_not_compared(
    trainer: Path, run: Run, file: str, old: str, new: str, what: str
) -> None:
    """They were replaced while the search went on: the runs are named, and their removal is the way out."""
    (trainer / "settings").write_text("train: {epochs: 1}")
    (trainer / file).write_text(old)
    (trainer / "break").touch()
    assert run("--local", "2").code == 2
    (trainer / "break").unlink()
    (trainer / file).write_text(new)
    first = set(trainer.glob("runs/*search=true*"))
    done = run("--local", "2", "--retry")
    assert done.code == 2 and "lora: chose" not in done.out and not (trainer / "seen").exists()
    words = f"find: method=lora: its trials cannot be compared, since {what} changed: "
    line = next(line for line in done.out.splitlines() if words in line)
    assert "method=lora-lr=0.003" in line.partition("; then ")[0] and "lr=0.001" in line.partition("; then ")[2]
    fresh = "set train.precision" if what == "train.precision" else "give another output.path"
    assert f"Either {fresh}, or remove the folders of the old trials" in line
    assert words in run("-s").out and run("--local").code == 2
    for folder in first:
        shutil.rmtree(folder)
    again = run("--local", "2", "--retry")
    assert again.code == 0 and "method=lora: chose lr=0.001" in again.out


def test_diverged_trials_are_results(trainer: Path, run: Run) -> None:
    text = (trainer / "jobs.yaml").read_text()
    (trainer / "jobs.yaml").write_text(text.replace("0.0003]", "0.03, 0.3]"))
    done = run("--local")
    assert done.code == 0, done.err + done.out
    assert len(re.findall(r": diverged after \d+ s$", done.out, re.M)) == 3  # 0.3 twice, and a value below it
    counts = json.loads(run("-s", "--json").out)["counts"]
    assert counts["diverged"] == 3 and set(counts) == {"done", "diverged"}
    before = len(trained(trainer))
    assert "nothing to send" in run("--local", "--retry").out and len(trained(trainer)) == before


def test_unfit_trials_are_results_that_a_retry_tries_again(trainer: Path, run: Run) -> None:
    (trainer / "unfit").write_text("3e-4")
    done = run("--local")
    assert done.code == 0 and done.out.count(": unfit after") == 2, done.err + done.out
    assert "method=lora: chose lr=0.001" in done.out and "1 diverged or unfit)" in done.out
    statuses = json.loads(run("-s", "--json").out)
    assert statuses["counts"]["unfit"] == 2 and "lr does not fit this model" in run("-s").out
    before = len(trained(trainer))
    assert "nothing to send" in run("--local").out and len(trained(trainer)) == before
    (trainer / "unfit").unlink()
    again = run("--local", "--retry")
    assert again.code == 0 and len(trained(trainer)) == before + 2, again.err + again.out


def test_a_search_waits_for_unfit_trials_that_are_tried_again(trainer: Path, run: Run) -> None:
    """One of them is the best: what it chooses is trained on the seeds, and what comes after that waits."""
    (trainer / "unfit").write_text("1e-3")
    first = run("--local")
    assert first.code == 0 and "method=lora: chose lr=0.00173" in first.out, first.err + first.out
    (trainer / "unfit").unlink()
    again = run("--local", "2", "--retry")
    assert again.code == 0 and "method=lora: chose lr=0.001," in again.out, again.err + again.out
    finals = [(one["lr"], one["seed"]) for one in trained(trainer) if one["method"] == "lora"]
    assert {("0.001", "0"), ("0.001", "1")} <= set(finals)
    assert (trainer / "seen").read_text() == (trainer / "log").read_text()
    assert "nothing to send" in run("--local").out


def test_a_combination_whose_trials_all_diverge_is_named(trainer: Path, run: Run) -> None:
    (trainer / "diverge").touch()
    done = run("--local")
    assert done.code == 2 and not (trainer / "seen").exists()
    words = "find: method=rosa: all 3 diverged or are unfit: give other values"
    assert words in done.out and "find: method=lora: chose" in done.out
    assert words in run("-s").out
    (trainer / "jobs.yaml").write_text((trainer / "jobs.yaml").read_text().replace("after: find, ", ""))
    again = run("--local")
    assert again.code == 2 and f"group {words}" in again.err


def test_a_trial_that_fails_otherwise_is_waited_for(trainer: Path, run: Run) -> None:
    """It is no result: nothing is chosen without it, until it is sent again."""
    (trainer / "break").touch()
    done = run("--local")
    assert done.code == 2 and "chose" not in done.out and "2 jobs failed" in done.err
    assert "search find: method=lora: waits for 1 of 3 trials (1 failed)" in run("-s").out
    (trainer / "break").unlink()
    again = run("--local", "--retry")
    assert again.code == 0 and "method=lora: chose lr=0.001" in again.out
    calls = [tuple(call.values()) for call in trained(trainer)]
    assert len(calls) == len(set(calls)) + 2


def test_trials_without_a_record_are_told(trainer: Path, run: Run) -> None:
    (trainer / "trainer.py").write_text("")
    done = run("--local", "--only", "find")
    assert done.code == 2
    assert "group find: method=lora: 3 of 3 trials have no result in a run.json: --retry sends them again" in done.err
    assert "search find: method=rosa: waits for 3 of 3 trials (3 without result)" in run("-s").out


def test_a_trial_whose_run_is_gone_is_trained_again_by_retry(trainer: Path, run: Run) -> None:
    assert run("--local", "2").code == 0
    before = len(trained(trainer))
    (folder,) = trainer.glob("runs/*method=lora-lr=0.001-seed=100")
    shutil.rmtree(folder)
    asked = run("--local", "--only", "find")
    assert asked.code == 2 and "nothing to send; 1 jobs did not end well: --retry sends them again" in asked.out
    assert "method=lora: 1 of 3 trials have no result in a run.json: --retry sends them again" in asked.err
    again = run("--local", "--retry")
    assert again.code == 0 and "method=lora: chose lr=0.001" in again.out
    assert len(trained(trainer)) == before + 1


def test_real_trainings_are_searched(
    project: Path, run: Run, small_model: Path, small_e2e: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run in this process, where torch is loaded once. One of the rates diverges at once."""

    def start(job: Job, ledger: Ledger, submission: Submission, slot: int, _gpus: list[str]) -> local._Running:
        monkeypatch.setenv(RUN_POINTER, str(ledger.folder / "pointers" / job.id))
        words, code = shlex.split(job.command)[2:], 0
        try:
            train_all(make_config(*words), words)
        except UserError:
            code = 1
        ended: Any = SimpleNamespace(poll=lambda: code)
        return local._Running(job.id, job.group, submission, submission.jobs.index(job.id), slot, ended, 0.0)

    monkeypatch.setattr(local, "_start", start)
    (project / "jobs.yaml").write_text(f"""
overrides: {{model.name: {small_model}, dataset.path: {small_e2e}, train.device: cpu, logging.samples: 0}}
groups:
  - name: find
    overrides: {{train.epochs: 1, train.batch_size: 16, train.optimizer: sgd, fnmodel.name: none}}
    search: {{keys: {{train.lr: [1e-9, 1e-2, 1e30]}}, seed: 100, seeds: [0]}}
""")
    done = run("--local")
    assert done.code == 0, done.err + done.out
    records = [json.loads(file.read_text()) for file in project.glob("runs/e2e_nlg/*/run.json")]
    assert sorted((record["status"], record["seed"]) for record in records) == [
        ("failed", 100), ("finished", 0), ("finished", 100), ("finished", 100),
    ]  # fmt: skip
    trials = [record for record in records if record["seed"] == 100 and record["status"] == "finished"]
    best = min(trials, key=lambda record: record["best"]["loss"])
    (final,) = [record for record in records if record["seed"] == 0]
    assert final["group"] == best["group"], "the settings are the chosen ones, and the trial belongs to the same group"
    words = (
        f"find: find: chose train.lr=0.01, validation loss {best['best']['loss']:.4f} (3 tried, 1 diverged or unfit)"
    )
    assert words in done.out
