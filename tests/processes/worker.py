"""The code of each process of a test's torchrun: it runs trainings one after another and notes how each ended.

``torchrun --nproc_per_node=2 -m tests.processes.worker PLAN`` reads PLAN, a list of jobs, and writes PLAN.<index>.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import rosa
from rosa.sharding import gather, is_sharded
from tests.conftest import make_config
from utils.errors import UserError
from utils.processes.group import disconnect_at_end
from utils.training import loop
from utils.training.failures import optimizer_tensors
from utils.training.launch import train_all
from utils.training.training import Training

INDEX = int(os.environ.get("RANK", "0"))


@dataclass
class Job:
    """A training, and what happens to the process ``index`` as it begins its optimizer step ``step`` (from 1).

    ``where`` moves the moment to the validation after that step, or to the sample texts of this validation.
    """

    overrides: list[str]
    # the name of a signal; nan: a parameter becomes NaN; error: an exception; memory: none is left in the next resample
    happens: str | None = None
    index: int = 1
    step: int = 0
    where: str = "step"  # step, validation or samples


@dataclass
class End:
    """How a training ended on one process."""

    how: str
    values: dict[str, str] = field(default_factory=dict)  # parameter -> hash of this process's values, whole
    share: float = 0.0  # part of the parameters and the optimizer's state that this process holds


def run(job: Job) -> End:
    """Train. Returns what training raised, and the model's values at the end."""
    end = End("finished")
    name = {"step": "train_step", "validation": "validate", "samples": "sample_texts"}[job.where]
    original, close = getattr(loop, name), Training.close

    def planted(training: Training, *arguments: Any, **options: Any) -> Any:
        now = training.progress.step + (job.where == "step")
        if job.happens and (training.processes.index, now) == (job.index, job.step):
            if job.happens == "nan":
                with torch.no_grad():
                    training.trained_parameters()[0].fill_(torch.nan)
            elif job.happens == "error":
                raise RuntimeError("planted")
            elif job.happens == "memory":
                for layer in rosa.adapter_layers(training.model).values():
                    layer.sample = lambda *_: torch.empty(10**14)
            else:
                os.kill(os.getpid(), signal.Signals[job.happens])
        return original(training, *arguments, **options)

    def noted(training: Training) -> None:
        for name, parameter in training.model.named_parameters():
            end.values[name] = hashlib.sha256(gather(parameter).flatten().numpy().tobytes()).hexdigest()
        tensors = [*training.model.parameters(), *optimizer_tensors(training.optimizer)]
        local = [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]
        end.share = sum(tensor.numel() for tensor in local) / sum(tensor.numel() for tensor in tensors)
        close(training)

    setattr(loop, name, planted)
    Training.close = noted  # type: ignore[method-assign]
    try:
        train_all(make_config(*job.overrides), job.overrides)
    except SystemExit as stop:
        end.how = f"exit {stop.code}"
    except UserError as error:
        end.how = f"{type(error).__name__}: {error}"
    finally:
        setattr(loop, name, original)
        Training.close = close  # type: ignore[method-assign]
    return end


def main(plan: Path) -> None:
    torch.set_num_threads(1)
    ends = [dataclasses.asdict(run(Job(**job))) for job in json.loads(plan.read_text())]
    Path(f"{plan}.{INDEX}").write_text(json.dumps(ends))


if __name__ == "__main__":
    with disconnect_at_end():
        main(Path(sys.argv[1]))
