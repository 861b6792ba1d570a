"""The status of a sweep as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from utils.errors import printable
from utils.slurm.status import OUTDATED, RETRY, STATES, JobStatus
from utils.text import aligned

_HEADER = ("job", "slurm", "state", "elapsed", "exit", "epoch", "loss", "run", "what")


def status_table(statuses: list[JobStatus]) -> str:
    """One line per job under one heading per group, then how many jobs are in each state."""
    rows = [_HEADER, *(_row(status) for status in statuses)]
    lines = []
    group = None
    for status, line in zip([None, *statuses], aligned(rows), strict=True):
        if status is not None and status.group != group:
            group = status.group
            lines.append(f"{printable(group)}: {_count([item for item in statuses if item.group == group])}")
        lines.append(f"  {line}")
    return "\n".join([*lines, f"all: {_count(statuses)}"])


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


def _row(status: JobStatus) -> tuple[str, ...]:
    run = "-"
    if status.run:
        run = _short(status.run) + (f" (+{len(status.runs) - 1})" if len(status.runs) > 1 else "")
    what = status.label if not status.note else f"{status.label}  [{' '.join(status.note.split())}]"
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


def _short(path: str) -> str:
    relative = os.path.relpath(path, Path.cwd())
    return path if relative.startswith("..") else relative


def _count(statuses: list[JobStatus]) -> str:
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no jobs"
