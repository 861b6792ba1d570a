"""The folder of an export: its place, two exports at once, and what a failure or a kill leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.export.folder import whole_folder


def write(target: Path, overwrite: bool = False) -> None:
    with whole_folder(target, overwrite) as folder:
        (folder / "file").write_text("whole")


@pytest.mark.parametrize("place", [".", "/", "..", "sub/..", "/usr/..", "~nobody-of-this-name/out"])
def test_places_that_no_folder_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out"):
        write(Path(place))
    assert not list(tmp_path.iterdir())


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(Path("~/out"))
    assert (tmp_path / "out" / "file").read_text() == "whole"
