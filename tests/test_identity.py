"""What makes two runs the same run: settings that came later, a share of the validation split, and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_config
from tests.records import csv_of, write_run
from utils.errors import UserError
from utils.identity import run_directory
from utils.tables import compile_results


def test_keys_that_came_later_change_a_hash_only_off_their_default() -> None:
    """The names of runs that exist: they are found again."""
    before = {
        (): "gpt2-rosa-r0.05-s0-b6209cdb",
        ("fnmodel.name=lora", "seed=3"): "gpt2-lora-r0.05-s3-7ff7de18",
        ("dataset.name=eli5", "fnmodel.name=none"): "gpt2-none-s0-790d4eb5",
    }
    assert {overrides: run_directory(make_config(*overrides)).name for overrides in before} == before
    assert run_directory(make_config("train.validation_fraction=0.5")) != run_directory(make_config())
    with pytest.raises(UserError, match=r"train\.validation_fraction=0\.0 must be above 0"):
        make_config("train.validation_fraction=0")


def test_a_share_of_the_validation_split(train: Any) -> None:
    """Chosen by the seed, counted in the record, and a run of its own."""
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
    """Also from those of runs of before, whose configurations do not have the key, and of untrained models."""
    write_run(tmp_path, method="none", epochs=epochs, loss=1.0)
    write_run(tmp_path, method="none", epochs=epochs, loss=2.0, config={"train.validation_fraction": 0.1})
    compile_results([str(tmp_path)])
    rows = csv_of(tmp_path)
    assert sorted(rows["train.validation_fraction"]) == [0.1, 1.0] and len(rows) == 2
