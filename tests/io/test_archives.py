"""Folders of records as one archive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from studies.records import open_records
from tests.records import write_run
from utils.errors import UserError
from utils.io.archives import archive_of, pack, unpacked
from utils.plots import draw_figures
from utils.results.read import read_results
from utils.tables import compile_results


def write_record(folder: Path, seed: int = 0) -> None:
    write_run(folder.parent / "runs", seed=seed).rename(folder)
    shutil.rmtree(folder.parent / "runs")


def test_an_archive_is_read_under_the_name_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    for seed in range(2):
        folder.mkdir(exist_ok=True)
        write_record(folder / f"run-{seed}", seed)
    results = [result.record for result in read_results([folder])[0]]
    files = {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*")}

    archive = pack(folder)
    first = archive.read_bytes()
    assert not folder.exists() and archive_of(folder) == archive == archive_of(archive)
    for name in (folder, archive):
        assert [result.record for result in read_results([name])[0]] == results
    assert {path.relative_to(unpacked(folder)): path.read_bytes() for path in unpacked(folder).glob("*/*")} == files

    with open_records(folder):
        pass
    assert archive.read_bytes() == first  # the same files give the same bytes


def test_records_that_a_kill_left_unpacked_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    with open_records(folder) as records:
        write_record(records / "one")
    with pytest.raises(KeyboardInterrupt), open_records(folder) as records:
        write_record(records / "two")
        raise KeyboardInterrupt
    with open_records(folder) as records:
        write_record(records / "three")
    assert sorted(path.name for path in unpacked(folder).iterdir()) == ["one", "three", "two"]


def test_tables_and_figures_of_an_archive_need_a_folder(tmp_path: Path) -> None:
    with open_records(tmp_path / "records") as records:
        write_record(records / "one")
    with pytest.raises(UserError, match="--out"):
        compile_results([tmp_path / "records"])
    with pytest.raises(UserError, match="--out"):
        draw_figures(tmp_path / "records")
    compile_results([tmp_path / "records"], out=tmp_path / "tables")
    assert list(tmp_path.glob("tables/*/results.csv"))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "records.tar.xz"
    archive.write_bytes(b"not an archive")
    with pytest.raises(UserError, match=str(archive)):
        unpacked(tmp_path / "records")
