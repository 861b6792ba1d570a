#!/usr/bin/env python
"""Submit a sweep to SLURM, or run it here, and show the status of each job: ``python jobrunner.py --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.errors import UserError, run_cli
from utils.slurm import commands
from utils.slurm.sweep.file import load_sweep

EPILOG = """\
examples:
  python jobrunner.py --fn jobs.yaml             send the jobs that were not sent yet
  python jobrunner.py --fn jobs.yaml --retry     also those that failed, were stopped or ran out of time
  python jobrunner.py -s --watch                 the status, again and again until all jobs have ended
  python jobrunner.py --fn jobs.yaml --local 2   the same jobs on this machine, two at a time
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description="Submit a sweep to SLURM, or run it on this machine, and show the status of each job.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--fn", type=Path, default=Path("jobs.yaml"), metavar="FILE", help="sweep file (jobs.yaml)")
    action = result.add_mutually_exclusive_group()
    action.add_argument("-s", "--status", action="store_true", help="show every job; sends nothing")
    action.add_argument("--dry-run", action="store_true", help="print the exact sbatch texts; send nothing")
    action.add_argument("--cancel", action="store_true", help="cancel what is queued or running")
    action.add_argument("--logs", metavar="JOB", help="print a job's output (id, its beginning, or SLURM's number)")
    local = "run here, N at a time (one per GPU, at least one)"
    action.add_argument("--local", type=int, nargs="?", const=0, metavar="N", help=local)
    result.add_argument("--retry", action="store_true", help="also send jobs that failed, stopped or ran out of time")
    result.add_argument("--only", action="append", metavar="GROUP", help="this group only; may be repeated")
    result.add_argument("--continue", action="store_true", dest="go_on", help="given by the job of a search, to itself")
    result.add_argument("--json", action="store_true", help="with -s: as JSON")
    watch = "with -s: again every 30 s, to the end"
    result.add_argument("--watch", type=float, nargs="?", const=30.0, metavar="SECONDS", help=watch)
    return result


def main() -> int | None:
    """Read the sweep file and do what was asked."""
    if len(sys.argv) == 1:  # typed to see how it is used, which must not fill a cluster
        raise UserError("say what to do: --fn jobs.yaml sends its jobs, -s shows their status, --help explains all")
    arguments = parser().parse_args()
    _check(arguments)
    asking = arguments.status or arguments.logs or arguments.cancel
    sweep = load_sweep(arguments.fn, None if asking else commands.sending_problems)
    groups = sweep.only(arguments.only)
    if arguments.status:
        return commands.show(sweep, arguments.only, arguments.json, arguments.watch)
    if arguments.logs:
        return commands.print_log(sweep, arguments.logs)
    if arguments.cancel:
        return commands.cancel(sweep, arguments.only)
    if arguments.dry_run:
        return commands.print_scripts(sweep, groups, arguments.retry)
    return commands.send(sweep, groups, arguments.retry, arguments.local, arguments.go_on)


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    if (arguments.json or arguments.watch is not None) and not arguments.status:
        raise UserError("--json and --watch go with -s")
    if arguments.watch is not None and arguments.watch <= 0:
        raise UserError("--watch takes a number of seconds above 0")
    if arguments.retry and (arguments.status or arguments.cancel or arguments.logs):
        raise UserError("--retry sends jobs again: it goes with --fn, --dry-run or --local")
    if arguments.local is not None and arguments.local < 0:
        raise UserError("--local takes a number of jobs at a time")


if __name__ == "__main__":
    run_cli(main)
