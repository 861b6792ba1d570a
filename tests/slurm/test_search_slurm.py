"""A search at SLURM: its own job chooses and sends what follows, until the chosen settings are trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.conftest import SWEEP, TRAINER, FakeSlurm, trained
from utils.slurm import commands

Run = Callable[..., SimpleNamespace]
NEXT = "find.next"


@pytest.fixture
def trainer(project: Path, slurm: FakeSlurm) -> Path:
    (project / "trainer.py").write_text(TRAINER)
    text = SWEEP.replace("PYTHON", f"{sys.executable} -I -S").replace(", factor: 2", "").replace("[0, 1]}", "[0]}")
    text = text.replace("[0.001, 0.003, 0.0003]", "[0.003, 0.01, 0.001]")
    (project / "jobs.yaml").write_text("resources: {time: '2:00:00', mem: 4G}" + text)
    return project


class Cluster:
    """Runs the fake's jobs as SLURM would: each script, once what it depends on has ended as it must."""

    def __init__(self, slurm: FakeSlurm) -> None:
        self.slurm = slurm
        self.scripts: list[str] = []  # in the order in which they started

    def step(self) -> bool:
        """Run the first job that may start, to its end. False if none may."""
        for job in self.slurm.jobs():
            if all(task["state"] == "PENDING" for task in job["tasks"].values()) and self.may_start(job):
                self.start(job)
                return True
        return False

    def run(self) -> None:
        while self.step():
            assert len(self.scripts) < 60, "it goes on for ever"

    def may_start(self, job: dict[str, Any]) -> bool:
        words = [word for word in job["arguments"] if word.startswith("--dependency=")]
        parts = words[0].partition("=")[2].split(",") if words else []
        for kind, *numbers in (part.split(":") for part in parts):
            for number in numbers:
                states = {state["state"] for state in self.tasks(number)}
                allowed = {"COMPLETED"} if kind == "afterok" else {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"}
                if not states <= allowed:
                    return False
        return True

    def tasks(self, number: str) -> list[dict[str, Any]]:
        job, _, task = number.partition("_")
        tasks = self.slurm.jobs()[int(job) - 1]["tasks"]
        return [tasks[task]] if task else list(tasks.values())

    def start(self, job: dict[str, Any]) -> None:
        self.scripts.append(job["name"])
        for task in job["tasks"]:
            self.slurm.set(job["id"], int(task) if task else None, state="RUNNING", start="2026-01-02T03:04:05")
            given = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
            given |= {"SLURM_JOB_ID": str(job["id"])}
            given |= {"SLURM_ARRAY_JOB_ID": str(job["id"]), "SLURM_ARRAY_TASK_ID": task} if task else {}
            script = Path(job["arguments"][-1])
            log = script.parents[1] / "logs" / f"{script.stem}-{task or 0}.log"
            with log.open("a") as file:
                done = subprocess.run(["bash", script], env=given, stdout=file, stderr=file)
            state = "FAILED" if done.returncode else "COMPLETED"
            self.slurm.end(job["id"], int(task) if task else None, state, f"{done.returncode}:0")


@pytest.fixture
def cluster(slurm: FakeSlurm) -> Cluster:
    return Cluster(slurm)


def finals(project: Path) -> dict[str, set[str]]:
    """The rates that each method was trained with outside of the search."""
    found: dict[str, set[str]] = {}
    for call in trained(project):
        if "output.search" not in call:
            found.setdefault(call["method"], set()).add(call["lr"])
    return found


def nothing_twice(project: Path) -> bool:
    calls = [tuple(call.values()) for call in trained(project)]
    return len(calls) == len(set(calls))


def states(run: Run) -> dict[str, str]:
    return {job["id"].partition("-")[0]: job["state"] for job in json.loads(run("-s", "--json").out)["jobs"]}


def test_the_trials_go_with_a_job_behind_them(trainer: Path, slurm: FakeSlurm, run: Run) -> None:
    sent = run("--fn", "jobs.yaml")
    assert sent.code == 0, sent.err
    assert sent.out.splitlines() == [
        "find: submitted array 1 of 6 jobs",
        "find: submitted job 2, which goes on with the search",
        "table: not sent, it waits for find, whose search goes on",
    ]
    _, follows = slurm.jobs()
    assert "--dependency=afterany:1" in follows["arguments"]
    script = follows["script"]
    assert "#SBATCH --time=0:10:00\n" in script and "#SBATCH --mem=4G\n" in script
    assert f"{sys.executable} " in script and " --continue --only find --only table\n" in script
    assert run().out.splitlines() == ["table: not sent, it waits for find, whose search goes on"]
    assert len(slurm.jobs()) == 2
    assert states(run)[NEXT] == "queued"
    assert "search find: method=lora: waits for 3 of 3 trials (3 queued)" in run("-s").out
    preview = run("--dry-run", "--only", "find").out
    assert preview.count("\n") == 2 and preview.startswith(
        "# search find: method=lora: waits for 3 of 3 trials (3 queued)"
    )
    assert len(slurm.jobs()) == 2


def test_a_dry_run_shows_the_job_and_what_it_waits_for(trainer: Path, slurm: FakeSlurm, run: Run) -> None:
    shown = run("--dry-run", "--only", "find").out
    assert slurm.jobs() == [] and "--dependency=afterany:<find." in shown
    assert shown.count("#!/bin/bash") == 2 and " --continue --only find\n" in shown


def test_a_search_ends_by_itself(trainer: Path, run: Run, cluster: Cluster) -> None:
    assert run().code == 0
    cluster.run()
    assert nothing_twice(trainer) and finals(trainer).keys() == {"lora", "rosa"}
    assert finals(trainer)["lora"] == {"0.001"} and len(finals(trainer)["rosa"]) == 1
    assert (trainer / "seen").read_text().count("\n") == len(trained(trainer)), "the table comes last"
    assert set(states(run).values()) == {"done", "diverged"} and NEXT not in states(run)
    assert "nothing to send" in run().out
    first = len(cluster.slurm.jobs())
    run("--retry")
    assert len(cluster.slurm.jobs()) == first


@pytest.mark.parametrize("moment", ["kill-before", "kill-after", "kill-answered"])
def test_a_killed_continuation_is_made_up_for(
    trainer: Path, run: Run, cluster: Cluster, slurm: FakeSlurm, moment: str
) -> None:
    """The search's job dies while it calls sbatch: the next call by hand goes on, and nothing is sent twice."""
    run()
    assert cluster.step()
    slurm.misbehave(moment)
    assert cluster.step() and cluster.scripts[-1].startswith("find.")
    again = run()
    assert again.code == 0, again.err
    cluster.run()
    names = [job["name"] for job in slurm.jobs()]
    assert len(names) == len(set(names)) and nothing_twice(trainer)
    assert finals(trainer)["lora"] == {"0.001"} and (trainer / "seen").exists()


def test_a_choice_that_another_group_trains_is_left_to_it(
    trainer: Path, run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job of the search sends only the other seed, and the table behind both groups' jobs."""
    monkeypatch.setattr(commands, "sending_problems", lambda groups: [])  # trainer.py has other keys than train.py
    (trainer / "trainer.py").rename(trainer / "train.py")
    search = "matrix: {method: [lora]}, search: {keys: {lr: [0.001, 0.003, 0.0003]}, seed: 100, seeds: [0, 1]}"
    plain = "matrix: {method: [lora], lr: [0.001], seed: [0]}"
    (trainer / "jobs.yaml").write_text(
        f"command: {sys.executable} -I -S train.py\n"
        f"groups: [{{name: find, {search}}}, {{name: plain, {plain}}}, {{name: table, after: find, command: 'true'}}]"
    )
    run()
    trials, follows, _ = cluster.slurm.jobs()
    cluster.start(trials)
    monkeypatch.setenv("SLURM_JOB_ID", str(follows["id"]))
    done = run("--continue", "--only", "find", "--only", "table")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1:] == ["find: submitted job 4", "table: submitted job 5"]
    assert "--dependency=afterok:4:3" in cluster.slurm.jobs()[4]["arguments"]
    assert states(run)[NEXT] == "queued" and run("--cancel").code == 0


def test_a_failed_trial_holds_its_own_search_only(trainer: Path, run: Run, cluster: Cluster) -> None:
    (trainer / "break").write_text("lora")
    run()
    cluster.run()
    assert finals(trainer).keys() == {"rosa"} and not (trainer / "seen").exists()
    assert "search find: method=lora: waits for 1 of 3 trials (1 failed)" in run("-s").out
    assert "find, whose search goes on" in run().out
    (trainer / "break").unlink()
    assert run("--retry").code == 0
    cluster.run()
    assert finals(trainer)["lora"] == {"0.001"} and (trainer / "seen").exists()


def test_a_trial_whose_run_is_gone_is_sent_again_by_retry(trainer: Path, run: Run, cluster: Cluster) -> None:
    run()
    assert cluster.step()
    (folder,) = trainer.glob("runs/*method=lora-lr=0.001-seed=100")
    shutil.rmtree(folder)
    cluster.run()
    assert finals(trainer).keys() == {"rosa"}
    assert "search find: method=lora: waits for 1 of 3 trials (1 without result)" in run("-s").out
    asked = run().out
    assert "find, whose search goes on (--retry sends again its trials that did not end well)" in asked
    assert "nothing to send; 1 jobs did not end well: --retry sends them again" in run("--only", "find").out
    assert "find: submitted job " in run("--retry").out
    cluster.run()
    assert finals(trainer)["lora"] == {"0.001"} and (trainer / "seen").exists()


def test_a_retry_beside_the_waiting_job_gets_another_one(trainer: Path, run: Run, cluster: Cluster) -> None:
    """The trials are cancelled and sent again while the first job is still queued behind the cancelled ones."""
    run()
    cluster.slurm.set(1, state="CANCELLED", reason="None")
    assert "submitted array 3 of 6 jobs" in run("--retry").out
    assert len(cluster.slurm.jobs()) == 3, "one such job waits already"
    cluster.start(cluster.slurm.jobs()[1])
    follows = cluster.slurm.jobs()[3]
    assert "--dependency=afterany:3" in follows["arguments"], "it ran too early, and sent another behind the new trials"
    cluster.run()
    assert nothing_twice(trainer) and (trainer / "seen").exists()


def test_a_cancelled_search_does_not_go_on(trainer: Path, run: Run, cluster: Cluster, slurm: FakeSlurm) -> None:
    run()
    assert run("--cancel", "--only", "find").out == "cancelled 7 jobs\n"
    assert slurm.calls("scancel") == [["2", "1"]], "what follows first"
    assert not cluster.step()


def test_a_combination_without_a_choice_is_said_by_its_job(trainer: Path, run: Run, cluster: Cluster) -> None:
    (trainer / "diverge").touch()
    run()
    cluster.run()
    assert finals(trainer).keys() == {"lora"}
    words = "group find: method=rosa: all 3 diverged or are unfit: give other values"
    (status,) = [job for job in json.loads(run("-s", "--json").out)["jobs"] if job["id"].startswith(NEXT)]
    assert status["state"] == "failed" and words in status["note"]
    assert words in run().err
    assert re.search(r"^search find: method=rosa: all 3 diverged or are unfit", run("-s").out, re.M)


def test_each_of_two_sweep_files_of_one_state_goes_on(trainer: Path, slurm: FakeSlurm, run: Run) -> None:
    """They may have groups of one name, as copies of one file have."""
    (trainer / "more.yaml").write_text((trainer / "jobs.yaml").read_text().replace("[0.003, 0.01, 0.001]", "[0.02]"))
    for file in ("jobs.yaml", "more.yaml", "jobs.yaml"):
        assert run("--fn", file).code == 0
    follows = [job["script"] for job in slurm.jobs() if " --continue " in job["script"]]
    assert ["more.yaml" in script for script in follows] == [False, True], "one for each file"
    assert len(slurm.jobs()) == 4


def test_a_sweep_file_goes_on_once_by_whichever_path_it_is_given(trainer: Path, slurm: FakeSlurm, run: Run) -> None:
    """As where a home folder is a link: a shell says one path of it, and Python another."""
    (trainer.parent / "link").symlink_to(trainer)
    for file in (Path("jobs.yaml"), trainer.parent / "link" / "jobs.yaml"):
        assert run("--fn", str(file)).code == 0
    assert len(slurm.jobs()) == 2, "the trials, and what goes on with them"
