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
from utils.io.files import write_text
from utils.processes.signals import EXIT_INTERRUPTED
from utils.slurm.cluster.events import read_marker
from utils.slurm.cluster.script import batch_script, job_name, log_file
from utils.slurm.ledger import JOB_LOCK, LOCAL, LOCAL_MARK, State, Submission, is_running
from utils.slurm.status import RETRY, JobStatus
from utils.slurm.sweep.file import Group, Job, Sweep

_POLL = 0.1  # seconds
KILLED = 137  # of a job that left no word of how it ended


@dataclass
class _Running:
    """A job that runs here. ``process`` is None where a jobrunner that was killed had started it."""

    job: str
    group: str
    item: Submission
    task: int
    slot: int
    process: subprocess.Popen[bytes] | None
    started: float  # on the monotonic clock

    def code(self, folder: Path) -> int | None:
        """How it ended, None while it runs."""
        if self.process is not None:
            return self.process.poll()
        if is_running(folder, self.job):
            return None
        marker = read_marker(folder, self.item.token, self.task)
        return KILLED if marker is None or marker.code is None else marker.code


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

    Jobs that a killed jobrunner left running count like its own while others wait. SIGTERM and Ctrl-C are passed on to
    the jobs started here, which save and end; nothing more is started then.
    """
    by_id = {status.id: status for status in statuses}
    wanted = ("not sent", "refused", *(RETRY if retry else ()))
    waiting = [(group, job) for group in groups for job in group.jobs if by_id[job.id].state in wanted]
    scripts = {group.name: _prepare(group, [job for g, job in waiting if g is group], state) for group in groups}
    state.save()
    done = {status.id for status in statuses if status.state == "done"}
    gpus, running, failed = visible_gpus(), _left_running(statuses, state), 0
    with _stop_request() as stop:
        while any(item.process for item in running) or (waiting and not stop):
            while not stop and (ready := _next(sweep, waiting, running, slots, done)) is not None:
                waiting.remove(ready)
                group, job = ready
                slot = min(set(range(slots)) - {item.slot for item in running})
                running.append(_start(job, state, scripts[group.name], slot, _share(gpus, slot, slots)))
                yield f"{job.id}: started  {job.label}"
            if not running:
                break
            time.sleep(_POLL)
            for item, code in [(item, item.code(state.folder)) for item in running]:
                if code is None:
                    continue
                running.remove(item)
                done |= {item.job} if code == 0 else set()
                failed += code != 0
                yield f"{item.job}: {_ending(code)} after {time.monotonic() - item.started:.0f} s"
            if stop == ["pass on"]:
                stop[:] = ["passed on"]
                for item in running:
                    if item.process is not None:
                        item.process.send_signal(signal.SIGTERM)
    if waiting:
        at_slurm = any(status.active and status.slurm_id != LOCAL for status in statuses)
        why = "is not through" if at_slurm else "did not end well"
        yield f"{len(waiting)} jobs were not started{'' if stop else f': a group they wait for {why}'}"
    if failed or waiting:
        raise UserError(f"{failed} jobs failed or were stopped, {len(waiting)} were not started; see -s and --logs JOB")


def _ending(code: int) -> str:
    if code == EXIT_INTERRUPTED:
        return "stopped, --retry goes on"
    return f"failed ({code})" if code else "done"


def _next(
    sweep: Sweep, waiting: list[tuple[Group, Job]], running: list[_Running], slots: int, done: set[str]
) -> tuple[Group, Job] | None:
    """The first job that may start now."""
    for group, job in waiting if len(running) < slots else []:
        same = sum(item.group == group.name for item in running)
        before = (other for other in sweep.groups if other.name in group.after)
        if same < (group.max_jobs or slots) and all(one.id in done for other in before for one in other.jobs):
            return group, job
    return None


def _left_running(statuses: list[JobStatus], state: State) -> list[_Running]:
    """The jobs that run on this machine already; each keeps the slot, and so the GPUs, that its lock file names."""
    latest = state.latest()
    found = []
    for status in statuses:
        if status.state == "running" and status.slurm_id == LOCAL:
            noted = (state.folder / "locks" / status.id).read_text(encoding="utf-8", errors="replace").strip()
            started = time.monotonic() - (status.elapsed or 0)
            slot = int(noted) if noted.isdecimal() else 0
            found.append(_Running(status.id, status.group, *latest[status.id], slot, None, started))
    return found


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


def _prepare(group: Group, jobs: list[Job], state: State) -> Submission:
    """Write down the group's jobs and its script."""
    ids = [job.id for job in jobs]
    token = state.next_token(group, jobs)
    item = Submission(token, job_name(group, token), group.name, ids, True, time.time(), LOCAL)
    if jobs:
        text = batch_script(
            group=group, jobs=jobs, token=token, folder=state.folder, workdir=Path.cwd(), array=True, limit=None
        )
        write_text(state.folder / "scripts" / f"{token}.sh", text + LOCAL_MARK)
        state.submissions.append(item)
    return item


def _share(gpus: list[str], slot: int, slots: int) -> list[str]:
    """A slot's GPUs: its own ones, or one that it shares where there are more slots than GPUs."""
    return gpus[slot::slots] or gpus[slot % len(gpus) : slot % len(gpus) + 1] if gpus else []


def _start(job: Job, state: State, item: Submission, slot: int, gpus: list[str]) -> _Running:
    task = item.jobs.index(job.id)
    # Inside an allocation the script must not take the allocation's number for its own.
    environment = {
        key: value for key, value in os.environ.items() if key == "SLURM_TMPDIR" or not key.startswith("SLURM_")
    }
    environment |= {"ROSA_TASK": str(task), JOB_LOCK: str(state.folder / "locks" / job.id)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    script = state.folder / "scripts" / f"{item.token}.sh"
    with (
        open(state.folder / "locks" / job.id, "a") as held,
        open(log_file(state.folder, item.token, task), "ab") as log,
    ):
        with contextlib.suppress(OSError):  # a file system without locks: the environment tells
            fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)
        held.write(f"{slot}\n")
        held.flush()
        process = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            pass_fds=[held.fileno()], start_new_session=True,
        )  # fmt: skip
    return _Running(job.id, job.group, item, task, slot, process, time.monotonic())


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
