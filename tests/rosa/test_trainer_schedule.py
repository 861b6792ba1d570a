"""The schedule of a Trainer run: one that resamples nowhere is a warning when the run begins."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import IterableDataset

import rosa
from tests.rosa.test_adapter_integrations import Rows, make_trainer, watcher


class Stream(IterableDataset[dict[str, Any]]):
    """The fixed rows, without a length."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (Rows()[index] for index in range(len(Rows())))


def run(config: Any, folder: Path, data: Any = None, **settings: Any) -> tuple[list[int], list[str]]:
    """The steps after which a training resampled, and the texts of its warnings of the schedule."""
    watch = watcher()
    trainer = make_trainer(config, folder, [watch], **settings)
    trainer.train_dataset = data or trainer.train_dataset
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return watch.resampled_after(), [
        str(w.message) for w in caught if re.search("never resamples|does nothing", str(w.message))
    ]


def configs(settings: dict[str, Any], by_peft: bool) -> Any:
    if not by_peft:
        return rosa.RosaConfig(rank=2, **settings)
    pytest.importorskip("peft", reason="peft is not installed")
    from rosa.integrations.peft import RosaConfig

    return RosaConfig(r=2, **settings)


@pytest.mark.parametrize("by_peft", [False, True])
@pytest.mark.parametrize(
    ("settings", "run_settings", "text"),
    [
        (dict(level="epoch"), dict(num_train_epochs=1), "1 epochs.*every=1 needs more.*level='step'"),
        (dict(level="epoch"), dict(max_steps=4), "1 epochs"),  # one epoch
        (dict(level="epoch", every=3), dict(num_train_epochs=3), "3 epochs.*every=3"),
        (dict(level="step", every=12), dict(), "12 steps.*every=12 needs more.*smaller every"),
        (dict(level="epoch"), dict(data=Stream(), max_steps=9), "no length.*level='step'"),
    ],
)
def test_a_schedule_that_resamples_nowhere_is_one_warning(
    settings: dict[str, Any], run_settings: dict[str, Any], text: str, by_peft: bool, tmp_path: Path
) -> None:
    resampled, found = run(configs(settings, by_peft), tmp_path, **run_settings)
    assert resampled == [] and len(found) == 1
    assert re.search(text, found[0])


@pytest.mark.parametrize("by_peft", [False, True])
@pytest.mark.parametrize(
    ("settings", "run_settings", "due"),
    [
        (dict(level="epoch"), dict(max_steps=5), [4]),
        (dict(level="epoch"), dict(num_train_epochs=1.5), [4]),
        (dict(level="step", every=11), dict(), [11]),
        (dict(level="step", every=3), dict(data=Stream(), max_steps=9), [3, 6]),
        (dict(level="step"), dict(data=[Rows()[0]], num_train_epochs=3), [1, 2]),  # one step is an epoch
        (dict(level="never"), dict(num_train_epochs=1), []),
    ],
)
def test_other_schedules_warn_of_nothing(
    settings: dict[str, Any], run_settings: dict[str, Any], due: list[int], by_peft: bool, tmp_path: Path
) -> None:
    assert run(configs(settings, by_peft), tmp_path, **run_settings) == (due, [])


def test_lora_warns_of_nothing(tmp_path: Path) -> None:
    assert run(rosa.LoraConfig(rank=2), tmp_path, num_train_epochs=1) == ([], [])
