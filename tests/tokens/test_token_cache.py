"""Tokens are made once for the same texts, tokenizer and settings, and again for any other or a damaged file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.data import Example, pair
from utils.models.loading import load_tokenizer
from utils.tokens import cache as tokens
from utils.tokens import packing
from utils.tokens.encoding import Encoded
from utils.tokens.packing import encode_units

PAIRS = [[pair(f"name[The {name}]", f"{name} is by the river, £20.", where="file, line 1")] for name in "ABCDE"]
DOCUMENTS = [
    [Example("q", "Why?", " Because é.", "Because é."), Example("q", "Why?", " So.", "So.")],
    [Example("r", "How?", " Well.", "Well.")],
]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kinds of splits that were tokenised, in an empty cache that keeps everything."""
    found: list[str] = []
    for name in ("encode", "pack"):
        original = getattr(packing, name)
        monkeypatch.setattr(
            packing, name, lambda *args, name=name, original=original: (found.append(name), original(*args))[1]
        )
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield found


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "ROSA" / "tokens").glob("*"))


def values(encoded: Encoded) -> Any:
    samples = [(list(map(int, s.ids)), s.prompt_length, s.target_characters, s.characters) for s in encoded.samples]
    return samples, encoded.cut, encoded.documents


@pytest.mark.parametrize("packed", [False, True])
def test_a_second_time_reads_what_the_first_one_made(made: list[str], tmp_path: Path, packed: bool) -> None:
    tokenizer = load_tokenizer("tiny")
    units = DOCUMENTS if packed else PAIRS
    options = {"packed": packed, "seq_len": 15, "block_size": 5}
    first = encode_units(units, tokenizer, **options)
    assert len(files(tmp_path)) == 1 and (packed or first.cut > 0)
    second = encode_units(units, load_tokenizer("tiny"), **options)
    assert values(first) == values(second)
    assert len(made) == 1


def test_anything_else_is_made_anew(made: list[str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer("tiny")
    options = {"packed": False, "seq_len": 60, "block_size": 5}
    encode_units(PAIRS, tokenizer, **options)
    encode_units(PAIRS[:-1], tokenizer, **options)
    encode_units([*PAIRS[1:], PAIRS[0]], tokenizer, **options)
    encode_units(PAIRS, tokenizer, **{**options, "seq_len": 59})
    encode_units([[example for unit in PAIRS for example in unit]], tokenizer, **{**options, "packed": True})
    tokenizer.split_special_tokens = False
    encode_units(PAIRS, tokenizer, **options)
    other = load_tokenizer("tiny")
    other.add_tokens(["river"])
    encode_units(PAIRS, other, **options)
    assert len(made) == len(files(tmp_path)) == 7
    encode_units(PAIRS, load_tokenizer("tiny"), **{**options, "block_size": 9})  # of no meaning for pairs
    assert len(made) == 7


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_made_anew(made: list[str], tmp_path: Path, damage: str) -> None:
    tokenizer = load_tokenizer("tiny")
    options = {"packed": False, "seq_len": 60, "block_size": 5}
    first = encode_units(PAIRS, tokenizer, **options)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "foreign":
        np.savez(path, ids=np.zeros(3, np.int32), numbers=np.array([[2, 1, 1, 1]]), counts=np.array([0, -1]))
    else:
        content[len(content) // 3] ^= 1
        path.write_bytes({"cut": content[:-90], "flipped": content, "empty": b""}[damage])
    assert values(encode_units(PAIRS, tokenizer, **options)) == values(first)
    assert len(made) == 2
    encode_units(PAIRS, tokenizer, **options)
    assert len(made) == 2  # and whole again


def test_a_cache_that_cannot_be_written_is_no_error(
    made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(encode_units(PAIRS, load_tokenizer("tiny"), packed=False, seq_len=60, block_size=5)) == 5


def test_little_is_not_kept_and_old_is_dropped(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer("tiny")
    options = {"packed": False, "seq_len": 60, "block_size": 5}
    encode_units(PAIRS, tokenizer, **options)
    (old,) = files(tmp_path)
    month = time.time() - 31 * 86400
    os.utime(old, (month, month))
    encode_units(PAIRS[1:], tokenizer, **options)
    assert old not in files(tmp_path) and len(files(tmp_path)) == 1
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 10_000)
    encode_units(PAIRS[2:], tokenizer, **options)
    assert len(files(tmp_path)) == 1
