"""Read and write files so that a reader never sees half of one, and lock them."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError, printable
from utils.io.locks import link_lock


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/ROSA`` or ``~/.cache/ROSA``; a path that cannot be made if the user has no home folder."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if root.startswith("~") else root) / "ROSA"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as ``write_bytes`` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: to a temporary file beside it, fsync, then rename.

    A reader sees the old content or the new one, never half of it. A link at ``path`` is replaced, not followed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        # not tempfile, whose files only their owner may read: this mode follows the umask
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def remove_leftovers(*paths: Path) -> None:
    """Delete temporary files that a killed ``write_bytes`` left beside ``paths``. The caller holds their lock."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}"):
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: Path) -> bytes:
    """The content of the file ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The text of the UTF-8 file ``path``. Raises as ``read_bytes``, and UserError naming a line that is not UTF-8."""
    return decode(path, read_bytes(path))


def decode(path: Path, content: bytes, encoding: str = "utf-8") -> str:
    """Decode ``content``, which was read from ``path``. Raises UserError naming the line that is not UTF-8."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
        raise UserError(f"{path}, line {line} is not UTF-8: convert the file, e.g. iconv -f {found} -t utf-8") from None


def read_json(path: Path) -> Any:
    """The JSON value in ``path``. Raises UserError when the file is missing, unreadable or not JSON."""
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of too many digits
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, with its texts made printable: what is read here is shown in many places.

    Raises UserError as ``read_json`` does, and for any other JSON value.
    """
    value = _printable(read_json(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def _printable(value: Any) -> Any:
    """A JSON value whose texts are each one line, without characters that could control a terminal."""
    if isinstance(value, dict):
        return {_printable(key): _printable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_printable(part) for part in value]
    return printable(" ".join(value.splitlines())) if isinstance(value, str) else value


def write_results(folder: Path, files: Mapping[Path, bytes]) -> None:
    """Make ``folder`` and write ``files``, which are in it, each atomically. Raises UserError, which names --out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Give another folder with --out.") from None


def sync(*paths: Path) -> None:
    """Wait until files or folders are on the disk itself, so that they survive a power failure."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def refuse_link(path: Path) -> None:
    """Raise UserError if ``path`` is a link. A folder from elsewhere must not redirect writes."""
    if path.is_symlink():
        raise UserError(f"{path} is a link, which could lead anywhere: nothing is written there. Remove it.")


def own_folder(path: Path) -> Path:
    """Make the folder ``path`` if it is missing, and return it. Raises UserError for a link."""
    refuse_link(path)
    path.mkdir(exist_ok=True)
    return path


def open_in_place(path: Path) -> int:
    """Open ``path`` to read and write it in place, and return the descriptor; the file is made if it is missing.

    Raises:
        UserError: ``path`` is a link. A folder from elsewhere must not redirect writes.
    """
    refuse_link(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, activity: str) -> Iterator[None]:
    """Hold ``path`` as an exclusive lock.

    The kernel drops the lock when its holder dies, so that a file that was left behind blocks nobody. On a file system
    without locks, ``link_lock`` takes its place.

    Args:
        path: the lock's file.
        activity: what is done under the lock, for the message of another process ("trained").

    Raises:
        UserError: another process holds it; names that process.
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
        with contextlib.suppress(OSError):  # the work under the lock is done, whatever the file says
            file.truncate(0)


def _locked(path: Path, activity: str) -> TextIO | None:
    """Open and lock ``path``; None if its file system has no locks."""
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
