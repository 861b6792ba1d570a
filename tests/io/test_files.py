"""Small files: never half written, with the modes that the umask asks for, and not through links from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.io.files import open_in_place, own_folder, read_bytes, read_json, remove_leftovers, write_text
from utils.io.yaml_files import read_yaml


@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml])
def test_what_cannot_be_read_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r"run\.json"):
        read(tmp_path / "run.json")


def test_a_link_is_read_and_not_written_through(tmp_path: Path) -> None:
    write_text(tmp_path / "here", "é\n")
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "checkpoints").symlink_to(tmp_path)
    assert read_bytes(tmp_path / "link") == "é\n".encode()
    with pytest.raises(UserError, match="link is a link"):
        open_in_place(tmp_path / "link")
    with pytest.raises(UserError, match="checkpoints is a link"):
        own_folder(tmp_path / "checkpoints")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "here").read_text(encoding="utf-8") == "é\n"


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_text(path, "before")

    def full(*_: object) -> None:
        raise OSError("planted")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="planted"):
        patch.setattr(os, "fsync", full)
        write_text(path, "after")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    (tmp_path / ".run.json.0123abcd").touch()  # of a killed write
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "run.json", "{}")
        os.close(open_in_place(tmp_path / "metrics.jsonl"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
