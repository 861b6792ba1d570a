"""What each option of jobrunner.py does."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from pathlib import Path

from utils.errors import UserError
from utils.slurm.cluster import client
from utils.slurm.cluster.script import shell_problems
from utils.slurm.ledger import LOCAL, State, changing
from utils.slurm.local import run_local, stop_local, visible_gpus
from utils.slurm.recovery import check_strangers
from utils.slurm.status import RETRY, JobStatus
from utils.slurm.status_table import advice, escaped, status_json, status_table
from utils.slurm.submit import look, preview, submit_all
from utils.slurm.sweep.file import Group, Sweep


def sending_problems(groups: list[Group]) -> list[str]:
    """What stands against sending ``groups``: overrides that train.py does not take, text that bash cannot read."""
    problems = shell_problems(groups)
    if any("train.py" in job.command for group in groups for job in group.jobs):
        from utils.slurm.sweep.overrides import override_problems  # imports torch: only where something is to be sent

        problems += override_problems(groups)
    return problems


def print_scripts(sweep: Sweep, groups: list[Group], retry: bool) -> int:
    """Print the batch scripts that sending would submit; nothing is sent."""
    state = State.load(sweep.state)
    statuses, messages = look(sweep, state, mend=False)
    if shutil.which("sbatch") is not None:
        try:
            check_strangers(state)
        except UserError as error:  # a sending call would stop here
            messages.append(str(error))
    _tell(messages)
    for text in preview(sweep, groups, state, statuses, retry):
        print(text)
    return 0


def send(sweep: Sweep, groups: list[Group], retry: bool, local: int | None) -> int:
    """To SLURM or, where ``local`` is given, to so many slots of this machine (0: one a GPU, or one)."""
    if local is None:
        client.require_sbatch()
    with changing(sweep.state) as state:
        statuses, messages = look(sweep, state, mend=True)
        state.save()
        _tell(messages)
        if local is None:
            check_strangers(state)
            lines = submit_all(sweep, groups, state, statuses, retry)
        else:
            lines = run_local(sweep, groups, state, statuses, local or len(visible_gpus()) or 1, retry)
        said = False
        for line in lines:
            print(escaped(line), flush=True)
            said = True
    if not said:
        names = [group.name for group in groups]
        bad = sum(status.state in RETRY and status.group in names for status in statuses)
        print(f"nothing to send{f'; {bad} jobs did not end well: --retry sends them again' if bad else ''}")
    return 0


def _current(sweep: Sweep) -> tuple[list[JobStatus], list[str]]:
    """The status of all jobs; what has ended is kept, if nobody else is changing the state."""
    state = State.load(sweep.state)
    if not state.submissions:
        return look(sweep, state, mend=False)
    with contextlib.suppress(UserError), changing(sweep.state, patience=0.5) as state:
        if any(item.slurm_id is None for item in state.submissions):
            _tell(look(sweep, state, mend=True)[1])
    before = {item.token: dict(item.seen) for item in state.submissions}
    statuses, messages = look(sweep, state, mend=False)
    changed = {item.token: item.seen for item in state.submissions if item.seen != before[item.token]}
    if changed:
        with contextlib.suppress(UserError), changing(sweep.state, patience=0) as fresh:
            for item in fresh.submissions:
                item.seen = changed.get(item.token, item.seen)
            fresh.save()
    return statuses, messages


def show(sweep: Sweep, only: list[str] | None, as_json: bool, every: float | None) -> int:
    """Print the status of the jobs, once or again after each ``every`` seconds."""
    while True:
        statuses, messages = _current(sweep)
        shown = [status for status in statuses if not only or status.group in only]
        _tell(messages)
        if every is not None and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print(status_json(shown) if as_json else "\n".join([status_table(shown), *advice(shown)]), flush=True)
        if every is None or not any(status.active and status.state not in ("never", "held") for status in shown):
            return 0
        time.sleep(every)


def cancel(sweep: Sweep, only: list[str] | None) -> int:
    """Cancel the sweep's jobs, or those of the groups and jobs ``only``."""
    count = 0
    if State.load(sweep.state).submissions:
        with changing(sweep.state) as state:
            statuses, messages = look(sweep, state, mend=True)
            state.save()
        _tell(messages)
        chosen = [status for status in statuses if status.active and (not only or status.group in only)]
        there = [status for status in chosen if status.slurm_id and status.slurm_id != LOCAL]
        # whole arrays: task by task, SLURM would start the next ones meanwhile
        client.cancel(list(dict.fromkeys((status.slurm_id or "").partition("_")[0] for status in there)))
        count = len(there) + len(stop_local(state, chosen))
    print(f"cancelled {count} jobs" if count else "nothing is queued or running")
    return 0


def print_log(sweep: Sweep, name: str) -> int:
    """Print what a job has printed."""
    statuses, messages = _current(sweep)
    _tell(messages)
    found = [s for s in statuses if name in (s.id, s.slurm_id)] or [s for s in statuses if s.id.startswith(name)]
    if len(found) != 1:
        near = ", ".join(status.id for status in found[:5]) or "-s lists the jobs"
        raise UserError(f"--logs {name}: {len(found) or 'no'} jobs have this name or number: {near}")
    log = Path(found[0].log) if found[0].log else None
    if log is None or not log.exists():
        raise UserError(f"{found[0].id} is {found[0].state} and has printed nothing yet")
    print(f"==> {log}", file=sys.stderr)
    sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
    return 0


def _tell(messages: list[str]) -> None:
    for message in messages:
        print(f"note: {escaped(message)}", file=sys.stderr)
