"""Small files: never half written, with the modes the umask asks for; and nothing that is no file is waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.io.files import open_in_place, read_bytes, read_json, sha256, write_text
from utils.io.yaml_files import read_yaml


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, endless, folder])
@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml, sha256])
def test_what_is_no_file_is_not_read(
    read: Callable[[Path], object], make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    make(path)
    with pytest.raises(UserError, match=r"run\.json cannot be read: it is not a regular file"):
        read(path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    write_text(tmp_path / "here", "é\n")
    (tmp_path / "link").symlink_to("here")
    assert read_bytes(tmp_path / "link") == "é\n".encode()


def test_a_file_larger_than_any_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with path.open("wb") as file:
        file.truncate(20 << 30)  # sparse: it takes no room
    with pytest.raises(UserError, match=r"run\.json is larger than 16 MiB"):
        read_json(path)
    with pytest.raises(UserError, match=r"run\.json is larger than 256 MiB"):
        read_bytes(path)


@pytest.mark.parametrize("make", [pipe, folder, endless])
def test_only_files_are_written_in_place(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    make(path)
    with pytest.raises((UserError, IsADirectoryError)):
        open_in_place(path)


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644), (0o002, 0o664)])
def test_modes_follow_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "run.json", "{}")
        os.close(open_in_place(tmp_path / "metrics.jsonl"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
