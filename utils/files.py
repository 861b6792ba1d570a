"""Reading and writing small files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError
from utils.locks import link_lock


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/ROSA``, or ``~/.cache/ROSA``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "ROSA"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it into place, so that ``path`` is old or new, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic write of ``content`` to ``path``: temporary file in the same folder, fsync, rename.

    A link at ``path`` is replaced, not followed.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sweep(*paths: Path) -> None:
    """Remove what a kill within ``write_bytes`` left beside ``paths``, under the lock of those who write them."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}"):
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_json(path: Path, value: Any) -> None:
    """Atomic write of ``value`` as indented JSON; NaN and infinity are refused, as JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``. Raises UserError when the file is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, an endless number
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises UserError where ``read_json`` does and for any other JSON value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def sync(*paths: Path) -> None:
    """Wait until files or folders are on the disk itself, so that not even a power failure takes them back."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def own_folder(path: Path) -> Path:
    """The folder ``path``, made if missing. Raises UserError for a link, as ``open_in_place`` does."""
    if path.is_symlink():
        raise UserError(f"{path} is a link, which could lead anywhere: nothing is written there. Remove it.")
    path.mkdir(exist_ok=True)
    return path


def open_in_place(path: Path) -> int:
    """A descriptor to read and write ``path`` in place, made if missing.

    Raises:
        UserError: ``path`` is a link: a folder from elsewhere must not lead writing to other places.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, which could lead anywhere: it is not written to. Remove it.") from None
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def lock(path: Path, activity: str) -> Iterator[None]:
    """Hold ``path`` as an exclusive lock, or raise UserError naming the process that holds it.

    The kernel drops the lock when its holder dies, however it dies, so that a stale file never blocks anyone. A file
    system without locks gets one of its own kind (utils/locks.py).
    """
    file = _locked(path, activity)
    if file is None:
        with link_lock(path, activity):
            yield
        return
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        with contextlib.suppress(OSError):  # what was done under the lock counts, not the name in it
            file.truncate(0)


def _locked(path: Path, activity: str) -> TextIO | None:
    """``path``, open and locked; None where its file system has no locks."""
    while True:
        file = os.fdopen(open_in_place(path), "r+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(200).strip() or "another process"
            file.close()
            raise UserError(
                f"{path.parent} is already being {activity} by {holder}. Wait for it, or stop it first."
            ) from None
        except OSError:
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        file.close()  # another process removed the file just before it was locked here
