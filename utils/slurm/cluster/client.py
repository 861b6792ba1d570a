"""Call SLURM's commands, each in one place. Their failures are reported in SLURM's own words."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from utils.errors import UserError
from utils.slurm.cluster.parse import (
    ACCOUNTING_FIELDS,
    QUEUE_FORMAT,
    Row,
    parse_accounting,
    parse_queue,
    parse_submitted,
)

TIMEOUT = 120  # seconds; a busy controller answers late
_LONGEST_ARGUMENT = 100_000  # bytes; Linux refuses one argument of more than 128 KiB
# With a start time alone sacct leaves out jobs that were cancelled before they started; with states it lists them.
_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,S,TO"
# After these words nobody knows whether SLURM took the request.
_UNCLEAR = ("timed out", "unable to contact", "connection", "communication", "socket", "zero bytes")

# sbatch prefers these variables to the script's directives. With them a job could not be found again, or its caller
# would wait until it ended.
_OVERRIDING = {
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "ERROR", "IGNORE_PBS", "INPUT", "JOB_NAME", "NO_REQUEUE"),
        *("OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT"),
    )
}
# jobrunner.py may itself run in a job. A job that it submits must not take that job's variables for its own.
_OF_A_JOB = ("SLURM_JOB", "SLURM_ARRAY", "SLURM_RESTART_COUNT")


class Refused(Exception):
    """sbatch refused the request; the text is its own."""


class Unclear(Exception):
    """sbatch failed, and whether SLURM has the job is not known."""


@dataclass(frozen=True)
class Listing:
    """What SLURM lists: ``queue`` by squeue, ``accounting`` by sacct; None where the command gave no answer."""

    queue: list[Row] | None
    accounting: list[Row] | None
    problems: list[str] = field(default_factory=list)

    @cached_property
    def queued(self) -> dict[tuple[str, str], Row]:
        """squeue's rows by name and number: a controller that lost its state gives the numbers again."""
        return {(row.name, row.id): row for row in self.queue or []}

    @cached_property
    def accounted(self) -> dict[tuple[str, str], Row]:
        """sacct's rows by name and number; the first of several counts."""
        return {(row.name, row.id): row for row in reversed(self.accounting or [])}


def require_sbatch() -> None:
    """Raise UserError where there is no SLURM."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on the PATH, so this machine has no SLURM. "
            "--local [N] runs the same jobs here, --dry-run shows what would be submitted."
        )


def submit(script: Path, dependency: str | None, inherited: int) -> str:
    """Submit ``script``; the job's number.

    Args:
        script: the batch script.
        dependency: as ``sbatch --dependency`` takes it, None for none.
        inherited: a locked descriptor. sbatch keeps it open while it runs, so that the lock outlives the caller.

    Raises:
        Refused: SLURM refused the job.
        Unclear: SLURM gave no answer, or one that names no job.
    """
    command = ["sbatch", "--parsable", *([f"--dependency={dependency}"] if dependency else []), str(script)]
    environment = {
        key: value for key, value in os.environ.items() if key not in _OVERRIDING and not key.startswith(_OF_A_JOB)
    }
    done = subprocess.run(
        command, capture_output=True, text=True, pass_fds=[inherited], stdin=subprocess.DEVNULL, env=environment
    )
    words = done.stderr.strip() or done.stdout.strip() or f"sbatch ended with code {done.returncode} and no message"
    if done.returncode != 0:
        unclear = done.returncode < 0 or any(word in words.lower() for word in _UNCLEAR)
        raise (Unclear if unclear else Refused)(words)
    number = parse_submitted(done.stdout)
    if number is None:
        raise Unclear(f"sbatch printed no job number: {done.stdout.strip() or '(nothing)'}")
    return number


def listing(names: Iterable[str], since: float) -> Listing:
    """List every job that has one of these names, by one call of squeue and one of sacct.

    ``since``: seconds since the epoch; sacct lists nothing older.
    """
    chosen = ",".join(sorted(set(names)))
    named = [f"--name={chosen}"] if len(chosen) < _LONGEST_ARGUMENT else []  # too many: all of this user's
    command = ["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}", *(named or ["--me"])]
    queue, problem = _call(command)
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    fields = ",".join(ACCOUNTING_FIELDS)
    command = ["sacct", "--parsable2", "--noheader", "--allocations", f"--starttime={begin}", "--endtime=now+1hour"]
    command += [f"--state={_STATES}", f"--format={fields}"]
    if _clusters():  # the other commands read the variable themselves
        command.append(f"--clusters={_clusters()}")
    accounting, _ = _call([*command, *named])
    return Listing(
        None if queue is None else parse_queue(queue),
        None if accounting is None else parse_accounting(accounting),
        [problem] if problem else [],
    )


def own_jobs() -> list[tuple[str, str, str, str]]:
    """All jobs of this user that squeue lists: number, name, SLURM's state, path of the script.

    Raises:
        UserError: squeue gave no answer.
    """
    text, problem = _call(["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%j|%T|%o"])
    if text is None:
        raise UserError(f"{problem}. What SLURM has already is not known; call again later.")
    rows = [line.split("|", 3) for line in text.splitlines()]
    return [(row[0], row[1], row[2], row[3]) for row in rows if len(row) == 4]


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs or array tasks. Raises UserError with SLURM's own words."""
    for start in range(0, len(ids), 500):
        _, problem = _call(["scancel", *ids[start : start + 500]])
        if problem:
            raise UserError(problem)


def _clusters() -> str:
    """The cluster that the environment names, if it is not this machine's own."""
    return os.environ.get("SLURM_CLUSTERS") or os.environ.get("SBATCH_CLUSTERS") or ""


def _call(command: list[str]) -> tuple[str | None, str | None]:
    """What ``command`` printed, and None; or None, and why it failed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    environment |= {"SLURM_TIME_FORMAT": "standard"} | ({"SLURM_CLUSTERS": _clusters()} if _clusters() else {})
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL, env=environment
        )
    except FileNotFoundError:
        return None, f"{command[0]} is not on the PATH"
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} gave no answer in {TIMEOUT} s"
    if done.returncode != 0:
        return None, f"{command[0]}: {done.stderr.strip() or f'ended with code {done.returncode}'}"
    return done.stdout, None
