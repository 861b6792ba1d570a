"""Find jobs that are done, but without the newest results of the groups that they wait for.

An evaluation or a table is made from the runs that were there when it started. It is sent again if a job that its group
waits for was added or repeated since, so that the command must skip what is current, as eval.py does.
"""

from __future__ import annotations

from utils.slurm.status import OUTDATED, WITH_RESULT, JobStatus
from utils.slurm.sweep.file import Group, Sweep


def mark_outdated(sweep: Sweep, statuses: dict[str, JobStatus]) -> None:
    """Call each such job outdated, and say why in its note. What waits for an outdated job is outdated as well."""
    for group in sweep.groups:  # each comes after those that it waits for
        before = [other for other in sweep.groups if other.name in group.after]
        for status in (statuses[job.id] for job in group.jobs if before):
            if status.state == "done" and (news := _news(status, before, statuses)):
                status.state, status.note = OUTDATED, news


def _news(done: JobStatus, before: list[Group], statuses: dict[str, JobStatus]) -> str:
    """What a done job knows nothing of; empty if there is nothing."""
    for group in before:
        if not group.settled:
            return f"the search of {group.name} goes on"
        for other in (statuses[job] for job in group.job_ids):
            if other.state not in WITH_RESULT:
                return f"{other.id} is {other.state}"
            if done.started is not None and other.ended is not None and other.ended > done.started:
                return f"{other.id} ended after it started"
    return ""
