"""Collect the study's finished runs: their records, their configurations, and what only their weights can say.

    python -m studies.capacity.measure runs/capacity/phone_book

adds a folder for each run to ``records.tar.xz``: run.json and config.yaml, both without paths, and study.json. Runs
that have one already are left alone, and no weight is copied. ``study.json`` has, of the best checkpoint,

- ``book_a``, ``book_b``: loss, bits stored, and the share of keys whose greedy output is the whole number
- ``change``: of ΔW = W − W_base in each adapted layer its norm, numerical rank and effective rank, and ``spectrum``,
  its singular values divided by the largest, averaged over layers

The record ``base`` has ``book_a`` of the model before training.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

import rosa
from rosa.targets import find_targets
from studies.capacity.make_base import BOOK_A, POSITIONS, SIZE_A
from studies.records import copy_record, open_records, record_base, uncopied
from utils.config.settings import load_config
from utils.data import DataSource, get_source
from utils.errors import run_cli
from utils.generation.decoding import Decoding
from utils.generation.generate import generate
from utils.metrics.exact_match import ExactMatch
from utils.models.loading import load_model, load_tokenizer
from utils.models.losses import model_losses
from utils.runs import Run
from utils.runs.checkpoint_folder import load_weights
from utils.tokens.encoding import encode

RECORDS = Path(__file__).parent / "records"
NUMERICAL = 0.01  # a singular value above this share of the largest counts for the numerical rank
GREEDY = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=11)  # ten digits and the end


def recall(model: Any, tokenizer: Any, source: DataSource) -> dict[str, float]:
    """What ``model`` knows of a book: loss in nats per target token, bits stored, share of numbers written whole."""
    examples = source.load("test", None, None)
    encoded = encode(examples, tokenizer, POSITIONS)
    target = model_losses(model, encoded, tokenizer.pad_token_id, 200).target
    assert target is not None and source.target_bits is not None  # both hold for a phone book
    bits = max(0.0, len(examples) * source.target_bits - target.nats / math.log(2))
    texts = generate(model, tokenizer, [example.prompt for example in examples], GREEDY, 200)
    exact = ExactMatch([[example.reference] for example in examples]).score(texts)["exact_match"]
    return {"loss": target.metrics()["loss"], "stored_bits": bits, "exact_match": exact}


def change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the training changed in each layer, from its weights by name before and after, in float64.

    The effective rank is exp(H(p)) with p = s² / Σ s² (Roy and Vetterli 2007, with squared singular values). The
    spectrum is the mean over layers of s over its largest value, as far as the shortest one goes.
    """
    layers, spectra = {}, []
    for name, weight in before.items():
        values = torch.linalg.svdvals(after[name].double() - weight.double())
        if values[0] == 0:
            layers[name] = {"norm": 0.0, "rank": 0, "effective_rank": 0.0}
            continue
        shares = values.square() / values.square().sum()
        layers[name] = {
            "norm": float(values.norm()),
            "rank": int((values > NUMERICAL * values[0]).sum()),
            "effective_rank": float(torch.special.entr(shares).sum().exp()),
        }
        spectra.append(values / values[0])
    shortest = min(map(len, spectra), default=0)
    spectrum = torch.stack([values[:shortest] for values in spectra]).mean(0).tolist() if spectra else []
    return {"layers": layers, "spectrum": [float(f"{value:.4g}") for value in spectrum]}


def weights(model: Any, target_modules: str | list[str] | None = None) -> dict[str, torch.Tensor]:
    """Copies of the weights of the layers to adapt, see ``rosa.targets.find_targets``."""
    return {name: module.weight.detach().clone() for name, module in find_targets(model, target_modules).items()}


def collect(run: Run, records: Path) -> Path:
    """Write the record of a finished run. Returns its folder."""
    config = load_config(run.config_file)
    tokenizer, model = load_tokenizer(config.model.name), load_model(config.model.name)
    before, book_a = weights(model), get_source("phone_book", SIZE_A, BOOK_A)
    record_base(records, lambda: {"book_a": recall(model.eval(), tokenizer, book_a)})
    load_weights(run.best, model)
    model = rosa.unwrap(model).eval()
    measured = {
        "book_a": recall(model, tokenizer, book_a),
        "book_b": recall(model, tokenizer, config.source),
        "change": change(before, weights(model)),
    }
    folder = records / run.path.name
    copy_record(run, folder, measured)
    return folder


def main() -> None:
    """Collect what is finished and not collected yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders with runs of the study")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where to write (default: beside the page)")
    arguments = parser.parse_args()
    with open_records(arguments.records) as records:
        for run in uncopied(arguments.runs, records, lambda run: True):
            if load_config(run.config_file).dataset.book != BOOK_A:
                print(collect(run, records).name, flush=True)


if __name__ == "__main__":
    run_cli(main)
