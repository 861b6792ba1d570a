"""What a batch script noted about itself: lines of ``<seconds> <event> ...`` in ``events/<token>-<task>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attempt:
    """The last attempt at one task, as its script noted it. Times are seconds since the epoch.

    Attributes:
        job: SLURM's number, or ``local``.
        host: the machine it ran on.
        pid: the script's process.
        started: when it started.
        limit: when SLURM ends it; 0 where that is unknown.
        signal: the last signal that reached it, without SIG.
        signalled: when that signal came.
        ended: when it ended; None while it runs, or when it was killed and could note nothing.
        code: the command's exit code; None as for ``ended``.
        requeued: whether it put itself back into the queue and has not started again.
    """

    job: str
    host: str
    pid: int
    started: int
    limit: int
    signal: str | None
    signalled: int | None
    ended: int | None
    code: int | None
    requeued: bool


def read_attempt(folder: Path, token: str, task: int) -> Attempt | None:
    """The last attempt noted for a task; None if it never started. Lines that are half-written are skipped."""
    try:
        text = (folder / "events" / f"{token}-{task}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found: dict[str, object] | None = None
    for line in text.splitlines():
        try:
            when, event, *rest = line.split(" ")
            if event == "start":
                job, host, pid, _restarts, limit = rest
                found = dict(job=job, host=host, pid=int(pid), limit=int(limit))
                found |= dict(started=int(when), signal=None, signalled=None, ended=None, code=None, requeued=False)
            elif found is None:
                continue
            elif event == "signal" and found["ended"] is None:  # SLURM ends the script itself after a requeue
                found |= dict(signal=rest[0], signalled=int(when))
            elif event == "exit":
                found |= dict(ended=int(when), code=int(rest[0]))
            elif event in ("requeue", "stay"):
                found["requeued"] = event == "requeue"
        except (ValueError, IndexError):
            continue
    return Attempt(**found) if found else None  # type: ignore[arg-type]
