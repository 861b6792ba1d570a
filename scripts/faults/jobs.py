"""Jobs of two processes under torchrun: one of them killed, then the same command again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from scripts.faults.compare import FILES, differences, facts
from scripts.faults.kills import ENVIRONMENT
from scripts.faults.ledger import Laboratory, say
from scripts.faults.material import METHODS, ROOT, Case, overrides, run_in

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
HANG = 1800  # seconds after which a job counts as hung


def killed(lab: Laboratory, times: int, chance: random.Random) -> None:
    """Kill a random one of the two processes, ``times`` times for each run, once it has trained some steps."""
    row = lab.row("kill -9 of one of two processes", "the other one ends too, and says so; the same command goes on")
    for number in range(times):
        case = Case(METHODS[number % len(METHODS)], "e2e_nlg")
        whole = lab.place("two-whole")
        if _train(lab, case, whole).returncode:
            raise RuntimeError(f"{case} in two processes fails undisturbed")
        out = lab.place("two-killed")
        for _ in range(2):
            process = _start(lab, case, out)
            if _kill_one(process, out, chance):
                row.caused += 1
            output, _ = process.communicate(timeout=HANG)
            if process.returncode == 0:
                break
            if "another process of this job ended" not in output and "Signal 9" not in output:
                row.note("other", f"{case}: {output[-800:]}")
        done = _train(lab, case, out)
        if done.returncode:
            row.note("lost", f"{case} in two processes ends with {done.returncode}: {done.stdout[-800:]}")
            continue
        expected, found = facts(run_in(whole)), facts(run_in(out))
        expected.pop(FILES), found.pop(FILES)
        if different := differences(expected, found):
            row.note("changed", f"{case} in two processes: {'; '.join(different)}")
        say(f"two processes, {case}: {row.caused} kills")


def _start(lab: Laboratory, case: Case, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *overrides(case, lab.data, out)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _train(lab: Laboratory, case: Case, out: Path) -> subprocess.CompletedProcess[str]:
    process = _start(lab, case, out)
    output, _ = process.communicate(timeout=HANG)
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def _kill_one(launcher: subprocess.Popen[str], out: Path, chance: random.Random) -> bool:
    """Wait for a checkpoint of this attempt, wait a little more, kill a rank; False if the job ended before."""
    before = _last(out)
    while launcher.poll() is None and _last(out) == before:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.5))
    try:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text(encoding="utf-8").split()
        os.kill(int(chance.choice(children)), signal.SIGKILL)
    except (OSError, IndexError):
        return False
    return True


def _last(out: Path) -> str | None:
    return next((os.readlink(path) for path in out.glob("*/*/checkpoints/last")), None)
