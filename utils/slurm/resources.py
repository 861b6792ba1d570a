"""Resources of a job: the sbatch options a sweep file may set, and their directives."""

from __future__ import annotations

import difflib
from typing import Any

from utils.slurm.quoting import expand_environment

_OPTIONS = """
    account acctg-freq batch bb bbf begin cluster-constraint clusters comment constraint contiguous container
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
    "wrap": "use jobs",
}


def resource_problems(resources: dict[str, Any]) -> list[str]:
    """What is wrong with a ``resources`` node, one sentence a problem."""
    problems = []
    for given, value in resources.items():
        key = given.replace("_", "-")
        if key in OWN:
            problems.append(f"{given} is not for resources: {OWN[key]}")
        elif key not in OPTIONS:
            near = difflib.get_close_matches(key, OPTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(OPTIONS))}"
            problems.append(f"{given} is not an option of sbatch; {hint}")
        elif isinstance(value, (list, dict)):
            problems.append(f"{given} must be one value, not a {'list' if isinstance(value, list) else 'mapping'}")
        elif isinstance(value, str):
            try:
                expand_environment(value)
            except KeyError as error:
                problems.append(f"{given}={value}: {error.args[0]} is not set in the environment")
    return problems


def directives(resources: dict[str, Any]) -> list[str]:
    """sbatch options in alphabetical order. ``true`` is a bare option; ``false``, null and an empty text are none.

    Environment variables are those of this machine: sbatch expands nothing in a directive.
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
