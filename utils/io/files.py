"""Reading and writing small files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError
from utils.io.locks import link_lock

LARGEST = 256 << 20  # bytes of a file that is read as a whole: metrics of a million steps, texts of any test set
LARGEST_RECORD = 16 << 20  # of a file with a single JSON value, which takes up to thirty times its size in memory


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/ROSA``, or ``~/.cache/ROSA``; for a user without a home, one that cannot be made."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if root.startswith("~") else root) / "ROSA"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it into place, so that ``path`` is old or new, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic write of ``content`` to ``path``: temporary file in the same folder, fsync, rename.

    A link at ``path`` is replaced, not followed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        # not tempfile, whose files are for their owner alone: the mode follows the umask
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
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


def open_regular(path: Path, largest: int | None = None) -> BufferedReader:
    """``path`` opened for reading, if it is a file or a link to one: reading a pipe or a device may never end.

    Raises:
        OSError: as ``open`` does.
        UserError: it is neither, or has more than ``largest`` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # or opening a pipe waits for its writer
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise UserError(f"{path} cannot be read: it is not a regular file")
    if largest is not None and status.st_size > largest:
        os.close(handle)
        raise UserError(f"{path} is larger than {largest / 2**20:g} MiB, the most that is read of such a file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The content of the file ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, is no regular file, or has more than ``largest`` bytes.
    """
    try:
        with open_regular(path, largest) as file:
            return file.read(largest)  # no more, should it grow meanwhile
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of the UTF-8 file ``path``. Raises as ``read_bytes``, and UserError naming a line that is not UTF-8."""
    return decode(path, read_bytes(path, largest))


def decode(path: Path, content: bytes, encoding: str = "utf-8") -> str:
    """``content``, which was read from ``path``, as text. Raises UserError naming the line that is not UTF-8."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8: convert the file, e.g. iconv -f latin1 -t utf-8") from None


def read_json(path: Path) -> Any:
    """The JSON value in ``path``. Raises UserError when the file is missing, unreadable or not JSON."""
    try:
        return json.loads(read_text(path, LARGEST_RECORD))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or an endless number
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
        UserError: ``path`` is a link, a pipe or a device: a folder from elsewhere must not lead writing elsewhere.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, which could lead anywhere: it is not written to. Remove it.") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is not a regular file: it is not written to. Remove it.")
    return handle


def sha256(path: Path, largest: int | None = None) -> str:
    """Hexadecimal SHA-256 of a file's content. Raises as ``open_regular``."""
    with open_regular(path, largest) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, activity: str) -> Iterator[None]:
    """Hold ``path`` as an exclusive lock, or raise UserError naming the process that holds it.

    The kernel drops the lock when its holder dies, however it dies, so that a stale file never blocks anyone. A file
    system without locks gets one of its own kind (utils/io/locks.py).
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
