"""Trainings in one process and in two, over the same small model and data."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.processes.worker import End, Job
from utils.runs import Run, find_runs

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Lab:
    """Overrides that name the small model and data, below ``folder`` as ``output.path``."""

    model: Path
    data: Path
    folder: Path

    def overrides(self, name: str, *more: str) -> list[str]:
        return [
            f"model.name={self.model}", f"dataset.path={self.data}", f"output.path={self.folder / name}",
            "model.dropout=0", "train.batch_size=13", "train.epochs=2", "train.device=cpu", "logging.print_freq=1",
            "logging.samples=0", "fnmodel.params.rank=4", "train.warmup_steps=0", "train.scheduler=constant", *more,
        ]  # fmt: skip

    def run(self, name: str) -> Run:
        (run,) = find_runs([self.folder / name])
        return run

    def together(self, plan: str, jobs: Sequence[Job], command: Sequence[str] = TORCHRUN) -> list[list[End]]:
        """How each of ``jobs`` ended, by index, when two processes ran them one after another."""
        path = self.folder / plan
        path.write_text(json.dumps([dataclasses.asdict(job) for job in jobs]))
        done = launched([*command, "-m", "tests.processes.worker", str(path)])
        assert done.returncode == 0, done.stderr[-5000:]
        ends = [[End(**end) for end in json.loads(Path(f"{path}.{index}").read_text())] for index in (0, 1)]
        return [list(pair) for pair in zip(*ends, strict=True)]


def launched(command: Sequence[str], timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command run to its end in the repository's root."""
    variables = {**ENVIRONMENT, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def lab(small_model: Path, small_e2e: Path, tmp_path_factory: Any) -> Lab:
    return Lab(small_model, small_e2e, tmp_path_factory.mktemp("runs"))
