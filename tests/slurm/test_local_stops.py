"""What a stop, a kill and a failure leave of the jobs on this machine, and how the next call goes on."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.conftest import wait_for
from tests.slurm.local_work import write
from utils.slurm.ledger import is_running, lock_file

ROOT = Path(__file__).parents[2]
Run = Callable[..., SimpleNamespace]
Statuses = Callable[[], dict[str, dict[str, Any]]]

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


def test_who_asks_whether_a_job_runs_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    with open(lock_file(tmp_path, "a"), "w") as job, open(lock_file(tmp_path, "a")) as asks:
        fcntl.flock(asks, fcntl.LOCK_SH)
        assert not is_running(tmp_path, "a")
        fcntl.flock(asks, fcntl.LOCK_UN)
        fcntl.flock(job, fcntl.LOCK_EX)
        assert is_running(tmp_path, "a")


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
