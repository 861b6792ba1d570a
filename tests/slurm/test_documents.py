"""Numbers, durations and texts of a sweep file mean what they look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.slurm.documents import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E4", 50000.0),
        ("0.05", 0.05),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("12:00:00", "12:00:00"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("'1e-3'", "1e-3"),
        ("0o17", "0o17"),
        ("[1e-4, a]", [0.0001, "a"]),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"key: {text}\n")
    found = read_yaml(file)["key"]
    assert found == value
    assert type(found) is type(value)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(file)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2\n", "line 2: not a valid sweep file"),
        ("a: 1\n\nb: 2\na: 3\n", "line 4: not a valid sweep file: 'a' is defined twice, first in line 1"),
        ("5: x\n", "the key 5 is not a text"),
        ("a: !!python/object:os.system x\n", "not a valid sweep file"),
        ("\x00", "cannot be read as YAML"),
    ],
)
def test_what_is_not_a_sweep_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)) as error:
        read_yaml(file)
    assert words in str(error.value)


NINE = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 100 levels"),
        ("\n".join(" " * depth + "a:" for depth in range(5000)), "nested deeper than 100 levels"),
        (f"a: &a [1]\n{NINE}\n", "more than 1000000 values with its aliases written out"),
        (f"a: &a {{x: 1}}\n{NINE.replace('[', '{<<: [').replace(']', ']}')}\n", "more than 1000000 values"),
        ("a: &a [1, *a]\n", "an alias of what it stands in"),
        ("a: " + "9" * 5000, "a value of 5000 digits"),
        ("a: 1." + "9" * 5000, "a value of 5002 digits"),
    ],
    ids=["flow", "block", "aliases", "merges", "circle", "digits", "decimals"],
)
def test_what_would_keep_a_reader_busy_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)) as error:
        read_yaml(file)
    assert words in str(error.value) and len(str(error.value)) < 300


def test_a_long_text_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"a: '{'9' * 5000}'\nb: |\n  {'word ' * 1000}\n")
    assert len(read_yaml(tmp_path / "x.yaml")["a"]) == 5000


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist\. Give the sweep's file with --fn"):
        read_yaml(tmp_path / "x.yaml")
