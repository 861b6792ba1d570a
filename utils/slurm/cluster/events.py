"""What a batch script noted about itself: lines of ``<seconds> <event> ...`` in ``<state>/events``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Marker:
    """The last attempt of one task, as its script noted it.

    ``ended`` and ``code`` are None while it runs, or when it was killed without a last word. ``limit`` is when
    SLURM would end it, 0 where unknown. ``signal`` is the last one that reached it. ``requeued``: it put itself
    back into the queue and has not started again. Times are seconds since the epoch.
    """

    job: str
    host: str
    pid: int
    restarts: int
    started: int
    limit: int
    signal: str | None
    signalled: int | None
    ended: int | None
    code: int | None
    requeued: bool


def read_marker(state: Path, token: str, task: int) -> Marker | None:
    """The last attempt noted for a task, None when it never started. Half-written lines are skipped."""
    try:
        text = (state / "events" / f"{token}-{task}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found: dict[str, object] | None = None
    for line in text.splitlines():
        try:
            when, event, *rest = line.split(" ")
            if event == "start":
                job, host, pid, restarts, limit = rest
                found = dict(job=job, host=host, pid=int(pid), restarts=int(restarts), limit=int(limit))
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
    return Marker(**found) if found else None  # type: ignore[arg-type]
