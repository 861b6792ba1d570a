"""Which data a run read: a digest of each split in its record, and the refusal of other data.

``run.json`` has them under ``data_sha256``: train and validation from the start of training on, test from the first
evaluation on. They are of the examples as loaded, whole and in order, wherever they came from. Records of before have
none, and are taken as they are; a resume adds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.config import Config, DatasetConfig
from utils.data import digest
from utils.errors import UserError
from utils.processes.group import Processes
from utils.runs.identity import group_hash, run_directory
from utils.runs.run import Run

TRAINING = ("train", "validation")


def training_digests(config: Config) -> dict[str, str]:
    """The digests of the two splits that training reads.

    Raises:
        UserError: the data cannot be had.
    """
    source, dataset = config.source, config.dataset
    return {split: digest(source.load(split, dataset.folder(), dataset.cache)) for split in TRAINING}


def recorded_digests(record: dict[str, Any]) -> dict[str, str]:
    """The digests in a run's record, as far as there are any."""
    found = record.get("data_sha256")
    return found if isinstance(found, dict) else {}


def find_directory(config: Config) -> tuple[Path, str]:
    """The directory and the group hash of the run of these settings.

    Where the path is all that names the data, their digests are part of both. A run of before, made without them, is
    found again unless its record says that it read other data.
    """
    before = run_directory(config)
    if not config.source.needs_path:
        return before, group_hash(config)
    data = training_digests(config)
    path, old = run_directory(config, data), Run(before)
    if not path.exists() and old.record_file.exists() and not _others(recorded_digests(old.record()), data):
        return before, group_hash(config)
    return path, group_hash(config, data)


def _others(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    """The splits whose recorded digest is another one than that of what was found."""
    return [split for split, value in found.items() if recorded.get(split, value) != value]


def refuse_other_data(run: Run, recorded: dict[str, str], found: dict[str, str], dataset: DatasetConfig) -> None:
    """Raise UserError where data that were found are not those of the run's record."""
    if others := _others(recorded, found):
        raise UserError(_other_data(run, others, dataset))


def agree_on_data(run: Run, found: dict[str, str], dataset: DatasetConfig, processes: Processes) -> None:
    """The same at the start or resume of a training, whose processes must also have read the same data.

    Raises:
        UserError: the data are not those of the run's record, or of the main process.
    """
    record = processes.run_on_main(lambda: run.record() if run.record_file.exists() else {})
    expected = processes.run_on_main(lambda: found) | recorded_digests(record)
    if others := sorted({split for part in processes.gather(_others(expected, found)) for split in part}):
        raise processes.same_error(_other_data(run, others, dataset))


def _other_data(run: Run, splits: Sequence[str], dataset: DatasetConfig) -> str:
    source = f"dataset.path={dataset.path}" if dataset.path else f"dataset.name={dataset.name} without a dataset.path"
    again = "evaluate on these data from now on, remove its eval.json" if "test" in splits else "train on these data"
    where = "" if "test" in splits else ", give another output.path or remove its folder"
    return (
        f"{run.path} was made from other data: its {' and '.join(splits)} data are not what {source} has now. Give the "
        f"data that it was made from; to {again}{where}."
    )
