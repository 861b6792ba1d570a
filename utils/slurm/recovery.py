"""Find out whether submissions without a number reached SLURM."""

from __future__ import annotations

import time
from pathlib import Path

from utils.errors import UserError
from utils.slurm.cluster import client
from utils.slurm.cluster.client import Listing
from utils.slurm.cluster.events import Attempt, read_attempt
from utils.slurm.cluster.parse import Row
from utils.slurm.cluster.reasons import ENDED
from utils.slurm.ledger import Ledger, Submission

SKEW = 300  # seconds that the clocks of two machines may differ: munge allows no more


def resolve_unknown(ledger: Ledger, listing: Listing) -> list[str]:
    """Find out whether SLURM has the submissions that have no number; return a message about each.

    A submission that SLURM lists gets its number. One that SLURM does not list, or lists only as refused, is dropped.

    Raises:
        UserError: squeue gave no answer, so that nobody knows.
    """
    messages = []
    for submission in [one for one in ledger.submissions if one.slurm_id is None]:
        if listing.queue is None:
            raise UserError(
                f"{listing.problems[0]}. Whether {submission.name} was submitted is not known; call again later."
            )
        earliest = min(submission.created, time.time()) - SKEW  # the clock may have been set back since
        rows = [
            row
            for row in [*listing.queue, *(listing.accounting or [])]
            # if the whole folder was deleted, an older job may have the same name
            if row.name == submission.name and (row.submitted is None or row.submitted > earliest)
        ]
        listed = [row for row in rows if not is_refusal(row)]
        attempt = _any_attempt(ledger.folder, submission)
        if listed:
            submission.slurm_id = str(max(int(row.id.partition("_")[0]) for row in listed))
        elif attempt is not None:
            submission.slurm_id = attempt.job
        else:
            ledger.drop(submission)
        fate = f"it as job {submission.slurm_id}" if submission.slurm_id else "no such job, so it counts as not sent"
        messages.append(
            f"whether {submission.name} was sent is not in the state, since a call was stopped or the state is an "
            f"older copy: SLURM has {fate}"
        )
    return messages


def is_refusal(row: Row) -> bool:
    """Whether the row is of a request that SLURM refused: it failed and never started."""
    return row.slurm_state == "FAILED" and not row.started and row.elapsed == 0


def _any_attempt(folder: Path, submission: Submission) -> Attempt | None:
    found = (read_attempt(folder, submission.token, task) for task in range(len(submission.jobs)))
    return next((attempt for attempt in found if attempt is not None), None)


def check_unknown_jobs(ledger: Ledger) -> None:
    """Note the names of this user's jobs in SLURM, so that no new submission gets one of them.

    Raises:
        UserError: SLURM has jobs whose scripts were in this folder and which the ledger does not know, since the folder
            was deleted or replaced. What is sent now could double them.
    """
    rows = client.own_jobs()
    known = {submission.name for submission in ledger.submissions}
    scripts = f"{ledger.folder / 'scripts'}/"
    ledger.taken = {name.rpartition(".")[2] for _, name, _, _ in rows}
    unknown = {
        job_id.partition("_")[0]: name
        for job_id, name, slurm_state, command in rows
        if command.startswith(scripts) and name not in known and slurm_state not in ENDED
    }
    if unknown:
        listed = ", ".join(f"{job_id} ({name})" for job_id, name in unknown.items())
        raise UserError(
            f"SLURM has jobs of {ledger.folder} that its state does not know, since it was deleted or replaced: "
            f"{listed}. Sending could double them. Cancel them (scancel {' '.join(unknown)}), "
            "or call again when they have ended: they then run again."
        )
