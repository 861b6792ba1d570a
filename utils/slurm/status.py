"""The state of each job, from SLURM's listings, the script's own notes and the run's record.

squeue is asked first: only it names a dependency that can never be met. sacct knows what has ended. The script's notes
count where neither lists the job. The ledger remembers how a job ended, since SLURM forgets that.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from utils.errors import UserError
from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs import Run
from utils.slurm.cluster.client import Listing
from utils.slurm.cluster.events import Attempt, read_attempt
from utils.slurm.cluster.parse import Row
from utils.slurm.cluster.reasons import ENDED, NEVER, explain
from utils.slurm.cluster.script import last_words, log_file
from utils.slurm.ledger import LOCAL, SEEN, Ledger, Submission, is_running, noted_runs, unfit
from utils.slurm.sweep.file import Job, Sweep

# This program's words for a job's state. ACTIVE: SLURM has the job. RETRY: it ended without success.
ACTIVE = ("queued", "waiting", "held", "requeued", "running", "never", "unknown")
NO_RESULT = "without result"  # done here, but its run is gone; or a trial whose loss is in no run.json
RETRY = (
    "failed", "cancelled", "timeout", "out of memory", "preempted", "node failed", "interrupted", "lost", "never",
    NO_RESULT,
)  # fmt: skip
DIVERGED = "diverged"  # a trial of a search whose loss became NaN or infinite: a result, which is not tried again
SILENT = "squeue gave no answer"  # the note of a job whose state nobody knows now
UNFIT = "unfit"  # a trial whose settings do not fit the model or the data; --retry tries it again, on repaired data
OUTDATED = "outdated"  # done, but not with all that it waits for (outdated.py)
TO_SEND = ("not sent", "refused", OUTDATED)
STATES = ("not sent", "refused", *dict.fromkeys((*ACTIVE, *RETRY)), OUTDATED, DIVERGED, UNFIT, "done")
WITH_RESULT = (DIVERGED, UNFIT, "done")

# SLURM's words for jobs that have not ended.
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING")
_REQUEUED = ("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass
class JobStatus:
    """What is known of one job.

    Attributes:
        id: the job's own id; ``slurm_id`` is SLURM's number.
        state: one of STATES.
        elapsed: seconds it has run.
        code: its exit code.
        note: why it is in this state, in words.
        run: the newest of ``runs``, the run directories that it trains.
        epoch: the progress of ``run``, as ``step``, ``total_steps`` and ``loss`` are.
        log: the file with what it printed.
        started: when its last attempt started, in seconds since the epoch; ``ended``: when that ended, if it is known.
    """

    id: str
    group: str
    label: str
    state: str
    slurm_id: str | None = None
    elapsed: int | None = None
    code: int | None = None
    note: str = ""
    run: str | None = None
    epoch: float | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    runs: list[str] = field(default_factory=list)
    log: str | None = None
    started: int | None = None
    ended: int | None = None

    @property
    def active(self) -> bool:
        """Whether SLURM, or this machine, has the job."""
        return self.state in ACTIVE

    @property
    def stopped_here(self) -> bool:
        """Whether it was stopped or killed on this machine, where the same command goes on with it."""
        return self.slurm_id == LOCAL and self.state in ("cancelled", "interrupted", "lost")

    @property
    def lost_its_run(self) -> bool:
        """Whether a run that it trained here is gone. Another machine may keep its runs where this one sees none."""
        return self.slurm_id == LOCAL and not all(Path(run).exists() for run in self.runs)

    @property
    def can_end(self) -> bool:
        """Whether it is active and, as far as is known, will end."""
        return self.active and self.state != "never"

    @property
    def way_out(self) -> str:
        """What brings it to its end, for messages about the groups that wait for it."""
        if self.state in TO_SEND:
            return f" (leave out --only, or add --only {self.group})"
        return " (--retry sends that again)" if self.state in RETRY else ""


def states_to_send(retry: bool) -> tuple[str, ...]:
    """The states in which a call sends a job; ``retry``: also one that did not end well."""
    return (*TO_SEND, *RETRY, UNFIT) if retry else TO_SEND


def job_statuses(sweep: Sweep, ledger: Ledger, listing: Listing) -> dict[str, JobStatus]:
    """The status of every job by its id: the jobs of the sweep file, then those that were sent and left the file.

    How a job ended is written to ``ledger``; its ``save`` keeps that.
    """
    latest = ledger.latest()
    names = {group.slug: group.name for group in sweep.groups}
    jobs: dict[str, Job] = {}
    for group in sweep.groups:
        jobs |= {job.id: job for job in group.jobs}
        if (follows := sweep.next_id(group)) in latest:
            jobs[follows] = Job(follows, group.name, "goes on with the search", "", {})
    without_loss, waits = sweep.without_loss, {job for group in sweep.groups for job in group.waits}
    for job_id, (submission, _) in latest.items():
        group_name = names.get(job_id.rpartition(".")[0], submission.group)  # a script has the slug alone
        jobs.setdefault(job_id, Job(job_id, group_name, "(not in the sweep file)", "", {}))
    statuses = {}
    for job in jobs.values():
        status = statuses[job.id] = JobStatus(job.id, job.group, job.label, "not sent")
        if job.id in latest:
            _fill(status, ledger.folder, *latest[job.id], listing)
        elif job.id in ledger.refused:
            status.state, status.note = "refused", ledger.refused[job.id]
        _add_progress(status, ledger.folder)
        if job.id in without_loss and status.state in RETRY:
            reason = unfit(ledger.folder, job.id)
            status.state, status.note = (UNFIT, reason) if reason else (DIVERGED, status.note)
        if status.state == "done" and (job.id in waits or status.lost_its_run):
            status.state = NO_RESULT
    for group in sweep.groups:  # the way of a search that is over
        follows = sweep.next_id(group)
        if group.settled and follows in statuses and not statuses[follows].active:
            del statuses[follows]
    return statuses


def _fill(status: JobStatus, folder: Path, submission: Submission, task: int, listing: Listing) -> None:
    """Fill in the state, elapsed time, exit code, note and log of a job that was sent."""
    attempt = read_attempt(folder, submission.token, task)
    log = log_file(folder, submission.token, task)
    status.slurm_id, status.log = submission.task_id(task), str(log)
    if attempt is not None:
        end = attempt.ended if attempt.ended is not None else int(time.time())
        status.elapsed, status.code = max(0, end - attempt.started), attempt.code
        status.started, status.ended = attempt.started, attempt.ended
    if submission.slurm_id == LOCAL:
        status.state, status.note = _local_state(folder, status.id, attempt)
    elif submission.slurm_id is None:
        status.state, status.note = "unknown", "its submission was interrupted; the next --fn finds out"
    else:
        _fill_from_slurm(status, submission, str(task), attempt, listing)
    if status.state == "timeout":
        status.note = "it reached its time limit"
        if attempt is not None and attempt.started < attempt.limit < 2**40:
            status.note += f" of {timedelta(minutes=math.ceil((attempt.limit - attempt.started) / 60))}"
    if status.state == "failed":
        status.note = "; ".join(text for text in (status.note, last_words(log)) if text)


def _fill_from_slurm(
    status: JobStatus, submission: Submission, task: str, attempt: Attempt | None, listing: Listing
) -> None:
    """Fill in what SLURM and the script say of a job; how it ended is kept in ``submission.seen``."""
    key = (submission.name, status.slurm_id or "")
    row = _row(listing, key)
    if row is not None and row.slurm_state not in ENDED:
        submission.seen.pop(task, None)  # it may have ended before it was put back into the queue
        status.state, status.note = _queue_state(row, attempt)
        status.elapsed, status.code = row.elapsed, None
        return
    # squeue lists the tasks of an array that were cancelled before they started in one row with the array's number
    rest = listing.queued.get((submission.name, submission.slurm_id or "")) if submission.array else None
    if attempt is not None and attempt.code == 0:
        status.state = "done"  # an earlier attempt may have ended otherwise
    elif row is not None:
        _fill_from_row(status, row, attempt)
    elif task in submission.seen:
        for name in SEEN:
            setattr(status, name, submission.seen[task][name])
    elif rest is not None and rest.slurm_state in ENDED and attempt is None:
        _fill_from_row(status, rest, None)
    else:
        status.state, status.note = _unlisted_state(attempt, listing, listing.accounted.get(key))
    if status.state in (*ENDED.values(), "interrupted"):
        submission.seen[task] = {name: getattr(status, name) for name in SEEN}


def _row(listing: Listing, key: tuple[str, str]) -> Row | None:
    """The row that counts: squeue's of a job that has not ended, else sacct's of one that has, else what there is."""
    queued, accounted = listing.queued.get(key), listing.accounted.get(key)
    if queued is not None and queued.slurm_state not in ENDED:
        return queued
    if accounted is not None and (accounted.slurm_state in ENDED or listing.queue is None):
        return accounted
    return queued


def _queue_state(row: Row, attempt: Attempt | None) -> tuple[str, str]:
    """State and note of a job that has not ended."""
    reason = "" if row.reason in ("None", "") else row.reason
    if row.slurm_state in _RUNNING:
        return "running", "" if row.slurm_state == "RUNNING" else row.slurm_state.lower()
    why = explain(reason, row.expected)
    if row.slurm_state in _REQUEUED or (row.slurm_state == "PENDING" and attempt is not None):
        return "requeued", why
    if row.slurm_state != "PENDING":
        return "unknown", f"SLURM calls it {row.slurm_state}"
    if "never" in reason.lower():
        return "never", NEVER
    if reason.startswith("Dependency"):
        return "waiting", why
    return ("held" if "held" in reason.lower() else "queued"), why


def _fill_from_row(status: JobStatus, row: Row, attempt: Attempt | None) -> None:
    """Fill in how a job ended that SLURM lists as ended."""
    status.state, status.elapsed = ENDED[row.slurm_state], row.elapsed
    if attempt is not None and attempt.ended is not None and not attempt.requeued:
        status.note = _killed(attempt.code)  # from the script, since SLURM makes 9 of an exit code of 137
    elif row.signal and row.signal <= 64:  # 0:125 stands for an out-of-memory kill
        status.code = 128 + row.signal
        status.note = f"killed by signal {row.signal}"
    elif row.code or status.state == "done":
        status.code = row.code  # SLURM notes 0 for a job that it stopped; the script's code is kept then
    if status.state == "failed" and status.code == EXIT_INTERRUPTED:
        status.state = "interrupted"
    if not row.started and attempt is None and row.slurm_state == "CANCELLED":
        status.code, status.note = None, "before it started"
    if status.state == "done" and attempt is None:
        status.state, status.note = "lost", "SLURM says that it completed, but its script never noted a start"


def _unlisted_state(attempt: Attempt | None, listing: Listing, accounted: Row | None) -> tuple[str, str]:
    """State and note of a job that SLURM does not list, from what its script noted."""
    if attempt is not None and attempt.ended is not None and not attempt.requeued:
        return _attempt_state(attempt)
    if listing.queue is None:
        return "unknown", SILENT
    if attempt is not None and attempt.signal == "TERM":
        return _stopped(attempt), "killed before it could end by itself"
    if attempt is None:
        what = "it never started: perhaps it was cancelled before"
    elif attempt.requeued:
        what = "it had saved and gone back to the queue"
    else:
        what = "it started and left no last word"
    older = f"; sacct still says {accounted.slurm_state}" if accounted else ""
    return "lost", f"SLURM no longer lists it and {what}{older}"


def _attempt_state(attempt: Attempt) -> tuple[str, str]:
    """State and note of an attempt whose end the script noted."""
    if attempt.code == 0:
        return "done", ""
    if attempt.signal == "TERM":
        return _stopped(attempt), ""
    if attempt.code == EXIT_INTERRUPTED:
        return "interrupted", ""
    return "failed", _killed(attempt.code)


def _killed(code: int | None) -> str:
    """The signal that a shell's exit code stands for, in words; empty if it stands for none."""
    return f"killed by signal {code - 128}" if code is not None and 128 < code <= 192 else ""


def _stopped(attempt: Attempt) -> str:
    """The state after SIGTERM, which comes at the time limit or because somebody cancelled the job."""
    return "timeout" if attempt.limit and (attempt.signalled or 0) >= attempt.limit - 1 else "cancelled"


def _local_state(folder: Path, job: str, attempt: Attempt | None) -> tuple[str, str]:
    """State and note of a job that was started on this machine."""
    if is_running(folder, job):
        return "running", "on this machine"
    if attempt is None:
        return "not sent", ""
    if attempt.ended is None:
        return "lost", "it started on this machine and was killed"
    return _attempt_state(attempt)


def _add_progress(status: JobStatus, folder: Path) -> None:
    """Fill in the run directories and the progress of the newest one, as far as the job has written them."""
    status.runs = noted_runs(folder, status.id)
    if not status.runs:
        return
    status.run = status.runs[-1]
    try:
        record = Run(Path(status.run)).record()
    except UserError:
        return  # not written yet, or removed
    progress, last = record.get("progress") or {}, record.get("last") or {}
    status.epoch, status.step = progress.get("epoch"), progress.get("step")
    status.total_steps = progress.get("total_steps")
    status.loss = last.get("loss")
