"""What became of each job: SLURM's listings, the script's own notes and the run's record, put together.

squeue speaks for what is alive (only it names a dependency that can never be met), sacct for what has ended,
the script's notes where neither knows the job any more. What has ended is remembered in the state file.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.runs import Run
from utils.slurm.cluster.client import Listing
from utils.slurm.cluster.events import Marker, read_marker
from utils.slurm.cluster.parse import Row
from utils.slurm.cluster.reasons import NEVER, explain
from utils.slurm.cluster.script import INTERRUPTED, log_file
from utils.slurm.ledger import LOCAL, SEEN, State, Submission, is_running
from utils.slurm.sweep.file import Job, Sweep

# This program's words for a job's state. ACTIVE: SLURM has it. RETRY: it ended without success.
ACTIVE = ("queued", "waiting", "held", "requeued", "running", "never", "unknown")
RETRY = (
    "failed",
    "cancelled",
    "timeout",
    "out of memory",
    "preempted",
    "node failed",
    "interrupted",
    "lost",
    "never",
)
STATES = ("not sent", "refused", *dict.fromkeys((*ACTIVE, *RETRY)), "done")

ENDED = {
    "COMPLETED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "LAUNCH_FAILED": "failed",
    "RECONFIG_FAIL": "failed",
    "REVOKED": "cancelled",
}
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING")
_REQUEUED = ("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass
class JobStatus:
    """One job. ``elapsed`` in seconds; ``epoch``, ``loss`` the latest of its run's record; ``note``: why."""

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

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return asdict(self)


def survey(sweep: Sweep, state: State, listing: Listing) -> list[JobStatus]:
    """The status of every job of the sweep file, then of jobs that were sent and stand in it no more.

    What has ended is noted in ``state`` (``save`` keeps it).
    """
    queue = {row.id: row for row in listing.queue or []}
    accounting = {row.id: row for row in reversed(listing.accounting or [])}
    latest = state.latest()
    known = {job.id: job for job in sweep.jobs}
    gone = [Job(name, item.group, "(not in the sweep file)", "", {}) for name, (item, _) in latest.items()
            if name not in known]  # fmt: skip
    statuses = []
    for job in [*known.values(), *gone]:
        status = JobStatus(job.id, job.group, job.label, "not sent")
        if job.id in latest:
            item, task = latest[job.id]
            task_id = item.task_id(task) or ""
            rest = queue.get(item.slurm_id or "") if item.array else None
            rows = (queue.get(task_id), accounting.get(task_id), rest)
            _fill(status, state.folder, item, task, rows, listing.queue is not None)
            log = log_file(state.folder, item.token, task)
            status.log = str(log)
            if status.state == "failed":
                status.note = "; ".join(text for text in (status.note, _last_words(log)) if text)
        elif job.id in state.refused:
            status.state, status.note = "refused", state.refused[job.id]
        _add_progress(status, state.folder)
        statuses.append(status)
    return statuses


def _last_words(log: Path) -> str:
    """The last line that a job printed, which is where programs say why they stop; at most 200 characters of it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    words = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(sign if sign.isprintable() else " " for sign in words.strip())[:200]


def _fill(
    status: JobStatus, folder: Path, item: Submission, task: int, rows: tuple[Row | None, ...], asked: bool
) -> None:
    """State, elapsed time, exit code and note of a job that was sent; what has ended is kept in ``item.seen``.

    ``rows``: squeue's, sacct's, and squeue's for those tasks of its array that were cancelled before they started.
    """
    queued, accounted, rest = rows
    marker = read_marker(folder, item.token, task)
    status.slurm_id = item.task_id(task)
    if marker is not None:
        end = marker.ended if marker.ended is not None else int(time.time())
        status.elapsed, status.code = max(0, end - marker.started), marker.code
    if item.slurm_id == LOCAL:
        status.state, status.note = _local_state(folder, status.id, marker)
        return
    if item.slurm_id is None:
        status.state, status.note = "unknown", "its submission was interrupted; the next --fn finds out"
        return
    key = str(task)
    alive = queued is not None and queued.state not in ENDED
    row = queued if alive else accounted if accounted is not None and accounted.state in ENDED else queued
    if row is None and not asked:
        row = accounted
    if row is not None and (alive or row.state not in ENDED):
        item.seen.pop(key, None)  # it ended once and was put back into the queue
        status.state, status.note = _alive_state(row, marker)
        status.elapsed, status.code = row.elapsed, None
        return
    if marker is not None and marker.code == 0:
        status.state = "done"  # whatever became of an earlier attempt
    elif row is not None:
        _from_ended(status, row, marker)
    elif key in item.seen:
        for name in SEEN:
            setattr(status, name, item.seen[key][name])
    elif rest is not None and rest.state in ENDED and marker is None:
        _from_ended(status, rest, None)
    else:
        _from_marker(status, marker, asked, accounted)
    if status.state in (*ENDED.values(), "interrupted"):
        item.seen[key] = {name: getattr(status, name) for name in SEEN}


def _alive_state(row: Row, marker: Marker | None) -> tuple[str, str]:
    reason = "" if row.reason in ("None", "") else row.reason
    if row.state in _RUNNING:
        return "running", "" if row.state == "RUNNING" else row.state.lower()
    why = explain(reason, row.expected)
    if row.state in _REQUEUED or (row.state == "PENDING" and marker is not None):
        return "requeued", why
    if row.state != "PENDING":
        return "unknown", f"SLURM calls it {row.state}"
    if "never" in reason.lower():
        return "never", NEVER
    if reason.startswith("Dependency"):
        return "waiting", why
    return ("held" if "held" in reason.lower() else "queued"), why


def _from_ended(status: JobStatus, row: Row, marker: Marker | None) -> None:
    status.state, status.elapsed = ENDED[row.state], row.elapsed
    if marker is not None and marker.ended is not None and not marker.requeued:
        status.note = _killed(marker.code)  # as the script saw it: SLURM makes 9 of an exit code of 137
    elif row.signal and row.signal <= 64:  # 0:125 is how an out-of-memory kill is noted
        status.code = 128 + row.signal
        status.note = f"killed by signal {row.signal}"
    elif row.code or status.state == "done":
        status.code = row.code  # a job that SLURM stopped has code 0 there: its script may know better
    if status.state == "failed" and status.code == INTERRUPTED:
        status.state = "interrupted"
    if not row.started and marker is None and row.state == "CANCELLED":
        status.code, status.note = None, "before it started"


def _from_marker(status: JobStatus, marker: Marker | None, asked: bool, accounted: Row | None) -> None:
    """The state of a job that SLURM does not list, from what its script noted."""
    if marker is not None and marker.ended is not None and not marker.requeued:
        status.state, status.note = _ended_by_marker(marker)
    elif not asked:
        status.state, status.note = "unknown", "squeue gave no answer"
    elif marker is not None and marker.signal == "TERM":
        status.state, status.note = _stopped(marker), "killed before it could end by itself"
    else:
        said = f"; sacct still says {accounted.state}" if accounted else ""
        what = "it started and left no last word" if marker is not None else "it never started"
        if marker is not None and marker.requeued:
            what = "it had saved and gone back to the queue"
        status.state, status.note = "lost", f"SLURM no longer lists it and {what}{said}"


def _ended_by_marker(marker: Marker) -> tuple[str, str]:
    if marker.code == 0:
        return "done", ""
    if marker.signal == "TERM":
        return _stopped(marker), ""
    if marker.code == INTERRUPTED:
        return "interrupted", ""
    return "failed", _killed(marker.code)


def _killed(code: int | None) -> str:
    """The signal that a shell's exit code stands for."""
    return f"killed by signal {code - 128}" if code is not None and 128 < code <= 192 else ""


def _stopped(marker: Marker) -> str:
    """SIGTERM comes at the time limit, or because somebody cancelled the job."""
    return "timeout" if marker.limit and (marker.signalled or 0) >= marker.limit - 1 else "cancelled"


def _local_state(folder: Path, job: str, marker: Marker | None) -> tuple[str, str]:
    if is_running(folder, job):
        return "running", "on this machine"
    if marker is None:
        return "not sent", ""
    if marker.ended is None:
        return "lost", "it started on this machine and was killed"
    return _ended_by_marker(marker)


def _add_progress(status: JobStatus, folder: Path) -> None:
    """Run directories and the newest one's progress, as far as the job has written them."""
    try:
        status.runs = (folder / "pointers" / status.id).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
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
