"""The status of a sweep as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from utils.errors import printable
from utils.slurm.status import OUTDATED, RETRY, STATES, WITH_RESULT, JobStatus
from utils.text import aligned, cut

ROWS = 50  # jobs
_HEADER = ("job", "slurm", "state", "elapsed", "exit", "epoch", "loss", "run", "what")


def status_table(statuses: list[JobStatus], runs: Path, complete: bool) -> str:
    """How many jobs of each group are in each state, and then a line per job.

    Args:
        statuses: the jobs.
        runs: the folder that paths of runs begin at.
        complete: whether every job has a line. Otherwise at most ROWS have one: of more jobs those that have not ended
            well, then those that run, then those that are still to run.
    """
    groups: dict[str, list[JobStatus]] = {}
    for status in statuses:
        groups.setdefault(status.group, []).append(status)
    lines = [f"{printable(group)}: {_count(jobs)}" for group, jobs in groups.items()]
    shown = [status for jobs in groups.values() for status in jobs]
    if not complete and len(shown) > ROWS:
        urgent = {status.id for status in sorted(filter(_urgency, shown), key=_urgency)[:ROWS]}
        shown = [status for status in shown if status.id in urgent]
    lines += [f"all: {_count(statuses)}", *aligned([_HEADER, *(_row(status, runs) for status in shown)])]
    if len(shown) < len(statuses):
        lines.append(f"{len(statuses) - len(shown)} more jobs: --only GROUP shows all of a group, --json all")
    return "\n".join(lines)


def _urgency(status: JobStatus) -> int:
    """The place of a job in the choice of lines: 0 for none, since it has its result."""
    if status.state in WITH_RESULT:
        return 0
    return 1 if status.state in (*RETRY, "refused") else 2 if status.state == "running" else 3


def status_json(statuses: list[JobStatus], searches: list[str]) -> str:
    """The same as JSON: ``jobs``, a list with every field, ``counts`` by state, and the lines about ``searches``."""
    counts = Counter(status.state for status in statuses)
    content = {"jobs": [asdict(status) for status in statuses], "counts": counts, "searches": searches}
    return json.dumps(content, indent=2, allow_nan=False)


def advice(statuses: list[JobStatus], sent: Counter[str]) -> list[str]:
    """What a user may want to do next: one line per suggestion. ``sent`` counts by state what a call would send."""
    counts = Counter(status.state for status in statuses)
    bad = sum(counts[state] for state in RETRY)
    lines = []
    if bad:
        lines.append(f"next: --logs JOB shows what one printed, --retry sends again the {bad} that did not end well")
    if counts["refused"]:
        lines.append(f"next: change the resources of the {counts['refused']} refused, then call without -s")
    if sent["not sent"] and counts["not sent"] < len(statuses):
        lines.append(f"next: called without -s, it sends the {sent['not sent']} not sent")
    if sent[OUTDATED]:
        lines.append(f"next: called without -s, it sends again the {sent[OUTDATED]} outdated")
    return lines


def duration(seconds: int | None) -> str:
    """``days-hours:minutes:seconds`` as SLURM writes it."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:{rest:02}"


def _row(status: JobStatus, runs: Path) -> tuple[str, ...]:
    run = "-"
    if status.run:
        run = _short(status.run, runs) + (f" (+{len(status.runs) - 1})" if len(status.runs) > 1 else "")
    what = cut(status.label, 60) + (f"  [{' '.join(status.note.split())}]" if status.note else "")
    return (
        status.id,
        status.slurm_id or "-",
        status.state,
        duration(status.elapsed),
        "-" if status.code is None else str(status.code),
        "-" if status.epoch is None else f"{status.epoch:g}",
        "-" if status.loss is None else f"{status.loss:.4f}",
        printable(run),
        printable(what),
    )


def _short(path: str, runs: Path) -> str:
    relative = (os.path.relpath(path, base) for base in (runs, Path.cwd()))
    return next((text for text in relative if not text.startswith("..")), path)


def _count(statuses: list[JobStatus]) -> str:
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no jobs"
