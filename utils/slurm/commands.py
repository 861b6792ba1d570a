"""What each option of jobrunner.py does."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter

from utils.errors import UserError, printable
from utils.slurm.cluster import client
from utils.slurm.cluster.script import log_file, shell_problems
from utils.slurm.ledger import LOCAL, Ledger, changing, forget_unfit
from utils.slurm.local import run_local, stop_local, visible_gpus
from utils.slurm.recovery import check_unknown_jobs
from utils.slurm.status import RETRY, SILENT, JobStatus, states_to_send
from utils.slurm.status_table import advice, status_json, status_table
from utils.slurm.submit import count_sent, preview, read_statuses, submit_all
from utils.slurm.sweep.file import Group, Sweep
from utils.slurm.sweep.repeats import repeated_jobs
from utils.slurm.variables import changed_variables
from utils.text import printable_line

PATIENCE_OF_NEXT = 600.0  # seconds that the job of a search waits for another jobrunner


def sending_problems(groups: list[Group]) -> list[str]:
    """What is wrong with ``groups``: repeated jobs, text that bash cannot read, overrides that train.py refuses."""
    problems = repeated_jobs(groups) + shell_problems(groups)
    if any(job.trains for group in groups for job in group.jobs):
        from utils.slurm.sweep.overrides import override_problems  # it imports hydra, which only sending needs

        problems += override_problems(groups)
    return problems


def print_scripts(sweep: Sweep, groups: list[Group], retry: bool) -> int:
    """Print the scripts that ``send`` would submit (--dry-run)."""
    ledger = Ledger.load(sweep.folder)
    statuses, messages = read_statuses(sweep, ledger, fix=False)
    if shutil.which("sbatch") is not None:
        try:
            check_unknown_jobs(ledger)
        except UserError as error:  # send would stop here
            messages.append(str(error))
    _print_notes(messages + _changed(groups, ledger, statuses, retry))
    for line in _search_lines(groups, list(statuses.values())):
        print(f"# {printable(line)}")
    for text in preview(sweep, groups, ledger, statuses, retry):
        print(text)
    return 0


def send(sweep: Sweep, groups: list[Group], retry: bool, local: int | None, go_on: bool = False) -> int:
    """Send jobs to SLURM or, if ``local`` is given, run them in that many slots here (0: one per GPU, at least one).

    ``go_on``: this is the job of a search, which waits while others change the sweep.

    Returns: the exit code, 1 if jobs that failed earlier here were left as they are.
    """
    if local is None:
        client.require_sbatch()
    with changing(sweep.folder, PATIENCE_OF_NEXT if go_on else None) as ledger:
        if retry:
            forget_unfit(sweep.folder, [job for group in groups for job in group.job_ids])
        sweep = sweep.again()  # trials may have ended since the file was read
        groups = sweep.only([group.name for group in groups])
        statuses, messages = read_statuses(sweep, ledger, fix=True)
        ledger.save()
        _print_notes(messages)
        if not go_on and (problems := _changed(groups, ledger, statuses, retry)):
            raise UserError("\n".join(problems))
        for line in sweep.findings():
            print(printable(line), flush=True)
        if local is None:
            check_unknown_jobs(ledger)
            lines = submit_all(sweep, groups, ledger, statuses, retry)
        else:
            lines = run_local(sweep, groups, ledger, statuses, local or len(visible_gpus()) or 1, retry)
        printed = 0
        for line in lines:
            print(printable(line), flush=True)
            printed += 1
    names = [group.name for group in groups]
    groups = sweep.again().only(names)
    # --retry sends jobs of the file alone: what has left it would be counted for ever
    present = {job for group in groups for job in (*group.job_ids, sweep.next_id(group))}
    bad = [statuses[one] for one in present if one in statuses and statuses[one].state in RETRY and not retry]
    left = sum(local is None or not status.stopped_here for status in bad)
    said = [] if printed else ["nothing to send"]
    if left and (local is not None or not printed):
        said.append(f"{left} jobs did not end well: --retry sends them again")
    if said:
        print("; ".join(said))
    check_searches(groups, ended=local is not None)
    return 1 if left and local is not None else 0


def _changed(groups: list[Group], ledger: Ledger, statuses: dict[str, JobStatus], retry: bool) -> list[str]:
    """Environment variables whose change would reach only some of the jobs."""
    wanted = states_to_send(retry)
    return changed_variables(groups, ledger, {one.id for one in statuses.values() if one.state in wanted})


def check_searches(groups: list[Group], ended: bool) -> None:
    """Raise UserError if a search of ``groups`` cannot choose; with ``ended``, also if it still waits."""
    found = [(group.name, one) for group in groups for one in group.searches]
    problems = [f"group {name}: {one.text()}" for name, one in found if one.problem]
    if ended:
        problems += [
            f"group {name}: {one.name}: {len(one.waits)} of {len(one.jobs)} trials have no result in a run.json: "
            "--retry sends them again"
            for name, one in found
            if one.waits
        ]
    if problems:
        raise UserError("\n".join(problems))


def _current(sweep: Sweep) -> tuple[list[JobStatus], list[str]]:
    """The status of all jobs, and messages. The ledger keeps how jobs ended, unless another process changes it now."""
    ledger = Ledger.load(sweep.folder)
    if not ledger.submissions:
        statuses, messages = read_statuses(sweep, ledger, fix=False)
        return list(statuses.values()), messages
    with contextlib.suppress(UserError), changing(sweep.folder, patience=0.5) as ledger:
        if any(submission.slurm_id is None for submission in ledger.submissions):
            _print_notes(read_statuses(sweep, ledger, fix=True)[1])
    before = {one.token: dict(one.seen) for one in ledger.submissions}
    statuses, messages = read_statuses(sweep, ledger, fix=False)
    changed = {one.token: one.seen for one in ledger.submissions if one.seen != before[one.token]}
    if changed:
        with contextlib.suppress(UserError), changing(sweep.folder, patience=0) as fresh:
            for submission in fresh.submissions:
                submission.seen = changed.get(submission.token, submission.seen)
            fresh.save()
    return list(statuses.values()), messages


def _search_lines(groups: list[Group], statuses: list[JobStatus]) -> list[str]:
    """What each search has found, or what it waits for."""
    states = {status.id: status.state for status in statuses}
    owners = {status.id: status.group for status in statuses}
    lines = []
    for group in groups:
        for found in group.searches:
            counts = Counter(states[job] for job in found.waits)
            parts = [f"{count} {state}" for state, count in counts.items()]
            waits = f"{found.name}: waits for {len(found.waits)} of {len(found.jobs)} trials ({', '.join(parts)})"
            lines.append(f"search {group.name}: {found.text() or waits}")
        if group.shared:
            names = ", ".join(dict.fromkeys(owners[job] for job in group.shared))
            lines.append(f"search {group.name}: {len(group.shared)} of its trainings are jobs of {names}")
    return lines


def show(sweep: Sweep, only: list[str] | None, as_json: bool, every: float | None) -> int:
    """Print the status of the jobs of ``only`` (-s); with ``every``, again after that many seconds, to the end."""
    while True:
        sweep = sweep.again()
        statuses, messages = _current(sweep)
        searches = _search_lines(sweep.only(only), statuses)
        shown = [status for status in statuses if not only or status.group in only]
        _print_notes(messages)
        if every is not None and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        sent = count_sent(sweep, sweep.only(only), {status.id: status for status in statuses})
        table = [status_table(shown, sweep.folder.parent, bool(only)), *map(printable, searches), *advice(shown, sent)]
        print(status_json(shown, searches) if as_json else "\n".join(table), flush=True)
        if every is None or not any(status.active and status.state not in ("never", "held") for status in shown):
            return 0
        time.sleep(every)


def cancel(sweep: Sweep, only: list[str] | None) -> int:
    """Cancel the jobs of ``only`` that are queued or running (--cancel)."""
    count = 0
    if Ledger.load(sweep.folder).submissions:
        with changing(sweep.folder) as ledger:
            statuses, messages = read_statuses(sweep, ledger, fix=True)
            ledger.save()
        _print_notes(messages)
        follow = {sweep.next_id(group) for group in sweep.groups}
        chosen = [status for status in statuses.values() if status.active and (not only or status.group in only)]
        if any(status.note == SILENT for status in chosen):  # the numbers may be those of other jobs by now
            raise UserError(f"{SILENT}, so nothing was cancelled: call again later")
        at_slurm = [status for status in chosen if status.slurm_id and status.slurm_id != LOCAL]
        at_slurm.sort(key=lambda status: status.id not in follow)  # the end of trials must not start what follows
        # whole arrays: if it were done task by task, SLURM would start the next ones meanwhile
        client.cancel(list(dict.fromkeys((status.slurm_id or "").partition("_")[0] for status in at_slurm)))
        count = len(at_slurm) + len(stop_local(ledger, chosen))
    print(f"cancelled {count} jobs" if count else "nothing is queued or running")
    return 0


def print_log(sweep: Sweep, name: str) -> int:
    """Print the log of the job whose id, start of an id, or SLURM number is ``name`` (--logs)."""
    statuses, messages = _current(sweep)
    _print_notes(messages)
    found = [s for s in statuses if name in (s.id, s.slurm_id)] or [s for s in statuses if s.id.startswith(name)]
    if len(found) != 1:
        near = ", ".join(status.id for status in found[:5]) or "-s lists the jobs"
        raise UserError(f"--logs {name}: {len(found) or 'no'} jobs have this name or number: {near}")
    job = found[0].id
    tasks = [(one.token, one.jobs.index(job)) for one in Ledger.load(sweep.folder).submissions if job in one.jobs]
    logs = [log for token, task in tasks if (log := log_file(sweep.folder, token, task)).exists()]
    if not logs:
        raise UserError(f"{job} is {found[0].state} and has printed nothing yet")
    log = logs[-1]
    earlier = "" if found[0].log == str(log) else f" (an earlier attempt; now it is {found[0].state})"
    print(f"==> {log}{earlier}", file=sys.stderr)
    sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
    return 0


def _print_notes(messages: list[str]) -> None:
    for message in messages:
        print(f"note: {printable_line(message)}", file=sys.stderr)
