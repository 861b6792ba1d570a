"""The batch script of a submission: ``job.sh`` with its places filled in.

The script keeps its own record, so that a cluster without accounting loses nothing: in ``events/<token>-<task>`` it
notes when it starts, which signals reach it and how the command ended (events.py reads that).

The command runs in a process group of its own, and the script waits for it. The script passes TERM (cancelled,
preempted, out of time) to that whole group. It passes USR1 (the time limit is near) only to those processes of the
group that handle it, since it would kill any other. train.py, eval.py and eval.sh then save and exit with code 75: the
same command goes on from there, and the job puts itself back into the queue. A command that does not handle USR1 runs
until its end or its time limit. After TERM the script puts no job back, since somebody wanted it stopped.

The script holds each command as text and evaluates it, so that no quote in a command can change the rest of the script.

It needs bash 4.2 or later. ``task`` is the job's place in its submission; it is 0 for a job that is not in an array.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from utils.processes.signals import EXIT_INTERRUPTED, STOPPED_NOTE
from utils.runs import RUN_POINTER
from utils.slurm.sweep.file import Group, Job
from utils.slurm.sweep.resources import directives

TEMPLATE = Path(__file__).with_name("job.sh")
_KILLED = re.compile(r": line \d+: +\d+ [A-Z]")  # "script.sh: line 96: 27774 Killed  python train.py"
_PLACE = re.compile(r"(?:# )?@([a-z_]+)@")  # "# @word@" takes whole lines


def batch_script(*, group: Group, jobs: Sequence[Job], token: str, folder: Path, array: bool, limit: int | None) -> str:
    """The text that sbatch takes, or bash for a run on this machine. Its commands run in the present folder.

    Args:
        group: resources, preamble and requeue policy.
        jobs: the commands, in the order of their task numbers.
        token: the submission's unique name.
        folder: the sweep's folder (ledger.py), absolute.
        array: submit as a job array with one task per job.
        limit: the largest number of an array's tasks that run at a time; None for no limit.
    """
    hoisted = [line.strip() for line in group.preamble.splitlines() if line.lstrip().startswith("#SBATCH")]
    options = [f"--job-name={job_name(group, token)}"]
    options += [f"--output={_log_pattern(folder, token, array)}", "--open-mode=append", f"--chdir={Path.cwd()}"]
    if array:
        options.append(f"--array=0-{len(jobs) - 1}" + (f"%{limit}" if limit else ""))
    options += [*directives(group.resources), "--requeue", f"--signal=B:USR1@{group.save_before}"]
    preamble = [line for line in group.preamble.splitlines() if not line.lstrip().startswith(("#SBATCH", "#!"))]
    values = {
        "directives": "\n".join([*hoisted, *(f"#SBATCH {_directive(option)}" for option in options)]),
        "state": shlex.quote(str(folder)),
        "token": token,
        "task": "${SLURM_ARRAY_TASK_ID:-${ROSA_TASK:-0}}" if array else "0",
        "jobs": " ".join(job.id for job in jobs),
        "exit_interrupted": str(EXIT_INTERRUPTED),
        "most_requeues": str(group.requeue),
        "pointer_variable": RUN_POINTER,
        "stopped_variable": STOPPED_NOTE,
        "save_before": str(group.save_before),
        "number": "${SLURM_ARRAY_JOB_ID:-local}" if array else "${SLURM_JOB_ID:-local}",
        "preamble": "\n".join(preamble) or "  :",
        "cases": "\n".join(_case(number, job, token) for number, job in enumerate(jobs)),
        # not $SLURM_JOB_ID: an array's last task has the array's own number there, which means all of its tasks
        "own": "${SLURM_ARRAY_JOB_ID}_$task" if array else "$SLURM_JOB_ID",
    }
    return _PLACE.sub(lambda match: values[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def shell_problems(groups: Sequence[Group]) -> list[str]:
    """What bash cannot parse in commands, preambles and whole scripts: one sentence per problem."""
    problems: dict[str, None] = {}
    for group in groups:
        place = f"group {group.name}: "
        texts = {f"{place}preamble": group.preamble}
        for job in group.jobs:
            # one job of a matrix is enough: the others differ in single words, which are quoted
            texts.setdefault(f"{place}command" if job.overrides else f"{place}{job.label}", job.command)
        for name, text in texts.items():
            problems |= {f"{name}: {words}": None for words in _syntax_error(text)}
        if not any(name.startswith(place) for name in problems):
            text = batch_script(group=group, jobs=group.jobs, token="0", folder=Path("/"), array=True, limit=None)
            problems |= {f"{place}preamble: {words}": None for words in _syntax_error(text)}
    return list(problems)


def _syntax_error(text: str) -> list[str]:
    """The first line of what ``bash -n`` prints about ``text``; empty if bash can parse it."""
    environment = {**os.environ, "LC_ALL": "C"}  # otherwise a warning about the locale may come first
    bash = shutil.which("bash") or "/bin/bash"
    done = subprocess.run(["bash", "-n"], executable=bash, input=text.encode(), capture_output=True, env=environment)
    line = done.stderr.decode(errors="replace").partition("\n")[0]
    return [re.sub(r"^\S*bash: (line \d+: )?", "", line) or "bash cannot read it"] if done.returncode != 0 else []


def _case(number: int, job: Job, token: str) -> str:
    end = f"{token}-{number}"  # the token is a hash of the commands, so that no command contains it
    return f"  {number}) IFS= read -rd '' command <<'{end}' || :\n{job.command}\n{end}\n    ;;"


def job_name(group: Group, token: str) -> str:
    """SLURM's name of a submission: readable in squeue, and unique, since a submission is looked up by it."""
    return f"{group.slug}.{token}"


def log_file(folder: Path, token: str, task: int) -> Path:
    """The file with what a job prints, in all attempts under one submission."""
    return folder / "logs" / f"{token}-{task}.log"


def _log_pattern(folder: Path, token: str, array: bool) -> str:
    logs = str(folder / "logs").replace("%", "%%")
    return f"{logs}/{token}-{'%a' if array else 0}.log"


def _directive(option: str) -> str:
    """An option as a directive contains it: its value in quotes if that has a blank or a quote."""
    key, equals, value = option.partition("=")
    if not equals or not set(value) & set(" \t\"'\\#"):
        return option
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def last_words(log: Path) -> str:
    """The last line that a job printed, which is where programs say why they stop; its first 200 characters. What bash
    itself says of a program that a signal ended is left out."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    words = next((line for line in reversed(lines) if line.strip() and not _KILLED.search(line)), "")
    return "".join(sign if sign.isprintable() else " " for sign in words.strip())[:200]
