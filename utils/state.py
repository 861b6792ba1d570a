"""Checkpoints of a run: complete folders that appear by a rename, and pointers to the best and the last.

    checkpoints/step-00000329/   adapter files (or model.safetensors for full fine-tuning), state.pt, state.json
    checkpoints/best, last       links to such folders

``last`` moves on only when the new folder is complete on disk; the generation before it is kept, so that a
damaged file costs one interval, not the run. ROSA's W_f changes only at a resample: between two of them the
checkpoints share one file on disk (a hard link).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

import rosa
from rosa.checkpoint import FROZEN_FILE
from utils.errors import UserError
from utils.files import read_json, sha256, write_json
from utils.logs import log
from utils.runs import Run

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.pt"
SUMMARY = "state.json"


@dataclass
class Progress:
    """Where a training stands. ``step`` counts optimizer steps; ``batch`` those within the epoch under way."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    resamples: int = 0
    metrics_position: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # spent so far, by kind
    samples: int = 0
    tokens: int = 0
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None


def save(run: Run, model: Any, progress: Progress, state: dict[str, Any], best: bool) -> None:
    """Write a checkpoint, make it ``last`` (and ``best``), and remove generations that nothing needs.

    Args:
        model: the model without DDP or compile wrappers.
        state: what ``torch.load(weights_only=True)`` can read: optimizer, schedule, scaler, generators.
    """
    run.checkpoints.mkdir(exist_ok=True)
    folder = _fresh(run.checkpoints, f"step-{progress.step:08d}")
    temporary = run.checkpoints / f".{folder.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    previous = _target(run.last)
    shared = _share_frozen(previous, temporary, progress.resamples)
    if rosa.adapter_layers(model):
        rosa.save_adapter(model, temporary, frozen=shared is None)
    else:
        save_model(model, str(temporary / MODEL_FILE))
    torch.save(state, temporary / STATE_FILE)
    hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir()) if path.name != FROZEN_FILE or not shared}
    write_json(temporary / SUMMARY, {"progress": asdict(progress), "sha256": {**hashes, **(shared or {})}})
    os.rename(temporary, folder)
    _point(run.last, folder)
    if best:
        _point(run.best, folder)
    prune(run, keep=previous)


def _fresh(parent: Path, name: str) -> Path:
    """A folder name that is not taken: a step is saved twice when a run is stopped right after a resume."""
    folder, number = parent / name, 1
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder


def _share_frozen(previous: Path | None, folder: Path, resamples: int) -> dict[str, str] | None:
    """Link the previous checkpoint's W_f into ``folder`` if it is of the same resample: its hash, else None."""
    if previous is None or not (previous / FROZEN_FILE).exists():
        return None
    summary = read_json(previous / SUMMARY)
    if summary["progress"]["resamples"] != resamples:
        return None
    try:
        os.link(previous / FROZEN_FILE, folder / FROZEN_FILE)
    except OSError:  # a file system without hard links
        return None
    return {FROZEN_FILE: summary["sha256"][FROZEN_FILE]}


def _target(pointer: Path) -> Path | None:
    """The checkpoint folder a pointer names, None if it names none inside its own folder."""
    if not pointer.exists():
        return None
    target = pointer.resolve()
    return target if target.parent == pointer.parent.resolve() else None


def _point(pointer: Path, folder: Path) -> None:
    """Make ``pointer`` name ``folder``, atomically."""
    temporary = pointer.with_name(f".{pointer.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, pointer)


def prune(run: Run, keep: Path | None = None) -> None:
    """Remove checkpoint folders that neither a pointer nor ``keep`` names, and leftovers of a killed write."""
    needed = {_target(run.best), _target(run.last), keep}
    for folder in run.checkpoints.iterdir():
        if folder.is_dir() and not folder.is_symlink() and folder.resolve() not in needed:
            shutil.rmtree(folder, ignore_errors=True)


def drop_last(run: Run) -> None:
    """Remove ``last`` and all folders but the best one."""
    with contextlib.suppress(FileNotFoundError):
        run.last.unlink()
    prune(run)


def checkpoint_hash(folder: Path) -> str:
    """One hash for a checkpoint's model: that of its summary, which holds the hashes of its files."""
    return sha256(folder / SUMMARY)


def verify(folder: Path) -> dict[str, Any]:
    """The summary of a checkpoint whose files are all there with the right content.

    Raises:
        UserError: names the missing or damaged file.
    """
    summary = read_json(folder / SUMMARY)
    for name, expected in summary["sha256"].items():
        path = folder / Path(name).name
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if sha256(path) != expected:
            raise UserError(f"{path} is damaged: its checksum is not the one recorded")
    return summary


def load_weights(folder: Path, model: Any) -> None:
    """Load a checkpoint's model values, in place; an adapter is injected where the model has none.

    Raises:
        UserError: the checkpoint is of another model, or a file is damaged.
    """
    try:
        if (folder / MODEL_FILE).exists():
            load_model(model, str(folder / MODEL_FILE))
        else:
            rosa.load_adapter(model, folder)
    except (rosa.AdapterError, SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the checkpoint {folder} does not fit this model: {reason}") from None


def newest(run: Run) -> tuple[Path, Progress] | None:
    """The newest complete checkpoint, None if the run has none yet; a damaged one is named and passed over.

    Raises:
        UserError: there are checkpoints, but not one is complete: never silently from scratch.
    """
    if not run.checkpoints.is_dir():
        return None
    last = _target(run.last)
    folders = sorted((p for p in run.checkpoints.glob("step-*") if p.is_dir()), reverse=True)
    folders.sort(key=lambda folder: folder.resolve() != last)  # the pointer's first
    for folder in folders:
        try:
            return folder, Progress(**verify(folder)["progress"])
        except (UserError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be used: %s", folder.name, error)
    if folders:
        raise UserError(
            f"no checkpoint under {run.checkpoints} is complete. To start from scratch, move {run.path} away."
        )
    return None
