"""A run's directory: which files a run has, and how runs are found.

docs/architecture.md has a table of the files, with their content. ``checkpoint_folder.py`` and ``rosa.files`` name the
files of a checkpoint other than its summary, ``utils.export`` those of an export. Directory names are labels for
people: everything is read from the files.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.data import SPLITS
from utils.errors import UserError
from utils.io.archives import unpacked
from utils.io.files import read_bytes, read_object, sha256, write_json
from utils.io.rows import json_objects

RECORD = "run.json"
ADAPTER = "adapter"  # the name of model.adapter in inputs.json
IDENTITY = ("method", "seed", "group")  # of the record, and of each checkpoint: which run it is
Identity = dict[str, Any] | None  # the values of these; None outside of a run, as in a dry run
FIRST_IDS = "first_ids"  # of the record: see utils.tokens.encoding.first_ids
SUMMARY = "state.json"  # of a checkpoint
RUN_POINTER = "ROSA_RUN_POINTER"  # names a file that train.py appends each run's directory to (for job runners)
UNFIT_NOTE = ".unfit"  # after that file's name: one that says why the settings do not fit
STATUSES = ("running", "finished", "interrupted", "failed")


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def overrides_file(self) -> Path:
        return self.path / ".hydra" / "overrides.yaml"

    @property
    def record_file(self) -> Path:
        return self.path / RECORD

    @property
    def inputs_file(self) -> Path:
        return self.path / "inputs.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def incomplete(self) -> bool:
        """Whether the folder has parts of a run, but no record."""
        parts = (self.config_file, self.metrics_file, self.best, self.last)
        return any(map(os.path.lexists, parts)) and not os.path.lexists(self.record_file)

    def board_files(self) -> list[Path]:
        """TensorBoard's files, in order of name."""
        return sorted(self.path.glob("events.out.tfevents.*"))

    @property
    def loggers_file(self) -> Path:
        return self.path / "loggers.json"

    @property
    def log_file(self) -> Path:
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last"

    @property
    def start_adapter(self) -> Path:
        return self.path / "start_adapter"

    @property
    def eval_file(self) -> Path:
        return self.path / "eval.json"

    @property
    def scores_file(self) -> Path:
        return self.path / "scores.json"

    def predictions(self, split: str = "test") -> Path:
        """Predictions as one line each."""
        return self.path / f"{split}_predictions.txt"

    def raw_predictions(self, split: str = "test") -> Path:
        """Predictions as generated: JSON lines with source, prompt, prediction and references. These are scored."""
        return self.path / f"{split}_predictions.jsonl"

    def references(self, split: str = "test") -> Path:
        """References in groups separated by empty lines."""
        return self.path / f"{split}_references.txt"

    def texts(self, split: str = "test") -> dict[str, Path]:
        """The three files of texts, by the keys of their hashes in eval.json and scores.json."""
        return {
            "predictions_sha256": self.predictions(split),
            "raw_predictions_sha256": self.raw_predictions(split),
            "references_sha256": self.references(split),
        }

    def lock_file(self, work: Literal["train", "eval", "score"]) -> Path:
        """The file that is locked while the run is trained, evaluated or scored."""
        return self.path / f".{work}.lock"

    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises UserError if it is missing or not a record."""
        if self.incomplete:
            raise UserError(f"{self.record_file} is missing: the folder is an incomplete copy of a run. Copy it again.")
        record = read_object(self.record_file)
        if record.get("status") not in STATUSES:
            raise UserError(f"{self.record_file} is not a run's record: it has no valid 'status'")
        return record

    def inputs(self) -> dict[str, str]:
        """The digest of each input by name, see ``utils.runs.inputs``; {} before the run's start."""
        return read_object(self.inputs_file) if self.inputs_file.exists() else {}

    def add_inputs(self, found: dict[str, str]) -> None:
        """Merge ``found`` into inputs.json."""
        if (inputs := self.inputs()) != inputs | found:
            write_json(self.inputs_file, inputs | found)

    def without_folder(self, text: str) -> str:
        """``text`` for a line that begins with the run's folder, which it does not repeat."""
        return text.replace(f"{self.path}{os.sep}", "")

    def update_record(self, **fields: Any) -> None:
        """Merge ``fields`` into run.json, which is made if missing."""
        record = read_object(self.record_file) if self.record_file.exists() else {}
        write_json(self.record_file, record | fields)

    def metrics(self, split: str | None = None, bad: list[str] | None = None) -> list[dict[str, Any]]:
        """The logging points of metrics.jsonl, all or those of one split.

        Args:
            bad: gets what is wrong with each line that is no logging point, instead of a UserError.
        """
        if not self.metrics_file.exists():
            return []
        lines = read_bytes(self.metrics_file).splitlines()
        points = [point for _, point in json_objects(self.metrics_file, lines, bad)]
        return [point for point in points if split is None or point.get("split") == split]

    def evaluation(self, split: str = "test") -> dict[str, Any] | None:
        """The record of eval.py for ``split``, or None."""
        return self._part(self.eval_file, split)

    def scores(self, split: str = "test") -> dict[str, Any] | None:
        """The record of eval.sh for ``split``, or None."""
        return self._part(self.scores_file, split)

    def readable_parts(self, path: Path) -> dict[str, dict[str, Any]]:
        """The parts of eval.json or scores.json by split. One that cannot be read is left out: it is made again."""
        content: dict[str, Any] = {}
        with contextlib.suppress(UserError):
            content = read_object(path) if path.exists() else {}
        return {split: part for split in SPLITS if isinstance(part := content.get(split), dict) and part}

    @staticmethod
    def _part(path: Path, split: str) -> dict[str, Any] | None:
        part = read_object(path).get(split) if path.exists() else None
        if part is not None and not isinstance(part, dict):
            raise UserError(f"{path}: {split} is not a JSON object")
        return part


def checkpoint_hash(folder: Path) -> str:
    """One hash for a whole checkpoint: that of its state.json, which has the hashes of its files.

    Raises:
        UserError: the checkpoint does not exist.
    """
    try:
        return sha256(folder / SUMMARY)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"the checkpoint {folder} is gone: put it back from a copy (if only this link is missing, the training "
            f"command makes it again), or remove {folder.parent.parent} and train again"
        ) from None


def finite(value: Any) -> float | None:
    """``value`` if it is a finite number within the range of floats, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an int beyond all floats
        return None


def find_runs(roots: Iterable[str | Path]) -> list[Run]:
    """Every run at or below ``roots``, in path order. A directory is a run if it holds a record.

    A directory with other parts of a run is one too, unless it holds runs: its ``record()`` is then an error. A link to
    a run counts, unless the run itself is found too. Other linked folders are not searched, as they may be large or
    lead back here; a warning names them, except those to checkpoints.
    A root may also be an archive of runs, see ``utils.io.archives``.

    Raises:
        UserError: a root does not exist, or there is no run at all.
    """
    found: dict[Path, Run] = {}
    links, incomplete = list[Path](), list[Run]()
    names = [str(root) for root in roots]
    for root in map(str, map(unpacked, names)):
        if not Path(root).is_dir():
            raise UserError(f"{root} is not a folder. Give the folder that train.py wrote to (its output.path).")
        for folder, folders, files in os.walk(root, onerror=_warn):
            path = Path(folder)
            if RECORD in files:  # a run holds no other run
                found.setdefault(path.resolve(), Run(path))
                folders.clear()
                continue
            incomplete += [run for run in [Run(path)] if run.incomplete]
            folders[:] = [name for name in folders if name[0] != "."]
            links += [path / name for name in folders if (path / name).is_symlink()]
    for link in sorted(links):
        if (link / RECORD).is_file():
            found.setdefault(link.resolve(), Run(link))
        elif link.name not in ("best", "last"):
            print(f"warning: {link} is a link to a folder and is not searched: give that folder", file=sys.stderr)
    holding = {parent for folder in found for parent in folder.parents}
    found |= {path: run for run in incomplete if (path := run.path.resolve()) not in holding}
    if not found:
        raise UserError(f"no runs under {', '.join(names)}: nothing there has a {RECORD}. Train first (train.py).")
    return sorted(found.values(), key=lambda run: str(run.path))


def _warn(error: OSError) -> None:
    print(f"warning: {error.filename} cannot be read, and no run in it: {error.strerror}", file=sys.stderr)
