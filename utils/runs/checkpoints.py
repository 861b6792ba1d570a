"""Checkpoints of a run: folders that are renamed once they are complete, and pointers to the best and the last.

    checkpoints/step-00000329/   adapter files (or model.safetensors for full fine-tuning), state.pt, state.json
    checkpoints/best, last       links to such folders

``last`` moves only when the new folder is on the disk with all its files. The checkpoint before it is kept, so that a
damaged file costs one interval, not the run. Each folder's state.json names the best checkpoint of that time, so that a
single rename decides everything. ROSA's W_f changes only at a resample. The first two checkpoints after a resample
write it, and later ones hard-link these two copies in turn.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model

import rosa
from rosa.files import FROZEN_FILE, follow_umask
from utils.errors import UserError, is_out_of_memory, short_reason
from utils.io.files import own_folder, read_object, sha256, sync, write_json
from utils.log import log
from utils.runs.checkpoint_folder import (
    MODEL_FILE,
    STATE_FILE,
    OtherRun,
    Progress,
    checksum,
    refuse_other_run,
    verify,
)
from utils.runs.run import SUMMARY, Identity, Run


def save(run: Run, model: Any, progress: Progress, state: dict[str, Any], best: bool, identity: Identity) -> int:
    """Write a checkpoint, make it ``last`` (and ``best``), and remove checkpoints that nothing needs.

    Its files, and what writes them: the adapter files (``rosa.save_adapter``), or model.safetensors for full
    fine-tuning; state.pt (``utils.training.resume``); state.json (``Progress``, the run, and the hash of each file).

    Args:
        model: the model without DDP or compile wrappers.
        state: the content of state.pt, see ``training_state`` in ``utils.training.resume``.
            ``torch.load(weights_only=True)`` must be able to read it.
        identity: of the run, see ``refuse_other_run``.

    Returns:
        Its size in bytes, without linked files.

    Raises:
        UserError: it cannot be written. The checkpoint before it is not changed then.
    """
    with _writing(run, progress.step) as (folder, temporary):
        previous, known_best = _target(run.last), _target(run.best)
        shared = _share_frozen(run, previous, temporary, progress.resamples)
        if rosa.adapter_layers(model):
            rosa.save_adapter(model, temporary, frozen=shared is None, exact=True)
        else:
            save_model(model, str(temporary / MODEL_FILE))
            follow_umask(temporary / MODEL_FILE)
        torch.save(state, temporary / STATE_FILE)
        own = [path for path in sorted(temporary.iterdir()) if path.name != FROZEN_FILE or not shared]
        hashes = {path.name: sha256(path) for path in own}
        best_name = folder.name if best else known_best.name if known_best else None
        summary = {
            "run": identity,
            "progress": asdict(progress),
            "best": best_name,
            "sha256": {**hashes, **(shared or {})},
        }
        sync(*own)
        write_json(temporary / SUMMARY, {**summary, "checksum": checksum(summary)})
        sync(temporary)
        os.rename(temporary, folder)
        sync(run.checkpoints)
        _point(run.last, folder)
        if best:
            _point(run.best, folder)
    prune(run, keep=previous)
    return sum((folder / path.name).stat().st_size for path in own)


@contextlib.contextmanager
def _writing(run: Run, step: int) -> Iterator[tuple[Path, Path]]:
    """The checkpoint's final folder and the temporary one to write. An error removes the latter, as a UserError."""
    folder, number = own_folder(run.checkpoints) / f"step-{step:08d}", 1
    while folder.exists():  # a step is saved twice when a run is stopped right after a resume
        folder, number = run.checkpoints / f"step-{step:08d}-{number}", number + 1
    temporary = run.checkpoints / f".{folder.name}"
    _remove(temporary)
    try:
        temporary.mkdir()
        yield folder, temporary
    except (OSError, RuntimeError, MemoryError, SafetensorError, rosa.AdapterError) as error:
        free = shutil.disk_usage(run.path).free / 2**20
        _remove(temporary)
        if is_out_of_memory(error):
            raise UserError(
                f"out of memory while the checkpoint of step {step} is written ({short_reason(error, 200)}). The one "
                "before it is intact: free memory or use a machine with more, then run the same command again."
            ) from None
        reason = "the disk is full" if free < 1 else short_reason(error, 200)
        raise UserError(
            f"the checkpoint of step {step} cannot be written below {run.checkpoints}: {reason} ({free:,.1f} MiB "
            "free). The one before it is intact: make room, then run the same command again."
        ) from None


def _share_frozen(run: Run, previous: Path | None, folder: Path, resamples: int) -> dict[str, str] | None:
    """Hard-link into ``folder`` a W_f of this resample that ``previous`` does not use.

    So two consecutive checkpoints never share a file, and one damaged file cannot spoil both.

    Returns:
        The file's name and hash; None if there is no such W_f.
    """
    for other in _folders(run):
        with contextlib.suppress(UserError, OSError, KeyError, TypeError):  # no hard links here, or a foreign folder
            frozen, summary = other / FROZEN_FILE, read_object(other / SUMMARY)
            if summary["progress"]["resamples"] != resamples or not frozen.is_file():
                continue
            if previous is not None and frozen.samefile(previous / FROZEN_FILE):
                continue
            known = {FROZEN_FILE: summary["sha256"][FROZEN_FILE]}
            os.link(frozen, folder / FROZEN_FILE)
            return known
    return None


def _folders(run: Run) -> list[Path]:
    """The run's checkpoint folders, the newest first."""

    def age(folder: Path) -> list[int]:
        return [int(part) for part in folder.name.split("-")[1:] if part.isdigit()]

    found = [p for p in run.checkpoints.glob("step-*") if p.is_dir() and not p.is_symlink()]
    return sorted(found, key=age, reverse=True)


def _target(pointer: Path) -> Path | None:
    """The checkpoint folder to which a pointer leads; None if that is not in the pointer's own folder."""
    if not pointer.is_dir():
        return None
    target = pointer.resolve()
    return target if target.parent == pointer.parent.resolve() else None


def _point(pointer: Path, folder: Path) -> None:
    """Let ``pointer`` lead to ``folder``, atomically."""
    temporary = pointer.with_name(f".{pointer.name}")
    _remove(temporary)
    temporary.symlink_to(folder.name)
    if pointer.is_dir() and not pointer.is_symlink():
        shutil.rmtree(pointer)  # a copy of the run made without links
    os.replace(temporary, pointer)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)


def prune(run: Run, keep: Path | None = None) -> None:
    """Remove checkpoint folders that neither a pointer nor ``keep`` needs, and leftovers of a killed write."""
    needed = {_target(run.best), _target(run.last), keep, keep and _best_of(run, keep)}
    for folder in [*run.checkpoints.glob("step-*"), *run.checkpoints.glob(".step-*")]:
        if folder.is_symlink() or folder.resolve() not in needed:
            _remove(folder)


def _best_of(run: Run, folder: Path) -> Path | None:
    """The folder that was the best one when ``folder`` was written."""
    try:
        name = read_object(folder / SUMMARY)["best"]
    except (UserError, KeyError):
        return None
    return run.checkpoints.resolve() / Path(name).name if isinstance(name, str) else None


def restore_links(run: Run) -> None:
    """Make a finished run's ``best`` and ``last`` again where a copy left links out, unless a checkpoint is damaged."""
    with contextlib.suppress(UserError):
        if _target(run.best) is None and (folders := _folders(run)):
            verify(folders[0])  # an older one does not know the best of all
            best = _best_of(run, folders[0])
            if best is not None and best.is_dir():
                verify(best)
                _point(run.best, best)
                _point(run.last, folders[0])


def remove_last(run: Run) -> None:
    """Remove ``last`` and all checkpoints but the best one; nothing if it is not known which that is."""
    if _target(run.best) is None:
        return
    with contextlib.suppress(FileNotFoundError):
        run.last.unlink()
    prune(run)


def newest(run: Run, identity: Identity) -> tuple[Path, Progress] | None:
    """The newest complete checkpoint; None if the run has none yet. A warning names each damaged one that is skipped.

    Raises:
        UserError: there are checkpoints, but none is complete. Training must not start from scratch silently.
        OtherRun: a checkpoint is that of another run.
    """
    if not run.checkpoints.is_dir():
        return None
    last = _target(run.last)
    folders = sorted(_folders(run), key=lambda folder: folder.resolve() != last)  # the pointer's first
    for folder in folders:
        try:
            summary = verify(folder)
            refuse_other_run(run, folder, summary.get("run"), identity)
            return folder, Progress.read(summary["progress"])
        except OtherRun:
            raise
        except (UserError, KeyError, ValueError) as error:
            log.warning("checkpoint %s cannot be used: %s", folder.name, error)
    if folders:
        raise UserError(
            f"no checkpoint under {run.checkpoints} is complete. To start from scratch, move {run.path} away."
        )
    return None


def select_checkpoint(run: Run, identity: Identity) -> tuple[Path, Progress] | None:
    """The ``newest`` checkpoint, from which a run goes on: it becomes the last one, and damaged ones are removed.

    Args:
        identity: of the run. A checkpoint of another run is refused.
    """
    found = newest(run, identity)
    if found is not None:
        _continue_from(run, *found, identity)
    elif run.record_file.exists() and (reached := run.record().get("progress", {}).get("step")):
        log.warning("this run had reached step %s, of which there is no checkpoint: it begins again", reached)
    return found


def _continue_from(run: Run, folder: Path, progress: Progress, identity: Identity) -> None:
    """Point ``last`` to ``folder``, and ``best`` to the best checkpoint that it names. Remove damaged ones.

    The checkpoint before ``folder`` is kept. All others are pruned: a kill may have come between a save and its prune.

    Raises:
        UserError: the best checkpoint is damaged, or another run's. It is a part of the result.
    """
    own_folder(run.checkpoints)
    best = _best_of(run, folder)
    for other in _folders(run):
        try:
            if other != folder and (best == other.resolve() or (other / FROZEN_FILE).exists()):
                refuse_other_run(run, other, verify(other).get("run"), identity)
        except UserError as error:
            if best == other.resolve() and run.best.is_symlink():
                raise UserError(
                    f"the best checkpoint so far cannot be used: {error}. Put the file back, move {run.path} away to "
                    f"train from scratch, or remove {run.best} to go on and keep the best of the epochs to come."
                ) from None
            _remove(other)
    _point(run.last, folder)
    if best is not None and best.is_dir():
        _point(run.best, best)
    elif progress.best is not None:
        log.warning("the best checkpoint so far is gone: the best of the epochs to come is kept")
        progress.best = None
    folders = _folders(run)
    before = folders[folders.index(folder) + 1 :]
    prune(run, keep=before[0].resolve() if before else None)
