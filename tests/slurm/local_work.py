"""Sweeps of work.py, for the tests of jobs on this machine (the fixture ``work``)."""

from __future__ import annotations

import sys
from pathlib import Path


def write(project: Path, *groups: str) -> None:
    lines = [f"  - {{{group}}}".replace("WORK", f"{sys.executable} work.py") for group in groups]
    (project / "jobs.yaml").write_text("groups:\n" + "\n".join(lines))


def log(project: Path) -> list[list[str]]:
    return [line.split(" ") for line in (project / "log").read_text().splitlines()]
