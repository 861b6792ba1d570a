"""What SLURM has under names whose fate the state does not know."""

from __future__ import annotations

import time
from pathlib import Path

from utils.errors import UserError
from utils.slurm.cluster import client
from utils.slurm.cluster.client import Listing
from utils.slurm.cluster.events import Marker, read_marker
from utils.slurm.cluster.parse import Row
from utils.slurm.ledger import State, Submission
from utils.slurm.status import ENDED

SKEW = 300  # seconds that the clocks of two machines may differ, since munge allows no more


def settle(state: State, listing: Listing) -> list[str]:
    """Find out what became of submissions that were begun and never recorded; messages about them.

    A submission that SLURM has under its name is recorded; one that SLURM does not have, or lists only as
    refused, led to no job. Raises UserError when squeue gave no answer, since then nobody knows.
    """
    messages = []
    for item in [item for item in state.submissions if item.slurm_id is None]:
        if listing.queue is None:
            raise UserError(f"{listing.problems[0]}. Whether {item.name} was submitted is not known; call again later.")
        earliest = min(item.created, time.time()) - SKEW  # a clock may have been set back since
        rows = [
            row
            for row in [*listing.queue, *(listing.accounting or [])]
            # where the whole folder was deleted, an older job may have the same name
            if row.name == item.name and (row.submitted is None or row.submitted > earliest)
        ]
        real = [row for row in rows if not is_refusal(row)]
        marker = _any_marker(state.folder, item)
        if real:
            item.slurm_id = str(max(int(row.id.partition("_")[0]) for row in real))
        elif marker is not None:
            item.slurm_id = marker.job
        else:
            state.drop(item)
        fate = f"is SLURM's job {item.slurm_id}" if item.slurm_id else "led to no job"
        messages.append(f"whether {item.name} was sent was not noted: it {fate}")
    return messages


def is_refusal(row: Row) -> bool:
    """Whether SLURM lists a request it refused: failed without ever having started."""
    return row.state == "FAILED" and not row.started and row.elapsed == 0


def _any_marker(folder: Path, item: Submission) -> Marker | None:
    found = (read_marker(folder, item.token, task) for task in range(len(item.jobs)))
    return next((marker for marker in found if marker is not None), None)


def check_strangers(state: State) -> None:
    """Note the names that this user's jobs have in SLURM, so that no other submission gets one of them.

    Raises:
        UserError: SLURM still has jobs whose scripts stood in this state folder and which the state does not know,
            since the folder was deleted or replaced: whatever is sent now could double them.
    """
    rows = client.own_jobs()
    known = {item.name for item in state.submissions}
    scripts = f"{state.folder / 'scripts'}/"
    state.taken = {name.rpartition(".")[2] for _, name, _, _ in rows}
    unknown = {
        job_id.partition("_")[0]: name
        for job_id, name, job_state, command in rows
        if command.startswith(scripts) and name not in known and job_state not in ENDED
    }
    if unknown:
        listed = ", ".join(f"{job_id} ({name})" for job_id, name in unknown.items())
        raise UserError(
            f"SLURM has jobs of {state.folder} that its state does not know, since it was deleted or replaced: "
            f"{listed}. Sending could double them. Cancel them (scancel {' '.join(unknown)}), "
            "or call again when they have ended."
        )
