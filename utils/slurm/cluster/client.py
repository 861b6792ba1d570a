"""SLURM's commands: each called in one place, with its failure told in SLURM's own words."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
# Asked for by a start time alone, sacct leaves out what was cancelled before it could start; by states it does not.
_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,S,TO"
# After these words nobody knows whether the request was taken.
_UNCLEAR = ("timed out", "unable to contact", "connection", "communication", "socket", "zero bytes")

# What sbatch would take from the environment before the script's own directives, and by which a job would no longer
# be found again, or its caller would wait until it ended.
_OVERRIDING = {
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "ERROR", "IGNORE_PBS", "INPUT", "JOB_NAME", "NO_REQUEUE"),
        *("OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT"),
    )
}
# Variables of a job in which this program is called itself: a job sent from there must not take them for its own.
_OF_A_JOB = ("SLURM_JOB", "SLURM_ARRAY", "SLURM_RESTART_COUNT")


class Refused(Exception):
    """sbatch said no; the text is its own."""


class Unclear(Exception):
    """sbatch failed in a way that leaves open whether there is a job."""


@dataclass(frozen=True)
class Listing:
    """What SLURM lists. ``queue`` is None when squeue gave no answer, ``accounting`` None when sacct gave none."""

    queue: list[Row] | None
    accounting: list[Row] | None
    problems: list[str] = field(default_factory=list)


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
        inherited: a locked descriptor that sbatch keeps open while it runs, so that the lock outlives the caller.

    Raises:
        Refused: SLURM said no.
        Unclear: no answer, or one that names no job.
    """
    command = ["sbatch", "--parsable", *([f"--dependency={dependency}"] if dependency else []), str(script)]
    environment = {
        key: value for key, value in os.environ.items() if key not in _OVERRIDING and not key.startswith(_OF_A_JOB)
    }
    done = subprocess.run(
        command, capture_output=True, text=True, pass_fds=[inherited], stdin=subprocess.DEVNULL, env=environment
    )
    words = done.stderr.strip() or done.stdout.strip() or f"sbatch ended with code {done.returncode} and no word"
    if done.returncode != 0:
        unclear = done.returncode < 0 or any(word in words.lower() for word in _UNCLEAR)
        raise (Unclear if unclear else Refused)(words)
    number = parse_submitted(done.stdout)
    if number is None:
        raise Unclear(f"sbatch printed no job number: {done.stdout.strip() or '(nothing)'}")
    return number


def listing(names: Iterable[str], since: float) -> Listing:
    """Every job of these names: one squeue and one sacct call, however many there are.

    ``since``: seconds since the epoch; sacct lists nothing older.
    """
    chosen = ",".join(sorted(set(names)))
    named = [f"--name={chosen}"] if len(chosen) < _LONGEST_ARGUMENT else ["--me"]
    queue, problem = _call(["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}", *named])
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    fields = ",".join(ACCOUNTING_FIELDS)
    command = ["sacct", "--parsable2", "--noheader", "--allocations", f"--starttime={begin}", "--endtime=now+1hour"]
    command += [f"--state={_STATES}", f"--format={fields}"]
    if _clusters():  # the others read it by themselves
        command.append(f"--clusters={_clusters()}")
    accounting, _ = _call([*command, *named[: len(chosen) < _LONGEST_ARGUMENT]])
    return Listing(
        None if queue is None else parse_queue(queue),
        None if accounting is None else parse_accounting(accounting),
        [problem] if problem else [],
    )


def own_jobs() -> list[tuple[str, str, str, str]]:
    """All jobs of this user that squeue lists: number, name, SLURM's state and the script's path.

    Raises:
        UserError: squeue gave no answer.
    """
    text, problem = _call(["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%j|%T|%o"])
    if text is None:
        raise UserError(f"{problem}. What SLURM has already is not known; call again later.")
    rows = [line.split("|", 3) for line in text.splitlines()]
    return [(row[0], row[1], row[2], row[3]) for row in rows if len(row) == 4]


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs or array tasks. Raises UserError in SLURM's own words."""
    for start in range(0, len(ids), 500):
        _, problem = _call(["scancel", *ids[start : start + 500]])
        if problem:
            raise UserError(problem)


def _clusters() -> str:
    """Another cluster than this machine's own, where the environment names one."""
    return os.environ.get("SLURM_CLUSTERS") or os.environ.get("SBATCH_CLUSTERS") or ""


def _call(command: list[str]) -> tuple[str | None, str | None]:
    """What ``command`` printed, or None and why it printed nothing."""
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
