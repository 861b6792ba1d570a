"""Killed with SIGKILL anywhere in a submission: the next call doubles nothing and loses nothing.

A jobrunner in a process of its own is killed just before its n-th step, where a step is each file that is
renamed, written through or locked, each sbatch and each answer of it; so every state that a kill can leave on
disk occurs. The fake sbatch then kills its caller by itself, at the moments that only it can see.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import FakeSlurm

ROOT = Path(__file__).parents[2]
SWEEP = """
groups:
  - {name: train, max_jobs: 1, command: "true", matrix: {a: [1, 2]}}
  - {name: table, after: train, command: "true"}
"""
# Steps are counted from the first time the state is locked: before that nothing is done that could be lost.
DRIVER = """
import fcntl, os, signal, subprocess, sys
sys.path.insert(0, {root!r})
import jobrunner
from utils.errors import run_cli
from utils.slurm import commands, submit
commands.sending_problems = lambda groups: []  # imports torch, which takes seconds
submit.LISTING_DELAY = 0
left = int(sys.argv.pop(1))
def step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(module, name, after):
    function = getattr(module, name)
    def call(*arguments, **options):
        step()
        result = function(*arguments, **options)
        if after:
            step()
        return result
    setattr(module, name, call)
counted(fcntl, "flock", False)
counted(os, "fsync", False)
counted(os, "replace", True)
counted(subprocess, "run", True)
if "NO_LOCKS" in os.environ:
    def flock(*_):
        raise OSError(37, "No locks available")
    fcntl.flock = flock
run_cli(jobrunner.main)
"""


@pytest.fixture
def sweep(project: Path, slurm: FakeSlurm) -> Path:
    (project / "jobs.yaml").write_text(SWEEP)
    (project / "driver.py").write_text(DRIVER.format(root=str(ROOT)))
    return project


def jobrunner(*arguments: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    words = arguments or ("--fn", "jobs.yaml")
    return subprocess.run([sys.executable, "driver.py", str(kill_at), *words], capture_output=True, text=True)


def sent_commands(slurm: FakeSlurm) -> list[str]:
    return sorted(re.findall(r"^true.*", "\n".join(job["script"] for job in slurm.jobs()), re.M))


def check(project: Path, slurm: FakeSlurm) -> None:
    """Every job is with SLURM exactly once, under the number that the state has for it, behind what it waits for."""
    assert sent_commands(slurm) == ["true", "true a=1", "true a=2"]
    state = json.loads((project / "runs/.jobs/state.json").read_text())
    given = {job["name"]: str(job["id"]) for job in slurm.jobs()}
    assert {item["name"]: item["slurm_id"] for item in state["submissions"]} == given
    numbers = {job["name"].partition(".")[0]: job["id"] for job in slurm.jobs()}
    table = slurm.jobs()[numbers["table"] - 1]
    assert f"--dependency=afterok:{numbers['train']}" in table["arguments"]


@pytest.mark.parametrize("accounting", [True, False])
def test_a_kill_before_any_step(sweep: Path, slurm: FakeSlurm, accounting: bool) -> None:
    if not accounting:
        slurm.misbehave("no-accounting")
    points, left_by_kill = 0, set()
    # With accounting every second step, without it the others: together all, in half the time.
    for step in range(1 + accounting, 100, 2):
        subprocess.run(["rm", "-rf", "runs"], check=True)
        (slurm.folder / "jobs.json").write_text("[]")
        first = jobrunner(kill_at=step)
        if first.returncode == 0:
            break
        assert first.returncode == -signal.SIGKILL, first.stderr
        points += 1
        state = sweep / "runs/.jobs/state.json"
        recorded = json.loads(state.read_text())["submissions"] if state.exists() else []
        left_by_kill.add((len(slurm.jobs()), sum(item["slurm_id"] is not None for item in recorded)))
        second = jobrunner()
        assert second.returncode == 0, f"after a kill at step {step}: {second.stderr}"
        check(sweep, slurm)
    assert jobrunner().stdout == "nothing to send\n"
    assert points >= 10
    # with SLURM and not recorded; recorded; between two submissions; before the first
    assert {(1, 0), (1, 1), (2, 1), (0, 0)} <= left_by_kill


@pytest.mark.parametrize("moment", ["kill-before", "kill-after", "kill-answered"])
def test_a_kill_while_sbatch_runs(sweep: Path, slurm: FakeSlurm, moment: str) -> None:
    slurm.misbehave(moment)
    assert jobrunner().returncode == -signal.SIGKILL
    assert jobrunner().returncode == 0
    check(sweep, slurm)


def test_a_job_of_a_state_that_was_deleted_is_not_taken_for_the_new_one(sweep: Path, slurm: FakeSlurm) -> None:
    assert jobrunner().returncode == 0
    for number in (1, 2):
        slurm.end(number)
    shutil.rmtree(sweep / "runs")
    slurm.misbehave("kill-before")
    assert jobrunner().returncode == -signal.SIGKILL
    done = jobrunner()
    assert "SLURM has no such job" in done.stderr and done.stdout.startswith("train: submitted array 3")
    for number in (3, 4):
        slurm.end(number)
    shutil.rmtree(sweep / "runs")
    slurm.misbehave("kill-after")
    assert jobrunner().returncode == -signal.SIGKILL
    assert "SLURM has it as job 5" in jobrunner().stderr
    assert len({job["name"] for job in slurm.jobs()}) == 6


@pytest.mark.parametrize("locks", [True, False])
def test_an_sbatch_that_outlives_its_jobrunner_is_waited_for(
    sweep: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setenv("NO_LOCKS", "1")
    slurm.misbehave("kill-before")
    slurm.misbehave("slow", "2")
    assert jobrunner().returncode == -signal.SIGKILL
    assert slurm.jobs() == []
    start = time.monotonic()
    done = jobrunner()
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start > 1
    assert "SLURM has it as job 1" in done.stderr
    check(sweep, slurm)


def test_a_kill_after_a_refusal_that_slurm_lists(sweep: Path, slurm: FakeSlurm) -> None:
    slurm.misbehave("refuse", "sbatch: error: no")
    slurm.misbehave("kill-after")
    assert jobrunner().returncode == -signal.SIGKILL
    assert len(slurm.jobs()) == 1
    slurm.behave("refuse")
    done = jobrunner()
    assert done.returncode == 0 and "SLURM has no such job" in done.stderr
    assert sent_commands(slurm).count("true a=1") == 2  # the refused request and the job
    assert [job["tasks"]["0"]["state"] for job in slurm.jobs() if "train." in job["name"]] == ["FAILED", "PENDING"]


def test_a_job_that_only_its_script_remembers_is_not_sent_again(sweep: Path, slurm: FakeSlurm) -> None:
    slurm.misbehave("no-accounting")
    slurm.misbehave("kill-answered")
    assert jobrunner().returncode == -signal.SIGKILL
    slurm.set(1, purged=True)
    script = slurm.jobs()[0]["arguments"][-1]
    for task in ("0", "1"):
        names = dict(SLURM_JOB_ID="1", SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID=task)
        subprocess.run(["bash", script], env={**os.environ, **names}, check=True)
    assert jobrunner().returncode == 0
    shown = json.loads(jobrunner("-s", "--json").stdout)["jobs"]
    assert [(job["state"], job["slurm_id"]) for job in shown][:2] == [("done", "1_0"), ("done", "1_1")]
    assert sent_commands(slurm) == ["true", "true a=1", "true a=2"]


def test_the_status_alone_finds_out_too(sweep: Path, slurm: FakeSlurm) -> None:
    slurm.misbehave("kill-answered")
    assert jobrunner().returncode == -signal.SIGKILL
    shown = json.loads(jobrunner("-s", "--json").stdout)["jobs"]
    assert [job["slurm_id"] for job in shown] == ["1_0", "1_1", None]


def test_a_second_jobrunner_is_told_to_wait(sweep: Path, slurm: FakeSlurm) -> None:
    (sweep / "runs/.jobs").mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport time\nfrom pathlib import Path\n"
         "from utils.slurm.ledger import changing\nwith changing(Path('runs/.jobs')):\n"
         "    print('held', flush=True)\n    time.sleep(30)\n"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = jobrunner()
        assert done.returncode == 2
        assert f"is already being managed by process {holder.pid}" in done.stderr
        assert slurm.jobs() == []
    finally:
        holder.kill()
        holder.wait()
    assert jobrunner().returncode == 0
