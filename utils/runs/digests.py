"""The data of a run: its record has a digest of each split, and other data are refused.

``run.json`` has the digests under ``data_sha256``: train and validation from the start of training on, test from the
first evaluation on. A digest is that of all loaded examples in order, from a file or the hub. Records of earlier
versions have none: their data are not compared, and a resume adds the digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.config.settings import Config, DatasetConfig
from utils.data import digest
from utils.errors import UserError
from utils.processes.group import Processes
from utils.runs.identity import group_hash, run_directory
from utils.runs.run import Run, recorded_digests
from utils.runs.start_adapter import given_digest

TRAINING = ("train", "validation")


def training_digests(config: Config) -> dict[str, str]:
    """The digests of the two splits that training reads. ``config`` keeps their examples for the training itself.

    Raises:
        UserError: the data cannot be loaded.
    """
    return {split: digest(config.load(split, keep=True)) for split in TRAINING}


def identify_run(config: Config, start: str | None = None) -> tuple[Path, str]:
    """The directory and the group hash of the run with these settings.

    Both include the data's digests if only a path names the data, and the digest of ``model.adapter``. A run of an
    earlier version, whose hash has no digests of data, is found again unless its record says that it read other data.

    Args:
        start: the digest of ``model.adapter``; None: it is computed from the folder.
    """
    start = given_digest(config) if start is None else start
    before = run_directory(config, None, start)
    if not config.source.needs_path:
        return before, group_hash(config, None, start)
    data = training_digests(config)
    path, old = run_directory(config, data, start), Run(before)
    if not path.exists() and old.record_file.exists() and not _others(recorded_digests(old.record()), data):
        return before, group_hash(config, None, start)
    return path, group_hash(config, data, start)


def _others(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    """The splits whose recorded digest differs from that of the data found."""
    return [split for split, value in found.items() if recorded.get(split, value) != value]


def refuse_other_data(run: Run, recorded: dict[str, str], found: dict[str, str], dataset: DatasetConfig) -> None:
    """Raise UserError if the data found are not those of the run's record."""
    if others := _others(recorded, found):
        raise UserError(_other_data(run, others, dataset))


def agree_on_data(run: Run, found: dict[str, str], dataset: DatasetConfig, processes: Processes) -> None:
    """Compare the data of every process with those of the main process and of the run's record.

    Raises:
        UserError: the data of a process differ.
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
