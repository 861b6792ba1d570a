"""The resources of a job: the sbatch options that a sweep file may set, and their directives."""

from __future__ import annotations

import re
from typing import Any

from utils.slurm.sweep.quoting import expand_environment
from utils.text import did_you_mean

_OPTIONS = """
    account acctg-freq batch bb bbf begin cluster-constraint comment constraint contiguous container
    core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot distribution exclude
    exclusive extra-node-info gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags
    hint licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice
    no-kill nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket
    oversubscribe overcommit partition power prefer priority profile propagate qos reboot reservation
    sockets-per-node spread-job switches thread-spec threads-per-core time time-min tmp tres-bind
    tres-per-task use-min-nodes wait-all-nodes wckey
"""
OPTIONS = frozenset(_OPTIONS.split())
OWN = {
    "array": "a group's jobs become an array by themselves (array: false turns it off)",
    "clusters": "export SLURM_CLUSTERS, which asking for the jobs needs as well",
    "chdir": "jobs run in the folder jobrunner.py is started in",
    "dependency": "use after: [GROUP]",
    "error": "logs are kept beside the state, see --logs",
    "export": "set the environment in preamble",
    "job-name": "the name is how a job is found again",
    "kill-on-invalid-dep": "the status shows such jobs as never",
    "no-requeue": "use requeue: 0",
    "open-mode": "logs are kept beside the state, see --logs",
    "output": "logs are kept beside the state, see --logs",
    "parsable": "it is always used",
    "requeue": "use requeue: N",
    "signal": "use save_before: SECONDS",
    "wrap": "use command or paralleljobs",
}


def time_limit(resources: dict[str, Any]) -> int | None:
    """The time limit in seconds; None for no limit.

    Raises:
        ValueError: sbatch does not take it as it is written; the message shows how to write it.
    """
    text = str(resources.get("time") or "")
    text = expand_environment(text).strip()
    if not text or text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"time={text} is no time: write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *parts = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:  # "90" and "90:30" count minutes
        parts = [0, *parts[:2]]
    hours, minutes, seconds = parts
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or None


def resource_problems(resources: dict[str, Any]) -> list[str]:
    """What is wrong with a ``resources`` node: one sentence per problem."""
    problems = []
    for given, value in resources.items():
        key = given.replace("_", "-")
        if key in OWN:
            problems.append(f"{given} is not for resources: {OWN[key]}")
        elif key not in OPTIONS:
            problems.append(f"{given} is not an option of sbatch; {did_you_mean(key, sorted(OPTIONS))}")
        elif isinstance(value, (list, dict)):
            problems.append(f"{given} must be one value, not a {'list' if isinstance(value, list) else 'mapping'}")
        elif isinstance(value, str):
            try:
                expand_environment(value)
            except KeyError as error:
                problems.append(f"{given}={value}: {error.args[0]} is not set in the environment")
                continue
        if key == "time":
            try:
                time_limit({key: value})
            except ValueError as error:
                problems.append(str(error))
    return problems


def directives(resources: dict[str, Any]) -> list[str]:
    """The options of sbatch in alphabetical order. ``true`` gives an option without a value; ``false``, null and an
    empty text leave it out.

    Environment variables are expanded here, on this machine, since sbatch expands nothing in a directive.
    """
    lines = []
    for given, value in sorted(resources.items()):
        key = f"--{given.replace('_', '-')}"
        text = expand_environment(value) if isinstance(value, str) else value
        if text is True:
            lines.append(key)
        elif text not in (None, False, ""):
            lines.append(f"{key}={text}")
    return lines
