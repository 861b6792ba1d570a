"""Run the jobs of a sweep on this machine, without SLURM, a few at a time.

Each job runs the script that SLURM would get. It holds a lock for as long as any of its processes lives, so that a
later call sees it running even if the jobrunner that started it was killed.
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
from utils.slurm.cluster.events import Attempt, read_attempt
from utils.slurm.cluster.script import batch_script, log_file
from utils.slurm.ledger import JOB_LOCK, LOCAL, LOCAL_MARK, Ledger, Submission, is_running, lock_file, unfit
from utils.slurm.status import DIVERGED, TO_SEND, UNFIT, WITH_RESULT, JobStatus, states_to_send
from utils.slurm.submit import new_submission
from utils.slurm.sweep.file import Group, Job, Sweep

_POLL = 0.1  # seconds
KILLED = 137  # exit code of a job that could not note how it ended


@dataclass
class _Running:
    """A job that runs here. ``process`` is None if it was started by a jobrunner that was killed, or if its script was
    killed and what that had started goes on.
    """

    job: str
    group: str
    submission: Submission
    task: int
    slot: int
    process: subprocess.Popen[bytes] | None
    started: float  # on the monotonic clock

    def code(self, folder: Path) -> int | None:
        """Its exit code; None while it runs."""
        if self.process is not None:
            code = self.process.poll()
            if code is None or code >= 0 or not is_running(folder, self.job):
                return code
            self.process = None
        if is_running(folder, self.job):
            return None
        attempt = read_attempt(folder, self.submission.token, self.task)
        return KILLED if attempt is None or attempt.code is None else attempt.code


def visible_gpus() -> list[str]:
    """The GPUs that jobs share: those of CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]


class _Queue:
    """The jobs of ``groups`` that are still to be started. Searches add to them as trials end."""

    def __init__(
        self, sweep: Sweep, groups: list[Group], ledger: Ledger, statuses: dict[str, JobStatus], retry: bool
    ) -> None:
        self.sweep, self.names, self.ledger = sweep, {group.name for group in groups}, ledger
        wanted = states_to_send(retry)
        self.seen = {one.id for one in statuses.values() if one.state not in wanted and not one.stopped_here}
        self.done = {one.id for one in statuses.values() if one.state in WITH_RESULT}
        self.waiting: list[tuple[Group, Job]] = []
        self.scripts: dict[str, Submission] = {}  # by job
        self._extend()

    def _extend(self) -> None:
        """Add the jobs that have not been seen."""
        for group in self.sweep.groups:
            jobs = [job for job in group.jobs if group.name in self.names and job.id not in self.seen]
            if jobs:
                submission = _prepare(group, jobs, self.ledger)
                self.waiting += [(group, job) for job in jobs]
                self.scripts |= {job.id: submission for job in jobs}
                self.seen |= {job.id for job in jobs}
        self.ledger.save()

    def expects_more(self, running: list[_Running]) -> bool:
        """Whether jobs of these groups are left to start, or run: further ones may follow from a trial."""
        known = {job for group in self.sweep.groups if group.name in self.names for job in group.job_ids}
        return bool(self.waiting) or any(one.job in known or one.group in self.names for one in running)

    def note(self, ended: list[tuple[_Running, int]]) -> list[str]:
        """Add the jobs that follow from those that have ended; return what searches have found by them."""
        self.done |= {one.job for one, code in ended if code == 0}
        if not {one.job for one, _ in ended} & {job for group in self.sweep.groups for job in group.waits}:
            return []
        before = set(self.sweep.findings())
        self.sweep = self.sweep.again()
        self.done |= self.sweep.without_loss
        self._extend()
        return [line for line in self.sweep.findings() if line not in before]

    def obstacle(self, statuses: dict[str, JobStatus]) -> str:
        """Why nothing else may start."""
        names = {name for group, _ in self.waiting for name in group.after}
        before = [statuses.get(job) for group in self.sweep.groups if group.name in names for job in group.job_ids]
        for status in before:
            if status is not None and status.state in TO_SEND and status.group not in self.names:
                return f"a group they wait for was not run{status.way_out}"
        at_slurm = any(status.active and status.slurm_id != LOCAL for status in statuses.values())
        return f"a group they wait for {'is not through' if at_slurm else 'did not end well'}"

    def next(self, running: list[_Running], slots: int) -> tuple[Group, Job] | None:
        """Take the first job that may start now; None if none may."""
        for group, job in self.waiting if len(running) < slots else []:
            same = sum(one.group == group.name for one in running)
            before = [other for other in self.sweep.groups if other.name in group.after]
            through = all(other.settled and self.done.issuperset(other.job_ids) for other in before)
            if same < (group.max_jobs or slots) and through:
                self.waiting.remove((group, job))
                return group, job
        return None


def run_local(
    sweep: Sweep, groups: list[Group], ledger: Ledger, statuses: dict[str, JobStatus], slots: int, retry: bool
) -> Iterator[str]:
    """Run what is left of ``groups``, ``slots`` jobs at a time; yield one line per start and end.

    Jobs that a killed jobrunner left running take slots like its own, and those of ``groups`` are waited for. SIGTERM
    and Ctrl-C are passed on to the jobs that were started here, which save and end; no other job starts after that.

    Raises:
        UserError: jobs failed, were stopped or were not started.
    """
    queue = _Queue(sweep, groups, ledger, statuses, retry)
    gpus, running, failed = visible_gpus(), _left_running(statuses, ledger), 0
    yield from (f"{one.job}: still runs, started by an earlier call" for one in running)
    passed_on = False
    with _stop_request() as stop:
        while any(one.process for one in running) or (queue.expects_more(running) and not stop):
            while not stop and (ready := queue.next(running, slots)) is not None:
                _, job = ready
                slot = min(set(range(slots)) - {one.slot for one in running})
                running.append(_start(job, ledger, queue.scripts[job.id], slot, _share(gpus, slot, slots)))
                yield f"{job.id}: started  {job.label}"
            if not running:
                break
            time.sleep(_POLL)
            ended = _ended(running, ledger.folder)
            found = queue.note(ended)
            for one, code in ended:
                failed += one.job not in queue.done
                how = _ending(code, read_attempt(ledger.folder, one.submission.token, one.task))
                if code and one.job in queue.done:
                    how = UNFIT if unfit(ledger.folder, one.job) else DIVERGED
                yield f"{one.job}: {how} after {time.monotonic() - one.started:.0f} s"
            yield from found
            if stop and not passed_on:
                passed_on = True
                for one in running:
                    if one.process is not None:
                        one.process.send_signal(signal.SIGTERM)
    if queue.waiting:
        yield f"{len(queue.waiting)} jobs were not started{'' if stop else f': {queue.obstacle(statuses)}'}"
    if failed or queue.waiting:
        raise UserError(
            f"{failed} jobs failed or were stopped, {len(queue.waiting)} were not started; see -s and --logs JOB"
        )


def _ended(running: list[_Running], folder: Path) -> list[tuple[_Running, int]]:
    """Take the jobs that have ended off ``running``; return them with their exit codes."""
    codes = [(one, one.code(folder)) for one in running]
    ended = [(one, code) for one, code in codes if code is not None]
    for one, _ in ended:
        running.remove(one)
    return ended


def _ending(code: int, attempt: Attempt | None) -> str:
    """How a job with this exit code ended, in words."""
    if code == EXIT_INTERRUPTED:
        return "stopped, the same command goes on"
    if code and attempt is not None and attempt.signal:
        return "cancelled"
    return f"failed ({code})" if code else "done"


def _left_running(statuses: dict[str, JobStatus], ledger: Ledger) -> list[_Running]:
    """The jobs that run on this machine already. Each keeps the slot, and so the GPUs, that its lock file names."""
    latest = ledger.latest()
    found = []
    for status in statuses.values():
        if status.state == "running" and status.slurm_id == LOCAL:
            noted = lock_file(ledger.folder, status.id).read_text(encoding="utf-8", errors="replace").strip()
            started = time.monotonic() - (status.elapsed or 0)
            slot = int(noted) if noted.isdecimal() else 0
            found.append(_Running(status.id, status.group, *latest[status.id], slot, None, started))
    return found


def stop_local(ledger: Ledger, statuses: list[JobStatus]) -> list[str]:
    """Ask jobs that run on this machine to save and end; return the ids of those asked."""
    asked = []
    latest = ledger.latest()
    for status in statuses:
        if status.state != "running" or status.slurm_id != LOCAL:
            continue
        submission, task = latest[status.id]
        attempt = read_attempt(ledger.folder, submission.token, task)
        if attempt is not None and attempt.host == os.uname().nodename:
            with contextlib.suppress(ProcessLookupError):
                os.kill(attempt.pid, signal.SIGTERM)
                asked.append(status.id)
    return asked


def _prepare(group: Group, jobs: list[Job], ledger: Ledger) -> Submission:
    """Write the group's script, and its jobs into the ledger."""
    submission = new_submission(group, jobs, True, ledger, LOCAL)
    token = submission.token
    text = batch_script(group=group, jobs=jobs, token=token, folder=ledger.folder, array=True, limit=None)
    write_text(ledger.script(token), text + LOCAL_MARK)
    ledger.submissions.append(submission)
    return submission


def _share(gpus: list[str], slot: int, slots: int) -> list[str]:
    """A slot's GPUs: its own, or one that it shares if there are more slots than GPUs."""
    return gpus[slot::slots] or gpus[slot % len(gpus) : slot % len(gpus) + 1] if gpus else []


def _start(job: Job, ledger: Ledger, submission: Submission, slot: int, gpus: list[str]) -> _Running:
    task, held_file = submission.jobs.index(job.id), lock_file(ledger.folder, job.id)
    # Inside an allocation of SLURM the script must not take the allocation's number for its own.
    environment = {
        key: value for key, value in os.environ.items() if key == "SLURM_TMPDIR" or not key.startswith("SLURM_")
    }
    environment |= {"ROSA_TASK": str(task), JOB_LOCK: str(held_file)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    script = ledger.script(submission.token)
    with (
        open(held_file, "a") as held,
        open(log_file(ledger.folder, submission.token, task), "ab") as log,
    ):
        with contextlib.suppress(OSError):  # without locks in the file system, is_running reads the environment
            fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)
        held.write(f"{slot}\n")
        held.flush()
        process = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            pass_fds=[held.fileno()], start_new_session=True,
        )  # fmt: skip
    return _Running(job.id, job.group, submission, task, slot, process, time.monotonic())


@contextlib.contextmanager
def _stop_request() -> Iterator[list[int]]:
    """Yield a list that is empty until SIGTERM or Ctrl-C asks for a stop: then it has the signal's number."""
    stop: list[int] = []

    def note(number: int, _frame: object) -> None:
        stop.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
