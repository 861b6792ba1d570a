"""A stand-in for sbatch, squeue, sacct and scancel, called under their names from a folder on the PATH.

It keeps its jobs in ``jobs.json`` beside itself, notes each call in ``calls`` and prints what the real commands
print for the options that utils.slurm.cluster.client uses. Files beside it make it misbehave:

    refuse          sbatch says what the file holds and fails; the job is listed as refused, as the real one does
    refuse-only     and refuses only jobs whose name begins with what this file holds
    unclear         sbatch takes the job, then says what the file holds and fails
    garbage         sbatch takes the job and prints what the file holds
    kill-before, kill-after, kill-answered
                    sbatch kills its caller before it takes the job, after, or after it has answered
    slow            sbatch takes the job that many seconds after its caller is dead (with kill-before)
    no-accounting   sacct fails as it does where accounting is off
    down            squeue fails
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

HERE = Path(sys.argv[0]).parent


def main() -> int:
    command = Path(sys.argv[0]).name
    with open(HERE / "guard", "a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        with open(HERE / "calls", "a") as calls:
            calls.write(json.dumps([command, *sys.argv[1:]]) + "\n")
    return {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel}[command](sys.argv[1:])


def sbatch(arguments: list[str]) -> int:
    if (HERE / "kill-before").exists():
        (HERE / "kill-before").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(float(word("slow") or 0))
        if word("slow") is None:
            return 1
    text = Path(arguments[-1]).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.M))
    with open(HERE / "guard", "a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        jobs = json.loads((HERE / "jobs.json").read_text())
        number = len(jobs) + 1
        tasks = range(int(re.match(r"0-(\d+)", options["array"])[1]) + 1) if "array" in options else [None]
        refused = word("refuse") is not None and options["job-name"].startswith(word("refuse-only") or "")
        rows = {
            "" if task is None else str(task): dict(
                state="FAILED" if refused else "PENDING",
                reason="BadConstraints" if refused else "Priority",
                code="1:0" if refused else "0:0",
                start="None",
                elapsed=0,
            )
            for task in tasks
        }
        given = {key: value for key, value in os.environ.items() if key.startswith(("SBATCH_", "SLURM_"))}
        job = dict(id=number, name=options["job-name"], tasks=rows, arguments=arguments, script=text, environment=given)
        job["submitted"] = time.strftime("%Y-%m-%dT%H:%M:%S")
        jobs.append(job)
        (HERE / "jobs.json").write_text(json.dumps(jobs))
    if (HERE / "kill-after").exists():
        (HERE / "kill-after").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
    if refused or word("unclear") is not None:
        print(word("refuse") if refused else word("unclear"), file=sys.stderr)
        return 1
    print(word("garbage") or number, flush=True)
    if (HERE / "kill-answered").exists():
        (HERE / "kill-answered").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
    return 0


def squeue(arguments: list[str]) -> int:
    if word("down") is not None:
        print("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
        return 1
    for job, id, task in listed(arguments):
        if not task.get("purged") and "--format=%i|%j|%T|%o" in arguments:
            print("|".join([id, job["name"], task["state"], job["arguments"][-1]]))
        elif not task.get("purged"):
            clock = f"{task['elapsed'] // 60}:{task['elapsed'] % 60:02}"
            print("|".join([id, job["name"], task["state"], clock, task["start"], task["reason"], job["submitted"]]))
    return 0


def sacct(arguments: list[str]) -> int:
    if word("no-accounting") is not None:
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    for job, id, task in listed(arguments):
        if task["state"] != "PENDING":
            clock = time.strftime("%H:%M:%S", time.gmtime(task["elapsed"]))
            print(
                "|".join([id, job["name"], task["state"], task["code"], clock, task["start"], "None", job["submitted"]])
            )
    return 0


def scancel(arguments: list[str]) -> int:
    jobs = json.loads((HERE / "jobs.json").read_text())
    for job in jobs:
        for number, task in job["tasks"].items():
            if {str(job["id"]), f"{job['id']}_{number}"} & set(arguments) and task["state"] in ("PENDING", "RUNNING"):
                task.update(state="CANCELLED", reason="None")
    (HERE / "jobs.json").write_text(json.dumps(jobs))
    return 0


def listed(arguments: list[str]) -> list[tuple[dict, str, dict]]:
    names = next((word[7:].split(",") for word in arguments if word.startswith("--name=")), None)
    found = []
    for job in json.loads((HERE / "jobs.json").read_text()):
        if names is None or job["name"] in names:
            for number, task in job["tasks"].items():
                found.append((job, f"{job['id']}_{number}" if number else str(job["id"]), task))
    return found


def word(name: str) -> str | None:
    file = HERE / name
    return file.read_text().strip() if file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
