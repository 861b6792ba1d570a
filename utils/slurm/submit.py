"""Decide what to send to SLURM, and send it.

Each submission takes four steps: write the script, write the submission's name to the ledger (fsync), call sbatch,
write SLURM's number to the ledger. A jobrunner that is killed between them leaves a name without a number. The next
call waits until no sbatch of the dead one is alive (sbatch inherited the handover lock), looks the name up in SLURM,
and only then decides what is left to send.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.io.files import write_text
from utils.slurm.cluster import client
from utils.slurm.cluster.script import batch_script, job_name
from utils.slurm.ledger import LOCAL, Ledger, Submission, handover
from utils.slurm.next_job import is_expected, next_group
from utils.slurm.outdated import mark_outdated
from utils.slurm.recovery import resolve_unknown
from utils.slurm.status import RETRY, TO_SEND, WITH_RESULT, JobStatus, job_statuses, states_to_send
from utils.slurm.sweep.file import Group, Job, Sweep
from utils.slurm.variables import used

LARGEST_ARRAY = 1000  # SLURM's default MaxArraySize is 1001
LISTING_DELAY = 5.0  # seconds that a controller may take to list a request whose sender was killed


@dataclass
class Request:
    """A call of sbatch to make.

    Attributes:
        behind: a request whose jobs must have ended, well or not, before these start.
        ended: ids of jobs that must have ended, well or not.
    """

    group: Group
    jobs: list[Job]
    array: bool
    limit: int | None
    behind: Request | None = None
    slurm_id: str | None = None
    ended: Sequence[str] = ()


def read_statuses(sweep: Sweep, ledger: Ledger, *, fix: bool) -> tuple[dict[str, JobStatus], list[str]]:
    """The status of all jobs by their ids, and messages for the user.

    Args:
        sweep: the sweep file.
        ledger: its submissions.
        fix: also find out what became of submissions that were interrupted; ``ledger`` must be open for change.
    """
    messages: list[str] = []
    doubtful = [submission for submission in ledger.submissions if submission.slurm_id is None] if fix else []
    if doubtful:
        if not ledger.file.exists():
            messages.append(f"{ledger.file} is missing: what was sent is read from the scripts beside it")
        with handover(ledger.folder):  # no sbatch of a dead jobrunner is alive now
            newest = max(submission.created for submission in doubtful)
            # at most the whole delay, since the clock may have been set back
            time.sleep(min(LISTING_DELAY, max(0.0, newest + LISTING_DELAY - time.time())))
    sent = [submission for submission in ledger.submissions if submission.slurm_id != LOCAL]
    listing = client.Listing([], [])
    if sent:
        # Clocks differ between machines, by less than an hour on any cluster.
        since = min(time.time(), *(submission.created for submission in sent)) - 3600
        listing = client.listing((submission.name for submission in sent), since)
        messages += listing.problems
    if doubtful:
        messages += resolve_unknown(ledger, listing)
        ledger.save()
    statuses = job_statuses(sweep, ledger, listing)
    mark_outdated(sweep, statuses)
    return statuses, messages


def plan(sweep: Sweep, groups: list[Group], statuses: dict[str, JobStatus], retry: bool) -> list[Request]:
    """The requests to make: for jobs that were never sent, or are outdated, and with ``retry`` for those that did not
    end well.

    Jobs that wait for a group of which jobs are sent now take part, since they wait for the earlier ones only. Behind
    the trials of a search comes the job that goes on with it, unless one waits already.
    """
    requests: list[Request] = []
    for group in groups:
        again = not {request.group.name for request in requests}.isdisjoint(group.after)
        wanted = (*states_to_send(retry), *(["waiting"] if again else []))
        jobs = [job for job in group.jobs if statuses[job.id].state in wanted]
        in_flight = [job.id for job in group.jobs if statuses[job.id].state not in wanted and statuses[job.id].can_end]
        limit, ended = group.max_jobs, []
        if limit is not None and len(in_flight) < limit:
            limit -= len(in_flight)
        elif limit is not None:  # no place is free
            ended = in_flight
        make = _arrays if group.array and len(jobs) > 1 else _singles
        requests += make(group, jobs, limit, ended)
        sending = {job.id for job in jobs}
        trials = [id_ for id_ in group.waits if id_ in sending or statuses[id_].can_end]
        if trials and not is_expected(statuses.get(sweep.next_id(group))):
            own = next_group(sweep, group, groups)
            requests.append(Request(own, list(own.jobs), False, None, ended=trials))
    return requests


def _arrays(group: Group, jobs: list[Job], limit: int | None, ended: Sequence[str]) -> Iterator[Request]:
    request = None
    for start in range(0, len(jobs), LARGEST_ARRAY):
        # Arrays do not share a limit: where there is one, an array starts when the one before it has ended.
        part = jobs[start : start + LARGEST_ARRAY]
        request = Request(group, part, len(part) > 1, limit, request if limit else None, ended=() if request else ended)
        yield request


def _singles(group: Group, jobs: list[Job], limit: int | None, ended: Sequence[str]) -> Iterator[Request]:
    requests: list[Request] = []
    for number, job in enumerate(jobs):
        behind = requests[number - limit] if limit and number >= limit else None
        requests.append(Request(group, [job], False, None, behind, ended=() if behind else ended))
    yield from requests


def submit_all(
    sweep: Sweep, groups: list[Group], ledger: Ledger, statuses: dict[str, JobStatus], retry: bool
) -> Iterator[str]:
    """Send what is left of ``groups``; yield a line per submission and per group that must wait.

    Raises:
        UserError: sbatch refused a group, which stops those that wait for it, or gave no clear answer, which stops all;
            earlier submissions stay.
    """
    requests = plan(sweep, groups, statuses, retry)
    sent: list[Request] = []
    held: dict[str, str] = {}
    refused: dict[str, list[str]] = {}  # groups by SLURM's words
    for request in requests:
        name = request.group.name
        if name in held:
            continue
        if reason := _obstacle(sweep, request.group, statuses, requests, held):
            held[name] = reason
            yield f"{name}: not sent, {reason}"
            continue
        known = [statuses[job.id] for job in request.jobs if job.id in statuses]
        client.cancel([status.slurm_id or "" for status in known if status.state in ("never", "waiting")])
        try:
            _submit(request, ledger, _dependency(sweep, request, statuses, ledger, sent))
        except client.Refused as words:
            held[name] = str(words)
            for status in known:
                status.state = "refused"
            refused.setdefault(str(words), []).append(name)
            continue
        sent.append(request)
        if request.jobs[0].id == sweep.next_id(request.group):
            yield f"{name}: submitted job {request.slurm_id}, which goes on with the search"
            continue
        what = f"array {request.slurm_id} of {len(request.jobs)} jobs" if request.array else f"job {request.slurm_id}"
        yield f"{name}: submitted {what}"
    if refused:
        parts = [f"sbatch refused group {', '.join(names)}:\n{words}" for words, names in refused.items()]
        raise UserError("\n".join([*parts, "Change the resources of these groups, and call again."]))


def blocked(sweep: Sweep, requests: list[Request], statuses: dict[str, JobStatus]) -> dict[str, str]:
    """The groups of ``requests`` that cannot be sent, and why."""
    held: dict[str, str] = {}
    for group in {request.group.name: request.group for request in requests}.values():
        if reason := _obstacle(sweep, group, statuses, requests, held):
            held[group.name] = reason
    return held


def count_sent(sweep: Sweep, groups: list[Group], statuses: dict[str, JobStatus]) -> Counter[str]:
    """How many jobs a call would send now, by their present state."""
    requests = plan(sweep, groups, statuses, retry=False)
    held = blocked(sweep, requests, statuses)
    jobs = [job.id for request in requests if request.group.name not in held for job in request.jobs]
    return Counter(statuses[job].state for job in jobs if job in statuses)


def preview(
    sweep: Sweep, groups: list[Group], ledger: Ledger, statuses: dict[str, JobStatus], retry: bool
) -> Iterator[str]:
    """Yield the texts that ``submit_all`` would give to sbatch, each after a comment with its command line."""
    requests = plan(sweep, groups, statuses, retry)
    held = blocked(sweep, requests, statuses)
    reserved = Ledger(ledger.folder, list(ledger.submissions), {}, list(ledger.spent), ledger.taken)
    for request in requests:
        if request.group.name in held:
            yield f"# {request.group.name}: {len(request.jobs)} jobs not sent, {held[request.group.name]}"
            continue
        submission = new_submission(request.group, request.jobs, request.array, reserved)
        reserved.submissions.append(submission)
        request.slurm_id = f"<{submission.name}>"
        dependency = _dependency(sweep, request, statuses, ledger, requests)
        option = f"--dependency={dependency} " if dependency else ""
        yield f"# sbatch --parsable {option}{ledger.script(submission.token)}"
        yield _text(request, submission.token, ledger.folder)


def _obstacle(
    sweep: Sweep, group: Group, statuses: dict[str, JobStatus], requests: list[Request], held: dict[str, str]
) -> str | None:
    """Why a group cannot be sent: a job of a group that it waits for failed or was not sent. None if it can be."""
    sending = {job.id for request in requests if request.group.name not in held for job in request.jobs}
    for before in (other for other in sweep.groups if other.name in group.after):
        if not before.settled:
            left = [statuses[job] for job in before.waits if job not in sending]
            bad = any(status.state in RETRY for status in left)
            more = " (--retry sends again its trials that did not end well)" if bad else ""
            out = (status.way_out for status in left if status.state in TO_SEND and status.group not in held)
            more = more or next(out, "")
            return f"it waits for {before.name}, whose search goes on{more}"
        for job in before.job_ids:
            status = statuses[job]
            if job not in sending and status.state not in WITH_RESULT and not status.can_end:
                more = "" if status.group in held else status.way_out
                return f"it waits for {before.name}, where {job} is {status.state}{more}"
    return None


def _dependency(
    sweep: Sweep, request: Request, statuses: dict[str, JobStatus], ledger: Ledger, sent: list[Request]
) -> str | None:
    """sbatch's --dependency: groups in ``after`` must end well, ``behind`` and ``ended`` must end. None for none."""
    before = [job for other in sweep.groups if other.name in request.group.after for job in other.job_ids]
    well = _slurm_ids(before, statuses, ledger, sent)
    ended = _slurm_ids(request.ended, statuses, ledger, sent)
    if request.behind is not None:
        ended.append(request.behind.slurm_id or "")
    parts = {"afterok": well, "afterany": ended}
    return ",".join(":".join([word, *ids]) for word, ids in parts.items() if ids) or None


def _slurm_ids(jobs: Iterable[str], statuses: dict[str, JobStatus], ledger: Ledger, sent: list[Request]) -> list[str]:
    """SLURM's numbers of those ``jobs`` that have not ended, each once."""
    fresh = {job.id: other for other in sent for job in other.jobs}
    latest = ledger.latest()
    ids: dict[str, None] = {}  # in order
    whole: dict[str, bool] = {}
    for job in jobs:
        if job in fresh:
            ids[fresh[job].slurm_id or ""] = None
        elif statuses[job].active:
            submission, _ = latest[job]
            if submission.token not in whole:
                # To keep the list short: the whole array if none of its jobs was sent again or ended badly.
                whole[submission.token] = all(
                    latest[other][0] is submission and (statuses[other].active or statuses[other].state == "done")
                    for other in submission.jobs
                )
            ids[(submission.slurm_id if whole[submission.token] else statuses[job].slurm_id) or ""] = None
    return list(ids)


def _submit(request: Request, ledger: Ledger, dependency: str | None) -> None:
    """Send a request. Raises client.Refused, and UserError if nobody knows whether SLURM has it."""
    submission = new_submission(request.group, request.jobs, request.array, ledger)
    script = ledger.script(submission.token)
    write_text(script, _text(request, submission.token, ledger.folder))
    ledger.submissions.append(submission)
    ledger.save()
    try:
        with handover(ledger.folder) as inherited:
            request.slurm_id = client.submit(script, dependency, inherited)
    except client.Refused as words:
        ledger.drop(submission)
        ledger.refused.update({job.id: str(words) for job in request.jobs})
        ledger.save()
        script.unlink()
        raise
    except client.Unclear as words:
        raise UserError(
            f"sbatch gave no clear answer for group {request.group.name}:\n{words}\n"
            "Call again: whether SLURM took the job is looked up before anything is sent."
        ) from None
    submission.slurm_id = request.slurm_id
    for job in request.jobs:
        ledger.refused.pop(job.id, None)
    ledger.save()


def new_submission(
    group: Group, jobs: list[Job], array: bool, ledger: Ledger, slurm_id: str | None = None
) -> Submission:
    """A submission of ``jobs`` under a token of its own, not yet in the ledger."""
    token = ledger.next_token(group, jobs)
    ids = [job.id for job in jobs]
    return Submission(token, job_name(group, token), group.name, ids, array, time.time(), slurm_id, {}, used(jobs))


def _text(request: Request, token: str, folder: Path) -> str:
    group, jobs = request.group, request.jobs
    return batch_script(group=group, jobs=jobs, token=token, folder=folder, array=request.array, limit=request.limit)
