"""A cache of arrays that take long to make, in the user's cache folder."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from utils.io.files import cache_folder, write_bytes

if TYPE_CHECKING:
    import numpy as np


def cached_array(name: str, origin: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that ``build`` makes, read from the cache if that has an undamaged copy made from the same ``origin``.

    Args:
        name: the file's name in the cache folder.
        origin: identifies the source of the array; the array is made again if the cached one has another origin.
        build: makes the array: two dimensions of unsigned 64-bit integers.

    Returns:
        The array, read-only.
    """
    import numpy as np

    path = cache_folder() / f"{name}.bin"
    found = _read(path, origin)
    if found is not None:
        return found
    array = np.ascontiguousarray(build(), dtype="<u8")
    content = array.data.cast("B")
    header = json.dumps({"origin": origin, "shape": array.shape, "crc32": zlib.crc32(content)}).encode()
    array.flags.writeable = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The header has a multiple of 8 bytes, so that the numbers after it are aligned.
        write_bytes(path, header + b" " * (-len(header) % 8 + 7) + b"\n" + bytes(content))
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}): it is made again each time", file=sys.stderr)
    return array


def _read(path: Path, origin: str) -> np.ndarray | None:
    """The array in ``path``; None if it is missing, damaged or made from another origin."""
    import numpy as np

    try:
        with path.open("rb") as file:
            line = file.readline(1 << 16)
            header = json.loads(line)
        if header["origin"] != origin:
            return None
        shape = tuple(header["shape"])
        array = np.memmap(path, dtype="<u8", mode="r", offset=len(line), shape=shape)
        sound = path.stat().st_size == len(line) + array.nbytes and zlib.crc32(array.data) == header["crc32"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return array if sound else None
