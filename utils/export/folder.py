"""A folder that appears at its place with all of its files, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from utils.errors import UserError, short_reason
from utils.io.files import sync

CARD = "README.md"
MARK = "<!-- written by python -m utils.export -->"  # in the card, by which an earlier export is known
OLD = "old"  # in an export's own folder: the earlier export that it replaces


@contextlib.contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside ``target`` to be filled, which then takes its place.

    Args:
        overwrite: replace an earlier export in ``target``. Other files are never replaced.

    Raises:
        UserError: ``target`` has files, is no place for a folder of its own, or cannot be written.
    """
    target = _place(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        _check_target(target, overwrite)
        with _workspace(target) as space:
            new = space / "new"
            new.mkdir()
            yield new
            sync(*(path for path in new.rglob("*") if path.is_file()), new)
            _check_target(target, overwrite)  # another export may have come first
            if target.exists():
                target.rename(space / OLD)
            new.rename(target)
            sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or short_reason(error, 200)
        raise UserError(f"{target} cannot be written: {reason}. Make room, or give another folder (--out).") from None


@contextlib.contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` for one export alone, locked, so that no other one takes it for a leftover."""
    space = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    unlocked = space.with_name(f"{space.name}.unlocked")
    unlocked.mkdir()  # not tempfile, whose folders only their owner may read: this mode follows the umask
    with _held(unlocked):
        unlocked.rename(space)
        try:
            yield space
        finally:
            _clear(space, target)


def _sweep(target: Path) -> None:
    """Clear the folders of exports to ``target`` that were killed. Without locks none is known to be, and all stay."""
    for space in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}"):
        with _held(space) as held:
            if held:
                _clear(space, target)


def _clear(space: Path, target: Path) -> None:
    """Delete an export's folder, once the earlier export in it, if any, is back in a place that is still empty."""
    if (space / OLD).exists() and not target.exists():
        (space / OLD).rename(target)
    shutil.rmtree(space, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder, unless that fails. The kernel drops the lock when its holder dies."""
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:  # another process has it, or has just deleted it, or the file system has no locks
            held = False
        yield held


def _place(target: Path) -> Path:
    """``target`` as an absolute path. Raises UserError for a folder that nothing can take the place of."""
    try:
        place = target.expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{target} names a user without a home folder: give another folder (--out)") from None
    if place.name in ("", "..") or Path.cwd().is_relative_to(place.resolve()):
        raise UserError(
            f"{target} holds the folder in which this command runs, which an export would replace: give the name of a "
            "new folder (--out)"
        )
    return place


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise UserError(f"{target} is not a folder: give another one (--out)")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{target} is not empty: give another folder (--out), or --overwrite to replace an export there"
        )
    card = target / CARD
    if not card.is_file() or MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{target} has files that are not of an export, which --overwrite does not replace")
