"""One tiny trained run that the tests of this folder share, and its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import make_config
from utils.config.settings import load_config
from utils.runs import Run, find_runs
from utils.runs.trained import checkpoint_of, load_trained
from utils.training.launch import train_all

TrainIn = Callable[..., Run]


@pytest.fixture(scope="session")
def train_in(small_model: Path, small_e2e: Path) -> TrainIn:
    """A function that trains the small model, with the runs in a folder, and returns the run."""

    def run(folder: Path, *overrides: str) -> Run:
        config = make_config(
            f"model.name={small_model}", f"dataset.path={small_e2e}", f"output.path={folder}", "train.batch_size=16",
            "train.epochs=1", "train.fraction=0.5", "train.device=cpu", "train.lr=1e-2", "logging.samples=0",
            "fnmodel.params.rank=2",
            *overrides,
        )  # fmt: skip
        train_all(config, list(overrides))
        return find_runs([folder])[0]

    return run


@pytest.fixture(scope="session")
def rosa_run(train_in: TrainIn, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """ROSA after one resample, without trained biases: its change has a rank of 8 at most."""
    return train_in(tmp_path_factory.mktemp("rosa"), "train.epochs=2", "fnmodel.params.bias=none")


def model_of(run: Run) -> Any:
    """The run's best model, with its adapters."""
    return load_trained(run, load_config(run.config_file), checkpoint_of(run))[1].eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits of a fixed batch."""
    tokens = torch.randint(200, (3, 16), generator=torch.Generator().manual_seed(1))
    out: Tensor = model.eval()(input_ids=tokens).logits
    return out
