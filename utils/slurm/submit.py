"""What to send to SLURM, and sending it.

Each submission goes: write the script, write its name to the state (fsync), call sbatch, write SLURM's number. A
jobrunner killed anywhere leaves a name without a number; the next call waits until no sbatch of the dead one
is alive (it inherited the handover lock), then looks the name up, and only then decides what is left to send.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.io.files import write_text
from utils.slurm.cluster import client
from utils.slurm.cluster.script import batch_script, job_name
from utils.slurm.ledger import LOCAL, State, Submission, handover
from utils.slurm.recovery import settle
from utils.slurm.status import RETRY, JobStatus, survey
from utils.slurm.sweep.file import Group, Job, Sweep

LARGEST_ARRAY = 1000  # SLURM's default MaxArraySize is 1001
SETTLE = 5.0  # seconds a controller may take to list a request whose sender was killed


@dataclass
class Unit:
    """One call of sbatch to be. ``behind``: a unit that must have ended, well or not, before this one starts."""

    group: Group
    jobs: list[Job]
    array: bool
    limit: int | None
    behind: Unit | None = None
    slurm_id: str | None = None


def look(sweep: Sweep, state: State, *, mend: bool) -> tuple[list[JobStatus], list[str]]:
    """The status of all jobs, and messages for the user.

    ``mend``: also find out what became of interrupted submissions; ``state`` must be open for change.
    """
    messages: list[str] = []
    doubtful = [item for item in state.submissions if item.slurm_id is None] if mend else []
    if doubtful:
        if not (state.folder / "state.json").exists():
            messages.append(f"{state.folder}/state.json is missing: what was sent is read from the scripts beside it")
        with handover(state.folder):
            # no sbatch of theirs is alive now: where the clock was set back since, the whole wait is enough
            time.sleep(min(SETTLE, max(0.0, max(item.created for item in doubtful) + SETTLE - time.time())))
    sent = [item for item in state.submissions if item.slurm_id != LOCAL]
    listing = client.Listing([], [])
    if sent:
        # Clocks differ between machines; an hour is more than any cluster lets them.
        since = min(time.time(), *(item.created for item in sent)) - 3600
        listing = client.listing((item.name for item in sent), since)
        messages += listing.problems
    if doubtful:
        messages += settle(state, listing)
        state.save()
    return survey(sweep, state, listing), messages


def plan(groups: Iterable[Group], statuses: dict[str, JobStatus], retry: bool) -> list[Unit]:
    """Which jobs to send and in which arrays: what was never sent and, with ``retry``, what did not end well."""
    units: list[Unit] = []
    for group in groups:
        wanted = ("not sent", "refused", *(RETRY if retry else ()))
        jobs = [job for job in group.jobs if statuses[job.id].state in wanted]
        in_flight = sum(statuses[job.id].active for job in group.jobs if job not in jobs)
        limit = max(1, group.max_jobs - in_flight) if group.max_jobs else None
        if group.array and len(jobs) > 1:
            units += _arrays(group, jobs, limit)
        else:
            units += _singles(group, jobs, limit)
    return units


def _arrays(group: Group, jobs: list[Job], limit: int | None) -> Iterator[Unit]:
    unit = None
    for start in range(0, len(jobs), LARGEST_ARRAY):
        # Arrays do not share a limit, so that one starts when the one before it is through.
        part = jobs[start : start + LARGEST_ARRAY]
        unit = Unit(group, part, len(part) > 1, limit, unit if limit else None)
        yield unit


def _singles(group: Group, jobs: list[Job], limit: int | None) -> Iterator[Unit]:
    units: list[Unit] = []
    for number, job in enumerate(jobs):
        behind = units[number - limit] if limit and number >= limit else None
        units.append(Unit(group, [job], False, None, behind))
    yield from units


def submit_all(
    sweep: Sweep, groups: list[Group], state: State, statuses: list[JobStatus], retry: bool
) -> Iterator[str]:
    """Send what is left of ``groups``; yields a line for each submission and for each group that must wait.

    Raises:
        UserError: sbatch refused, or gave no clear answer; what was sent before stays sent.
    """
    by_id = {status.id: status for status in statuses}
    units = plan(groups, by_id, retry)
    sent: list[Unit] = []
    held: dict[str, str] = {}
    for unit in units:
        reason = _obstacle(sweep, unit.group, by_id, units, held)
        if reason:
            if unit.group.name not in held:
                yield f"{unit.group.name}: not sent, {reason}"
            held[unit.group.name] = reason
            continue
        client.cancel([by_id[job.id].slurm_id or "" for job in unit.jobs if by_id[job.id].state == "never"])
        _submit(unit, state, _dependency(sweep, unit, by_id, state, sent))
        sent.append(unit)
        what = f"array {unit.slurm_id} of {len(unit.jobs)} jobs" if unit.array else f"job {unit.slurm_id}"
        yield f"{unit.group.name}: submitted {what}"


def preview(sweep: Sweep, groups: list[Group], state: State, statuses: list[JobStatus], retry: bool) -> Iterator[str]:
    """The exact texts that ``submit_all`` would hand to sbatch, each after a comment with its command line."""
    by_id = {status.id: status for status in statuses}
    units = plan(groups, by_id, retry)
    reserved = State(state.folder, list(state.submissions), {}, list(state.spent), state.taken)
    for unit in units:
        reason = _obstacle(sweep, unit.group, by_id, units, {})
        if reason:
            yield f"# {unit.group.name}: {len(unit.jobs)} jobs not sent, {reason}"
            continue
        item = _submission(unit, reserved)
        reserved.submissions.append(item)
        unit.slurm_id = f"<{item.name}>"
        dependency = _dependency(sweep, unit, by_id, state, units)
        option = f"--dependency={dependency} " if dependency else ""
        yield f"# sbatch --parsable {option}{_script_file(state, item)}\n{_text(unit, item, state)}"


def _obstacle(
    sweep: Sweep, group: Group, statuses: dict[str, JobStatus], units: list[Unit], held: dict[str, str]
) -> str | None:
    """Why a group cannot be sent: a job of a group it waits for failed or was not sent. None if it can."""
    sending = {job.id for unit in units if unit.group.name not in held for job in unit.jobs}
    for before in (other for other in sweep.groups if other.name in group.after):
        for job in before.jobs:
            status = statuses[job.id]
            if job.id not in sending and status.state != "done" and not (status.active and status.state != "never"):
                return f"it waits for {before.name}, where {job.id} is {status.state} (--retry sends that again)"
    return None


def _dependency(sweep: Sweep, unit: Unit, statuses: dict[str, JobStatus], state: State, sent: list[Unit]) -> str | None:
    """sbatch's --dependency: the groups before must end well, the unit before must end."""
    fresh = {job.id: other for other in sent for job in other.jobs}
    latest = state.latest()
    ids: dict[str, None] = {}  # in order, each once
    whole: dict[str, bool] = {}
    for before in (other for other in sweep.groups if other.name in unit.group.after):
        for job in before.jobs:
            if job.id in fresh:
                ids[fresh[job.id].slurm_id or ""] = None
            elif statuses[job.id].active:
                item, _ = latest[job.id]
                if item.token not in whole:
                    # The whole array where none of its jobs was sent anew or ended badly, to keep the list short.
                    whole[item.token] = all(
                        latest[other][0] is item and (statuses[other].active or statuses[other].state == "done")
                        for other in item.jobs
                    )
                ids[(item.slurm_id if whole[item.token] else statuses[job.id].slurm_id) or ""] = None
    parts = ["afterok:" + ":".join(ids)] if ids else []
    if unit.behind is not None:
        parts.append(f"afterany:{unit.behind.slurm_id}")
    return ",".join(parts) or None


def _submit(unit: Unit, state: State, dependency: str | None) -> None:
    item = _submission(unit, state)
    script = _script_file(state, item)
    write_text(script, _text(unit, item, state))
    state.submissions.append(item)
    state.save()
    try:
        with handover(state.folder) as inherited:
            unit.slurm_id = client.submit(script, dependency, inherited)
    except client.Refused as words:
        state.drop(item)
        state.refused.update({job.id: str(words) for job in unit.jobs})
        state.save()
        script.unlink()
        raise UserError(
            f"sbatch refused group {unit.group.name}:\n{words}\n"
            "Nothing after it was sent. Change its resources and call again, or send others with --only GROUP."
        ) from None
    except client.Unclear as words:
        raise UserError(
            f"sbatch gave no clear answer for group {unit.group.name}:\n{words}\n"
            "Call again: whether SLURM took the job is looked up before anything is sent."
        ) from None
    item.slurm_id = unit.slurm_id
    for job in unit.jobs:
        state.refused.pop(job.id, None)
    state.save()


def _submission(unit: Unit, state: State) -> Submission:
    token = state.next_token(unit.group, unit.jobs)
    ids = [job.id for job in unit.jobs]
    return Submission(token, job_name(unit.group, token), unit.group.name, ids, unit.array, time.time())


def _script_file(state: State, item: Submission) -> Path:
    return state.folder / "scripts" / f"{item.token}.sh"


def _text(unit: Unit, item: Submission, state: State) -> str:
    return batch_script(
        group=unit.group,
        jobs=unit.jobs,
        token=item.token,
        folder=state.folder,
        workdir=Path.cwd(),
        array=unit.array,
        limit=unit.limit,
    )
