"""Trainings that are in a sweep more than once: both jobs would write to one run directory.

A repetition in the file is an error. A training that a search adds may be another group's job as well: then one job
trains it, and both groups count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.slurm.ledger import Ledger

if TYPE_CHECKING:
    from utils.slurm.sweep.file import Group, Job


def digest(job: Job) -> str:
    """The part of a job's id that its command decides."""
    return job.id.rpartition(".")[2]


def owners(groups: Sequence[Group], folder: Path) -> dict[str, str]:
    """The job that trains in place of the others, by ``digest``, for each training of two groups that a search added.

    It is the one that was sent, else the one that the file gives, so that a later call does not change it.
    """
    same: dict[str, list[Job]] = {}
    for job in (job for group in groups for job in group.jobs if job.trains):
        same.setdefault(digest(job), []).append(job)
    repeated = [jobs for jobs in same.values() if len({job.group for job in jobs}) > 1]
    repeated = [jobs for jobs in repeated if any(job.follows for job in jobs)]
    sent = Ledger.load(folder).latest() if repeated else {}
    return {digest(jobs[0]): min(jobs, key=lambda job: (job.id not in sent, job.follows)).id for jobs in repeated}


def owned(job: Job, replaced: dict[str, str]) -> Job:
    """The job under the id of the one that trains in its place (``owners``)."""
    return replace(job, id=replaced.get(digest(job), job.id)) if job.trains else job


def repeated_jobs(groups: Sequence[Group]) -> list[str]:
    """Report a job that is twice in a group, or a training in two groups."""
    problems = []
    owner: dict[str, Job] = {}
    for group in groups:
        own: set[str] = set()
        for job in group.jobs:
            if job.id in own:
                problems.append(f"group {group.name}: the same job twice: {job.label}")
            own.add(job.id)
            if job.trains:
                other = owner.setdefault(digest(job), job)
                if other.group != group.name:
                    problems.append(f"groups {other.group} and {group.name} have the same job: {job.label}")
    return problems
