"""Folders of many small files as one compressed archive, ``FOLDER.tar.xz``, which is read under the folder's name."""

from __future__ import annotations

import atexit
import functools
import io
import lzma
import shutil
import tarfile
import tempfile
from pathlib import Path

from utils.errors import UserError
from utils.io.files import write_bytes

SUFFIX = ".tar.xz"


def archive_of(path: str | Path) -> Path | None:
    """The archive that ``path`` names: itself, or the one that stands for a folder that is not there. Else None."""
    path = Path(path)
    if path.is_dir():
        return None
    archive = path if path.name.endswith(SUFFIX) else path.with_name(path.name + SUFFIX)
    return archive if archive.is_file() else None


def unpacked(path: str | Path) -> Path:
    """``path`` if it is no archive, otherwise a temporary folder with its content, removed when Python ends.

    Raises:
        UserError: the archive cannot be read.
    """
    archive = archive_of(path)
    return Path(path) if archive is None else _unpack(archive.resolve(), archive.stat().st_mtime_ns)


@functools.cache
def _unpack(archive: Path, changed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"{archive.name.removesuffix(SUFFIX)}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    extract(archive, folder)
    return folder


def extract(archive: Path, folder: Path) -> None:
    """Write the content of ``archive`` into ``folder``."""
    try:
        with tarfile.open(archive, "r:xz") as tar:
            for entry in tar:
                if entry.isfile() and (content := tar.extractfile(entry)):
                    place = folder / Path(entry.name).parent.name / Path(entry.name).name  # never outside of folder
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content.read())
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}. Copy it again.") from None


def pack(folder: Path) -> Path:
    """Write the files in the folders in ``folder`` to its archive, and remove ``folder``. Returns the archive.

    Equal files give equal bytes: the archive has no times and no owners, and its entries are sorted.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9) as tar:
        for file in sorted(file for file in folder.glob("*/*") if file.is_file()):
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size = file.stat().st_size
            with file.open("rb") as stream:
                tar.addfile(entry, stream)
    archive = folder.with_name(folder.name + SUFFIX)
    write_bytes(archive, content.getvalue())
    shutil.rmtree(folder)
    return archive
