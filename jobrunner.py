#!/usr/bin/env python
"""Submit a sweep to SLURM, or run it here, and tell how each job is doing: ``python jobrunner.py --help``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from utils.errors import UserError, run_cli
from utils.slurm import client
from utils.slurm.local import run_local, stop_local, visible_gpus
from utils.slurm.state import LOCAL, State, changing
from utils.slurm.status import RETRY, JobStatus
from utils.slurm.submit import look, preview, submit_all
from utils.slurm.sweep import Group, Sweep, load_sweep
from utils.slurm.table import advice, status_json, status_table

EPILOG = """\
examples:
  python jobrunner.py --fn jobs.yaml             send what was not sent yet
  python jobrunner.py --fn jobs.yaml --retry     and what failed, was stopped or ran out of time
  python jobrunner.py -s --watch                 how it goes, until nothing is left to wait for
  python jobrunner.py --fn jobs.yaml --local 2   the same jobs on this machine, two at a time
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description="Submit a sweep to SLURM, or run it on this machine, and tell how each job is doing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--fn", type=Path, default=Path("jobs.yaml"), metavar="FILE", help="sweep file (jobs.yaml)")
    action = result.add_mutually_exclusive_group()
    action.add_argument("-s", "--status", action="store_true", help="show every job; sends nothing")
    action.add_argument("--dry-run", action="store_true", help="print the exact sbatch texts; send nothing")
    action.add_argument("--cancel", action="store_true", help="cancel what is queued or running")
    action.add_argument("--logs", metavar="JOB", help="print a job's output (id, its beginning, or SLURM's number)")
    action.add_argument(
        "--local", type=int, nargs="?", const=0, metavar="N", help="run here, N at a time (one a GPU, or one)"
    )
    result.add_argument("--retry", action="store_true", help="also send what failed, was stopped or ran out of time")
    result.add_argument("--only", action="append", metavar="GROUP", help="this group only; may be repeated")
    result.add_argument("--json", action="store_true", help="with -s: as JSON")
    result.add_argument(
        "--watch", type=float, nargs="?", const=30.0, metavar="SECONDS", help="with -s: again every 30 s, to the end"
    )
    return result


def main() -> int | None:
    """Read the sweep file and do what was asked."""
    arguments = parser().parse_args()
    if (arguments.json or arguments.watch is not None) and not arguments.status:
        raise UserError("--json and --watch go with -s")
    if arguments.watch is not None and arguments.watch <= 0:
        raise UserError("--watch takes a number of seconds above 0")
    if arguments.retry and (arguments.status or arguments.cancel or arguments.logs):
        raise UserError("--retry sends jobs again: it goes with --fn, --dry-run or --local")
    if arguments.local is not None and arguments.local < 0:
        raise UserError("--local takes a number of jobs at a time")
    asking = arguments.status or arguments.logs or arguments.cancel
    if not asking and arguments.local is None and not arguments.dry_run:
        client.require_sbatch()
    sweep = load_sweep(arguments.fn) if asking else load_sweep(arguments.fn, _override_problems)
    groups = sweep.only(arguments.only)
    if arguments.status:
        return _show(sweep, arguments.only, arguments.json, arguments.watch)
    if arguments.logs:
        return _print_log(sweep, arguments.logs)
    if arguments.cancel:
        return _cancel(sweep, arguments.only)
    if arguments.dry_run:
        return _preview(sweep, groups, arguments.retry)
    return _send(sweep, groups, arguments.retry, arguments.local)


def _override_problems(groups: list[Group]) -> list[str]:
    if not any("train.py" in job.command for group in groups for job in group.jobs):
        return []
    from utils.slurm.overrides import override_problems  # imports torch: only where something is to be sent

    return override_problems(groups)


def _preview(sweep: Sweep, groups: list[Group], retry: bool) -> int:
    state = State.load(sweep.state)
    statuses, messages = look(sweep, state, mend=False)
    _tell(messages)
    for text in preview(sweep, groups, state, statuses, retry):
        print(text)
    return 0


def _send(sweep: Sweep, groups: list[Group], retry: bool, local: int | None) -> int:
    """To SLURM or, where ``local`` is given, to so many slots of this machine (0: one a GPU, or one)."""
    with changing(sweep.state) as state:
        statuses, messages = look(sweep, state, mend=True)
        state.save()
        _tell(messages)
        if local is None:
            lines = submit_all(sweep, groups, state, statuses, retry)
        else:
            lines = run_local(sweep, groups, state, statuses, local or len(visible_gpus()) or 1, retry)
        said = False
        for line in lines:
            print(line, flush=True)
            said = True
    if not said:
        names = [group.name for group in groups]
        bad = sum(status.state in RETRY and status.group in names for status in statuses)
        print(f"nothing to send{f'; {bad} jobs did not end well: --retry sends them again' if bad else ''}")
    return 0


def _look(sweep: Sweep) -> tuple[list[JobStatus], list[str]]:
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


def _show(sweep: Sweep, only: list[str] | None, as_json: bool, every: float | None) -> int:
    while True:
        statuses, messages = _look(sweep)
        shown = [status for status in statuses if not only or status.group in only]
        _tell(messages)
        if every is not None and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print(status_json(shown) if as_json else "\n".join([status_table(shown), *advice(shown)]), flush=True)
        if every is None or not any(status.active and status.state not in ("never", "held") for status in shown):
            return 0
        time.sleep(every)


def _cancel(sweep: Sweep, only: list[str] | None) -> int:
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


def _print_log(sweep: Sweep, name: str) -> int:
    statuses, messages = _look(sweep)
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
        print(f"note: {message}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
