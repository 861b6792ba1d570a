"""The same jobs on this machine: how many at a time, on which GPUs, in which order, and what a stop leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.conftest import wait_for
from utils.slurm import local

ROOT = Path(__file__).parents[2]
Run = Callable[..., SimpleNamespace]
Statuses = Callable[[], dict[str, dict[str, Any]]]

# Notes its start and end, and the most jobs that ran at once; fails where it is told to, the first time.
WORK = """
import os, sys, time
from pathlib import Path
name = sys.argv[1]
Path("running", name).touch()
time.sleep(0.3)
with open("log", "a") as log:
    log.write(f"{name} {len(os.listdir('running'))} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
Path("running", name).unlink()
if "fail" in name and not Path("failed once").exists():
    Path("failed once").touch()
    sys.exit(4)
"""


@pytest.fixture
def work(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose jobs run work.py; no SLURM commands, no GPUs."""
    (project / "work.py").write_text(WORK)
    (project / "running").mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(local, "_POLL", 0.02)
    return project


def write(project: Path, *groups: str) -> None:
    lines = [f"  - {{{group}}}".replace("WORK", f"{sys.executable} work.py") for group in groups]
    (project / "jobs.yaml").write_text("groups:\n" + "\n".join(lines))


def log(project: Path) -> list[list[str]]:
    return [line.split(" ") for line in (project / "log").read_text().splitlines()]


def test_so_many_at_a_time_and_groups_in_order(work: Path, run: Run, statuses: Statuses) -> None:
    write(
        work,
        "name: z, after: [a, b], paralleljobs: [WORK z]",
        "name: a, max_jobs: 1, paralleljobs: [WORK a1, WORK a2]",
        "name: b, paralleljobs: [WORK b1, WORK b2, WORK b3]",
    )
    done = run("--local", "2")
    assert done.code == 0, done.err
    names = [row[0] for row in log(work)]
    assert sorted(names) == ["a1", "a2", "b1", "b2", "b3", "z"] and names[-1] == "z"
    assert {int(row[1]) for row in log(work)} <= {1, 2} and any(row[1] == "2" for row in log(work))
    found = statuses()
    assert {(job["state"], job["code"], job["slurm_id"]) for job in found.values()} == {("done", 0, "local")}
    assert run("--local").out == "nothing to send\n"
    assert len(log(work)) == 6


def test_a_failure_keeps_what_waits_for_it_and_is_repeated_on_request(work: Path, run: Run, statuses: Statuses) -> None:
    write(work, "name: a, paralleljobs: [WORK ok, WORK fail]", "name: z, after: a, paralleljobs: [WORK z]")
    done = run("--local", "2")
    assert done.code == 2
    assert "1 jobs failed or were stopped, 1 were not started" in done.err
    assert "failed (4)" in done.out
    found = statuses()
    assert [(job["state"], job["code"]) for job in found.values()] == [("done", 0), ("failed", 4), ("not sent", None)]
    assert run("--local").code == 2 and len(log(work)) == 2
    assert run("--local", "--retry").code == 0
    assert [row[0] for row in log(work)][2:] == ["fail", "z"]
    assert {job["state"] for job in statuses().values()} == {"done"}


def test_another_value_of_a_variable_is_no_reason_for_nothing_to_send(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pilot with a part of the data does not pass for the whole sweep; where a cache lies decides nothing."""
    overrides = "{x: '${FRACTION:-1.0}', dataset.cache: $CACHE}"
    write(work, f"name: a, command: echo, overrides: {overrides}, matrix: {{seed: [0, 1]}}")
    monkeypatch.setenv("FRACTION", "0.01")
    assert run("--local").code == 0
    for now in ("1.0", ""):
        monkeypatch.setenv("FRACTION", now)
        again = run("--local")
        assert again.code == 2 and "${FRACTION:-1.0} is '1.0' now, but 2 jobs were sent with '0.01'" in again.err
        assert "another state: folder" in again.err and "FRACTION" in run("--dry-run").err
    monkeypatch.setenv("FRACTION", "0.01")
    monkeypatch.setenv("CACHE", "/elsewhere")
    assert run("--local").out == "nothing to send\n" and run("-s").code == 0
    state = work / "runs/.jobs/state.json"
    content = json.loads(state.read_text())
    del content["submissions"][0]["variables"]
    state.write_text(json.dumps(content))
    monkeypatch.delenv("FRACTION")
    assert run("--local").out == "nothing to send\n", "earlier versions did not note it"


def test_what_waits_runs_again_after_new_jobs(work: Path, run: Run, statuses: Statuses) -> None:
    """And so does what waits for that; nothing runs again without a reason."""
    later = ("name: z, after: a, paralleljobs: [WORK z]", "name: y, after: z, paralleljobs: [WORK y]")
    write(work, "name: a, paralleljobs: [WORK a1]", *later)
    assert run("--local").code == 0
    write(work, "name: a, paralleljobs: [WORK a1, WORK a2]", *later)
    found = list(statuses().values())
    assert [job["state"] for job in found] == ["done", "not sent", "outdated", "outdated"]
    assert found[2]["note"].endswith(" is not sent") and "it sends again the 2 outdated" in run("-s").out
    time.sleep(1)  # the times of starts and ends are whole seconds
    assert run("--local", "--only", "a").code == 0
    assert list(statuses().values())[2]["note"].endswith(" ended after it started")
    assert run("--local").code == 0
    assert [row[0] for row in log(work)] == ["a1", "z", "y", "a2", "z", "y"]
    assert run("--local").out == "nothing to send\n" and {job["state"] for job in statuses().values()} == {"done"}


def test_a_group_that_was_left_out_is_named(work: Path, run: Run) -> None:
    write(work, "name: train, paralleljobs: [WORK a]", "name: table, after: train, paralleljobs: [WORK b]")
    done = run("--local", "--only", "table")
    assert done.code == 2
    assert "a group they wait for was not run (leave out --only, or add --only train)\n" in done.out
    shown = run("--dry-run", "--only", "table").out
    assert "is not sent (leave out --only, or add --only train)" in shown and "--retry" not in shown
    assert run("--local", "--only", "table", "--only", "train").code == 0


@pytest.mark.parametrize(
    ("gpus", "slots", "shares"),
    [("4,5", 2, {"4", "5"}), ("4,5", 1, {"4,5"}), ("4,5", 3, {"4", "5"}), ("GPU-a", 2, {"GPU-a"}), ("-1", 1, {"-1"})],
)
def test_gpus_are_shared_out(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch, gpus: str, slots: int, shares: set[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    write(work, "name: a, paralleljobs: [WORK a1, WORK a2, WORK a3]")
    assert run("--local", str(slots)).code == 0
    assert {row[2] for row in log(work)} == shares


def test_gpus_are_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert local.visible_gpus() == ["0", "1"]


def test_inside_an_allocation_its_number_is_not_taken(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_TMPDIR"):
        monkeypatch.setenv(name, "7")
    write(work, "name: a, paralleljobs: ['echo $SLURM_JOB_ID-$SLURM_TMPDIR > seen']")
    assert run("--local").code == 0
    assert (work / "seen").read_text() == "-7\n"


SLEEPER = """
import signal, sys, time
from pathlib import Path
stop = []
signal.signal(signal.SIGTERM, lambda n, f: stop.append(n))
Path("ready").touch()
end = time.time() + 90
while not stop and not Path("go").exists() and time.time() < end:
    time.sleep(0.01)
Path("ready").unlink()
sys.exit(75 if stop else 0)
"""


@pytest.fixture
def sleeping(work: Path) -> subprocess.Popen[str]:
    """A jobrunner in a process of its own, whose first job runs and whose second waits."""
    (work / "sleeper.py").write_text(SLEEPER)
    job = f"{sys.executable} sleeper.py"
    write(work, f"name: a, paralleljobs: [{job}]", "name: b, after: a, paralleljobs: ['true']")
    # the configuration check imports torch, and there is nothing to check
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import jobrunner; from utils.slurm import commands\n"
        "commands.sending_problems = lambda groups: []; jobrunner.run_cli(jobrunner.main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--local"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for((work / "ready").exists)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_jobs_save(
    sleeping: subprocess.Popen[str], work: Path, run: Run, statuses: Statuses, number: signal.Signals
) -> None:
    assert [job["state"] for job in statuses().values()] == ["running", "not sent"]
    sleeping.send_signal(number)
    out, err = sleeping.communicate(timeout=60)
    assert sleeping.returncode == 2 and "stopped, the same command goes on" in out and "1 were not started" in err
    assert [(job["state"], job["code"]) for job in statuses().values()] == [("cancelled", 75), ("not sent", None)]
    (work / "go").touch()
    assert run("--local").code == 0
    assert [job["state"] for job in statuses().values()] == ["done", "done"]


def test_cancel_stops_jobs_here(sleeping: subprocess.Popen[str], work: Path, run: Run) -> None:
    busy = run("--cancel")
    assert busy.code == 2 and "is already being managed by process" in busy.err
    sleeping.kill()
    sleeping.wait()
    assert run("--cancel").out == "cancelled 1 jobs\n"
    wait_for(lambda: not (work / "ready").exists())


def test_a_killed_jobrunner_leaves_jobs_that_are_not_doubled(
    sleeping: subprocess.Popen[str], work: Path, run: Run, statuses: Statuses
) -> None:
    """The next one waits for what still runs, and keeps its slot and its group's max_jobs free of others."""
    sleeping.kill()
    sleeping.wait()
    assert [job["state"] for job in statuses().values()] == ["running", "not sent"]
    limited = "max_jobs: 1, paralleljobs: [{}, 'test ! -e ready && touch beside']".format(
        f"{sys.executable} sleeper.py"
    )
    write(work, f"name: a, {limited}", "name: b, after: a, paralleljobs: ['true']", "name: c, paralleljobs: [touch go]")
    again = run("--local", "2", "--retry")
    assert again.code == 0, again.err
    ended = [line.partition(".")[0] for line in again.out.splitlines() if ": done after" in line]
    assert sorted(ended) == ["a", "a", "b", "c"] and ended[-1] == "b" and (work / "beside").exists()
    assert {job["state"] for job in statuses().values()} == {"done"}
    state = json.loads((work / "runs/.jobs/state.json").read_text())
    assert sum(item["group"] == "a" for item in state["submissions"]) == 2


def test_what_a_killed_jobrunner_left_is_waited_for(
    sleeping: subprocess.Popen[str], work: Path, run: Run, statuses: Statuses
) -> None:
    """Otherwise a table that the shell makes next would lack it."""
    sleeping.kill()
    sleeping.wait()
    threading.Timer(0.5, (work / "go").touch).start()
    again = run("--local", "--only", "a")
    assert again.code == 0 and re.fullmatch(r"(a\.\w+): still runs, .*\n\1: done after \d+ s\n", again.out)
    assert [job["state"] for job in statuses().values()] == ["done", "not sent"]


def test_a_job_whose_script_was_killed_runs_until_its_processes_are_gone(work: Path, run: Run) -> None:
    (work / "sleeper.py").write_text(SLEEPER)
    write(work, f"name: a, paralleljobs: [{sys.executable} sleeper.py, 'test ! -e ready && touch beside']")

    def kill() -> None:
        wait_for((work / "ready").exists)
        (event,) = (work / "runs/.jobs/events").iterdir()
        os.kill(int(event.read_text().split(" ")[4]), signal.SIGKILL)
        threading.Timer(0.5, (work / "go").touch).start()

    thread = threading.Thread(target=kill)
    thread.start()
    done = run("--local", "1")
    thread.join()
    assert done.code == 2 and "failed (137)" in done.out and (work / "beside").exists()


def test_without_locks_a_job_is_known_by_its_processes(
    sleeping: subprocess.Popen[str], work: Path, statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping.kill()
    sleeping.wait()

    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert [job["state"] for job in statuses().values()] == ["running", "not sent"]
    (work / "go").touch()
    wait_for(lambda: [job["state"] for job in statuses().values()] == ["done", "not sent"])


def test_a_slot_that_is_taken_is_not_given_again(
    sleeping: subprocess.Popen[str], work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The left job has the first slot, and so the first GPU."""
    sleeping.kill()
    sleeping.wait()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    write(work, f"name: a, paralleljobs: [{sys.executable} sleeper.py]",
          "name: c, paralleljobs: ['echo $CUDA_VISIBLE_DEVICES > gpu; touch go']")  # fmt: skip
    assert run("--local", "2").code == 0
    assert (work / "gpu").read_text() == "5\n"
    wait_for(lambda: not (work / "ready").exists())


def test_a_job_that_was_killed_is_lost_and_can_be_repeated(
    sleeping: subprocess.Popen[str], work: Path, run: Run, statuses: Statuses
) -> None:
    sleeping.kill()
    sleeping.wait()
    (event,) = (work / "runs/.jobs/events").iterdir()
    script = int(event.read_text().split(" ")[4])
    children = Path(f"/proc/{script}/task/{script}/children").read_text().split()
    os.kill(script, signal.SIGKILL)
    for child in children:
        os.killpg(int(child), signal.SIGKILL)
    wait_for(lambda: next(iter(statuses().values()))["state"] == "lost")
    (work / "go").touch()
    assert run("--local").code == 0
    assert [job["state"] for job in statuses().values()] == ["done", "done"]


def test_what_failed_earlier_or_lost_its_run_is_told_until_it_is_repeated(
    work: Path, run: Run, statuses: Statuses
) -> None:
    pointed = "mkdir run; echo $PWD/run > runs/.jobs/pointers/$(basename $(ls -t runs/.jobs/locks/a.* | head -1))"
    write(work, f"name: a, paralleljobs: ['{pointed}']", "name: b, paralleljobs: [WORK fail]")
    assert run("--local", "--only", "a").code == 0 and run("--local").code == 2
    again = run("--local")
    assert again.code == 1 and again.out == "nothing to send; 1 jobs did not end well: --retry sends them again\n"
    (work / "run").rmdir()
    assert run("--local").code == 1 and [job["state"] for job in statuses().values()] == ["without result", "failed"]
    assert run("--local", "--retry").code == 0
    assert {job["state"] for job in statuses().values()} == {"done"}


def test_a_failed_job_that_was_corrected_in_the_file_is_not_told_for_ever(work: Path, run: Run) -> None:
    write(work, "name: a, paralleljobs: [WORK fail]")
    assert run("--local").code == 2
    write(work, "name: a, paralleljobs: [WORK corrected]")
    assert run("--local").code == 0
    again = run("--local")
    assert again.code == 0 and again.out == "nothing to send\n"
