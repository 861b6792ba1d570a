"""The job that goes on with a search at SLURM: it starts once the trials have ended, and calls jobrunner.py again.

It sends what follows from their results: further trials, with the next such job behind them, or the chosen settings,
and the groups that wait for the search. It has the resources of its group, since the cluster takes those, but ten
minutes at most. It runs the interpreter that sent it, in the environment of that time. It leaves out the group's
preamble: what that sets for one node would be handed on to the jobs that it sends.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from utils.slurm.status import JobStatus
from utils.slurm.sweep.file import Group, Job, Sweep
from utils.slurm.sweep.resources import time_limit

JOBRUNNER = Path(__file__).resolve().parents[2] / "jobrunner.py"
LONGEST = 600  # seconds


def is_expected(status: JobStatus | None) -> bool:
    """Whether the job is still to come. The one that asks is not: it runs now, and another must follow it."""
    return status is not None and status.can_end and status.slurm_id != os.environ.get("SLURM_JOB_ID")


def next_group(sweep: Sweep, group: Group, chosen: list[Group]) -> Group:
    """A group of that job alone, which sends ``group``, and those of ``chosen`` that wait for it."""
    names = [group.name]
    for other in sweep.groups:  # each comes after those that it waits for
        if other in chosen and set(other.after) & set(names):
            names.append(other.name)
    words = [sys.executable, str(JOBRUNNER), "--fn", str(sweep.file.absolute()), "--continue"]
    words += [word for name in names for word in ("--only", name)]
    limit = min(time_limit(group.resources) or LONGEST, LONGEST)
    resources = {key: value for key, value in group.resources.items() if key.replace("_", "-") != "time-min"}
    options = [line for line in group.preamble.splitlines() if line.lstrip().startswith("#SBATCH")]
    return replace(
        group,
        jobs=(Job(sweep.next_id(group), group.name, "", shlex.join(words), {}),),
        resources={**resources, "time": f"0:{limit // 60:02}:{limit % 60:02}"},
        preamble="\n".join(options),
        save_before=min(group.save_before, limit // 2),
        searches=(),
    )
