"""Shared fixtures: a model and a data set small enough to train in a second, and a way to run a training."""

from __future__ import annotations

import csv
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings

from utils.config.settings import Config, parse_config
from utils.data.e2e_sample import E2ESample
from utils.models.loading import BUNDLED
from utils.runs import Run
from utils.training.launch import find_run, train_all

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # equal results in each run, and no contention for two cores
# A change passes or fails for what it changes, not by the draw.
settings.register_profile("fixed", derandomize=True, max_examples=120)
settings.register_profile("search", max_examples=3000)
settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """Spare the collections of each training's start what was imported: it stays anyway, and takes them .2 seconds."""
    gc.collect()
    gc.freeze()


def data_folder(variable: str) -> Path:
    """A folder of data named by an environment variable. Skips the test if that is not set."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: it names a folder of data that the repository does not hold")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of two layers and 32 dimensions with the bundled tokenizer; dropout 0.1 as GPT-2 has it."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("small-gpt2")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["tiny"])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """An E2E file: columns mr and ref."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(("mr", "ref"))
        writer.writerows(rows)


@pytest.fixture(scope="session")
def small_e2e(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """E2E's three files with 70, 12 and 12 pairs."""
    folder = tmp_path_factory.mktemp("e2e")
    for split, name, count in (("train", "trainset", 70), ("validation", "devset", 12), ("test", "testset_w_refs", 12)):
        examples = E2ESample().load(split, None, None)[:count]
        write_csv(folder / f"{name}.csv", [(example.source, example.reference) for example in examples])
    return folder


def make_config(*overrides: str) -> Config:
    """The configuration with these overrides of the command line."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return parse_config(compose("train", overrides=list(overrides)))


@pytest.fixture
def train(small_model: Path, small_e2e: Path, tmp_path: Path) -> Callable[..., Run]:
    """A function that trains the small model on the small data with further overrides, and returns the run."""

    def run(*overrides: str) -> Run:
        config = make_config(
            f"model.name={small_model}",
            f"dataset.path={small_e2e}",
            f"output.path={tmp_path / 'runs'}",
            "train.batch_size=16",
            "train.epochs=3",
            "train.device=cpu",
            "logging.print_freq=2",
            "logging.samples=0",
            "fnmodel.params.rank=4",
            *overrides,
        )
        train_all(config, list(overrides))
        return Run(find_run(config)[1])

    return run
