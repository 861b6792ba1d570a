"""How much of the change that each draw made to the weights later draws leave.

    python -m studies.capacity.draws runs/capacity/phone_book/RUN [--records DIR]

trains the run again, in a temporary folder, and keeps the merged weights at each resample. Draw k changes the weight
by D_k = W_k − W_(k−1), the later ones together by L_k = W_K − W_k. What is kept of D_k is 1 + ⟨L_k, D_k⟩ / ⟨D_k, D_k⟩
over all layers: 1 where later draws leave its direction alone, 0 where they take it back, more than 1 where they go on.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rosa
from rosa.layers import LowRankLayer
from studies.capacity.measure import RECORDS
from studies.records import open_records
from utils.config.settings import Config, load_config
from utils.errors import UserError, run_cli
from utils.io.files import write_json
from utils.processes.group import connect
from utils.processes.signals import stop_on_signals
from utils.runs import Run
from utils.training.loop import fit
from utils.training.setup import set_up


class Watched:
    """A resampler that keeps the merged weights at each resample."""

    def __init__(self, resampler: rosa.Resampler) -> None:
        self._resampler = resampler
        self.snapshots: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resampler, name)

    def after_step(self, step: int, total_steps: int) -> bool:
        done = self._resampler.after_step(step, total_steps)
        if done:  # a resample does not change the merged weights
            self.snapshots.append(merged_weights(self._resampler.model))
        return done


def merged_weights(model: Any) -> Tensor:
    """All adapted weights of a model, with the adapters merged, as one vector in float64."""
    layers = [layer for layer in rosa.adapter_layers(model).values() if isinstance(layer, LowRankLayer)]
    return torch.cat([(layer.weight_mn + layer.delta()).detach().double().flatten() for layer in layers])


def kept(snapshots: list[Tensor]) -> list[float]:
    """What is kept of each draw at the end; ``snapshots`` are W_0, …, W_K as vectors."""
    shares = []
    for before, after in itertools.pairwise(snapshots):
        draw, later = after - before, snapshots[-1] - after
        shares.append(1 + float(later @ draw / (draw @ draw)))
    return shares


def train_watched(config: Config, folder: Path) -> list[Tensor]:
    """Train ``config`` in ``folder``. Returns the merged weights before, at each resample, and after."""
    with stop_on_signals(connect("cpu")) as stop:
        training = set_up(config, "fp32", Run(folder), stop)
        start = merged_weights(training.model)
        watched = Watched(training.resampler)
        training.resampler = watched  # type: ignore[assignment]
        fit(training)
        training.close()
        return [start, *watched.snapshots, merged_weights(training.model)]


def main() -> None:
    """Train a run of ROSA again, print what is kept of each draw, and write it into its record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run of ROSA that resamples after steps")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where to write (default: beside the page)")
    arguments = parser.parse_args()
    config = load_config(Run(arguments.run).config_file)
    if config.fnmodel.name != "rosa" or config.fnmodel.rosa.level != "step":
        raise UserError(f"{arguments.run} does not resample after steps: give a run with fnmodel.rosa.level=step")
    with tempfile.TemporaryDirectory() as folder:
        shares = kept(train_watched(config, Path(folder)))
    print(" ".join(f"{share:.2f}" for share in shares))
    with open_records(arguments.records) as records:
        folder = records / arguments.run.resolve().name
        folder.mkdir(exist_ok=True)
        write_json(folder / "draws.json", {"kept": shares})


if __name__ == "__main__":
    run_cli(main)
