"""The environment variables in the overrides or commands of jobs: a job is not sent again for another value."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from utils.slurm.sweep.quoting import ENVIRONMENT, hydra_value

if TYPE_CHECKING:
    from utils.slurm.ledger import Ledger
    from utils.slurm.sweep.file import Group, Job

_OF_NODE = ("SLURM_", "TMPDIR")  # they begin the names of variables that differ from node to node


def used(jobs: Iterable[Job]) -> dict[str, str]:
    """What stands here and now for each text such as ``${FRACTION:-1.0}`` in ``jobs``.

    Of a job with overrides these count, else its command. dataset.cache is left out, since it decides nothing.
    """
    found = {}
    for job in jobs:
        values = [hydra_value(value) for key, value in job.overrides.items() if key.lstrip("+") != "dataset.cache"]
        for text in values or [re.sub(r"\bdataset\.cache=\S*", "", job.command)]:
            for match in ENVIRONMENT.finditer(text):
                name = match[1] or match[2]
                if not name.startswith(_OF_NODE):
                    found[match[0]] = os.environ.get(name) or match[3] or ""
    return found


def changed_variables(groups: Sequence[Group], ledger: Ledger, again: set[str]) -> list[str]:
    """A sentence for each variable whose value differs now from that with which jobs of ``groups`` were sent.

    Args:
        again: ids of the jobs that are sent now, with the new value.
    """
    latest = ledger.latest()
    counts: dict[tuple[str, str, str], int] = {}
    for job in (job for group in groups for job in group.jobs if job.id in latest and job.id not in again):
        sent = latest[job.id][0].variables
        for text, now in used([job]).items():
            if sent.get(text, now) != now:
                counts[text, sent[text], now] = counts.get((text, sent[text], now), 0) + 1
    return [
        f"{text} is {now!r} now, but {count} jobs were sent with {before!r}, and would not be sent again. Export that "
        "value again, or give another state: folder in the sweep file, where all jobs are sent with the new one"
        for (text, before, now), count in counts.items()
    ]
