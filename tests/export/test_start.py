"""Exports of runs that began with an adapter (``model.adapter``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import TrainIn
from utils.export.__main__ import main
from utils.runs import Run


@pytest.fixture(scope="module")
def second_run(train_in: TrainIn, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LoRA without biases, on a base model with the adapter of a run that trained biases."""
    folder = tmp_path_factory.mktemp("start")
    first = train_in(folder / "first", "fnmodel.name=lora", "fnmodel.params.bias=adapted")
    assert main([str(first.path), "--as", "adapter", "--out", str(folder / "adapter")]) == 0
    return train_in(
        folder / "second", "fnmodel.name=lora", "fnmodel.params.bias=none", f"model.adapter={folder / 'adapter'}"
    )


def test_other_training_is_no_way_out_of_the_biases_of_the_start(second_run: Run, tmp_path: Path, capsys: Any) -> None:
    assert main([str(second_run.path), "--as", "peft", "--out", str(tmp_path / "peft")]) == 0
    out = capsys.readouterr().out
    assert "has trained biases" in out and "Serve --as merged." in out and "bias=none" not in out


def test_a_card_names_the_adapter_that_the_run_began_with(second_run: Run, tmp_path: Path) -> None:
    assert main([str(second_run.path), "--as", "merged", "--out", str(tmp_path / "merged")]) == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    about = card.split("## Use")[0]
    assert "The run began with another adapter" in about and f"`{second_run.inputs()['adapter']}`" in about
