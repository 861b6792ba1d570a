"""train.validate_every: fewer validations and checkpoints, the same training, and no step lost by a stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import make_config
from tests.training.reading import points, weights
from utils.errors import UserError
from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs.identity import group_hash
from utils.training import loop

EVERY_TWO = ("train.epochs=5", "train.validate_every=2")


def test_fewer_validations_leave_the_training_as_it_is(train: Any) -> None:
    """Dropout is 0.1. The last epoch is validated though 2 does not divide 5; ROSA resamples after each epoch."""
    each, some = train("train.epochs=5"), train(*EVERY_TWO)
    assert [epoch for (epoch,) in points(some, "validation", "epoch")] == [0, 2, 4, 5]
    assert [epoch for (epoch,) in points(each, "validation", "epoch")] == [0, 1, 2, 3, 4, 5]
    assert set(points(some, "validation", "epoch", "loss")) < set(points(each, "validation", "epoch", "loss"))
    assert points(each, "train", "step", "loss") == points(some, "train", "step", "loss")
    assert points(each, "resample", "step") == points(some, "resample", "step") and each.path != some.path
    first, second = weights(each.last), weights(some.last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert some.record()["best"]["epoch"] in (2, 4, 5)


@pytest.mark.parametrize("place", ["train_step", "end_epoch"])
def test_a_stop_in_an_epoch_without_a_validation_loses_no_step(
    train: Any, monkeypatch: Any, tmp_path: Any, place: str
) -> None:
    """Stops at the last step of epoch 3, or right after it."""
    whole = train(*EVERY_TWO, f"output.path={tmp_path / 'whole'}")
    original = getattr(loop, place)

    def stopping(training: Any, *arguments: Any, **options: Any) -> Any:
        result = original(training, *arguments, **options)
        if training.progress.step + (place == "train_step") == 15:
            training.stop.signal = "SIGTERM"
        return result

    overrides = (*EVERY_TWO, f"output.path={tmp_path / 'halves'}")
    monkeypatch.setattr(loop, place, stopping)
    with pytest.raises(SystemExit) as stopped:
        train(*overrides)
    assert stopped.value.code == EXIT_INTERRUPTED
    monkeypatch.setattr(loop, place, original)
    made = []
    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *a, **o: made.append(1) or step(*a, **o))
    halves = train(*overrides)
    assert len(made) <= 25 - 15
    first, second = weights(whole.last), weights(halves.last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert points(whole, "validation", "step", "loss") == points(halves, "validation", "step", "loss")


def test_further_checkpoints_are_saved_at_the_end_of_such_an_epoch_too(train: Any, monkeypatch: Any) -> None:
    saved = []
    save = loop.save
    monkeypatch.setattr(
        loop, "save", lambda training, best: saved.append(training.progress.step) or save(training, best)
    )
    train(*EVERY_TWO, "train.save_every=5")  # an epoch has 5 steps
    assert saved == [5, 10, 15, 20, 25]


def test_it_changes_which_checkpoint_is_the_best_one_and_so_the_run() -> None:
    assert group_hash(make_config("train.validate_every=1")) == group_hash(make_config())
    assert group_hash(make_config("train.validate_every=2")) != group_hash(make_config())
    with pytest.raises(UserError, match=r"train\.validate_every=0 must be at least 1"):
        make_config("train.validate_every=0")
