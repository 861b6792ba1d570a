"""Numbers, durations and texts of a YAML file mean what they look like, and no tag runs code."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.io.yaml_files import read_yaml


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
        ("08", "08"),
        ("٣", "٣"),
        ("0", 0),
        ("0.5e-2", 0.005),
        ("[1e-4, a]", [0.0001, "a"]),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"key: {text}\n", encoding="utf-8")
    found = read_yaml(file)["key"]
    assert found == value
    assert type(found) is type(value)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", encoding="utf-8")
    assert read_yaml(file)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2\n", "line 2: not valid YAML"),
        ("a: 1\n\nb: 2\na: 3\n", "line 4: not valid YAML: 'a' is defined twice, first in line 1"),
        ("5: x\n", "the key 5 is not a text"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("\x00", "cannot be read as YAML"),
        ("a: !!int x\n", "cannot be read as YAML"),
        ("a: !!bool x\n", "cannot be read as YAML"),
        ("a: !!timestamp x\n", "cannot be read as YAML"),
        ("[" * 20_000, "cannot be read as YAML"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=str(file)) as error:
        read_yaml(file)
    assert words in str(error.value)
