"""What the tests on a real cluster ask: jobrunner.py in a process of its own, states of jobs, the daemons' logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.slurm.conftest import PATIENCE, ROOT


def jobrunner(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "jobrunner.py", *arguments], capture_output=True, text=True)


def statuses(*arguments: str) -> list[dict[str, Any]]:
    done = jobrunner("-s", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["jobs"]


def states(*arguments: str) -> dict[str, list[str]]:
    """The states of each group's jobs."""
    found: dict[str, list[str]] = {}
    for job in statuses(*arguments):
        found.setdefault(job["group"], []).append(job["state"])
    return found


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, jobrunner("-s").stdout + evidence()
        time.sleep(1)


def evidence() -> str:
    """The ends of the daemons' logs."""
    logs = sorted((Path(os.environ["SLURM_CONF"]).parent / "log").iterdir())
    return "".join(f"\n==> {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
