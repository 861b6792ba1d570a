"""Collect the finished runs of the study: their records, and what only their weights can say.

    python -m studies.pretrained.measure runs/pretrained/phone_book --eli5 ELI5_DIR

adds a folder for each run to ``records.tar.xz``: what ``studies.records`` copies, and study.json. Runs that have one
already are left alone, and no weight is copied. A trial of the search gets no study.json, because measuring takes a
minute, or with ``--trials`` one without ``change``. ``study.json`` has, of the best checkpoint: ``book_b``, what it
knows of the facts, if it was trained on them; ``english``, its loss on ordinary text; ``change``, its ΔW in the adapted
layers. The first and the last are those of ``studies.capacity.measure``. The record ``base`` has the loss of the model
before training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import rosa
from studies.capacity.measure import change, recall, weights
from studies.records import copy_record, is_of, open_records, record_base, uncopied
from utils.config.settings import load_config
from utils.data import get_source, training_units
from utils.errors import run_cli
from utils.models.loading import load_model, load_tokenizer
from utils.models.losses import model_losses
from utils.runs import Run
from utils.runs.checkpoint_folder import load_weights
from utils.tokens.packing import encode_units

RECORDS = Path(__file__).parent / "records"
DOCUMENTS, BLOCK = 20, 128  # of ELI5's validation split, the first; tokens of a block


def english(model: Any, tokenizer: Any, folder: Path) -> dict[str, float]:
    """The loss of ``model`` in nats per token on the first questions and answers of ELI5's validation split."""
    source = get_source("eli5")
    units = training_units(source, source.load("validation", folder, None))[:DOCUMENTS]
    encoded = encode_units(units, tokenizer, packed=True, seq_len=BLOCK, block_size=BLOCK)
    found = model_losses(model, encoded, tokenizer.pad_token_id, 16).all
    return {"loss": found.metrics()["loss"], "tokens": found.tokens}


def collect(run: Run, records: Path, eli5: Path, trials: bool = False) -> Path:
    """Write the record of a finished run, and that of its base if there is none. Returns the run's folder.

    Args:
        trials: whether trials of a search are measured too.
    """
    config, folder = load_config(run.config_file), records / run.path.name
    is_measured = is_of(run, folder) and (folder / "study.json").exists()  # then only what its evaluation wrote is new
    if is_measured or (config.output.search and not trials):
        copy_record(run, folder)
        return folder
    tokenizer, model = load_tokenizer(config.model.name), load_model(config.model.name)
    record_base(records, lambda: {"english": english(model, tokenizer, eli5)})
    targets = config.fnmodel.params.target_modules
    before = weights(model, targets)
    load_weights(run.best, model)
    model = rosa.unwrap(model).eval()
    measured = {
        **({"book_b": recall(model, tokenizer, config.source)} if config.dataset.name == "phone_book" else {}),
        "english": english(model, tokenizer, eli5),
        **({} if config.output.search else {"change": change(before, weights(model, targets))}),
    }
    copy_record(run, folder, measured)
    return folder


def main() -> None:
    """Collect what is finished and not collected yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders with runs of the study")
    parser.add_argument("--eli5", type=Path, required=True, help="folder with ELI5's files")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where to write (default: beside the page)")
    parser.add_argument("--trials", action="store_true", help="measure trials of the search too")
    arguments = parser.parse_args()
    trials = arguments.trials

    def to_measure(run: Run) -> bool:
        return trials or not load_config(run.config_file).output.search

    with open_records(arguments.records) as records:
        for run in uncopied(arguments.runs, records, to_measure):
            print(collect(run, records, arguments.eli5, trials).name, flush=True)


if __name__ == "__main__":
    run_cli(main)
