"""The launchers' own commands: exit codes when a process is killed or the job gets a signal."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.processes.conftest import ENVIRONMENT, TORCHRUN, Lab, launched
from tests.processes.worker import Job

BOUND = 30  # seconds after which no process of a job may be left
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes=2"]


def worker_ids(launcher: int) -> list[int]:
    """The process ids that a launcher started, by index."""
    return [int(child) for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@contextmanager
def job(lab: Lab, name: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A torchrun of a long training, which has trained some steps. All of it is killed at the end of the block."""
    command = [*TORCHRUN, *options, "train.py", *lab.overrides(name, "train.epochs=100000")]
    before = sum(1 for path in (lab.folder / name).rglob("metrics.jsonl") for _ in path.open())
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    workers: list[int] = []
    try:
        wait(lambda: sum(1 for path in (lab.folder / name).rglob("metrics.jsonl") for _ in path.open()) > before + 20)
        workers = worker_ids(process.pid)
        yield process, workers
    finally:
        for number in {*workers, process.pid, *(worker_ids(process.pid) if process.poll() is None else ())}:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def wait(ready: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_killed_process_ends_the_job_and_a_signal_to_the_launcher_saves(lab: Lab) -> None:
    with job(lab, "killed") as (launcher, processes):
        os.kill(processes[1], signal.SIGKILL)
        output, _ = launcher.communicate(timeout=BOUND)
    assert launcher.returncode != 0
    assert "error: another process of this job ended" in output
    assert not any(Path(f"/proc/{number}").exists() for number in processes)
    run = lab.run("killed")
    assert run.record()["status"] == "failed"

    with job(lab, "killed") as (launcher, processes):
        launcher.send_signal(signal.SIGTERM)
        output, _ = launcher.communicate(timeout=BOUND)
    assert launcher.returncode != 0  # torchrun exits with 1, whatever the exit codes of its processes
    assert not any(Path(f"/proc/{number}").exists() for number in processes)
    assert run.record()["status"] == "interrupted"
    log = run.log_file.read_text()
    assert log.count("interrupted by SIGTERM") == 1 and "resumed from" in log
    assert int(run.last.resolve().name.split("-")[1]) == run.record()["progress"]["step"]

    with job(lab, "killed") as (launcher, _):
        launcher.kill()
        launcher.communicate(timeout=BOUND)  # its processes hold the pipe until they end
    assert run.record()["status"] == "interrupted"


def test_a_torchrun_that_is_gone_is_not_waited_for(lab: Lab) -> None:
    gone = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    gone |= dict(TORCHELASTIC_RUN_ID="x", TORCHELASTIC_USE_AGENT_STORE="True")
    done = launched([sys.executable, "train.py", *lab.overrides("gone")], timeout=90, **gone)
    assert done.returncode == 2 and "error: torchrun cannot be reached" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_to_one_process_ends_all_with_the_documented_code(lab: Lab, index: int) -> None:
    with job(lab, f"signalled-{index}") as (launcher, processes):
        os.kill(processes[index], signal.SIGUSR1)
        output, _ = launcher.communicate(timeout=BOUND)
    assert output.count("exitcode  : 75") == 2
    assert lab.run(f"signalled-{index}").record()["status"] == "interrupted"


@pytest.mark.slow
def test_the_main_process_may_be_the_one_that_is_killed(lab: Lab) -> None:
    with job(lab, "main-killed") as (launcher, processes):
        os.kill(processes[0], signal.SIGKILL)
        output, _ = launcher.communicate(timeout=BOUND)
    assert launcher.returncode != 0 and "another process of this job ended" in output
    assert not any(Path(f"/proc/{number}").exists() for number in processes)
    with job(lab, "main-killed") as (launcher, _):  # takes over the lock and the record
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=BOUND)
    assert lab.run("main-killed").record()["status"] == "interrupted"


@pytest.mark.slow
def test_control_c_saves_once(lab: Lab) -> None:
    """The terminal sends it to all processes and torchrun passes it on, so that each process gets it twice."""
    with job(lab, "interrupted") as (launcher, _):
        os.killpg(launcher.pid, signal.SIGINT)
        launcher.communicate(timeout=BOUND)
    run = lab.run("interrupted")
    assert run.record()["status"] == "interrupted" and run.record()["error"] is None
    assert run.log_file.read_text().count("interrupted by SIGINT") == 1


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_job(lab: Lab) -> None:
    plan = lab.folder / "plan-error"
    plan.write_text(json.dumps([dataclasses.asdict(Job(lab.overrides("error"), happens="error", index=1, step=3))]))
    start = time.monotonic()
    done = launched([*TORCHRUN, "-m", "tests.processes.worker", str(plan)])
    assert done.returncode != 0 and time.monotonic() - start < 2 * BOUND
    assert "planted" in done.stderr


@pytest.mark.slow
def test_torchrun_passes_on_the_signal_of_slurm_when_told_so(lab: Lab) -> None:
    with job(lab, "warned", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1") as (launcher, _):
        launcher.send_signal(signal.SIGUSR1)
        launcher.communicate(timeout=BOUND)
    run = lab.run("warned")
    assert run.record()["status"] == "interrupted"
    assert "interrupted by SIGUSR1" in run.log_file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("option", "processes"), [("--multi_gpu", 2), ("--cpu", 1)])
@pytest.mark.parametrize("method", ["none", "lora", "rosa"])
def test_accelerate_launch(lab: Lab, option: str, processes: int, method: str, tmp_path: Any) -> None:
    """Without a configuration file of accelerate's. On CPUs --cpu gives one process, and says so."""
    name = f"accelerate{option}-{method}"
    command = [*ACCELERATE, option, "train.py", *lab.overrides(name, "train.epochs=1", f"fnmodel.name={method}")]
    done = launched(command, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert lab.run(name).record()["hardware"]["processes"] == processes
    assert ("warning: accelerate launch starts one process" in done.stderr) == (processes == 1)


LATE = """
import sys
import torch
import torch.distributed as dist
from utils.processes.group import disconnect_at_end

with disconnect_at_end():
    sys.setswitchinterval(100)  # a thread gets the interpreter only when the main thread leaves it
    dist.init_process_group("gloo")
    kept = dist.group.WORLD  # as DDP keeps it, so that destroying the group does not wait for its threads
    for _ in range(8):
        dist.all_reduce(torch.zeros(2_000_000), async_op=True)
    sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 143])
def test_a_thread_that_ends_late_does_not_change_the_exit_code(tmp_path: Path, code: int) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE.format(code=code))
    done = launched([*TORCHRUN, str(script)], PYTHONPATH=str(ROOT))
    assert "terminate called" not in done.stderr
    assert done.returncode == 0 if code == 0 else f"exitcode  : {code} " in done.stderr
