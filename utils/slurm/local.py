"""The jobs of a sweep on this machine, some at a time, for those without SLURM.

Each job runs the same script that SLURM would get, and holds a lock for as long as any process of it lives, so
that a later call sees it running even if the jobrunner that started it was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text
from utils.slurm.markers import read_marker
from utils.slurm.script import INTERRUPTED, batch_script, job_name, log_file
from utils.slurm.state import LOCAL, LOCAL_MARK, State, Submission
from utils.slurm.status import RETRY, JobStatus
from utils.slurm.sweep import Group, Job, Sweep

_POLL = 0.1  # seconds


@dataclass
class _Running:
    job: Job
    group: Group
    process: subprocess.Popen[bytes]
    slot: int
    started: float


def visible_gpus() -> list[str]:
    """The GPUs to share out: those of CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]


def run_local(
    sweep: Sweep, groups: list[Group], state: State, statuses: list[JobStatus], slots: int, retry: bool
) -> Iterator[str]:
    """Run what is left of ``groups``, ``slots`` jobs at a time; yields a line for each start and end.

    SIGTERM and Ctrl-C are passed on to the jobs, which save and end; nothing more is started then.
    """
    by_id = {status.id: status for status in statuses}
    wanted = ("not sent", "refused", *(RETRY if retry else ()))
    waiting = [(group, job) for group in groups for job in group.jobs if by_id[job.id].state in wanted]
    scripts = {group.name: _prepare(group, [job for g, job in waiting if g is group], state) for group in groups}
    state.save()
    done = {status.id for status in statuses if status.state == "done"}
    gpus, running, failed = visible_gpus(), [], 0
    with _stop_request() as stop:
        while running or (waiting and not stop):
            for group, job in list(waiting):
                taken = {item.slot for item in running}
                full = len(taken) >= slots or sum(item.group is group for item in running) >= (group.max_jobs or slots)
                if stop or full or not _ready(sweep, group, done):
                    continue
                waiting.remove((group, job))
                slot = min(set(range(slots)) - taken)
                item, task = scripts[group.name]
                running.append(_start(group, job, state, item, task.index(job.id), slot, _share(gpus, slot, slots)))
                yield f"{job.id}: started  {job.label}"
            if not running:
                break
            time.sleep(_POLL)
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                code = item.process.returncode
                done |= {item.job.id} if code == 0 else set()
                failed += code != 0
                how = "done" if code == 0 else "stopped, --retry goes on" if code == INTERRUPTED else f"failed ({code})"
                yield f"{item.job.id}: {how} after {time.monotonic() - item.started:.0f} s"
            if stop == ["pass on"]:
                stop[:] = ["passed on"]
                for item in running:
                    item.process.send_signal(signal.SIGTERM)
    if waiting:
        yield f"{len(waiting)} jobs were not started{'' if stop else ': a group they wait for did not end well'}"
    if failed or waiting:
        raise UserError(f"{failed} jobs failed or were stopped, {len(waiting)} were not started; see -s and --logs JOB")


def stop_local(state: State, statuses: list[JobStatus]) -> list[str]:
    """Ask jobs that run on this machine to save and end; the ids of those asked."""
    asked = []
    latest = state.latest()
    for status in statuses:
        item, task = latest.get(status.id, (None, 0))
        marker = read_marker(state.folder, item.token, task) if item and item.slurm_id == LOCAL else None
        if status.state == "running" and marker is not None and marker.host == os.uname().nodename:
            with contextlib.suppress(ProcessLookupError):
                os.kill(marker.pid, signal.SIGTERM)
                asked.append(status.id)
    return asked


def _prepare(group: Group, jobs: list[Job], state: State) -> tuple[Submission, list[str]]:
    """Write down the group's jobs and its script; the submission and its jobs' ids in task order."""
    ids = [job.id for job in jobs]
    token = state.next_token(group, jobs)
    item = Submission(token, job_name(group, token), group.name, ids, True, time.time(), LOCAL)
    if jobs:
        text = batch_script(
            group=group, jobs=jobs, token=token, state=state.folder, folder=Path.cwd(), array=True, limit=None
        )
        write_text(state.folder / "scripts" / f"{token}.sh", text + LOCAL_MARK)
        state.submissions.append(item)
    return item, ids


def _ready(sweep: Sweep, group: Group, done: set[str]) -> bool:
    return all(job.id in done for other in sweep.groups if other.name in group.after for job in other.jobs)


def _share(gpus: list[str], slot: int, slots: int) -> list[str]:
    """A slot's GPUs: its own ones, or one that it shares where there are more slots than GPUs."""
    return gpus[slot::slots] or gpus[slot % len(gpus) : slot % len(gpus) + 1] if gpus else []


def _start(group: Group, job: Job, state: State, item: Submission, task: int, slot: int, gpus: list[str]) -> _Running:
    # Inside an allocation the script must not take the allocation's number for its own.
    environment = {
        key: value for key, value in os.environ.items() if key == "SLURM_TMPDIR" or not key.startswith("SLURM_")
    }
    environment["ROSA_TASK"] = str(task)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    script = state.folder / "scripts" / f"{item.token}.sh"
    with (
        open(state.folder / "locks" / job.id, "a") as held,
        open(log_file(state.folder, item.token, task), "ab") as log,
    ):
        with contextlib.suppress(OSError):  # a file system without locks, of which ``lock`` has warned
            fcntl.flock(held, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            pass_fds=[held.fileno()], start_new_session=True,
        )  # fmt: skip
    return _Running(job, group, process, slot, time.monotonic())


@contextlib.contextmanager
def _stop_request() -> Iterator[list[str]]:
    """A list that is empty until SIGTERM or Ctrl-C asks for a stop."""
    stop: list[str] = []

    def note(_number: int, _frame: object) -> None:
        if not stop:
            stop.append("pass on")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
