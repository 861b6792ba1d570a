"""A folder that appears at its place with all of its files, or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from utils.errors import UserError, short_reason
from utils.io.files import sync

CARD = "README.md"
MARK = "<!-- written by python -m utils.export -->"  # in the card, by which an earlier export is known


@contextlib.contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside ``target`` to be filled, which then takes its place.

    Args:
        overwrite: replace an earlier export in ``target``. Other files are never replaced.

    Raises:
        UserError: ``target`` has files, is no place for a folder of its own, or cannot be written.
    """
    target = _place(target)
    _check_target(target, overwrite)
    temporary, old = (target.with_name(f".{target.name}.{part}") for part in ("partial", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            sync(*(path for path in temporary.rglob("*") if path.is_file()), temporary)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            temporary.rename(target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or short_reason(error, 200)
        raise UserError(f"{target} cannot be written: {reason}. Make room, or give another folder (--out).") from None


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
