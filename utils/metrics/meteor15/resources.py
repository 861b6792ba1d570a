"""METEOR's tables, read from the installed package pycocoevalcap. They are not part of this repository.

The jar contains WordNet's synonym sets and irregular forms, the function words and the non-breaking prefixes.
``paraphrase-en.gz`` contains 5 million pairs of phrases; each takes three lines: the probability and the two phrases.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.io.array_cache import cached_array

JAR = "meteor/meteor-1.5.jar"
PARAPHRASES = "meteor/data/paraphrase-en.gz"
CHUNK = 1 << 22  # bytes of text hashed at a time

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_BYTES = np.random.Generator(np.random.PCG64(15)).integers(0, 1 << 64, size=256, dtype=np.uint64)


@dataclass(frozen=True)
class Tables:
    """The tables that METEOR reads."""

    function_words: frozenset[str]
    prefixes: frozenset[str]  # words that keep their full stop
    synonym_sets: dict[str, frozenset[str]]  # word to the synonym sets it is in
    irregular: dict[str, tuple[str, ...]]  # inflected form to its base forms
    paraphrases: np.ndarray  # (pairs, 2) hashes of phrases, sorted by the first column


def package_file(name: str) -> Path:
    """A file of the installed pycocoevalcap. Raises UserError if it is missing."""
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (path := Path(folder) / name).exists():
            return path
    raise UserError(f"METEOR needs {name} of the package pycocoevalcap: pip install --force-reinstall pycocoevalcap")


@functools.lru_cache(maxsize=1)
def load_tables() -> Tables:
    """All tables. On first use this hashes the paraphrases, which takes some seconds, and caches the hashes on disk."""
    jar = package_file(JAR)
    try:
        with zipfile.ZipFile(jar) as archive:
            function, prefixes, synonyms, irregular = (
                archive.read(name).decode("utf-8").splitlines()
                for name in (
                    "function/english.words",
                    "nonbreaking/english.prefixes",
                    "synonym/english.synsets",
                    "synonym/english.exceptions",
                )
            )
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{jar} is damaged ({error}): pip install --force-reinstall pycocoevalcap") from None
    return Tables(
        function_words=frozenset(function),
        # Texts are lower-cased, so that capitalised prefixes would never match.
        prefixes=frozenset(word.strip() for word in prefixes if re.match("[a-z]", word)),
        synonym_sets={word: frozenset(sets.split()) for word, sets in zip(synonyms[::2], synonyms[1::2], strict=True)},
        irregular=_irregular(irregular),
        paraphrases=_paraphrases(),
    )


def _irregular(lines: list[str]) -> dict[str, tuple[str, ...]]:
    bases: dict[str, tuple[str, ...]] = {}
    for base, forms in zip(lines[::2], lines[1::2], strict=True):
        for form in forms.split():
            bases[form] = (*bases.get(form, ()), base)
    return bases


def _paraphrases() -> np.ndarray:
    path = package_file(PARAPHRASES)
    status = path.stat()
    origin = f"{path.name} {status.st_size} {status.st_mtime_ns} 1"
    return cached_array("meteor-paraphrases", origin, lambda: _read_paraphrases(path))


def _read_paraphrases(path: Path) -> np.ndarray:
    try:
        hashes = np.concatenate(list(_line_hashes(path)))
    except (OSError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): pip install --force-reinstall pycocoevalcap") from None
    pairs = hashes.reshape(-1, 3)[:, 1:]
    return pairs[np.argsort(pairs[:, 0], kind="stable")]


def _line_hashes(path: Path) -> Iterator[np.ndarray]:
    """The hashes of the lines of a gzip file, one array per CHUNK."""
    rest = b""
    with gzip.open(path, "rb") as file:
        while block := file.read(CHUNK):
            block = rest + block
            cut = block.rfind(b"\n") + 1
            block, rest = block[:cut], block[cut:]
            yield _hash_lines(block)
    if rest:
        yield _hash_lines(rest + b"\n")


@functools.lru_cache(maxsize=2)
def _powers(length: int) -> tuple[np.ndarray, ...]:
    inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
    with np.errstate(over="ignore"):
        return tuple(
            np.cumprod(np.concatenate([[np.uint64(1)], np.full(length - 1, base, dtype=np.uint64)]), dtype=np.uint64)
            for base in (_BASE, inverse)
        )


def _hash_lines(text: bytes) -> np.ndarray:
    """A 64-bit polynomial hash of each line: the sum of f(byte) · base^(position in the line), modulo 2^64."""
    codes = np.frombuffer(text, dtype=np.uint8)
    size = 1 << max(16, int(len(codes) - 1).bit_length())
    powers, inverses = (power[: len(codes)] for power in _powers(size))
    ends = np.flatnonzero(codes == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    with np.errstate(over="ignore"):
        sums = np.concatenate([[np.uint64(0)], np.cumsum(_BYTES[codes] * powers, dtype=np.uint64)])
        return (sums[ends] - sums[starts]) * inverses[starts]


def hash_phrases(phrases: list[str]) -> np.ndarray:
    """The hashes of phrases (words joined by blanks) as the paraphrase table contains them: uint64, (phrases,)."""
    if not phrases:
        return np.zeros(0, dtype=np.uint64)
    return _hash_lines(("\n".join(phrases) + "\n").encode("utf-8"))
