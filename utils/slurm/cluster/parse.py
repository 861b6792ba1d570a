"""Parse what squeue and sacct print. A line that is not a row is skipped; an unknown state is kept as it is."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

QUEUE_FORMAT = "%i|%j|%T|%M|%S|%r|%V"
ACCOUNTING_FIELDS = ("JobID", "JobName", "State", "ExitCode", "Elapsed", "Start", "Reason", "Submit")
_RAN = ("NonZeroExitCode", "RaisedSignal", "JobLaunchFailure", "OutOfMemory", "TimeLimit", "NodeDown")
_NO_TIME = {"", "None", "Unknown", "N/A", "(null)"}


@dataclass(frozen=True)
class Row:
    """One job or array task as SLURM lists it.

    Attributes:
        id: SLURM's number (``12`` or ``12_3``).
        name: SLURM's name of the job.
        slurm_state: SLURM's base state (``CANCELLED by 0`` becomes ``CANCELLED``).
        reason: SLURM's reason code.
        elapsed: seconds it has run.
        started: whether it ever ran.
        code: the exit code; None where SLURM does not list it.
        signal: the signal that ended it; None where SLURM does not list it.
        expected: when SLURM expects it to start (``YYYY-MM-DD HH:MM``); empty where it expects nothing.
        submitted: seconds since the epoch; None where SLURM does not list it.
    """

    id: str
    name: str
    slurm_state: str
    reason: str
    elapsed: int
    started: bool
    code: int | None = None
    signal: int | None = None
    expected: str = ""
    submitted: float | None = None


def parse_queue(text: str) -> list[Row]:
    """Rows of ``squeue --noheader --array --format`` with QUEUE_FORMAT."""
    rows = []
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) == 6 and fields[0][:1].isdigit():
            ids, name, state, elapsed, start, reason = fields
            reason, submitted = _split_time(reason)
            # For a pending job the start is a guess; a job that never started has the time of its end there.
            started = state not in ("PENDING", "CONFIGURING") and start not in _NO_TIME
            if seconds(elapsed) == 0 and state in ("FAILED", "CANCELLED"):
                started = reason.startswith(_RAN)
            guess = start[:16].replace("T", " ") if state == "PENDING" and start not in _NO_TIME else ""
            for job_id in expand_ids(ids):
                row = Row(job_id, name, state, reason, seconds(elapsed), started, expected=guess, submitted=submitted)
                rows.append(row)
    return rows


def parse_accounting(text: str) -> list[Row]:
    """Rows of ``sacct --parsable2 --noheader --allocations`` with ACCOUNTING_FIELDS."""
    rows = []
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7 or not fields[0][:1].isdigit() or "." in fields[0]:
            continue  # "12.batch" and the like are steps of a job
        ids, name, state, exit_code, elapsed, start, reason = fields
        reason, submitted = _split_time(reason)
        code, _, signal = exit_code.partition(":")
        for job_id in expand_ids(ids):
            rows.append(
                Row(
                    job_id,
                    name,
                    state.split(" ")[0].rstrip("+"),
                    "" if reason == "None" else reason,
                    seconds(elapsed),
                    start not in _NO_TIME,
                    int(code) if code.isdigit() else None,
                    int(signal) if signal.isdigit() else None,
                    submitted=submitted,
                )
            )
    # A task that left its array before the rest was cancelled may be listed with that rest, too: the first row counts.
    return sorted(rows, key=lambda row: not row.started)


def _split_time(text: str) -> tuple[str, float | None]:
    """``reason|2026-01-02T03:04:05`` as the reason and the time in seconds since the epoch, None if it is missing."""
    reason, bar, moment = text.rpartition("|")
    try:
        return (reason, time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M:%S"))) if bar else (text, None)
    except ValueError:
        return text, None


def parse_submitted(text: str) -> str | None:
    """The job number that ``sbatch --parsable`` printed (``12`` or ``12;cluster``); None for any other text."""
    lines = [line for line in text.splitlines() if line.strip()]
    match = re.fullmatch(r"(\d+)(?:;\S+)?", lines[-1].strip()) if lines else None
    return match[1] if match else None


def expand_ids(text: str) -> list[str]:
    """``12_[0-2,5%2]`` as 12_0, 12_1, 12_2 and 12_5; any other id as it is."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", text)
    if not match:
        return [text]
    found = []
    for part in match[2].split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if bounds:
            first, last, step = int(bounds[1]), int(bounds[2] or bounds[1]), int(bounds[3] or 1)
            found += [f"{match[1]}_{task}" for task in range(first, last + 1, max(step, 1))]
    return found


def seconds(text: str) -> int:
    """SLURM's ``[days-][hours:]minutes:seconds`` in seconds; 0 for any other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not match:
        return 0
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
