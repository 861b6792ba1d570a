"""The identity of a run: which settings name another directory; a share of the validation split."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_config
from tests.records import csv_of, write_run
from utils.config.settings import load_config
from utils.results.aggregate import settings_of
from utils.results.read import read_results
from utils.runs.identity import WITHOUT_EFFECT, run_directory
from utils.tables import compile_results


def test_a_new_key_that_is_null_names_no_other_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    before, values = run_directory(config), dataclasses.asdict(config)
    for new in (None, 3):
        monkeypatch.setattr("dataclasses.asdict", lambda _, new=new: {**copy.deepcopy(values), "new": {"key": new}})
        assert (run_directory(config) == before) == (new is None)


@pytest.mark.parametrize(
    "changed",
    [
        "train.validation_fraction=0.5", "fnmodel.lora.alpha=2 fnmodel.lora.scale=rslora", "fnmodel.lora.lr_ratio_b=16",
        "seed=3", "fnmodel.params.rank=7", "model.gguf_file=x", "train.precision=bf16",
    ],
)  # fmt: skip
def test_a_setting_with_an_effect_names_another_directory(changed: str) -> None:
    plain = make_config("fnmodel.name=lora")
    assert run_directory(make_config("fnmodel.name=lora", *changed.split())) != run_directory(plain)


def test_weight_decay_of_pairs_is_part_of_a_run_only_where_it_acts() -> None:
    assert run_directory(make_config("fnmodel.rosa.decay=true")) != run_directory(make_config())
    for setting in ("train.optimizer=sgd", "train.weight_decay=0", "fnmodel.rosa.start=zero", "fnmodel.name=lora"):
        assert run_directory(make_config(setting)) == run_directory(make_config(setting, "fnmodel.rosa.decay=true"))


def test_settings_without_effect_neither_name_another_run_nor_tell_rows_apart(tmp_path: Path) -> None:
    others = {
        "train.micro_batch_size": 16, "train.gradient_checkpointing": True, "train.device": "cpu",
        "train.compile": False, "train.cache_frozen": True, "train.cache_folder": "x", "train.save_every": 7,
        "train.save_minutes": 5.0, "train.keep_last": False, "train.skip_nonfinite": True,
        "dataset.path": "x", "dataset.cache": "x", "runs": 3, "dry_run": True, "logging.to": [],
    }  # fmt: skip
    # output.path is part of the directory, train.micro_batch_tokens excludes the size and train.sharding the cache;
    # dataset.prompt and .target go with own data only
    assert len(others) == len(WITHOUT_EFFECT) - 5
    assert run_directory(make_config("train.sharding=fsdp")) == run_directory(make_config())
    changed = make_config(*(f"{key}={value}" for key, value in others.items()))
    assert run_directory(changed) == run_directory(make_config())
    folders = [write_run(tmp_path, seed=0), write_run(tmp_path, seed=1, config={**others, "output.path": "elsewhere"})]
    plain, other = read_results(folders)[0]
    assert plain.settings != other.settings and settings_of(plain) == settings_of(other)


def test_a_trial_of_a_search_is_no_run_of_the_same_settings(train: Any) -> None:
    """Each is trained, whichever comes first; figures find the trials of a result by its group."""
    trial, run = train("train.epochs=0", "output.search=true"), train("train.epochs=0")
    assert trial.path != run.path and trial.record()["group"] == run.record()["group"]
    assert [load_config(one.config_file).output.search for one in (trial, run)] == [True, False]


def test_a_share_of_the_validation_split(train: Any) -> None:
    """It is chosen by the seed, counted in the record, and makes another run."""
    whole, part, other = (train("train.epochs=0", *more) for more in (
        (), ("train.validation_fraction=0.5",), ("train.validation_fraction=0.5", "seed=1")
    ))  # fmt: skip
    used = [run.record()["data"]["validation"] for run in (whole, part, other)]
    assert [data["samples"] for data in used] == [12, 6, 6]
    assert used[1]["tokens"] != used[2]["tokens"]
    assert {run.record()["data"]["train"]["samples"] for run in (whole, part)} == {70}
    assert whole.record()["group"] != part.record()["group"] == other.record()["group"]


@pytest.mark.parametrize("epochs", [0, 5])
def test_losses_on_a_share_stand_apart_in_tables(tmp_path: Path, epochs: int) -> None:
    """Also from losses of untrained models."""
    write_run(tmp_path, method="none", epochs=epochs, loss=1.0)
    write_run(tmp_path, method="none", epochs=epochs, loss=2.0, config={"train.validation_fraction": 0.1})
    compile_results([str(tmp_path)])
    rows = csv_of(tmp_path)
    assert sorted(rows["train.validation_fraction"]) == [0.1, 1.0] and len(rows) == 2
