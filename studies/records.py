"""Copy the records of finished runs: run.json, config.yaml and test results, without paths and weights.

    python -m studies.records runs/precision --records studies/precision/records

A study keeps its records as one archive, ``records.tar.xz``. A command that writes records unpacks the archive into the
folder ``records``, adds to the folder, and packs it again. After a kill the folder stays: the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from utils.config.settings import load_config
from utils.errors import run_cli
from utils.io.archives import archive_of, extract, pack
from utils.io.files import read_json, write_json, write_text
from utils.runs import Run, find_runs


@contextlib.contextmanager
def open_records(folder: Path) -> Iterator[Path]:
    """``folder``, with what its archive has, to add records to. At the end of the block it becomes the archive."""
    if archive := archive_of(folder):
        staging = folder.with_name(f".{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        extract(archive, staging)
        staging.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    pack(folder)


def uncopied(
    folders: Iterable[str], records: Path, is_measured: Callable[[Run], bool] = lambda run: False
) -> Iterator[Run]:
    """The finished runs below ``folders`` whose record in ``records`` is missing, of an earlier training,
    or lacks something by now.

    Args:
        is_measured: whether the record of a run has a study.json.
    """
    for run in find_runs(folders):
        if run.record()["status"] != "finished":
            continue
        folder = records / run.path.name
        whole = (
            is_of(run, folder)
            and (not is_measured(run) or (folder / "study.json").exists())
            and all(
                (folder / file.name).exists() and filecmp.cmp(file, folder / file.name, shallow=False)
                for file in _results(run)
            )
        )
        if not whole:
            yield run


def is_of(run: Run, folder: Path) -> bool:
    """Whether ``folder`` has the record of this training of the run, and not of an earlier one of the same settings."""
    if not (folder / "run.json").exists():
        return False
    theirs, ours = read_json(folder / "run.json"), run.record()
    return all(theirs.get(key) == ours.get(key) for key in ("started", "finished"))


def _results(run: Run) -> list[Path]:
    """The files of a run beside its record and settings, but for the references, which are data."""
    return [file for file in (run.inputs_file, run.eval_file, run.scores_file, run.predictions()) if file.exists()]


def copy_record(run: Run, folder: Path, measured: dict[str, Any] | None = None) -> None:
    """Write run.json and config.yaml of a finished run into ``folder``, without the places of model, data and runs.

    An evaluated run's eval.json, scores.json and predictions are copied too.

    Args:
        measured: what study.json gets, if it is given.
    """
    base = Path(load_config(run.config_file).model.name).name
    plain = {
        "model": {"name": base}, "dataset": {"path": None}, "output": {"path": "runs"}, "train": {"cache_folder": None}
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if not is_of(run, folder):
        for file in folder.iterdir():  # of an earlier training
            file.unlink()
    for file in _results(run):
        shutil.copyfile(file, folder / file.name)
    if measured is not None:
        write_json(folder / "study.json", measured)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.load(run.config_file), plain)))
    write_json(folder / "run.json", run.record() | {"model": base})  # last: it makes the folder a whole record


def record_base(records: Path, measure: Callable[[], dict[str, Any]]) -> None:
    """Write what ``measure`` finds of the model before training into the record ``base``, unless it has been."""
    file = records / "base" / "study.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, measure())


def main() -> None:
    """Copy what is finished and was not copied yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders with runs")
    parser.add_argument("--records", type=Path, required=True, help="where to write: this name, with .tar.xz")
    arguments = parser.parse_args()
    with open_records(arguments.records) as records:
        for run in uncopied(arguments.runs, records):
            copy_record(run, records / run.path.name)
            print(run.path.name, flush=True)


if __name__ == "__main__":
    run_cli(main)
