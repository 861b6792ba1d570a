"""The folder of an export: its place, two exports at once, what a failure or a kill leaves, and who may read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rosa.files import follow_umask
from tests.export.conftest import TrainIn
from utils.errors import UserError
from utils.export.__main__ import main
from utils.export.folder import CARD, MARK, whole_folder
from utils.runs import Run


def write(target: Path, text: str = "whole", overwrite: bool = False) -> None:
    with whole_folder(target, overwrite) as folder:
        (folder / "file").write_text(text)
        (folder / CARD).write_text(MARK)


def content(target: Path) -> str:
    """The file of the export, which is all that its parent holds."""
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return (target / "file").read_text()


@pytest.mark.parametrize("place", [".", "sub/..", "~nobody-of-this-name/out"])
def test_places_that_no_folder_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out"):
        write(Path(place))
    assert not list(tmp_path.iterdir())


def test_two_exports_at_once_leave_the_first_that_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError, match="is not empty"), whole_folder(target) as folder:
        (folder / "file").write_text("slow")
        write(target, "quick")
        assert (folder / "file").read_text() == "slow", "its own files are still there"
    assert content(target) == "quick"
    with whole_folder(target, overwrite=True) as folder:
        write(target, "quicker", overwrite=True)
        (folder / "file").write_text("slow")
    assert content(target) == "slow"


def test_an_export_that_cannot_take_its_place_puts_the_earlier_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "out", Path.rename
    write(target, "earlier")

    def fails(path: Path, to: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match="cannot be written: Input/output error"):
        write(target, overwrite=True)
    assert content(target) == "earlier"


@pytest.mark.parametrize("last", ["yield", "between"])
def test_what_a_killed_export_left(tmp_path: Path, last: str) -> None:
    """It is removed by the next one, which finds the earlier export in its place."""
    target = tmp_path / "out"
    write(target, "earlier")
    code = f"""
import os, pathlib
from utils.export.folder import whole_folder
rename = pathlib.Path.rename
pathlib.Path.rename = lambda path, to: os._exit(9) if path.name == "new" else rename(path, to)
with whole_folder(pathlib.Path({str(target)!r}), True) as folder:
    (folder / "half").touch()
    if {last == "yield"}:
        os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert target.exists() == (last == "yield") and len(list(tmp_path.glob(".out.*"))) == 1
    with pytest.raises(UserError, match="is not empty"):
        write(target)
    assert content(target) == "earlier"


def test_others_may_read_what_the_umask_lets_them(train_in: TrainIn, rosa_run: Run, tmp_path: Path) -> None:
    """safetensors 0.8 writes files that only their owner may read; a colleague must be able to evaluate a run."""
    (tmp_path / "usual").touch()
    full = train_in(tmp_path / "runs", "fnmodel.name=none")
    for form in ("merged", "peft", "adapter"):
        assert main([str(rosa_run.path), "--out", str(tmp_path / form), "--as", form]) == 0
    folders = (full.best, rosa_run.best, *(tmp_path / form for form in ("merged", "peft", "adapter")))
    files = [path for folder in folders for path in folder.glob("*.safetensors")]
    follow_umask(tmp_path / "of-no-such-file")  # as where modes cannot be set: nothing is lost for it
    assert len(files) == 7 and {path.stat().st_mode for path in files} == {(tmp_path / "usual").stat().st_mode}
