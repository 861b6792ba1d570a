"""The batch script of a submission, as text.

The script keeps its own record, so that the truth survives a cluster without accounting: in
``<state>/events/<token>-<task>`` it notes when it starts, which signals reach it, and how the command ended.
The command runs in a process group of its own, and the script waits for it. TERM (cancelled, preempted, out of
time) is passed on to that whole group. USR1 (the time limit nears) is passed on to those of its processes that
handle it, since it would kill any other: train.py, eval.py and eval.sh then save and end with code 75, which means
that the same command goes on from there, and such a job puts itself back into the queue. A command that does not
listen runs on until its end or its time limit. After TERM no job is put back, since somebody wanted it stopped.

A command is text until it is evaluated, so that nothing in it can reach beyond its own place.

Written for bash 4.2 and later. ``task`` is the job's place in its submission, 0 for a job that is no array.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from utils.slurm.sweep.file import Group, Job
from utils.slurm.sweep.resources import directives

INTERRUPTED = 75  # EX_TEMPFAIL: the command was stopped, saved its state, and can be run again to go on

_BODY = r"""
events=$state/events/$token-$task
event() {{ printf '%(%s)T %s\n' -1 "$*" >> "$events"; }}  # by itself: SLURM's signals would end a date, too
export ROSA_RUN_POINTER=$state/pointers/$job
# torchrun dies of USR1 and gives its processes 30 seconds, unless it is told otherwise
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT={save_before}

child= signal= again=
forward() {{
  signal=$1 again=1
  event signal "$1"
  if [ -n "$child" ]; then pass_on; fi
}}
pass_on() {{
  if [ "$signal" = USR1 ]; then warn & else kill -s "$signal" -- "-$child" 2>/dev/null; fi
}}
warn() {{  # each process of the command once, as soon as it handles USR1
  local process stat key value warned=" "
  # a bash with an EXIT trap catches whatever could end it, this signal included, and ends all the same
  local wanted=$((1 << ($(kill -l USR1) - 1))) whatever=$((1 << ($(kill -l VTALRM) - 1)))
  while kill -0 -- "-$child" 2>/dev/null; do
    for process in /proc/[0-9]*; do
      {{ IFS= read -rd '' stat < "$process/stat"; }} 2>/dev/null
      set -- ${{stat##*) }}  # its state, parent and process group
      if [ "$3" != "$child" ] || [[ $warned == *" $process "* ]]; then continue; fi
      while read -r key value; do
        if [ "$key" = SigCgt: ] && (((0x$value & (wanted | whatever)) == wanted)); then
          warned+="$process "
          kill -s USR1 "${{process#/proc/}}"
        fi
      done < "$process/status" 2>/dev/null
    done
    sleep 1
  done
}} 2>/dev/null
trap 'forward USR1' USR1
trap 'forward TERM' TERM
trap 'forward INT' INT
event start "{number}" "$(uname -n)" "$$" "${{SLURM_RESTART_COUNT:-0}}" "${{SLURM_JOB_END_TIME:-0}}"

set -m  # gives the command a process group of its own
(
  stopped=
  trap 'stopped=1' TERM INT
  trap 'code=$?; trap "" TERM INT; event code "$code"' EXIT
{preamble}
  if [ -n "$stopped" ]; then exit {interrupted}; fi
  case $task in
{cases}
  esac
  # a list of commands ends with the one that was stopped: the next must not run, and its 0 would be the job's
  trap 'code=$?; exit "$((code ? code : {interrupted}))"' TERM INT
  eval "$command"
) &
child=$!
if [ -n "$signal" ]; then pass_on; fi  # it came before there was anything to pass it on to
while :; do  # wait returns early when a trap ran, and gives the same answer when asked twice
  again=
  wait "$child"
  code=$?
  if [ -z "$again" ]; then break; fi
done
if [ "$code" -lt 0 ]; then  # bash 5.2 forgets how a command ended that ended while a trap ran: it has noted that itself
  code=137
  while read -r _ word number; do
    case $word in start) code=137 ;; code) code=$number ;; esac
  done < "$events"
fi
# a launcher of several processes ends with 1, whatever they ended with: what became of the run stands in its record
if [ -n "$signal" ] && [ "$code" = 1 ] && [ -f "$ROSA_RUN_POINTER" ] \
  && grep -qs '"status": "interrupted"' "$(tail -n 1 "$ROSA_RUN_POINTER")/run.json"; then
  code={interrupted}
fi
event exit "$code" "${{signal:--}}"

if [ "$signal" = USR1 ] && [ "$code" = {interrupted} ] && [ -n "${{SLURM_JOB_ID:-}}" ] \
  && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeue} ]; then
  event requeue
  if scontrol requeue "{own}"; then sleep 30; else event stay; fi
fi
exit "$code"
"""


def batch_script(
    *, group: Group, jobs: Sequence[Job], token: str, state: Path, folder: Path, array: bool, limit: int | None
) -> str:
    """The text handed to sbatch, or to bash for a run on this machine.

    Args:
        group: resources, preamble and requeue policy.
        jobs: the commands, in the order of their task numbers.
        token: the submission's unique name.
        state: the sweep's state folder, absolute.
        folder: where the commands run, absolute.
        array: submit as a job array with one task a job.
        limit: at most so many tasks at a time, for arrays; None for no limit.
    """
    hoisted = [line.strip() for line in group.preamble.splitlines() if line.lstrip().startswith("#SBATCH")]
    lines = [f"--job-name={job_name(group, token)}"]
    lines += [f"--output={_log_pattern(state, token, array)}", "--open-mode=append", f"--chdir={folder}"]
    if array:
        lines.append(f"--array=0-{len(jobs) - 1}" + (f"%{limit}" if limit else ""))
    lines += [*directives(group.resources), "--requeue", f"--signal=B:USR1@{group.save_before}"]
    header = ["#!/bin/bash", *hoisted, *(f"#SBATCH {_directive(line)}" for line in lines)]
    preamble = [line for line in group.preamble.splitlines() if not line.lstrip().startswith(("#SBATCH", "#!"))]
    cases = "\n".join(_case(number, job, token) for number, job in enumerate(jobs))
    setup = [
        f"state={shlex.quote(str(state))}",
        f"token={token}",
        "task=" + ("${SLURM_ARRAY_TASK_ID:-${ROSA_TASK:-0}}" if array else "0"),
        "jobs=(" + " ".join(job.id for job in jobs) + ")",
        "job=${jobs[$task]}",
    ]
    body = _BODY.format(
        preamble="\n".join(preamble) or "  :", cases=cases, interrupted=INTERRUPTED, requeue=group.requeue,
        save_before=group.save_before, number="${SLURM_ARRAY_JOB_ID:-local}" if array else "${SLURM_JOB_ID:-local}",
        # not $SLURM_JOB_ID: an array's last task has the array's own number there, which means all of its tasks
        own="${SLURM_ARRAY_JOB_ID}_$task" if array else "$SLURM_JOB_ID",
    )  # fmt: skip
    return "\n".join([*header, "", *setup]) + body


def shell_problems(groups: Sequence[Group]) -> list[str]:
    """What bash cannot read of commands, preambles and the whole scripts, a sentence each."""
    problems: dict[str, None] = {}
    for group in groups:
        place = f"group {group.name}: "
        texts = {f"{place}preamble": group.preamble}
        for job in group.jobs:
            # of a matrix one job is enough: the others differ by single words, quoted here
            texts.setdefault(f"{place}command" if job.overrides else f"{place}{job.label}", job.command)
        for name, text in texts.items():
            problems |= {f"{name}: {words}": None for words in _syntax_error(text)}
        if not any(name.startswith(place) for name in problems):
            text = batch_script(
                group=group, jobs=group.jobs, token="0", state=Path("/"), folder=Path("/"), array=True, limit=None
            )
            problems |= {f"{place}preamble: {words}": None for words in _syntax_error(text)}
    return list(problems)


def _syntax_error(text: str) -> list[str]:
    """What ``bash -n`` says of ``text`` in its first line; empty where it can read it."""
    plain = {**os.environ, "LC_ALL": "C"}  # or it may begin with a warning about the locale
    bash = shutil.which("bash") or "/bin/bash"
    done = subprocess.run(["bash", "-n"], executable=bash, input=text.encode(), capture_output=True, env=plain)
    said = done.stderr.decode(errors="replace").partition("\n")[0]
    return [re.sub(r"^\S*bash: (line \d+: )?", "", said) or "bash cannot read it"] if done.returncode != 0 else []


def _case(number: int, job: Job, token: str) -> str:
    end = f"{token}-{number}"  # made from what the job's command says, so that no command can hold it
    return f"  {number}) IFS= read -rd '' command <<'{end}' || :\n{job.command}\n{end}\n    ;;"


def job_name(group: Group, token: str) -> str:
    """SLURM's name of a submission: readable in squeue, and unique, since it is how a submission is found again."""
    return f"{group.slug}.{token}"


def log_file(state: Path, token: str, task: int) -> Path:
    """Where a job's output goes, of all its attempts under one submission."""
    return state / "logs" / f"{token}-{task}.log"


def _log_pattern(state: Path, token: str, array: bool) -> str:
    folder = str(state / "logs").replace("%", "%%")
    return f"{folder}/{token}-{'%a' if array else 0}.log"


def _directive(option: str) -> str:
    """An option as a directive line takes it: in quotes when a blank or quote is in its value."""
    key, equals, value = option.partition("=")
    if not equals or not set(value) & set(" \t\"'\\#"):
        return option
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'
