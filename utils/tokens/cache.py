"""A cache of tokenised splits in the user's cache folder, looked up by a hash of what they were made from.

Every start, resume and evaluation of a run needs the same tokens. Making them takes seconds (E2E) to minutes (ELI5),
reading them a fraction of a second.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.data import Example, add_texts
from utils.io.files import cache_folder, write_bytes
from utils.log import log
from utils.tokens.encoding import Encoded, Sample, first_ids

VERSION = 2  # of the way in which tokens are made and kept
WORTH_KEEPING = 500_000  # characters; fewer are tokenised faster than a file is found and read
KEPT_DAYS = 30  # days after the last use of a file


def cached_encoding(
    units: Sequence[Sequence[Example]], tokenizer: Any, settings: dict[str, Any], build: Callable[[], Encoded]
) -> Encoded:
    """What ``build`` returns for these texts, this tokenizer and these settings, read from the cache if it is there.

    A file that is damaged, or cannot be written, is no error: the tokens are made again.

    Args:
        settings: whatever else changes the result.
    """
    size = sum(len(example.prompt) + len(example.target) for unit in units for example in unit)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if size < WORTH_KEEPING or backend is None:
        return build()
    special = tokenizer.eos_token_id, tokenizer.split_special_tokens, first_ids(tokenizer)
    rules = (VERSION, sorted(settings.items()), *special)
    path = cache_folder() / "tokens" / f"{_key(units, backend.to_str(), repr(rules))}.npz"
    found = _read(path)
    if found is not None:
        return found
    encoded = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _pack(encoded))
        _drop_unused(path.parent)
    except OSError as error:
        log.warning("%s cannot be written (%s): the texts are tokenised again each time", path, error.strerror)
    return encoded


def _key(units: Sequence[Sequence[Example]], *parts: str) -> str:
    digest = hashlib.sha256()
    for unit in units:
        for example in unit:
            add_texts(digest, example.prompt, example.target)
        digest.update(b"\xff" * 8)  # no text is so long: where a unit ends
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _pack(encoded: Encoded) -> bytes:
    samples = encoded.samples
    file = io.BytesIO()
    np.savez(
        file,
        ids=np.concatenate([np.asarray(sample.ids, np.int32) for sample in samples] or [np.zeros(0, np.int32)]),
        numbers=np.array(
            [(len(s.ids), s.prompt_length, s.target_characters, s.characters) for s in samples], np.int64
        ).reshape(-1, 4),
        counts=np.array([encoded.cut, -1 if encoded.documents is None else encoded.documents], np.int64),
    )
    return file.getvalue()


def _read(path: Path) -> Encoded | None:
    """The content of a cache file; None if it is missing or damaged (zip files have checksums)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, numbers, (cut, documents) = arrays["ids"], arrays["numbers"], arrays["counts"].tolist()
        path.touch()  # used today
        ends = np.cumsum(numbers[:, 0])
        if (ends[-1] if len(ends) else 0) != len(ids):
            return None
        samples = [
            Sample(own, *rest) for own, (_, *rest) in zip(np.split(ids, ends[:-1]), numbers.tolist(), strict=True)
        ]
        return Encoded(samples, cut, None if documents < 0 else documents)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return None


def _drop_unused(folder: Path) -> None:
    for path in folder.glob("*.npz"):
        if time.time() - path.stat().st_mtime > KEPT_DAYS * 86400:
            path.unlink(missing_ok=True)
